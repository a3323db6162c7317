"""bfloat16: the upper half of a float32, with its exponent and 7 of its 23 bits of fraction."""

import numpy as np
import numpy.typing as npt


def round_bf16_ref(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Round to the nearest bfloat16, half to even, by the bits.

    Adding 0x7FFF carries into the upper half whatever lies above the middle; the half's own last
    bit decides the middle itself.

    Parameters
    ----------
    x : ndarray
        Any shape, float32, without NaN.

    Returns
    -------
    ndarray
        The shape of x, float32 whose lower 16 bits are zero. At most 2**-8 of x away.
    """
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)
    y: npt.NDArray[np.float32] = rounded.view(np.float32)
    return y
