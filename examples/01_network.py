"""
The network in one picture and one table
========================================

ResNet-50 takes a photograph of 224 x 224 pixels and answers with one number a class. In between
are 53 convolutions, one max-pool, one average pool and one matrix product. This page says how
large each part is: before asking what eight bits make faster, it helps to know what there is to
compute.
"""

import matplotlib.pyplot as plt

from minires.model import resnet50_layers
from minires.summary import summarize

# %%
# The network is a list
# ---------------------
#
# ``minires/model.py`` writes the network down as a list of layers, named as torchvision names
# them. A block of the network is three convolutions: 1x1 to fewer channels, 3x3 on those, 1x1 back
# to many. Then the block's input is added to what came out, which is the *residual* that gives the
# network its name (He et al. 2015). In the first block of a stage the shapes change, so the input
# needs a convolution too: ``downsample``.

layers = resnet50_layers()
for layer in layers[3:8]:
    print(
        f"{layer.name:<22}{layer.kernel}x{layer.kernel}  {layer.in_c:>4} -> {layer.out_c:<5}"
        f"reads {', '.join(layer.inputs)}"
    )

# %%
# Where the work is
# -----------------
#
# A convolution's work is counted in multiply-adds (MACs): each output value is a sum of ``kernel x
# kernel x in_c`` products. Nothing else in the network comes near: this is why an engine for
# ResNet-50 is an engine for convolutions.

rows = summarize(layers)
stages: dict[str, list[int]] = {}
for row in rows:
    total = stages.setdefault(row.name.split(".")[0], [0, 0])
    total[0], total[1] = total[0] + row.macs, total[1] + row.parameters
print(f"{'part':<10}{'million MACs':>14}{'parameters':>14}")
for name, (macs, parameters) in stages.items():
    print(f"{name:<10}{macs / 1e6:>14,.0f}{parameters:>14,}")
macs = sum(row.macs for row in rows)
print(f"{'all':<10}{macs / 1e6:>14,.0f}{sum(row.parameters for row in rows):>14,}")

# %%
# From stage to stage the pixels get fewer (56 x 56, 28 x 28, 14 x 14, 7 x 7) and the channels
# more. So the early layers move many activations and few weights, and the late ones the other way
# round.

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
left.bar(list(stages), [macs / 1e6 for macs, _ in stages.values()], color="tab:blue")
left.set(ylabel="million MACs", title="work")
right.bar(list(stages), [parameters / 1e6 for _, parameters in stages.values()], color="tab:orange")
right.set(ylabel="million parameters", title="weights")
for axes in (left, right):
    axes.tick_params(axis="x", rotation=45)
plt.show()

# %%
# Exercise
# --------
#
# A convolutional network takes pictures of any size. How many times the work is 320 x 320?
#
# *Answer.* All but the classifier grow with the pixels, (320 / 224)² = 2.04 times:

larger = sum(row.macs for row in summarize(layers, 320, 320))
print(f"{larger / macs:.3f} times the work")
assert abs(larger / macs - (320 / 224) ** 2) < 0.005
