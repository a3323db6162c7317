# %% [markdown]
# # 13. Your machine's peak
#
# A fraction of the peak says more than a time: it says how much is left. The peak is arithmetic,
# lanes x products x 2 x rate x clock, but the clock moves, and the rate, in instructions a cycle,
# is in no data sheet that one has at hand. So it is measured.

# %%
from functools import partial

import matplotlib.pyplot as plt

from minires.ladder.climb import problem, rungs
from minires.measure.machine import format_machine, measure_machine
from minires.measure.peak import peak
from minires.measure.trust import doubt_share, time_steadily, verdict

# %% [markdown]
# ## Measuring it
#
# A loop that does nothing but multiply and add in registers: as many sums beside each other as the
# latency asks for, no loads, no stores. In between, a chain of instructions that take one cycle
# each tells the clock. `minires peak` prints the same. What else runs can only make a round
# slower, so the best of many counts, if the best of another half of them agrees.

# %%
peaks, memory = measure_machine()
print(format_machine(peaks, memory).partition("what was timed")[0].rpartition("\n")[0])

# %% [markdown]
# ## What was timed
#
# The inner loop, as the compiler left it: each line has its own sum, so none waits for another.

# %%
print(peaks[0].assembly)

# %% [markdown]
# ## The roofline
#
# Few operations a byte, and the memory is the limit; many, and the arithmetic is. A layer should
# lie to the right of the corner between the two (Williams et al. 2009). Here is one on it, the 3x3
# convolution of chapters 10 and 11: what its roof allows, and what the top rung takes. In INT8 it
# moves a quarter of the bytes, so it lies further to the right.

# %%
#| alt: 13_peak, a picture
slowest, operations = memory[-1].all, 2 * 784 * 128 * 1152
figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
intensities = [2**e for e in range(-2, 11)]
predicted, measured, intensity, doubts = {}, {}, {}, []
for precision, size in [("fp32", 4), ("int8", 1)]:
    roof, moved = peak(precision).all_gops, size * (2 * 784 * 128 + 128 * 1152)
    allowed = max(operations / roof, moved / slowest) / 1e9
    layer, params, x = problem(precision)
    run = rungs(precision)[-1].prepare(layer, params)
    taken, differ = time_steadily(precision, partial(run, x))
    predicted[precision], measured[precision] = allowed, taken
    intensity[precision] = operations / moved
    doubts += differ + peak(precision).doubts + doubt_share(precision, allowed / taken)
    bent = sorted([*intensities, roof / slowest])
    line = axes.loglog(bent, [min(roof, i * slowest) for i in bent], label=precision)
    axes.plot(intensity[precision], operations / taken / 1e9, "o", color=line[0].get_color())
    print(
        f"{precision}: {intensity[precision]:.0f} operations a byte, the corner is at "
        f"{roof / slowest:.0f}; {1e3 * allowed:.2f} ms allowed, {1e3 * taken:.2f} ms taken"
    )
print(verdict(doubts))
axes.set(xlabel="operations a byte", ylabel="10⁹ operations a second", title="from memory")
axes.legend()
plt.show()

# %% [markdown]
# Nothing is faster than its roof. Where it seems so, the roof was measured while the machine did
# something else; the line above says that, and another run may do better.
#
# **Exercise.** Predict how much faster this layer is in INT8. *Answer.* Where it is to the right of
# both corners, by the ratio of the peaks; the epilogue and the loads take their share of it.

# %%
ratios = {
    what: t["fp32"] / t["int8"] for what, t in [("predicted", predicted), ("measured", measured)]
}
print(", ".join(f"{what} {ratio:.2f}x" for what, ratio in ratios.items()))
assert intensity["int8"] == 4 * intensity["fp32"], "a quarter of the bytes for the same operations"
