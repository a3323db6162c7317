# %% [markdown]
# # 1. The network in one picture and one table
#
# ResNet-50 takes a photograph of 224 x 224 pixels and answers with one number a class. In between
# are 53 convolutions, one max-pool, one average pool and one matrix product. This page says how
# large each part is: before asking what eight bits make faster, it helps to know what there is to
# compute.

# %%
import math

import matplotlib.pyplot as plt

from minires.model import resnet50_layers
from minires.summary import summarize

# %% [markdown]
# ## The network is a list
#
# `minires/model.py` writes the network down as a list of layers, named as torchvision names
# them. A block of the network is three convolutions: 1x1 to fewer channels, 3x3 on those, 1x1 back
# to many; behind each, ReLU makes negative values zero. Before the last ReLU the block's input,
# which took the *shortcut*, is added: the convolutions only have to learn the rest, the *residual*
# that gives the network its name (He et al. 2015). `layer1` to `layer4` are *stages*, of 3 to 6
# blocks. Where a stage begins the shapes change, so its first shortcut is a convolution too:
# `downsample`.

# %%
layers = resnet50_layers()
for layer in layers[3:8]:
    print(
        f"{layer.name:<22}{layer.kernel}x{layer.kernel}  {layer.in_c:>4} -> {layer.out_c:<5}"
        f"reads {', '.join(layer.inputs)}"
    )

# %% [markdown]
# ## Where the work is
#
# A convolution's work is counted in multiply-adds (MACs): each output value is a sum of `kernel x
# kernel x in_c` products. Nothing else in the network comes near: this is why an engine for
# ResNet-50 is an engine for convolutions. (Parameters are weights, and two for each channel's
# BatchNorm, of which chapter 4 has more.)

# %%
rows = summarize(layers)
stages: dict[str, list[int]] = {}
for row in rows:
    total = stages.setdefault(row.name.split(".")[0], [0, 0, 0])
    for i, count in enumerate((row.macs, row.parameters, math.prod(row.output_shape))):
        total[i] += count
print(f"{'part':<10}{'million MACs':>14}{'parameters':>14}{'activations':>14}")
for name, (macs, parameters, activations) in stages.items():
    print(f"{name:<10}{macs / 1e6:>14,.0f}{parameters:>14,}{activations:>14,}")
macs = sum(row.macs for row in rows)

# %% [markdown]
# From stage to stage the pixels get fewer and the channels more: the early layers write many
# activations and read few weights, the late ones the other way round.

# %%
#| alt: 01_network, a picture
shapes = {row.name.split(".")[0]: row.output_shape[1:] for row in rows}  # the last of each stage
chain = [f"{name}\n{s[0]}{f'² x {s[-1]}' if s[1:] else ''}" for name, s in shapes.items()]
block = ["block's\ninput", "1x1,\nReLU", "3x3,\nReLU", "1x1", "add", "ReLU"]
figure, axes = plt.subplots(figsize=(8, 2.8), layout="constrained")
for height, boxes in [(1, chain), (0, block)]:
    for i, text in enumerate(boxes):
        axes.text(i, height, text, ha="center", va="center", fontsize=8, bbox={"fc": "aliceblue"})
        if i:
            axes.annotate("", (i - 0.4, height), (i - 0.6, height), arrowprops={"arrowstyle": "->"})
arc = {"arrowstyle": "->", "connectionstyle": "arc3,rad=0.35"}
axes.annotate("", (4, -0.12), (0, -0.2), arrowprops=arc)
axes.text(2, -0.85, "shortcut: as it is, or downsample", ha="center", fontsize=8)
axes.set(xlim=(-0.5, len(chain) - 0.5), ylim=(-1, 1.3))
axes.axis("off")
plt.show()

# %% [markdown]
# ## Exercise
#
# A convolutional network takes pictures of any size. How many times the work is 320 x 320?
#
# *Answer.* All but the classifier grow with the pixels, (320 / 224)² = 2.04 times:

# %%
larger = sum(row.macs for row in summarize(layers, 320, 320))
print(f"{larger / macs:.3f} times the work")
assert abs(larger / macs - (320 / 224) ** 2) < 0.005
