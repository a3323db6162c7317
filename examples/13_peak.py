# %% [markdown]
# # 13. Your machine's peak
#
# A time says how long a layer took. It does not say how much faster it could be. For that you need
# two limits: how fast the machine multiplies, and how fast it reads. This chapter derives both,
# measures both, and predicts from them how much faster each layer gets in INT8.
#
# ## The peak is a product of five numbers
#
# Say that a core never waits. It starts some multiplying instructions in each cycle: that is the
# **rate**. Each works on a register of several **lanes** of 32 bits. A lane multiplies several
# pairs of numbers, its **products**: one pair of floats, or four pairs of bytes. Each product is
# also added to a sum, so it counts as **2** operations. The **clock** says how many cycles a
# second has. Multiply them all:
#
# $$ \begin{aligned} \text{peak} = {} & \text{lanes} \times \text{products} \\ & \times 2 \times
# \text{rate} \times \text{clock} \end{aligned} \tag{13.1} $$
#
# Take 8 lanes, as AVX2 has, two such instructions a cycle, and 3 GHz. In FP32 that makes
# $8 \times 1 \times 2 \times 2 \times 3 = 96$ billion operations a second (GOP/s), for each core.
# With VNNI a lane takes four pairs of bytes in one instruction. Only `products` changes, from 1 to
# 4, so INT8 peaks at 4 times FP32. Without VNNI one instruction is not enough, and the rate falls.

# %%
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from recorded import measure_yours, run, runs, side_by_side, tell, worked_out

from minires.kernels.isa import ISAS
from minires.ladder.climb import problem, rungs
from minires.measure.machine import measure_machine
from minires.measure.peak import best_instruction, doubts_about, peak
from minires.measure.plots import COLORS, GREY
from minires.measure.trust import doubt_share, mark, time_steadily

lanes, products, rate, clock = 8, 1, 2, 3
assert lanes * products * 2 * rate * clock == 96

# %% [markdown]
# ## Measuring it
#
# Few data sheets tell the rate, and the clock changes all the time. So `minires peak` measures
# both. It runs a loop that only multiplies and adds. The loop keeps so many independent sums that
# none waits for another, and never touches memory. Between rounds it times a chain of instructions
# that take one cycle each, which gives the clock. Then it solves equation 13.1 for the rate.
#
# Other programs can only make a round slower. So the best of many rounds counts. The even and the
# odd rounds must agree on it, or the figure is in doubt.

# %%
recorded, (peaks, memory) = run("xeon-vnni"), measure_machine()
doubts = [doubt for found in peaks for doubt in found.doubts]
mine = {found.instruction.name: found for found in peaks}
theirs = {found.name: found for found in recorded.peaks}
why = recorded.doubts_about("peaks")
rows = []
for what, label in [("gops", "GOP/s"), ("rate", "a cycle"), ("clock", "GHz")]:
    for name in dict.fromkeys([*theirs, *mine]):
        that, this = (
            f"{getattr(of[name], what):.2f}" if name in of else "" for of in (theirs, mine)
        )
        write = worked_out if what == "rate" else mark
        that = mark(that, why) if that else ""
        rows.append([f"{name}, {label}", that, write(this, doubts) if this else ""])
print(side_by_side("of one core", rows, [recorded], ["peaks"], doubts))

# %% [markdown]
# A rate of 2 says that the core starts two such instructions in each cycle. In the recorded run it
# comes out at 1.8. Probably this CPU lowers its clock while it multiplies, and the clock is timed
# between the rounds. `vpdpbusd` is VNNI's instruction: the same rate, four times the products.
# Without VNNI, four products of bytes take three instructions, and this core begins two such
# sequences in three cycles: 0.67, which comes out at 0.62 for the same reason. They begin with
# `vpmaddubsw`. That can saturate ([chapter 16](16_saturation)), so minires does not multiply with
# it alone.
#
# This is the loop that was timed here, as the compiler left it. Each line has a sum of its own, so
# none waits for another.

# %%
print("\n".join(peaks[0].assembly.splitlines()[:6]))

# %% [markdown]
# ## The roofline, derived
#
# A layer has to do two things: compute its operations, and move its bytes. A good program does
# both at once, so the longer of the two decides:
#
# $$ \text{time} \ge \max\left( \frac{\text{operations}}{\text{peak}},
# \frac{\text{bytes}}{\text{bandwidth}} \right) \tag{13.2} $$
#
# Speed is operations divided by time. So divide the operations by each side: the speed is at most
# what comes out. A new number appears, the operations for each byte. It is called the *intensity*:
#
# $$ \begin{aligned} \text{intensity} &= \frac{\text{operations}}{\text{bytes}} \\[0.4em]
# \text{speed} &\le \min(\text{peak}, \\ &\quad \text{intensity} \times \text{bandwidth})
# \end{aligned} \tag{13.3} $$
#
# Draw that limit over the intensity and you get a roof: a slope, where memory limits, and a flat
# top, where arithmetic does (Williams et al. 2009). The corner lies where both are equal, at peak /
# bandwidth. A convolution uses each weight for many pixels, so with VNNI it lies to the right of
# the corner. The last layer, `fc`, uses each weight once for an image, so it lies to the left.
#
# In INT8 each value has a quarter of the bytes. The operations stay the same, so each layer moves
# to the right, to four times its intensity.


# %%
#| alt: Two roofs over operations a byte, one for FP32 and a higher one for INT8. Each is a slope
#|   that ends in a flat top. Nearly all layers are dots beneath the flat tops, and those of INT8
#|   lie further to the right. One dot of each colour, fc, lies far to the left, at the slope.
#| caption: Each dot is a layer of ResNet-50 in the recorded run. All but `fc` lie under the flat
#|   top.
#| code: folded
def roof(of, precision):
    """Give a run's peak in this precision, of all its threads, in GOP/s."""
    name = best_instruction(precision, ISAS[of.isa]).name
    return of.threads * next(found.gops for found in of.peaks if found.name == name)


figure, axes = plt.subplots(layout="constrained")
slope = recorded.memory[-1].all
for precision in ("fp32", "int8"):
    top = roof(recorded, precision)
    at = sorted([0.25, 1024, top / slope])
    axes.plot(at, [min(top, i * slope) for i in at], color=COLORS[precision], label=precision)
    steps = recorded.layers[precision]
    axes.plot([r.intensity for r in steps], [r.gops for r in steps], ".", color=COLORS[precision])
axes.set(xscale="log", yscale="log", xlabel="operations for each byte", ylabel="GOP/s, all threads")
axes.legend()
plt.show()

# %% [markdown]
# ## Predict a layer's gain
#
# The right side of equation 13.2 is the *least time* that a layer can take. The gain to expect from
# INT8 is the ratio of the two:
#
# $$ \text{gain} = \frac{\text{least time in FP32}}{\text{least time in INT8}} \tag{13.4} $$
#
# Right of both corners the operations cancel, and the gain is the ratio of the peaks. Left of
# both, it is the ratio of the bytes: 4. The peaks here are those of one core, times the threads.
# The equation leaves out what costs the two precisions unequally: the epilogue, the edges of tiles,
# and how near each comes to its roof.


# %%
#| alt: For each of the 54 layers, from left to right, a grey line shows the predicted gain and a
#|   dot the measured one. The line is nearly flat, just below 4. Most dots lie close to it. Ten
#|   are far below: the first, five in layer1 and four in layer2. Some in layer4 and fc are above.
#| caption: INT8's gain, layer by layer, in the recorded run. The line is equation 13.4, and the
#|   dots were measured.
#| code: folded
def least(of, row, precision):
    """Give the shortest time of a layer, by equation 13.2, in seconds."""
    return max(2 * row.macs / roof(of, precision), row.bytes / of.memory[-1].all) / 1e9


def gains(of):
    """Give a run's layers in both precisions, and the predicted and the measured gains."""
    both = list(zip(of.layers["fp32"], of.layers["int8"], strict=True))
    expected = [least(of, a, "fp32") / least(of, b, "int8") for a, b in both]
    return both, np.array(expected), np.array([a.seconds / b.seconds for a, b in both])


pairs, predicted, measured = gains(recorded)
figure, axes = plt.subplots(layout="constrained")
axes.step(range(len(pairs)), predicted, where="mid", color=GREY, label="predicted")
axes.plot(measured, "o", markersize=4, color=COLORS["int8"], label="measured")
starts = [i for i, (a, _) in enumerate(pairs) if a.name.endswith((".0.conv1", "fc"))]
axes.set_xticks(starts, [pairs[i][0].name.removesuffix(".0.conv1") for i in starts])
axes.set(ylim=(0, 5.5), ylabel="times as fast as FP32")
axes.legend(ncols=2)
plt.show()

# %%
apart = measured / predicted
why, timed = recorded.doubts_about("peaks", "layers"), recorded.doubts_about("layers")
told = mark(f"{np.median(apart):.2f}", why)
print(f"{'gain':<16}{'predicted':>11}{'measured':>11}")
for i in np.argsort(apart)[[0, 1, -2, -1]]:
    both = mark(f"{predicted[i]:.2f}", why), mark(f"{measured[i]:.2f}", timed)
    print(f"{pairs[i][0].name:<16}{both[0]:>11}{both[1]:>11}")
print(f"measured over predicted, in the median: {told}")
print(tell(recorded, "peaks", "layers"))

# %% [markdown]
# **When the prediction is wrong, it tells you something.**
#
# * *Measured is below.* INT8 pays for something that the equation does not know: an epilogue, a
#   tile that hangs over the edge, weights that come late. [Chapter 14](14_waterfall) finds out
#   which.
# * *Measured is above.* FP32 stayed further below its roof than INT8 did. Its weights have four
#   times the bytes, so it can miss the cache where INT8 hits.
# * *Measured is above for all layers alike.* Then suspect a peak: one of the two was measured too
#   low or too high. If the measurements disagree, a line above says so.
#
# In the recorded run half of the layers come within 5%. Ten are more than a fifth below: `conv1`,
# and 1x1 layers of `layer1` and `layer2`. Their sums are short, so the epilogue weighs much. The
# 3x3 layers of `layer4` are above: in FP32 they stay further below their peak.
#
# The higher the peak, the further right the corner, and the more layers wait for memory:

# %%
print(f"{'in INT8':<10}{'GOP/s':>7}{'GB/s':>6}{'corner':>8}{'left':>6}{'median':>9}")
for of in runs("peaks", "memory", "layers"):
    both, expected, found = gains(of)
    top, reads = roof(of, "int8"), of.memory[-1].all
    left = sum(b.intensity < top / reads for _, b in both)
    told = mark(f"{np.median(found / expected):.2f}", of.doubts_about("peaks", "layers"))
    print(f"{of.name:<10}{top:>7.0f}{reads:>6.0f}{top / reads:>8.0f}{left:>6}{told:>9}")
    assert (left > 40) == (of.isa == "amx")

# %% [markdown]
# A corner is the peak over what memory gives. The next column counts the layers to the left of it,
# out of 54. The last is the median layer's gain, measured over predicted. `xeon-vnni` and
# `xeon-amx` are one machine: in the first AMX is left out. AMX lifts the peak so far that nearly
# all layers lie to the left of the corner. Multiplying takes them so little time that all else
# weighs more, and the equation leaves that out. So the median layer gains 0.63 of what it predicts.
#
# ## Yours
#
# The same on your machine, for the 3x3 convolution of chapters [10](10_ladder_fp32) and
# [11](11_ladder_int8), as the top rung computes it. The recorded column has the same layer inside
# the network. Yours is called by itself, so it also wakes the other threads and copies its input
# and output. The shorter the layer, the more that weighs.

# %%
operations, allowed, taken, doubts = 2 * 784 * 128 * 1152, {}, {}, doubts_about(memory)
for precision, size in [("fp32", 4), ("int8", 1)]:
    layer, params, x = problem(precision)
    compute = partial(rungs(precision)[-1].prepare(layer, params), x)
    top = peak(precision).threads * peak(precision).gops
    moved = size * (2 * 784 * 128 + 128 * 1152)
    allowed[precision] = max(operations / top, moved / memory[-1].all) / 1e9
    (taken[precision], _), more = measure_yours(
        f"the layer in {precision}",
        partial(time_steadily, precision, compute),
        lambda pair: pair[1],
    )
    share = allowed[precision] / taken[precision]
    doubts += [*more, *peak(precision).doubts, *doubt_share(f"the layer in {precision}", share)]
(i,) = [i for i, (a, _) in enumerate(pairs) if a.name == layer.name]
rows = [
    [f"{precision}, {what}", mark(f"{1e3 * that:.2f}", its), mark(f"{1e3 * this:.2f}", doubts)]
    for precision, row in zip(taken, pairs[i], strict=True)
    for what, that, its, this in [
        ("allowed", least(recorded, row, precision), why, allowed[precision]),
        ("taken", row.seconds, timed, taken[precision]),
    ]
]
for what, that, its, yours in [("predicted", predicted[i], why, allowed),
                               ("measured", measured[i], timed, taken)]:  # fmt: skip
    gain = worked_out(f"{yours['fp32'] / yours['int8']:.2f}x", doubts)
    rows.append([f"gain, {what}", mark(f"{that:.2f}x", its), gain])
print(side_by_side("milliseconds", rows, [recorded], ["peaks", "layers"], doubts))

# %% [markdown]
# ## Exercises
#
# **1.** A core with AVX-512 has 16 lanes and starts two instructions a cycle, at 2.5 GHz. What are
# its peaks in FP32 and, with VNNI, in INT8?
#
# <details>
# <summary>Answer</summary>
#
# By equation 13.1, $16 \times 1 \times 2 \times 2 \times 2.5 = 160$ GOP/s in FP32. With four
# products a lane, it is 640 in INT8.
#
# </details>
#
# **2.** That core reads 20 GB/s from memory. Where is the corner in FP32? How fast can `fc` be,
# which has 2048 x 1000 weights? For which batch does it reach the corner?
#
# <details>
# <summary>Answer</summary>
#
# The corner is at $160 / 20 = 8$ operations a byte. `fc` does 2 operations with each weight, which
# has 4 bytes: 0.5 operations a byte. So it does $0.5 \times 20 = 10$ GOP/s at most. A batch of 16
# uses each weight 16 times, and $16 \times 0.5 = 8$.
#
# </details>
#
# **3.** Without VNNI, a CPU's peak in INT8 is 1.3 times its peak in FP32. In FP32 a layer lies at
# half the intensity of the corner. Which gain do you predict? Is it a surprise?
#
# <details>
# <summary>Answer</summary>
#
# In FP32 memory limits it: half the peak. In INT8 its intensity is four times as high, twice
# FP32's corner, and INT8's corner is at 1.3 of it. So it runs at the INT8 peak, and the gain is
# $1.3 / 0.5 = 2.6$. It is more than the ratio of the peaks, because INT8 also took the wait away.
#
# </details>

# %%
#| cell: The answers, computed
assert (16 * 1 * 2 * 2 * 2.5, 16 * 4 * 2 * 2 * 2.5) == (160, 640)
assert 160 / 20 == 8 == 16 * 0.5
fp32, int8 = min(1, 0.5), min(1.3, 4 * 0.5)
assert int8 / fp32 == 2.6
