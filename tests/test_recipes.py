"""The table of recipes: what it leaves out, and what it hands to others."""

import importlib.util
from typing import Any

import numpy as np
import pytest

from tests.scripts import load

RECIPES = load("benchmarks/recipes.py")
PHOTOGRAPHS = {"8": lambda: iter([])}


@pytest.mark.parametrize(
    ("rows", "missing"),
    [
        ("onnxruntime_recipes", "ONNX Runtime is left out: onnxruntime not installed\n"),
        ("nncf_recipes", "NNCF is left out: nncf, openvino not installed\n"),
    ],
)
def test_rows_of_what_is_not_installed_are_left_out_with_a_reason(
    rows: str, missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"onnx": object()}
    monkeypatch.setattr(importlib.util, "find_spec", found.get)
    assert list(getattr(RECIPES, rows)(None, PHOTOGRAPHS)) == []
    assert capsys.readouterr().err == missing


def test_onnx_runtime_reads_each_image_once_a_few_at_a_time() -> None:
    batches = [np.full((n, 3, 2, 2), n, np.float32) for n in (1, 3)]
    reader = RECIPES.Reader(RECIPES.one_by_one(lambda: batches))

    def rest() -> list[Any]:
        return [given["image"] for given in iter(reader.get_next, None)]

    assert len(reader) == 4
    reader.set_range(start_index=0, end_index=2)
    few = rest()
    reader.set_range(start_index=2, end_index=4)
    few += rest()
    assert [image.shape for image in few] == [(1, 3, 2, 2)] * 4
    assert [image.max() for image in few] == [1, 3, 3, 3]
