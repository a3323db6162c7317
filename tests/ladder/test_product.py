"""What rungs share: parameters as they lie in memory, and code that is kept by its text."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minires.kernels.isa import choose_isa
from minires.ladder import product as product_module
from minires.ladder.climb import problem
from minires.ladder.product import compile_rung, fill_up, from_memory, in_memory, product_of
from minires.reference import round_bf16_ref


def test_bfloat16_is_the_upper_half() -> None:
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    stored = in_memory(x, "bf16")
    assert stored.dtype == np.int16
    assert np.array_equal(from_memory(stored, "bf16"), round_bf16_ref(x))
    assert in_memory(x, "fp32") is x
    assert from_memory(x, "fp32") is x


@pytest.mark.parametrize(
    ("rows", "columns", "shape"), [(4, 3, (8, 6)), (5, 5, (5, 5)), (1, 1, (5, 5))]
)
def test_matrices_are_filled_up_with_zeros(rows: int, columns: int, shape: tuple[int, int]) -> None:
    matrix = np.arange(1, 26).reshape(5, 5)
    filled = fill_up(matrix, rows, columns)
    assert filled.shape == shape
    assert np.array_equal(filled[:5, :5], matrix)
    assert filled.sum() == matrix.sum()


def test_an_epilogue_is_filled_up_to_whole_panels() -> None:
    layer, p, _ = problem("int8")
    bias, m, scalars = product_of(layer, p, "int8", choose_isa(), 1).epilogue(48)
    assert len(bias) == len(m) == 144
    assert np.array_equal(bias[:128], p.bias_s32)
    assert not bias[128:].any()
    assert [type(value) for value in scalars] == [np.float32, np.int32, *[np.float32] * 2,
                                                  np.int32, np.float32]  # fmt: skip


def test_a_rung_is_compiled_anew_where_its_file_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def compile_for(isa: Any, function: Any, signature: Any, what: str) -> Any:
        asked.append(what)
        return function

    monkeypatch.setattr(product_module, "compile_for", compile_for)
    layer, p, _ = problem("fp32")
    product = product_of(layer, p, "fp32", choose_isa(), 1)
    file = tmp_path / "rung.py"
    for text in ("def gemm(a, b, c): pass", "def gemm(a, b, c): c[0, 0] = 1"):
        file.write_text(text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location("rung", file)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for what in ("", "", "another instruction"):
            compile_rung(product, module.gemm, product.matrices, what)
    assert len(asked) == len(set(asked)) == 4
    assert all(what.startswith("rung/fp32/") for what in asked)
