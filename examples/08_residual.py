r"""
Adding the residual
===================

At the end of each block two tensors are added whose integers have different scales: 7 in one is
not 7 in the other. This page adds them in one rounding, and shows what a second one would cost.
"""

import matplotlib.pyplot as plt
import numpy as np

import minires
from minires.reference import QParams, dequantize_ref, quantize_ref, requantize_ref

# %%
# One rounding
# ------------
#
# Both are brought to the output's scale as real numbers, added, and rounded once:
#
# .. math:: t = \mathrm{float32}(\mathrm{acc} + \mathrm{bias}_c)\, m_c
#    + \mathrm{float32}(r - z_r)\, \frac{s_r}{s_y} \tag{8.1}
#
# and on with equation 7.3. A compiled kernel does it while the sums are still in registers, so the
# only cost is to read r.

r_qparams, y_scale = QParams(np.float32(0.02), 0), np.float32(0.03)
acc, m = np.array([[1234, -300, 50]], np.int32), np.float32(0.01)
r_u8 = np.array([[100, 200, 0]], np.uint8)
shortcut = (r_u8.astype(np.int32) - r_qparams.zero_point).astype(np.float32) * (
    r_qparams.scale / y_scale
)
print("t ", acc.astype(np.float32) * m + shortcut)
print("y ", requantize_ref(acc, m, 0, shortcut))

# %%
# Two roundings
# -------------
#
# A graph that keeps convolution and addition apart (ONNX's QLinearConv, then QLinearAdd) rounds
# the convolution to eight bits first, needs a zero point for its negative values, and rounds again
# after adding.

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
plt.legend()
plt.show()

# %%
# In the network
# --------------
#
# The shortcut of a stage's first block is a convolution without a ReLU, so it is negative too and
# has a zero point.

int8 = minires.resnet50("CIFAR10", "int8", backend="numpy")
for name in ("layer1.0.downsample.0", "layer1.0.conv3", "layer1.1.conv3"):
    q = int8[name].qparams
    print(f"{name:<22} scale {q.scale:.5f}, zero_point {q.zero_point}")

# %%
# Exercise
# --------
#
# The shortcut's scale is twice the output's, its zero point 0, r = 3, and acc + bias is 0. What is
# y?
#
# *Answer.* t = 3 x 2, so 6.

six = requantize_ref(np.zeros((1, 1), np.int32), m, 0, np.full((1, 1), 3 * 2, np.float32))
assert six.item() == 6
