# %% [markdown]
# # 12. One instruction, 64 multiply-adds
#
# Why could INT8 be four times as fast as FP32? Because one instruction, `vpdpbusd`, makes 64
# multiply-adds of bytes, where the best one for floats makes 16. Both use the same registers, and a
# CPU can start equally many of both in a second. This chapter shows what `vpdpbusd` does, what came
# before, and what ARM has instead. Then you read minires's inner loops. At the end you add an
# instruction.

# %%
import matplotlib.pyplot as plt
import numpy as np
from lanes import draw_lane

from minires.kernels.isa import ISAS
from minires.kernels.microkernel import Microkernel, assembly
from minires.measure.plots import COLORS

# %% [markdown]
# ## FMA: a lane holds one float
#
# A vector register of AVX-512 has 512 bits. The CPU divides them into 16 *lanes* of 32 bits, and an
# instruction does the same thing in all lanes at once. A float has 32 bits, so it fills a lane.
# An FMA (fused multiply-add), `vfmadd231ps`, multiplies two floats and adds the product to a third
# one: 16 multiply-adds, one a lane.

# %%
#| alt: A register of 16 lanes. In its first lane the float 1.5 of a, the float -2.0 of b, and the
#|   sum, which is 10.0 before and 7.0 after.
#| caption: An FMA in one lane: 10 + 1.5 x (-2) = 7.
#| code: folded
rows = [("a", [1.5], "a"), ("b", [-2.0], "b"), ("sum before", [10.0], "sum")]
draw_lane(16, [*rows, ("sum after", [10.0 + 1.5 * -2.0], "sum")])
plt.show()

# %% [markdown]
# ## vpdpbusd: a lane holds four bytes
#
# Where one float was, four bytes fit. `vpdpbusd` takes four unsigned bytes a (u8, from 0 to 255)
# and four signed bytes b (s8, from -128 to 127). It multiplies them pair by pair, adds the four
# products together, and adds the result to the lane's sum. The sum is a signed integer of 32 bits
# (s32): one for four products, so it fills the lane again. In NumPy:


# %%
def vpdpbusd(sum_s32, a_u8, b_s8):
    """Do what one instruction does: (16,) s32, (16, 4) u8 and (16, 4) s8 make (16,) s32."""
    products = a_u8.astype(np.int32) * b_s8  # (16, 4)
    return sum_s32 + products.sum(axis=1, dtype=np.int32)


a, b = np.array([[200, 3, 0, 255]], np.uint8), np.array([[-5, 7, 100, 2]], np.int8)
print(vpdpbusd(np.array([1000], np.int32), a, b))

# %%
#| alt: In the first of 16 lanes four bytes of a, four bytes of b, their four products, and one sum:
#|   1000 before, 531 after.
#| caption: The same lane with `vpdpbusd`: four products and one sum. The products never saturate,
#|   because the instruction keeps all of their bits. (The sum could overflow. Exercise 2 counts
#|   when.)
#| code: folded
products = a.astype(np.int32) * b
rows = [("a, u8", list(a[0]), "a"), ("b, s8", list(b[0]), "b")]
rows += [("products", list(products[0]), "between"), ("sum before, s32", [1000], "sum")]
draw_lane(16, [*rows, ("sum after, s32", [1000 + products.sum()], "sum")])
plt.show()

# %% [markdown]
# 16 lanes times 4 is 64 multiply-adds. Why is a unsigned and b signed? Because a is meant for
# activations, and most of those come from a ReLU: they are never negative, so a sign would waste a
# bit. Weights need both signs.
#
# Which four bytes share a lane? Neighbours along K, whose products belong to the *same* sum. The 16
# lanes hold 16 *different* sums: those of one pixel, for 16 output channels. So minires gives all
# lanes the same four bytes of a, and each lane its own four weights.
#
# Step through it with bytes of your own (x is a, and w is b), and through the other instructions:
#
# ```{lab} instruction
# ```
#
# ## Before VNNI: three instructions
#
# VNNI (Vector Neural Network Instructions) brought `vpdpbusd`. Before, three instructions did its
# work. `vpmaddubsw` multiplies the bytes, and adds the products in pairs into 16 bits. `vpmaddwd`
# multiplies those by 1, and adds them in pairs into 32 bits. `vpaddd` adds that to the sum.


# %%
def before_vnni(sum_s32, a_u8, b_s8):
    """Do the same by three instructions."""
    products = a_u8.astype(np.int32) * b_s8
    pairs = products.reshape(-1, 2, 2).sum(axis=2)
    pairs = np.clip(pairs, -(2**15), 2**15 - 1)  # vpmaddubsw: 16 bits, and what is larger is cut
    return sum_s32 + pairs.sum(axis=1, dtype=np.int32)  # vpmaddwd, then vpaddd


assert before_vnni(1000, a, b) == vpdpbusd(1000, a, b)
large, largest = np.array([[255, 255, 3, 0]], np.uint8), np.array([[127, 127, 7, 100]], np.int8)
print("exact:", vpdpbusd(0, large, largest), "before VNNI:", before_vnni(0, large, largest))

# %%
#| alt: In one lane four bytes of a and of b. The first pair's sum should be 64,770, and is cut off
#|   at 32,767. The second one is 21. Together they are 32,788.
#| caption: Two large products do not fit in 16 bits. `vpmaddubsw` cuts their sum off, in silence.
#| code: folded
pairs = (large.astype(np.int32) * largest).reshape(2, 2).sum(axis=1)
cut = np.clip(pairs, -(2**15), 2**15 - 1)
rows = [("a, u8", list(large[0]), "a"), ("b, s8", list(largest[0]), "b")]
rows += [("should be", list(pairs), "between"), ("vpmaddubsw, s16", list(cut), "cut off")]
draw_lane(
    16, [*rows, ("vpmaddwd, s32", [cut.sum()], "between"), ("vpaddd, s32", [cut.sum()], "sum")]
)
plt.show()

# %% [markdown]
# 255 x 127 + 255 x 127 = 64,770, but 16 signed bits hold at most 32,767. So the sum *saturates*: it
# stops there. [Chapter 16](16_saturation) shows what that does, and what minires does instead.
#
# ## sdot: ARM's dot product
#
# ARM's registers have 128 bits: 4 lanes. `sdot` also adds four products in each lane, 16 in all,
# where ARM's FMA, `fmla`, makes 4. The factor is the same. But `sdot` wants *both* operands signed.
# So minires takes 128 from each activation. u8 becomes s8, and each sum comes out too small by
# 128 x (the sum of its weights). That does not depend on the image, so minires adds it back once,
# in the bias. (Newer CPUs have `usdot`, which takes u8 and s8 as they are, and `usmmla`, which
# multiplies two rows by two columns: 32 multiply-adds.)

# %%
#| alt: In one of 4 lanes four bytes of a less 128, four bytes of b, their products, and one sum:
#|   1000 before, -12,781 after. With the bias it is 531.
#| caption: `sdot` with the same bytes as above, and the same 1000 before. The sum comes out 13,312
#|   too small. The bias brings that back: 531.
#| code: folded
less = a.astype(np.int32) - 128
total = 1000 + (less * b).sum()
back = 128 * b.sum(dtype=np.int32)
rows = [("a - 128, s8", list(less[0]), "a"), ("b, s8", list(b[0]), "b")]
rows += [("products", list((less * b)[0]), "between"), ("sum before, s32", [1000], "sum")]
draw_lane(4, [*rows, ("sum after, s32", [total], "sum"), ("with the bias", [total + back], "sum")])
plt.show()
assert back == 13312
assert total + back == vpdpbusd(1000, a, b) == 531

# %% [markdown]
# ## How many a cycle
#
# A CPU works in *cycles*: at 3 GHz, three billion a second. An Intel server core of 2019 has two
# vector units of 512 bits, and each starts one instruction a cycle. Before VNNI three instructions
# share these units, so 64 multiply-adds take 1.5 cycles. (A core that has another unit for the
# addition does better: [chapter 13](13_peak) measures it.)

# %%
#| alt: Bars of multiply-adds a cycle: FMA 32, three instructions 42.7, vpdpbusd 128.
#| caption: By arithmetic, for a core with two units of 512 bits.
#| code: folded
per_cycle = {"FMA": 2 * 16, "before VNNI": 2 * 64 / 3, "vpdpbusd": 2 * 64}
plt.figure(figsize=(5.6, 1.8), layout="constrained")
colors = [COLORS["fp32"], COLORS["int8"], COLORS["int8"]]
bars = plt.barh(list(per_cycle), list(per_cycle.values()), color=colors)
plt.bar_label(bars, [f"{count / 32:.2f}x" for count in per_cycle.values()], padding=3)
plt.gca().set(xlabel="multiply-adds a cycle", xlim=(0, 150))
plt.gca().invert_yaxis()
plt.show()

# %% [markdown]
# So VNNI took INT8 from 1.33x at most to 4x. Xeons since 2023 also have AMX. Its `tdpbusd`
# multiplies 16 x 64 bytes by 64 x 16 bytes in 16 cycles. That is 16 x 64 x 16 / 16 = 1024
# multiply-adds a cycle, 32x. FP32 has nothing like it.
#
# ## In the microkernel
#
# minires compiles with LLVM, which can do so for CPUs that you do not own. So here are four inner
# loops, with three of the multiplying instructions of each. A "sum" below is a whole register of
# sums, one in each lane. A "step" is one pass through the loop.

# %%
MULTIPLY = ("vfmadd", "vpdp", "vpmadd", "fmla", "sdot")
for name, operands, epilogue in [
    ("avx512vnni", "f32", "activate"),
    ("avx512vnni", "u8s8", "requantize"),
    ("avx2", "u8s8", "requantize"),
    ("neon-dotprod", "u8s8", "requantize"),
]:
    kernel = Microkernel.of(ISAS[name], operands, epilogue)
    lines = [" ".join(line.split()) for line in assembly(kernel).splitlines()]
    used = [line for line in lines if line.startswith(MULTIPLY)]
    print(f"{name}, {operands}: {kernel.rows * kernel.vectors} sums, {len(used)} a step")
    print(*(f"    {line}" for line in used[:3]), sep="\n")

# %% [markdown]
# How to read them:
#
# * **x86**: this listing names the result last. (Intel's manuals name it first.) In the first two
#   loops that is the sums. Their three lines share the middle register: a float of a, or four
#   bytes, copied to all lanes. The first holds weights.
# * The first two loops have equally many sums, and equally many instructions a step. Only the
#   instruction differs. But a step covers one value along K in the first, and four in the second.
# * **AVX2** without VNNI first widens the bytes to 16 bits. Then `vpmaddwd` is exact. Four values
#   of 16 bits no longer fit into a lane. So each sum takes two `vpmaddwd`, and additions.
# * **ARM** names the sums first. `.4b[0]` is lane 0 of a register: the instruction itself copies
#   four bytes to all lanes. A step takes all four lanes, so it has four instructions for each sum.
#
# ## Exercises
#
# **1.** Two cores have two units of 512 bits each, at 3.5 GHz. What are their peaks in FP32 and
# INT8? A multiply-add is two operations.
#
# <details>
# <summary>Answer</summary>
#
# 2 cores x 2 units x 16 lanes x 2 operations x 3.5 GHz = 448 GFLOP/s. INT8: 4 x 448 = 1792 GOP/s.
#
# </details>
#
# **2.** `vpdpbusd` does not check its sum of 32 bits. How many products can it add before the sum
# might overflow? ResNet-50 needs at most 4608.
#
# <details>
# <summary>Answer</summary>
#
# The instruction's largest product is 255 x 128 = 32,640 in size. So $2^{31} / 32640 = 65{,}793$
# products fit: 14 times what ResNet-50 needs.
#
# </details>
#
# **3.** How large may weights be, so that `vpmaddubsw` never saturates?
#
# <details>
# <summary>Answer</summary>
#
# Two products have to fit: 2 x 255 x w may be 32,767 at most. So weights may lie from -64 to 64:
# about seven bits, with the sign.
#
# </details>

# %%
#| cell: The answers, computed
peaks = {name: 2 * 2 * count * 3.5 for name, count in [("FMA", 16 * 2), ("vpdpbusd", 64 * 2)]}
assert peaks == {"FMA": 448, "vpdpbusd": 1792}
assert 2**31 // (255 * 128) == 65793 > 4608
assert (2**15 - 1) // (2 * 255) == 64

# %% [markdown]
# ## Final project: add an instruction set
#
# Some CPUs since 2024 have AVX-VNNI-INT8. Its `vpdpbssd` is the `sdot` of x86: it multiplies s8 by
# s8, in 8 lanes (`_mm256_dpbssd_epi32` in Intel's intrinsics guide). Teach it to minires:
#
# 1. Read `minires/kernels/isa/x86.py`, and in `minires/kernels/isa/arm.py` what belongs to `SDOT`.
# 2. Write the function that emits it. LLVM calls it `llvm.x86.avx2.vpdpbssd.256`.
# 3. Describe it as an `Instruction`. Activations are u8, and yours wants s8. So, like `SDOT`, it
#    says what to do with them when they are loaded (`before`: take 128 off), and how much each then
#    lacks (`less`: 128). In return minires adds 128 times the sum of the weights to each bias.
# 4. Write an `ISA`, an instruction set, whose `features` are AVXVNNI's and `avxvnniint8`. List it
#    in `minires/kernels/isa/__init__.py`, ahead of `AVXVNNI`.
# 5. Run `pytest tests/kernels/test_microkernel.py`. It finds your set in the list. On any CPU it
#    looks for the instruction in the assembly. On a CPU that has it, it compares the bits.
#
# You change no loop, no packing and no engine. This solution does not even touch the files, so you
# can check it here, whichever CPU you have.

# %%
#| cell: A solution, and its check
from dataclasses import replace

from minires.kernels.ir import I8, LLVM_22, call, vector
from minires.kernels.isa.arm import less_128
from minires.kernels.isa.x86 import AVXVNNI, VPDPBUSD


def vpdpbssd(builder, acc, a, b):
    """Add four products of s8 and s8 in s32 by one instruction."""
    if LLVM_22:  # before, LLVM wanted vectors of 32-bit lanes
        a, b = (builder.bitcast(v, vector(I8, 32)) for v in (a, b))
    return call(builder, "llvm.x86.avx2.vpdpbssd.256", acc.type, acc, a, b)


VPDPBSSD = replace(
    VPDPBUSD, name="vpdpbssd", emit=vpdpbssd, mnemonics=("vpdpbssd",), before=less_128, less=128
)
MINE = replace(
    AVXVNNI,
    name="avxvnniint8",
    features=AVXVNNI.features | {"avxvnniint8"},
    instructions={**AVXVNNI.instructions, "u8s8": VPDPBSSD},
)
kernel = Microkernel.of(MINE, "u8s8", "requantize")
found = assembly(kernel).count("vpdpbssd")
print(f"{found} times vpdpbssd for {kernel.rows * kernel.vectors} sums")
assert found == kernel.rows * kernel.vectors
