"""
Climbing the ladder in FP32
===========================

From the three loops that define a matrix product to a kernel near the machine's peak, one idea at
a time. Each rung is checked against the definition before it is timed: a fast wrong answer is
worth nothing.
"""

import matplotlib.pyplot as plt

from minires.kernels.ladder import LAYER, climb, problem, rungs
from minires.kernels.simd import assembly, choose_isa
from minires.model import OPERATORS

# %%
# The layer
# ---------
#
# One convolution of ResNet-50, 3x3 on 28 x 28 pixels with 128 channels in and out: as a matrix
# product, M = 784, N = 128, K = 1152. These are the rungs that this machine can climb:

layer, params, x = problem("fp32")
for rung in rungs("fp32"):
    print(f"{rung.name:<10}{rung.idea}")

# %%
# The climb
# ---------
#
# Numbers are of the machine that built this page. A rung's share is of the peak of as many cores
# as it uses.

results = list(climb("fp32"))
for result in results:
    print(
        f"{result.rung.name:<10}{1e3 * result.seconds:>9.2f} ms{result.gops:>8.1f} GFLOP/s"
        f"{result.share:>6.0%} of the peak"
    )

plt.figure(figsize=(8, 3.2), layout="constrained")
plt.barh([r.rung.name for r in results], [r.gops for r in results])
plt.xlim(0, max(r.gops / r.share for r in results))
plt.xlabel("GFLOP/s; the axis ends at the peak")
plt.gca().invert_yaxis()
plt.show()

# %%
# Why each rung is faster
# -----------------------
#
# * **loops** to **ordered**: the innermost loop walks along a row of both matrices, so that a
#   cache line, once fetched, is used whole, and the compiler can make vectors of neighbours.
# * **tiled**: every value that is loaded is used four times. Loads, not products, are the
#   bottleneck.
# * **panels**: the weights are laid out beforehand in the order in which they are read, and the
#   sums of a tile stay in registers for all of K.
# * the **vector instruction**: one multiplies and adds in all lanes at once.
# * **blocks**: rows of tiles come in blocks whose activations stay in the cache.
# * **threads**: each core takes a share of the tiles.
# * **implicit**: the im2col matrix is not written. Its rows are addresses.
#
# The inner loop
# --------------
#
# What LLVM makes of the microkernel, for this machine: a load of a panel of weights, a broadcast
# of each activation, and the products.

isa = choose_isa()
rows, vectors = isa.tiles["f32"]
text = assembly(f"{isa.instructions['f32']}/activate/{isa.lanes}/{rows}/{vectors}", isa)
lines = [line for line in text.splitlines() if "fmadd" in line or "broadcast" in line]
print("\n".join(lines[:8]))
print(f"... {rows} x {vectors} = {rows * vectors} products to {rows} + {vectors} loads")

# %%
# **Exercise.** A tile of R rows and V vectors needs R + V loads for R x V multiply-adds. A CPU
# that does two of each a cycle is bound by loads unless R x V > R + V. Is this machine's tile?
# *Answer.*

assert rows * vectors > rows + vectors
assert layer.macs(OPERATORS["fp32"]["conv"](layer, params, x).shape) == 784 * 128 * 1152
print(f"{LAYER.name}: {rows * vectors} > {rows + vectors}")
