# %% [markdown]
# # 4. BatchNorm folds away
#
# In training, a BatchNorm after each convolution keeps the numbers in range. At inference its four
# vectors are constants, and can be multiplied into the weights: the network loses 53 layers.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minires
from minires.checkpoint import read_checkpoint
from minires.model import ResNet50
from minires.reference import batchnorm_ref, fold_batchnorm
from minires.unfuse import unfuse

# %% [markdown]
# ## The algebra
#
# With gamma, beta, mean and variance per channel, a convolution and its BatchNorm are
#
# $$
# y = \gamma \frac{(w \cdot x) - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta
# = \underbrace{\frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} w}_{w'} \cdot x
# + \underbrace{\beta - \frac{\gamma\,\mu}{\sqrt{\sigma^2 + \epsilon}}}_{b'} \tag{4.1}
# $$
#
# so a convolution with the weights $w'$ and the bias $b'$ does the work of both.

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
# own. The answers differ by float32's rounding and by nothing else.

# %%
model = minires.resnet50("CIFAR10", backend="numpy")
x = model.preprocess("examples/images/cat.jpg")
fused, unfused = model(x), unfuse(read_checkpoint("weights/resnet50_cifar10.safetensors"))(x)
print(f"logits up to {np.abs(fused).max():.1f}, apart by {np.abs(fused - unfused).max():.1e}")
assert np.abs(fused - unfused).max() < 1e-3

# %% [markdown]
# ## What folding does to quantization
#
# Folding multiplies each output channel by its own factor, so channels of one layer come to differ
# in size. One scale for the whole layer would leave the small ones few steps; this is why weights
# get a scale *per output channel*. Rounded to 8 and to 4 bits in both ways, the logits are off, in
# the root mean square, by this share of their own:

# %%
#| alt: 04_batchnorm, a picture
for bits, axis in [(8, 1), (8, None), (4, 1), (4, None)]:
    params = {}
    for name, p in model.params.items():
        step = np.abs(p.weight).max(axis=axis, keepdims=True) / (2 ** (bits - 1) - 1)
        params[name] = p._replace(weight=np.rint(p.weight / step) * step)
    y = ResNet50(model.layers, params)(x)
    off = np.sqrt(np.mean((y - fused) ** 2) / np.mean(fused**2))
    print(f"{bits} bits, a scale for each {'channel' if axis else 'tensor '}: off by {off:.1%}")

weight = model.params["layer1.0.conv1"].weight  # (N, K), BatchNorm folded in
largest = np.sort(np.abs(weight).max(axis=1))
plt.figure(figsize=(7, 3), layout="constrained")
plt.bar(range(len(largest)), largest)
plt.gca().set(xlabel="output channels of layer1.0.conv1, sorted", ylabel="largest weight")
plt.show()

# %% [markdown]
# ## Exercise
#
# How many of the 127 positive steps would the smallest channel use if all shared one scale?
#
# *Answer.* Its largest weight, over the layer's largest, times 127:

# %%
steps = np.rint(127 * largest[0] / largest[-1])
print(f"{steps:.0f} of 127 steps")
assert np.abs(np.rint(weight * 127 / largest[-1])).max(axis=1).min() == steps
