# %% [markdown]
# # 6. Calibration: which range shall 256 steps cover?
#
# You know a network's weights, but not its *activations*: what its layers will put out.
# *Calibration* runs the float32 network on a few photographs and looks. Then it chooses a range for
# each *edge*, which is the output of a layer. Here is the verdict first:
#
# - **Ranges**: take `mse`. In a trial with eight photographs and GPTQ, `minmax` ended 3.6 dB lower
#   and `percentile` 2.6 dB. (3 dB more signal over noise means half the noise.)
# - **Weights**: round them by `gptq`. Against rounding to the nearest that brings 2.2 dB with eight
#   photographs, and 3.3 dB with 128.
# - **Photographs**: take 128 of your own. They bring 2.3 dB over the eight in the package. Those
#   will do if you have none.
# - **Bias**: correct it only if you round to the nearest.
#
# `minires quantize --calibrate FOLDER -o FILE` does that. The [page on accuracy](../accuracy) has
# the table: ImageNet's weights, on 266 photographs that no recipe has seen. ONNX Runtime and NNCF
# are in it, too. With the same photographs they end 2.5 to 6.5 dB lower.

# %%
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import minires
from minires.measure.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY
from minires.model import resnet50_layers
from minires.quantize import OBSERVERS
from minires.quantize.default import default_batches
from minires.quantize.moments import Moments
from minires.quantize.observers import HistogramObserver
from minires.quantize.rounding import ROUNDINGS
from minires.summary import summarize

table = {}  # by rounding and photographs: SQNR, KL, agreement and its interval
for line in Path("docs/accuracy.md").read_text(encoding="utf-8").splitlines():
    if recipe := re.match(r"\| mse, (\w+), off, ([^|]+) \|", line):
        figures = re.findall(r"[\d.]+", line[recipe.end() :])
        table[recipe[1], recipe[2]] = [float(figure) for figure in figures[:5]]
sqnr = {recipe: figures[0] for recipe, figures in table.items()}
gains = [sqnr["gptq", n] - sqnr["nearest", n] for n in ("package", "128")]
gains.append(sqnr["gptq", "128"] - sqnr["gptq", "package"])
assert [round(gain, 1) for gain in gains] == [2.2, 3.3, 2.3], "as the text says"

# %% [markdown]
# ## One range, on real values
#
# A wide range makes coarse steps, and coarse steps round badly. A narrow range cuts off large
# values. You pay for either. This is the output of the first convolution, for 32 crops of the
# package's photographs:

# %%
model = minires.resnet50("CIFAR10")
values, seen, largest, name = [], Moments(), [], "layer3.2.conv3"
for x in default_batches(model.meta["preset"]):
    for step in model.steps(x):
        if step.name == "conv1":
            values.append(step.output.ravel())
        if step.name == name:  # for later
            seen.observe(step.layer, step.inputs[0])
            largest.append(float(step.output.max()))
assert [round(min(largest), 1), round(max(largest), 1)] == [2.1, 9.2]
values = np.concatenate(values)
histogram = HistogramObserver()
histogram.observe(values)
edges = {kind: observer() for kind, observer in OBSERVERS.items()}
for edge in edges.values():
    edge.observe(values)

# %%
#| code: folded
#| alt: Above, a histogram that falls steeply, with lines where percentile, mse, entropy and minmax
#|   end their ranges, in this order. Below, the error against the range's end: rounding rises,
#|   clipping falls, and their sum is lowest at the line of mse.
#| caption: Above, the values and where each observer ends its range. Below, what a range costs.
#|   Left of the lowest point clipping dominates, right of it rounding.
x, counts = histogram.centres(), histogram.counts
ends = np.linspace(4, histogram.high, 90)
rounding, clipping = [], []
for end in ends:
    squares = (x - np.clip(np.rint(x * 255 / end), 0, 255) * end / 255) ** 2
    rounding.append(np.sum((counts * squares)[x <= end]) / values.size)
    clipping.append(np.sum((counts * squares)[x > end]) / values.size)
figure, (upper, lower) = plt.subplots(2, 1, figsize=(5.6, 4.8), sharex=True, layout="constrained")
shown = (x > histogram.limit / 1024) & (counts > 0)  # zero alone would dwarf all else
upper.semilogy(x[shown], counts[shown], color=GREY, linewidth=1)
styles = zip(edges.items(), (BLUE, PURPLE, GREEN, ORANGE), ("-", "--", "-.", ":"), strict=True)
for (kind, edge), color, style in styles:
    for axes in (upper, lower):
        axes.axvline(edge.range()[1], color=color, linestyle=style, linewidth=2, label=kind)
upper.set(ylabel="values in a bin")
upper.legend(loc="upper center", bbox_to_anchor=(0.47, 1.05))
lower.semilogy(ends, rounding, color=SKY, label="rounding")
lower.semilogy(ends, np.maximum(clipping, 1e-9), "--", color=GREY, label="clipping")
lower.semilogy(ends, np.add(rounding, clipping), color=ORANGE, linewidth=2, label="both")
lower.set(xlabel="end of the range", ylabel="mean squared error", ylim=(1e-6, 1e-2))
lower.legend(*(half[4:] for half in lower.get_legend_handles_labels()), loc="center left")
plt.show()

# %% [markdown]
# Four *observers* choose in four ways:
#
# - `minmax` covers all it saw. Take it if you know that there are no outliers.
# - `percentile` leaves out 0.01% at either end, however far out they lie. Here that is too much.
# - `entropy` keeps the distribution most like itself, by its Kullback-Leibler divergence.
# - `mse` takes the lowest point of the curve. It counts what you pay, so it is the default.
#
# Choose a range yourself, and see what becomes of the label:
#
# ```{lab} range
# ```
#
# ## Weights, rounded with an eye on the inputs
#
# Let two weights $w_1$ and $w_2$, in steps of their scale, be rounded to $q_1$ and $q_2$. Their
# errors are $e_i = w_i - q_i$, and an output is off by $e_1 x_1 + e_2 x_2$. One error can make up
# for the other, if the two inputs rise and fall together. Square $e_1 x_1 + e_2 x_2$, and sum over
# all inputs that calibration saw. With $H_{ij} = \sum x_i x_j$ this is
#
# $$ H_{11} e_1^2 + 2 H_{12}\, e_1 e_2 + H_{22} e_2^2 . $$
#
# Complete the square, as you would to solve a quadratic equation:
#
# $$
# \begin{aligned} & H_{11} \Bigl(e_1 + \frac{H_{12}}{H_{11}} e_2\Bigr)^2 \cr
# & + \Bigl(H_{22} - \frac{H_{12}^2}{H_{11}}\Bigr) e_2^2 \end{aligned}
# $$
#
# The second term has $e_2$ alone, so round $w_2$ to the nearest. The first becomes zero for $e_1 =
# -\frac{H_{12}}{H_{11}} e_2$. So do not round $w_1$, but $w_1 + \frac{H_{12}}{H_{11}} e_2$. That is
# all of *GPTQ*. For many weights, write $H = \sum x x^T$. Cholesky's factors, $H = L L^T$, complete
# one square after another:
#
# $$ \sum_x (e^T x)^2 = e^T H e = \lVert L^T e \rVert^2 \tag{6.1} $$
#
# $L$ is lower triangular. So entry $i$ of $L^T e$ has no errors but those from $i$ on. Begin with
# the last weight. Let each one before it make its own entry zero, as nearly as whole steps allow:
#
# $$ q_i = \mathrm{rint}\Bigl(w_i + \sum_{j > i} \frac{L_{ji}}{L_{ii}}\, e_j\Bigr) \tag{6.2} $$
#
# Two weights by hand: $w = (2.4, 1.4)$, $H_{11} = H_{22} = 1$, $H_{12} = 0.9$. The nearest is
# $(2, 1)$. GPTQ takes $q_2 = 1$, so $e_2 = 0.4$, and rounds $2.4 + 0.9 \cdot 0.4 = 2.76$ to 3.

# %%
#| code: folded
#| alt: A grid of whole numbers with two slanting ellipses around the point 2.4, 1.4. The nearest
#|   grid point, 2, 1, lies on the outer one, the point 3, 1 on the inner one.
#| caption: On an ellipse the outputs are equally wrong. The nearest point is not the best one.
w, hessian = np.array([2.4, 1.4]), np.array([[1, 0.9], [0.9, 1]])
cost = {q: float((w - q) @ hessian @ (w - q)) for q in [(3, 1), (2, 1)]}
print(f"squared error of the nearest {cost[2, 1]:.3f}, of GPTQ {cost[3, 1]:.3f}")
grid = np.stack(np.meshgrid(np.linspace(0.5, 4.4, 200), np.linspace(-0.4, 3.2, 200)), axis=-1)
figure, axes = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
all_costs = np.einsum("...i,ij,...j", grid - w, hessian, grid - w)
axes.contour(*np.moveaxis(grid, -1, 0), all_costs, list(cost.values()), colors=GREY)
axes.plot(*np.mgrid[1:5, 0:4].reshape(2, -1), ".", color=GREY)
for label, place, color in (("w", w, BLUE), ("nearest", (2, 1), SKY), ("GPTQ", (3, 1), ORANGE)):
    axes.plot(*place, "o", color=color, label=label)
axes.set(xlabel="first weight", ylabel="second weight", aspect="equal")
axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %%
# A real layer, on the inputs that calibration saw.
weight = model.params[name].weight
steps = weight / (np.abs(weight).max(axis=1, keepdims=True) / 127)
costs = {kind: seen.error(steps - round_(steps, seen)).mean() for kind, round_ in ROUNDINGS.items()}
print(f"{name}: GPTQ leaves {costs['gptq'] / costs['nearest']:.0%} of the mean squared error")
assert costs["gptq"] < costs["nearest"] / 2

# %% [markdown]
# Few photographs leave $H$ singular, so 1% of its mean diagonal is added to the diagonal. Weights
# of large inputs are put last, to be rounded first. A channel that gains nothing keeps the nearest.
#
# ## What is left of the mean
#
# The error $e^T x$ has a mean over all inputs, and the bias can take that off for nothing. With the
# mean input $\bar x$, add this to it:
#
# $$ m = e^T \bar x \tag{6.3} $$
#
# But $m$ comes from few images, so it has an error of its own. If $e^T x$ has the variance $v$, a
# mean over $n$ images has the variance $v / n$. Add $a m$ instead. Let $\mu$ be the true mean. Then
# $\mu - a m$ remains. Its square is $(1 - a)^2 \mu^2 + a^2 v / n$ on average, and smallest for
# $a = \mu^2 / (\mu^2 + v / n)$. We do not know $\mu$, so take $m$ in its place. This is the
# correction called *shrunk*:
#
# $$ \frac{m^2}{m^2 + v / n}\, m \tag{6.4} $$
#
# With nearest rounding the correction brought 0.8 dB. GPTQ weighs the mean in already: $H$ is the
# sum of $x x^T$, mean included.
#
# ## Why labels cannot tell recipes apart
#
# A label changes only if another logit becomes the largest, so most photographs say nothing. If 97%
# of 266 labels agree, the share is known to $\sqrt{0.97 \cdot 0.03 / 266}$, about a point. To tell
# 97% from 98% you need almost 2,000 photographs. The noise of the logits uses all 266,000 numbers.

# %%
#| code: folded
#| alt: Two plots above each other with a row for each recipe. Above, the recipes' signal-to-noise
#|   ratios lie well apart. Below, the intervals of the labels' agreement overlap.
#| caption: The same recipes. Above, how clean the logits are. Below, labels, with 95% intervals.
assert 1800 < 1.96**2 * (0.97 * 0.03 + 0.98 * 0.02) / 0.01**2 < 2000
rows = sorted(table, key=sqnr.get)
names = [f"{rounding}, {images.replace('package', 'the package')}" for rounding, images in rows]
noise, _, agreement, low, high = np.array([table[row] for row in rows]).T
figure, (upper, lower) = plt.subplots(2, 1, figsize=(5.6, 3.8), layout="constrained")
upper.plot(noise, names, "o", color=ORANGE)
upper.set(xlabel="SQNR of the logits, dB", ylim=(-0.5, len(rows) - 0.5))
lower.errorbar(agreement, names, xerr=abs([low, high] - agreement), fmt="o", color=SKY, capsize=4)
lower.set(xlabel="labels that agree, %", ylim=(-0.5, len(rows) - 0.5))
plt.show()

# %% [markdown]
# ## Static or dynamic?
#
# These ranges are *static*: chosen beforehand. *Dynamic* ones are taken from each input. They fit
# better, but an output has to be complete before its first byte can be made. Ranges do vary: the
# largest value of `layer3.2.conv3` lies between 2.1 and 9.2 in the package's photographs.
#
# ## Exercises
#
# **1.** Which of the four observers has the smallest mean squared error on what it was shown? Why?
#
# <details>
# <summary>Answer</summary>
#
# `mse`, because that is what it minimizes: the lowest point of the curve is where it ends.
#
# </details>
#
# **2.** Round $w = (0.4, 1.3)$ by hand, with $H_{11} = H_{22} = 1$ and $H_{12} = 0.5$.
#
# <details>
# <summary>Answer</summary>
#
# $q_2 = 1$, so $e_2 = 0.3$. Then $0.4 + 0.5 \cdot 0.3 = 0.55$ is rounded to 1. The error of $(1,
# 1)$ is $0.36 - 0.18 + 0.09 = 0.27$. That of $(0, 1)$, the nearest, is $0.16 + 0.12 + 0.09 = 0.37$.
#
# </details>
#
# **3.** Why does a tool that keeps all activations run out of memory? ResNet-50 has 11.1 million of
# them at 224 x 224, counting what convolutions write. Take 128 photographs, in float32.
#
# <details>
# <summary>Answer</summary>
#
# $11.1 \cdot 10^6 \cdot 4 \cdot 128$ bytes are 5.7 GB. An observer of minires keeps 4096 counts an
# edge, and sees one batch at a time.
#
# </details>

# %%
#| cell: The answers, computed
assert abs(ends[np.argmin(np.add(rounding, clipping))] - edges["mse"].range()[1]) < 0.2
w, hessian = np.array([0.4, 1.3]), np.array([[1, 0.5], [0.5, 1]])
assert np.allclose([(w - q) @ hessian @ (w - q) for q in ([1, 1], [0, 1])], [0.27, 0.37])
written = sum(np.prod(row.output_shape) for row in summarize(resnet50_layers()) if row.macs)
assert round(written / 1e6, 1) == 11.1
