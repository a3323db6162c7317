import numpy as np
import pytest
from scipy import special

from minires.reference import relu_ref, softmax_ref
from tests.comparing import EPS, Array, assert_close, assert_same
from tests.seeded_weights import uniform


def test_relu_clips_below_zero() -> None:
    x = np.array([[-np.inf, -1e-45, -0.0], [0.0, 1e-45, np.inf]], np.float32)
    assert_same(relu_ref(x), np.array([[0, 0, 0], [0, 1e-45, np.inf]], np.float32))


def test_relu_keeps_nan_and_leaves_its_input_alone() -> None:
    x = np.array([np.nan, -1], np.float32)
    y = relu_ref(x)
    assert np.isnan(y[0])
    assert y[1] == 0
    assert x[1] == -1


@pytest.mark.parametrize("shape", [(1,), (10,), (3, 1000), (2, 3, 5)])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 30.0, 1e4])
def test_softmax_is_scipys(shape: tuple[int, ...], spread: float) -> None:
    logits = uniform(-spread, spread, shape, 0)
    expected = special.softmax(logits.astype(np.float64), axis=-1)
    # The difference from the largest rounds once, and exp makes an absolute error a relative one;
    # the sum rounds once a class, exp and the quotient by a few units more.
    distance = logits.max(axis=-1, keepdims=True).astype(np.float64) - logits
    bound: Array = EPS * (distance + shape[-1] + 8) * expected + np.finfo(np.float32).tiny
    probabilities = softmax_ref(logits)
    assert_close(probabilities, expected, bound)
    assert_close(probabilities.sum(axis=-1), np.ones(shape[:-1]), shape[-1] * EPS)


def test_softmax_neither_overflows_nor_divides_zero_by_zero() -> None:
    logits = np.array([[1e38, -1e38, 1e38], [-1e38, -1e38, -1e38]], np.float32)
    expected = np.array([[1 / 2, 0, 1 / 2], [1 / 3, 1 / 3, 1 / 3]], np.float32)
    assert_same(softmax_ref(logits), expected)
