from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minires
from minires.errors import MiniresError, check_is, check_whole, nearest, short, some

ODD = [123, None, ["int8"], {"int8": 1}, np.zeros(3), b"int8", "a" * 10**6, "\x1b[2J"]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_what_is_no_precision_or_backend_is_told_in_a_sentence(odd: Any) -> None:
    for kind in ("precision", "backend") if odd is not None else ("backend",):
        with pytest.raises(MiniresError, match=f"there is no {kind}") as caught:
            minires.resnet50("CIFAR10", **{kind: odd})
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", [*ODD, [[[[1]]]] * 10**4, {"a" * 10**6: ["b" * 10**6]}, "a\nb"])
def test_what_came_from_outside_is_written_in_short(value: Any) -> None:
    assert short(value).isprintable()
    assert 0 < len(short(value)) <= 120


def test_text_that_is_short_and_plain_stays_as_it_is() -> None:
    assert short("conv1 weight ä") == "conv1 weight ä"
    assert short(1.5) == "1.5"


def test_a_string_is_told_with_its_quotes() -> None:
    with pytest.raises(MiniresError, match="top is '5'; wanted a whole number"):
        check_whole("top", "5")
    with pytest.raises(MiniresError, match="hook is 'print'; wanted a function"):
        check_is("hook", "print", int, "a function")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("INT8", "int8"),
        ("int 8", "int8"),
        ("in", "int8"),
        ("fp23", "fp32"),
        ("layer1", ""),
        ("", ""),
    ],
)
def test_the_nearest_name_is_proposed_whatever_its_case(wrong: str, right: str) -> None:
    known = ["fp32", "int8", "int8-simulated"]
    assert nearest(wrong, known) == (f"; did you mean {right}?" if right else "")


def test_a_wrong_precision_is_told_with_the_nearest() -> None:
    with pytest.raises(MiniresError, match=r"no precision 'INT8'; .*; did you mean int8\?"):
        minires.resnet50("CIFAR10", "INT8")


def test_many_names_are_a_few_and_a_count() -> None:
    assert some(["a"]) == "a"
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some([Path(str(i)) for i in range(480)]) == "0, 1, 2 and 477 more"
