# %% [markdown]
# # 18. Latency of the whole application
#
# Nobody waits for a matrix product; people wait for an answer. From the bytes of a file to a label
# there is more than a network, and INT8 makes none of the rest faster.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minires
from minires.measure.latency import format_latency, measure_latency

# %% [markdown]
# ## Single images
#
# One after the other, as a server would see them that answers one user. The median (p50) is what
# is usual, p99 what one in a hundred waits longer than, and the maximum what somebody did wait.
# Where other work disturbed the machine, a line says so, and question marks stand at the figures.

# %%
with open("examples/images/cat.jpg", "rb") as file:
    data = file.read()
models = {precision: minires.resnet50("CIFAR10", precision) for precision in ("fp32", "int8")}
found = measure_latency(models, data, runs=200, batches=(1, 2, 4, 8))
for latency in found:
    print(format_latency(latency), end="\n\n")

# %% [markdown]
# ## What INT8 changes
#
# Decoding a JPEG and resizing it take the same time in all precisions. The faster the network
# gets, the larger is their share: Amdahl's law.

# %%
#| alt: 18_latency, a picture
medians = {one.precision: {part: np.median(s) for part, s in one.seconds.items()} for one in found}
network = medians["fp32"]["inference"] / medians["int8"]["inference"]
whole = medians["fp32"]["whole"] / medians["int8"]["whole"]
print(f"the network: {network:.2f}x; from file to label: {whole:.2f}x")

figure, axes = plt.subplots(figsize=(7, 2.2), layout="constrained")
for precision, parts in medians.items():
    left = 0.0
    for part, color in zip(list(parts)[:-1], ("C2", "C8", "C9", "C0", "C7"), strict=True):
        axes.barh(
            precision,
            1e3 * parts[part],
            left=left,
            color=color,
            label=part if precision == "fp32" else None,
        )
        left += 1e3 * parts[part]
axes.set_xlabel("milliseconds, medians")
axes.legend(ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1))
plt.show()

# %% [markdown]
# ## Throughput is another question
#
# A batch shares each weight among several images, so more images a second, and a longer wait for
# each. The second tables above say how much this machine gains.
#
# ## Exercise
#
# From these medians, what share of an INT8 image's time is not inference, and what would be saved
# by decoding in no time at all?
#
# *Answer.* All parts but one; and decoding's share of the whole.

# %%
parts = medians["int8"]
others = sum(t for part, t in parts.items() if part not in ("inference", "whole"))
print(
    f"not inference {others / parts['whole']:.0%}, decoding {parts['decode'] / parts['whole']:.0%}"
)
assert 0 < parts["decode"] < others
assert all(len(one.seconds["whole"]) == 200 for one in found)
