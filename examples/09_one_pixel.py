# %% [markdown]
# # 9. One pixel by hand, from u8 to u8
#
# If you read one page of this book, read this one. A network in INT8 does one small calculation,
# again and again. Here you do it once, with the network's own numbers:
#
# 1. Multiply bytes of the input by bytes of the weights.
# 2. Add up the products. The sum is a 32-bit integer, and it is exact.
# 3. Add the bias, which is an integer too.
# 4. Multiply by one float32 number, the *multiplier*.
# 5. Clip the result to what a byte can hold, and round it.
#
# Out comes one byte, and the next layer reads it. [Chapter 5](05_eight_bits) tells why a byte can
# stand for a real number. [Chapter 7](07_requantization) derives steps 3 to 5.

# %%
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

import minires
from minires.measure.plots import COLORS, GREY
from minires.reference import gemm_u8s8_ref, requantize_ref

fp32 = minires.resnet50("CIFAR10", "fp32", backend="numpy")
int8 = minires.resnet50("CIFAR10", "int8", backend="numpy")
image = fp32.preprocess("examples/images/cat.jpg")
real, steps = ({s.name: s for s in model.steps(image)} for model in (fp32, int8))
NAME, ROW, COLUMN = "layer1.0.conv1", 6, 5
CHANNEL = int(real[NAME].output[0, ROW, COLUMN].argmax())  # the one that answers most strongly here
print(f"layer {NAME}, row {ROW}, column {COLUMN}, channel {CHANNEL}")

# %% [markdown]
# ## What this pixel sees
#
# `layer1.0.conv1` is the first convolution after the max-pool. Its kernel is 1 x 1, and its stride
# is 1. So its pixel in row 6 reads one pixel of the max-pool, in row 6. Go back from there. A layer
# with a kernel of $k$ pixels, a stride $s$ and a padding $p$ makes its row $r$ from these rows of
# its input. In the padded image the window begins at row $s r$, and the image itself begins $p$
# rows lower:
#
# $$
# \mathrm{first} = s\,r - p \qquad \mathrm{last} = s\,r - p + k - 1 \tag{9.1}
# $$
#
# The max-pool has $k = 3$, $s = 2$, $p = 1$. Its row 6 reads rows 11 to 13 of `conv1`. `conv1` has
# $k = 7$, $s = 2$, $p = 3$. Its row 11 begins at row 19 of the photograph, and its row 13 ends at
# row 29. That makes 11 rows, and the columns go the same way: 15 to 25. This square is the pixel's
# *receptive field*.

# %%
#| code: folded
#| alt: The cat's face in 64 by 64 pixels. A square of 11 by 11 pixels frames its left eye.
#| caption: The photograph as the network gets it. Nothing outside the square can change our byte.
first, last = np.array([ROW, COLUMN]), np.array([ROW, COLUMN])
for layer in (int8["maxpool"], int8["conv1"]):
    first = layer.stride * first - layer.padding
    last = layer.stride * last - layer.padding + layer.kernel - 1
(top, left), (bottom, right) = first, last
assert (top, bottom, left, right) == (19, 29, 15, 25)
preset = fp32.meta["preset"]
seen = np.clip(image[0].transpose(1, 2, 0) * preset.std + preset.mean, 0, 1)
figure, axes = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
axes.imshow(seen)
frame = Rectangle((left - 0.5, top - 0.5), right - left + 1, bottom - top + 1)
frame.set(fill=False, edgecolor=COLORS["int8"], linewidth=3)
axes.add_patch(frame)
axes.set(xticks=[left, right], yticks=[top, bottom], xlabel="column", ylabel="row")
plt.show()

# %% [markdown]
# ## Step 1: multiply
#
# From here on, k counts channels, and s is a scale. A pixel of the max-pool has 64 channels. So 64
# bytes come in, one from each channel. Each byte $x_k$ stands for the real number $s_x x_k$. The
# zero point is 0, because a ReLU came before, and nothing is negative. Our channel has 64 weights,
# which are signed bytes. Each $w_k$ stands for $s_w w_k$.

# %%
p = int8.params[NAME]
s_x, z_x = p.x_qparams
s_w, w = p.w_scale[CHANNEL], p.w_s8[CHANNEL].astype(np.int32)
x = steps[NAME].inputs[0][0, ROW, COLUMN].astype(np.int32)
products = x * w
print(f"s_x = {s_x:.6f}, s_w = {s_w:.7f}")
for k in range(4):
    print(f"x[{k}] w[{k}] = {x[k]} x {w[k]} = {products[k]}")
assert z_x == 0

# %% [markdown]
# The view below has all 64. Press *Start the network*. Choose `layer1.0.conv1`, then the channel,
# the row and the column from above. Go through the products one by one.
#
# ```{lab} pixel
# ```
#
# ## Step 2: add
#
# The largest product is 255 x 127 = 32,385, so 64 of them fit into 32 bits with much room. Integers
# do not round. The order of the additions makes no difference, and the engine gets the same sum on
# every CPU.

# %%
#| code: folded
#| alt: Bars show the 64 products, some above and some below zero. A line beneath shows their sum.
#| caption: The 64 products, and their sum so far.
acc = int(products.sum())
figure, (upper, lower) = plt.subplots(2, 1, figsize=(5.6, 4), sharex=True, layout="constrained")
upper.bar(range(64), products, color=COLORS["int8"])
upper.set(ylabel="product")
lower.step(range(64), np.cumsum(products), where="mid", color=COLORS["int8"])
lower.set(xlabel="k, the input channel", ylabel="sum so far")
for axes in (upper, lower):
    axes.axhline(0, color=GREY, linewidth=0.8)
plt.show()

# %% [markdown]
# ## Step 3: add the bias
#
# One unit of the sum is worth $s_x s_w$. The channel has a bias $b$, which is a real number. Divide
# it by $s_x s_w$ and round: now it counts in the same units. The zero point of this input is 0, so
# nothing else belongs to the bias. (Where an input has a zero point $z_x$ other than 0, subtract
# $z_x$ times the sum of the weights: equation 7.1.) All of this was done beforehand.

# %%
bias, b = int(p.bias_s32[CHANNEL]), fp32.params[NAME].bias[CHANNEL]
print(f"b = {b:.5f}, b / (s_x s_w) = {b / (s_x * s_w):.2f}")
print(f"bias = {bias}")
print(f"sum + bias = {acc} + ({bias}) = {acc + bias}")
assert abs(b / (s_x * s_w) - bias) <= 0.5

# %% [markdown]
# ## Steps 4 and 5: back to a byte
#
# The output has a scale of its own: one unit of its byte, a *step*, is worth $s_y$. One unit of the
# sum is worth $s_x s_w$. So multiply the sum by $m = s_x s_w / s_y$, and it counts in steps of the
# output. Then clip to 0 and 255, and round. These are equations 7.2 and 7.3. The clip at 0 is also
# this layer's ReLU. (An output with a zero point has it added last. Here it is 0.)

# %%
s_y, z_y = int8[NAME].qparams
m = s_x * s_w / s_y
t = np.float32(acc + bias) * m
y = int(np.rint(np.clip(t, 0, 255)))
print(f"m = {s_x:.6f} x {s_w:.7f} / {s_y:.6f} = {m:.8f}")
print(f"t = {acc + bias} x {m:.8f} = {t:.4f}")
print(f"y = rint(clip({t:.4f}, 0, 255)) = {y}")
assert z_y == 0
assert y == steps[NAME].output[0, ROW, COLUMN, CHANNEL], "the network computed the same byte"

# %% [markdown]
# That is all. The layer does it for 16 x 16 pixels and 64 channels. The 64 bytes of a pixel are a
# row of one matrix, and the 64 weights of a channel are a column of another one. So the whole layer
# is a product of two matrices, in two lines:

# %%
sums = gemm_u8s8_ref(steps[NAME].inputs[0].reshape(-1, 64), p.w_s8.T) + p.bias_s32  # (256, 64)
whole = requantize_ref(sums, s_x * p.w_scale / s_y, z_y).reshape(1, 16, 16, 64)
assert np.array_equal(whole, steps[NAME].output)

# %% [markdown]
# ## FP32 beside it
#
# FP32 computes the same pixel from real numbers. How far apart are the two? Four things move INT8
# away here: the inputs, the weights, the rounding of the bias, and the rounding of the output. The
# first two lie in the products. Write $\hat x$ and $\hat w$ for what bytes stand for, and split the
# difference:
#
# $$
# \begin{aligned} \hat x \hat w - x w = {} & (\hat x - x)\, w \cr
# & + \hat x\, (\hat w - w) \end{aligned} \tag{9.2}
# $$
#
# The first part comes from the inputs. They carry the errors of all layers before, and were then
# rounded to bytes themselves. The second part comes from the rounded weights. Bias and output are
# rounded once each. (A byte that was cut off at 255 would have lost more. This one is not.)

# %%
#| code: folded
#| alt: A ruler of the byte's steps around the result. FP32's value and INT8's value before rounding
#|   are marked close to each other. INT8's value is rounded to the nearest whole step. Beneath it
#|   bars show the four errors, in steps of the output.
#| caption: Above, the result among the steps of a byte. Below, what moves INT8 away from FP32. The
#|   four add up to the whole difference. Rounding the output costs half a step at most.
x_real, w_real = real[NAME].inputs[0][0, ROW, COLUMN], fp32.params[NAME].weight[CHANNEL]
exact = max(0.0, float(x_real @ w_real + b)) / s_y  # in steps of the output
parts = {
    "the inputs": float((s_x * x - x_real) @ w_real) / s_y,
    "the weights": float((s_x * x) @ (s_w * w - w_real)) / s_y,
    "the bias": float(s_x * s_w * bias - b) / s_y,
    "the output": y - float(t),
}
assert np.isclose(sum(parts.values()), y - exact, atol=1e-3)
assert abs(parts["the output"]) <= 0.5
print(f"FP32 {exact * s_y:.5f}, which is {exact:.2f} steps")
print(f"INT8 {y * s_y:.5f}, which is {y} steps")
figure, (ruler, bars) = plt.subplots(2, 1, figsize=(5.6, 3.6), layout="constrained")
ruler.plot([exact], [0], "o", color=COLORS["fp32"], label="FP32")
ruler.plot([t], [0], "o", color=COLORS["int8"], label="INT8, t")
ruler.plot([y], [0], "^", color=COLORS["int8"], label="INT8, y")
ruler.set(xlim=(y - 3, y + 3), ylim=(-0.6, 1.2), yticks=[], xticks=range(y - 3, y + 4))
ruler.set(xlabel="steps of the output")
ruler.legend(ncols=3, loc="upper center")
bars.barh(list(parts), list(parts.values()), color=COLORS["int8"])
bars.axvline(0, color=GREY, linewidth=0.8)
bars.invert_yaxis()
bars.set(xlabel="INT8 less FP32, in steps of the output")
plt.show()

# %% [markdown]
# ## Exercises
#
# **1.** What would the byte be without a bias? Use the numbers from above.
#
# <details>
# <summary>Answer</summary>
#
# Leave step 3 out: $y = \mathrm{rint}(\mathrm{clip}(\mathrm{sum} \cdot m, 0, 255))$.
#
# </details>

# %%
#| cell: The answer, computed
bare = requantize_ref(np.array([[acc]], np.int32), m, 0).item()
print(f"{acc} x {m:.8f} = {acc * m:.2f}, so y = {bare}")
assert bare == int(np.rint(np.clip(np.float32(acc) * m, 0, 255)))

# %% [markdown]
# **2.** Which values of sum + bias give 0, and which give 255? Take $m$ from above.
#
# <details>
# <summary>Answer</summary>
#
# All up to $0.5 / m$ give 0: the negative ones by the clip, the others by rounding. All from
# $254.5 / m$ on give 255. Between them, about $1 / m$ neighbouring values share each byte.
#
# </details>

# %%
#| cell: The answer, computed
ends = np.array([[np.floor(0.5 / m), np.ceil(0.5 / m), np.ceil(254.5 / m)]], np.int32)
print(f"sum + bias up to {ends[0, 0]}, and from {ends[0, 2]} on; 1 / m = {1 / m:.0f}")
assert requantize_ref(ends, m, 0).tolist() == [[0, 1, 255]]

# %% [markdown]
# **3.** Change one pixel of the photograph, just outside the square. Does our byte change? And
# a pixel in the middle of the square?
#
# <details>
# <summary>Answer</summary>
#
# Outside it cannot: nothing that leads to your byte reads that pixel. Inside it can. It does if the
# change survives the max-pool and the rounding.
#
# </details>

# %%
#| cell: The answer, computed
bytes_now = []
for row in (bottom + 1, (top + bottom) // 2):
    changed = image.copy()
    changed[0, :, row, (left + right) // 2] = 2.0  # nearly white
    output = next(s.output for s in int8.steps(changed) if s.name == NAME)
    bytes_now.append(int(output[0, ROW, COLUMN, CHANNEL]))
print(f"was {y}; outside {bytes_now[0]}, inside {bytes_now[1]}")
assert bytes_now[0] == y != bytes_now[1]
