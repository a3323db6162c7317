import numpy as np
import pytest

from minires.model import ResNet50
from minires.quantize.calibrate import calibrate
from minires.quantize.convert import quantize_model
from minires.quantize.sensitivity import Gain, format_sensitivity, plot_sensitivity, sensitivity
from tests.seeded_weights import seeded_input, seeded_state_dict

X = seeded_input((1, 3, 32, 32))


@pytest.fixture(scope="module")
def fp32() -> ResNet50:
    return ResNet50.from_state_dict(seeded_state_dict(num_classes=10))


def test_the_layer_that_costs_is_found(fp32: ResNet50) -> None:
    """One layer has all its weights spoilt; only in its place is there much to be gained."""
    int8 = quantize_model(fp32, calibrate(fp32, [X], "minmax"))
    spoilt = int8.params["fc"]
    spoilt = spoilt._replace(w_s8=(spoilt.w_s8 // 32 * 32).astype(np.int8))
    int8 = ResNet50(int8.layers, {**int8.params, "fc": spoilt}, "int8", int8.meta)
    asked: list[str] = []

    def few(layers: object) -> list[object]:
        chosen = [layer for layer in fp32.layers if layer.name in ("layer4.2.conv3", "fc")]
        asked.extend(layer.name for layer in layers)  # type: ignore[attr-defined]
        return list(chosen)

    gains = sensitivity(fp32, int8, X, few)  # type: ignore[arg-type]
    assert len(asked) == 54
    assert [gain.name for gain in gains] == ["layer4.2.conv3", "fc"]
    other, fc = (gain.gain_db for gain in gains)
    assert fc > 3 + abs(other)
    assert int8.precision == "int8"


def test_gains_are_listed_from_the_largest_with_a_bar_each() -> None:
    text = format_sensitivity([Gain("conv1", 0.5), Gain("fc", 1.0), Gain("layer1.0.conv1", -0.01)])
    assert text.splitlines() == [
        "left in float32        gain (dB)",
        "fc                          1.00  " + "#" * 30,
        "conv1                       0.50  " + "#" * 15,
        "layer1.0.conv1             -0.01",
    ]
    assert "#" not in format_sensitivity([Gain("fc", -0.1)])


def test_the_plot_has_a_bar_for_each_layer_from_the_first_down() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    (axes,) = plot_sensitivity([Gain("conv1", 0.5), Gain("fc", -0.1)], "a network").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["conv1", "fc"]
    assert [bar.get_width() for bar in axes.patches] == [0.5, -0.1]
    bottom, top = axes.get_ylim()
    assert bottom > top
