# %% [markdown]
# # 11. Climbing it again in INT8
#
# The same layer in eight bits. Four values fit where one float was, so the ladder could end four
# times as high. This page shows how much of that each rung brings, and which instruction decides
# it.

# %%
import time

import matplotlib.pyplot as plt
import numpy as np

from minires.kernels.isa import choose_isa
from minires.ladder.climb import climb, doubts_about
from minires.measure.peak import best_instruction, measure_peak
from minires.measure.trust import percent, verdict
from minires.reference import gemm_u8s8_ref

# %% [markdown]
# ## What the machine has
#
# With VNNI one instruction, `vpdpbusd`, multiplies four pairs of bytes a lane and adds them up.
# Without it, it takes three, and those saturate ([chapter 16](16_saturation)), so that an
# exact kernel needs more: no share of such a peak can be 100%. With AMX `tdpbusd` does it for
# 16 x 16 sums at once.

# %%
isa = choose_isa()
print(f"{isa.name}: {isa.instructions['u8s8'].name} on {isa.lanes} lanes")
peaks = {p: measure_peak(best_instruction(p, isa), isa, 1).gops for p in ("fp32", "int8")}
print(
    f"peak of a core: fp32 {peaks['fp32']:.0f}, int8 {peaks['int8']:.0f} GOP/s, "
    f"{peaks['int8'] / peaks['fp32']:.2f}x"
)

# %% [markdown]
# ## The climb
#
# Each rung has to give the definition's bytes, to the last bit, before it is timed. Again a share
# is of the peak of as many cores as the rung uses.

# %%
#| alt: 11_ladder_int8, a picture
climbed = {precision: list(climb(precision, rounds=5)) for precision in ("fp32", "int8")}
for result in climbed["int8"]:
    print(
        f"{result.rung.name:<12}{1e3 * result.seconds:>9.2f} ms{result.gops:>8.1f} GOP/s"
        f"{percent(result.share, result.doubts):>6} of the peak"
    )
print(verdict(doubts_about(climbed["int8"])))

figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharex=True, layout="constrained")
for place, (precision, results) in zip(axes, climbed.items(), strict=True):
    place.barh([r.rung.name for r in results], [r.gops for r in results])
    place.axvline(max(r.gops / r.share for r in results), color="k", label="peak, all cores")
    place.set(title=precision, xlabel="GOP/s")
    place.invert_yaxis()
axes[0].legend()
plt.show()

# %% [markdown]
# ## What is different
#
# * NumPy has no BLAS for integers, so the definition multiplies in float32, in blocks of K that are
#   exact (255 x 128 x 512 is less than 2^24). Below, what that saves.
# * Compiled loops do well here that do badly in float32. Integer sums may be taken in any order,
#   so the compiler makes vectors of *loops* already; *ordered* and *tiled* add little to that.
# * The epilogue is longer: convert, multiply, clip, round, narrow, where FP32 adds and clips. It
#   is paid once for each output, so it weighs most where K is small.

# %%
best = {precision: min(r.seconds for r in results) for precision, results in climbed.items()}
print(f"on this layer INT8 is {best['fp32'] / best['int8']:.2f} times as fast as FP32")
a, b = np.full((98, 1152), 255, np.uint8), np.full((1152, 128), -128, np.int8)
for name, multiply in [("exact float32", gemm_u8s8_ref), ("int32", lambda a, b: np.int32(a) @ b)]:
    started = time.perf_counter()
    assert (multiply(a, b) == -255 * 128 * 1152).all()
    print(f"NumPy's product as {name}: {1e3 * (time.perf_counter() - started):.1f} ms")

# %% [markdown]
# **Exercise.** K is 1152 here and 64 in `layer1.0.conv1`. By how much does the share of the
# epilogue grow, if it takes as long as 30 steps along K (a step takes four values)? *Answer.* From
# 30 / (288 + 30) to 30 / (16 + 30):

# %%
shares = [30 / (K / 4 + 30) for K in (1152, 64)]
print(" to ".join(f"{share:.0%}" for share in shares))
assert shares[1] > 6 * shares[0]
