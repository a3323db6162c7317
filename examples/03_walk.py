"""
Walking a photograph through the network
========================================

From a file to an answer, stopping after each layer to look. The network here is the small one
that comes with the package: it tells ten classes apart and wants 64 x 64 pixels. ImageNet's
differs in its numbers alone.
"""

import matplotlib.pyplot as plt
import numpy as np

import minires

model = minires.resnet50("CIFAR10")
x = minires.preprocess("examples/images/cat.jpg", model.meta["preset"])
print(x.shape, x.dtype)

# %%
# ``preprocess`` brings the short side to the size that the network was trained on, cuts out the
# centre, and subtracts the mean of the training pixels: what the network gets is centred on zero.
#
# ``model.steps`` yields each layer's output as it is computed. Activations are NHWC: batch,
# height, width, channels.

kept = {}
for step in model.steps(x):
    if step.name in ("conv1", "maxpool") or step.name.endswith("conv3") or step.op == "linear":
        print(f"{step.name:<16}{step.output_shape!s:<20}{step.macs:>12,} MACs")
    kept[step.name] = step.output

# %%
# What the layers see
# -------------------
#
# Of each stage, the four channels that answer most strongly. The stem finds edges; later stages
# find things that no longer look like pixels, on ever fewer of them, until two by two are left.

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

# %%
# The answer
# ----------
#
# The last layer's output, one number a class, is called *logits*. Softmax turns them into
# probabilities.

for prediction in minires.predict(model, x, top=3)[0]:
    print(f"{prediction.probability:7.2%}  {prediction.label}")

# %%
# Exercise
# --------
#
# ReLU replaces negative values by zero. What share of ``layer2.0.conv1``'s outputs is zero?
#
# *Answer.* About half or more, as for most layers: zeros cost a dense kernel as much as other
# numbers.

share = float((kept["layer2.0.conv1"] == 0).mean())
print(f"{share:.0%} zeros")
assert 0.2 < share < 0.95
