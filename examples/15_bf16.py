# %% [markdown]
# # 15. bfloat16, the point between
#
# bfloat16 is the upper half of a float32. It keeps the range and gives up precision: 8 bits in
# place of 24. It needs no calibration, no scales and no zero points. The price: it saves only half
# of the bytes. One instruction of your CPU decides whether it is faster at all.
#
# ## Half a float
#
# A float32 has a sign, 8 bits of exponent, and 23 bits behind the point. Cut off the lower 16 of
# its 32 bits, and 7 bits behind the point remain. (The 1 before the point is not stored. With it
# they make the 8 bits.) The exponent stays whole, and so does the range: from $10^{-38}$ to
# $10^{38}$.
#
# Cutting alone would always round towards zero. To round to the nearest, first add half of what the
# last kept bit is worth, and then cut. That half is 0x8000. A tie should go to the even neighbour,
# so the code adds 0x7fff, and one more where the last kept bit is 1. Then a tie goes up from an odd
# number, and stays with an even one.

# %%
import sys

import matplotlib.pyplot as plt
import numpy as np
from recorded import measure_yours, run, side_by_side, worked_out

import minires
from minires.kernels.isa import choose_isa
from minires.measure.plots import COLORS, GREY
from minires.measure.profiler import profile_in_turns
from minires.measure.trust import mark
from minires.reference import fake_quantize_ref, round_bf16_ref


def round_by_hand(x):
    """Round float32 to the nearest bfloat16, on the bits."""
    bits = x.view(np.uint32)
    odd = (bits >> 16) & 1
    return ((bits + 0x7FFF + odd) & 0xFFFF0000).view(np.float32)


x = np.array([1.0, 1.001, 1.01, 3.14159265, 1e-20, 1e20], np.float32)
assert (round_by_hand(x) == round_bf16_ref(x)).all()
for real, rounded in zip(x, round_bf16_ref(x), strict=True):
    bits, kept = real.view(np.uint32), rounded.view(np.uint32)
    print(f"{real:<12.7g}{bits:08x} -> {kept:08x}  {rounded:.7g}")

# %% [markdown]
# ## Relative error against absolute
#
# Take a number between $2^e$ and $2^{e+1}$. With 7 bits behind the point its neighbours are
# $2^{e-7}$ apart. Rounding moves it by half of that at most, and it is at least $2^e$. So
#
# $$ \frac{|\text{error}|}{|x|} \le \frac{2^{e-8}}{2^e} = 2^{-8} = \frac{1}{256} \tag{15.1} $$
#
# The exponent cancels: small numbers and large ones are kept equally well. INT8 has one scale $s$
# for a whole tensor, and its error is up to half a step, whatever the number is:
#
# $$ \frac{|\text{error}|}{|x|} \le \frac{s}{2 |x|} \tag{15.2} $$
#
# The two bounds meet at $|x| = 128 s$. For a tensor that is never negative this is the middle of
# the 255 steps. Above it INT8 has the smaller bound. Below it bfloat16 has, and the smaller the
# number, the larger the difference.

# %%
#| alt: Relative error over the real number, both on logarithmic scales. The curve of bfloat16 is a
#|   row of teeth of the same height, 1/256, at every size. The teeth of INT8 grow towards small
#|   numbers until the error is all of the number. They cross at half of the range.
#| caption: bfloat16's bound is the same everywhere. INT8's is smaller only in the upper half of its
#|   range.
#| code: folded
reals, scale = np.geomspace(1e-3, 1, 4000, dtype=np.float32), np.float32(1 / 255)
figure, axes = plt.subplots(layout="constrained")
eight = fake_quantize_ref(reals, scale, 0)
for name, kept, color in [
    ("INT8, scale 1/255", eight, COLORS["int8"]),
    ("bfloat16", round_bf16_ref(reals), COLORS["bf16"]),
]:
    error = np.abs(kept - reals) / reals
    axes.loglog(reals, np.maximum(error, 1e-5), label=name, color=color, linewidth=1)
axes.axvline(128 * scale, color=GREY, linestyle="--", label="where the bounds meet")
axes.set(xlabel="real number", ylabel="relative error")
axes.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
plt.show()

# %%
bf16_error = np.abs(round_bf16_ref(reals) - reals) / reals
int8_error = np.abs(eight - reals) / reals
assert bf16_error.max() <= 2**-8
assert (int8_error <= 1.0001 * scale / 2 / reals).all()

# %% [markdown]
# ## Sums stay in float32
#
# Two significands of 8 bits make a product of 16. A float32 holds 24, so every product is exact.
# Sums are kept in float32 as well, and each layer's output is rounded once, at the end. That is
# not a luxury. Add ones in bfloat16, and the sum stops at 256. The next bfloat16 is 258, so 257 is
# a tie, and goes back to the even 256.

# %%
total = np.zeros(1, np.float32)
for _ in range(1000):
    total = round_bf16_ref(total + np.float32(1))
print("a thousand ones, summed in bfloat16:", total[0])
assert total[0] == 256

# %% [markdown]
# ## How fast it is
#
# Count as in [chapter 13](13_peak). `vdpbf16ps` multiplies two pairs in a lane, where FMA
# multiplies one. So bfloat16 peaks at twice FP32, if the CPU can start it as often as an FMA. Some
# Xeons start it a quarter as often. That makes $2 / 4$, half of FP32's peak. AMX has `tdpbf16ps`,
# which does half as many products as its INT8 instruction.
#
# A CPU without any of these has to use FMA. minires splits each pair into its two halves, and
# multiplies both as float32. That takes two FMAs for two products, as in FP32, and the splitting
# comes on top. Then bfloat16 saves only memory.
#
# Both runs shown here are of one Xeon. In `xeon-vnni` it multiplies bfloat16 with `vdpbf16ps`,
# which it starts a quarter as often as an FMA. In `xeon-amx` it uses `tdpbf16ps`. The figures are
# of the ImageNet network at 224 x 224. Yours are of the small network that comes with minires, or
# of the weights that you name: `python examples/15_bf16.py imagenet.safetensors`. Counted are the
# steps that multiply, which are convolutions and `fc`.

# %%
recorded = [run("xeon-vnni"), run("xeon-amx")]
weights = sys.argv[1] if len(sys.argv) > 1 else "CIFAR10"
precisions = ("fp32", "bf16", "int8")
models = {precision: minires.resnet50(weights, precision) for precision in precisions}
photograph = models["fp32"].preprocess("examples/images/cat.jpg")
profiles, doubts = measure_yours(
    "the networks",
    lambda: profile_in_turns(models, photograph, 20),
    lambda found: [doubt for prof in found.values() for doubt in prof.doubts],
)
columns = [
    ({p: 1e3 * sum(row.seconds for row in of.layers[p]) for p in precisions},
     of.doubts_about("layers"), mark)
    for of in recorded
]  # fmt: skip
mine = {
    p: 1e3 * sum(row.seconds for row in prof.rows() if row.macs) / prof.runs
    for p, prof in profiles.items()
}
columns.append((mine, doubts, worked_out))
rows = [[f"{p}, ms", *(mark(f"{of[p]:.2f}", why) for of, why, _ in columns)] for p in precisions]
for p in ("bf16", "int8"):
    cells = [write(f"{of['fp32'] / of[p]:.2f}x", why) for of, why, write in columns]
    rows.append([f"{p}, gain", *cells])
print(side_by_side("what multiplies", rows, recorded, ["layers"], doubts))
print("This CPU multiplies bfloat16 by", choose_isa().instructions["bf16"].name)

# %% [markdown]
# In `xeon-vnni` bfloat16 is slower than FP32: it has 0.57 of its speed, not far from the half that
# the peaks promise. With AMX it is 4.5 times as fast. That is less than INT8's gain: its products
# are half as many for each instruction, and its bytes are twice as many.
#
# A prediction can be wrong here, too. With AMX expect no more than its peak, 15.6 times FP32's
# here. With `vdpbf16ps` expect up to 2x at full rate, and about half at a quarter of it. Without
# any of these expect no more than 1x. If your gain is smaller, something else than the products
# takes the time: reading, or splitting the pairs. If it is larger, the weights came sooner from
# memory, because they have half as many bytes, or other programs disturbed one of the two
# measurements.
#
# ## What it does to the answer
#
# How far do the logits move from FP32's, and does the label stay the same? These figures do not
# depend on the clock.

# %%
expected = models["fp32"](photograph)
for precision in ("bf16", "int8"):
    y = models[precision](photograph)
    apart, same = np.abs(y - expected).max(), y.argmax() == expected.argmax()
    print(f"{precision}: a logit differs by {apart:.3f} at most, the same label: {same}")

# %% [markdown]
# (Both instructions for bfloat16 take the tiniest numbers, denormals, for 0.)
#
# ## Exercises
#
# **1.** Which is the next bfloat16 above 1? What does the middle between the two round to?
#
# <details>
# <summary>Answer</summary>
#
# Seven bits stand behind the point, so it is $1 + 2^{-7}$. The middle, $1 + 2^{-8}$, is a tie. It
# goes to the even neighbour, 1. Anything above the middle goes up.
#
# </details>
#
# **2.** A tensor's values lie between 0 and 4, so INT8's scale is 4/255. Which of the two keeps
# 0.1 better? And 3.01?
#
# <details>
# <summary>Answer</summary>
#
# The bounds meet at $128 \times 4/255 = 2.01$. So bfloat16 keeps 0.1 better. For 3.01, INT8's bound
# is $2/255/3.01 = 0.26\%$ and bfloat16's is $0.39\%$: INT8 keeps it better. (But 3 itself is exact
# in bfloat16.)
#
# </details>
#
# **3.** FP16 has 5 bits of exponent and 10 behind the point. What happens to $10^5$ in FP16, and in
# bfloat16? Which of the two keeps 1.01 better?
#
# <details>
# <summary>Answer</summary>
#
# FP16 ends at 65504, so $10^5$ becomes infinite. bfloat16 keeps it to one part in 256. FP16 has
# three bits more behind the point, so it keeps 1.01 better. People choose bfloat16 where they do
# not know the ranges.
#
# </details>

# %%
#| cell: The answers, computed
one = np.array([1 + 2**-7, 1 + 2**-8, 1 + 2**-8 + 2**-12], np.float32)
assert round_bf16_ref(one).tolist() == [1 + 2**-7, 1.0, 1 + 2**-7]
assert round(128 * 4 / 255, 2) == 2.01
assert (round(100 * 2 / 255 / 3.01, 2), round(100 / 256, 2)) == (0.26, 0.39)
x = np.float32([0.1, 3.01])
as_bf16, as_int8 = abs(round_bf16_ref(x) - x), abs(fake_quantize_ref(x, 4 / 255, 0) - x)
assert (as_bf16 < as_int8).tolist() == [True, False]
with np.errstate(over="ignore"):
    assert np.isinf(np.float16(1e5))
assert abs(round_bf16_ref(np.float32([1e5]))[0] / 1e5 - 1) <= 1 / 256
near = np.float32([1.01])
assert abs(np.float16(near) - near)[0] < abs(round_bf16_ref(near) - near)[0]
