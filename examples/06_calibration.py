"""
Calibration: which range shall 256 steps cover?
===============================================

The weights of a network are known; what its activations will be is not. *Calibration* runs the
float32 network on a few images and chooses a range for each edge. A wide range makes coarse
steps; a narrow one cuts off what lies outside. Here four ways to choose are compared on a real
layer.
"""

import matplotlib.pyplot as plt
import numpy as np

import minires
from minires.quantize import OBSERVERS, calibrate, qparams_of_range, quantize_model
from minires.quantize.default import default_batches
from minires.quantize.observers import HistogramObserver
from minires.reference import fake_quantize_ref

model = minires.resnet50("CIFAR10", backend="numpy")
batches = list(default_batches(model.meta["preset"]))  # crops of photographs that come along
name = "layer3.2.conv3"
values = np.concatenate(
    [step.output.ravel() for x in batches for step in model.steps(x) if step.name == name]
)
print(
    f"{name}: {values.size:,} values, {np.mean(values == 0):.0%} zero, largest {values.max():.2f}"
)

# %%
# Four observers
# --------------
#
# * **minmax** covers everything that was seen;
# * **percentile** leaves out the outermost 0.01%;
# * **entropy** keeps the distribution most like itself (Kullback-Leibler);
# * **mse** makes the mean squared error smallest.

ranges, errors = {}, {}
for kind, observer in OBSERVERS.items():
    edge = observer()
    edge.observe(values)
    ranges[kind] = edge.range()
    rounded = fake_quantize_ref(values, *qparams_of_range(*edge.range()))
    errors[kind] = float(np.mean((rounded - values) ** 2))
    print(
        f"{kind:<11} up to {edge.range()[1]:.2f}, outside {edge.saturated():.3%}, "
        f"mean squared error {errors[kind]:.2e}"
    )

histogram = HistogramObserver()
histogram.observe(values)
plt.figure(figsize=(8, 3), layout="constrained")
positive = histogram.centres() > histogram.limit / 4096  # zero alone would dwarf all else
plt.semilogy(histogram.centres()[positive], np.maximum(histogram.counts[positive], 0.5))
for (kind, (_, high)), color in zip(ranges.items(), ("C1", "C2", "C3", "C4"), strict=True):
    plt.axvline(high, color=color, label=kind)
plt.xlabel(f"output of {name}")
plt.ylabel("how often")
plt.legend()
plt.show()

# %%
# What it does to the answer
# --------------------------
#
# The same images through INT8 networks calibrated each way: how far are the logits from float32's?

x = np.concatenate(batches)
expected = model(x)
for kind in OBSERVERS:
    int8 = quantize_model(model, calibrate(model, batches, kind))
    y = int8(x)
    same = np.mean(y.argmax(axis=1) == expected.argmax(axis=1))
    print(
        f"{kind:<11} root mean square {np.sqrt(np.mean((y - expected) ** 2)):.3f}, "
        f"same label on {same:.0%}"
    )

# %%
# Exercise
# --------
#
# Of the four, which has the smallest mean squared error on the values it was shown, and why is it
# no surprise?
#
# *Answer.* mse, because that is what it minimizes; up to its histogram's bins and the ranges that
# it tries.

assert errors["mse"] <= 1.02 * min(errors.values())
