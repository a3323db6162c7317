# %% [markdown]
# # 7. Requantization: from 32 bits back to eight
#
# A sum of products is a large integer in units of `x_scale * w_scale`; the next layer wants eight
# bits in units of `y_scale`. Most disagreements by one between INT8 engines arise on the way.

# %%
import matplotlib.pyplot as plt
import numpy as np
from gemmlowp import quantize_multiplier, requantize_integer_ref  # examples/gemmlowp.py

from minires.reference import requantize_ref

# %% [markdown]
# ## The equations
#
# Scales are s, zero points z, those of input, weights and output x, w and y. What is known
# beforehand is worked out beforehand (OFFLINE), for each output channel c: of its real bias b an
# integer, in float64, and in float32 a multiplier, whose product is made first, then the quotient.
#
# $$
# \mathrm{bias}_c = \mathrm{rint}\left(\frac{b_c}{s_x\, s_w[c]}\right)
# - z_x \sum_k w_{ck} \qquad m_c = \frac{s_x\, s_w[c]}{s_y} \tag{7.1}
# $$
#
# Then each output costs this (RUNTIME), in float32, every operation rounded by itself:
#
# $$
# t = \mathrm{float32}(\mathrm{acc} + \mathrm{bias}_c) \cdot m_c \tag{7.2}
# $$
#
# $$
# y = \mathrm{rint}(\mathrm{clip}(t, -z_y, 255 - z_y)) + z_y \tag{7.3}
# $$
#
# With $z_y = 0$ the clip *is* the ReLU: it costs nothing. The average pool does the same to
# its sums, with the number of pixels in m; the logits stay float32, $\mathrm{acc}\, s_x s_w$.

# %%
acc = np.array([[-700, 0, 250, 1000, 40_000]], np.int32)
m = np.float32(0.01)
print("t", acc.astype(np.float32) * m)
print("y", requantize_ref(acc, m, 0), "with zero_point 0: ReLU for free")
print("y", requantize_ref(acc, m, 100), "with zero_point 100")

# %% [markdown]
# ## Ties
#
# `rint` rounds halves to the even neighbour. A multiplier of 1/2 makes every odd sum a tie:
# rounding them all up would shift the mean of the output by a quarter of a step.

# %%
sums = np.arange(1, 400, dtype=np.int32)[None]
half = np.float32(0.5)
even = requantize_ref(sums, half, 0).astype(np.float64) - np.clip(sums * 0.5, 0, 255)
up = np.clip(np.floor(sums * 0.5 + 0.5), 0, 255) - np.clip(sums * 0.5, 0, 255)
print(f"mean error, half to even: {even.mean():+.4f}; half up: {up.mean():+.4f}")
assert abs(even.mean()) < abs(up.mean())

# %% [markdown]
# ## Without floating point
#
# A chip without float units writes the multiplier as a 31-bit fraction and a shift,
#
# $$
# m \approx q_{31} \cdot 2^{-31} \cdot 2^{-\mathrm{shift}} \tag{7.4}
# $$
#
# and rounds twice (gemmlowp, TFLite): first to units of 2^-shift, then to whole ones. Where the
# first rounding makes a half, the second may go the wrong way: off by one in 2^-(shift + 1) of the
# sums.

# %%
#| alt: 07_requantization, a picture
random = np.random.default_rng(0)
shares, multipliers = [], np.exp(random.uniform(np.log(2**-12), np.log(0.5), 60))
for real in multipliers:
    sums = random.integers(0, int(255 / real), (1, 4000)).astype(np.int32)
    ours = requantize_ref(sums, np.float32(real), 0).astype(int)
    theirs = requantize_integer_ref(sums, *quantize_multiplier(real), 0).astype(int)
    assert np.abs(ours - theirs).max() <= 1
    shares.append(100 * np.mean(ours != theirs))
print(f"off by one: {np.mean(shares):.1f}% in the mean, {max(shares):.0f}% at worst")
plt.figure(figsize=(7, 3), layout="constrained")
plt.loglog(multipliers, np.maximum(shares, 0.01), ".")
plt.xlabel("multiplier")
plt.ylabel("% off by one (0.01: none)")
plt.show()

# %% [markdown]
# ## Exercise
#
# acc + bias = 3, m = 0.5, zero_point 10. What is y? And for 5, and for -3?
#
# *Answer.* t = 1.5, a tie, goes to 2, so y = 12; t = 2.5 goes to 2 as well; -1.5 to -2: y = 8.

# %%
assert requantize_ref(np.array([[3, 5, -3]], np.int32), half, 10).tolist() == [[12, 12, 8]]

# %% [markdown]
# ## In your browser
#
# Follow a real sum back to eight bits.
#
# ```{lab} pixel
# ```
