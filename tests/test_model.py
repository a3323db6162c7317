import copy
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from minires.checkpoint import state_dict_shapes
from minires.errors import MiniresError
from minires.layers import Layer
from minires.model import ResNet50, Step, resnet50_layers
from minires.preprocess import IMAGENET_V1, preprocess
from minires.summary import summarize
from tests.comparing import Array, assert_close, assert_same
from tests.seeded_weights import seeded_input, seeded_state_dict, torchvision_shapes, uniform

BLOCKS = [f"layer{stage}.{block}" for stage, n in enumerate((3, 4, 6, 3), 1) for block in range(n)]
FIRST_BLOCKS = [block for block in BLOCKS if block.endswith(".0")]
MIB = 2**20


@pytest.fixture(scope="module")
def model() -> ResNet50:
    return ResNet50.from_state_dict(seeded_state_dict())


@pytest.fixture(scope="module")
def x() -> Array:
    return seeded_input((1, 3, 32, 32))


# What the network is


def test_parameters_and_macs_are_those_that_torchvision_states(model: ResNet50) -> None:
    rows = summarize(model.layers)
    assert sum(row.parameters for row in rows) == 25_557_032
    assert sum(row.macs for row in rows) == 4_089_184_256


@pytest.mark.parametrize("num_classes", [1, 10, 1000])
def test_state_dict_is_torchvisions(num_classes: int) -> None:
    shapes = state_dict_shapes(resnet50_layers(num_classes))
    assert shapes == torchvision_shapes(num_classes)
    assert len(shapes) == 267


def expected_steps(batch: int) -> list[tuple[str, str, tuple[int, ...]]]:
    """List the steps of a 224x224 input, written down apart from the package."""
    steps = [("input", "input", (batch, 224, 224, 3)), ("conv1", "conv", (batch, 112, 112, 64)),
             ("maxpool", "maxpool", (batch, 56, 56, 64))]  # fmt: skip
    size_before, size, width = 56, 56, 64
    for block in BLOCKS:
        if block in FIRST_BLOCKS and block != "layer1.0":
            size, width = size // 2, width * 2
        inner, outer = (batch, size, size, width), (batch, size, size, 4 * width)
        steps.append((f"{block}.conv1", "conv", (batch, size_before, size_before, width)))
        steps.append((f"{block}.conv2", "conv", inner))
        if block in FIRST_BLOCKS:
            steps.append((f"{block}.downsample.0", "conv", outer))
        steps.append((f"{block}.conv3", "conv", outer))
        size_before = size
    return [*steps, ("avgpool", "avgpool", (batch, 2048)), ("fc", "linear", (batch, 1000))]


def test_steps_come_in_order_with_their_shapes(model: ResNet50) -> None:
    expected = expected_steps(batch=2)
    assert len(expected) == 1 + 53 + 3
    shapes = {}
    rows = summarize(model.layers, batch=2)
    steps = model.steps(seeded_input((2, 3, 224, 224)))
    for step, row, (name, op, shape) in zip(steps, rows, expected, strict=True):
        assert (step.name, step.op, step.output_shape, step.output.shape) == (
            name,
            op,
            *[shape] * 2,
        )
        assert (row.name, row.op, row.output_shape, row.macs) == (name, op, shape, step.macs)
        assert step.output.dtype == np.float32
        shapes[name] = shape
        layer_inputs = [shapes[source] for source in step.layer.inputs] or [(2, 3, 224, 224)]
        assert list(step.input_shapes) == layer_inputs


def test_a_step_tells_what_it_did(model: ResNet50, x: Array) -> None:
    step = next(step for step in model.steps(x) if step.name == "layer2.0.conv2")
    # 4x4 outputs of 128 channels, each of 3x3x128 products
    assert repr(step) == (
        "Step(layer2.0.conv2, conv: (1, 8, 8, 128) -> (1, 4, 4, 128), 2,359,296 MACs)"
    )


def test_blocks_end_in_the_addition_of_their_input(model: ResNet50) -> None:
    residuals = {layer.name: layer.inputs[1] for layer in model if len(layer.inputs) == 2}
    before = ["maxpool", *[f"{block}.conv3" for block in BLOCKS]]
    assert residuals == {
        f"{block}.conv3": f"{block}.downsample.0" if block in FIRST_BLOCKS else source
        for block, source in zip(BLOCKS, before, strict=False)
    }


def test_the_table_names_every_layer_and_the_totals(model: ResNet50) -> None:
    header, *rows, total = [line.split() for line in str(model).splitlines()]
    assert header == ["name", "operator", "output", "(NHWC)", "parameters", "MACs"]
    assert [row[0] for row in rows] == [layer.name for layer in model.layers]
    # 7x7x3x64 weights, gamma and beta; 112x112x64 outputs of 7x7x3 products
    assert " ".join(rows[1]) == "conv1 conv 1 x 112 x 112 x 64 9,536 118,013,952"
    assert " ".join(rows[-1]) == "fc linear 1 x 1000 2,049,000 2,048,000"
    assert total == ["total", "25,557,032", "4,089,184,256"]


# The walk


def test_steps_and_call_are_the_same_walk(model: ResNet50, x: Array) -> None:
    *_, last = model.steps(x)
    assert_same(model(x), last.output)


def test_stopping_early_is_harmless(model: ResNet50, x: Array) -> None:
    expected = model(x)
    for step in model.steps(x):
        if step.name == "layer1.0.conv2":
            break
    assert_same(model(x), expected)


def test_two_walks_can_be_interleaved(model: ResNet50, x: Array) -> None:
    expected = model(x), model(-x)
    for one, other in zip(model.steps(x), model.steps(-x), strict=True):
        last = one.output, other.output
    assert_same(last[0], expected[0])
    assert_same(last[1], expected[1])


@pytest.mark.parametrize("num_classes", [1, 10, 1000])
def test_any_number_of_classes(model: ResNet50, x: Array, num_classes: int) -> None:
    state = dict(seeded_state_dict())
    state |= {key: state[key][:num_classes] for key in ("fc.weight", "fc.bias")}
    logits = ResNet50.from_state_dict(state)(x)
    assert logits.shape == (1, num_classes)
    # The same rows of the classifier; BLAS may sum another number of them in another order.
    assert_close(logits, model(x)[:, :num_classes], 1e-4)


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (3, 3, 63, 33), (5, 3, 32, 47)])
def test_images_do_not_disturb_each_other(model: ResNet50, shape: tuple[int, ...]) -> None:
    images = seeded_input(shape, seed=1)
    alone = np.concatenate([model(image[np.newaxis]) for image in images])
    together = model(images)
    # Measured: 7e-7 of the largest logit, as BLAS sums other shapes in another order. 14 times.
    assert_close(together, alone, 1e-5 * float(np.abs(alone).max()))


def test_the_input_is_left_alone(model: ResNet50) -> None:
    for layout in ("NCHW", "NHWC"):
        batch = seeded_input((1, 3, 32, 40), seed=2)
        if layout == "NHWC":  # so that turning it around copies nothing
            batch = np.ascontiguousarray(batch.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        before = batch.copy()
        model(batch)
        assert_same(batch, before)


def test_a_view_gives_what_its_copy_gives(model: ResNet50) -> None:
    large = seeded_input((2, 3, 70, 80), seed=3)
    view = large[:, ::-1, 3::2, 70:4:-2]
    assert not view.flags.c_contiguous
    assert_same(model(view), model(np.ascontiguousarray(view)))


def test_activations_are_freed_when_they_have_been_read(model: ResNet50) -> None:
    """The largest step is conv1: image, patches (112*112*147) and output (112*112*64) in float32.

    That is 11 MiB, and 11.5 were measured; all outputs together would be 42.
    """
    image = seeded_input((1, 3, 224, 224))
    model(image[..., :32, :32])
    tracemalloc.start()
    try:
        model(image)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 10 * MIB < peak < 16 * MIB


# Hooks


def test_hooks_see_what_the_steps_yield(model: ResNet50, x: Array) -> None:
    seen: list[Step] = []
    handles = [
        layer.register_forward_hook(lambda *what: seen.append(Step(*what))) for layer in model
    ]
    model(x)
    for handle in handles:
        handle.remove()
    for hooked, step in zip(seen, model.steps(x), strict=True):
        assert hooked.name == step.name
        assert_same(hooked.output, step.output)
        for ours, theirs in zip(hooked.inputs, step.inputs, strict=True):
            assert_same(ours, theirs)


def test_hooks_are_called_in_order_and_replace_the_output(model: ResNet50, x: Array) -> None:
    calls: list[tuple[str, float]] = []

    def zero(layer: Layer, inputs: tuple[Array, ...], output: Array) -> Array:
        calls.append(("zero", float(np.abs(output).max())))
        return np.zeros_like(output)

    def look(layer: Layer, inputs: tuple[Array, ...], output: Array) -> None:
        calls.append(("look", float(np.abs(output).max())))

    expected = model(x)
    avgpool = model["avgpool"]
    with avgpool.register_forward_hook(zero), avgpool.register_forward_hook(look):
        logits = model(x)
    assert [name for name, _ in calls] == ["zero", "look"]
    assert calls[0][1] > 0
    assert calls[1][1] == 0  # the second hook is handed what the first returned
    assert_same(logits[0], seeded_state_dict()["fc.bias"])
    assert_same(model(x), expected)


def test_a_hook_may_remove_itself(model: ResNet50, x: Array) -> None:
    calls = []

    def once(*_: Any) -> None:
        calls.append("once")
        handle.remove()

    handle = model["conv1"].register_forward_hook(once)
    other = model["conv1"].register_forward_hook(lambda *_: calls.append("other"))
    with other:
        model(x)
        model(x)
    assert calls == ["once", "other", "other"]


def test_every_step_is_found_by_its_name(model: ResNet50) -> None:
    for layer in model:
        assert model[layer.name] is layer


def test_an_unknown_name_is_a_key_error(model: ResNet50) -> None:
    with pytest.raises(KeyError, match=r"'layer5\.0\.conv1'; print\(model\)"):
        model["layer5.0.conv1"]


# What can be changed, and what cannot


def test_a_state_dict_is_neither_changed_nor_shared(x: Array) -> None:
    state = {key: value.copy() for key, value in seeded_state_dict().items()}
    model = ResNet50.from_state_dict(state)
    expected = model(x)
    for key, value in state.items():
        assert_same(value, seeded_state_dict()[key])
        value[...] = 1  # the caller's arrays can still be written to
    assert_same(model(x), expected)


def test_parameters_handed_in_are_neither_changed_nor_shared(model: ResNet50, x: Array) -> None:
    bias = model.params["fc"].bias.copy()
    params = {**model.params, "fc": model.params["fc"]._replace(bias=bias)}
    other = ResNet50(model.layers, params)
    bias[...] = 1
    params.clear()
    assert_same(other(x), model(x))
    assert other.params["conv1"].weight is model.params["conv1"].weight  # no copy where none can be


def test_other_weights_make_another_network(model: ResNet50, x: Array) -> None:
    expected = model(x)
    fc = model.params["fc"]
    other = ResNet50(model.layers, {**model.params, "fc": fc._replace(bias=fc.bias + 1)})
    assert_close(other(x), expected + 1, 1e-5 * float(np.abs(expected).max()))
    assert_same(model(x), expected)


def test_a_copy_has_neither_hooks_nor_a_record(model: ResNet50, x: Array) -> None:
    seen: list[str] = []
    model.record = lambda *_: seen.append("record")
    try:
        with model["conv1"].register_forward_hook(lambda *_: seen.append("hook")):
            other = copy.deepcopy(model)
            assert_same(other(x), ResNet50(other.layers, model.params)(x))
            assert seen == []
            model(x)
            assert {"record", "hook"} == set(seen)
    finally:
        model.record = None
    assert not any(p.flags.writeable for p in other.params["fc"])


@pytest.mark.parametrize(
    ("precision", "other"),
    [("fp32", "int8"), ("bf16", "int8-simulated"), ("int8", "fp32"), ("int8-simulated", "bf16")],
)
def test_a_precision_that_wants_other_parameters_is_refused(
    model: ResNet50, precision: str, other: str
) -> None:
    network = ResNet50(model.layers, model.params, precision)
    with pytest.raises(MiniresError, match=f'minires.resnet50.weights, precision="{other}".'):
        network.precision = other
    assert network.precision == precision


def test_what_is_no_precision_and_no_backend_is_refused(model: ResNet50) -> None:
    with pytest.raises(MiniresError, match="no precision 'int7'; there is fp32, bf16"):
        ResNet50(model.layers, model.params, "int7")
    for name, hint in [
        ("nump", "; did you mean numpy[?]"),
        ("gpu", ""),
        (None, ""),
        (["numpy"], ""),
    ]:
        with pytest.raises(
            MiniresError, match=f"no backend .*; there is numpy, numba, cuda{hint}$"
        ):
            model.backend = name  # type: ignore[assignment]


def test_preprocess_takes_the_preset_of_the_weights(model: ResNet50) -> None:
    preset = replace(IMAGENET_V1, crop=64)
    image = np.arange(300, dtype=np.uint8).repeat(30).reshape(50, 60, 3)
    with_preset = ResNet50(model.layers, model.params, meta={"preset": preset})
    assert_same(with_preset.preprocess(image), preprocess(image, preset))
    with pytest.raises(MiniresError, match=r"name no preset; call minires\.preprocess with one"):
        model.preprocess(image)


# Bad input


GOOD = uniform(-3, 3, (1, 3, 32, 32), 0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (GOOD.tolist(), "x is list; wanted a float32 array"),
        (None, "x is NoneType; wanted a float32 array"),
        (GOOD.astype(np.float64), "x is a float64 array; wanted a float32 array"),
        (GOOD.astype(np.uint8), "x is a uint8 array; wanted a float32 array"),
        (GOOD[0], r"x has shape \(3, 32, 32\); wanted \(N, 3, H, W\)"),
        (GOOD[:0], r"x has shape \(0, 3, 32, 32\)"),
        (GOOD[:, :1], r"x has shape \(1, 1, 32, 32\)"),
        (GOOD.transpose(0, 2, 3, 1), r"x has shape \(1, 32, 32, 3\)"),
        (GOOD[:, :, :31], r"x has shape \(1, 3, 31, 32\); .* at least 32"),
        (GOOD[..., :31], r"x has shape \(1, 3, 32, 31\); .* at least 32"),
        (GOOD * np.float32(100), r"x holds values up to 299\.942; wanted normalized pixels"),
        (GOOD * np.float32(np.inf), "x holds values up to inf"),
        (np.where(GOOD > 2.9, np.float32(np.nan), GOOD), "x holds values up to nan"),
    ],
)
def test_bad_input_is_named(model: ResNet50, bad: Any, message: str) -> None:
    next(model.steps(GOOD))
    with pytest.raises(MiniresError, match=f"^{message}"):
        model(bad)
