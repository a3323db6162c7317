# %% [markdown]
# # 8. Adding the residual
#
# At the end of each block two tensors are added whose integers have different scales: 7 in one is
# not 7 in the other. This page adds them in one rounding, and shows what a second one would cost.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minires
from minires.reference import QParams, dequantize_ref, quantize_ref, requantize_ref

# %% [markdown]
# ## One rounding
#
# Both are brought to the output's scale as real numbers, added, and rounded once:
#
# $$
# t = \mathrm{float32}(\mathrm{acc} + \mathrm{bias}_c)\, m_c
# + \mathrm{float32}(r - z_r)\, \frac{s_r}{s_y} \tag{8.1}
# $$
#
# and on with equation 7.3 of [chapter 7](07_requantization). A compiled kernel does it while
# the sums are still in registers, so the only cost is to read r.

# %%
r_qparams, y_scale = QParams(np.float32(0.02), 0), np.float32(0.03)
acc, m = np.array([[1234, -300, 50]], np.int32), np.float32(0.01)
r_u8 = np.array([[100, 200, 0]], np.uint8)
r_steps = r_u8.astype(np.int32) - r_qparams.zero_point
shortcut = r_steps.astype(np.float32) * (r_qparams.scale / y_scale)  # in units of the output's
print("t ", acc.astype(np.float32) * m + shortcut)
print("y ", requantize_ref(acc, m, 0, shortcut))

# %% [markdown]
# ## Two roundings
#
# A graph that keeps convolution and addition apart (ONNX's QLinearConv, then ONNX Runtime's own
# QLinearAdd) rounds the convolution to eight bits first, needs a zero point for its negative
# values, and rounds again after adding.

# %%
#| alt: 08_residual, a picture
random = np.random.default_rng(0)
real = random.normal(0, 1, 20_000).astype(np.float32)  # what the convolution computed
residual = np.abs(random.normal(0, 1, 20_000)).astype(np.float32)
y_true = np.maximum(real + residual, 0)
y_q = QParams(np.float32(y_true.max() / 255), 0)
between = QParams(np.float32((real.max() - real.min()) / 255), 128)

once = quantize_ref(real + residual, *y_q)
rounded = dequantize_ref(quantize_ref(real, *between), *between)
twice = quantize_ref(rounded + residual, *y_q)
errors = [dequantize_ref(y, *y_q) - y_true for y in (once, twice)]
for name, error in zip(("once", "twice"), errors, strict=True):
    print(f"rounded {name:<6} root mean square error {np.sqrt(np.mean(error**2)):.5f}")
print(f"they differ in {np.mean(once != twice):.0%} of the values, by one step at most")
assert np.abs(once.astype(int) - twice).max() <= 1

plt.figure(figsize=(7, 2.8), layout="constrained")
plt.hist(errors, bins=60, label=["one rounding", "two roundings"])
plt.xlabel("error of the sum")
plt.ylabel("how often")
plt.legend()
plt.show()

# %% [markdown]
# The peak at 0 is of the sums below it: ReLU makes them zero, and zero is exact.
#
# ## In the network
#
# In a stage's first block the residual comes from a convolution without a ReLU (`downsample`), so
# it may be negative and has a zero point.

# %%
int8 = minires.resnet50("CIFAR10", "int8", backend="numpy")
for name in ("layer1.0.downsample.0", "layer1.0.conv3", "layer1.1.conv3"):
    q = int8[name].qparams
    print(f"{name:<22} scale {q.scale:.5f}, zero_point {q.zero_point}")

# %% [markdown]
# ## Exercise
#
# The residual's scale is 0.06, its zero point 10, and r = 13; the output's scale is 0.03; acc +
# bias is 50 and m = 0.01. What is y?
#
# *Answer.* t = 50 x 0.01 + (13 - 10) x 0.06 / 0.03 = 6.5, a tie, so 6.

# %%
shortcut = np.float32([[13 - 10]]) * (np.float32(0.06) / y_scale)
assert requantize_ref(np.array([[50]], np.int32), m, 0, shortcut).item() == 6
