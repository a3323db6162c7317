# %% [markdown]
# # 3. Walking a photograph through the network
#
# From a file to an answer, stopping after each layer to look. The network is the ResNet-50 that
# comes with the package: trained for ten classes, on images of 32 x 32, enlarged to 64 x 64.
# ImageNet's has the same layers, larger images and a wider classifier.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np

import minires

model = minires.resnet50("CIFAR10")
preset = model.meta["preset"]
x = minires.preprocess("examples/images/cat.jpg", preset)
print(preset, x.shape, x.dtype, sep="\n")

# %% [markdown]
# `preprocess` brings the short side to 32 pixels and cuts out the centre, because the network
# learned from images of 32 x 32; enlarges that to 64; subtracts the training pixels' mean and
# divides by their standard deviation. What comes out is NCHW, batch, channels, height, width, as
# PyTorch wants it. At another size than it learned from, a network is less sure:

# %%
#| alt: 03_walk, a picture
for enlarge in (32, 64, 96):
    shown = minires.preprocess("examples/images/cat.jpg", replace(preset, enlarge=enlarge))
    best = minires.predict(model, shown, top=1)[0][0]
    print(f"enlarged to {enlarge}: {best.probability:.0%} {best.label}")

plt.figure(figsize=(2, 2), layout="constrained")
plt.imshow((x[0].transpose(1, 2, 0) * preset.std + preset.mean).clip(0, 1))
plt.axis("off")
plt.show()

# %% [markdown]
# `model.steps` yields each layer's output as it is computed. From the first step on activations
# are NHWC: batch, height, width, channels.

# %%
kept = {}
for step in model.steps(x):
    print(f"{step.name:<22}{step.output_shape!s:<20}{step.macs:>12,} MACs")
    kept[step.name] = step.output

# %% [markdown]
# ## What the layers see
#
# Of each stage, the four channels that answer most strongly. The stem finds edges; later stages
# find things that no longer look like pixels, on ever fewer of them, until two by two are left.

# %%
#| alt: 03_walk, a picture
stages = ["conv1", "layer1.2.conv3", "layer2.3.conv3", "layer3.5.conv3", "layer4.2.conv3"]
figure, axes = plt.subplots(5, 4, figsize=(6, 7.5), layout="constrained")
for row, name in zip(axes, stages, strict=True):
    maps = kept[name][0]  # (h, w, channels)
    strongest = np.argsort(-maps.mean(axis=(0, 1)), kind="stable")[:4]
    for place, channel in zip(row, strongest, strict=True):
        place.imshow(maps[:, :, channel], cmap="gray")
        place.set(xticks=[], yticks=[])
    row[0].set_ylabel(name, fontsize=8)
plt.show()

# %% [markdown]
# ## The answer
#
# The last layer's output, one number a class, is called *logits*. Softmax turns them into
# probabilities.

# %%
for prediction in minires.predict(model, x, top=3)[0]:
    print(f"{prediction.probability:7.2%}  {prediction.label}")

# %% [markdown]
# ## Exercise
#
# ReLU replaces negative values by zero. What share of `layer2.0.conv1`'s outputs is zero?
#
# *Answer.* Nearly half of this picture's. They cost a dense kernel as much as other numbers.

# %%
share = float((kept["layer2.0.conv1"] == 0).mean())
print(f"{share:.0%} zeros")
assert 0.42 < share < 0.48
