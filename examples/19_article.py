# %% [markdown]
# # Appendix. The article, seven years later
#
# In July 2019 AnandTech wrote that two Xeon 9282 classify 7844 images a second with ResNet-50, and
# NVIDIA's V100 7636. So is the CPU as fast? The figures are possible, but they do not compare like
# with like: the CPUs take 800 W in INT8, the GPU 300 W in FP16. This page judges each claim by
# arithmetic.

# %%
import sys

import matplotlib.pyplot as plt
from bounds import GOP, format_machines, format_sources, throughput_bounds  # examples/bounds.py
from machines import KNOWN, read_machines  # examples/machines.py

from minires import MiniresError
from minires.measure import plots

# %% [markdown]
# ## What a machine can do at most
#
# An image takes 4.089 billion multiply-adds. Each is two operations, so that is 8.18 GOP. A machine
# with a peak of $P$ operations a second cannot do more than $N$ images a second:
#
# $$
# N \le \frac{P}{8.18 \cdot 10^9} \tag{19.1}
# $$
#
# For the peak you need no machine, only its data sheet: cores, times operations in a cycle, times
# clock. A core of a 9282 has two vector units of 64 bytes, and VNNI makes a multiply-add of each
# byte: $2 \cdot 64 \cdot 2 = 256$ operations a cycle.

# %%
machines = {machine.name: machine for machine in read_machines()}
xeon, pair = machines["Xeon Platinum 8280"], machines["Xeon Platinum 9282"]
tops = 2 * pair.peaks["int8"]
most = 2 * throughput_bounds(pair, "int8")[0]
print(f"two 9282: 2 x 56 x 256 x 2.6 GHz = {tops:.1f} TOP/s")
print(f"{tops:.1f} T / {GOP:.2f} G = {most:.0f} images a second")
assert (round(GOP, 2), round(tops, 1)) == (8.18, 74.5)

# %% [markdown]
# ## The claims
#
# | claim | verdict |
# |---|---|
# | two 9282: 7878 (Intel's page), 7844 (the article) | possible, at 86% of the peak |
# | as fast as a V100 with 7636 | not like with like |
# | two 8280: less than 2000 | a run that crashed; less than 42% of the peak |
# | Titan RTX: 3 times two 8280 | easily: a fifth of its peak is enough |
# | NVIDIA's answer, the T4: 4944 | measured later: even more |
#
# **7878 is possible, but only its vendor saw it.** It is 86% of the peak at the base clock. So a
# seventh of the time is left for everything but multiply-adds. (Version 1 of the network has 6%
# fewer operations. Then it is 81%.) In November 2019, in MLPerf's first round with checked results,
# such a pair made 5966.
#
# **The V100 is not beaten.** The Xeons ran in INT8, the V100 in FP16. On cards that have both, FP16
# has half the peak. The Xeons are two parts of 400 W, and the V100 is one of 300 W. Per watt the
# V100 was 2.6 times as good. And 7844 may be a slip: Intel's own page gives it for the *V100*.
#
# **The reviewer's own server crashed** before it passed 2000, so that is no result. A Titan RTX for
# $2,499 needs a fifth of its peak to be three times as fast, and MLPerf measured 16,563.
#
# **The T4 settled it.** 4944 at 70 W is 7 times as many images a watt as 7878 on the two Xeons.

# %%
assert (round(7878 / most, 2), round(0.94 * 7878 / most, 2)) == (0.86, 0.81)
assert round(2000 / (2 * throughput_bounds(xeon, "int8")[0]), 2) == 0.42
assert round((7636 / 300) / (7878 / 800), 1) == 2.6
assert round((4944 / 70) / (7878 / 800)) == 7
assert throughput_bounds(machines["Titan RTX"], "int8")[0] / 5 > 3 * 2000

# %% [markdown]
# ## Like with like
#
# What would be fair? One version of the network, one precision, one set of rules, and something to
# divide by, such as watts. MLPerf's round of November 2019 has three of the machines, all in INT8.

# %%
#| alt: Bars of images a second and watt. Of MLPerf's three, two Xeon 9282 have 7.5, a Titan RTX 59
#|   and a T4 80. Of the vendors' claims, the Xeons have 10, the V100 25 and the T4 71.
#| caption: Images a second for each watt of TDP. Green was measured under MLPerf's rules, grey is a
#|   vendor's claim, and orange was measured otherwise. Compare green with green.
#| code: folded
try:
    words = sys.argv[1:] if "__file__" in globals() else []  # a notebook's words are Jupyter's
    judged = read_machines(words[0] if words else KNOWN)
except MiniresError as error:
    sys.exit(f"19_article.py: {error}")
figure, axes = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
kinds = {"measurement under": plots.GREEN, "vendor": plots.GREY, "measurement": plots.ORANGE}
shown = [(m, c) for m in judged for c in m.claims if not c.upper_limit]
for row, (machine, claim) in enumerate(shown):
    by_watt = claim.images_per_second / claim.parts / machine.watts
    named = [color for kind, color in kinds.items() if claim.kind.startswith(kind)]
    bar = axes.barh(row, by_watt, color=[*named, plots.SKY][0])
    axes.bar_label(bar, fmt="%.3g", padding=2)
names = [f"{claim.parts} x {machine.name}, {claim.precision}" for machine, claim in shown]
axes.set_yticks(range(len(names)), names)
axes.margins(x=0.14)
axes.set_xlabel("images a second and watt")
axes.invert_yaxis()
plt.show()

# %% [markdown]
# A T4 makes 11 times as many images a watt as the two Xeons, and a Titan RTX 8 times. So in 2019
# the GPUs were far ahead, though the article's own figures do not show it.
#
# The fairest comparison takes one card and one program, with two precisions. [On an H100](../gpu),
# at batch 128, minires makes 1.57 times as many images in INT8 as in FP16. The ratio of the peaks
# is 2. At batch 256, its best, INT8 makes 46% of what TensorRT reached under MLPerf's rules.

# %%
pair_by_watt = 5966 / 800
assert round(5622 / 70 / pair_by_watt) == 11
assert round(16563 / 280 / pair_by_watt) == 8
assert round(41127 / 88714, 2) == 0.46

# %% [markdown]
# ## Judge your own
#
# Put your machines into a file in the form of `examples/machines.toml`, and let
# `python examples/19_article.py FILE` judge them in place of these:

# %%
print(format_machines(judged))

# %%
#| cell: What each figure is, and where it comes from
print(format_sources(judged))

# %% [markdown]
# ## Exercises
#
# **1.** The 9282 are said to reach 86% of their peak. What would two 8280 do at that share?
#
# <details>
# <summary>Answer</summary>
#
# A pair has $2 \cdot 28 \cdot 256 \cdot 2.7 \cdot 10^9 = 38.7$ TOP/s. By equation 19.1 that is 4733
# images a second at the peak, and 4070 at 86%: twice what the reviewer saw before the crash.
#
# </details>
#
# **2.** Under AVX-512 a Xeon lowers its clock. How low may the 9282's clock be if 7878 is still to
# be possible?
#
# <details>
# <summary>Answer</summary>
#
# At 100% of the peak, $2.6 \cdot 7878 / 9115 = 2.25$ GHz. At a share of 90%, which good kernels
# reach, it must not fall below 2.5 GHz.
#
# </details>
#
# **3.** The table's *memory* is a second bound. For which claims is it the lower one? When may a
# machine be faster than that?
#
# <details>
# <summary>Answer</summary>
#
# For all GPUs but the V100: their tensor cores grew faster than their memory. The bound assumes
# that each activation goes to the memory and comes back. A cache can hold it until the next layer
# reads it. Then the machine may be faster. Fusing layers helps in the same way.
#
# </details>
#
# **4.** Judge your own CPU. Look up its cores, clock, bandwidth and TDP, and write a file. A core
# without VNNI, but with two AVX2 units, makes $2 \cdot 8 \cdot 2 = 32$ operations a cycle in FP32.
#
# <details>
# <summary>Answer</summary>
#
# For a laptop of 4 such cores at 3 GHz it is 384 GOP/s, and 47 images a second at most:
#
#     [[machine]]
#     name = "My laptop"
#     cores = 4
#     clock_ghz = 3.0
#     ops_per_cycle = { fp32 = 32 }
#     bandwidth_gb_s = 40
#     tdp_w = 15
#     kind = "specification"
#
# </details>

# %%
#| cell: The answers, computed
print(f"two 8280: {0.86 * 2 * throughput_bounds(xeon, 'int8')[0]:.0f} images a second")
print(f"the 9282's clock: {2.6 * 7878 / most:.2f} GHz, or {2.6 * 7878 / most / 0.9:.2f} at 90%")
for machine in machines.values():
    by_peak, by_memory = throughput_bounds(machine, list(machine.peaks)[-1])  # the fewest bits
    assert (by_memory < by_peak) == (machine.name in ("Titan RTX", "Tesla T4", "H100 SXM"))
assert round(4 * 3 * 32 / GOP) == 47
