"""The comparisons reject what a broken network produces."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.comparing import Array, assert_close, assert_same
from tests.seeded_weights import uniform

GOOD = uniform(1, 2, (2, 3, 4, 8), 0)


def one_nan(x: Array) -> Array:
    y = x.copy()
    y[-1, -1, -1, -1] = np.nan
    return y


def swapped_channels(x: Array) -> Array:
    return x[..., [1, 0, *range(2, x.shape[-1])]]


BROKEN: dict[str, Callable[[Array], Array]] = {
    "zeros": np.zeros_like,
    "one NaN": one_nan,
    "all NaN": lambda x: np.full_like(x, np.nan),
    "infinity": lambda x: x * np.float32(np.inf),
    "off by one pixel": lambda x: np.roll(x, 1, axis=1),
    "off by one": lambda x: x + np.float32(1),
    "swapped channels": swapped_channels,
    "wrong order of images": lambda x: x[::-1],
    "one row less": lambda x: x[:, :-1],
    "a shape that broadcasts": lambda x: x[:1],
    "NCHW": lambda x: x.transpose(0, 3, 1, 2),
    "float64": lambda x: x.astype(np.float64),
    "empty": lambda x: x[:0],
}


@pytest.mark.parametrize("compare", [lambda a, e: assert_close(a, e, 1e-3), assert_same])
@pytest.mark.parametrize("break_it", BROKEN.values(), ids=BROKEN.keys())
def test_broken_output_is_rejected(
    compare: Callable[[Array, Array], None], break_it: Callable[[Array], Array]
) -> None:
    compare(GOOD.copy(), GOOD)
    with pytest.raises(AssertionError):
        compare(break_it(GOOD), GOOD)


@pytest.mark.parametrize("compare", [lambda a, e: assert_close(a, e, 1e-3), assert_same])
def test_nan_does_not_excuse_nan(compare: Callable[[Array, Array], None]) -> None:
    with pytest.raises(AssertionError):
        compare(one_nan(GOOD), one_nan(GOOD))


@pytest.mark.parametrize("bound", [np.nan, -1.0, np.full(GOOD.shape, np.nan)])
def test_a_bound_that_is_no_bound_is_rejected(bound: Any) -> None:
    with pytest.raises(AssertionError):
        assert_close(GOOD, GOOD, bound)


def test_each_element_is_held_to_its_own_bound() -> None:
    actual, expected = np.ones(2, np.float32), np.array([1.5, 1.0])
    assert_close(actual, expected, np.array([0.5, 0.0]))
    with pytest.raises(AssertionError, match=r"1 of 2 .* at \(0,\): 1.0 for 1.5, bound 0.25"):
        assert_close(actual, expected, np.array([0.25, 0.5]))


def test_one_unit_is_told_apart() -> None:
    q = np.arange(256, dtype=np.uint8)
    assert_same(q, q.copy())
    with pytest.raises(AssertionError, match="1 of 256"):
        assert_same(np.where(q == 7, 8, q).astype(np.uint8), q)
    with pytest.raises(AssertionError, match="dtype"):
        assert_same(q.astype(np.int8), q)
