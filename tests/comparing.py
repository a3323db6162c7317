"""Comparisons that a NaN, a wrong shape or a wrong dtype fails."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
EPS = float(np.finfo(np.float32).eps)  # 2**-23, twice the largest error of one rounding


def assert_close(actual: Array, expected: Array, bound: Array | float) -> None:
    """Require float32 values within `bound` of `expected`, element by element.

    Parameters
    ----------
    actual : ndarray
        What minires computed; must be float32 and of expected's shape.
    expected : ndarray
        What another library, or float64, makes of the same input.
    bound : ndarray or float
        The largest absolute error allowed, one for all or one per element.
    """
    assert actual.dtype == np.float32, f"dtype {actual.dtype}, wanted float32"
    assert actual.shape == expected.shape, f"shape {actual.shape}, wanted {expected.shape}"
    error = np.abs(actual.astype(np.float64) - expected)
    within = error <= bound  # False where any of the three is NaN
    if not within.all():
        worst = np.unravel_index(np.argmax(np.where(within, 0, np.nan_to_num(error, nan=np.inf))),
                                 error.shape)  # fmt: skip
        raise AssertionError(
            f"{np.count_nonzero(~within)} of {error.size} values are out of bounds; the worst, at "
            f"{tuple(map(int, worst))}: {actual[worst]} for {expected[worst]}, "
            f"bound {np.broadcast_to(bound, error.shape)[worst]:.3g}"
        )


def assert_same(actual: Array, expected: Array) -> None:
    """Require the same dtype, shape and values, none of them NaN."""
    assert actual.dtype == expected.dtype, f"dtype {actual.dtype}, wanted {expected.dtype}"
    assert actual.shape == expected.shape, f"shape {actual.shape}, wanted {expected.shape}"
    different = np.count_nonzero(~(actual == expected))
    assert different == 0, f"{different} of {actual.size} values differ"


def gemm_bound(K: int, magnitude: Array) -> Array:
    """Bound how far two float32 sums of the same K products can lie apart: 2 * K * eps * sum|ab|.

    Each sum errs by at most K * eps / 2 * sum|ab| to first order, whatever its order (Higham,
    "Accuracy and Stability of Numerical Algorithms", 2nd ed., section 3.1): together half of
    this. The other half is room for an epilogue, a handful of roundings more, where K is at
    least as large as that handful and its terms are part of the magnitude.

    Parameters
    ----------
    K : int
        Products summed.
    magnitude : ndarray
        The same sum over absolute values, with those of bias and residual added.
    """
    return 2 * K * EPS * magnitude
