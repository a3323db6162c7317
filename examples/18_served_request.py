# %% [markdown]
# # 18. A served request
#
# Nobody waits for a matrix product. People wait for an answer to a request: here the bytes of a
# photograph arrive, and a label goes back. The network takes most of the time, but not all of it.
# INT8 changes the other parts little. So the whole gains less than the network, and this chapter
# derives by how much.

# %%
import sys

import matplotlib.pyplot as plt
import numpy as np
from recorded import measure_yours, run, side_by_side, tell, worked_out

import minires
from minires.measure.latency import measure_latency
from minires.measure.plots import BLUE, COLORS, GREEN, GREY, PURPLE, RED
from minires.measure.text import format_columns
from minires.measure.trust import mark

# %% [markdown]
# ## From bytes to an answer
#
# Five things happen, one after the other: **decode** the JPEG to pixels, **resize** them and cut
# out the middle, **normalize** them to the numbers that the network was trained with,
# **inference**, and **softmax**, which turns scores into shares. Here are the medians of each in
# the recorded run, for the ImageNet network at 224 x 224, with VNNI. (Chapters 14 and 15 tell other
# times of the same run and network: each part of a run is measured by itself, minutes after the one
# before.)


# %%
def medians_of(latency):
    """Find the median of each part of a request, by precision, in seconds."""
    return {
        one.precision: {part: float(np.median(times)) for part, times in one.seconds.items()}
        for one in latency
    }


recorded = run("xeon-vnni")
medians = medians_of(recorded.latency)
why = recorded.doubts_about("latency")
rows = [
    [part, *(mark(f"{1e3 * medians[p][part]:.2f}", why) for p in medians)]
    for part in medians["fp32"]
]
print(format_columns(["milliseconds", *medians], rows), end="\n\n")
print(tell(recorded, "latency"))

# %%
#| alt: Two stacked bars, FP32 above and INT8 below, a third as long. In both, the grey piece for
#|   inference is by far the longest, and it is much shorter in INT8. The pieces for decode, resize,
#|   normalize and softmax have nearly the same length in both.
#| caption: A request in the recorded run, in medians, which do not add up exactly. Nearly all
#|   of the difference is the grey piece's.
#| code: folded
figure, axes = plt.subplots(figsize=(5.6, 2.2), layout="constrained")
colors = {"decode": BLUE, "resize": GREEN, "normalize": RED, "inference": GREY, "softmax": PURPLE}
for precision, parts in medians.items():
    left = 0.0
    for part, color in colors.items():
        label = part if precision == "fp32" else None
        axes.barh(precision, 1e3 * parts[part], left=left, color=color, label=label)
        left += 1e3 * parts[part]
axes.invert_yaxis()
axes.set_xlabel("milliseconds")
axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
plt.show()

# %% [markdown]
# ## What a faster network brings
#
# Let the network take the share $p$ of a request's time, and let it become $s$ times as fast. The
# rest, $1 - p$, stays. A request that took 1 now takes $(1 - p) + p / s$. So it is faster by
#
# $$ S = \frac{1}{(1 - p) + p / s} \tag{18.1} $$
#
# This is Amdahl's law. However large $s$ gets, $S$ stays below $1 / (1 - p)$. As the network gets
# faster, the rest takes a larger share. You can check the law: put in $p$ and $s$ as measured, and
# compare $S$ with the measured gain of the whole.


# %%
def amdahl(p, s):
    """Compute equation 18.1."""
    return 1 / ((1 - p) + p / s)


def gains(medians):
    """Tell the network's gain, the request's by equation 18.1 and as measured, and its limit."""
    fp32, int8 = medians["fp32"], medians["int8"]
    s, p = fp32["inference"] / int8["inference"], fp32["inference"] / fp32["whole"]
    limit = amdahl(p, float("inf"))
    return {"network": s, "request, 18.1": amdahl(p, s),
            "request": fp32["whole"] / int8["whole"], "at most": limit}  # fmt: skip


amx = run("xeon-amx")
of_runs = {of.name: gains(medians_of(of.latency)) for of in (recorded, amx)}
print(f"{'gain of the':<14}" + "".join(f"{name:>11}" for name in of_runs))
for what in of_runs[recorded.name]:
    cells = (mark(f"{of_runs[of.name][what]:.2f}x", of.doubts_about("latency"))
             for of in (recorded, amx))  # fmt: skip
    print(f"{what:<14}" + "".join(f"{cell:>11}" for cell in cells))
for of_run in of_runs.values():
    assert 1 < of_run["request, 18.1"] < of_run["network"]

# %% [markdown]
# With AMX the network gains twice what it gains with VNNI. The request gains only 1.5 times as
# much, because what is not inference now takes nearly half of it. (The line *at most* is the gain
# if the network took no time.) In xeon-vnni prediction and measurement differ by 6%, because the
# other parts took a sixth less time, too.
#
# If the prediction and the measured gain of the whole differ by more than a few percent, the other
# parts changed, too. For example, a network that needs fewer bytes may leave more of the
# cache to the decoder. Or other programs disturbed one of the two measurements.
#
# ## The median is not enough
#
# The **median** (p50) is the usual wait. Of a hundred requests, one waits longer than the **p99**.
# A server that answers a million requests a day keeps ten thousand people waiting that long. The
# mean tells neither. One very late answer moves it, and then it is a time that nobody waited.
#
# A curve shows all of it at once. Go up to 0.5 and read off the median, and to 0.99 for the p99. A
# long tail at the top means that few requests waited much longer than most.

# %%
#| alt: Two rising curves, one for FP32 and one for INT8, from 0 to 1 over milliseconds. Each is
#|   steep at first and then bends to the right near the top. The one for INT8 lies further left.
#| caption: The share of requests answered after so many milliseconds, in the recorded run.
#| code: folded
figure, axes = plt.subplots(layout="constrained")
for one in recorded.latency:
    ordered = np.sort(1e3 * one.seconds["whole"])
    shares = np.arange(1, len(ordered) + 1) / len(ordered)
    axes.step(ordered, shares, where="post", color=COLORS[one.precision], label=one.precision)
axes.set(xlim=(0, None), ylim=(0, 1.02), xlabel="milliseconds", ylabel="share answered")
axes.legend()
plt.show()

# %% [markdown]
# ## Yours
#
# Here is the same for your machine: percentiles of the whole request, and the gains. Without an
# argument the script takes the small network that comes with minires. Preprocessing has a larger
# share of its requests. `python examples/18_served_request.py imagenet.safetensors` takes the
# ImageNet network.

# %%
weights = sys.argv[1] if len(sys.argv) > 1 else "CIFAR10"
with open("examples/images/cat.jpg", "rb") as file:
    data = file.read()
models = {precision: minires.resnet50(weights, precision) for precision in ("fp32", "int8")}
mine, doubts = measure_yours(
    "the requests",
    lambda: measure_latency(models, data, runs=100, batches=(1, 2, 4, 8)),
    lambda found: [doubt for one in found for doubt in one.doubts],
    tries=2,
)
rows = []
for that, this in zip(recorded.latency, mine, strict=True):
    for name, percentile in [("p50", 50), ("p90", 90), ("p99", 99)]:
        theirs, yours = (1e3 * np.percentile(o.seconds["whole"], percentile) for o in (that, this))
        cells = mark(f"{theirs:.2f}", why), mark(f"{yours:.2f}", doubts)
        rows.append([f"{this.precision}, {name}", *cells])
for what, gain in gains(medians_of(mine)).items():
    cells = mark(f"{of_runs[recorded.name][what]:.2f}x", why), worked_out(f"{gain:.2f}x", doubts)
    rows.append([f"gain, {what}", *cells])
print(side_by_side("milliseconds", rows, [recorded], ["latency"], doubts))

# %% [markdown]
# ## Batches: more images a second, a longer wait
#
# Send several images through the network together, as a *batch*. Each weight is loaded once for
# all of them, and the threads have more to share out. So more images a second can go through, as
# long as the activations of all of them still fit a cache. But nobody gets an answer before the
# whole batch is done. If $B$ images go through at a rate of $r$ images a second, each waits
#
# $$ t = B / r \tag{18.2} $$
#
# once the batch has started. All but the last also wait until the batch is full, the first one
# longest (exercise 3). If a batch of 8 makes $r$ a little larger, it makes $t$ nearly 8 times as
# long. With VNNI a batch of 8 gains less than a tenth in both precisions. With AMX INT8 gains more
# than a quarter: its layers are so short that what is paid once for a layer weighs more. Use
# batches for work that nobody waits for, or on a server that has more requests than it can answer
# singly.

# %%
print("batch   images/s   each waits, ms")
for name, one in [*((recorded.name, one) for one in recorded.latency), (amx.name, amx.latency[1])]:
    print(f"{one.precision}, {name}")
    for batch, rate, _ in one.throughput:
        told = mark(f"{rate:.1f}", one.doubts)
        waits = mark(f"{1e3 * batch / rate:.1f}", one.doubts)
        print(f"{batch:>5}{told:>11}{waits:>17}")

# %% [markdown]
# ## Exercises
#
# **1.** A request takes 64 ms in FP32, and the network takes 60 of them. How much would the request
# gain if the network were 4 times as fast in INT8? What is the most it can gain?
#
# <details>
# <summary>Answer</summary>
#
# $64 / (4 + 60 / 4) = 3.37$ times. A network that takes no time at all leaves 4 ms: 16 times.
#
# </details>
#
# **2.** Of 100 requests 99 take 10 ms, and one takes 510 ms. What are the median, the mean and the
# maximum? A page needs 10 such answers at once. How often does it meet a slow one?
#
# <details>
# <summary>Answer</summary>
#
# The median is 10 ms, the mean 15 ms, the maximum 510 ms. All ten are fast with a probability of
# $0.99^{10} = 90.4\%$, so nearly one page in ten is slow. That is why high percentiles matter.
#
# </details>
#
# **3.** One image takes 20 ms, a batch of 8 takes 80 ms. A request comes every 15 ms. Can you
# answer them singly? How long does the first request of a batch of 8 wait?
#
# <details>
# <summary>Answer</summary>
#
# Singly you answer one in 20 ms, and one comes in 15 ms: the queue grows without end. A batch of 8
# collects its requests in $7 \times 15 = 105$ ms after the first one, and then takes 80 ms. So the
# first waits 185 ms. The batch is done before the next is full, since $80 < 8 \times 15 = 120$.
#
# </details>

# %%
#| cell: The answers, computed
assert round(64 * amdahl(60 / 64, 4) / 64, 2) == round(64 / 19, 2) == 3.37
assert round(amdahl(60 / 64, float("inf"))) == 16
waits = np.array([10.0] * 99 + [510])
assert (np.median(waits), waits.mean(), waits.max()) == (10, 15, 510)
assert round(100 * 0.99**10, 1) == 90.4
assert 1 / 20 < 1 / 15 < 8 / 80
assert (7 * 15 + 80, 80 < 8 * 15) == (185, True)
