"""Batch normalization at inference, as itself and folded into the convolution before it.

Ioffe and Szegedy, "Batch Normalization" (2015), algorithm 2: with the statistics fixed,
y = gamma * (x - mean) / sqrt(var + eps) + beta is one multiply and one add per channel.
"""

import numpy as np
import numpy.typing as npt

EPS = 1e-5  # torchvision's; it also keeps a channel whose variance is zero finite


def batchnorm_ref(
    x: npt.NDArray[np.float32],
    gamma: npt.NDArray[np.float32],
    beta: npt.NDArray[np.float32],
    mean: npt.NDArray[np.float32],
    var: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """Normalize each channel by its running statistics.

    Parameters
    ----------
    x : ndarray
        Activations, (..., channels) float32.
    gamma, beta, mean, var : ndarray
        Weight, bias, running mean and running variance, (channels,) float32.

    Returns
    -------
    ndarray
        The shape and dtype of x.
    """
    y: npt.NDArray[np.float32] = (x - mean) * (gamma / np.sqrt(var + np.float32(EPS))) + beta
    return y


def fold_batchnorm(
    weight: npt.NDArray[np.float32],
    gamma: npt.NDArray[np.float32],
    beta: npt.NDArray[np.float32],
    mean: npt.NDArray[np.float32],
    var: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Scale a convolution's weights so that it does its BatchNorm's work.

    gamma * (w x - mean) / s + beta  =  (gamma / s * w) x + (beta - gamma / s * mean), with
    s = sqrt(var + eps). Done once, in float64, and rounded to float32 at the
    end. This is equation 4.1 of the book.

    Parameters
    ----------
    weight : ndarray
        The convolution's weights, (out_c, ...) float32.
    gamma, beta, mean, var : ndarray
        The BatchNorm's weight, bias, running mean and running variance, (out_c,) float32.

    Returns
    -------
    weight : ndarray
        Folded weights, the shape of weight, float32.
    bias : ndarray
        The bias that the convolution gains, (out_c,) float32.
    """
    factor = gamma.astype(np.float64) / np.sqrt(var.astype(np.float64) + EPS)
    per_channel = factor.reshape(-1, *[1] * (weight.ndim - 1))
    bias = beta - mean * factor
    return (weight * per_channel).astype(np.float32), bias.astype(np.float32)
