"""Prepacking: weights laid out as a microkernel reads them, and bfloat16 as memory holds it."""

import numpy as np

from minires.kernels.isa import Instruction
from minires.layers import Array, Shape
from minires.reference import round_bf16_ref

ALIGNMENT = 64  # bytes: a cache line, and the longest vector
SLACK = 64  # bytes behind a buffer that may be read, but whose values are never used


def aligned(shape: Shape, dtype: np.typing.DTypeLike, fill: float = 0) -> Array:
    """Allocate an array that begins on a cache line, with `SLACK` zero bytes behind it."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + ALIGNMENT + SLACK, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    array = memory[start : start + size].view(dtype).reshape(shape)
    if fill:
        array[...] = fill
    return array


def prepack(
    weight: Array,  # (N, K), K in the order of OHWI
    kernel: int,  # its rows and columns; a row of it is one run in NHWC
    in_c: int,  # the activations' channels in memory; those beyond the weights' get zeros
    group: int,  # values that share 32 bits: 1 float32, 2 bfloat16 or 4 s8
    columns: int,  # NR: output channels are filled up with zeros to a multiple of it
    at_once: int = 1,  # groups that are multiplied at once: runs are filled up to a multiple of it
    side_by_side: int = 1,  # of these, how many of a column lie together
) -> Array:
    """Cut weights into panels, `columns` output channels wide, read from front to back.

    You get (panels, kernel * groups, columns, group), aligned, in the weights' dtype. Where several
    groups of a column lie together, the middle two count the same words in another order.
    """
    n = len(weight)
    channels = weight.shape[1] // kernel**2
    taps = weight.reshape(n, kernel, kernel, channels)
    panels = -(-n // columns)
    taps = _fill_up(taps, (panels * columns, kernel, kernel, in_c))
    groups = -(-kernel * in_c // (group * at_once)) * at_once
    runs = _fill_up(taps.reshape(-1, kernel, kernel * in_c), (len(taps), kernel, groups * group))
    steps = kernel * groups // side_by_side
    words = runs.view(np.uint32).reshape(panels, columns, steps, side_by_side)
    packed = aligned((panels, steps, columns, side_by_side), np.uint32)
    packed[...] = words.transpose(0, 2, 1, 3)
    return packed.view(weight.dtype).reshape(panels, kernel * groups, columns, group)


def make_up(instruction: Instruction, bias: Array, weight: Array) -> Array:
    """Add to the bias of integers what is missing if activations are multiplied less some number.

    (x - less) * w + less * w is x * w, and the second part is the same for every x.
    """
    if not instruction.less:
        return bias
    # The bias is at most 2^30, and the zero point's part and this one at most 2^28 each.
    return bias + instruction.less * weight.sum(axis=1, dtype=np.int32)


def to_bf16(x: Array) -> Array:
    """Round float32 to bfloat16, as the int16 of its bits: a float32's upper half."""
    return (round_bf16_ref(x).view(np.int32) >> 16).astype(np.int16)


def from_bf16(bits: Array) -> Array:
    """Turn the bits of bfloat16 back into float32."""
    return (bits.astype(np.int32) << 16).view(np.float32)


def _fill_up(array: Array, shape: Shape) -> Array:
    """Add zeros at the end of each axis, up to a shape."""
    missing = [(0, wanted - size) for wanted, size in zip(shape, array.shape, strict=True)]
    return np.pad(array, missing) if any(map(any, missing)) else np.ascontiguousarray(array)
