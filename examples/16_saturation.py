# %% [markdown]
# # 16. Saturation: the bug that VNNI removed
#
# Before VNNI, the fastest way to multiply bytes on x86 added two products in 16 bits. Two products
# do not always fit there. The CPU cuts off what does not fit, and tells nobody. So one network
# could answer differently on two CPUs. VNNI adds in 32 bits, where every sum fits.

# %%
import matplotlib.pyplot as plt
import numpy as np
from recorded import run, runs  # examples/recorded.py

import minires
from minires.layers import im2col_u8
from minires.measure import plots

SMALLEST, LARGEST = -(2**15), 2**15 - 1  # of 16 bits with a sign

# %% [markdown]
# ## 255 x 127, twice
#
# `vpmaddubsw` multiplies two u8 by two s8 and adds the two products in 16 bits with a sign. One
# product always fits: 255 x 127 is 32,385, and the largest such number is 32,767. Two need not fit:
#
# $$
# 2 \cdot 255 \cdot 127 = 64{,}770 > 32{,}767 \tag{16.1}
# $$
#
# The instruction then *saturates*: it writes the nearest number that fits. See it happen. Choose
# *before VNNI*, press *255 × 127, twice*, and then *step*. The red number is wrong, and all later
# steps build on it. Choose *vpdpbusd* and do the same: nothing is cut off.
#
# ```{lab} instruction
# ```
#
# In NumPy the instruction is one line, and its bug is the word `clip`.


# %%
def vpmaddubsw(a_u8, b_s8):
    """Do in NumPy what the instruction does: (n, 2) u8 and s8 to (n,) s16, saturated."""
    return np.clip((a_u8.astype(np.int32) * b_s8).sum(axis=-1), SMALLEST, LARGEST)


a, b = np.array([[255, 255]], np.uint8), np.array([[127, 127]], np.int8)
print("right", int((a.astype(int) * b).sum()), " vpmaddubsw", int(vpmaddubsw(a, b)[0]))

# %% [markdown]
# Give both weights the same value and turn it up. The sum grows until the weight is 64. Beyond
# that it is cut off, because two products of 255 fit only as long as
#
# $$
# |w| \le 32{,}767 / (2 \cdot 255) = 64.2\ldots \tag{16.2}
# $$
#
# About half of the weights that a byte can hold are beyond that.

# %%
#| alt: Two lines over the weight, from -128 to 127. The right sum is straight, from -65,280 to
#|   64,770. The instruction's sum follows it from -64 to 64, and is flat outside.
#| caption: What `vpmaddubsw` makes of two products of 255. Beyond a weight of 64 it stands still.
#| code: folded
weights = np.arange(-128, 128).astype(np.int8)
pairs = np.stack([weights, weights], axis=1)
right = 2 * 255 * weights.astype(np.int32)
got = vpmaddubsw(np.full_like(pairs, 255, np.uint8), pairs)
assert [int(w) for w in weights[right == got]] == list(range(-64, 65))

figure, axes = plt.subplots(layout="constrained")
axes.grid(alpha=0.3)
axes.plot(weights, right, color=plots.SKY, label="the right sum")
axes.plot(weights, got, color=plots.RED, label="vpmaddubsw")
axes.set(xlabel="both weights", ylabel="255 w + 255 w", xticks=[-128, -64, 0, 64, 127])
axes.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
plt.show()

# %% [markdown]
# ## In a real network
#
# How often does this happen? It depends on the numbers. Here are real ones: the bundled network
# looks at the cat, and two neighbours along K make a pair. The network itself stays right. We
# only count the pairs that would not have fitted.


# %%
def add_pairs(columns_u8, w_s8):
    """Add products two by two: count the pairs that do not fit, and the sums that get wrong."""
    k = w_s8.shape[1] // 2 * 2  # an odd product at the end has no partner, so it fits
    x, w = columns_u8[:, :k].astype(np.float32), w_s8[:, :k].T.astype(np.float32)
    most = x.max(axis=0)[:, None]  # (K, 1): the largest byte that a weight meets
    highest = (most * np.maximum(w, 0)).reshape(k // 2, 2, -1).sum(axis=1)
    lowest = (most * np.minimum(w, 0)).reshape(k // 2, 2, -1).sum(axis=1)
    risky = np.flatnonzero((highest > LARGEST).any(axis=1) | (lowest < SMALLEST).any(axis=1))
    count, lost = 0, np.zeros((len(x), w.shape[1]), np.float32)
    for i in 2 * risky:  # all other pairs fit, whatever pixels they meet
        pair = x[:, i : i + 2] @ w[i : i + 2]  # (M, N): exact, since a float32 holds 24 bits
        cut = pair - np.clip(pair, SMALLEST, LARGEST)
        count, lost = count + np.count_nonzero(cut), lost + cut
    return count, 100 * np.mean(lost != 0), np.abs(lost).max()


model = minires.resnet50("CIFAR10", "int8", backend="numpy")
wrong, seen = {}, {}
for step in model.steps(model.preprocess("examples/images/cat.jpg")):
    if step.op == "conv":
        p = model.params[step.name]
        columns = im2col_u8(step.layer, p, step.inputs[0])  # (M, K)
        count, wrong[step.name], most = add_pairs(columns, p.w_s8)
        if step.name in ("conv1", "layer1.0.conv2"):
            seen[step.name] = columns, p.w_s8
            print(f"{step.name}: bytes from {columns.min()} to {columns.max()}")
            print(f"    {count:,} pairs do not fit")
            print(f"    {wrong[step.name]:.1f}% of sums wrong, by up to {most:,.0f}")
assert [name for name, share in wrong.items() if share] == ["conv1"]

# %% [markdown]
# One sum in ten is wrong in the first layer, and none in the other 52. The bytes are the reason.
# The photograph's bytes lie around a zero point of 124, so most pairs have large ones. After a ReLU
# most bytes are small. To try your own weights, put a file's name in place of "CIFAR10". With the
# README's ImageNet weights, 4% of the first layer's sums were wrong.

# %%
#| alt: Two histograms of sums of two products. Those of layer1.0.conv2 lie within 15,000 of zero.
#|   Those of conv1 spread wider, and their tails reach past both limits of 16 bits.
#| caption: Two products added, 2,000,000 times for each layer. Beyond the dashed ends of 16 bits a
#|   sum is cut off.
#| code: folded
random = np.random.default_rng(0)
figure, axes = plt.subplots(layout="constrained")
for (name, (columns, w_s8)), color in zip(seen.items(), (plots.RED, plots.SKY), strict=True):
    rows, channels = (random.integers(0, n, 2_000_000) for n in (len(columns), len(w_s8)))
    at = 2 * random.integers(0, w_s8.shape[1] // 2, 2_000_000)
    sums = sum(columns[rows, at + i].astype(int) * w_s8[channels, at + i] for i in (0, 1))
    axes.hist(sums, 120, range=(-65_280, 64_770), histtype="step", color=color, label=name)
for end in (SMALLEST, LARGEST):
    axes.axvline(end, linestyle="--", color=plots.GREY)
axes.set(xlabel="a sum of two products", ylabel="how often", yscale="log")
axes.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
plt.show()

# %% [markdown]
# Nothing crashes when a sum is cut off, and what comes out still looks like an answer. That makes
# the bug hard to find. In 2024
# [a user of OpenVINO reported](https://github.com/openvinotoolkit/openvino/issues/25342) that one
# network gave a certain label to 693 images on a new CPU, and to 702 on an older one.
#
# ## Three ways around it
#
# 1. **Seven bits.** Keep every weight within 64, as equation 16.2 asks: steps are twice as wide.
#    ONNX Runtime calls this `reduce_range`. NNCF, which quantizes for OpenVINO, calls it
#    `overflow_fix`, and offers it for the first layer alone. Now you know why.
# 2. **Split.** Split off the upper bit of $a = 128\, h + l$. Multiply both parts, and add:
#
#    $$ a\, w = 128\, (h\, w) + l\, w \tag{16.3} $$
#
#    Both parts fit. It is exact, and takes twice as many instructions.
# 3. **Widen.** Make the bytes 16 bits wide first, and multiply by `vpmaddwd`, which adds in 32
#    bits. It is exact, but each instruction makes half as many products.
#
# minires takes exact ways only, so INT8 has the same bits on every CPU.

# %%
x, w = random.integers(0, 256, (1000, 2), np.uint8), random.integers(-128, 128, (1000, 2), np.int8)
exact = (x.astype(np.int32) * w).sum(axis=1)
split = vpmaddubsw(x & 127, w) + 128 * vpmaddubsw(x >> 7, w)
assert np.array_equal(split, exact), "the split cannot saturate"

# %% [markdown]
# ## What being exact costs
#
# These are peaks of one core, from zen3-avx2, the [recorded run](11_ladder_int8) without VNNI.
# The split uses `vpmaddubsw` twice. So its peak is half of that instruction's. The wrong way peaked
# at 2.0 times FP32 in this run, and widening at 1.3 times. (In runs that are not shown here,
# widening had 1.0 to 1.4.) The split would be no faster than FP32. So minires widens there. You can
# still ask for the split: `MINIRES_ISA=avx2-vpmaddubsw`.

# %%
#| alt: Four bars for the recorded Zen 3. FP32's fma 1, vpmaddubsw 2.0, vpmaddwd 1.3, and the split
#|   0.98 times FP32's peak.
#| caption: Peaks of one core, as multiples of FP32's. Only the dark orange way is wrong.
#| code: folded
figure, axes = plt.subplots(layout="constrained")
for recorded in runs("peaks"):
    gops = {peak.name: peak.gops for peak in recorded.peaks}
    if not {"vpmaddubsw", "vpmaddwd"} <= set(gops):  # it has VNNI
        continue
    saturating, widened = (gops[name] / gops["fma"] for name in ("vpmaddubsw", "vpmaddwd"))
    names = ["FP32", "saturating", "widened", "split"]
    axes.set_title(recorded.machine, loc="left", fontsize=10)
    colors = [plots.SKY, plots.RED, plots.GREEN, plots.GREEN]
    bars = axes.barh(names, [1, saturating, widened, saturating / 2], color=colors)
    axes.bar_label(bars, fmt="%.2f", padding=3)
axes.set(xlabel="peak, as a multiple of FP32's", xlim=(0, 2.2))
axes.invert_yaxis()
plt.show()

zen3 = {peak.name: peak.gops for peak in run("zen3-avx2").peaks}
saturating, widened = (zen3[name] / zen3["fma"] for name in ("vpmaddubsw", "vpmaddwd"))
assert (round(saturating, 1), round(widened, 1), saturating / 2 < 1) == (2.0, 1.3, True)

# %% [markdown]
# ## Exercises
#
# **1.** Two activations are 200, and both weights are $w$. Which weights are safe?
#
# <details>
# <summary>Answer</summary>
#
# $2 \cdot 200 \cdot w \le 32{,}767$ gives $w \le 81$. Below zero 16 bits hold one number more, but
# $-400 \cdot 82 = -32{,}800$ is beyond that, too. So all weights from -81 to 81 are safe.
#
# </details>
#
# **2.** Why can the split not saturate, not even with a weight of -128?
#
# <details>
# <summary>Answer</summary>
#
# Its sums are at most $127 \cdot 128 \cdot 2 = 32{,}512$ and $1 \cdot 128 \cdot 2 = 256$: both fit.
#
# </details>
#
# **3.** Four weights are 127, 127, -127 and -127, and all four activations are 255. The right sum
# is 0. What does `vpmaddubsw` make of it? Find an order of the weights that makes it right. What
# does that say about two engines that both use this instruction?
#
# <details>
# <summary>Answer</summary>
#
# The first pair saturates at 32,767, the second at -32,768: together -1. With 127, -127, 127, -127
# each pair is 0. A convolution does not depend on the order of its channels, but this instruction
# does. So two engines that lay channels out in different ways can both saturate and disagree.
#
# </details>
#
# **4.** How much noise does the first way add? Round each channel of conv1's weights so that its
# largest weight is 127 steps, and again so that it is 64. Compare the two errors in decibels.
#
# <details>
# <summary>Answer</summary>
#
# Steps that are $127 / 64$ times as wide make errors as many times as large. That is
# $20 \log_{10}(127 / 64) = 5.95$ dB. The rule of thumb says 6 dB a bit.
#
# </details>

# %%
#| cell: The answers, computed
assert 400 * 81 < LARGEST < -SMALLEST < 400 * 82
x, w = np.full((1, 2), 255, np.uint8), np.full((1, 2), -128, np.int8)
assert vpmaddubsw(x & 127, w).item() == -127 * 128 * 2 > SMALLEST
assert vpmaddubsw(x >> 7, w).item() == -128 * 2
for order, total in (([127, 127, -127, -127], -1), ([127, -127, 127, -127], 0)):
    w = np.array(order, np.int8).reshape(2, 2)
    assert vpmaddubsw(np.full((2, 2), 255, np.uint8), w).sum() == total
real = minires.resnet50("CIFAR10").params["conv1"].weight  # (64, 147)
noise = []
for steps in (127, 64):
    scale = np.abs(real).max(axis=1, keepdims=True) / steps
    noise.append(np.mean((np.rint(real / scale) * scale - real) ** 2))
decibels = 10 * np.log10(noise[1] / noise[0])
print(f"seven bits add {decibels:.1f} dB of noise")
assert 5.5 < decibels < 6.2
