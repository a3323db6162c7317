# %% [markdown]
# # 17. How to check an INT8 kernel
#
# A kernel that is wrong by one in a thousand outputs still classifies cats. Accuracy finds no such
# bug; these do: an oracle that is obviously right, a tolerance of zero, and inputs chosen to hurt.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minires.kernels.engine import Engine
from minires.layers import OPERATORS, Int8Params, Layer
from minires.reference import QParams

# %% [markdown]
# ## The oracle
#
# INT8 is exact: integers do not round, and the float32 operations in equations 7.2 and 7.3, one
# after another, round the same way everywhere. So a kernel either has the definition's bytes or
# is wrong. There is no tolerance to choose.

# %%
IMAGE = Layer("x", "input", (), 20, 20, qparams=QParams(np.float32(0.5), 128))
ENDS = 20 * 9 * 255 * 128  # the largest sum there is, of 20 channels times 3 x 3


def run_both(x, w, bias, m, zero_point=128):
    """Compute by the definition and by the compiled kernel, with the multiplier m."""
    y = QParams(np.float32(0.5 / m), zero_point)
    layer = Layer("conv", "conv", ("x",), 20, 24, kernel=3, padding=1, qparams=y)
    p = Int8Params(IMAGE.qparams, w, np.ones(24, np.float32), bias)
    engine = Engine([IMAGE, layer], {"conv": p}, "int8")
    return OPERATORS["int8"]["conv"](layer, p, x), engine.run((1, 20, *x.shape[1:3]), layer, x)


random = np.random.default_rng(0)
x = random.integers(0, 256, (1, 7, 9, 20), np.uint8)
w = random.integers(-127, 128, (24, 180)).astype(np.int8)
bias = random.integers(-1000, 1000, 24).astype(np.int32)
expected, y = run_both(x, w, bias, m=1e-3)
print(f"{expected.size} outputs, from {y.min()} to {y.max()}, {(expected != y).sum()} differ")
assert np.array_equal(expected, y)

# %% [markdown]
# ## Extremes and ties
#
# Random bytes hardly ever reach the ends. All 255 against all -128 does: the largest sums there
# are, where 16 bits would break; with m so small that the output keeps them apart. And m = 1/2
# makes every odd sum a tie, which rounding half up gets wrong; activations near the zero point and
# weights of -1, 0 and 1 keep the output in its range.

# %%
small = random.integers(-1, 2, w.shape).astype(np.int8)
offset = 128 * small.sum(axis=1, dtype=np.int32)  # the zero point's part, as in equation 7.1
cases = {
    "largest": (np.full_like(x, 255), np.full_like(w, 127), 0 * bias, 127 / ENDS),
    "smallest": (np.full_like(x, 255), np.full_like(w, -128), 0 * bias, 127 / ENDS),
    "ties": (x % 4 + 126, small, bias % 7 - offset, 1 / 2),
}
for name, case in cases.items():
    expected, y = run_both(*case)
    print(f"{name:<9}outputs from {expected.min()} to {expected.max()}")
    assert np.array_equal(expected, y)

# %% [markdown]
# ## Check the checker
#
# A comparison that cannot fail finds nothing. Ours has to reject what real bugs look like:

# %%
#| alt: 17_checking, a picture
one = y.copy()
one.flat[777] ^= 1
bugs = {"off by one, once": one, "swapped channels": y[..., ::-1], "shifted": np.roll(y, 1, 2)}
bugs |= {"all off by one": y ^ 1, "all zero": y * 0}
assert not any(np.array_equal(expected, wrong) for wrong in bugs.values())
plt.figure(figsize=(7, 2.2), layout="constrained")
plt.barh(list(bugs), [100 * np.mean(expected != wrong) for wrong in bugs.values()], log=True)
plt.xlabel("% of outputs that give the bug away")
plt.show()

# %% [markdown]
# **Exercise.** Sizes at tile multiples hide bugs at edges. Which M was tried here, and is it a
# multiple of this machine's tile? *Answer.* M = 7 x 9 = 63, odd, and a tile has an even number of
# rows.

# %%
assert expected[0, :, :, 0].size % Engine([IMAGE], {}, "int8").tiling.rows != 0
