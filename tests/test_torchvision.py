"""The network against torchvision itself, layer by layer and end to end, where it is installed."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minires.checkpoint import state_dict_shapes
from minires.layers import OPERATORS, Layer
from minires.model import ResNet50
from minires.unfuse import unfuse
from tests.comparing import EPS, Array, assert_close, assert_same, gemm_bound
from tests.seeded_weights import seeded_input, seeded_state_dict, torchvision_shapes
from tests.torch_oracle import load_torchvision

SHAPES = [(1, 3, 224, 224), (3, 3, 64, 64), (1, 3, 97, 65), (3, 3, 32, 32)]


def torchvision_network(state: dict[str, Array]) -> Any:
    """Build torchvision's ResNet-50 with the weights given."""
    torchvision = load_torchvision()
    import torch

    network = torchvision.models.resnet50(num_classes=len(state["fc.bias"])).eval()
    network.load_state_dict({key: torch.tensor(value) for key, value in state.items()})
    return network


def run(network: Any, x: Array) -> Array:
    import torch

    with torch.inference_mode():
        logits: Array = network(torch.tensor(x)).numpy()
    return logits


def to_nhwc(tensor: Any) -> Array:
    """Copy: torchvision's ReLUs and additions work in place."""
    array: Array = tensor.numpy()
    return array.transpose(0, 2, 3, 1).copy() if array.ndim == 4 else array.copy()


def convolve_magnitudes(x: Array, layer: Layer) -> Array:
    """Compute |x| conv |w| with torch; x and the result are NHWC."""
    import torch

    weight = seeded_state_dict()[f"{layer.name}.weight"]
    x_nchw, w_oihw = torch.tensor(np.abs(x)).permute(0, 3, 1, 2), torch.tensor(np.abs(weight))
    y = torch.nn.functional.conv2d(x_nchw, w_oihw, stride=layer.stride, padding=layer.padding)
    return to_nhwc(y)


def torchvision_outputs(network: Any, x: Array) -> dict[str, Array]:
    """Run torchvision and keep every output, NHWC, under the names of the network taken apart."""
    outputs = {"input": x.transpose(0, 2, 3, 1)}
    handles = []

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            outputs[name] = to_nhwc(output)

        return hook

    def keep_relu(prefix: str) -> tuple[Any, Any]:
        """One module serves all three ReLUs of a block; what the third is handed is the sum."""
        calls = 0

        def before(module: Any, inputs: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == 3:
                outputs[f"{prefix}add"] = to_nhwc(inputs[0])

        def after(module: Any, inputs: Any, output: Any) -> None:
            outputs[f"{prefix}relu{calls}"] = to_nhwc(output)

        return before, after

    for name, module in network.named_modules():
        if name.endswith("relu"):
            before, after = keep_relu(name.removesuffix("relu"))
            handles += [module.register_forward_pre_hook(before),
                        module.register_forward_hook(after)]  # fmt: skip
        elif not list(module.children()):
            handles.append(module.register_forward_hook(keep(name)))
    run(network, x)
    for handle in handles:
        handle.remove()
    outputs["avgpool"] = outputs["avgpool"].reshape(len(x), -1)
    return outputs


@pytest.fixture(scope="module")
def network() -> Any:
    return torchvision_network(seeded_state_dict())


@pytest.fixture(scope="module")
def model() -> ResNet50:
    return ResNet50.from_state_dict(seeded_state_dict())


@pytest.fixture(scope="module")
def unfused() -> ResNet50:
    return unfuse(seeded_state_dict())


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def expected(request: pytest.FixtureRequest, network: Any) -> dict[str, Array]:
    return torchvision_outputs(network, seeded_input(request.param))


@pytest.fixture(scope="module")
def magnitudes(unfused: ResNet50, expected: dict[str, Array]) -> dict[str, Array]:
    """|x| conv |w| of every convolution, with torchvision's x."""
    return {layer.name: convolve_magnitudes(expected[layer.inputs[0]], layer)
            for layer in unfused if layer.op == "conv"}  # fmt: skip


def batchnorm_terms(layer_bn: str) -> tuple[Array, Array]:
    """Return a BatchNorm's |factor|, and |mean * factor| + |beta|, in float64."""
    state = seeded_state_dict()
    gamma, beta, mean, var = (
        state[f"{layer_bn}.{field}"].astype(np.float64)
        for field in ("weight", "bias", "running_mean", "running_var")
    )
    factor = np.abs(gamma) / np.sqrt(var + 1e-5)
    return factor, np.abs(mean) * factor + np.abs(beta)


def test_state_dict_has_torchvisions_keys_and_shapes(model: ResNet50) -> None:
    for num_classes in (1, 1000):
        state = load_torchvision().models.resnet50(num_classes=num_classes).state_dict()
        shapes = {key: tuple(value.shape) for key, value in state.items()
                  if not key.endswith("num_batches_tracked")}  # fmt: skip
        assert torchvision_shapes(num_classes) == shapes
    assert state_dict_shapes(model.layers) == shapes


def test_parameters_are_torchvisions(network: Any, model: ResNet50) -> None:
    ours = sum(layer.parameters for layer in model)
    assert ours == sum(parameter.numel() for parameter in network.parameters())


def test_every_fused_layer_given_torchvisions_input(
    model: ResNet50, expected: dict[str, Array], magnitudes: dict[str, Array]
) -> None:
    """Within 2 * K * eps * (|x| conv |w'| + |mean * factor| + |beta| + |residual|).

    w' = factor * w are the folded weights. The ReLU brings no two numbers further apart.
    """
    ends = {layer.name: layer.name.replace("conv", "relu") if layer.relu else layer.bn
            for layer in model if layer.op == "conv"}  # fmt: skip
    for layer in model.layers[1:]:
        inputs = tuple(expected[ends.get(name, name)] for name in layer.inputs)
        y = OPERATORS["fp32"][layer.op](layer, model.params.get(layer.name), *inputs)
        wanted = expected[ends.get(layer.name, layer.name)]
        if layer.op == "conv":
            factor, terms = batchnorm_terms(layer.bn)
            magnitude = magnitudes[layer.name] * factor + terms
            for residual in inputs[1:]:
                magnitude += np.abs(residual)
            assert_close(y, wanted, gemm_bound(layer.kernel**2 * layer.in_c, magnitude))
        else:
            hold_simple_layer(layer, inputs, y, wanted)


def test_every_part_given_torchvisions_input(
    unfused: ResNet50, expected: dict[str, Array], magnitudes: dict[str, Array]
) -> None:
    for layer in unfused.layers[1:]:
        inputs = tuple(expected[name] for name in layer.inputs)
        y = unfused.operators["fp32"][layer.op](layer, unfused.params.get(layer.name), *inputs)
        wanted = expected[layer.name]
        if layer.op == "conv":
            K = layer.kernel**2 * layer.in_c
            assert_close(y, wanted, gemm_bound(K, magnitudes[layer.name]))
        elif layer.op == "batchnorm":
            factor, terms = batchnorm_terms(layer.name)
            # Seven roundings here, as many there: 14 / 2 * EPS, and one for room.
            assert_close(y, wanted, 8 * EPS * (np.abs(inputs[0]) * factor + terms))
        else:
            hold_simple_layer(layer, inputs, y, wanted)


def hold_simple_layer(layer: Layer, inputs: tuple[Array, ...], y: Array, wanted: Array) -> None:
    """Compare the layers that are the same in the fused network and taken apart."""
    if layer.op == "avgpool":
        pixels = inputs[0].shape[1] * inputs[0].shape[2]
        assert_close(y, wanted, gemm_bound(pixels, np.abs(inputs[0]).mean(axis=(1, 2))))
    elif layer.op == "linear":
        state = seeded_state_dict()
        magnitude = np.abs(inputs[0]) @ np.abs(state["fc.weight"].T) + np.abs(state["fc.bias"])
        assert_close(y, wanted, gemm_bound(layer.in_c, magnitude))
    else:  # maxpool, add and relu round once or not at all
        assert_same(y, wanted)


@pytest.mark.parametrize("shape", [*SHAPES, (2, 3, 224, 224)], ids=str)
def test_end_to_end(
    network: Any, model: ResNet50, unfused: ResNet50, shape: tuple[int, ...]
) -> None:
    x = seeded_input(shape, seed=1)
    expected = run(network, x)
    # Measured: 9.4e-7 of the largest logit. The margin is 10 times.
    for ours in (model, unfused):
        assert_close(ours(x), expected, 1e-5 * float(np.abs(expected).max()))


def test_end_to_end_with_one_class() -> None:
    state = dict(seeded_state_dict())
    state |= {key: state[key][:1] for key in ("fc.weight", "fc.bias")}
    x = seeded_input((2, 3, 64, 64), seed=2)
    expected = run(torchvision_network(state), x)
    assert_close(ResNet50.from_state_dict(state)(x), expected, 2e-5)  # measured: 1.7e-6


def photographs(folder: Path, preset: Any) -> Iterator[tuple[Array, Array]]:
    """Yield batches of preprocessed photographs with their classes."""
    from PIL import Image

    with open(folder / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for start in range(0, len(rows), 8):
        batch = rows[start : start + 8]
        opened = [Image.open(folder / row["file"]).convert("RGB") for row in batch]
        labels = np.array([int(row["label"]) for row in batch])
        yield np.stack([preset(image).numpy() for image in opened]), labels


def test_real_weights_label_real_photographs_alike(
    test_data: Path, real_state_dict: dict[str, Array]
) -> None:
    preset = load_torchvision().models.ResNet50_Weights.IMAGENET1K_V1.transforms()
    network = torchvision_network(real_state_dict)
    model, compiled = (ResNet50.from_state_dict(real_state_dict) for _ in range(2))
    compiled.backend = "numba"
    right, seen = 0, 0
    folder = test_data / "images" / "imagenet_sample"
    for number, (images, labels) in enumerate(photographs(folder, preset)):
        ours, theirs = compiled(images), run(network, images)
        definition = [model(images)] if number % 8 == 0 else []  # it takes longest
        for logits in (ours, *definition):
            assert_close(logits, theirs, 1e-3)  # measured: 3.4e-5
            assert_same(logits.argmax(axis=1), theirs.argmax(axis=1))
        right += int((ours.argmax(axis=1) == labels).sum())
        seen += len(labels)
    assert seen == 400
    assert abs(right - 316) <= 1  # torchvision's 79.0%, give or take a JPEG decoder
