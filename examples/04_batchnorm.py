# %% [markdown]
# # 4. BatchNorm folds away
#
# A BatchNorm follows each convolution, and in training it keeps the numbers in range. At inference
# it only multiplies each channel by a constant and adds another. So you can multiply the weights
# instead, once, and 53 layers disappear without changing the answer. But the channels' weights come
# to differ in size, more than a hundredfold in one layer, and this is why INT8 gives each its own
# scale.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minires
from minires.checkpoint import read_checkpoint
from minires.measure.plots import BLUE, ORANGE
from minires.model import ResNet50
from minires.reference import batchnorm_ref, fold_batchnorm
from minires.unfuse import unfuse

# %% [markdown]
# ## The algebra
#
# In training, a BatchNorm subtracts a channel's mean $\mu$ and divides by its standard deviation
# $\sigma$. A small $\epsilon$ keeps that from being a division by zero. Then it multiplies by
# $\gamma$ and adds $\beta$, which the network learns ([Ioffe and Szegedy
# 2015](https://arxiv.org/abs/1502.03167)). At inference $\mu$, $\sigma$, $\gamma$ and $\beta$ are
# constants. Write the convolution's sum as $w \cdot x$, and sort by what x is multiplied with:
#
# $$
# \begin{aligned}
# f &= \gamma / \sqrt{\sigma^2 + \epsilon} \\
# y &= f\, (w \cdot x - \mu) + \beta \\
# &= \underbrace{(f\, w)}_{w'} \cdot\, x + \underbrace{(\beta - f \mu)}_{b'}
# \end{aligned} \tag{4.1}
# $$
#
# This is again a convolution, with the weights $w'$ and the bias $b'$.

# %%
random = np.random.default_rng(0)
w = random.normal(size=(8, 1, 1, 16)).astype(np.float32)  # OHWI
x = random.normal(size=(5, 16)).astype(np.float32)  # (M, K): a 1x1 convolution of five pixels
gamma, beta, mean = random.normal(size=(3, 8)).astype(np.float32)
var = random.uniform(0.5, 2, 8).astype(np.float32)

apart = batchnorm_ref(x @ w.reshape(8, 16).T, gamma, beta, mean, var)
folded, bias = fold_batchnorm(w, gamma, beta, mean, var)
together = x @ folded.reshape(8, 16).T + bias
print(f"largest difference {np.abs(apart - together).max():.1e}")
assert np.allclose(apart, together, atol=1e-5)

# %% [markdown]
# ## In the whole network
#
# `unfuse` makes a network whose convolutions, BatchNorms, additions and ReLUs are layers of their
# own. Its answers differ from the folded network's only by float32's rounding.

# %%
model = minires.resnet50("CIFAR10", backend="numpy")
checkpoint = read_checkpoint("weights/resnet50_cifar10.safetensors")
x = model.preprocess("examples/images/cat.jpg")
fused, unfused = model(x), unfuse(checkpoint)(x)
print(f"logits up to {np.abs(fused).max():.1f}, apart by {np.abs(fused - unfused).max():.1e}")
assert np.abs(fused - unfused).max() < 1e-3

# %% [markdown]
# ## What folding does to the weights
#
# Each output channel is multiplied by its own $f$. In the last convolution of a block the $f$
# differ most: training can turn a channel nearly off there, because the shortcut carries on without
# it.

# %%
#| code: folded
#| alt: Two lines over 256 channels, sorted by size, on a logarithmic axis. Before folding, the
#|   largest weight of a channel goes from 0.09 to 0.7. After it, the line begins at 0.0013, just
#|   above half a step, and ends at 0.3.
#| caption: The largest weight of each output channel of `layer1.0.conv3`, before its BatchNorm is
#|   folded in and after. The dashed line is half a step if one scale of eight bits serves them
#|   all. A channel below it would become all zeros.
NAME = "layer1.0.conv3"
raw = np.abs(checkpoint[f"{NAME}.weight"]).reshape(256, -1).max(axis=1)
largest = np.sort(np.abs(model.params[NAME].weight).max(axis=1))
figure, axes = plt.subplots(layout="constrained")
axes.semilogy(np.sort(raw), color=BLUE, label="before folding")
axes.semilogy(largest, color=ORANGE, label="after")
axes.axhline(largest[-1] / 127 / 2, color=ORANGE, linestyle="--", label="half a step of one scale")
axes.set(xlabel="output channels, sorted", ylabel="largest weight")
axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), columnspacing=1)
plt.show()

# %% [markdown]
# One scale for the whole layer would have to cover the largest channel, and would leave few steps
# to the small ones. So weights get a scale *per output channel*. This costs nothing at run time:
# the scale multiplies a whole sum, after all its products (equation 5.5 in [chapter
# 5](05_eight_bits)). Round the weights both ways, to 8 bits and to 4, and compare the logits with
# float32's:

# %%
for bits, axis in [(8, 1), (8, None), (4, 1), (4, None)]:
    params = {}
    for name, p in model.params.items():
        step = np.abs(p.weight).max(axis=axis, keepdims=True) / (2 ** (bits - 1) - 1)
        params[name] = p._replace(weight=np.rint(p.weight / step) * step)
    y = ResNet50(model.layers, params)(x)
    off = np.sqrt(np.mean((y - fused) ** 2) / np.mean(fused**2))  # root mean square
    print(f"{bits} bits, a scale for each {'channel:' if axis else 'tensor:':<9}off by {off:.1%}")

# %% [markdown]
# ## Exercises
#
# **1.** A channel has $\gamma = 2$, $\beta = 1$, $\mu = 3$ and $\sigma^2 + \epsilon = 4$. What do
# its weights and its bias become?
#
# <details>
# <summary>Answer</summary>
#
# $f = 2 / 2 = 1$, so the weights stay as they are. The bias is $1 - 1 \cdot 3 = -2$.
#
# </details>
#
# **2.** All channels of `layer1.0.conv3` share one scale, whose largest weight gets 127. Which
# integer does the largest weight of the smallest channel get?
#
# <details>
# <summary>Answer</summary>
#
# 1: it is a 233rd of the largest weight, so 127 / 233 = 0.54 of a step. All other weights of this
# channel become 0 or 1 in size, too.
#
# </details>
#
# **3.** A ReLU stands between a convolution and a BatchNorm. Can you still fold the BatchNorm into
# the weights before it? And into those of the next layer?
#
# <details>
# <summary>Answer</summary>
#
# Not before it, if any $f$ is negative or $b'$ is not zero: $f \max(0, a) + b'$ is not
# $\max(0, f a + b')$. After it you can: the next layer is linear in its input, so $f$ goes into its
# weights. But $b'$ goes into its bias only where no padding is read, because there the zeros come
# *after* the BatchNorm.
#
# </details>

# %%
#| cell: All three answers, computed
one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
w, b = fold_batchnorm(one, 2 * one, one, 3 * one, 4 * one - np.float32(1e-5))
assert np.allclose([w[0], b[0]], [1, -2])
assert round(largest[-1] / largest[0]) == 233
assert np.rint(127 * largest[0] / largest[-1]) == 1
assert -1 * max(0, 5) + 2 != max(0, -1 * 5 + 2), "f = -1, a = 5, b = 2"
