"""GEMM: the matrix product that every convolution becomes."""

import numpy as np
import numpy.typing as npt

EXACT_K = 512  # products of a u8 and an s8 that float32 sums without rounding


def gemm_f32_ref(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Multiply in float32, by NumPy's BLAS.

    A dot product of K terms, summed in any order, errs by at most ``K * eps * sum(|a| * |b|)``
    to first order (Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., section 3.1).

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


def gemm_u8s8_ref(a: npt.NDArray[np.uint8], b: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
    """Multiply u8 by s8 and sum in s32, exactly.

    NumPy hands float matrices to BLAS, whose kernels are tuned for vectors and caches; integer
    matrices go through a plain loop, tens of times slower. But a float32 holds every integer up
    to 2**24, and 512 products sum to at most 255 * 128 * 512 = 16,711,680 < 2**24. So blocks of
    512 along K are exact in float32 BLAS, in any order, and the blocks are summed as integers.
    The same in one slow line: ``a.astype(np.int64) @ b.astype(np.int64)``.

    Parameters
    ----------
    a : ndarray
        (M, K) uint8.
    b : ndarray
        (K, N) int8.

    Returns
    -------
    ndarray
        (M, N) int32. ``|acc| <= 255 * 128 * K``: for the largest K here, 4608, that is 150,405,120,
        and K may be 65,793 before it could pass 2**31.
    """
    acc_s32 = np.zeros((a.shape[0], b.shape[1]), np.int32)
    for k in range(0, a.shape[1], EXACT_K):
        block = a[:, k : k + EXACT_K].astype(np.float32) @ b[k : k + EXACT_K].astype(np.float32)
        acc_s32 += block.astype(np.int32)
    return acc_s32
