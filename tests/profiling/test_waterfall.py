"""The waterfall's bars add up to what they explain."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from minires.model import ResNet50
from minires.profiling import waterfall
from minires.profiling.waterfall import (
    PREPROCESSING,
    REST,
    Part,
    Waterfall,
    format_waterfall,
    measure_waterfall,
    plot_waterfall,
    time_preprocessing,
)
from tests.profiling.conftest import META


@pytest.fixture
def fall(
    models: Mapping[str, ResNet50], photograph: bytes, monkeypatch: pytest.MonkeyPatch
) -> Waterfall:
    peaks = {"fp32": 100.0, "int8": 250.0}
    monkeypatch.setattr(waterfall, "peak", lambda p: SimpleNamespace(all_gops=peaks[p]))
    return measure_waterfall(models, photograph, rounds=3)


def test_the_bars_lead_from_a_quarter_of_fp32_to_int8(fall: Waterfall) -> None:
    bars = sum(part.excess for part in fall.parts)
    assert fall.whole.fp32 / 4 + bars == pytest.approx(fall.whole.int8)
    for precision in ("fp32", "int8"):
        parts = [getattr(part, precision) for part in fall.parts]
        assert sum(parts) == pytest.approx(getattr(fall.whole, precision))
        assert min(parts[:-1]) > 0
    assert [part.name for part in fall.parts] == [
        "input", "conv1", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc", REST,
    ]  # fmt: skip


def test_a_bar_is_what_exceeds_a_quarter() -> None:
    assert Part("", 4.0, 1.0).excess == 0
    assert Part("", 4.0, 3.0).excess == 2


def test_the_causes_are_told_apart(fall: Waterfall) -> None:
    causes = [name for name, _ in fall.ablation]
    assert causes == [
        "instruction: the peak is 2.50x", "epilogue", "edges of tiles", "unexplained",
    ]  # fmt: skip
    assert fall.ablation[0][1] != 0


def test_the_text_says_all(fall: Waterfall, models: Mapping[str, ResNet50]) -> None:
    text = format_waterfall(fall._replace(others={"bf16": fall.whole.fp32 / 2}))
    for words in ("a quarter", "layer3", REST, "unexplained", "bf16", "2.00x", "full 4x", "decode"):
        assert words in text


def test_preprocessing_is_what_preprocess_does(photograph: bytes) -> None:
    from minires.preprocess import preprocess
    from tests.comparing import assert_same

    preset = META["preset"]
    x, seconds = time_preprocessing(photograph, preset)  # type: ignore[arg-type]
    assert_same(x, preprocess(photograph, preset))  # type: ignore[arg-type]
    assert tuple(seconds) == PREPROCESSING
    assert min(seconds.values()) > 0


def test_the_plot_is_a_picture(fall: Waterfall, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    plot_waterfall(fall, tmp_path / "fall.svg")
    text = (tmp_path / "fall.svg").read_text("utf-8")
    assert "unexplained" in text
