"""A rung is shown with its file, and with a loop that multiplies as it says."""

import re
from pathlib import Path

import pytest

from minires.cli import main
from minires.errors import MiniresError
from minires.ladder import product, tiled
from minires.ladder.climb import rungs, vector_isa
from minires.ladder.show import VECTORS, show


def test_a_rungs_source_and_its_loop_are_shown() -> None:
    text = show("tiled", "fp32")
    assert Path(tiled.__file__).read_text("utf-8").rstrip() in text
    loop = text.partition("its inner loop")[2]
    assert "mul" in loop or "fma" in loop or "mla" in loop
    assert not product._watched


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_loop_of_vectors_is_shown(precision: str) -> None:
    """And not the one beside it, which LLVM leaves for what does not fill a vector."""
    loop = show("ordered", precision).partition("its inner loop")[2]
    assert re.search(VECTORS, loop)


def test_a_rung_of_an_instruction_has_it_in_its_loop() -> None:
    isa = vector_isa("u8s8")
    instruction = isa.instructions["u8s8"]
    name = instruction.name.partition(",")[0]
    if name not in [rung.name for rung in rungs("int8")]:
        pytest.skip("this machine has no instruction for it")
    loop = show(name, "int8").partition("its inner loop")[2]
    assert all(re.search(rf"\b(?:{mnemonic})\b", loop) for mnemonic in instruction.mnemonics)


def test_what_is_not_shown_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("numpy", "engine", "roof"):
        with pytest.raises(MiniresError, match=f"no rung {name} to show; it has loops, ordered"):
            show(name, "fp32")
    for words in (["--backend", "cuda"], ["--quick"]):
        assert main(["ladder", "--show", "tiled", "--precisions", "fp32", *words]) == 1
        assert "leave" in capsys.readouterr().err
