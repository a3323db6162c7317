# %% [markdown]
# # 10. Climbing the ladder in FP32
#
# A matrix product is three loops. Compiled as they are, they reach 1% or 2% of what a core can do.
# This chapter climbs from there to the engine, one idea at a time. You will see that most of the
# climb is not about multiplying at all. It is about what a multiply-add has to wait for.
#
# ## The layer
#
# One convolution of ResNet-50 is enough: 3x3, on 28 x 28 pixels, with 128 channels in and out. As a
# matrix product C = A B ([chapter 2](02_im2col)) it has M = 784 rows, N = 128 columns and
# K = 1152 products for each sum: 116 million multiply-adds. Most rungs are a short file in
# `minires/ladder/`; the others are pieces of the engine. Before a rung is timed, its result is
# compared with the definition's: a fast wrong answer is worth nothing. (Sums in another order round
# differently, so the two differ a little.)

# %%
import climbing
import matplotlib.pyplot as plt
from climbing import find, gain, gains, introduce, list_rungs, plot_shares, show
from recorded import runs

from minires.kernels.isa import ISAS
from minires.ladder.climb import climb
from minires.measure.trust import mark

list_rungs("fp32")

# %% [markdown]
# ## Whose figures these are
#
# Each section below prints the same few lines. First comes arithmetic: how many bytes go between
# the registers and the memory for one multiply-add. It is done for AVX2; wider vectors need fewer.
# Then come times, and the gain over the rung before. Three runs were recorded, and each has a name.
# `xeon-vnni` and `xeon-amx` are one machine: in the first AMX is left out.
# **Yours** are of the machine that built this page. A question mark says that a figure is in doubt,
# because runs of the same thing differed too much. If a gain of yours is too doubtful to tell, you
# see the question mark alone. The text concludes from arithmetic and from recorded figures, never
# from yours.

# %%
yours = list(climb("fp32", rounds=5))
introduce("fp32", yours)

# %% [markdown]
# ## loops: as they are written down
#
# Three loops, one multiply-add inside. Each needs a value of A, one of B, and the sum so far.

# %%
#| alt: Grids A, B and C. A cell of A and a cell of B are loaded, with arrows to the right in A and
#|   down in B. A cell of C is stored.
#| caption: One step of `loops`. The next one goes on along A and B, and back to the same cell of C.
#| output: python
show("loops")

# %%
gains("loops", "fp32", yours)
for run in runs("ladders", "peaks"):
    clock = next(peak.clock for peak in run.peaks if peak.operands == "f32")
    cycles = find(run.ladders["fp32"], "loops").seconds * 1e9 * clock / climbing.PRODUCTS
    print(f"{run.name}: {cycles:.1f} cycles a multiply-add")
    assert 1.8 < cycles < 4.5

# %% [markdown]
# "Before" is NumPy here, which calls a library that people have tuned for decades. Why are our
# loops so slow? Compare the cycles above with those of one addition: three on Zen 3, and two or
# three on the Xeons ([uops.info](https://uops.info), VADDSS). Each addition waits for the sum that
# the one before makes. The compiler may not change this, because float additions in another order
# give other bits. In Zen 3's three cycles its two FMA units could have done 2 x 8 x 3 = 48
# multiply-adds. The loops did one. One of 48 is 2%.
#
# ## ordered: many sums side by side
#
# Swap the two inner loops. Now the inner loop goes along a row of C, so each step adds to
# *another* sum, and none waits. Eight of them fit in a vector of AVX2.

# %%
#| alt: A cell of A is in a register. Four cells in a row of B are loaded, four in a row of C are
#|   loaded and stored, with arrows to the right in both.
#| caption: One step of `ordered`, with vectors of four lanes: one value of A serves a row of B.
#| output: python
show("ordered")

# %%
gains("ordered", "fp32", yours)
for run in runs("ladders"):
    climbed = run.ladders["fp32"]
    every = {result.rung.name: gain(climbed, result.rung.name) for result in climbed[1:]}
    assert max(every, key=every.get) == "ordered"

# %% [markdown]
# The traffic has not changed at all: 12 bytes before, 12 bytes after. Yet in every recorded run
# this is the largest gain of all rungs. The waiting is gone, and so the compiler can use vectors.
#
# ## tiled: use what you have loaded
#
# Those 12 bytes are the next limit. For one multiply-add, `ordered` loads a value of B, loads a
# sum, and stores the sum. So take four rows and four steps along K at once. A value of B now serves
# four rows, and a sum takes four products before it is stored: 4 + 4 + 4 values for 16
# multiply-adds. Before, it was 3 values for one.

# %%
#| alt: Four by four cells of A are in registers. As many of B are loaded, as many of C are loaded
#|   and stored, with arrows to the right in both.
#| caption: One step of `tiled`: 4 x 4 values of A stay while the step runs along B and C.
#| output: python
show("tiled")

# %%
gains("tiled", "fp32", yours)
assert all(gain(run.ladders["fp32"], "tiled") < 4 for run in runs("ladders"))

# %% [markdown]
# The bytes fall to a quarter, but the time does not: one limit is gone and the next one shows. On
# AVX2 the 16 values of A, each copied to all lanes, would fill all 16 vector registers. So some of
# them wait in memory after all. (That traffic is not in the count.)
#
# ## panels: keep the sums
#
# Why store a sum at all before it is done? A tile of 4 rows and 2 vectors of columns has 8 vectors
# of sums. They stay in registers for all of K. The columns of B for one tile, a *panel*, are laid
# out beforehand in the order in which they are read. Python cannot name a vector register, so from
# here on the code writes LLVM IR: `load`, `splat` (copy a value to all lanes) and `emit` (multiply
# and add).

# %%
#| alt: Four cells in a column of A and eight in a row of B are loaded. Four by eight cells of C are
#|   in registers. Arrows run along K, to the right in A and down in B.
#| caption: One step of `panels`: a tile of sums stays in registers while the step runs along K.
#| output: python
show("panels")

# %%
gains("panels", "fp32", yours)

# %% [markdown]
# ## The vector instruction
#
# So far one instruction made a product and another one added it. An FMA does both, and rounds once:
# up to twice the peak. The tile is larger, too. R rows and V vectors need R + V loads for R x V
# instructions. AVX2 has 16 registers, enough for 6 x 2 sums; AVX-512 has 32, enough for 6 x 4.
# [Chapter 12](12_one_instruction) shows the loop that LLVM makes of this.

# %%
#| alt: Six cells of A and eight of B are loaded, six by eight cells of C are in registers.
#| caption: The same step with a larger tile, here of 6 rows.
#| output: python
show("vector")

# %%
gains("vector", "fp32", yours)

# %% [markdown]
# ## fused: finish in registers
#
# The sums still need their bias and ReLU. Until now, NumPy did that afterwards: write the sums,
# read them, write them with the bias, read those, write them clipped. That is five times four bytes
# for each output. The *epilogue* does it all while the sums are in registers, and writes once.

# %%
#| alt: A tile of six by eight cells of C is stored, with an arrow down to the next tile.
#| caption: At the end of K the finished values are stored, and nothing is read.
#| output: python
show("fused")

# %%
gains("fused", "fp32", yours)

# %% [markdown]
# Each sum takes K multiply-adds, and K is 1152 here, so there is little to gain. In a 1x1
# convolution of 64 channels K is 64, and these bytes weigh 18 times as much.
#
# ## blocks: stay in the cache
#
# Each panel of B meets all rows of A. A has 3.6 MB, more than the second cache holds. So A comes
# from *far*, again for each panel: 8 of them on AVX2, 2 on AVX-512. Take a block of rows that fits,
# and let it meet *all* panels. Then go on to the next block.

# %%
#| alt: The upper half of A is in the second cache. An arrow runs along B, from panel to panel.
#| caption: A block of A stays in the cache while panel after panel of B goes by.
#| output: python
show("blocks")

# %%
gains("blocks", "fp32", yours)
for run in runs("ladders", "memory"):
    products = find(run.ladders["fp32"], "fused").gops / 2
    before = products * climbing.bytes_far("fused", "fp32", ISAS[run.isa])
    third = next(level.one for level in run.memory if level.level == "L3")
    reads = mark(f"{third:.0f}", run.doubts_about("memory"))
    print(f"{run.name}: needs {before:.0f} GB/s, a core reads {reads} GB/s from L3")
    assert before < third / 2
assert all(0.6 < gain(run.ladders["fp32"], "blocks") < 1.5 for run in runs("ladders"))

# %% [markdown]
# With AVX2 half of the traffic is gone, but the time is much the same. Could you have known? Yes:
# the last lines say that `fused` asked the third cache for a fraction of what it can give. `blocks`
# pays where many cores share one cache, or where A comes from memory. An idea that removes a limit
# helps only if that *was* the limit.
#
# ## threads: a share for each core
#
# Rows of C do not depend on each other. Each thread takes a share, and all wait once, at the end.
# For each multiply-add nothing changes.

# %%
#| alt: The upper halves of A and C belong to the first core, the lower halves to the second.
#| caption: Each core has its rows of A and C. All of them read B.
#| output: python
show("threads")

# %%
gains("threads", "fp32", yours)
assert all(gain(run.ladders["fp32"], "threads") < run.threads for run in runs("ladders"))

# %% [markdown]
# Two cores, and hardly any gain; on xeon-amx even a loss. One reason is a part that is not shared
# out: NumPy still writes the im2col matrix on one core, while the other waits. Exercise 3 takes
# that for the only reason. It is not: the second core has to be woken, too, and finds its rows of
# A in the first one's cache.
#
# ## implicit: no matrix A
#
# A row of A is nine pixels of the input, as addresses. In NHWC three of them are neighbours, so a
# row is three runs of memory, always the same distance apart ([chapter 2](02_im2col)). The
# microkernel reads them where they are. What remains is to copy the input once, with its padding.

# %%
#| alt: In place of A stands the grid of the input's pixels. In three rows of it, three neighbouring
#|   pixels each are loaded.
#| caption: Three runs of three pixels are one row of A, which nobody writes.
#| output: python
show("implicit")

# %%
gains("implicit", "fp32", yours)

# %% [markdown]
# ## engine: fetch ahead
#
# The last rung is the code that runs whole networks. While it multiplies with one panel, it asks
# for the next panel and the next rows, so that they are in the second cache in time. Here one layer
# runs over and over, and its weights are in the cache already. So fetching ahead brings nothing
# here: on the Xeons the engine is even a little slower. In a network 53 convolutions take turns,
# and their weights come from the third cache or from memory. The engine also deals out smaller
# pieces of work: a thread that is done helps the others. That pays where threads are many, or
# disturbed.

# %%
#| alt: The step of the vector instruction. Beside its panel of B the next one is fetched for later.
#| caption: The step is the same. The next panel is on its way meanwhile.
#| output: python
show("engine")

# %%
gains("engine", "fp32", yours)

# %% [markdown]
# ## The whole climb
#
# Each bar shows how much of the peak a rung reaches, on the cores that it uses. *Peak* means
# multiply-adds that never wait ([chapter 13](13_peak)).

# %%
#| alt: For each run a bar for each rung, in percent of the peak: shortest for loops.
#| caption: Pale bars are in doubt. Up to `blocks` a rung uses one core, but NumPy uses all.
#| code: folded
plot_shares("fp32", yours)
plt.show()

# %% [markdown]
# ## Exercises
#
# **1.** How many bytes does one multiply-add move with a tile of 8 rows by 3 vectors of 8 lanes?
# Leave out the sums, which are stored once for all of K.
#
# <details>
# <summary>Answer</summary>
#
# A step along K loads 8 + 24 = 32 values of 4 bytes and makes 8 x 24 = 192 multiply-adds:
# 128 / 192 = 0.67 bytes. (But 8 x 3 sums do not fit in 16 registers.)
#
# </details>
#
# **2.** A core does two loads and two FMAs a cycle. Loads limit it unless a tile of R rows and V
# vectors has R x V > R + V. What is the smallest square tile with that?
#
# <details>
# <summary>Answer</summary>
#
# Three by three: 9 > 6. Two by two has 4 of each, which just balances.
#
# </details>
#
# **3.** Say that `blocks` takes 1.9 ms and `threads` 1.3 ms, on two cores. How long is the part
# that is not shared out? How long would `implicit` take if it removed all of that?
#
# <details>
# <summary>Answer</summary>
#
# Call the parts s and p: s + p = 1.9 and s + p/2 = 1.3, so p = 1.2 ms and s = 0.7 ms. Without s,
# 0.6 ms would remain. (A real `implicit` still copies the padded input on one core.)
#
# </details>
#
# **4.** For which K would `fused` save as many bytes as the inner loop of the FMA's tile moves?
#
# <details>
# <summary>Answer</summary>
#
# It saves 16 bytes an output, so 16/K for each multiply-add. The loop moves
# (6 + 16) x 4 / (6 x 16) = 0.92. They are equal at K = 17: less than any layer of ResNet-50 has.
#
# </details>

# %%
#| cell: The answers, computed
assert round((8 + 3 * 8) * 4 / (8 * 3 * 8), 2) == 0.67
assert next(side for side in range(1, 9) if side * side > 2 * side) == 3
serial = 2 * 1.3 - 1.9
assert round(serial, 1) == 0.7
assert round((1.9 - serial) / 2, 1) == 0.6
assert round(16 / ((6 + 16) * 4 / (6 * 16))) == 17
