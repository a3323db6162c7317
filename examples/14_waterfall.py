# %% [markdown]
# # 14. The waterfall: where the 4x goes
#
# Four bytes fit where one float was. So you might expect INT8 to take a quarter of FP32's time.
# With vector instructions it takes more, and this chapter looks for each millisecond of the
# difference. Without VNNI nearly all of the answer is the instruction: INT8's peak is not four
# times FP32's at all. With it, the answer is work that no instruction makes shorter.
#
# ## The bars add up
#
# Call the time of part $i$ of the network $t_i$ in FP32 and $t'_i$ in INT8. An ideal part takes
# $t_i / 4$. So its *excess*, what it takes beyond a quarter, is $t'_i - t_i / 4$. Add that up over
# all parts, and the times of the whole network appear:
#
# $$ T' = \frac{T}{4} + \sum_i \left( t'_i - \frac{t_i}{4} \right) \tag{14.1} $$
#
# No bar can get lost: the sum is exact. The time between the layers is a part as well. It is called
# *rest*: the time of the whole, less the times of all layers. A part that became more than four
# times as fast has a negative bar. That happens where FP32 loses more than four times what INT8
# loses. The rest can be negative by chance, because it is a difference of two measurements.

# %%
import sys

import matplotlib.pyplot as plt
import numpy as np
from recorded import measure_yours, run, runs, side_by_side, tell, worked_out

import minires
from minires.kernels.isa import ISAS
from minires.measure.peak import best_instruction
from minires.measure.plots import COLORS
from minires.measure.trust import mark
from minires.measure.waterfall import measure_waterfall

recorded = run("xeon-vnni")
bars = sum(part.excess for part in recorded.waterfall.parts)
assert abs(recorded.waterfall.whole.fp32 / 4 + bars - recorded.waterfall.whole.int8) < 1e-9

# %% [markdown]
# ## The recorded run
#
# This is the ImageNet network with one photograph of 224 x 224 pixels. `xeon-vnni` is a CPU with
# VNNI that also has AMX, but AMX was left out (`MINIRES_ISA=avx512bf16`). Read the upper picture
# from top to bottom: it starts at a quarter of FP32's time, each part adds its excess, and the end
# is INT8's time. The upper scale says how many times as fast as FP32 that is. Green bars are work
# before the network. The lower picture splits the convolutions' excess by its causes.

# %%
#| alt: Horizontal bars, from top to bottom. A long blue bar is a quarter of FP32's time. Below it
#|   each stage of the network is a short bar that begins where the one before ends. Those of layer1
#|   and of the rest are the longest, and layer4's leads back. A second blue bar is INT8's time, a
#|   little longer than the first. Green bars follow for decode, resize and normalize. A lower panel
#|   has four bars for the causes. The epilogue's adds most, and unexplained, the longest, leads
#|   back below zero.
#| caption: The waterfall of the recorded run. INT8 keeps 3.6 of the instruction's 3.9 times.
print(tell(recorded, "waterfall"))
recorded.waterfall.plot()

# %% [markdown]
# ## The causes
#
# A part tells where the time went. To know *why*, leave one thing out and time it again. That is
# called an *ablation*. The convolutions have three causes. Two can be left out:
#
# * The **epilogue**. Let the kernels store their sums as they are. What that saves is the
#   epilogue's time. INT8 has as many sums as FP32, of 32 bits each, so a register holds no more of
#   them. Its epilogue even does more: it converts, scales, rounds and clips.
# * **Edges** of tiles. A tile has a fixed number of rows. The last one hangs over the edge, and
#   its surplus rows are computed for nothing.
# * The **instruction** can only be computed. Take the FP32 time $t$ that is
#   neither epilogue nor edges. If INT8's instruction peaks at $\rho$ times FP32's, that work
#   should take $t / \rho$:
#
# $$ \text{instruction} = t \left( \frac{1}{\rho} - \frac{1}{4} \right) \tag{14.2} $$
#
# With VNNI $\rho$ is nearly 4, and this cause is nearly nothing. Without it, take an exact sequence
# with $\rho = 1.3$: the cause is $0.52\,t$. With AMX $\rho$ is far above 4, and the cause is a
# gain.

# %%
assert round(1 / 1.3 - 1 / 4, 2) == 0.52

# %% [markdown]
# ## One list of all losses
#
# Parts and causes overlap: an epilogue is time in some stage. So put them into one list. The
# convolutions are split by cause, and every other part stands for itself. What remains is
# *unexplained*, and stays in the list as that. So the list begins with a quarter of FP32's time
# and ends with INT8's. A plus is lost, a minus is gained. The largest loss comes first.


# %%
def losses(fall):
    """List what leads from a quarter of FP32's time to INT8's, in seconds, the largest first."""
    found = {cause.partition(":")[0]: seconds for cause, seconds in fall.ablation[:-1]}
    for part in fall.parts[:-1]:
        if not part.name.startswith(("conv", "layer")):  # those are split by cause
            found[part.name] = part.excess
    found["rest"] = fall.parts[-1].excess
    listed = sorted(found.items(), key=lambda item: -item[1])
    unexplained = fall.whole.int8 - fall.whole.fp32 / 4 - sum(found.values())
    return [("FP32 / 4", fall.whole.fp32 / 4), *listed, ("unexplained", unexplained),
            ("INT8", fall.whole.int8)]  # fmt: skip


# %% [markdown]
# The second column is the same machine, but INT8 multiplies with AMX. The last is yours: the small
# network that comes with minires, with 64 x 64 pixels. There the layers are short, so what lies
# between them weighs more. To see your machine with the real network, run
# `python examples/14_waterfall.py imagenet.safetensors`.

# %%
weights = sys.argv[1] if len(sys.argv) > 1 else "CIFAR10"
models = {precision: minires.resnet50(weights, precision) for precision in ("fp32", "int8")}
with open("examples/images/cat.jpg", "rb") as file:
    data = file.read()
mine, doubts = measure_yours(
    "the waterfall", lambda: measure_waterfall(models, data, rounds=10), lambda fall: fall.doubts
)
told, parts = [recorded, run("xeon-amx")], ("peaks", "waterfall")
columns = [(of.waterfall, mark, of.doubts_about(*parts)) for of in told]
columns.append((mine, worked_out, doubts))
rows = [
    [name, *(write(f"{1e3 * dict(losses(fall))[name]:+.2f}", why) for fall, write, why in columns)]
    for name, _ in losses(recorded.waterfall)
]
print(side_by_side("milliseconds", rows, told, parts, doubts))

# %% [markdown]
# A list like this is worth as much as its line *unexplained*. That should be small beside the
# largest cause. If it is not, the causes were measured badly, or there is one that nobody thought
# of. Look at the two recorded columns with that in mind:
#
# * With VNNI the largest losses are the epilogue and the rest. The rest takes 0.3 ms in both
#   precisions: Python calls the network, and the logits are copied. Then comes the input, which is
#   checked and quantized. *Unexplained* is not small beside these, and it is a gain. The picture
#   shows where: `layer4` is 4.7 times as fast. One of its 3x3 layers takes 0.76 ms in FP32, 0.29
#   more than its peak allows. In INT8 it takes 0.16 ms, only 0.04 more. The third cache needs 0.21
#   ms for the layer's weights in FP32, and 0.05 in INT8. If that does not hide behind the
#   multiplying, it explains INT8's time. FP32 takes another 0.08 ms, and we do not know what for.
# * With AMX the list breaks down. A 31st of FP32's time is 0.7 ms for all convolutions. They took
#   2.7. The list has no line for reading, and [chapter 13](13_peak) found 48 of 54 layers to the
#   left of the corner, where reading takes longer than multiplying. Equation 13.2, which knows
#   both, asks for 1.5 ms. What takes the others is not measured.
#
# The convolutions by themselves took 5.31 ms in INT8, and 5.57 in the network. So a line of theirs
# that is shorter than 0.26 ms says little. (Beyond 15% minires measures again, and then doubts the
# whole list. The picture's *unexplained* is of the convolutions by themselves, and the list's is of
# those in the network.)
#
# ## What a network keeps of the peak
#
# In all recorded runs, and in yours: both times, INT8's gain, and how many times FP32's peak its
# instruction has.

# %%
every = [(of.name, of.waterfall, mark, of.doubts_about(*parts)) for of in runs(*parts)]
print(f"{'ms':<10}{'FP32':>7}{'INT8':>7}{'gain':>7}  peak")
for name, fall, write, why in [*every, ("yours", mine, worked_out, doubts)]:
    times = [mark(f"{1e3 * t:.1f}", why) for t in (fall.whole.fp32, fall.whole.int8)]
    gain = write(f"{fall.whole.fp32 / fall.whole.int8:.2f}", why)
    peak = mark(fall.ablation[0][0].split()[-1], why)
    print(f"{name:<10}{times[0]:>7}{times[1]:>7}{gain:>7}  {peak}")
vnni, amx = columns[0][0].whole, columns[1][0].whole
assert round(vnni.fp32 / vnni.int8, 1) == 3.6
assert round(amx.fp32 / amx.int8, 1) == 6.5

# %% [markdown]
# Without VNNI INT8 gains little: 1.4 times in that run. [Chapter 11](11_ladder_int8) has 1.3 for
# its peak, which fits better than 1.02. One of these measurements was disturbed, and both are in
# doubt. With VNNI the network keeps most of its four times. AMX peaks at 31 times FP32, and the
# network keeps 6.5 of that. A faster instruction helps less and less, because what it does not do
# remains. (Other pages time other things, minutes apart: chapter 15 the steps that multiply,
# chapter 18 the network within a request, the README many calls in a row. So they tell 3.6 to 3.8
# with VNNI, and 6.5 to 8.4 with AMX.)
#
# ## How near each layer comes to the peak
#
# The instruction sets the peak. Everything else shows as a distance from it. Here is each layer of
# the recorded run, as a share of what as many cores can do ([chapter 13](13_peak)).

# %%
#| alt: Two rows of dots, one for FP32 and one for INT8, over the 54 layers from left to right, as
#|   shares of the peak. FP32's lie near 85% and fall to two thirds in layer4. INT8's lie between
#|   half and 87% in layer1, rise, and fall to about 70% in layer4. The last layer, fc, lies near
#|   zero in both.
#| caption: Each layer's share of its precision's peak, at 224 x 224. `fc` waits for its weights,
#|   and so does most of layer4, FP32 longer than INT8.
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
# Look for the pattern, not for the single dot. In each block `conv2` is the 3x3 convolution. It has
# the longest sums, so its epilogue weighs least, and up to layer3 its dot is high. In layer4 its
# weights come late. `conv3` is 1x1 and makes four times as many outputs, each with a short sum and
# an epilogue that also adds the residual. That is one reason why its dot is lower.


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
# takes four values along K for 8 sums, and the epilogue of 8 sums takes as long as 30 instructions.
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
