# %% [markdown]
# # 5. Numbers in eight bits
#
# INT8 inference computes with integers that stand for real numbers: 0 to 255 for activations, -127
# to 127 for weights. This page does so by hand, for a product of a 2 x 4 by a 4 x 3 matrix, and
# shows where the small error comes from.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minires.quantize import qparams_of_range
from minires.reference import dequantize_ref, gemm_u8s8_ref, quantize_ref

# %% [markdown]
# ## Scale and zero point
#
# An integer q stands for the real number
#
# $$
# \mathrm{real} = \mathrm{scale} \cdot (q - \mathrm{zero\_point}) \tag{5.1}
# $$
#
# so the real numbers that can be written lie one *scale* apart, and `zero_point` stands for 0.
# Zero has to be exact: ReLU makes so many of it, and padding consists of it.
#
# $$
# q = \mathrm{clip}(\mathrm{rint}(\mathrm{real} / \mathrm{scale})
# + \mathrm{zero\_point}, 0, 255) \tag{5.2}
# $$
#
# A range from low to high, with 0 in it, has 255 steps between 256 integers; here 3 / 255 each:
#
# $$
# \mathrm{scale} = (\mathrm{high} - \mathrm{low}) / 255 \qquad
# \mathrm{zero\_point} = \mathrm{rint}(-\mathrm{low} / \mathrm{scale}) \tag{5.3}
# $$

# %%
x = np.array([[0.5, -1.0, 0.25, 2.0], [1.5, 0.0, -0.75, 1.0]], np.float32)
scale, zero_point = qparams_of_range(x.min(), x.max())
x_u8 = quantize_ref(x, scale, zero_point)
print(f"scale {scale:.5f}, zero_point {zero_point}", x_u8, sep="\n")

# %% [markdown]
# Weights are signed, with the zero point 0 and a scale for each output channel, here a column:

# %%
w = np.array([[30, -90, 1], [60, 10, 2], [-20, 40, -3], [10, 50, 4]], np.float32) / 100
w_scale = np.abs(w).max(axis=0) / np.float32(127)
w_s8 = np.rint(w / w_scale).astype(np.int8)
print(w_s8)

# %% [markdown]
# ## The product, in integers
#
# What the zero point adds to a sum is the same for all rows: it is taken off once, with the bias.
#
# $$
# \sum_k (x_k - z)\, w_k = \sum_k x_k w_k - z \sum_k w_k \tag{5.4}
# $$
#
# The first by hand: (127 - 85) 64 + (0 - 85) 127 + (106 - 85)(-42) + (255 - 85) 21 = -5419, which
# stands for -5419 x 0.01176 x 0.00472 = -0.301.

# %%
acc_s32 = gemm_u8s8_ref(x_u8, w_s8) - zero_point * w_s8.sum(axis=0, dtype=np.int32)
print(acc_s32)
y = acc_s32 * (scale * w_scale)
print(np.round(y, 3), "in eight bits")
print(np.round(x @ w, 3), "in float32")
assert np.abs(y - x @ w).max() < 0.03

# %% [markdown]
# The sums are exact: integers do not round. All of the error was made when x and w were rounded,
# by half a step at most.

# %%
#| alt: 05_eight_bits, a picture
figure, drawn = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
for axes, low, high in zip(drawn, (-1.4, -0.05), (2.4, 0.05), strict=True):
    reals = np.linspace(low, high, 2000, dtype=np.float32)
    written = dequantize_ref(quantize_ref(reals, scale, zero_point), scale, zero_point)
    axes.plot(reals, written - reals)
    axes.axhspan(-scale / 2, scale / 2, color="0.9")
    axes.set_xlabel("real number")
drawn[0].set_ylabel("error of its eight bits")
plt.show()

# %% [markdown]
# Outside of the range numbers *saturate*: they become the nearest end, and the error grows.
#
# **Exercise.** Why does a product of u8 by s8, summed over K = 4608, fit in 32 bits?
#
# *Answer.* No sum exceeds 255 x 128 x 4608, a fourteenth of what fits:

# %%
largest = gemm_u8s8_ref(np.full((1, 4608), 255, np.uint8), np.full((4608, 1), -128, np.int8))
print(f"{largest.item():,} of {-(2**31):,}")
assert largest.item() == -255 * 128 * 4608 > -(2**31)

# %% [markdown]
# ## In your browser
#
# Take bits away from a real layer, and see what is left of it.
#
# ```{lab} range
# ```
