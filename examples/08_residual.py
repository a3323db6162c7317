# %% [markdown]
# # 8. Adding the residual: two scales, one rounding
#
# Each block of the network ends with a sum of two tensors: the output of its last convolution, and
# the *residual*, which took the shortcut around the block. Their integers have different scales. A
# 7 in one is not a 7 in the other, so you cannot add them as they are.
#
# Bring both to the output's scale, add them as real numbers, and round once. A separate addition
# would round twice. That makes the error about 1.6 times as large, and moves twice as many bytes.

# %%
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np

import minires
from minires.measure.plots import BLUE, COLORS, ORANGE, SKY
from minires.reference import QParams, dequantize_ref, quantize_ref, requantize_ref

# %% [markdown]
# ## From two scales to one
#
# The convolution's sum stands for $s_x s_w (\mathrm{acc} + \mathrm{bias})$, as
# [chapter 7](07_requantization) derives. A byte $r$ of the residual stands for $s_r (r - z_r)$. The
# output byte $y$ has to stand for the sum of both:
#
# $$
# s_y (y - z_y) = s_x s_w (\mathrm{acc} + \mathrm{bias}) + s_r (r - z_r)
# $$
#
# Divide by $s_y$. The first product becomes $t$ of equation 7.2. The second gets a multiplier of
# its own, $s_r / s_y$, which is worked out beforehand like $m$:
#
# $$
# \begin{aligned}
# t = {} & \mathrm{float32}(\mathrm{acc} + \mathrm{bias}_c)\, m_c \\[0.4em]
# & + \mathrm{float32}(r - z_r)\, \frac{s_r}{s_y}
# \end{aligned} \tag{8.1}
# $$
#
# Then clip and round as in equation 7.3. There is one rounding, at the end.
#
# Three values by hand. The multiplier is $m = 0.01$. The scales are $s_r = 0.02$ and $s_y = 0.03$,
# and both zero points are 0.

# %%
m, r_q, s_y = np.float32(0.01), QParams(np.float32(0.02), 0), np.float32(0.03)
acc = np.array([[1234, -300, 50]], np.int32)  # with their bias
r_u8 = np.array([[100, 200, 0]], np.uint8)
r_steps = r_u8.astype(np.int32) - r_q.zero_point
shortcut = r_steps.astype(np.float32) * (r_q.scale / s_y)  # in steps of the output
y = requantize_ref(acc, m, 0, shortcut)
for a, r, value, result in zip(acc[0], r_steps[0], (acc * m + shortcut)[0], y[0], strict=True):
    print(f"{a} x 0.01 + {r} x 0.02/0.03 = {value:.2f} -> {result}")

# %% [markdown]
# ## Where Q and DQ go around an Add
#
# ONNX is a file format for networks. A pair of nodes in its graph marks where numbers are rounded:
# *Q* (QuantizeLinear) rounds to bytes. *DQ* (DequantizeLinear) turns bytes into real numbers, and
# rounds nothing. So the Qs on a value's way tell how often it is rounded.

# %%
#| code: folded
#| alt: Two graphs. Above, a convolution goes through Q and DQ to an Add, then through a ReLU to a
#|   second Q. Below, the convolution goes to the Add directly, then through a ReLU to the only Q.
#|   In both, the residual comes to the Add through a DQ.
#| caption: Each Q rounds. Above, the convolution's output is rounded twice. Below, it is rounded
#|   once, which is what minires computes.
graphs = {
    "a pair behind the convolution: two roundings": ["conv", "Q", "DQ", "Add", "ReLU", "Q"],
    "no pair there: one rounding": ["conv", "Add", "ReLU", "Q"],
}
figure, drawn = plt.subplots(2, 1, figsize=(5.6, 3.6), layout="constrained")
for axes, (title, names) in zip(drawn, graphs.items(), strict=True):
    places = [(i + 6 - len(names), 1) for i in range(len(names))]
    add = places[names.index("Add")]
    boxes = [*zip(names, places, strict=True), ("DQ", (add[0], 0)), ("residual", (add[0] - 1.4, 0))]
    ways = [*pairwise(places), ((add[0] - 1.4, 0), (add[0], 0)), ((add[0], 0), add)]
    for start, end in ways:
        gap = 30 if start[1] == end[1] == 0 else 18  # the residual's box is wide
        arrow = {"arrowstyle": "-|>", "color": "C6", "shrinkA": gap, "shrinkB": 15}
        axes.annotate("", end, start, arrowprops=arrow)
    for name, place in boxes:
        color = ORANGE if name == "Q" else SKY
        around = {"boxstyle": "round,pad=0.35", "color": color, "alpha": 0.45}
        axes.text(*place, name, ha="center", va="center", bbox=around)
    axes.set(xlim=(-0.6, 5.6), ylim=(-0.5, 1.5))
    axes.set_title(title, loc="left")
    axes.axis("off")
plt.show()

# %% [markdown]
# Which graph you need depends on the engine:
#
# - **TensorRT** adds inside the convolution's kernel, as minires does. It wants a pair on the
#   residual and none behind the convolution.
#   [NVIDIA's toolkit](https://docs.nvidia.com/deeplearning/tensorrt/tensorflow-quantization-toolkit/docs/docs/add_custom_qdq_cases.html)
#   shows it for this very network.
# - **ONNX Runtime** on a CPU has an operator of its own for the addition, `QLinearAdd`. It reads
#   bytes on both sides. So it wants a pair behind the convolution, too, and rounds twice.
#
# An engine that optimizes a graph replaces DQ, Conv and Q by one integer operator. That operator
# multiplies by $m$, where the plain graph computes in float32 and divides by $s_y$. The two may
# fall on different sides of a tie. So the same file can give answers that differ by one step:
# [ONNX Runtime's issue 32132](https://github.com/microsoft/onnxruntime/issues/32132) shows it.
#
# ## What the second rounding costs
#
# Rounding to steps of $s$ makes an error between $-s/2$ and $s/2$, and no part of that interval is
# more likely than another. The mean of its square is
#
# $$
# \frac{1}{s} \int_{-s/2}^{s/2} e^2\, de = \frac{s^2}{12} \tag{8.2}
# $$
#
# If two roundings are independent, their mean squares add up. Let $s_c$ be the scale of the
# convolution's own output. Then the root mean square error is
# $\sqrt{s_y^2 / 12}$ for one rounding, and $\sqrt{(s_y^2 + s_c^2) / 12}$ for two. Test it on
# random sums. Draw 20,000, and keep those above zero. The ReLU makes the others 0, which needs no
# rounding:

# %%
random = np.random.default_rng(0)
conv = random.normal(0, 1, 20_000).astype(np.float32)  # what the convolution computed
residual = np.abs(random.normal(0, 1, 20_000)).astype(np.float32)
kept = conv + residual > 0
y_q = QParams(np.float32((conv + residual).max() / 255), 0)
c_q = QParams(np.float32((conv.max() - conv.min()) / 255), 128)

once = quantize_ref(conv + residual, *y_q)
twice = quantize_ref(dequantize_ref(quantize_ref(conv, *c_q), *c_q) + residual, *y_q)
predicted = [np.sqrt(y_q.scale**2 / 12), np.sqrt((y_q.scale**2 + c_q.scale**2) / 12)]
errors = [(dequantize_ref(y, *y_q) - conv - residual)[kept] for y in (once, twice)]
print("root mean square error, predicted and measured")
for name, expected, error in zip(("once", "twice"), predicted, errors, strict=True):
    measured = np.sqrt(np.mean(error**2))
    print(f"rounded {name:<6}{expected:.5f}  {measured:.5f}")
    assert abs(measured / expected - 1) < 0.05
print(f"they differ in {np.mean(once != twice):.0%} of all values, by one step at most")
assert np.abs(once.astype(int) - twice).max() == 1
assert round(predicted[1] / predicted[0], 1) == 1.6

# %%
#| code: folded
#| alt: Two histograms of errors. Rounded once, the errors fill a box half a step to either side of
#|   zero. Rounded twice, they make a wider hill with sloping sides.
#| caption: The error of the sum, in steps of the output. One rounding stays within half a step. Two
#|   roundings reach about twice as far.
figure, axes = plt.subplots(layout="constrained")
for label, error, color in zip(("once", "twice"), errors, (BLUE, COLORS["int8"]), strict=True):
    axes.hist(error / y_q.scale, bins=np.linspace(-1.2, 1.2, 49), histtype="step",
              linewidth=2, color=color, label=f"rounded {label}")  # fmt: skip
axes.set(xlabel="error, in steps of the output", ylabel="how many values")
axes.legend(loc="upper left", bbox_to_anchor=(0, 1.2), ncols=2)
plt.show()

# %% [markdown]
# The memory pays, too. A compiled kernel adds while the sums are still in registers. It reads one
# byte of the residual and writes one byte of the output. With a separate addition the convolution
# first writes a byte. Then the addition reads two and writes one: four bytes where there were two.
#
# ## In the network
#
# Most residuals come from behind a ReLU, so their zero point is 0. In a stage's first block the
# shortcut has a convolution without a ReLU, called `downsample`. Its output may be negative, so it
# has a zero point:

# %%
int8 = minires.resnet50("CIFAR10", "int8", backend="numpy")
for name in ("layer1.0.downsample.0", "layer1.0.conv3", "layer1.1.conv3"):
    q = int8[name].qparams
    print(f"{name:<22} scale {q.scale:.5f}, zero_point {q.zero_point}")

# %% [markdown]
# ## Exercises
#
# **1.** The residual has $s_r = 0.06$, $z_r = 10$ and $r = 13$. The output has $s_y = 0.03$,
# $z_y = 0$. acc + bias is 50 and $m = 0.01$. What is y?
#
# <details>
# <summary>Answer</summary>
#
# $t = 50 \cdot 0.01 + (13 - 10) \cdot 0.06 / 0.03 = 0.5 + 6 = 6.5$. That is a tie, so y = 6.
#
# </details>

# %%
#| cell: The answer, computed
shortcut = np.float32([[13 - 10]]) * (np.float32(0.06) / s_y)
assert requantize_ref(np.array([[50]], np.int32), m, 0, shortcut).item() == 6

# %% [markdown]
# **2.** When could you add the residual's byte without multiplying it?
#
# <details>
# <summary>Answer</summary>
#
# When $s_r = s_y$. Then $s_r / s_y = 1$, and $r - z_r$ counts in steps of the output already.
#
# </details>
#
# **3.** Let $s_c = s_y$. By what factor does a second rounding raise the error?
#
# <details>
# <summary>Answer</summary>
#
# By $\sqrt{2}$, which is 1.41: $\sqrt{(s_y^2 + s_y^2) / 12} = \sqrt{2} \cdot \sqrt{s_y^2 / 12}$.
#
# </details>
#
# **4.** Why do one rounding and two never differ by more than one step here?
#
# <details>
# <summary>Answer</summary>
#
# The first of the two moves the sum by $s_c / 2$ at most. That is less than a step of the output
# here. Two numbers less than one step apart round to the same integer, or to neighbours.
#
# </details>

# %%
#| cell: The answer, computed
assert c_q.scale / 2 < y_q.scale
