# %% [markdown]
# # 11. Climbing it again in INT8
#
# Four bytes fit where one float was, so this ladder could end four times as high as the last one.
# On one core it nearly does, but only on a CPU that has an instruction for bytes. The loops, the
# panels, the blocks and the threads stay as they were in [chapter 10](10_ladder_fp32). One
# instruction decides.
#
# ## What a byte changes
#
# Count again how many bytes go between registers and memory for one multiply-add. A and B have a
# quarter of the bytes. But a *sum* needs 32 bits in INT8 as well, so a rung that loads and stores
# its sums gains little.

# %%
import matplotlib.pyplot as plt
import numpy as np
from climbing import bytes_near, find, gain, gains, introduce, list_rungs, new_lines, plot_shares
from recorded import runs, worked_out

from minires.ladder.climb import climb, doubts_about
from minires.measure.plots import COLORS
from minires.measure.trust import doubt_pair, mark, time_steadily
from minires.reference import gemm_u8s8_ref

# %%
#| alt: Bars for five rungs. loops 12 bytes in FP32 and 2 in INT8, ordered 12 and 9, tiled 3 and
#|   2.25, panels 1.25 and 0.32, the vector instruction 0.92 and 0.32.
#| caption: Bytes for one multiply-add on AVX2, by arithmetic. From `panels` on, sums stay in
#|   registers, and INT8 moves about a quarter or a third.
#| code: folded
names, height = ["loops", "ordered", "tiled", "panels", "vector"], 0.4
figure, axes = plt.subplots(figsize=(5.6, 3), layout="constrained")
for shift, precision in enumerate(("fp32", "int8")):
    counts = [bytes_near(name, precision) for name in names]
    places = np.arange(len(names)) + height * shift
    bars = axes.barh(places, counts, height, color=COLORS[precision], label=precision)
    axes.bar_label(bars, [f"{count:.2f}" for count in counts], padding=3)
axes.set_yticks(np.arange(len(names)) + height / 2, names)
axes.set(xlabel="bytes a multiply-add", xlim=(0, 14))
axes.invert_yaxis()
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## The ladder
#
# The layer is the same, and so are the rungs. The test is stricter: each rung has to give the
# definition's bytes to the last bit. Integers never round, so the order of the sums does not
# matter.

# %%
list_rungs("int8")
print()
yours = {precision: list(climb(precision, rounds=5)) for precision in ("fp32", "int8")}
introduce("int8", yours["int8"])

# %% [markdown]
# ## loops, ordered, tiled: the compiler's part
#
# In FP32 `loops` waited for each addition. Here the compiler may add in any order. So it turns
# `loops` into vector instructions by itself, and keeps the sums in registers. That is why `loops`
# is several times as fast as in FP32.

# %%
gains("loops", "int8", yours["int8"])
for run in runs("ladders"):
    floats, ints = (find(run.ladders[p], "loops").seconds for p in ("fp32", "int8"))
    print(f"{run.name}: INT8's are {floats / ints:.1f} times as fast")
    assert floats / ints > 3

# %% [markdown]
# `ordered` was the great leap of FP32, because it removed the waiting. Here no waiting is left to
# remove, and 2 bytes become 9. `tiled` brings them back to 2.25. So expect little from both, and
# nothing like the 7 to 9 times of FP32:

# %%
gains("ordered", "int8", yours["int8"])
gains("tiled", "int8", yours["int8"])
for run in runs("ladders"):
    assert gain(run.ladders["int8"], "ordered") < 2 < gain(run.ladders["fp32"], "ordered")

# %% [markdown]
# ## panels: bytes without an instruction for bytes
#
# A group of 32 bits now holds four values along K instead of one. Panels, tile and loop come from
# the same file as in FP32. But this rung may use only what every CPU has. So it takes the bytes out
# of their lane one by one:

# %%
#| output: python
print(new_lines("mul, add of bytes"))

# %%
gains("panels", "int8", yours["int8"])

# %% [markdown]
# ## The instruction
#
# This is where the ladders part. Before VNNI, x86 had `vpmaddubsw`, which makes products of bytes
# and saturates ([chapter 12](12_one_instruction)). So that nothing is cut off, minires has to split
# each activation in two and multiply twice:

# %%
#| output: python
print(new_lines("vpmaddubsw"))

# %%
gains("vpmaddubsw", "int8", yours["int8"])

# %% [markdown]
# On a CPU with AVX2 alone, it is better to widen the bytes to 16 bits and to use `vpmaddwd`: two
# products a lane instead of four, but no cutting off. With VNNI there is `vpdpbusd`: four products
# a lane, added up, in one instruction.

# %%
#| output: python
print(new_lines("vpmaddwd"))
print("\n" + new_lines("vpdpbusd"))

# %%
gains("vector", "int8", yours["int8"])
for run in runs("ladders"):
    names = [result.rung.name for result in run.ladders["int8"][2:]]
    every = {name: gain(run.ladders["int8"], name) for name in names}
    assert "vpdpbusd" not in names or max(every, key=every.get) == "vpdpbusd"

# %% [markdown]
# On a CPU with VNNI, this rung gains more than any other compiled rung. Beside the instruction only
# the tile has changed: with AVX-512 it grows to 6 x 4 vectors, as in FP32.
#
# ## fused: a longer epilogue
#
# FP32 adds a bias and clips. INT8 converts, multiplies, clips, rounds and narrows
# ([chapter 7](07_requantization)). This *epilogue* is paid once for each output. So it weighs most
# where K is small: see exercise 2.

# %%
#| output: python
print(new_lines("requantize"))

# %%
gains("fused", "int8", yours["int8"])

# %% [markdown]
# With VNNI it gains more than in FP32, because the multiplying has become so short.
#
# ## blocks, threads, implicit, engine: four times the room
#
# A, the im2col matrix, has 0.9 MB instead of 3.6. So NumPy writes a quarter of the bytes, and four
# times as many rows fit in the second cache. One thing is new: the padding around the image is not
# 0 but the zero point ([chapter 5](05_eight_bits)).

# %%
for name in "blocks", "threads", "implicit", "engine":
    print(name)
    gains(name, "int8", yours["int8"])
    print()

# %% [markdown]
# `blocks` gains nothing: as in FP32, reading A was no limit. In both runs of the Xeon two threads
# are slower than one: sharing out so little costs more than it saves. `implicit` writes no A. On
# xeon-amx the last gain is another instruction's, `tdpbusd`. On xeon-vnni we have not taken it
# apart.
#
# ## What a share of the peak means
#
# A share compares a rung with what the multiplying instruction can do when it has nothing to wait
# for. With VNNI that is `vpdpbusd`. With AVX2 alone it is `vpmaddwd`, which is exact. Its own peak
# is far from four times FMA's, so a high share of it need not be fast. (`vpmaddubsw` would be
# faster, but it saturates.) With AMX it is `tdpbusd`. Only the last rung uses it, so all others
# have a small share. The last line has that peak as measured a second time, with the ladder. A
# question mark means that the two measurements disagree by more than 15%: then believe neither.

# %%
for run in runs("ladders", "peaks"):
    fma, *others = [peak for peak in run.peaks if peak.operands in ("f32", "u8s8")]
    fused = find(run.ladders["int8"], "fused")
    print(f"{run.name}, on one core:\n  {fma.name:<12}{fma.gops:>5.0f} GFLOP/s")
    again = fused.gops / fused.share
    doubts = doubt_pair("the peak", others[-1].gops, again)
    for peak in others:
        ratio = mark(f"{peak.gops / fma.gops:.1f}x", doubts if peak is others[-1] else [])
        print(f"  {peak.name:<12}{peak.gops:>5.0f} GOP/s, {ratio}")
    print(f"  {others[-1].name}, with the ladder: {mark(f'{again:.0f}', doubts)}")

# %%
#| alt: For each run a bar for each rung of the INT8 ladder, in percent of the peak.
#| caption: Each bar shows how much of the peak a rung reaches, on the cores that it uses. Pale bars
#|   are in doubt.
#| code: folded
plot_shares("int8", yours["int8"])
plt.show()

# %% [markdown]
# ## Four times as high?
#
# Compare the two ladders where one core ends, and where all cores end:

# %%
ladders = {run.name: run.ladders for run in runs("ladders")} | {"yours": yours}
ratios = {}
for rung, of in ("blocks", "one core"), ("engine", "all cores"):
    print(f"{rung}, {of}\n{'':11}{'FP32':>7}{'INT8':>8} GOP/s{'ratio':>7}")
    for name, climbed in ladders.items():
        floats, ints = (find(climbed[precision], rung) for precision in ("fp32", "int8"))
        ratio, doubts = ints.gops / floats.gops, [*floats.doubts, *ints.doubts]
        told = (worked_out if name == "yours" else mark)(f"{ratio:.2f}x", doubts)
        both = [mark(f"{end.gops:.0f}", end.doubts) for end in (floats, ints)]
        print(f"{name:<11}{both[0]:>7}{both[1]:>8}{'':6}{told:>7}")
        ratios[name, rung] = round(ratio, 1)
assert [ratios["xeon-vnni", rung] for rung in ("blocks", "engine")] == [3.9, 3.8]
assert ratios["xeon-amx", "blocks"] == 4.0 < 9 < ratios["xeon-amx", "engine"]

# %% [markdown]
# One core of a CPU with VNNI comes close to four times: 3.9 in one run, and 4.0 in the other. Both
# cores together keep 3.8. With AMX the last rung multiplies whole tiles by one instruction, and
# FP32 has nothing like it. So INT8 ends more than nine times as high. That is far from the peak:
# the layer takes less than a tenth of a millisecond, and waking the second thread takes a good part
# of that. How long it takes changes from run to run, hence the question mark.
#
# On a CPU with AVX2 alone, INT8 cannot do this. There two instructions, `vpmaddwd` and an addition,
# make two multiply-adds a lane. Two FMAs make as many. (Zen 3 adds on another unit, so `vpmaddwd`
# can peak a little above FMA there. The run has 1.3 times, in doubt.) But INT8 still saves memory.
# [Chapter 14](14_waterfall) tells what a whole network gains there.
#
# NumPy's definition does not gain either. NumPy has no library for integer matrices, and its own
# loop is slow. So the definition multiplies in float32. It takes blocks of 512 along K, in which
# the sums are exact: 255 x 128 x 512 is less than $2^{24}$.

# %%
a, b = np.full((784, 1152), 255, np.uint8), np.full((1152, 128), -128, np.int8)
for name, multiply in [("exact float32", gemm_u8s8_ref), ("int32", lambda a, b: np.int32(a) @ b)]:
    assert (multiply(a, b) == -255 * 128 * 1152).all()
    seconds, doubts = time_steadily(name, lambda multiply=multiply: multiply(a, b), runs=3)
    doubts += doubts_about(yours["int8"])  # it was the same minute
    print(f"yours, as {name + ':':<15}{mark(f'{1e3 * seconds:.1f}', doubts)} ms")

# %% [markdown]
# ## Exercises
#
# **1.** Why does `ordered` move 9 bytes for a multiply-add in INT8, and not 12 / 4 = 3?
#
# <details>
# <summary>Answer</summary>
#
# It loads one byte of B, but it loads and stores a sum of four bytes: 1 + 4 + 4.
#
# </details>
#
# **2.** Suppose that the epilogue takes as long as 30 steps along K, and a step takes four values.
# What share of the time is that for K = 1152? And for K = 64, as in `layer1.0.conv1`?
#
# <details>
# <summary>Answer</summary>
#
# K = 1152 has 288 steps: 30 / (288 + 30) = 9%. K = 64 has 16: 30 / (16 + 30) = 65%.
#
# </details>
#
# **3.** A CPU starts two instructions on vectors of 8 lanes a cycle, of any kind. How many
# multiply-adds a cycle do FMA, `vpmaddwd` with its addition, and `vpdpbusd` make?
#
# <details>
# <summary>Answer</summary>
#
# FMA: 2 x 8 = 16. `vpmaddwd` and `vpaddd`: 2 x 8 for two instructions, one pair a cycle, so 16
# again. `vpdpbusd`: 2 x 8 x 4 = 64. (Many CPUs add on a third unit, too, and get beyond 16.)
#
# </details>

# %%
#| cell: The answers, computed
assert bytes_near("ordered", "int8") == 1 + 4 + 4
assert [f"{30 / (K / 4 + 30):.0%}" for K in (1152, 64)] == ["9%", "65%"]
assert (2 * 8 * 1, 2 / 2 * 8 * 2, 2 * 8 * 4) == (16, 16, 64)
