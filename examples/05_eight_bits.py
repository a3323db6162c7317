# %% [markdown]
# # 5. Numbers in eight bits
#
# INT8 inference computes with bytes that stand for real numbers. Two constants say what a byte
# means. The *scale* is the size of one step, and the *zero point* is the byte that stands for 0.
# Zero must be exact. From that follows the rule that turns a byte into a number. The range of the
# numbers then gives both constants. At the end of this page, each output byte is a sum of integers
# times one number, plus a zero point (equation 5.5).

# %%
import matplotlib.pyplot as plt
import numpy as np

import minires
from minires.measure.plots import BLUE, GREY, ORANGE, SKY
from minires.quantize import qparams_of_range
from minires.reference import gemm_u8s8_ref, im2col_ref, quantize_ref

# %% [markdown]
# ## Padding demands an exact zero
#
# At the edge of an image, a 3 x 3 kernel reads pixels that are not there. The network was trained
# with zeros in their place. So an engine surrounds the image with zeros, and its inner loop never
# has to ask where the image ends ([chapter 2](02_im2col)). In INT8 the image is bytes. Which byte
# is a zero?
#
# Which real number may a byte q stand for? The engine will add bytes in place of real numbers. So
# one step of the byte must mean the same amount everywhere. Only a straight line does that:
# $\mathrm{real} = A q + B$. Zero is exact if a byte z has
# $A z + B = 0$. Then $B = -A z$, and $A q + B$ becomes $A (q - z)$. With the usual names, this is
#
# $$
# \mathrm{real} = \mathrm{scale} \cdot (q - \mathrm{zero\_point}) \tag{5.1}
# $$
#
# The byte `zero_point` stands for 0, whatever the scale. Only one condition is left: it must be a
# whole number from 0 to 255. (The argument is gemmlowp's: see its [Building a quantization paradigm
# from first principles](https://github.com/google/gemmlowp/blob/master/doc/quantization.md).)
#
# To turn a real number into a byte, solve for q, round to the nearest (rint), and cut off (clip).
# Halves go to the even neighbour: 42.5 becomes 42.
#
# $$
# \begin{aligned}
# n &= \mathrm{rint}(\mathrm{real} / \mathrm{scale}) + \mathrm{zero\_point} \\
# q &= \mathrm{clip}(n, 0, 255)
# \end{aligned} \tag{5.2}
# $$
#
# ## From a range to both constants
#
# A tensor's values lie from `low` to `high`. A byte has 256 values, with 255 steps between them. So
# a step is a 255th of the range. The byte 0 should stand for `low`: by equation 5.1,
# $\mathrm{low} = -\mathrm{scale} \cdot \mathrm{zero\_point}$. Solve, and round to a whole number:
#
# $$
# \begin{aligned}
# \mathrm{scale} &= (\mathrm{high} - \mathrm{low}) / 255 \\
# \mathrm{zero\_point} &= \mathrm{rint}(-\mathrm{low} / \mathrm{scale})
# \end{aligned} \tag{5.3}
# $$
#
# The rounding shifts the range by half a step at most. A range without 0 in it is first
# widened until it reaches 0. Otherwise no byte could stand for 0.

# %%
x = np.array([[0.5, -1.0, 0.25, 2.0], [1.5, 0.0, -0.75, 1.0]], np.float32)
scale, zero_point = qparams_of_range(x.min(), x.max())
x_u8 = quantize_ref(x, scale, zero_point)
print(f"scale {scale:.5f}, zero_point {zero_point}", x_u8, sep="\n")
assert x_u8[1, 1] == zero_point, "zero is exact"

# %% [markdown]
# 255 steps are too many to draw, so here the same range has three bits: eight numbers, and steps of
# 3/7. There $-\mathrm{low} / \mathrm{scale}$ is 2.33, and 2 is the zero point.

# %%
#| code: folded
#| alt: A staircase of eight steps rises along a diagonal from -0.86 to 2.14. Left and right of
#|   these ends it runs flat. One step is exactly at zero. Below, the error is a saw, whose teeth
#|   stay within half a step inside the range and grow without limit outside it.
#| caption: Eight numbers for the range from -1 to 2. The zero point was rounded, so they lie from
#|   -0.86 to 2.14. Between these ends rounding moves a number by half a step at most: the grey
#|   band. Outside, a number *saturates*: it becomes the nearest end, and the error grows with the
#|   distance.
step, zero = np.float32(3 / 7), 2
reals = np.linspace(-1.9, 3.1, 3000, dtype=np.float32)
written = step * (np.clip(np.rint(reals / step) + zero, 0, 7) - zero)
_, (top, below) = plt.subplots(2, 1, figsize=(5.6, 4.8), sharex=True, layout="constrained")
top.plot(reals, reals, color=GREY, linewidth=1, label="the real number")
top.plot(reals, written, color=ORANGE, label="what three bits write")
top.plot(0, 0, "o", color=BLUE, label="zero, exact")
top.set_ylabel("written")
top.legend()
below.axhspan(-step / 2, step / 2, color=GREY, alpha=0.2)
below.plot(reals, written - reals, color=ORANGE)
below.set(xlabel="real number", ylabel="error")
plt.show()

# %% [markdown]
# A wide range has coarse steps, and a narrow one saturates more. Try it on a real layer:
#
# ```{lab} range
# ```
#
# ## Who needs a zero point
#
# - **Activations after a ReLU** do not: `low` is 0, and so is the zero point.
# - **The image** does: its mean was subtracted, so it lies on both sides of zero, unevenly. So does
#   a *downsample*, the 1 x 1 convolution on a block's shortcut: no other convolution's output is
#   stored without a ReLU.
# - **Weights** do not: they lie around zero, so the signed bytes -127 to 127 fit them. Each output
#   channel has its own scale. A zero point would cost time, as you will see below.
#
# Five tensors of the bundled network have a zero point other than 0:

# %%
model = minires.resnet50("CIFAR10", "int8", backend="numpy")
for layer in model.layers:
    if layer.qparams and layer.qparams.zero_point:
        print(f"{layer.name:<22}{layer.qparams.zero_point}")

# %% [markdown]
# ## What a wrong padding byte does
#
# The first convolution reads the image, whose zero point is 124. Suppose that you pad with the byte
# 0 all the same. Each weight over the padding then meets $\mathrm{scale} \cdot (0 - 124)$, which is
# about -2, instead of 0. That error does not depend on the picture. So every picture gets the same
# one, in the same direction, and no averaging removes it.

# %%
p = model.params["conv1"]
photograph = minires.preprocess("examples/images/cat.jpg", model.meta["preset"])


def conv1(image, padding_byte):
    """Compute the first convolution in integers, and return its sums as real numbers."""
    image_u8 = quantize_ref(image.transpose(0, 2, 3, 1), *p.x_qparams)
    patches = im2col_ref(image_u8, 7, 7, stride=2, padding=3, fill=padding_byte)
    # The bias has the zero point's share in it already: equation 5.4 explains that.
    acc_s32 = gemm_u8s8_ref(patches, p.w_s8.T) + p.bias_s32
    return (acc_s32 * (p.x_qparams.scale * p.w_scale)).reshape(32, 32, 64)


right, wrong = conv1(photograph, 124), conv1(photograph, 0)
other = 0.5 * photograph[:, :, ::-1]  # another picture: pale, and upside down
print(f"root mean square of the output {np.sqrt(np.mean(right**2)):.2f}")
print(f"error along its left edge      {np.sqrt(np.mean((wrong - right)[:, 0] ** 2)):.2f}")
assert np.allclose(wrong - right, conv1(other, 0) - conv1(other, 124)), "the same error"
assert np.array_equal(wrong[2:-2, 2:-2], right[2:-2, 2:-2]), "none where no padding is read"

# %%
#| code: folded
#| alt: Two curves along a row of 32 output pixels lie on each other, but for the first two pixels
#|   and, hardly visible, the last. At the first the one padded with the byte 0 rises to nearly 8,
#|   far above all other values.
#| caption: One channel of the first convolution, along the middle row. The left edge becomes a
#|   bright stripe that is in no picture. The other edges go wrong as well, each by the weights that
#|   lie over the padding. Deeper layers read the stripe as if it were there.
channel = int(np.abs(wrong - right)[16, 0].argmax())
figure, axes = plt.subplots(layout="constrained")
axes.plot(wrong[16, :, channel], color=ORANGE, label="padded with the byte 0")
axes.plot(right[16, :, channel], color=SKY, label="padded with the zero point")
axes.set(xlabel="output pixel", ylabel="value")
axes.legend()
plt.show()

# %% [markdown]
# ## From two zero points to one multiplier
#
# Write x, w and y for a byte of the input, the weights and the output, and $s_x$ and $z_x$ for the
# scale and zero point of x. Suppose for a moment that w has a zero point, too: you will see what it
# would cost. By equation 5.1, a sum of K products is
#
# $$
# \begin{aligned}
# & \sum s_x (x - z_x)\, s_w (w - z_w) \\
# & = s_x s_w \sum (x - z_x)(w - z_w)
# \end{aligned}
# $$
#
# The scales are the same in every product, so they leave the sum. Integers remain. Multiply out:
#
# $$
# \begin{aligned}
# & \sum (x - z_x)(w - z_w) \\
# & = \sum x\, w - z_x \sum w - z_w \sum x + K z_x z_w
# \end{aligned}
# $$
#
# The first term is the sum of products. The second and the last do not depend on the picture. The
# third does: it needs another sum for every output pixel, while the network runs. This is why
# weights have no zero point. With $z_w = 0$ the third term vanishes, and the last one too:
#
# $$
# \sum (x - z_x)\, w = \sum x\, w - z_x \sum w \tag{5.4}
# $$
#
# What the zero point adds is the same for every sum of an output channel. So subtract it once, in
# advance: it goes into the layer's bias. The output is a byte too, for the real number
# $s_y (y - z_y)$. Set that equal to $s_x s_w$ times the sum, and solve for y:
#
# $$
# y = z_y + \frac{s_x s_w}{s_y} \Big( \sum x\, w - z_x \sum w \Big) \tag{5.5}
# $$
#
# Three scales have become one multiplier. Each output channel has its own, because it has its own
# $s_w$. [Chapter 7](07_requantization) adds the bias, and rounds.
#
# ## By hand
#
# Weights for the x above. Each column is an output channel, with its own scale. (Two weights are
# 63.5 steps. In float32 one is a hair more and becomes 64. The other is a hair less: 63.)

# %%
w = np.array([[30, -90, 1], [60, 10, 2], [-20, 40, -3], [10, 50, 4]], np.float32) / 100
w_scale = np.abs(w).max(axis=0) / np.float32(127)
w_s8 = np.rint(w / w_scale).astype(np.int8)
print(w_s8)

# %% [markdown]
# The first sum: (127 - 85) 64 + (0 - 85) 127 + (106 - 85)(-42) + (255 - 85) 21 = -5419. It stands
# for -5419 x 0.01176 x 0.00472 = -0.301. All of them, by the right side of equation 5.4:

# %%
acc_s32 = gemm_u8s8_ref(x_u8, w_s8) - zero_point * w_s8.sum(axis=0, dtype=np.int32)
y = acc_s32 * (scale * w_scale)
print(acc_s32, np.round(y, 3), "the same in float32:", np.round(x @ w, 3), sep="\n")
assert np.abs(y - x @ w).max() < 0.03

# %% [markdown]
# The sums are exact: integers do not round. All error was made before, by rounding x and w.
#
# ## Exercises
#
# **1.** A tensor lies from -0.5 to 4.6. What are its scale and zero point? Which byte does 5 get?
#
# <details>
# <summary>Answer</summary>
#
# The scale is 5.1 / 255 = 0.02, and the zero point is 0.5 / 0.02 = 25. For 5 equation 5.2 gives
# n = 250 + 25 = 275, which saturates at 255. That byte stands for 4.6.
#
# </details>
#
# **2.** Does a sum of K = 4608 products of u8 by s8 (unsigned by signed bytes) fit into 32 bits?
#
# <details>
# <summary>Answer</summary>
#
# Yes. Even with weights of -128, which minires does not use, no sum exceeds
# 255 x 128 x 4608 = 150,405,120, a fourteenth of what fits.
#
# </details>
#
# **3.** The zero point of the range -0.7 to 1.9 stays unrounded, 68.65. You pad with the nearest
# byte, under three weights of 0.5. By how much is the sum off, and for which pictures?
#
# <details>
# <summary>Answer</summary>
#
# The nearest byte is 69, which stands for (69 - 68.65) x 2.6 / 255 = 0.0035. So the sum is off by
# 3 x 0.5 x 0.0035 = 0.0053, at this edge of all pictures. It is small, but it never cancels out.
#
# </details>

# %%
#| cell: All three answers, computed
assert quantize_ref(np.float32([0, 5]), *qparams_of_range(-0.5, 4.6)).tolist() == [25, 255]
largest = gemm_u8s8_ref(np.full((1, 4608), 255, np.uint8), np.full((4608, 1), -128, np.int8))
assert largest.item() == -255 * 128 * 4608 > -(2**31) / 14
assert round(1.5 * (69 - 0.7 / (2.6 / 255)) * 2.6 / 255, 4) == 0.0053
