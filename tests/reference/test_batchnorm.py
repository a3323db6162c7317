"""BatchNorm by itself and folded, against float64, where its parameters are at their worst.

The bounds count roundings. By itself it has seven (a sum and a square root under the division, the
division, the difference, the product, the sum, and float32's own eps), half an EPS each at most:
4 * EPS of what is added up. Folded, it is a convolution whose weights and bias were rounded once.
"""

import numpy as np
import pytest

from minires.reference import batchnorm_ref, fold_batchnorm, gemm_f32_ref, im2col_ref
from tests import scipy_oracle
from tests.comparing import EPS, Array, assert_close, gemm_bound
from tests.seeded_weights import uniform

CHANNELS = 6
VARIANCES = [0.0, 1e-30, 1e-5, 1.0, 1e6]
GAMMAS = [0.0, -1.5, 0.75, 1e-20]


def parameters(variance: float, gamma: float) -> tuple[Array, Array, Array, Array]:
    """Make gamma, beta, mean and var of which every second channel is ordinary."""
    gammas, variances = uniform(0.5, 1.5, (CHANNELS,), 1), uniform(0.5, 2, (CHANNELS,), 2)
    gammas[::2], variances[::2] = gamma, variance
    return gammas, uniform(-1, 1, (CHANNELS,), 3), uniform(-1, 1, (CHANNELS,), 4), variances


def in_float64(x: Array, gamma: Array, beta: Array, mean: Array, var: Array) -> tuple[Array, Array]:
    """Normalize, and add up the magnitudes of what is added: the formula of the paper."""
    factor = gamma / np.sqrt(var.astype(np.float64) + 1e-5)
    return (x - mean) * factor + beta, (np.abs(x) + np.abs(mean)) * np.abs(factor) + np.abs(beta)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_by_itself(variance: float, gamma: float) -> None:
    x = uniform(-3, 3, (2, 5, 3, CHANNELS), 0)
    bn = parameters(variance, gamma)
    expected, magnitude = in_float64(x.astype(np.float64), *bn)
    assert_close(batchnorm_ref(x, *bn), expected, 4 * EPS * magnitude)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_folded_into_weights(variance: float, gamma: float) -> None:
    weight = uniform(-1, 1, (CHANNELS, 3, 3, 2), 5)
    gammas, beta, mean, var = bn = parameters(variance, gamma)
    folded, bias = fold_batchnorm(weight, *bn)
    factor = gammas / np.sqrt(var.astype(np.float64) + 1e-5)
    expected = weight * factor[:, np.newaxis, np.newaxis, np.newaxis]
    tiny = np.finfo(np.float32).tiny  # below it, what a float32 keeps is not relative any more
    assert_close(folded, expected, EPS * np.abs(expected) + tiny)
    exact_bias = beta - mean * factor
    assert_close(bias, exact_bias, EPS * np.abs(exact_bias) + tiny)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("kernel", [1, 3])
def test_after_a_convolution(variance: float, gamma: float, kernel: int) -> None:
    in_c, padding = 8, kernel // 2
    K = kernel**2 * in_c
    x = uniform(-1, 1, (2, 7, 5, in_c), 6)
    weight = uniform(-1, 1, (CHANNELS, kernel, kernel, in_c), 7)
    bn = parameters(variance, gamma)
    sums = scipy_oracle.convolve(x, weight, 1, padding)
    expected, _ = in_float64(sums, *bn)
    _, magnitude = in_float64(scipy_oracle.convolve(np.abs(x), np.abs(weight), 1, padding), *bn)

    columns = im2col_ref(x, kernel, kernel, 1, padding)
    itself = batchnorm_ref(gemm_f32_ref(columns, weight.reshape(CHANNELS, K).T), *bn)
    assert_close(itself.reshape(expected.shape), expected, gemm_bound(K, magnitude))

    folded, bias = fold_batchnorm(weight, *bn)
    together = gemm_f32_ref(columns, folded.reshape(CHANNELS, K).T) + bias
    assert_close(together.reshape(expected.shape), expected, gemm_bound(K, magnitude))


def test_a_dead_channel_gives_its_beta() -> None:
    x = uniform(-3, 3, (1, 4, 4, CHANNELS), 8)
    bn = parameters(variance=0, gamma=0)
    beta = np.broadcast_to(bn[1][::2], (1, 4, 4, CHANNELS // 2))
    assert_close(batchnorm_ref(x, *bn)[..., ::2], beta, 0)


def test_the_inputs_are_left_alone() -> None:
    weight, bn = uniform(-1, 1, (CHANNELS, 1, 1, 2), 9), parameters(1e6, -1.5)
    before = [array.copy() for array in (weight, *bn)]
    fold_batchnorm(weight, *bn)
    for array, copy in zip((weight, *bn), before, strict=True):
        assert_close(array, copy, 0)
