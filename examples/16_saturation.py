# %% [markdown]
# # 16. Saturation: the bug that VNNI removed
#
# Before VNNI the fast way to multiply u8 by s8 was `vpmaddubsw`, which sums two products in 16
# bits. Two products do not always fit, and what does not fit is cut off without a word. Here is the
# wrong answer, and three ways around it.

# %%
import matplotlib.pyplot as plt
import numpy as np

# %% [markdown]
# ## What does not fit
#
# The largest u8 times the largest s8, twice, is 255 x 127 x 2 = 64,770. A signed 16-bit number
# ends at 32,767.


# %%
def vpmaddubsw(a_u8, b_s8):
    """Do in NumPy what the instruction does: (n, 2) u8 and s8 to (n,) s16, saturated."""
    pairs = (a_u8.astype(np.int32) * b_s8).sum(axis=-1)
    return np.clip(pairs, -(2**15), 2**15 - 1)


a, b = np.array([[255, 255]], np.uint8), np.array([[127, 127]], np.int8)
print("right", int((a.astype(int) * b).sum()), " vpmaddubsw", int(vpmaddubsw(a, b)[0]))

# %% [markdown]
# ## How often it happens
#
# It depends on the data. Of sums of K products of random bytes, which share is wrong, and how far
# off are they? The activations here spread like those after a ReLU: mostly small.

# %%
#| alt: 16_saturation, a picture
random = np.random.default_rng(0)
wrong = {}
for largest in (127, 96, 64, 63):
    x = np.minimum(np.abs(random.normal(0, 90, (4000, 64, 2))), 255).astype(np.uint8)
    w = np.clip(random.normal(0, largest / 2, (4000, 64, 2)), -largest, largest).astype(np.int8)
    right = (x.astype(np.int32) * w).sum(axis=(1, 2))
    got = vpmaddubsw(x, w).sum(axis=1)
    wrong[largest] = 100 * np.mean(right != got)
    print(
        f"weights up to {largest:>3}: {wrong[largest]:5.1f}% of sums of 128 products are wrong, "
        f"by up to {np.abs(right - got).max()}"
    )
assert wrong[64] == wrong[63] == 0

plt.figure(figsize=(6, 2.6), layout="constrained")
plt.bar([str(n) for n in wrong], list(wrong.values()))
plt.xlabel("largest weight")
plt.ylabel("% of sums wrong")
plt.show()

# %% [markdown]
# ## Three ways around it
#
# 1. *Seven bits*: weights of at most 64 cannot overflow (255 x 64 x 2 = 32,640). Half of the
#    weights' precision is gone. ONNX Runtime calls this `reduce_range`, and NNCF, which quantizes
#    for OpenVINO, `overflow_fix`.
# 2. *Split*: the activation's upper bit apart from the other seven; twice the work, exact.
# 3. *Widen*: bytes to 16 bits first, then `vpmaddwd`; half the products an instruction, exact.
#
# minires takes the exact ones, so that INT8 gives the same bits on every CPU; the price shows in
# chapter 11.

# %%
x, w = random.integers(0, 256, (1000, 2), np.uint8), random.integers(-128, 128, (1000, 2), np.int8)
exact = (x.astype(np.int32) * w).sum(axis=1)
split = vpmaddubsw(x & 127, w) + 128 * vpmaddubsw(x >> 7, w)
assert np.array_equal(split, exact), "the split cannot saturate"

# %% [markdown]
# ## Exercise
#
# Why can the split not saturate?
#
# *Answer.* Its parts are at most 127 x 128 x 2 = 32,512 and 1 x 128 x 2 = 256. At the extremes:

# %%
x, w = np.full((1, 2), 255, np.uint8), np.full((1, 2), -128, np.int8)
assert vpmaddubsw(x & 127, w).item() == -127 * 128 * 2 > -(2**15)
assert vpmaddubsw(x >> 7, w).item() == -128 * 2
assert vpmaddubsw(x, w).item() == -(2**15), "while the pair itself does"

# %% [markdown]
# ## In your browser
#
# Make 255 x 127 twice, and watch it saturate before VNNI.
#
# ```{lab} instruction
# ```
