"""ReLU and softmax."""

import numpy as np
import numpy.typing as npt


def relu_ref(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Replace what is negative by zero; NaN stays NaN.

    Parameters
    ----------
    x : ndarray
        Any shape, float32.

    Returns
    -------
    ndarray
        The shape and dtype of x.
    """
    return np.maximum(x, np.float32(0))


def softmax_ref(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Turn logits into probabilities along the last axis.

    Parameters
    ----------
    logits : ndarray
        (..., num_classes) float32.

    Returns
    -------
    ndarray
        The shape and dtype of logits; each row is positive and sums to one.
    """
    # The largest is subtracted first: exp cannot overflow, and the quotient is the same.
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: npt.NDArray[np.float32] = exp / exp.sum(axis=-1, keepdims=True)
    return probabilities
