# %% [markdown]
# # 7. Requantization: from a 32-bit sum back to eight bits
#
# Add a bias to the sum, multiply by one number, clip, round, and add the zero point. That is all
# that happens at inference. The bias and that number do not depend on the photograph, so they are
# worked out beforehand.
#
# But there is more than one way to round. When two INT8 engines differ by one, it usually happens
# here. This page derives these steps. Then it shows what ties do, and what becomes of the
# result on a chip that has no floating point.

# %%
import matplotlib.pyplot as plt
import numpy as np
from gemmlowp import quantize_multiplier, requantize_integer_ref  # examples/gemmlowp.py

from minires.measure.plots import BLUE, ORANGE
from minires.reference import requantize_ref

# %% [markdown]
# ## What the sum is worth
#
# We write $s$ for a scale and $z$ for a zero point. The subscripts $x$, $w$ and $y$ mean input,
# weights and output. An input byte $x_k$ stands for $s_x (x_k - z_x)$, and a weight $w_k$ for
# $s_w w_k$, as [chapter 5](05_eight_bits) explains. Weights need no zero point.
#
# The layer multiplies real numbers, adds them up, and adds the bias $b$. Put in what the bytes
# stand for. Then pull out everything that is the same for all $k$:
#
# $$
# \begin{aligned}
# & \sum_k s_x (x_k - z_x)\; s_w w_k + b \cr
# & = s_x s_w \Bigl( \sum_k x_k w_k - z_x \sum_k w_k + \frac{b}{s_x s_w} \Bigr)
# \end{aligned}
# $$
#
# Look at the parentheses. The first term is the 32-bit sum of products, `acc`. The other two do
# not depend on the photograph. So we compute them once and keep them as one integer, the *bias* of
# the INT8 layer. Each output channel $c$ has its own.
#
# The output byte $y$ stands for $s_y (y - z_y)$. That must equal the line above:
#
# $$
# s_y (y - z_y) = s_x s_w (\mathrm{acc} + \mathrm{bias})
# $$
#
# Divide by $s_y$. Three scales become one number, the *multiplier* $m$:
#
# $$
# \begin{aligned}
# \mathrm{bias}_c &= \mathrm{rint}\left(\frac{b_c}{s_x\, s_w[c]}\right) \cr
# & \quad {} - z_x \sum_k w_{ck} \cr
# m_c &= \frac{s_x\, s_w[c]}{s_y}
# \end{aligned} \tag{7.1}
# $$
#
# Here rint rounds to the nearest integer. The bias is worked out in float64, before it is rounded.
# The multiplier is a float32: multiply the two scales first, then divide.
#
# ## What happens at inference
#
# acc + bias is an addition of integers, and exact. Then come operations in float32, and each rounds
# its own result:
#
# $$
# t = \mathrm{float32}(\mathrm{acc} + \mathrm{bias}_c) \cdot m_c \tag{7.2}
# $$
#
# $$
# \begin{aligned} y = {} & \mathrm{rint}(\mathrm{clip}(t, -z_y, 255 - z_y)) \cr
# & + z_y \end{aligned} \tag{7.3}
# $$
#
# - **The clip comes before rounding.** A large $t$ may not fit into an integer. A clipped one does.
#   The limits are whole numbers, so the byte is the same in either order.
# - **The ReLU is free.** Its output has $z_y = 0$, so the clip starts at 0. That already turns
#   negative numbers into zero.
# - **The average pool** does the same to the sum of its $n$ pixels, with $m = s_x / (n\, s_y)$. Its
#   input comes from a ReLU, so the zero point is 0, and there is no bias.
# - **The logits**, the network's last outputs, stay float32:
#   $s_x s_w (\mathrm{acc} + \mathrm{bias})$. They never become bytes.
#
# Follow a real sum back to its byte, in the last part of this view:
#
# ```{lab} pixel
# ```
#
# ## Does the bias fit in 32 bits?
#
# The bias counts in units of $s_x s_w$. It grows large where these scales are tiny. The longest sum
# in ResNet-50 has 3 x 3 x 512 = 4608 products. So no sum exceeds 255 x 128 x 4608 = 150,405,120,
# and the zero point's part of the bias is no larger. The two together take $0.3 \cdot 10^9$ of the
# $2.1 \cdot 10^9$ that fit. So minires keeps $b / (s_x s_w)$ within $2^{30}$: where a bias would be
# larger, it makes $s_w$ larger. The weights of such a channel lose precision, but next to that bias
# they hardly matter. A correction ([chapter 6](06_calibration)) may add half of $2^{30}$. All of it
# fits:

# %%
most = 255 * 128 * 4608
assert 1.5 * 2**30 + most + most < 2**31

# %% [markdown]
# ## Ties
#
# 2.5 is a *tie*: it lies halfway between 2 and 3. A rule has to choose. `rint`, like the CPU's own
# instructions, chooses the even neighbour: 1.5 goes up, 2.5 goes down. So as many ties go up as
# down. The rule from school sends all of them up, and the mean moves with them.

# %%
#| code: folded
#| alt: A line of numbers from -3 to 3 for each of three rules, with arrows from the halves to where
#|   they are rounded. Half to even: three arrows go up and three go down. Half up: all six go up.
#|   Half away from zero: the three positive ones go up and the three negative ones go down.
#| caption: Where ties go. Blue goes up, orange goes down. *Half away from zero* is balanced only if
#|   there are as many negative numbers as positive ones. Behind a ReLU no number is negative.
ties = np.arange(-2.5, 3)
rules = {
    "half to even": np.rint,
    "half up": lambda t: np.floor(t + 0.5),
    "half away from zero": lambda t: np.sign(t) * np.floor(np.abs(t) + 0.5),
}
figure, axes = plt.subplots(3, 1, figsize=(5.6, 3), sharex=True, layout="constrained")
for row, (name, rule) in zip(axes, rules.items(), strict=True):
    for tie in ties:
        color = BLUE if rule(tie) > tie else ORANGE
        arrow = {"arrowstyle": "-|>", "color": color, "linewidth": 2, "shrinkA": 0, "shrinkB": 0}
        row.annotate("", (rule(tie), 0), (tie, 0), arrowprops=arrow)
    row.plot(ties, 0 * ties, "|", color="C6", markersize=12)
    row.set_title(name, loc="left")
    row.set(ylim=(-1, 1), yticks=[], xlim=(-3.3, 3.3), xticks=range(-3, 4))
    row.spines["left"].set_visible(False)
plt.show()

# %% [markdown]
# A multiplier of 1/2 makes every odd sum a tie. Half of all sums are odd. If each of them moves by
# half a step, the mean moves by a quarter:

# %%
sums = np.arange(1, 400, dtype=np.int32)[None]
half = np.float32(0.5)
exact = sums * 0.5
even = requantize_ref(sums, half, 0) - exact
up = np.floor(exact + 0.5) - exact
print(f"mean error, half to even: {even.mean():+.4f}; half up: {up.mean():+.4f}")
assert abs(even.mean()) < 0.01
assert abs(up.mean() - 0.25) < 0.01

# %% [markdown]
# ## Without floating point
#
# A small chip may have no float unit. Two of Google's libraries, gemmlowp and TFLite, write the
# multiplier as an integer and a shift instead. Take $m = 0.3$:
#
# 1. Double it until it lies between 1/2 and 1: $0.3 = 0.6 \cdot 2^{-1}$. The shift is 1. (A
#    multiplier of 1 or more is halved instead, and its shift is negative. Then the sum is doubled
#    as often before step 3, and step 4 has nothing to do.)
# 2. Store the 0.6 as a 32-bit integer: $q_{31} = \mathrm{rint}(0.6 \cdot 2^{31})$.
#
# $$
# m \approx q_{31} \cdot 2^{-31} \cdot 2^{-\mathrm{shift}} \tag{7.4}
# $$
#
# 3. At inference, multiply the sum by $q_{31}$ in 64 bits. Divide by $2^{31}$, and round to the
#   nearest integer. The 31 bits behind the point are gone.
# 4. Divide by $2^{\mathrm{shift}}$, and round once more. Ties go away from zero.
#
# Two roundings are not one. Let the sum be 1, so that $t = 0.3$. Step 3 gives 0.6 and rounds that
# up, to 1. Step 4 halves it to 0.5, which is a tie, and rounds up again. But 0.3 should become 0.

# %%
q31, shift = quantize_multiplier(0.3)
one = np.array([[1]], np.int32)
print(f"0.3 = {q31} / 2^31 / 2^{shift}")
print("float32:", requantize_ref(one, np.float32(0.3), 0), "fixed point:",
      requantize_integer_ref(one, q31, shift, 0))  # fmt: skip
assert requantize_integer_ref(one, q31, shift, 0).item() == 1

# %% [markdown]
# How often does that happen? Take a positive $t$. Step 3 leaves it in units of
# $2^{-\mathrm{shift}}$. With a shift of 1 or more, ties are among these. If $t$ lies less than half
# a unit below a tie, step 3 makes a tie of it, and step 4 sends that up, wrongly. (From above a tie
# it goes up rightly.) Ties lie 1 apart, and half a unit is $2^{-(\mathrm{shift} + 1)}$. So if the
# values of $t$ are spread evenly between ties, that is the share of sums that go wrong.
# (A round multiplier such as 0.25 does not spread them, and its share is another.) The picture
# compares this prediction with 4,000 random sums for each of 60 multipliers.

# %%
#| code: folded
#| alt: The share of sums that are off by one, for 60 multipliers from 2 to the power of -12 to 1/2,
#|   on logarithmic axes. Dots lie along a staircase that rises from 0.02% to 25%.
#| caption: Dots are counted, the staircase is predicted. The smaller the multiplier, the larger the
#|   shift, and the rarer the error. At the left only a few of the 4,000 sums go wrong, so the dots
#|   scatter, and a multiplier without errors has none. The error is never more than one step.
random = np.random.default_rng(0)
shares, multipliers = [], np.sort(np.exp(random.uniform(np.log(2**-12), np.log(0.5), 60)))
for real in multipliers:
    sums = random.integers(0, int(255 / real), (1, 4000)).astype(np.int32)
    ours = requantize_ref(sums, np.float32(real), 0).astype(int)
    theirs = requantize_integer_ref(sums, *quantize_multiplier(real), 0).astype(int)
    assert np.abs(ours - theirs).max() <= 1
    shares.append(100 * np.mean(ours != theirs))
predicted = np.array([100 / 2 ** (quantize_multiplier(m)[1] + 1) for m in multipliers])
seen = np.array(shares) > 0  # a logarithmic axis has no zero
assert np.abs(np.array(shares) - predicted).max() < 4
figure, axes = plt.subplots(layout="constrained")
axes.loglog(multipliers, predicted, drawstyle="steps-mid", color=BLUE, label="predicted")
axes.loglog(multipliers[seen], np.array(shares)[seen], ".", color=ORANGE, label="counted")
axes.set(xlabel="multiplier", ylabel="% of sums off by one")
axes.legend()
plt.show()

# %% [markdown]
# float32 rounds more than once as well: the sum, if it has more than 24 bits, then the product, and
# then to a whole number. But its product keeps 24 bits. A $t$ below 256 needs at most 8 of them
# before the point, so at least 16 are left behind it. Fixed point keeps only as many as the shift
# says. So float32 seldom rounds a number onto a tie.
#
# Take float32 where you have it. Take fixed point where you must. Then expect to differ by one, at
# times, from an engine with float32. ONNX Runtime's `QLinearConv` makes the same bytes as equations
# 7.1 to 7.3, if you give it the same rounded bias. `tests/test_onnxruntime.py` compares them bit
# for bit.
#
# ## Exercises
#
# **1.** acc + bias = 3, $m = 0.5$, $z_y = 10$. What is y? And for 5, and for -3?
#
# <details>
# <summary>Answer</summary>
#
# $t = 1.5$ is a tie and goes to 2, so y = 12. $t = 2.5$ goes to 2 as well, so y = 12 again.
# $t = -1.5$ goes to -2, so y = 8.
#
# </details>

# %%
#| cell: The answer, computed
assert requantize_ref(np.array([[3, 5, -3]], np.int32), half, 10).tolist() == [[12, 12, 8]]

# %% [markdown]
# **2.** A layer has $s_x = 0.02$, $z_x = 3$, $s_w = 0.005$, $b = 0.5$, and its weights sum to 40.
# What is its integer bias?
#
# <details>
# <summary>Answer</summary>
#
# $0.5 / (0.02 \cdot 0.005) - 3 \cdot 40 = 5000 - 120 = 4880$.
#
# </details>
#
# **3.** Write $m = 0.01$ as $q_{31}$ and a shift.
#
# <details>
# <summary>Answer</summary>
#
# $0.01 = 0.64 \cdot 2^{-6}$. So the shift is 6 and $q_{31} = \mathrm{rint}(0.64 \cdot 2^{31})$.
#
# </details>

# %%
#| cell: The answers, computed
assert round(0.5 / (0.02 * 0.005) - 3 * 40) == 4880
assert quantize_multiplier(0.01) == (round(0.64 * 2**31), 6)
