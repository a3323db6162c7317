# %% [markdown]
# # 1. The network, and where its work is
#
# ResNet-50 takes a photograph of 224 x 224 pixels and answers with one number for each class. In
# between are 53 convolutions, two poolings and one matrix product. Nearly all of its work is in the
# convolutions, so this is where eight bits can make it faster. The work is spread over the whole
# network, but the weights are not: most of them are in the last stage.

# %%
import math

import matplotlib.pyplot as plt

from minires.measure.plots import BLUE, GREEN, GREY, ORANGE
from minires.model import resnet50_layers
from minires.summary import summarize

# %% [markdown]
# ## The network is a list
#
# `minires/model.py` writes the network down as a list of layers. They have torchvision's names.
# After the first convolution and a pooling come four *stages*, `layer1` to `layer4`, of 3 to 6
# *blocks* each. This is the first block, and the beginning of the second:

# %%
layers = resnet50_layers()
for layer in layers[3:8]:
    print(f"{layer.name:<22}{layer.kernel}x{layer.kernel}{layer.in_c:>5} ->{layer.out_c:>4}")
    print(f"    reads {', '.join(layer.inputs)}")

# %% [markdown]
# A block is three convolutions: 1 x 1 to fewer channels, 3 x 3 on those few, and 1 x 1 back to
# many. After each, a ReLU makes negative values zero. Before the last ReLU, the block adds its own
# input, which came by the *shortcut*. So the convolutions only have to learn what is missing, the
# *residual* that gives the network its name
# ([He et al. 2015](https://arxiv.org/abs/1512.03385)). The first block of a stage changes the
# shape, so its shortcut needs a convolution too, called `downsample`.

# %%
#| code: folded
#| alt: Boxes in a row, joined by arrows: the block's input, 1x1 and ReLU, 3x3 and ReLU, 1x1, add,
#|   ReLU. A curved arrow leads from the input below the convolutions straight to the addition.
#| caption: One block. The shortcut carries the input around the convolutions, as it is or through
#|   *downsample*.
boxes = ["input", "1x1,\nReLU", "3x3,\nReLU", "1x1", "add", "ReLU"]
figure, axes = plt.subplots(figsize=(5.6, 1.8), layout="constrained")
for i, text in enumerate(boxes):
    edge = {"facecolor": "none", "edgecolor": ORANGE if "x" in text else GREY, "pad": 5}
    axes.text(i, 0, text, ha="center", va="center", bbox=edge)
    if i:
        axes.annotate("", (i - 0.3, 0), (i - 0.68, 0), arrowprops={"arrowstyle": "->", "ec": GREY})
arc = {"arrowstyle": "->", "connectionstyle": "arc3,rad=0.35", "ec": BLUE}
axes.annotate("", (4, -0.25), (0, -0.25), arrowprops=arc)
axes.text(2, -0.72, "shortcut", ha="center")
axes.set(xlim=(-0.5, 5.4), ylim=(-1.1, 0.4))
axes.axis("off")
plt.show()

# %% [markdown]
# ## Where the work is, and where the weights are
#
# Count a convolution's work in multiply-adds (MACs). Each output value is a sum of k_h x k_w x in_c
# products, and there are out_h x out_w x out_c output values. The other layers barely count.
# (*Parameters* are the weights, and two more numbers a channel, which belong to the BatchNorm of
# [chapter 4](04_batchnorm).)

# %%
rows = summarize(layers)
parts: dict[str, list[int]] = {}
shapes = {}
for row in rows:
    name = row.name.split(".")[0]
    total = parts.setdefault(name, [0, 0, 0])
    for i, count in enumerate((row.macs, row.parameters, math.prod(row.output_shape))):
        total[i] += count
    shapes[name] = row.output_shape[1:]  # the last of each part
macs, parameters, _ = (sum(counts) for counts in zip(*parts.values(), strict=True))
print(f"{macs:>13,} multiply-adds\n{parameters:>13,} parameters")

# %%
#| code: folded
#| alt: Bars for conv1, layer1 to layer4 and fc. Multiply-adds, in millions, 118, 668, 1028, 1464,
#|   809 and 2. Parameters, in millions, 0.0, 0.2, 1.2, 7.1, 15.0 and 2.0. Values written, in
#|   millions, 0.8, 4.4, 3.1, 2.2, 0.6 and 0.0.
#| caption: What each part computes, has and writes, with the shape of its last output. From stage
#|   to stage the pixels get fewer and the channels more. The work stays within a factor of about
#|   two, while the weights grow and the activations shrink.
shown = ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"]
titles = [
    "million multiply-adds",
    "million parameters",
    "million values written, and the last output's shape",
]
figure, panels = plt.subplots(3, 1, figsize=(5.6, 6), sharey=True, layout="constrained")
for i, (axes, title, color) in enumerate(zip(panels, titles, (ORANGE, BLUE, GREEN), strict=True)):
    values = [parts[name][i] / 1e6 for name in shown]
    written = [f"{value:.{1 if i else 0}f}" for value in values]
    if i == 2:
        sizes = [" x ".join(map(str, shapes[name])) for name in shown]
        written = [f"{value:.1f} ({size})" for value, size in zip(values, sizes, strict=True)]
    axes.bar_label(axes.barh(shown, values, color=color), written, padding=3)
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.margins(x=0.7 if i == 2 else 0.12)
    axes.spines.bottom.set_visible(False)
panels[0].invert_yaxis()
plt.show()

# %% [markdown]
# So the early stages read few weights and write many activations, and the late ones do the
# opposite. Keep this in mind: it decides later which layers wait for the memory, and for what.
#
# ## Exercises
#
# **1.** `layer1.0.conv2` is 3 x 3, from 64 to 64 channels, on 56 x 56 pixels. How many MACs?
#
# <details>
# <summary>Answer</summary>
#
# 56 x 56 x 64 output values of 3 x 3 x 64 products each: 115,605,504.
#
# </details>
#
# **2.** The network takes images of any size. How much more work is an image of 320 x 320?
#
# <details>
# <summary>Answer</summary>
#
# Everything but the classifier grows with the number of pixels, (320 / 224)² = 2.04 times.
#
# </details>
#
# **3.** All sixteen 3 x 3 convolutions of the blocks do the same number of MACs. Why?
#
# <details>
# <summary>Answer</summary>
#
# From stage to stage both sides of the image are halved, which leaves a quarter of the output
# pixels. But input and output channels are doubled, which makes four times as many products a
# pixel. A quarter of four times as many is the same.
#
# </details>
#
# **4.** How often does the network use each weight of a convolution, for one image? What does that
# mean for the memory?
#
# <details>
# <summary>Answer</summary>
#
# Once for each output pixel: 3,136 times in `layer1`, but only 49 times in most of `layer4`. A
# weight that comes from slow memory has to be worth it. In the last stage each one that is fetched
# serves the fewest products, so this is where INT8's smaller weights help the memory most.
#
# </details>

# %%
#| cell: All four answers, computed
by_name = {row.name: row for row in rows}
assert by_name["layer1.0.conv2"].macs == 56 * 56 * 64 * 3 * 3 * 64 == 115_605_504
larger = sum(row.macs for row in summarize(layers, 320, 320))
assert abs(larger / macs - (320 / 224) ** 2) < 0.005
three = [layer.name for layer in layers if layer.kernel == 3 and layer.op == "conv"]
assert len(three) == 16
assert {by_name[name].macs for name in three} == {115_605_504}
for layer in layers:
    if layer.op == "conv":
        row, weights = by_name[layer.name], layer.kernel**2 * layer.in_c * layer.out_c
        assert row.macs / weights == row.output_shape[1] * row.output_shape[2]
assert by_name["layer1.2.conv3"].output_shape[1] ** 2 == 3136
assert by_name["layer4.2.conv3"].output_shape[1] ** 2 == 49
