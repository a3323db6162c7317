"""Where the tensors are in what people save: wrapped, under prefixes, in a whole model.

A training script saves more than a state_dict, and under names of its own. Here they become
torchvision's names. What belongs to no ResNet-50 keeps its name, so that an error can tell it.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from minires.errors import WeightsError, short, some
from minires.layers import Array, Shape
from minires.unpickle import Fields

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
NAMES = ("categories", "classes", "class_names", "class_to_idx", "idx_to_class", "id2label")
OF_A_MODULE = ("_parameters", "_buffers", "_modules")  # whose entries are the module's own
MOST_ENTRIES = 100_000  # of a whole model; a ResNet-152 has 10,000
LONGEST_NAME = 500  # characters
STEM = ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight")  # names that every ResNet has
HEAD = re.compile(r"fc\..+\.weight")  # a layer inside the classifier
# The blocks of the four stages, and the convolutions of a block.
ARCHITECTURES: dict[tuple[int, ...], str] = {
    (2, 2, 2, 2, 2): "ResNet-18",
    (3, 4, 6, 3, 2): "ResNet-34",
    (3, 4, 6, 3, 3): "ResNeXt-50 or a wide ResNet-50",  # if its shapes are others
    (3, 4, 23, 3, 3): "ResNet-101",
    (3, 8, 36, 3, 3): "ResNet-152",
}


def unwrap(loaded: object) -> tuple[dict[str, Array], dict[str, Any]]:
    """Find the tensors in what a file holds, and what the file says beside them of its classes."""
    beside: dict[str, Any] = {}
    for _ in range(3):  # wrapped in a wrapper, at most
        if not isinstance(loaded, dict):
            break
        beside |= {name: loaded[name] for name in NAMES if name in loaded}
        wrapper = next((k for k in WRAPPERS if isinstance(loaded.get(k), dict)), None)
        if wrapper is None or isinstance(loaded, Fields):
            break
        loaded = loaded[wrapper]
    if isinstance(loaded, Fields):
        loaded = _flatten(loaded)
    if not isinstance(loaded, dict):
        raise WeightsError(f"holds a {type(loaded).__name__}; wanted a dictionary of tensors")
    tensors = {key: value for key, value in loaded.items() if key not in beside}
    for key, value in tensors.items():
        if not (isinstance(key, str) and isinstance(value, np.ndarray)):
            raise WeightsError(
                f"its {key!r:.80} is a {type(value).__name__}; wanted tensors only, as "
                'torch.save(model.state_dict(), "weights.pth") writes them'
            )
    return tensors, beside


def _flatten(model: Fields) -> dict[str, Array]:
    """Name the tensors of a whole model as its state_dict does."""
    tensors: dict[str, Array] = {}
    waiting: list[tuple[str, Any]] = [("", model)]
    entries = 0
    while waiting:
        prefix, fields = waiting.pop()
        for key, value in fields.items():
            entries += 1
            # A part may hold itself, which would never come to an end.
            if entries > MOST_ENTRIES or len(prefix) + len(str(key)) > LONGEST_NAME:
                raise WeightsError("refused: its model has more parts than a network can have")
            name = prefix if key in OF_A_MODULE else f"{prefix}{key}."
            if isinstance(value, np.ndarray):
                tensors[f"{prefix}{key}"] = value
            elif isinstance(value, Fields) or (key in OF_A_MODULE and isinstance(value, dict)):
                waiting.append((name, value))
    return tensors


def torchvision_names(state: Mapping[str, Array]) -> dict[str, Array]:
    """Take off what stands before torchvision's names, such as ``module.``, and around fc.

    Where tensors stand under such a prefix, those without it belong to something else, as a loss.
    """
    ends = [key.removesuffix(STEM[0]) for key in state if key.endswith(STEM[0])]
    prefixes = [prefix for prefix in ends if all(prefix + name in state for name in STEM)]
    if len(prefixes) > 1 and "" not in prefixes:
        told = some([short(prefix) for prefix in prefixes])
        raise WeightsError(f"holds several networks ({told}); save the one that is to run")
    prefix = prefixes[0] if len(prefixes) == 1 else ""
    names = {key.removeprefix(prefix): key for key in state if key.startswith(prefix)}
    heads = [name.removesuffix(".weight") for name in names if HEAD.fullmatch(name)]
    heads = [head for head in heads if state[names[f"{head}.weight"]].ndim == 2]
    if len(heads) > 1:
        told = some([short(head) for head in heads])
        raise WeightsError(
            f"its classifier has {len(heads)} linear layers ({told}), and minires runs one; train "
            "it anew with model.fc = torch.nn.Linear(2048, classes)"
        )
    for head in heads:
        for field in ("weight", "bias"):
            if f"{head}.{field}" in names:
                names[f"fc.{field}"] = names.pop(f"{head}.{field}")
    return {name: state[key] for name, key in names.items()}


def recognize(state: Mapping[str, Array], shapes: Mapping[str, Shape]) -> str:
    """Say which other network these tensors are, or nothing."""
    blocks = [
        sum(bool(re.fullmatch(rf"layer{stage}\.\d+\.conv1\.weight", key)) for key in state)
        for stage in range(1, 5)
    ]
    convolutions = sum(f"layer1.0.conv{number}.weight" in state for number in (1, 2, 3))
    found = ARCHITECTURES.get((*blocks, convolutions))
    key = "layer1.0.conv2.weight"
    same = key in state and state[key].shape == shapes.get(key)
    if found is None or (convolutions == 3 and tuple(blocks) == (3, 4, 6, 3) and same):
        return ""
    return f"it looks like a {found}, and minires runs ResNet-50 alone"
