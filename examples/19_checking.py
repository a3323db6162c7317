"""
How to check an INT8 kernel
===========================

A kernel that is wrong by one in a thousand outputs still classifies cats. Accuracy finds no such
bug; these do: an oracle that is obviously right, a tolerance of zero, and inputs chosen to hurt.
"""

import matplotlib.pyplot as plt
import numpy as np

from minires.kernels.engine import Engine
from minires.layers import Int8Params, Layer
from minires.model import OPERATORS
from minires.reference import QParams

# %%
# The oracle
# ----------
#
# INT8 is exact: integers do not round, and the one float32 operation after another in equations
# 7.2 and 7.3 rounds the same way everywhere. So a kernel either has the definition's bytes or is
# wrong. There is no tolerance to choose.

LAYER = Layer(
    "conv",
    "conv",
    ("x",),
    20,
    24,
    kernel=3,
    padding=1,
    relu=True,
    qparams=QParams(np.float32(40), 0),
)
IMAGE = Layer("x", "input", (), 20, 20, qparams=QParams(np.float32(0.05), 0))


def run_both(x, w, bias):
    """Compute by the definition and by the compiled kernel."""
    p = Int8Params(IMAGE.qparams, w, np.full(24, np.float32(0.01)), bias)
    engine = Engine([IMAGE, LAYER], {"conv": p}, "int8")
    return OPERATORS["int8"]["conv"](LAYER, p, x), engine.run((1, 20, *x.shape[1:3]), LAYER, x)


random = np.random.default_rng(0)
x = random.integers(0, 256, (1, 7, 9, 20), np.uint8)
w = random.integers(-127, 128, (24, 180)).astype(np.int8)
bias = random.integers(-1000, 1000, 24).astype(np.int32)
expected, y = run_both(x, w, bias)
print(f"{expected.size} outputs, {np.count_nonzero(expected != y)} differ")
assert np.array_equal(expected, y)

# %%
# Extremes and ties
# -----------------
#
# Random bytes hardly ever reach the ends. All 255 against all -128 does: the largest sums there
# are, where 16 bits would break. Multipliers of 1/2 make ties, which rounding half up gets wrong.

for name, pixel, weight in [("largest", 255, 127), ("smallest", 255, -128), ("zero", 0, 127)]:
    expected, y = run_both(np.full_like(x, pixel), np.full_like(w, weight), bias)
    print(f"{name:<9}outputs from {expected.min()} to {expected.max()}")
    assert np.array_equal(expected, y)

# %%
# Check the checker
# -----------------
#
# A comparison that cannot fail finds nothing. Ours has to reject what real bugs look like:

expected, y = run_both(x, w, bias)
bugs = {
    "all zero": y * 0,
    "off by one": y ^ 1,
    "swapped channels": y[..., ::-1],
    "shifted": np.roll(y, 1, 2),
}
caught = {name: np.mean(expected != wrong) for name, wrong in bugs.items()}
assert all(share > 0.1 for share in caught.values())
plt.figure(figsize=(7, 2.2), layout="constrained")
plt.barh(list(caught), [100 * share for share in caught.values()])
plt.xlabel("% of outputs that give the bug away")
plt.show()

# %%
# **Exercise.** Sizes at tile multiples hide bugs at edges. Which M was tried here, and is it a
# multiple of six? *Answer.* M = 7 x 9 = 63, and it is not.

assert expected[0, :, :, 0].size % 6 == 3
