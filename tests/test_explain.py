"""What is computed by hand is what the network computes; and a wrong network is noticed."""

import re
from collections.abc import Iterator

import numpy as np
import pytest

from minires.errors import MiniresError
from minires.explain import explain
from minires.model import ResNet50
from minires.quantize.calibrate import calibrate
from minires.quantize.convert import quantize_model
from tests.seeded_weights import seeded_input, seeded_state_dict

X = seeded_input((1, 3, 64, 64))
LAYERS = ["input", "conv1", "maxpool", "layer1.0.conv2", "layer1.0.downsample.0", "layer2.0.conv2",
          "layer3.1.conv3", "layer4.0.conv3", "avgpool", "fc"]  # fmt: skip


@pytest.fixture(scope="module")
def networks() -> tuple[ResNet50, ResNet50]:
    fp32 = ResNet50.from_state_dict(seeded_state_dict(0, 10), {"name": "seeded"})
    fp32.meta["categories"] = [*"012345678", "the last"]
    int8 = quantize_model(fp32, calibrate(fp32, [X], "minmax"))
    int8.precision = "int8"
    return fp32, int8


@pytest.mark.parametrize("name", LAYERS)
def test_any_layers_value_is_the_networks(name: str, networks: tuple[ResNet50, ResNet50]) -> None:
    """It raises an error else; here what it says is read out of its text as well."""
    fp32, int8 = networks
    real, quantized = (next(s for s in m.steps(X) if s.name == name) for m in networks)
    channel = quantized.output.shape[-1] - 1
    pixel = (0, 0, channel)
    lines = explain(fp32, int8, X, name, pixel).splitlines()
    assert lines[0].startswith(name)
    assert lines[0].count(name) == 1
    assert f"row 0, column 0, channel {channel} " in lines[0]
    assert any("the network has the same" in line for line in lines)
    if name == "fc":
        (told,) = (line for line in lines if "so this is the logit of the last: " in line)
        assert float(told.split()[-1]) == pytest.approx(quantized.output[0, channel], abs=1e-5)
        return
    y_u8 = int(np.atleast_3d(quantized.output[0])[0, 0, -1] if name != "avgpool" else
               quantized.output[0, channel])  # fmt: skip
    assert any(line.endswith(f"_u8 = {y_u8}") for line in lines)
    (told,) = (line for line in lines if line.startswith("FP32 has"))
    exact = real.output.reshape(-1, real.output.shape[-1])[0, channel]
    assert float(told.split()[2].rstrip(".")) == pytest.approx(exact, rel=1e-3, abs=1e-3)


def test_unless_told_the_middle_and_its_largest_channel(
    networks: tuple[ResNet50, ResNet50],
) -> None:
    step = next(step for step in networks[0].steps(X) if step.name == "conv1")
    channel = step.output[0, 16, 16].argmax()
    first = explain(*networks, X, "conv1").splitlines()[0]
    assert first.endswith(f"row 16, column 16, channel {channel} of its output")


def test_the_sum_is_of_the_products_and_the_residual_is_told(
    networks: tuple[ResNet50, ResNet50],
) -> None:
    lines = explain(*networks, X, "layer1.0.conv3").splitlines()
    rows = [
        line.split() for line in lines if len(line.split()) == 8 and line.split()[0].isdecimal()
    ]
    assert len(rows) == 8
    for _, x, x_u8, x_back, w, w_s8, w_back, product in rows:
        assert int(product) == int(x_u8) * int(w_s8)
        assert float(x) == pytest.approx(float(x_back), abs=0.5)
        assert float(w) == pytest.approx(float(w_back), abs=0.01)
    assert any("and 56 more" in line for line in lines)
    assert any("the shortcut adds" in line for line in lines)
    assert not any("zero point back out" in line for line in lines), "it is 0 after a ReLU"


def test_the_multiplier_is_told_as_what_it_is_made_of(networks: tuple[ResNet50, ResNet50]) -> None:
    lines = explain(*networks, X, "conv1").splitlines()
    (told,) = (line.split() for line in lines if line.startswith("  m = "))
    x_scale, w_scale, y_scale, m = (float(told[at]) for at in (2, 4, 6, 8))
    assert m == pytest.approx(x_scale * w_scale / y_scale, rel=1e-5)
    assert y_scale == pytest.approx(float(networks[1]["conv1"].qparams.scale), rel=1e-5)
    assert any("takes x's zero point back out" in line for line in lines)


def test_the_receptive_field_is_told(networks: tuple[ResNet50, ResNet50]) -> None:
    """As chapter 9 has it; and what lies outside changes nothing."""
    told = explain(*networks, X, "layer1.0.conv1", (6, 5, 0)).splitlines()[1]
    assert told == "It depends on rows 19 to 29 and columns 15 to 25 of the 64 x 64 image."
    told = explain(*networks, X, "layer2.0.conv3", (0, 7, 3)).splitlines()[1]
    top, bottom, left, right, *_ = map(int, re.findall(r"\d+", told))
    assert (top, bottom, right) == (0, 21, 63)
    other = seeded_input(X.shape, 1)
    other[:, :, : bottom + 1, left:] = X[:, :, : bottom + 1, left:]
    values = []
    for x in (X, other):
        step = next(step for step in networks[0].steps(x) if step.name == "layer2.0.conv3")
        values.append(step.output[0, 0, 7])
    np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-5)
    assert "depends" not in explain(*networks, X, "fc")


@pytest.fixture
def broken(networks: tuple[ResNet50, ResNet50]) -> Iterator[ResNet50]:
    """A network in which something else than its weights made one value."""
    int8 = networks[1]

    def hook(layer: object, inputs: object, output: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        changed = output.copy()
        changed[0, 0, 0, 0] += 1
        return changed

    with int8["conv1"].register_forward_hook(hook):
        yield int8


def test_a_network_that_computes_something_else_is_noticed(
    broken: ResNet50, networks: tuple[ResNet50, ResNet50]
) -> None:
    with pytest.raises(MiniresError, match=r"by hand it is .* but the network has"):
        explain(networks[0], broken, X, "conv1", (0, 0, 0))
    assert "the same" in explain(networks[0], broken, X, "conv1", (0, 1, 0))


@pytest.mark.parametrize(
    ("name", "pixel", "reason"),
    [
        ("layer9", None, "no layer is called 'layer9'"),
        ("conv1", (32, 0, 0), "conv1 has no row 32; the last one is 31"),
        ("conv1", (0, 0, 64), "conv1 has no channel 64; the last one is 63"),
        ("fc", (0, 1, 0), "fc has no column 1; the last one is 0"),
    ],
)
def test_what_there_is_not_is_told(
    name: str,
    pixel: tuple[int, int, int] | None,
    reason: str,
    networks: tuple[ResNet50, ResNet50],
) -> None:
    with pytest.raises(MiniresError, match=reason):
        explain(*networks, X, name, pixel)
