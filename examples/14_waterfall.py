# %% [markdown]
# # 14. The waterfall: where the 4x goes
#
# Four bytes fit where one float was. So you might expect INT8 to take a quarter of FP32's time. It
# takes more, and this chapter looks for each millisecond of the difference. Without VNNI nearly all
# of the answer is the instruction: INT8's peak is not four times FP32's at all. With it, the answer
# is work that no instruction makes shorter.
#
# ## The bars add up
#
# Call the time of part $i$ of the network $t_i$ in FP32 and $t'_i$ in INT8. An ideal part takes
# $t_i / 4$. So its *excess*, what it takes beyond a quarter, is $t'_i - t_i / 4$. Add that up over
# all parts, and the times of the whole network appear:
#
# $$ T' = \frac{T}{4} + \sum_i \left( t'_i - \frac{t_i}{4} \right) \tag{14.1} $$
#
# No bar can get lost: the sum is exact. The time between the layers is a part as well. It is
# called *rest*: the time of the whole, less the times of all layers. A part that became more than
# four times as fast has a negative bar. That happens where its data fits a cache in INT8 only. The
# rest can be negative by chance, because it is a difference of two measurements.

# %%
import sys

import matplotlib.pyplot as plt
import numpy as np
from recorded import measure_yours, run, side_by_side, tell, worked_out

import minires
from minires.kernels.isa import ISAS
from minires.measure.peak import best_instruction
from minires.measure.plots import COLORS
from minires.measure.trust import mark
from minires.measure.waterfall import measure_waterfall

recorded = run("zen3-avx2")
bars = sum(part.excess for part in recorded.waterfall.parts)
assert abs(recorded.waterfall.whole.fp32 / 4 + bars - recorded.waterfall.whole.int8) < 1e-9

# %% [markdown]
# ## The recorded run
#
# This is the ImageNet network with one photograph of 224 x 224 pixels. Read the upper picture from
# top to bottom: it starts at a quarter of FP32's time, each part adds its excess, and the end is
# INT8's time. The upper scale says how many times as fast as FP32 that is. Green bars are work
# before the network. The lower picture splits the convolutions' excess by its causes.

# %%
#| alt: Horizontal bars, from top to bottom. A blue bar is a quarter of FP32's time. Below it each
#|   stage of the network is a bar that begins where the one before ends; layer1 to layer4 are the
#|   longest. A second blue bar is INT8's time. Three short green bars follow for decode, resize
#|   and
#|   normalize. A lower panel has four bars for the causes.
#| caption: The waterfall of the recorded run. Question marks say that its measurements do not agree
#|   with each other.
print(tell(recorded, "waterfall"))
recorded.waterfall.plot()

# %% [markdown]
# ## The causes
#
# A part tells where the time went. To know *why*, leave one thing out and time it again. That is
# called an *ablation*. For the convolutions there are three things to leave out:
#
# * The **epilogue**. Kernels with a plain store in its place are shorter by the epilogue's time.
#   In INT8 it converts, scales, rounds and clips. None of that is divided by 4.
# * **Edges** of tiles. A tile has a fixed number of rows. The last one hangs over the edge, and
#   its surplus rows are computed for nothing.
# * The **instruction**. It cannot be left out, so it is computed. Take the FP32 time $t$ that is
#   neither epilogue nor edges. If INT8's instruction peaks at $\rho$ times FP32's, that work
#   should take $t / \rho$:
#
# $$ \text{instruction} = t \left( \frac{1}{\rho} - \frac{1}{4} \right) \tag{14.2} $$
#
# With VNNI $\rho = 4$, and this cause is nothing. With $\rho = 1.3$, as [chapter 13](13_peak)
# found for `vpmaddwd` on one core, it is $0.52\,t$. With AMX $\rho$ is far above 4, and the cause
# is a gain.

# %%
assert round(1 / 1.3 - 1 / 4, 2) == 0.52

# %% [markdown]
# ## One list of all losses
#
# Parts and causes overlap: an epilogue is time in some stage. So put them into one list. The
# convolutions are split by cause, and every other part stands for itself. What remains is
# *unexplained*, and stays in the list as that. The list is ordered by what each takes, as a share
# of INT8's time.


# %%
def losses(fall):
    """List what INT8 takes beyond a quarter of FP32's time, in seconds, the largest first."""
    found = {cause.partition(" peaks")[0]: seconds for cause, seconds in fall.ablation[:-1]}
    for part in fall.parts[:-1]:
        if not part.name.startswith(("conv", "layer")):  # those are split by cause
            found[part.name] = part.excess
    found["between layers"] = fall.parts[-1].excess
    listed = sorted(found.items(), key=lambda item: -item[1])
    total = fall.whole.int8 - fall.whole.fp32 / 4
    return [*listed, ("unexplained", total - sum(found.values()))]


# %% [markdown]
# Beside it is yours: the small network that comes with minires, with 64 x 64 pixels. There the
# layers are short, so what lies between them weighs more. To see your machine with the real
# network, run `python examples/14_waterfall.py imagenet.safetensors`.

# %%
weights = sys.argv[1] if len(sys.argv) > 1 else "CIFAR10"
models = {precision: minires.resnet50(weights, precision) for precision in ("fp32", "int8")}
with open("examples/images/cat.jpg", "rb") as file:
    data = file.read()
mine, doubts = measure_yours(
    "the waterfall", lambda: measure_waterfall(models, data, rounds=10), lambda fall: fall.doubts
)
theirs, yours, why = recorded.waterfall, mine, recorded.doubts_about("peaks", "waterfall")
listed = {**dict(losses(theirs)), **dict(losses(yours))}
rows = []
for name in listed:
    that, this = (dict(losses(fall)).get(name) for fall in (theirs, yours))
    cells = ["" if that is None else mark(f"{that / theirs.whole.int8:+.1%}", why)]
    cells += ["" if this is None else worked_out(f"{this / yours.whole.int8:+.1%}", doubts)]
    rows.append([name, *cells])
ratio = mark(f"{theirs.whole.fp32 / theirs.whole.int8:.2f}x", why)
gain = worked_out(f"{yours.whole.fp32 / yours.whole.int8:.2f}x", doubts)
rows.append(["INT8 over FP32", ratio, gain])
print(side_by_side("% of INT8's time", rows, [recorded], ["peaks", "waterfall"], doubts))
for name, fall, reasons in [(recorded.name, theirs, why), ("yours", yours, doubts)]:
    print(f"{name}: {mark(fall.ablation[0][0], reasons)}")

# %% [markdown]
# A list like this is worth as much as its line *unexplained*. That should be small beside the
# largest cause. If it is not, the causes were measured badly, or there is one that nobody thought
# of. In the recorded run the peak was measured badly: `vpmaddwd` came out at 1.3 times FP32 on one
# core, and at 1.0 on two. Put the 1.3 into equation 14.2, and hardly anything is unexplained:

# %%
found = dict(losses(theirs))
stated = float(theirs.ablation[0][0].split()[-1].rstrip("x"))  # as printed above
one_core = {peak.name: peak.gops for peak in recorded.peaks}
rho = one_core["vpmaddwd"] / one_core["fma"]
instruction = found["instruction: vpmaddwd"] * (1 / rho - 1 / 4) / (1 / stated - 1 / 4)
unexplained = found["instruction: vpmaddwd"] + found["unexplained"] - instruction
for name, seconds in [("instruction", instruction), ("unexplained", unexplained)]:
    print(f"{name:<12}at {rho:.2f}x: {mark(f'{seconds / theirs.whole.int8:+.1%}', why)}")
assert abs(unexplained) < 0.05 * theirs.whole.int8

# %% [markdown]
# If the ablation's convolutions take another time than the same convolutions in the
# network, minires measures again, and then doubts the whole list. (The picture's *unexplained* is
# of the convolutions by themselves, and the list's is of those in the network.)
#
# ## How near each layer comes to the peak
#
# The instruction sets the peak. Everything else shows as a distance from it. Here is each layer of
# the recorded run, as a share of what as many cores can do ([chapter 13](13_peak)).

# %%
#| alt: Two rows of dots, one for FP32 and one for INT8, over the 54 layers from left to right, as
#|   shares of the peak. Most lie between half of it and all of it. The last layer, fc, lies near
#|   zero in both.
#| caption: Each layer's share of its precision's peak, at 224 x 224. `fc` waits for memory.
#| code: folded
figure, axes = plt.subplots(layout="constrained")
for precision, marker in [("fp32", "o"), ("int8", "s")]:
    name = best_instruction(precision, ISAS[recorded.isa]).name
    peak = recorded.threads * next(p.gops for p in recorded.peaks if p.name == name)
    steps = recorded.layers[precision]
    shares = [100 * row.gops / peak for row in steps]
    axes.plot(shares, marker, markersize=4, color=COLORS[precision], label=f"{precision}, {name}")
starts = [i for i, row in enumerate(steps) if row.name.endswith((".0.conv1", "fc"))]
axes.set_xticks(starts, [steps[i].name.removesuffix(".0.conv1") for i in starts])
axes.set(ylim=(0, None), ylabel="% of the peak")
axes.legend(ncols=2, loc="lower left")
plt.show()

# %% [markdown]
# Look for the pattern, not for the single dot. In each block `conv2` is the 3x3 convolution. It
# has the longest sums, so its epilogue weighs least and its dot is high. `conv3` is 1x1 and makes
# four times as many outputs, each with a short sum and an epilogue that also adds the residual.
# That is one reason why its dot is lower.


# %%
def usual(conv):
    """Find the median speed of the INT8 layers with this name, in GOP/s."""
    return np.median([r.gops for r in recorded.layers["int8"] if r.name.endswith(conv)])


lower = usual("conv3") / usual("conv2")
print(
    f"In INT8 conv3 has {mark(f'{lower:.0%}', recorded.doubts_about('layers'))} of conv2's speed."
)
assert lower < 1

# %% [markdown]
# ## In your browser
#
# Measure what INT8 gains in a browser, whose vectors have 128 bits:
#
# ```{lab} machine
# ```
#
# ## Exercises
#
# **1.** FP32 takes 40 ms and INT8 16 ms. How long is the excess, and how large a part of it would
# have to go for a full 3x?
#
# <details>
# <summary>Answer</summary>
#
# A quarter is 10 ms, so the excess is 6 ms. For 3x INT8 would have to take $40 / 3 = 13.3$ ms: 2.7
# of the 6 ms have to go.
#
# </details>
#
# **2.** Your CPU has no VNNI, and $\rho = 1.3$. The convolutions take 90% of FP32's time. What is
# the most that INT8 can gain, if all the rest takes a quarter?
#
# <details>
# <summary>Answer</summary>
#
# $1 / (0.9 / 1.3 + 0.1 / 4) = 1.39$ times. It is more than 1.3 only because the rest gains 4.
#
# </details>
#
# **3.** `layer1.0.conv1` sums over K = 64, and `layer4.2.conv2` over K = 4608. An instruction
# takes four steps along K for 8 sums, and the epilogue of 8 sums takes as long as 30 instructions.
# Which share of each layer is epilogue?
#
# <details>
# <summary>Answer</summary>
#
# $30 / (64 / 4 + 30) = 65\%$ and $30 / (4608 / 4 + 30) = 2.5\%$. This is why 1x1 layers lie lower.
#
# </details>

# %%
#| cell: The answers, computed
excess = 16 - 40 / 4
assert (excess, round(16 - 40 / 3, 1)) == (6, 2.7)
assert round(1 / (0.9 / 1.3 + 0.1 / 4), 2) == 1.39
assert [round(100 * 30 / (K / 4 + 30), 1) for K in (64, 4608)] == [65.2, 2.5]
