"""Observers choose the range of real numbers that 256 steps cover.

A wide range clips nothing, but its steps are coarse. A narrow one has fine steps, but saturates the
values outside. Here are four compromises. Each observer sees one batch at a time, and its memory
does not grow.
"""

import numpy as np
import numpy.typing as npt

from minires.errors import MiniresError, short
from minires.reference import QParams

Array = npt.NDArray[np.float32]
Counts = npt.NDArray[np.float64]

BINS = 4096  # of the histogram, half of them below zero
CANDIDATES = 96  # ranges that entropy and MSE try
LARGEST = float(np.finfo(np.float32).max)


def qparams_of_range(low: float, high: float) -> QParams:
    """Choose scale and zero point so that 0 to 255 covers a range, and zero is exact: equation 5.3.

    The range is widened to hold zero, because padding and ReLU need an exact zero. A range that
    holds nothing but zero gets the scale 1.
    """
    for end in (low, high):
        real = isinstance(end, int | float | np.integer | np.floating)
        if not (real and abs(end) <= LARGEST):  # NaN is not
            raise MiniresError(f"a range ends at {short(end)}; wanted a finite number")
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255) or np.float32(1)
    return QParams(scale, int(np.clip(np.rint(-low / scale), 0, 255)))


class MinMaxObserver:
    """Cover all values seen, so that nothing saturates; but outliers make the steps coarse."""

    def __init__(self) -> None:
        self.low, self.high = 0.0, 0.0

    def observe(self, x: Array) -> None:
        """Widen the range to hold x."""
        low, high = float(x.min()), float(x.max())
        if not np.isfinite(low + high):
            raise MiniresError(
                "calibration met NaN or infinity; the weights or an image are broken"
            )
        self.low, self.high = min(self.low, low), max(self.high, high)

    def range(self) -> tuple[float, float]:
        """Return the smallest and the largest value seen, or zero in their place."""
        return self.low, self.high

    def saturated(self) -> float:
        """Return the share of the values seen that lie outside the range."""
        return 0.0


class HistogramObserver(MinMaxObserver):
    """Count values in `BINS` equal bins over [-limit, limit]; the base of the other three.

    When a larger value comes, the limit doubles and neighbouring bins merge. So the memory stays
    the same, and no value has to be seen twice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.limit = 0.0
        self.counts: Counts = np.zeros(BINS)

    def observe(self, x: Array) -> None:
        """Count x, after making room for its largest value."""
        super().observe(x)
        largest = max(-self.low, self.high)
        if self.limit == 0:
            self.limit = largest
        while self.limit < largest:
            quarter = np.zeros(BINS // 4)
            merged = self.counts.reshape(-1, 2).sum(axis=1)  # (BINS / 2,)
            self.counts = np.concatenate([quarter, merged, quarter])
            self.limit *= 2
        if self.limit == 0:
            self.counts[BINS // 2] += x.size  # all values so far were zero
        else:
            bins = ((x.ravel() / self.limit + 1) * (BINS / 2)).astype(np.int64)
            self.counts += np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)

    def centres(self) -> Counts:
        """Return the value in the middle of each bin, (BINS,)."""
        middles = np.arange(BINS, dtype=np.float64) + 0.5
        centres: Counts = (middles / (BINS / 2) - 1) * self.limit
        return centres

    def saturated(self) -> float:
        """Return the share of the values seen outside the range, as exactly as bins tell it."""
        low, high = self.range()
        outside = (self.centres() < low) | (self.centres() > high)
        return float(self.counts[outside].sum() / max(self.counts.sum(), 1))

    def candidates(self) -> list[tuple[float, float]]:
        """List ranges to try: from the range of all values seen, in steps, to an eighth of it."""
        shares = np.linspace(1, 1 / 8, CANDIDATES)
        return [(share * self.low, share * self.high) for share in shares]


class PercentileObserver(HistogramObserver):
    """Cut off the outermost 0.01% at either end (Wu et al., "Integer Quantization for Deep Learning
    Inference: Principles and Empirical Evaluation", 2020, section 4: percentile).
    """  # noqa: D205

    share = 0.9999

    def range(self) -> tuple[float, float]:
        """Return the values below and above which at most the cut-off share lies."""
        total = np.cumsum(self.counts)
        edges = (np.arange(BINS + 1) / (BINS / 2) - 1) * self.limit
        low = edges[np.searchsorted(total, (1 - self.share) * total[-1], side="right")]
        high = edges[np.searchsorted(total, self.share * total[-1]) + 1]
        return max(self.low, min(low, 0.0)), min(self.high, max(high, 0.0))


class MSEObserver(HistogramObserver):
    """Lose the least: the range with the smallest mean squared error of rounding and
    saturation together (Choukroun et al., "Low-bit Quantization of Neural Networks for
    Efficient Inference", 2019, section 3.1).
    """  # noqa: D205

    def range(self) -> tuple[float, float]:
        """Return the candidate with the smallest error over the histogram."""
        return min(self.candidates(), key=self.error)

    def error(self, candidate: tuple[float, float]) -> float:
        """Sum the squared error that a range would make."""
        scale, zero_point = qparams_of_range(*candidate)
        real = self.centres()
        steps = np.clip(np.rint(real / scale), -zero_point, 255 - zero_point)
        return float(np.sum(self.counts * (real - steps * scale) ** 2))


class EntropyObserver(HistogramObserver):
    """Keep the most information: the range whose 256 steps have the smallest Kullback-Leibler
    divergence from all values seen (Migacz, "8-bit Inference with TensorRT", GTC 2017).
    """  # noqa: D205

    def range(self) -> tuple[float, float]:
        """Return the candidate with the smallest divergence over the histogram."""
        return min(self.candidates(), key=self.divergence)

    def divergence(self, candidate: tuple[float, float]) -> float:
        """Compare the clipped distribution with its 256-step version, in nats."""
        scale, zero_point = qparams_of_range(*candidate)
        counts = self.counts.copy()
        counts[BINS // 2] = 0  # zeros, most of them from a ReLU, are exact in any range
        steps = np.rint(self.centres() / scale).astype(np.int64) + zero_point
        first, end = np.searchsorted(steps, 0), np.searchsorted(steps, 255, "right")
        inside, steps = counts[first:end], steps[first:end]

        p = inside.copy()  # the counts, with saturated values on the outermost bins
        p[0] += counts[:first].sum()
        p[-1] += counts[end:].sum()
        # q is what 256 steps would tell: each step's count, spread evenly over its bins in use.
        used = inside > 0
        per_step = np.bincount(steps, inside, 256) / np.maximum(np.bincount(steps, used, 256), 1)
        q = np.maximum(np.where(used, per_step[steps], 0), 1e-9 * p.sum())
        seen = p > 0
        p, q = p[seen] / p.sum(), q[seen] / q.sum()
        return float(np.sum(p * np.log(p / q)))


OBSERVERS: dict[str, type[MinMaxObserver]] = {
    "minmax": MinMaxObserver,
    "percentile": PercentileObserver,
    "entropy": EntropyObserver,
    "mse": MSEObserver,
}
