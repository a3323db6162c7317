# %% [markdown]
# # 6. Calibration: which range shall 256 steps cover?
#
# The weights of a network are known; what its activations will be is not. *Calibration* runs the
# float32 network on a few images and chooses a range for each *edge*: the output of a layer. A wide
# range makes coarse steps; a narrow one cuts off what lies outside. Four ways to choose, compared.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minires
from minires.quantize import OBSERVERS, ROUNDINGS, calibrate, qparams_of_range, quantize_weights
from minires.quantize.default import default_batches
from minires.quantize.observers import HistogramObserver
from minires.reference import fake_quantize_ref

model = minires.resnet50("CIFAR10")
batches = list(default_batches(model.meta["preset"]))  # crops of photographs that come along
values = {"conv1": [], "layer2.1.conv2": [], "layer3.2.conv3": []}
for x in batches:
    for step in model.steps(x):
        if step.name in values:
            values[step.name].append(step.output.ravel())

# %% [markdown]
# ## Four observers
#
# **minmax** covers everything that was seen, **percentile** leaves out the outermost 0.01%,
# **entropy** keeps the distribution most like itself (Kullback-Leibler), and **mse** makes the mean
# squared error smallest.

# %%
#| alt: 06_calibration, a picture
found, costs, styles = {}, {}, ("C1-", "C2--", "C3-.", "C4:")
figure, drawn = plt.subplots(1, 3, figsize=(9, 3), sharey=True, layout="constrained")
for axes, (name, parts) in zip(drawn, values.items(), strict=True):
    all_values, errors, histogram = np.concatenate(parts), {}, HistogramObserver()
    print(f"{name}: {all_values.size:,} values, {np.mean(all_values == 0):.0%} zero")
    for (kind, observer), style in zip(OBSERVERS.items(), styles, strict=True):
        edge = observer()
        edge.observe(all_values)
        rounded = fake_quantize_ref(all_values, *qparams_of_range(*edge.range()))
        errors[kind] = float(np.mean((rounded - all_values) ** 2))
        print(f"  {kind:<11} up to {edge.range()[1]:.2f}, outside {edge.saturated():.3%}, "
              f"mean squared error {errors[kind]:.2e}")  # fmt: skip
        axes.axvline(edge.range()[1], color=style[:2], linestyle=style[2:], label=kind)
    histogram.observe(all_values)
    positive = histogram.centres() > histogram.limit / 4096  # zero alone would dwarf all else
    axes.semilogy(histogram.centres()[positive], np.maximum(histogram.counts[positive], 0.5))
    axes.set(title=name, xlabel="output")
    found[name] = errors
drawn[0].set(ylabel="how often")
drawn[-1].legend()
plt.show()

# %% [markdown]
# ## Rounding with an eye on the inputs
#
# The weights are rounded, too, and that costs more. Where $e$ are the errors of a channel's
# weights, its output is off by $e^T x$. *GPTQ* looks at the inputs $x$, and rounds each
# weight so that it makes up for those rounded before (:doc:`equations 6.1 and 6.2 </accuracy>`).

# %%
calibration = calibrate(model, batches, moments=True)
seen, p = calibration.moments[name], model.params[name]
x_qparams = qparams_of_range(*calibration.ranges["layer3.2.conv2"])
for rounding in ROUNDINGS:
    w_s8, w_scale, _ = quantize_weights(p, x_qparams, rounding, "off", seen)
    costs[rounding] = seen.error(p.weight - w_s8 * w_scale[:, None]).mean()
    print(f"{name}, {rounding}: mean squared error of an output {costs[rounding]:.2e}")

# %% [markdown]
# Which recipe wins when, and by how much, :doc:`a table </accuracy>` tells for ImageNet's weights.
# These ranges are *static*: chosen beforehand. *Dynamic* ones are taken from each input. They fit
# better, but nothing can be quantized before all of an output is there. One edge, by photograph:

# %%
print(name, "up to", *(f"{part.max():.1f}" for part in parts))

# %% [markdown]
# ## Exercise
#
# Of the four, which has the smallest mean squared error on what it was shown, and why?
#
# *Answer.* mse, because that is what it minimizes; up to its histogram's bins and the ranges that
# it tries, which is why this check allows 2%.

# %%
assert all(errors["mse"] <= 1.02 * min(errors.values()) for errors in found.values())
assert costs["gptq"] < costs["nearest"]

# %% [markdown]
# ## In your browser
#
# Choose the range yourself, and see what becomes of the label.
#
# ```{lab} range
# ```
