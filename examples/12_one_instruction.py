# %% [markdown]
# # 12. One instruction, 64 multiply-adds
#
# Why four times? Because of one instruction. This page shows what it does, in NumPy, and what it
# replaced; then the code that minires's microkernels become for CPUs with and without it.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minires.kernels.isa import ISAS
from minires.kernels.microkernel import Microkernel, assembly

# %% [markdown]
# ## What `vpdpbusd` does
#
# A vector register has 512 bits: 16 lanes of 32. A lane holds one float, or four bytes. In each
# lane the instruction multiplies four u8 by four s8 and adds all four products to an s32. This is
# why activations are u8; and as most come from a ReLU, a sign would be a bit wasted.


# %%
def vpdpbusd(acc_s32, a_u8, b_s8):
    """Do in NumPy what one instruction does: (16,) s32, (16, 4) u8, (16, 4) s8 to (16,) s32."""
    return acc_s32 + (a_u8.astype(np.int32) * b_s8).sum(axis=1, dtype=np.int32)


random = np.random.default_rng(0)
a, b = random.integers(0, 256, (16, 4), np.uint8), random.integers(-128, 128, (16, 4), np.int8)
print(vpdpbusd(np.zeros(16, np.int32), a, b))

# %% [markdown]
# 64 multiply-adds, where `vfmadd231ps` does 16 in the same register and at the same rate. That
# is all there is to the 4x.
#
# ## Before VNNI
#
# Three instructions did the same: `vpmaddubsw` (pairs of products, in 16 bits), `vpmaddwd` by
# ones (pairs of those, in 32), `vpaddd`. Where all three share two vector units, as on Intel's
# server cores, that is 64 x 2 / 3 a cycle against 16 x 2: 1.33x. A core that adds on other units
# gets nearer to 2x: [chapter 13](13_peak) measures it. Xeons since 2023 have AMX besides: `tdpbusd`
# multiplies 16 x 64 bytes by 64 x 16 in 16 cycles, 1024 products a cycle or 32x. FP32 has nothing
# like it.

# %%
#| alt: 12_one_instruction, a picture
per_cycle = {"fma": 16 * 2, "three instructions": 64 * 2 / 3, "vpdpbusd": 64 * 2}
for name, products in per_cycle.items():
    print(f"{name:<20}{products:>6.1f} products a cycle, {products / per_cycle['fma']:.2f}x")

plt.figure(figsize=(7, 2.4), layout="constrained")
plt.barh(list(per_cycle), list(per_cycle.values()))
plt.xlabel("products a cycle of a core with two 512-bit units (arithmetic)")
plt.show()

# %% [markdown]
# ## In the microkernel
#
# LLVM makes code for any CPU on any other, so some products of inner loops can be read here. Per
# step along K, each row of the tile broadcasts 32 bits, which are multiplied by the weights'
# vectors. With AVX-512 the result, which comes last, is a sum in its register. AVX2's loop first
# widens bytes, so as not to saturate ([chapter 16](16_saturation)), and adds apart. ARM writes
# the result first, and takes a lane of a vector as it is; a step has four lanes of each row.

# %%
for name, operands, epilogue in [
    ("avx512vnni", "f32", "activate"),
    ("avx512vnni", "u8s8", "requantize"),
    ("avx2", "u8s8", "requantize"),
    ("neon-dotprod", "u8s8", "requantize"),
]:
    kernel = Microkernel.of(ISAS[name], operands, epilogue)
    lines = [" ".join(line.split()) for line in assembly(kernel).splitlines()]
    used = [line for line in lines if line.startswith(("vfmadd", "vpdp", "vpmadd", "fmla", "sdot"))]
    print(
        f"{name}, {operands}: {kernel.rows * kernel.vectors} sums, "
        f"{len(used)} multiplying instructions a step"
    )
    print(*(f"    {line}" for line in used[:3]), sep="\n")

# %% [markdown]
# **Exercise.** Two cores with two units each at 3.5 GHz: what are the peaks in FP32 and in INT8, a
# multiply-add being two operations? *Answer.* 2 x 2 x 16 x 2 x 3.5 = 448 GFLOP/s, and four times
# that.

# %%
peaks = {name: 2 * 2 * products * 3.5 for name, products in per_cycle.items()}
assert (peaks["fma"], peaks["vpdpbusd"]) == (448, 4 * 448)
assert np.array_equal(
    vpdpbusd(np.ones(16, np.int32), a, b) - 1, np.einsum("ij,ij->i", a.astype(int), b)
)

# %% [markdown]
# ## In your browser
#
# Step through the instruction with bytes of your own.
#
# ```{lab} instruction
# ```
