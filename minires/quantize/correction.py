"""What rounding does to a channel's mean, taken off its bias.

The errors of a channel's weights change the mean of its output, too, and a mean can be corrected
for free: the bias is added anyway. Nagel et al., "Data-Free Quantization Through Weight
Equalization and Bias Correction" (2019), section 4.2.
"""

from collections.abc import Callable

import numpy as np

from minires.layers import Array
from minires.quantize.moments import Moments


def correct_nothing(errors: Array, moments: Moments | None = None) -> Array:
    """Leave the bias as it is; `errors`, (N, K), are the weights less the rounded ones."""
    return np.zeros(len(errors), np.float32)


@np.errstate(all="ignore")  # what a matrix product reports: see `gemm_f32_ref`
def correct_mean(errors: Array, moments: Moments | None = None) -> Array:
    """Return what the outputs lack on average, (N,): equation 6.3."""
    assert moments is not None
    return (errors @ moments.mean()).astype(np.float32)


@np.errstate(all="ignore")
def correct_shrunk(errors: Array, moments: Moments | None = None) -> Array:
    """Return less of it where few images leave the mean unsure: equation 6.4.

    The pixels of an image are much alike. So the mean's own error is reckoned from the number of
    images, as if each had one row.
    """
    assert moments is not None
    mean = errors.astype(np.float64) @ moments.mean()
    variance = moments.variance(errors) / moments.images
    sure = mean**2 / np.maximum(mean**2 + variance, np.finfo(np.float64).tiny)
    return (sure * mean).astype(np.float32)


CORRECTIONS: dict[str, Callable[[Array, Moments | None], Array]] = {
    "off": correct_nothing,
    "on": correct_mean,
    "shrunk": correct_shrunk,
}
