import numpy as np
import pytest

from minires.layers import Layer
from minires.quantize import moments
from minires.quantize.moments import Moments
from minires.reference import im2col_ref
from tests.comparing import assert_same
from tests.seeded_weights import uniform

LINEAR = Layer("fc", "linear", ("avgpool",), 5, 3)
CONV = Layer("conv", "conv", ("x",), 4, 3, kernel=3, stride=1, padding=1)


def test_sums_are_those_of_all_rows_whatever_the_batches() -> None:
    x = uniform(-1, 2, (6, 5), 0)
    seen = Moments()
    for part in np.split(x, [1, 4]):
        seen.observe(LINEAR, part)
    assert (seen.rows, seen.images) == (6, 6)
    np.testing.assert_allclose(seen.products[0, 5], x.T @ x, rtol=1e-5)
    np.testing.assert_allclose(seen.mean(), x.mean(axis=0), rtol=1e-6)
    assert seen.products[0, 5].dtype == np.float32


def test_a_small_convolution_is_seen_at_every_pixel() -> None:
    x = uniform(0, 1, (2, 9, 9, 4), 1)
    seen = Moments()
    seen.observe(CONV, x)
    columns = im2col_ref(x, 3, 3, 1, 1)
    assert (seen.rows, seen.images) == (2 * 81, 2)
    assert_same(seen.products[0, 36], columns.T @ columns)


@pytest.mark.parametrize(("size", "apart"), [(14, 1), (15, 2), (28, 2), (56, 4)])
def test_a_large_one_is_seen_at_some(size: int, apart: int) -> None:
    """Those in even steps from the first on, so that no image has more than SIDE * SIDE rows."""
    x = uniform(0, 1, (1, size, size, 4), 2)
    seen = Moments()
    seen.observe(CONV, x)
    every = im2col_ref(x, 3, 3, 1, 1).reshape(size, size, -1)
    some = every[::apart, ::apart].reshape(-1, every.shape[-1])
    assert seen.rows == len(some) <= moments.SIDE**2
    np.testing.assert_allclose(seen.products[0, 36], some.T @ some, rtol=1e-5)


def test_the_outputs_error_is_what_the_inputs_make_of_the_weights() -> None:
    x, errors = uniform(0, 1, (40, 5), 3), uniform(-1, 1, (3, 5), 4)
    seen = Moments()
    seen.observe(LINEAR, x)
    expected = np.mean((x.astype(np.float64) @ errors.T) ** 2, axis=0)
    np.testing.assert_allclose(seen.error(errors), expected, rtol=1e-4)


def test_of_many_inputs_only_those_near_each_other_are_multiplied() -> None:
    K = moments.GROUP + 40
    x, seen = uniform(-1, 2, (30, K), 5), Moments()
    seen.observe(LINEAR, x)
    assert list(seen.products) == [(0, moments.GROUP), (moments.GROUP, K)]
    for (start, end), products in seen.products.items():
        assert_same(products, x[:, start:end].T @ x[:, start:end])


def test_errors_of_different_groups_count_as_independent() -> None:
    K = moments.GROUP + 40
    x, errors, seen = uniform(0, 1, (300, K), 6), uniform(-1, 1, (3, K), 7), Moments()
    seen.observe(LINEAR, x)
    halves = [part.astype(np.float64) for part in (x[:, : moments.GROUP], x[:, moments.GROUP :])]
    outputs = [
        part @ weights.T
        for part, weights in zip(halves, np.split(errors, [moments.GROUP], axis=1), strict=True)
    ]
    error = sum(np.mean(y**2, axis=0) for y in outputs)
    np.testing.assert_allclose(seen.error(errors), error, rtol=1e-4)
    variance = sum(np.var(y, axis=0) for y in outputs)
    np.testing.assert_allclose(seen.variance(errors), variance, rtol=1e-2)


@pytest.mark.parametrize("parts", [[], [1], [200, 201, 202, 600]])
def test_a_sample_of_whole_rows_is_even_whatever_the_batches(parts: list[int]) -> None:
    x, seen = uniform(-1, 2, (700, moments.GROUP + 1), 8), Moments()
    for part in np.split(x, parts):
        seen.observe(LINEAR, part)
    assert_same(np.array(seen.sample), x[::8])  # 88 rows: every fourth would be more than 128
    errors = uniform(-1, 1, (3, moments.GROUP + 1), 9)
    expected = np.mean((x[::8].astype(np.float64) @ errors.T) ** 2, axis=0)
    np.testing.assert_allclose(seen.sampled_error(errors), expected, rtol=1e-4)


def test_no_sample_is_kept_where_the_products_tell_all() -> None:
    seen = Moments()
    seen.observe(LINEAR, uniform(-1, 2, (30, moments.GROUP), 10))
    assert seen.sample == []
