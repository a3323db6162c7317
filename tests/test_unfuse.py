"""The network taken apart: the same numbers as the fused one's, but for the rounding."""

import copy

import numpy as np
import pytest

from minires.errors import MiniresError, WeightsError
from minires.model import ResNet50, resnet50_layers
from minires.unfuse import UnfusedResNet50, unfuse, unfused_layers
from tests.comparing import Array, assert_close, assert_same
from tests.seeded_weights import seeded_input, seeded_state_dict

BLOCKS = [f"layer{stage}.{block}" for stage, n in enumerate((3, 4, 6, 3), 1) for block in range(n)]


@pytest.fixture(scope="module")
def model() -> ResNet50:
    return ResNet50.from_state_dict(seeded_state_dict())


@pytest.fixture(scope="module")
def unfused() -> ResNet50:
    return unfuse(seeded_state_dict())


@pytest.fixture(scope="module")
def x() -> Array:
    return seeded_input((1, 3, 32, 32))


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (2, 3, 97, 65), (3, 3, 33, 50)])
def test_fused_and_unfused_agree(
    model: ResNet50, unfused: ResNet50, shape: tuple[int, ...]
) -> None:
    batch = seeded_input(shape)
    together, apart = model(batch), unfused(batch)
    # Measured: 8e-7 of the largest logit. The margin is 12 times.
    assert_close(together, apart, 1e-5 * float(np.abs(apart).max()))
    assert np.ptp(apart) > 1


def test_unfused_layers_follow_torchvisions_names() -> None:
    names = [layer.name for layer in unfused_layers(resnet50_layers())]
    assert names[:5] == ["input", "conv1", "bn1", "relu1", "maxpool"]
    assert names[-2:] == ["avgpool", "fc"]
    first = "conv1 bn1 relu1 conv2 bn2 relu2 downsample.0 downsample.1 conv3 bn3 add relu3"
    other = "conv1 bn1 relu1 conv2 bn2 relu2 conv3 bn3 add relu3"
    for block in BLOCKS:
        parts = (first if block.endswith(".0") else other).split()
        start = names.index(f"{block}.conv1")
        assert names[start : start + len(parts)] == [f"{block}.{part}" for part in parts]
    assert len(set(names)) == len(names) == 2 + 53 * 2 + 16 + 49 + 2


def test_each_part_is_a_step_of_its_own(unfused: ResNet50, x: Array) -> None:
    steps = list(unfused.steps(x))
    assert [step.name for step in steps][:5] == ["input", "conv1", "bn1", "relu1", "maxpool"]
    assert sum(step.op == "batchnorm" for step in steps) == 53
    assert sum(step.op == "add" for step in steps) == 16
    assert sum(step.op == "relu" for step in steps) == 49
    assert steps[1].output.min() < 0 == steps[3].output.min()


def test_a_part_can_be_hooked(unfused: ResNet50, x: Array) -> None:
    expected = next(step for step in unfused.steps(x) if step.name == "layer1.0.bn1")
    seen: list[Array] = []
    with unfused["layer1.0.bn1"].register_forward_hook(lambda layer, inputs, y: seen.append(y)):
        unfused(x)
    assert_same(seen.pop(), expected.output)
    assert seen == []


def test_taking_apart_leaves_the_fused_layers_as_they_are(model: ResNet50) -> None:
    with model["conv1"].register_forward_hook(lambda *_: None):
        parts = unfused_layers(model.layers)
    assert not any(part.hooks for part in parts)
    assert model["conv1"].bn == "bn1"
    assert model["conv1"].relu


def test_a_state_dict_is_not_shared(x: Array) -> None:
    state = {key: value.copy() for key, value in seeded_state_dict().items()}
    unfused = unfuse(state)
    expected = unfused(x)
    for value in state.values():
        value[...] = 1
    assert_same(unfused(x), expected)


def test_a_copy_is_taken_apart_too(unfused: ResNet50, x: Array) -> None:
    other = copy.deepcopy(unfused)
    assert isinstance(other, UnfusedResNet50)
    assert_same(other(x), unfused(x))


def test_it_runs_in_fp32_by_the_definitions_alone(unfused: ResNet50) -> None:
    with pytest.raises(MiniresError, match=r"no precision 'bf16'; there is fp32$"):
        unfused.precision = "bf16"
    with pytest.raises(MiniresError, match=r"no backend 'numba'; there is numpy$"):
        unfused.backend = "numba"


def test_weights_of_another_network_are_refused() -> None:
    state = dict(seeded_state_dict())
    del state["bn1.bias"]
    with pytest.raises(WeightsError, match=r"missing: bn1\.bias"):
        unfuse(state)
