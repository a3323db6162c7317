# %% [markdown]
# # 15. bfloat16, the point between
#
# bfloat16 is the upper half of a float32: the same range, 8 bits of precision instead of 24. It
# needs no calibration and no scales, and where a lane holds one float, `vdpbf16ps` multiplies two
# pairs. This page shows what it keeps, and what it takes.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minires
from minires.kernels.isa import choose_isa
from minires.measure.profiler import profile_in_turns
from minires.measure.trust import mark, verdict
from minires.reference import fake_quantize_ref, round_bf16_ref

# %% [markdown]
# ## Half a float
#
# Rounding is an addition on the bits: add 0x7fff, and one more where the last bit that stays is
# odd; then cut.

# %%
x = np.array([1.0, 1.001, 1.01, 3.14159265, 1e-20, 1e20], np.float32)
for real, rounded in zip(x, round_bf16_ref(x), strict=True):
    print(
        f"{real:<12.7g}{real.view(np.uint32):>10x} -> {rounded.view(np.uint32):>8x}  {rounded:.7g}"
    )

# %% [markdown]
# ## Relative error against absolute
#
# bfloat16 keeps every number to one part in 256, INT8 to half a step of its tensor's scale. So
# bfloat16 is better for small numbers, and INT8 for those near the end of the range.

# %%
#| alt: 15_bf16, a picture
reals = np.geomspace(1e-3, 1, 400, dtype=np.float32)
plt.figure(figsize=(7, 3), layout="constrained")
eight = fake_quantize_ref(reals, np.float32(1 / 255), 0)
for name, kept in [("bfloat16", round_bf16_ref(reals)), ("INT8, scale 1/255", eight)]:
    plt.loglog(reals, np.maximum(np.abs(kept - reals) / reals, 1e-6), label=name)
plt.xlabel("real number")
plt.ylabel("relative error")
plt.legend()
plt.show()

# %% [markdown]
# ## In the network

# %%
models = {
    precision: minires.resnet50("CIFAR10", precision) for precision in ("fp32", "bf16", "int8")
}
photograph = models["fp32"].preprocess("examples/images/cat.jpg")
expected = models["fp32"](photograph)
profiles = profile_in_turns(models, photograph, 20)
for precision, prof in profiles.items():
    y = models[precision](photograph)
    milliseconds = mark(f"{1e3 * prof.seconds / prof.runs:.2f}", prof.doubts)
    print(
        f"{precision}: {milliseconds} ms, a logit differs by "
        f"{np.abs(y - expected).max():.3f}, same label: {y.argmax() == expected.argmax()}"
    )
print(verdict([doubt for prof in profiles.values() for doubt in prof.doubts]))
print("this CPU multiplies bfloat16 by", choose_isa().instructions["bf16"].name)

# %% [markdown]
# That makes twice FP32's peak only where it starts as often as FMA does: on some Xeons it starts
# a quarter as often, and has half of FP32's peak ([chapter 13](13_peak)). Then bfloat16 saves
# only memory: half the bytes of weights. A CPU without `vdpbf16ps`, or AMX's `tdpbf16ps`, does it
# by two FMAs, of the upper and the lower halves, and saves memory alone too.
#
# Products of two bfloat16 are exact in float32, sums are kept in float32, and each layer's output
# is rounded once. (Both instructions take the tiniest numbers, denormals, for 0.)
#
# **Exercise.** Which is the next bfloat16 above 1, and to what does the middle between them round?
# *Answer.* Seven bits stand behind the point: 1 + 2^-7. The middle is a tie and goes to the even
# one, 1; anything above it goes up.

# %%
one = np.array([1 + 2**-7, 1 + 2**-8, 1 + 2**-8 + 2**-12], np.float32)
assert round_bf16_ref(one).tolist() == [1 + 2**-7, 1.0, 1 + 2**-7]
