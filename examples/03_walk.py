# %% [markdown]
# # 3. Walking a photograph through the network
#
# A photograph enters as 64 x 64 pixels of three colours, and leaves as ten numbers, one a class. On
# the way the pixels get fewer and the channels more. Here you stop after each layer and look. You
# will see that a third of all values are zero, and that none lies beyond 6, above or below zero: so
# 256 steps can be fine enough.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np

import minires
from minires.measure.plots import BLUE, ORANGE

model = minires.resnet50("CIFAR10")
preset = model.meta["preset"]
x = minires.preprocess("examples/images/cat.jpg", preset)
print(x.shape, x.dtype)

# %% [markdown]
# This is the ResNet-50 that comes with minires. It was trained for ten classes, on images of
# 32 x 32 enlarged to 64 x 64. ImageNet's has the same layers, larger images and a wider classifier.
#
# ## Before the network
#
# `preprocess` brings the short side to 32 pixels and cuts out the centre, because the network
# learned from images of 32 x 32. It enlarges that to 64. Then it subtracts the mean of the training
# pixels and divides by their standard deviation. What comes out is NCHW: batch, channels, height,
# width, the order that PyTorch uses.

# %%
#| code: folded
#| alt: A cat's face, of 64 by 64 coarse pixels.
#| caption: All that the network sees of the photograph.
plt.figure(figsize=(5.6, 2.4), layout="constrained")
plt.imshow((x[0].transpose(1, 2, 0) * preset.std + preset.mean).clip(0, 1))
plt.axis("off")
plt.show()

# %% [markdown]
# Each of these steps belongs to the network as much as its weights do. Give it another size than it
# learned from, and it is less sure:

# %%
for enlarge in (32, 64, 96):
    other = minires.preprocess("examples/images/cat.jpg", replace(preset, enlarge=enlarge))
    best = minires.predict(model, other, top=1)[0][0]
    print(f"enlarged to {enlarge}: {best.probability:.0%} {best.label}")

# %% [markdown]
# ## Layer by layer
#
# `model.steps` hands you each layer's output as it is computed. From the first step on, activations
# are NHWC: batch, height, width, channels. Here are the last layer of each stage, and what comes
# before and after:

# %%
kept = {step.name: step.output for step in model.steps(x)}
stages = ["conv1", "layer1.2.conv3", "layer2.3.conv3", "layer3.5.conv3", "layer4.2.conv3"]
for name in ["input", *stages, "avgpool", "fc"]:
    print(f"{name:<16}{' x '.join(map(str, kept[name].shape[1:]))}")

# %%
#| code: folded
#| alt: Above, the largest value of each layer: between 1.5 and 5.6, without a trend, and only
#|   input, four downsamples and fc have negative values. Below, the share of zeros: about a half in
#|   most layers, less in the last convolution of a block, none in downsamples.
#| caption: The range of each layer's output, from the image to the logits, and its share of zeros.
#|   256 steps have to cover such a range in every layer.
names = list(kept)
figure, (above, below) = plt.subplots(
    2, 1, figsize=(5.6, 4.4), sharex=True, height_ratios=(3, 2), layout="constrained"
)
low, high = ([f(kept[name]) for name in names] for f in (np.min, np.max))
above.bar(range(len(names)), np.subtract(high, low), bottom=low, color=BLUE)
above.set_ylabel("smallest to largest")
zeros = [np.mean(kept[name] == 0) for name in names]
below.bar(range(len(names)), zeros, color=ORANGE)
below.set_ylabel("share of zeros")
below.set_xticks([names.index(name) for name in stages], [n.split(".")[0] for n in stages])
below.set_xlabel("ends of the stages")
plt.show()

# %% [markdown]
# The range stays small because each convolution is followed by a BatchNorm
# ([chapter 4](04_batchnorm)), which was made for that. The zeros come from ReLU. They cost a dense
# kernel as much time as any other number.
#
# ## What the layers see
#
# Of each stage, these are the four channels that answer most strongly. The first convolution finds
# edges. Later stages find things that no longer look like pixels, on ever fewer of them, until
# only 2 x 2 are left.

# %%
#| code: folded
#| alt: Five rows of four small pictures. In the first you recognise the cat's outline and eyes.
#|   Downwards they get coarser, and the last are two by two squares.
#| caption: The four busiest channels at the end of each stage. Bright is large.
figure, axes = plt.subplots(5, 4, figsize=(5.6, 7), layout="constrained")
for row, name in zip(axes, stages, strict=True):
    maps = kept[name][0]  # (h, w, channels)
    strongest = np.argsort(-maps.mean(axis=(0, 1)), kind="stable")[:4]
    for place, channel in zip(row, strongest, strict=True):
        place.imshow(maps[:, :, channel], cmap="viridis")
        place.set(xticks=[], yticks=[])
    row[0].set_ylabel(name.split(".")[0])
plt.show()

# %% [markdown]
# ## The answer
#
# The last layer's outputs are called *logits*: any numbers, one a class. Softmax turns them into
# probabilities, which are positive and add up to one:
#
# $$
# p_i = e^{y_i} \Big/ \sum_j e^{y_j} \tag{3.1}
# $$

# %%
for prediction in minires.predict(model, x, top=3)[0]:
    print(f"{prediction.probability:7.2%}  {prediction.label}")

# %% [markdown]
# ## Exercises
#
# **1.** Into how many values does `layer4` turn the 64 x 64 x 3 of the image? Are these more or
# fewer?
#
# <details>
# <summary>Answer</summary>
#
# 2 x 2 x 2048 = 8,192 values, two thirds of the image's 12,288. The image did not get small. It
# became wide: few places, and much to say about each.
#
# </details>
#
# **2.** What share of the outputs of `layer2.0.conv1` is zero for this picture? Does it make the
# network faster?
#
# <details>
# <summary>Answer</summary>
#
# Nearly half. No: a dense kernel multiplies zeros like all other numbers.
#
# </details>
#
# **3.** Add 100 to all logits. What happens to the probabilities? What does that tell you about
# errors of INT8 that hit all classes alike?
#
# <details>
# <summary>Answer</summary>
#
# Nothing happens. In equation 3.1 a factor of $e^{100}$ stands above and below, and cancels. Only
# differences between logits count, so an error that is the same for all classes is harmless.
#
# </details>

# %%
#| cell: All three answers, computed
assert max(np.abs(output).max() for output in kept.values()) < 6
assert kept["layer4.2.conv3"].size == 8192 == x.size * 2 // 3
assert 0.42 < np.mean(kept["layer2.0.conv1"] == 0) < 0.48
exponentials = np.exp(np.float64(kept["fc"][0]))
shifted = np.exp(np.float64(kept["fc"][0]) + 100)
assert np.allclose(exponentials / exponentials.sum(), shifted / shifted.sum())
assert np.isclose(minires.predict(model, x)[0][0].probability, max(shifted / shifted.sum()))
