"""How weights become integers: each to the nearest step, or so that the outputs suffer least.

Rounding to the nearest makes each weight's own error smallest. But a layer adds up thousands of
products, and one error can make up for another. Which ones can, a layer's inputs tell: an input
that is always large weighs more, and two that rise and fall together share their errors. GPTQ looks
at them, weight by weight. It costs time beforehand, and none at inference.
"""

import contextlib
from collections.abc import Callable

import numpy as np

from minires.layers import Array
from minires.quantize.moments import Moments, squared
from minires.reference import gemm_f32_ref

DAMPING = 0.01  # of the mean of the Hessian's diagonal, as in the paper
BLOCK = 64  # weights that are rounded before all others are told; the paper has 128, for GPUs


def round_nearest(steps: Array, moments: Moments | None = None) -> Array:
    """Round each weight to the nearest of -127 to 127, whatever the inputs are.

    `steps` are weights in steps of their channel's scale, (N, K) float32, and so is the result.
    """
    return np.clip(np.rint(steps), -127, 127)


def round_gptq(steps: Array, moments: Moments | None = None) -> Array:
    """Round so that the outputs' error is least, weight by weight, given what was rounded before.

    If e is a channel's errors and H = L L^T is the Hessian, the squared error of all outputs seen
    is e H e, which is the squared length of L^T e (equation 6.1). Entry i of that has no errors but
    those from i on. So the last weight is rounded first, and each one before it aims at the value
    that makes its own entry zero (equation 6.2).

    The weight of the largest input comes first, when all others can still make up for its error.
    Weights are rounded in the groups that `Moments` has products of, each group by itself. A
    channel whose group is no better for it keeps the nearest steps there. Groups that err less may
    still err more together. So a channel that does keeps the nearest steps everywhere.

    Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers" (2023), algorithm 1; without an inverse, as in Chen et al., "The Geometry of LLM
    Quantization: GPTQ as Babai's Nearest Plane Algorithm" (2025).
    """
    assert moments is not None
    groups = moments.products.items()
    rounded = [_round_group(steps[:, slice(*place)], hessian) for place, hessian in groups]
    if len(rounded) == 1:
        return rounded[0]
    nearest, result = round_nearest(steps), np.hstack(rounded)
    better = moments.sampled_error(steps - result) <= moments.sampled_error(steps - nearest)  # (N,)
    return np.where(better[:, np.newaxis], result, nearest)


def _round_group(steps: Array, hessian: Array) -> Array:
    """Round weights that may make up for each other's errors: (N, K), with a Hessian (K, K)."""
    nearest = round_nearest(steps)
    order = np.argsort(np.diag(hessian), kind="stable")  # the largest is the last
    share = _shares(hessian[np.ix_(order, order)])
    if share is None:
        return nearest
    # (K, N), because a weight's row is read and written at once for all channels.
    wanted = np.ascontiguousarray(steps.T[order])
    rounded, errors = np.empty_like(wanted), np.zeros_like(wanted)
    for end in range(len(wanted), 0, -BLOCK):
        start = max(0, end - BLOCK)
        aims = wanted[start:end] + gemm_f32_ref(share[end:, start:end].T, errors[end:])
        for i in reversed(range(start, end)):
            rounded[i] = np.clip(np.rint(aims[i - start]), -127, 127)
            errors[i] = wanted[i] - rounded[i]
            aims[: i - start] += share[i, start:i, np.newaxis] * errors[i]
    result = np.empty_like(steps)
    result[:, order] = rounded.T
    better = squared(steps - result, hessian) < squared(steps - nearest, hessian)  # (N,); no NaN is
    return np.where(better[:, np.newaxis], result, nearest)


def _shares(hessian: Array) -> Array | None:
    """Factor a Hessian, and return how much of each error each earlier weight has to take over.

    Inputs that were always zero, or fewer rows than weights, leave the Hessian singular. So its
    diagonal is damped, as in the paper. Where there was no input but zeros, there is nothing to
    factor: the result is None. The Hessian's own diagonal is written over.
    """
    diagonal = np.diag(hessian).copy()
    mean = diagonal.mean()
    if not 0 < mean < np.inf:
        return None
    for damping in (DAMPING, 10 * DAMPING, 1):  # more of it where float32's rounding needs it
        np.fill_diagonal(hessian, diagonal + np.float32(damping) * mean)
        with contextlib.suppress(np.linalg.LinAlgError):
            lower = np.linalg.cholesky(hessian)
            lower /= np.diag(lower).copy()
            return lower
    return None


ROUNDINGS: dict[str, Callable[[Array, Moments | None], Array]] = {
    "nearest": round_nearest,
    "gptq": round_gptq,
}
