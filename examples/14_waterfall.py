# %% [markdown]
# # 14. The waterfall: where the 4x goes
#
# The peak says four times; the network says less. This page measures where the difference went, on
# the machine that built it: each bar is what a part takes in INT8 beyond a quarter of its FP32
# time.

# %%
import matplotlib.pyplot as plt

import minires
from minires.measure import measure_roofs
from minires.measure.profiler import profile_in_turns
from minires.measure.waterfall import format_waterfall, measure_waterfall

# %% [markdown]
# ## Where the time goes
#
# First the profile of both precisions, stage by stage. `with minires.profile(model) as prof`
# watches any run; here both networks take turns. (*short*: too little time to tell a speed.) Shares
# need the machine's roofs, which are measured once and kept. A question mark stands where the
# machine did other work meanwhile: a line beneath says so.

# %%
models = {precision: minires.resnet50("CIFAR10", precision) for precision in ("fp32", "int8")}
with open("examples/images/cat.jpg", "rb") as file:
    data = file.read()
x = models["fp32"].preprocess(data)
for prof in profile_in_turns(models, x, 20).values():
    print(prof.table("stage", roofs=measure_roofs(prof.precision)), end="\n\n")

# %% [markdown]
# ## The waterfall
#
# Ideal INT8 would take a quarter of FP32's time. From there, part by part, to what it does take.
# The bars add up by construction; what lies between the steps is a bar of its own. These runs begin
# with the photograph's bytes, so caches are colder than above, and times longer.

# %%
#| alt: 14_waterfall, a picture
fall = measure_waterfall(models, data, rounds=40)
print(format_waterfall(fall))

figure, axes = plt.subplots(figsize=(8, 3.8), layout="constrained")
at = fall.whole.fp32 / 4
axes.barh("fp32 / 4", 1e3 * at, color="tab:blue")
for part in fall.parts:
    axes.barh(part.name, 1e3 * part.excess, left=1e3 * at,
              color="tab:orange" if part.excess > 0 else "tab:green")  # fmt: skip
    at += part.excess
axes.barh("int8", 1e3 * fall.whole.int8, color="tab:blue")
axes.invert_yaxis()
axes.set_xlabel("milliseconds")
plt.show()

# %% [markdown]
# ## Reading it
#
# Some of the excess is the instruction: without VNNI the peak itself is less than four times
# FP32's, with AMX it is far more (`MINIRES_ISA=avx512bf16` does without), and the table's
# *instruction* line says by how much. Each cause is measured by leaving it out (*ablation*): the
# *epilogue*, which costs more in INT8 and is divided by nothing, by kernels with a plain store in
# its place. *Edges* are rows of tiles that are no output pixel. What is left is *unexplained*, and
# stays on the page as that. Green bars are gains, parts more than four times as fast: in a network
# as small as this one, late layers wait for their weights, and INT8's are fewer bytes.
#
# ## Exercise
#
# From the file to the label there is decoding and resizing too. With these figures, what would a
# network 2, 4 or infinitely many times as fast as FP32 bring to the whole?
#
# *Answer.* Amdahl's law: what is not the network remains.

# %%
before = sum(fall.preprocessing.values())
whole = before + fall.whole.fp32
gains = {factor: whole / (before + fall.whole.fp32 / factor) for factor in (2, 4, float("inf"))}
print(", ".join(f"{factor} times: {gain:.2f}x" for factor, gain in gains.items()))
assert 1 < gains[2] < gains[4] < gains[float("inf")] == whole / before

bars = sum(part.excess for part in fall.parts)
assert abs(fall.whole.fp32 / 4 + bars - fall.whole.int8) < 1e-9

# %% [markdown]
# ## In your browser
#
# Measure it on your own machine, as far as a browser lets you.
#
# ```{lab} machine
# ```
