# %% [markdown]
# # 17. How to check an INT8 kernel
#
# Compare a kernel's bytes with its definition's, allow no difference, and choose inputs that hurt.
# Accuracy is no check: a kernel that is wrong once in a thousand outputs still knows a cat. This
# page checks a kernel in four ways. Then it plants a wrong weight in the network, and finds it.

# %%
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
from planted import plant, replant  # examples/planted.py: do not read it yet

import minires
from minires.kernels import engine as engine_module
from minires.kernels.engine import Engine
from minires.layers import OPERATORS, Int8Params, Layer
from minires.measure import plots
from minires.reference import QParams

# %% [markdown]
# ## An oracle, and no tolerance
#
# An oracle is slow and obviously right. Ours is the definition in NumPy. INT8 lets you be strict:
# integer sums do not round, and the few float32 operations behind them (equations 7.2 and 7.3)
# round the same way on every CPU. So the bytes are equal, or the kernel is wrong.

# %%
IMAGE = Layer("x", "input", (), 20, 20, qparams=QParams(np.float32(0.5), 128))
define = OPERATORS["int8"]["conv"]


def make(w, bias, m):
    """Make a 3x3 convolution of 20 channels to 24 with the multiplier m: layer and parameters."""
    y = QParams(np.float32(0.5 / m), 128)
    layer = Layer("conv", "conv", ("x",), 20, 24, kernel=3, padding=1, qparams=y)
    return layer, Int8Params(IMAGE.qparams, w, np.ones(24, np.float32), bias)


def run_both(x, layer, p):
    """Compute by the definition and by the compiled kernel."""
    engine = Engine([IMAGE, layer], {"conv": p}, "int8")
    return define(layer, p, x), engine.run((1, 20, *x.shape[1:3]), layer, x)


random = np.random.default_rng(0)
x = random.integers(0, 256, (1, 7, 9, 20), np.uint8)
w = random.integers(-127, 128, (24, 180)).astype(np.int8)
bias = random.integers(-1000, 1000, 24).astype(np.int32)
layer, p = make(w, bias, 1e-3)
expected, y = run_both(x, layer, p)
print(f"{y.size} outputs, {y.min()} to {y.max()}, {(expected != y).sum()} differ")
assert np.array_equal(expected, y)
assert 63 % Engine([IMAGE], {}, "int8").tiling.rows, "the last tile is not full"

# %% [markdown]
# ## Inputs that hurt
#
# Random bytes seldom come near the ends. So set all bytes to 255, and all weights to 127 or -128: a
# sum that is kept in 16 bits breaks here. Next, make ties. A multiplier of 1/2 puts every odd sum
# between two steps, where a kernel that rounds halves up is wrong. And choose a size whose last
# tile is not full: here 7 x 9 pixels, since tiles have an even number of rows.

# %%
small = random.integers(-1, 2, w.shape).astype(np.int8)
offset = 128 * small.sum(axis=1, dtype=np.int32)  # the zero point's part, as in equation 7.1
full, tiny = np.full_like(x, 255), 127 / (20 * 9 * 255 * 128)  # over the largest sum there is
cases = {
    "largest": (full, np.full_like(w, 127), 0 * bias, tiny),
    "smallest": (full, np.full_like(w, -128), 0 * bias, tiny),
    "ties": (x % 4 + 126, small, bias % 7 - offset, 1 / 2),
}
for name, (hurting, *parameters) in cases.items():
    right, ours = run_both(hurting, *make(*parameters))
    print(f"{name:<9}outputs from {right.min()} to {right.max()}")
    assert np.array_equal(right, ours)

# %% [markdown]
# ## Zero points at padding
#
# Padding stands for the real number 0. In bytes that is the zero point, here 128. A kernel that
# fills its padding with the byte 0 puts $-128\, s_x$ where 0 belongs. Only pixels at the edge see
# it. Behind a ReLU no pixel would, because the zero point is 0 there. So check a layer whose zero
# point is not 0, and look at *where* outputs differ. Each bug has a fingerprint.

# %%
#| alt: Three maps of 7 by 9 pixels. Padding of 0 lights the ring at the edge up, a lost tile the
#|   last three pixels of the last row, and swapped channels all pixels.
#| caption: Which pixels differ from the definition. The brighter a pixel, the more channels differ.
#| code: folded
bugs = {"padding of 0": define(layer, p._replace(x_qparams=QParams(np.float32(0.5), 0)), x)}
bugs["a lost tile"] = y.copy()
bugs["a lost tile"].reshape(63, 24)[60:] = 128  # 63 pixels in tiles of 6: the last has 3
bugs["swapped channels"] = y[..., ::-1]
figure, drawn = plt.subplots(1, 3, figsize=(5.6, 1.7), layout="constrained")
for axes, (name, wrong) in zip(drawn, bugs.items(), strict=True):
    axes.imshow((wrong != expected)[0].mean(axis=-1), vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.set_title(name, fontsize=10)
plt.show()
assert not (bugs["padding of 0"] != expected)[0, 1:-1, 1:-1].any(), "the edge alone"

# %% [markdown]
# ## Canaries
#
# A kernel can have all outputs right and still destroy its neighbour's memory. Miners took a canary
# along: it fell silent before the air harmed them. Our canaries are bytes with a known value, in
# front of a buffer and behind it. If one of them changes, the kernel wrote outside its buffer.

# %%
CANARY, ROOM = 0x5A, 4096  # the value, and how many bytes of it on each side
guarded = []


def with_canaries(shape, dtype, fill=0):
    """Stand in for the engine's `aligned`: the same array, between canaries."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.full(size + 2 * ROOM + 64, CANARY, np.uint8)
    start = ROOM + (-memory.ctypes.data - ROOM) % 64  # the array begins on a cache line
    array = memory[start : start + size].view(dtype).reshape(shape)
    array[...] = fill
    guarded.append((memory, start, start + size))
    return array


with mock.patch.object(engine_module, "aligned", with_canaries):
    assert np.array_equal(run_both(x, layer, p)[1], expected)
silent = sum(np.sum(m[:i] != CANARY) + np.sum(m[j:] != CANARY) for m, i, j in guarded)
print(f"the engine: {silent} canaries silent")
assert silent == 0
# A kernel that always stores whole tiles of 6 rows: 66, where the output has 63.
out = with_canaries((63, 24), np.uint8)
memory, start, end = guarded[-1]
tiles = expected.reshape(63, 24)[np.minimum(np.arange(66), 62)]
memory[start : start + tiles.size] = tiles.ravel()
print(f"a clumsy kernel: {np.sum(memory[end:] != CANARY)} silent, outputs right")
assert np.array_equal(out, expected.reshape(63, 24))

# %% [markdown]
# The engine stores whole tiles, too, but its plan gives each buffer a spare row for what the last
# one hangs over. The canaries stand behind that.
#
# ## Check the checker: plant a bug
#
# A check that cannot fail finds nothing. So plant a bug, and see that your check finds it. (With
# floats, write the comparison so that NaN fails: `abs(a - b) <= limit`.) Here one weight in one
# channel of one layer is off by one. Walk both networks side by side with `model.steps`, and stop
# where they first differ.

# %%
model = minires.resnet50("CIFAR10", "int8")
cat = model.preprocess("examples/images/cat.jpg")


def differences(suspect):
    """Tell by layer how many percent of the outputs are not the right network's."""
    both = zip(model.steps(cat), suspect.steps(cat), strict=True)
    return {a.name: 100 * np.mean(a.output != b.output) for a, b in both}


wrong_w = model.params["layer1.0.conv1"].w_s8.copy()
wrong_w[3, 17] += 1
suspect = replant(model, "layer1.0.conv1", w_s8=wrong_w)
found = {name: count for name, count in differences(suspect).items() if count}
for name in ("layer1.0.conv1", "fc"):
    print(f"{name}: {found[name]:.2f}% of the outputs differ")
assert next(iter(found)) == "layer1.0.conv1"
assert model(cat)[0].argmax() == suspect(cat)[0].argmax(), "the label is the same"

# %%
#| alt: The share of outputs that differ, layer by layer, on a logarithmic scale. It begins at
#|   0.03%, climbs in ten layers to ten percent, and ends at 100% of the logits.
#| caption: One weight is off by one in `layer1.0.conv1`. The difference spreads with every layer.
#| code: folded
figure, axes = plt.subplots(layout="constrained")
axes.semilogy(list(found.values()), ".-", color=plots.COLORS["int8"])
axes.set(xlabel="layers from the planted bug on", ylabel="% of outputs that differ")
axes.grid(alpha=0.3)
plt.show()

# %% [markdown]
# In the end all logits differ, but the label is the same. In the layer with the bug, only 0.03% of
# the photograph's outputs show it. A bias that is off by one would show in none (exercise 2). So
# choose the bytes that you hand to each layer, the same to both networks. Then no early bug hides a
# later one.
#
# ## Exercises
#
# **1.** A colleague lets every byte differ by one, "because of rounding". Which bugs of this page
# would pass?
#
# <details>
# <summary>Answer</summary>
#
# Halves rounded up, the wrong weight and the wrong bias. The wrong weight moves its own layer's
# outputs by one step only. But in the end all logits are wrong.
#
# </details>
#
# **2.** Add 1 to `bias_s32[7]` of `layer2.1.conv2`. How many outputs of the cat change, and why?
#
# <details>
# <summary>Answer</summary>
#
# None. It moves an output by $m$ of a step before rounding. The output changes only if it lay just
# below the middle between two steps. So *ties* are among the inputs that hurt.
#
# </details>
#
# **3. The final project: find the planted off-by-one.** `plant(model, 2019)` makes a network with
# a bug in one layer that pads: a weight, an output channel or the padding is off by one. Find the
# layer, and which of the three it is, from outputs alone. Then try other numbers.
#
# <details>
# <summary>Answer</summary>
#
# Hand each layer of both networks the same bytes, most of them its zero point. If several channels
# differ, it is the padding. If one channel differs nearly everywhere that it is not clipped, it is
# the channel. If one differs here and there, it is a weight. You can easily miss a weight. Then try
# more bytes.
#
# </details>

# %%
#| cell: The answers, computed
right, theirs = (list(net.steps(cat))[3].output.astype(int) for net in (model, suspect))
assert np.abs(right - theirs).max() == 1
bias_s32 = model.params["layer2.1.conv2"].bias_s32.copy()
bias_s32[7] += 1
assert not any(differences(replant(model, "layer2.1.conv2", bias_s32=bias_s32)).values())


def hunt(suspect):
    """Name the first layer that differs, and tell its bug by the fingerprint."""
    for layer in (layer for layer in model.layers if layer.padding and layer.bn):
        p, q = (net.params[layer.name] for net in (model, suspect))
        zero_point = p.x_qparams.zero_point
        x_u8 = random.integers(zero_point, 256, (1, 16, 16, layer.in_c)).astype(np.uint8)
        x_u8[random.random(x_u8.shape) > 0.1] = zero_point
        right, wrong = define(layer, p, x_u8), define(layer, q, x_u8) != define(layer, p, x_u8)
        found = wrong.any(axis=(0, 1, 2))  # by channel
        if found.sum() > 1:
            return layer.name, "padding"
        if found.any():
            unclipped = (right > 0) & (right < 255) & found
            return layer.name, "channel" if wrong.sum() > 0.9 * unclipped.sum() else "weight"
    return "no layer", "bug"


name, kind = hunt(plant(model, 2019))
print(f"2019: the {kind}, in {name}")
assert (name, kind) == ("layer2.1.conv2", "channel")
