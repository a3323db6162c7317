r"""
Numbers in eight bits
=====================

INT8 inference computes with integers from 0 to 255 that stand for real numbers. This page does so
by hand, for a product of a 2 x 4 by a 4 x 3 matrix, and shows where the small error comes from.
"""

import matplotlib.pyplot as plt
import numpy as np

from minires.quantize import qparams_of_range
from minires.reference import dequantize_ref, gemm_u8s8_ref, quantize_ref

# %%
# Scale and zero point
# --------------------
#
# An integer q stands for the real number
#
# .. math:: \mathrm{real} = \mathrm{scale} \cdot (q - \mathrm{zero\_point}) \tag{5.1}
#
# so the real numbers that can be written lie evenly spaced, one *scale* apart, and ``zero_point``
# is the integer that stands for 0. Zero has to be exact, because padding and ReLU make so many of
# it.

x = np.array([[0.5, -1.0, 0.25, 2.0], [1.5, 0.0, -0.75, 1.0]], np.float32)
scale, zero_point = qparams_of_range(x.min(), x.max())
x_u8 = quantize_ref(x, scale, zero_point)
print(f"scale {scale:.5f}, zero_point {zero_point}")
print(x_u8)
print(np.round(dequantize_ref(x_u8, scale, zero_point), 4))

# %%
# Weights are signed and symmetric (zero_point 0), with a scale for each output channel, here a
# column:

w = np.array(
    [[0.3, -0.9, 0.01], [0.6, 0.1, 0.02], [-0.2, 0.4, -0.03], [0.1, 0.5, 0.04]], np.float32
)
w_scale = np.abs(w).max(axis=0) / np.float32(127)
w_s8 = np.rint(w / w_scale).astype(np.int8)
print(w_s8)

# %%
# The product, in integers
# ------------------------
#
# The zero point is not multiplied into each product: what it adds to a sum is the same for all
# rows, zero point times the column's sum, and is taken off once, where the bias is added.
#
# .. math:: \sum_k (x_k - z)\, w_k = \sum_k x_k w_k - z \sum_k w_k \tag{5.2}

acc_s32 = gemm_u8s8_ref(x_u8, w_s8) - zero_point * w_s8.sum(axis=0, dtype=np.int32)
print(acc_s32)
y = acc_s32 * (scale * w_scale)
print(np.round(y, 3), "in eight bits")
print(np.round(x @ w, 3), "in float32")
assert np.abs(y - x @ w).max() < 0.03

# %%
# The sums are exact: integers do not round. All of the error was made when x and w were rounded to
# their grids, half a step at most.

reals = np.linspace(-1.4, 2.4, 500, dtype=np.float32)
written = dequantize_ref(quantize_ref(reals, scale, zero_point), scale, zero_point)
plt.figure(figsize=(7, 2.8), layout="constrained")
plt.plot(reals, written - reals)
plt.axhspan(-scale / 2, scale / 2, color="0.9")
plt.xlabel("real number")
plt.ylabel("error of its eight bits")
plt.show()

# %%
# Outside of the range numbers *saturate*: they become the nearest end, and the error grows with
# them.
#
# Exercise
# --------
#
# Why does a product of u8 by s8, summed over K = 4608, fit in 32 bits?
#
# *Answer.* No sum exceeds 255 x 128 x 4608:

bound = 255 * 128 * 4608
print(f"{bound:,} < {2**31:,}")
assert bound < 2**31
