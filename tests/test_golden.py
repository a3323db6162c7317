"""The network against what torchvision made of the same seeded weights: needs no torch.

Measured when the file was made: samples within 7.7e-6 of the tensor's root mean square, sums
within 2.9e-7 of what they add up. Errors grow from layer to layer and BLAS sums in another order
on another machine: the bounds are 4 and 7 times that.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from minires.layers import Layer
from minires.model import ResNet50
from minires.unfuse import UnfusedResNet50, unfuse
from tests.comparing import Array, assert_close, assert_same
from tests.golden.make_golden import CASES, GOLDEN, digest
from tests.seeded_weights import seeded_input, seeded_state_dict

SAMPLE_BOUND = 3e-5
SUMS_BOUND = 2e-6
SMALL = CASES["one of 97x65"]


@cache
def golden() -> dict[str, Array]:
    with np.load(GOLDEN) as file:
        return dict(file)


@cache
def small_model() -> ResNet50:
    return ResNet50.from_state_dict(seeded_state_dict(SMALL.seed, SMALL.num_classes))


def hold_to_golden(case_name: str, model: ResNet50) -> None:
    """Compare the stem, every block and the logits with the golden file."""
    case = CASES[case_name]
    fused = not isinstance(model, UnfusedResNet50)
    stem, block_end = ("conv1", ".conv3") if fused else ("relu1", ".relu3")
    wanted = {key.split("/")[1] for key in golden() if key.startswith(case_name)}
    assert len(wanted) == 18
    for step in model.steps(seeded_input(case.shape, case.seed)):
        name = "relu" if step.name == stem else step.name.removesuffix(block_end)
        if name not in wanted:
            continue
        wanted.remove(name)
        ours = digest(step.output)
        shape, sample, sums = (golden()[f"{case_name}/{name}/{field}"] for field in ours)
        assert_same(ours["shape"], shape)
        root_mean_square = (sums[1] / step.output.size) ** 0.5
        assert_close(ours["sample"], sample, SAMPLE_BOUND * root_mean_square)
        summed = step.output.size * np.array([root_mean_square, root_mean_square**2])
        assert (np.abs(ours["sums"] - sums) <= SUMS_BOUND * summed).all()
    assert not wanted, f"the network never reached {wanted}"


@pytest.mark.parametrize("build", [ResNet50.from_state_dict, unfuse])
@pytest.mark.parametrize("case_name", CASES)
def test_every_block_is_torchvisions(
    case_name: str, build: Callable[[dict[str, Array]], ResNet50]
) -> None:
    case = CASES[case_name]
    hold_to_golden(case_name, build(seeded_state_dict(case.seed, case.num_classes)))


def test_seeded_signal_neither_dies_nor_explodes() -> None:
    for step in small_model().steps(seeded_input(SMALL.shape, SMALL.seed)):
        if step.op == "conv":
            assert 0.3 < step.output.std() < 3, step
            assert 0.3 < (step.output > 0).mean() < 0.9, step


# What follows breaks the network as people have, and sees the comparison reject each.


def strides_of_v1(layer: Layer) -> Layer:
    """Put a block's stride on its first 1x1 convolution, as the paper and Caffe did."""
    strided = layer.name.startswith(("layer2.0", "layer3.0", "layer4.0"))
    if strided and layer.name.endswith("conv1"):
        return replace(layer, stride=2)
    if strided and layer.name.endswith("conv2"):
        return replace(layer, stride=1)
    return layer


def padding_one_less(layer: Layer) -> Layer:
    return replace(layer, padding=2) if layer.name == "conv1" else layer


def no_last_relu(layer: Layer) -> Layer:
    return replace(layer, relu=False) if layer.name == "layer4.2.conv3" else layer


def relu_on_a_shortcut(layer: Layer) -> Layer:
    return replace(layer, relu=True) if layer.name == "layer3.0.downsample.0" else layer


def shortcut_left_out(layer: Layer) -> Layer:
    return replace(layer, inputs=layer.inputs[:1]) if layer.name == "layer2.3.conv3" else layer


@pytest.mark.parametrize(
    "change",
    [strides_of_v1, padding_one_less, no_last_relu, relu_on_a_shortcut, shortcut_left_out],
)
def test_a_wrong_architecture_is_rejected(change: Callable[[Layer], Layer]) -> None:
    good = small_model()
    broken = ResNet50([change(layer) for layer in good.layers], good.params)
    with pytest.raises(AssertionError):
        hold_to_golden("one of 97x65", broken)


def no_batchnorm(state: dict[str, Array]) -> None:
    for field, neutral in {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}.items():
        state[f"layer4.2.bn3.{field}"] = np.full_like(state[f"layer4.2.bn3.{field}"], neutral)


def larger_eps(state: dict[str, Array]) -> None:
    state |= {key: value + np.float32(1e-3 - 1e-5) for key, value in state.items()
              if key.endswith("running_var")}  # fmt: skip


def swapped_channels(state: dict[str, Array]) -> None:
    state["layer1.1.conv2.weight"] = state["layer1.1.conv2.weight"][[1, 0, *range(2, 64)]]


def flipped_kernels(state: dict[str, Array]) -> None:
    state["layer4.1.conv2.weight"] = state["layer4.1.conv2.weight"][..., ::-1, ::-1]


def swapped_classes(state: dict[str, Array]) -> None:
    state["fc.weight"] = state["fc.weight"][[0, 1, 2, 3, 4, 5, 6, 7, 9, 8]]


def lost_bias(state: dict[str, Array]) -> None:
    state["fc.bias"] = np.zeros_like(state["fc.bias"])


@pytest.mark.parametrize(
    "change",
    [
        no_batchnorm,
        larger_eps,
        swapped_channels,
        flipped_kernels,
        swapped_classes,
        lost_bias,
    ],
)
def test_wrong_weights_are_rejected(change: Callable[[dict[str, Array]], None]) -> None:
    state = dict(seeded_state_dict(SMALL.seed, SMALL.num_classes))
    change(state)
    with pytest.raises(AssertionError):
        hold_to_golden("one of 97x65", ResNet50.from_state_dict(state))


def test_a_nan_is_rejected() -> None:
    model = small_model()
    hook = model["layer3.2.conv2"].register_forward_hook(lambda layer, inputs, y: y * np.nan)
    with hook, pytest.raises(AssertionError):
        hold_to_golden("one of 97x65", model)


def test_padding_to_one_side_is_rejected() -> None:
    """TensorFlow pads a stride of two by one pixel less on the left: the same shapes."""
    shift = ((0, 0), (0, 1), (0, 1), (0, 0))
    hook = small_model()["input"].register_forward_hook(
        lambda layer, inputs, x: np.pad(x[:, 1:, 1:], shift)
    )
    with hook, pytest.raises(AssertionError):
        hold_to_golden("one of 97x65", small_model())
