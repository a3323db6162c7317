from typing import Any

import numpy as np
import pytest

from minires.checkpoint import check_state_dict
from minires.errors import WeightsError
from minires.layouts import STEM, recognize, torchvision_names, unwrap
from minires.unpickle import Fields
from tests.comparing import Array
from tests.seeded_weights import torchvision_shapes

ONE = np.ones(1, np.float32)
STATE: dict[str, Array] = dict.fromkeys((*STEM, "fc.bias"), ONE)
STATE |= {"fc.weight": np.ones((5, 2), np.float32)}


def shaped(shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    """Make tensors of these shapes, without their memory."""
    return {key: np.broadcast_to(np.float32(1), shape) for key, shape in shapes.items()}


# What a file holds


@pytest.mark.parametrize(
    "wrapper", ["state_dict", "model_state_dict", "model", "net", "network", "weights"]
)
def test_a_state_dict_is_found_in_its_wrapper(wrapper: str) -> None:
    others = {"epoch": 3, "optimizer": {"state": {0: ONE}}, "args": Fields(lr=0.1)}
    assert unwrap({**others, wrapper: STATE}) == (STATE, {})
    assert unwrap({**others, "model": {"state_dict": STATE}})[0] == STATE
    assert unwrap(STATE)[0] == STATE


@pytest.mark.parametrize("key", ["classes", "class_names", "categories", "class_to_idx"])
def test_names_beside_the_weights_are_found(key: str) -> None:
    assert unwrap({"model": STATE, key: ["a", "b"]}) == (STATE, {key: ["a", "b"]})
    assert unwrap({**STATE, key: ["a", "b"]}) == (STATE, {key: ["a", "b"]})


def module(parameters: dict[str, Array], modules: dict[str, Any]) -> Fields:
    """Make what a torch.nn.Module leaves in a pickle."""
    return Fields(
        training=True,
        _parameters=parameters,
        _buffers={"running_mean": ONE, "absent": None},
        _modules=modules,
        _backward_hooks=Fields(),
    )


def test_a_whole_model_has_the_names_of_its_state_dict() -> None:
    convolution = module({"weight": ONE, "bias": None}, {})
    model = module({}, {"layer1": module({}, {"0": convolution, "none": None})})
    expected = {
        *("running_mean", "layer1.running_mean"),
        *("layer1.0.running_mean", "layer1.0.weight"),
    }
    for whole in model, {"model": model}, {"state_dict": model, "epoch": 3}:
        assert set(unwrap(whole)[0]) == expected


def test_a_torchscript_program_has_its_tensors_as_attributes() -> None:
    convolution = Fields(weight=ONE, training=False)
    assert unwrap(Fields(layer1=Fields({"0": convolution})))[0] == {"layer1.0.weight": ONE}


@pytest.mark.parametrize(
    ("loaded", "told"),
    [
        ([1], "holds a list; wanted a dictionary of tensors"),
        ({"epoch": 3}, r"its 'epoch' is a int; wanted tensors only.*model\.state_dict\(\)"),
        ({"a": Fields()}, "its 'a' is a Fields"),
        ({7: ONE}, "its 7 is a ndarray"),
        ({"model": {"epoch": 3}}, "its 'epoch' is a int"),
    ],
)
def test_what_holds_no_tensors_is_told(loaded: object, told: str) -> None:
    with pytest.raises(WeightsError, match=told):
        unwrap(loaded)


# Names


@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod.", "net.", "a.b.backbone."]
)
def test_a_prefix_is_taken_off(prefix: str) -> None:
    state = {prefix + key: value for key, value in STATE.items()}
    assert torchvision_names(state) == STATE
    if prefix:
        assert torchvision_names({**state, "loss.weight": ONE, "n_averaged": ONE}) == STATE


def test_what_is_beside_torchvisions_own_names_is_kept() -> None:
    state = {**STATE, "loss.weight": ONE}
    assert torchvision_names(state) == state
    assert torchvision_names({"a.weight": ONE}) == {"a.weight": ONE}


def test_of_several_networks_none_is_guessed() -> None:
    state = {prefix + key: value for key, value in STATE.items() for prefix in ("ema.", "model.")}
    with pytest.raises(WeightsError, match=r"several networks \((model|ema)\., (ema|model)\.\)"):
        torchvision_names(state)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("inner", ["0", "1", "head.linear"])
def test_one_linear_layer_in_the_classifier_is_it(prefix: str, inner: str) -> None:
    state = {prefix + key.replace("fc.", f"fc.{inner}."): value for key, value in STATE.items()}
    assert torchvision_names(state) == STATE
    norm = {f"{prefix}fc.9.weight": ONE}  # no matrix
    assert torchvision_names({**state, **norm}) == {**STATE, "fc.9.weight": ONE}


def test_two_linear_layers_in_the_classifier_are_refused() -> None:
    matrix = STATE["fc.weight"]
    with pytest.raises(WeightsError, match=r"2 linear layers \(fc\.0, fc\.3\), and minires runs"):
        torchvision_names({"fc.0.weight": matrix, "fc.3.weight": matrix})


# Other networks


def test_a_resnet_50_is_not_taken_for_another() -> None:
    shapes = torchvision_shapes(5)
    assert recognize(shaped(shapes), shapes) == ""
    assert recognize({}, shapes) == ""


def test_other_networks_are_recognized() -> None:
    shapes = torchvision_shapes(5)
    deeper = shaped(shapes)
    block = {key: value for key, value in deeper.items() if key.startswith("layer3.5.")}
    for number in range(6, 23):
        deeper |= {key.replace("layer3.5", f"layer3.{number}"): v for key, v in block.items()}
    wider = {**shaped(shapes), "layer1.0.conv2.weight": np.ones((128, 128, 3, 3), np.float32)}
    plain = {key: value for key, value in shaped(shapes).items() if "conv3" not in key}
    for state, name in (
        (deeper, "ResNet-101"),
        (wider, "ResNeXt-50 or a wide ResNet-50"),
        (plain, "ResNet-34"),
    ):
        with pytest.raises(WeightsError, match=f"looks like a {name}, and minires runs ResNet-50"):
            check_state_dict(state, shapes)
