import base64
import copy
import io
import json
import os
from typing import Any

import numpy as np
import pytest
from PIL import Image

from minires.api import Prediction, Predictions
from minires.backends import Backend
from minires.kernels.cuda import driver
from minires.layers import Layer
from minires.model import ResNet50, Step, resnet50_layers
from minires.preprocess import IMAGENET_V2, Preset
from minires.show import Meta, channels_picture

LAYERS = [Layer("input", "input", (), 3, 3), Layer("fc", "linear", ("input",), 3, 7)]
CIFAR = Preset(32, 32, IMAGENET_V2.mean, IMAGENET_V2.std, enlarge=64)
META = {"name": "own", "categories": ["a"] * 7, "preset": CIFAR}


def test_a_network_is_one_line_at_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ResNet50(LAYERS, {}, meta=META)
    assert repr(model) == "ResNet50(own, fp32, numpy, 7 classes, 64 x 64 pixels)"
    assert (
        repr(ResNet50(LAYERS, {})) == "ResNet50(unnamed, fp32, numpy, 7 classes, 224 x 224 pixels)"
    )
    chip = Backend(("bf16",), machine=lambda: "made-up-512")
    monkeypatch.setattr(ResNet50, "backends", {**ResNet50.backends, "chip": chip})
    model.precision = "bf16"
    model.backend = "chip"
    assert repr(model) == "ResNet50(own, bf16, chip on made-up-512, 7 classes, 64 x 64 pixels)"


def test_a_wrong_instruction_set_does_not_spoil_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIRES_ISA", "none-such")
    model = ResNet50(LAYERS, {}, meta=META)
    model.backend = "numba"
    assert repr(model) == "ResNet50(own, fp32, numba, 7 classes, 64 x 64 pixels)"
    monkeypatch.setenv("MINIRES_ISA", "generic")
    assert "numba on generic," in repr(model)


def test_a_gpu_is_named_once_it_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ResNet50(LAYERS, {}, meta=META)
    model.backend = "cuda"
    monkeypatch.setattr(driver, "open_gpu", lambda: driver.Gpu("H1", (9, 0), 132, os.getpid()))
    monkeypatch.setattr(driver, "opened_by", [])
    assert repr(model) == "ResNet50(own, fp32, cuda, 7 classes, 64 x 64 pixels)"
    driver.opened_by.append(os.getpid())
    assert repr(model) == "ResNet50(own, fp32, cuda on H1, 7 classes, 64 x 64 pixels)"


def test_the_tables_are_of_the_networks_own_images() -> None:
    model = ResNet50(LAYERS, {}, meta=META)
    for shown in str(model), model._repr_html_():
        assert "1 x 64 x 64 x 3" in shown
    assert "edge" not in str(ResNet50(LAYERS, {}, "bf16"))


def test_a_notebook_folds_the_table() -> None:
    shown = ResNet50(LAYERS, {}, meta={**META, "name": "<b>"})._repr_html_()
    assert "<details><summary>2 layers, 28 parameters, " in shown
    assert "ResNet50(&lt;b&gt;, fp32" in shown
    assert shown.count("<tr>") == 3


def test_meta_prints_in_short_and_is_a_dictionary() -> None:
    facts: dict[str, Any] = {"name": "own", "categories": [f"class {i}" for i in range(1000)]}
    facts |= {"text": "x" * 9999, "saturated": dict.fromkeys(map(str, range(54)), 0.5)}
    meta = ResNet50(LAYERS, {}, meta=facts).meta
    assert isinstance(meta, Meta)
    assert meta == facts
    assert copy.deepcopy(meta) == facts
    assert json.loads(json.dumps(meta)) == facts
    lines = repr(meta).splitlines()
    assert len(lines) == len(facts)
    assert all(len(line) < 130 for line in lines)
    assert lines[1] == " 'categories': ['class 0', 'class 1', 'class 2', ... 1000 in all],"
    assert repr(Meta()) == "{}"


def test_channels_lie_side_by_side_on_one_scale() -> None:
    output = np.zeros((2, 1, 2, 3), np.float32)  # NHWC
    output[0, 0, :, 1] = 4, -1  # white, black
    output[1] = 99  # another image
    picture, shown, across = channels_picture(output)
    assert shown == across == 3
    assert picture.size == (3 * 48 + 2 * 2, 24)
    grey, opaque = np.asarray(picture).transpose(2, 0, 1)
    assert grey[0, [0, 50, 50 + 24, 100]].tolist() == [51, 255, 0, 51]  # 0 is a fifth of the way
    assert opaque[0, [47, 48, 49, 50]].tolist() == [255, 0, 0, 255]


@pytest.mark.parametrize("shape", [(1, 2048), (1, 10), (1, 1), (1, 224, 224, 3), (1, 2, 2, 2048)])
@pytest.mark.parametrize("value", [0, 200, np.nan, np.inf])
def test_any_output_has_a_picture(shape: tuple[int, ...], value: float) -> None:
    output = np.full(shape, value, np.float32)
    picture, shown, _ = channels_picture(output)
    assert shown == min(64, shape[-1])
    assert picture.width <= 800
    assert np.asarray(picture)[0, 0].tolist()[1] == 255


def test_a_prompt_completes_layers_and_proposes_them() -> None:
    model = ResNet50(resnet50_layers(10), {})
    assert model._ipython_key_completions_()[:3] == ["input", "conv1", "maxpool"]
    for wrong, right in [("Conv1", "conv1"), ("layer2.1", "layer2.1.conv1")]:
        with pytest.raises(KeyError, match=rf"print\(model\) lists them; did you mean {right}\?"):
            model[wrong]


def test_a_step_shows_its_shapes_and_its_picture() -> None:
    output = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    shown = Step(LAYERS[0], (output,), output)._repr_html_()
    assert "Step(input, input: (1, 2, 2, 3) -&gt; (1, 2, 2, 3), 0 MACs)" in shown
    assert "channels 0 to 2 of 3, 3 in a row, from 0 (black) to 11" in shown
    data = base64.b64decode(shown.split("base64,")[1].split('"')[0])
    assert Image.open(io.BytesIO(data)).size == channels_picture(output)[0].size


def test_predictions_show_bars() -> None:
    found = [Prediction("<i>cat", 0.75, 3), Prediction("dog", 0.25, 5)]
    predictions = Predictions(found)
    assert predictions == found
    assert repr(predictions) == repr(found)
    shown = predictions._repr_html_()
    assert "&lt;i&gt;cat" in shown
    assert "75.00%" in shown
    assert "width:90.0px" in shown  # of 120
