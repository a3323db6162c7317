# %% [markdown]
# # 9. One pixel by hand, from u8 to u8
#
# INT8 inference is the same few lines of arithmetic, billions of times over. Here they are once: a
# single output value of `layer1.0.conv1`, a 1x1 convolution of 64 channels, with the network's
# own numbers, FP32 beside INT8.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minires
from minires.reference import requantize_ref

fp32 = minires.resnet50("CIFAR10", "fp32", backend="numpy")
int8 = minires.resnet50("CIFAR10", "int8", backend="numpy")
image = fp32.preprocess("examples/images/cat.jpg")
NAME, ROW, COLUMN = "layer1.0.conv1", 8, 8
real, steps = ({s.name: s for s in model.steps(image)} for model in (fp32, int8))
CHANNEL = int(real[NAME].output[0, ROW, COLUMN].argmax())  # one that is not cut off by the ReLU

# %% [markdown]
# ## What goes in
#
# A 1x1 convolution reads one pixel: 64 numbers. In INT8 they are bytes, with a scale and the zero
# point 0, since a ReLU came before. They are not quite x: INT8's own layers have computed them.

# %%
x_f32, x_u8 = (of[NAME].inputs[0][0, ROW, COLUMN] for of in (real, steps))  # (64,)
p = int8.params[NAME]
x_scale, x_zero_point = p.x_qparams
w_f32, w_s8 = fp32.params[NAME].weight[CHANNEL], p.w_s8[CHANNEL]
print(f"x_scale {x_scale:.6f}, x_zero_point {x_zero_point}, w_scale {p.w_scale[CHANNEL]:.7f}")
print(f"{'k':>3}{'x':>9}{'x_u8':>6}{'back':>9}{'w':>10}{'w_s8':>6}{'back':>10}{'product':>9}")
for k in range(6):
    back = x_u8[k] * x_scale, w_s8[k] * p.w_scale[CHANNEL]
    print(
        f"{k:>3}{x_f32[k]:>9.4f}{x_u8[k]:>6}{back[0]:>9.4f}"
        f"{w_f32[k]:>10.5f}{w_s8[k]:>6}{back[1]:>10.5f}{int(x_u8[k]) * int(w_s8[k]):>9}"
    )

# %% [markdown]
# ## The sum
#
# 64 products of u8 by s8, summed in 32 bits: exact. Then the bias, which is in the same units.

# %%
products = x_u8.astype(np.int32) * w_s8.astype(np.int32)
acc, bias = int(products.sum()), int(p.bias_s32[CHANNEL])
print(f"acc {acc}, bias_s32 {bias}, together {acc + bias}")

# %% [markdown]
# ## Back to eight bits
#
# Equations 7.2 and 7.3 ([chapter 7](07_requantization)): multiply; clip, which is the ReLU; round.

# %%
y_scale, y_zero_point = int8[NAME].qparams
m = x_scale * p.w_scale[CHANNEL] / y_scale
t = np.float32(acc + bias) * m
y_u8 = int(np.rint(np.clip(t, 0, 255)))
print(f"m = {x_scale:.6f} x {p.w_scale[CHANNEL]:.7f} / {y_scale:.6f} = {m:.8f}")
print(f"t = {acc + bias} x {m:.8f} = {t:.4f}, so y = {y_u8}")
assert y_u8 == steps[NAME].output[0, ROW, COLUMN, CHANNEL], "the network computed the same"

# %% [markdown]
# ## FP32 beside it
#
# Half a step at most is this output's own rounding; the rest came in with the weights and with x.

# %%
#| alt: 09_one_pixel, a picture
exact = max(0.0, float(x_f32 @ w_f32 + fp32.params[NAME].bias[CHANNEL]))
print(f"fp32 {exact:.5f}; int8 {y_u8} x {y_scale:.6f} = {y_u8 * y_scale:.5f}")
print(f"off by {abs(y_u8 * y_scale - exact) / y_scale:.2f} steps")

figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
axes.plot(np.cumsum(x_f32 * w_f32), label="fp32")
axes.plot(np.cumsum(products) * x_scale * p.w_scale[CHANNEL], "--", label="int8")
axes.set(xlabel="k, the input channels so far", ylabel="the sum so far, no bias")
axes.legend()
plt.show()

# %% [markdown]
# **Exercise.** What would y be without a bias? *Answer.* rint(acc x m), if that is not negative.

# %%
bare = requantize_ref(np.array([[acc]], np.int32), m, 0).item()
print("without a bias", bare)
assert bare == int(np.rint(np.clip(np.float32(acc) * m, 0, 255)))
assert np.isclose(x_scale * p.w_scale[CHANNEL] * bias, fp32.params[NAME].bias[CHANNEL], atol=1e-4)

# %% [markdown]
# ## In your browser
#
# Do the same with any layer, any channel and any pixel.
#
# ```{lab} pixel
# ```
