# %% [markdown]
# # 10. Climbing the ladder in FP32
#
# From a matrix product's three loops towards the machine's peak, one idea at a time. Each
# rung is checked against the definition before it is timed: a fast wrong answer is worth nothing.

# %%
import matplotlib.pyplot as plt

from minires.kernels.isa import choose_isa
from minires.kernels.microkernel import Microkernel, assembly
from minires.ladder.climb import climb, doubts_about, problem, rungs
from minires.layers import OPERATORS
from minires.measure.trust import percent, verdict

# %% [markdown]
# ## The layer
#
# One convolution of ResNet-50, 3x3 on 28 x 28 pixels with 128 channels in and out: as a matrix
# product, M = 784, N = 128, K = 1152. Here are its rungs, each a file in `minires/ladder/`:

# %%
layer, params, x = problem("fp32")
for rung in rungs("fp32"):
    print(f"{rung.name:<12}{rung.idea}")
apart = rung.prepare(layer, params)(x) - OPERATORS["fp32"]["conv"](layer, params, x)
print(f"the last one sums in another order than the definition: {abs(apart).max():.1e} apart")

# %% [markdown]
# ## The climb
#
# Numbers are of the machine that built this page. A share, or bar, is of the peak of as many cores
# as the rung uses: what they do with nothing to wait for ([chapter 13](13_peak)).

# %%
#| alt: 10_ladder_fp32, a picture
results = list(climb("fp32", rounds=5))
for result in results:
    print(
        f"{result.rung.name:<12}{1e3 * result.seconds:>9.2f} ms{result.gops:>8.1f} GFLOP/s"
        f"{percent(result.share, result.doubts):>6} of the peak"
    )
print(verdict(doubts_about(results)))

plt.figure(figsize=(8, 3.2), layout="constrained")
plt.barh([r.rung.name for r in results], [100 * r.share for r in results])
plt.xlim(0, 100)
plt.xlabel("% of the peak of as many cores as it uses")
plt.gca().invert_yaxis()
plt.show()

# %% [markdown]
# ## What each rung changes
#
# * **numpy**: the definition; its *epilogue* adds bias and residual, and clips. The product is of
#   NumPy's BLAS, a library of such, on all cores: what the others have to beat.
# * **loops**: each product waits for the sum before it, and floats may not be added in another
#   order. **ordered** adds to N sums side by side, so the compiler can make vectors of them.
# * **tiled**: every value that is loaded is used four times. Loads, not products, were the limit.
# * **panels**: the weights are laid out beforehand in the order in which they are read. The sums of
#   a tile are vectors, which stay in registers for all of K. It multiplies, then adds.
# * the rung named after a **vector instruction** (`fma`, say) does both at once.
# * **fused**: the epilogue takes the sums from registers, so that no matrix of sums is written.
# * **blocks**: rows come in blocks that stay in the cache. **threads**: each core takes a share.
# * **implicit**: the im2col matrix is not written. Its rows are addresses.
# * **engine**: what runs whole networks. It also fetches the next panel while it multiplies.
#
# ## The inner loop
#
# What LLVM makes of the microkernel, for this machine: a broadcast of each activation, and its
# products with the weights' vectors.

# %%
kernel = Microkernel.of(choose_isa(), "f32", "activate")
rows, vectors = kernel.rows, kernel.vectors
lines = [line for line in assembly(kernel).splitlines() if "fmadd" in line or "broadcast" in line]
print("\n".join(lines[:8]))
print(f"... {rows} x {vectors} = {rows * vectors} products to {rows} + {vectors} loads")

# %% [markdown]
# **Exercise.** A CPU that does two loads and two multiply-adds a cycle is bound by loads unless a
# tile of R rows and V vectors has R x V > R + V. For which square tile, the smallest, does
# that hold?
#
# *Answer.* Three by three: 9 > 6, where two by two has 4 of each.

# %%
assert next(r for r in range(1, 9) if r * r > 2 * r) == 3
assert rows * vectors > rows + vectors, "nor is this machine's bound by them"
assert layer.macs(OPERATORS["fp32"]["conv"](layer, params, x).shape) == 784 * 128 * 1152
