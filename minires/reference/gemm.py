"""GEMM: the matrix product that every convolution becomes."""

import numpy as np
import numpy.typing as npt


def gemm_f32_ref(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Multiply in float32, by NumPy's BLAS.

    A dot product of K terms, summed in any order, errs by at most K * eps * sum(|a| * |b|) to
    first order (Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., section 3.1).

    Parameters
    ----------
    a : ndarray
        (M, K) float32.
    b : ndarray
        (K, N) float32.

    Returns
    -------
    ndarray
        (M, N) float32.
    """
    return a @ b
