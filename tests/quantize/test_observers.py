from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from minires.errors import MiniresError
from minires.quantize.observers import (
    BINS,
    OBSERVERS,
    HistogramObserver,
    MinMaxObserver,
    qparams_of_range,
)
from minires.reference import fake_quantize_ref, quantize_ref
from tests.seeded_weights import uniform

Array = npt.NDArray[Any]
HISTOGRAMS = [name for name in OBSERVERS if name != "minmax"]


def observed(name: str, *batches: Array) -> Any:
    observer = OBSERVERS[name]()
    for x in batches:
        observer.observe(x)
    return observer


def gaussian(*seed: int) -> Array:
    """Draw a bell of standard deviation 1 as sums of uniforms; its ends lie at -6 and 6."""
    return uniform(-0.5, 0.5, (12, 50_000), *seed).sum(axis=0)


def heavy_tailed() -> Array:
    """Add two values far outside to a bell whose own end near +-4.8."""
    bell = uniform(-0.5, 0.5, (12, 300_000), 0).sum(axis=0)
    return np.concatenate([bell, np.float32([16, -14])])


def squared_error(x: Array, limits: tuple[float, float]) -> float:
    """Quantize in earnest: the mean squared error of a range."""
    return float(np.mean(np.square(x - fake_quantize_ref(x, *qparams_of_range(*limits)))))


# Scale and zero point


@pytest.mark.parametrize(
    ("low", "high", "zero_point"),
    [(0, 255, 0), (-255, 0, 255), (-128, 127, 128), (3, 255, 0), (-255, -3, 255), (-1, 254, 1)],
)
def test_a_range_of_whole_steps(low: float, high: float, zero_point: int) -> None:
    """A range beside zero is widened to hold it."""
    assert qparams_of_range(low, high) == (np.float32(1), zero_point)


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 0), (0, 1e-44), (-1e-45, 0), (-1e-44, 1e-44), (-1e-38, 1e-38), (0, 1e-30), (-1e30, 1e30),
     (-3e38, 3e38), (0, 3.4e38), (-0.3, 7.7), (-1e-20, 1e20), (-1e20, 1e-20)],
)  # fmt: skip
def test_any_range_has_a_scale_and_an_exact_zero(low: float, high: float) -> None:
    scale, zero_point = qparams_of_range(low, high)
    assert isinstance(scale, np.float32)
    assert 0 < scale < np.inf
    assert isinstance(zero_point, int)
    assert 0 <= zero_point <= 255
    zero = np.zeros(1, np.float32)
    assert fake_quantize_ref(zero, scale, zero_point) == 0
    if high - low > 1e-30:  # not down among the denormals
        ends = np.float32([low, high])
        steps = quantize_ref(ends, scale, zero_point)
        assert steps.tolist() in ([0, 255], [0, 254], [1, 255])  # the zero point is rounded
        error = np.abs(fake_quantize_ref(ends, scale, zero_point) / scale - ends / scale)
        assert error.max() <= 0.501


# What all have in common


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(name: str, bad: float) -> None:
    observer = observed(name, np.ones(4, np.float32))
    x = np.float32([1, bad, 2])
    with pytest.raises(MiniresError, match="NaN or infinity"):
        observer.observe(x)


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("value", [0, 1, -1, 1e-30, -1e30, 1e-45])
def test_constant_tensors_have_a_scale(name: str, value: float) -> None:
    x = np.full((2, 3, 4), value, np.float32)
    observer = observed(name, x, x)
    low, high = observer.range()
    assert low <= 0 <= high
    assert low >= x.min() * (1 + 1e-6) or low == 0
    assert high <= x.max() * (1 + 1e-6) or high == 0
    scale, zero_point = qparams_of_range(low, high)
    assert 0 < scale < np.inf
    assert 0 <= zero_point <= 255
    assert 0 <= observer.saturated() <= 1


@pytest.mark.parametrize("name", OBSERVERS)
def test_all_zeros_saturate_nothing(name: str) -> None:
    observer = observed(name, np.zeros(100, np.float32))
    assert observer.range() == (0, 0)
    assert observer.saturated() == 0


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize(("low", "high"), [(2, 5), (-5, -2), (-1, 3), (0, 4)])
def test_ranges_hold_zero_and_little_else_than_was_seen(name: str, low: float, high: float) -> None:
    limits = observed(name, uniform(low, high, (20_000,), 0)).range()
    assert min(low, 0) <= limits[0] <= 0 <= limits[1] <= max(high, 0)


def test_minmax_is_exact() -> None:
    a, b = uniform(-1, 2, (3, 40), 0), uniform(-4, 1, (2, 5), 1)
    assert observed("minmax", a, b).range() == (float(b.min()), float(a.max()))
    assert observed("minmax", a, b).saturated() == 0


@pytest.mark.parametrize("name", OBSERVERS)
def test_the_order_of_images_does_not_matter(name: str) -> None:
    """To a bin, or for those that try ranges, to what another range costs."""
    images = [gaussian(seed) * scale for seed, scale in enumerate([0.1, 1.3, 0.7, 2.0])]
    one, other = observed(name, *images), observed(name, *reversed(images))
    bins = max(getattr(o, "limit", 0) for o in (one, other)) / (BINS / 2)
    if name in ("minmax", "percentile"):
        np.testing.assert_allclose(one.range(), other.range(), rtol=0, atol=2 * bins)
    else:
        x = np.concatenate(images)
        costs = squared_error(x, one.range()), squared_error(x, other.range())
        assert max(costs) <= 1.05 * min(costs)


# The histogram


def test_growth_merges_counts_without_loss() -> None:
    """Values that are whole bins at every limit: the histogram of all at once is the same."""
    small = np.float32([-1, -0.75, -0.25, 0.25, 0.25, 0.5, 0.96875])
    large = np.float32([16, -9.5, 3.25])
    grown, at_once = HistogramObserver(), HistogramObserver()
    grown.observe(small)
    assert grown.limit == 1
    memory = grown.counts.nbytes
    grown.observe(large)
    at_once.observe(np.concatenate([large, small]))
    assert grown.limit == at_once.limit == 16
    assert grown.counts.nbytes == memory
    np.testing.assert_array_equal(grown.counts, at_once.counts)
    assert grown.counts.sum() == len(small) + len(large)


def test_each_value_is_counted_in_its_bin() -> None:
    observer = HistogramObserver()
    x = np.concatenate([uniform(-3, 5, (1000,), 0), np.float32([5, -5, 0])])
    observer.observe(x)
    expected, _ = np.histogram(x.astype(np.float64), BINS, (-5, 5))
    assert observer.counts.sum() == len(x)
    # float32 may bring a value at a bin's edge into the one beside it.
    assert np.abs(np.cumsum(observer.counts - expected)).max() <= 2
    np.testing.assert_allclose(observer.centres()[[0, -1]], [-5 + 5 / BINS, 5 - 5 / BINS])


def test_zeros_that_come_first_are_counted() -> None:
    observer = HistogramObserver()
    observer.observe(np.zeros(10, np.float32))
    observer.observe(np.ones(10, np.float32))
    assert observer.counts.sum() == 20


def test_memory_does_not_grow_with_images_or_range() -> None:
    observer = HistogramObserver()
    for power in range(-40, 40, 4):
        observer.observe(uniform(-(2.0**power), 2.0**power, (500,), power + 40))
    assert observer.counts.shape == (BINS,)
    assert observer.counts.sum() == 20 * 500


# Which range each chooses


def test_percentile_cuts_off_its_share() -> None:
    x = uniform(-1, 3, (200_000,), 0)
    x[:10], x[10:20] = 30, -10  # a twentieth of a thousandth on either side
    observer = observed("percentile", x)
    low, high = observer.range()
    expected = np.percentile(x, [0.01, 99.99])
    np.testing.assert_allclose([low, high], expected, rtol=0, atol=30 / (BINS / 2))
    assert 0.5e-4 <= observer.saturated() <= 2e-4


def test_percentile_keeps_small_samples_whole() -> None:
    x = uniform(-1, 3, (999,), 0)
    np.testing.assert_allclose(observed("percentile", x).range(), [x.min(), x.max()],
                               rtol=0, atol=2 * 3 / (BINS / 2))  # fmt: skip


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize(("low", "high"), [(-1, 1), (0, 6), (-2, 5)])
def test_uniform_values_keep_nearly_their_range(name: str, low: float, high: float) -> None:
    limits = observed(name, uniform(low, high, (100_000,), 0)).range()
    assert limits[1] >= 0.97 * high
    assert limits[0] <= 0.97 * low


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_outliers_do_not_stretch_the_range(name: str) -> None:
    x = heavy_tailed()
    low, high = observed(name, x).range()
    assert 3 < high < 0.6 * x.max()
    assert 0.6 * x.min() < low < -3
    assert observed(name, x).saturated() > 0


def test_mse_loses_no_more_than_any_other_range() -> None:
    """Measured by quantizing the values themselves; the histogram knows them to a bin."""
    for x in (heavy_tailed(), gaussian(1), uniform(0, 1, (50_000,), 2), np.abs(gaussian(3)) ** 3):
        chosen = squared_error(x, observed("mse", x).range())
        assert chosen <= 1.001 * squared_error(x, observed("minmax", x).range())
        low, high = float(x.min()), float(x.max())
        best = min(squared_error(x, (s * low, s * high)) for s in np.linspace(1, 1 / 8, 200))
        assert chosen <= 1.05 * best
    wide = heavy_tailed()
    assert squared_error(wide, observed("mse", wide).range()) < 0.9 * squared_error(
        wide, (float(wide.min()), float(wide.max()))
    )


def test_mse_finds_the_known_optimum_of_a_bell() -> None:
    """256 even steps over a normal distribution lose least at +-3.94 standard deviations."""
    x = np.random.RandomState(4).standard_normal(1_000_000).astype(np.float32)
    x[:2] = 5.5, -5.5
    low, high = observed("mse", x).range()
    assert 3.8 <= high <= 4.1
    assert -4.1 <= low <= -3.8


def test_entropy_prefers_the_range_that_keeps_the_shape() -> None:
    x = heavy_tailed()
    observer = observed("entropy", x)
    full = (float(x.min()), float(x.max()))
    assert observer.divergence(observer.range()) < 0.8 * observer.divergence(full)
    assert observer.divergence(full) >= 0


def test_saturated_is_the_share_outside() -> None:
    x = heavy_tailed()
    for name in HISTOGRAMS:
        observer = observed(name, x)
        low, high = observer.range()
        near = (observer.limit / BINS) * 2
        fewest = np.mean((x < low - near) | (x > high + near))
        most = np.mean((x < low + near) | (x > high - near))
        assert fewest <= observer.saturated() <= most


def test_all_observers_share_an_interface() -> None:
    assert set(OBSERVERS) == {"minmax", "percentile", "entropy", "mse"}
    assert all(issubclass(observer, MinMaxObserver) for observer in OBSERVERS.values())
