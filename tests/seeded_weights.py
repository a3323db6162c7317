"""A ResNet-50's weights from a seed: the same bits on every machine, without a download.

Only `numpy.random.RandomState.random_sample` is drawn from. Its stream is frozen, and a uniform
draw, unlike a normal one, calls no logarithm that could differ between C libraries. Every tensor
has a stream of its own, so that the order in which they are made does not matter.
"""

import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
RANGES = {  # of BatchNorms, and of the classifier's bias
    # Gamma takes both signs. Its spread, with the others', keeps the signal's size: the standard
    # deviation stays between 0.3 and 3 from the stem to the last block (test_golden.py).
    "weight": (-0.4, 1.5),
    "bias": (-0.5, 0.5),
    "running_mean": (-0.5, 0.5),
    "running_var": (0.5, 2.5),
}


def torchvision_shapes(num_classes: int = 1000) -> dict[str, tuple[int, ...]]:
    """List torchvision's state_dict, less num_batches_tracked; test_torchvision.py compares."""
    return dict(_shapes(num_classes))


def _shapes(num_classes: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    def conv_bn(conv: str, bn: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{conv}.weight", shape
        for field in RANGES:
            yield f"{bn}.{field}", shape[:1]

    yield from conv_bn("conv1", "bn1", 64, 3, 7, 7)
    in_c = 64
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        width = 32 * 2**stage
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            yield from conv_bn(f"{name}.conv1", f"{name}.bn1", width, in_c, 1, 1)
            yield from conv_bn(f"{name}.conv2", f"{name}.bn2", width, width, 3, 3)
            yield from conv_bn(f"{name}.conv3", f"{name}.bn3", 4 * width, width, 1, 1)
            if block == 0:
                shortcut = f"{name}.downsample"
                yield from conv_bn(f"{shortcut}.0", f"{shortcut}.1", 4 * width, in_c, 1, 1)
            in_c = 4 * width
    yield "fc.weight", (num_classes, in_c)
    yield "fc.bias", (num_classes,)


def uniform(low: float, high: float, shape: tuple[int, ...], *seed: int) -> Array:
    """Draw float32 values between low and high."""
    drawn = np.random.RandomState(seed).random_sample(shape)
    return (low + (high - low) * drawn).astype(np.float32)


def seeded_input(shape: tuple[int, ...], seed: int = 0) -> Array:
    """Make a batch that looks normalized: mean 0, standard deviation 1, (N, 3, H, W)."""
    return uniform(-(3**0.5), 3**0.5, shape, seed)


@cache
def seeded_state_dict(seed: int = 0, num_classes: int = 1000) -> dict[str, Array]:
    """Make a state_dict: He-scaled convolutions, spread BatchNorms. Read-only, as it is shared."""
    state = {}
    for key, shape in torchvision_shapes(num_classes).items():
        field = key.rpartition(".")[2]
        if len(shape) > 1:  # He: variance 2 / fan_in, which a uniform on +-sqrt(6 / fan_in) has
            high = float(6 / np.prod(shape[1:])) ** 0.5
            low = -high
        else:
            low, high = RANGES[field]
        state[key] = uniform(low, high, shape, seed, zlib.crc32(key.encode()))
        state[key].flags.writeable = False
    return state
