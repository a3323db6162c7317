"""Panels hold each weight once, where the microkernel reads it, and zeros elsewhere."""

import numpy as np
import pytest

from minires.kernels.isa import ISAS
from minires.kernels.pack import ALIGNMENT, SLACK, aligned, make_up, prepack


@pytest.mark.parametrize(
    ("group", "dtype", "at_once", "side_by_side"),
    [
        (1, np.float32, 1, 1),
        (2, np.int16, 1, 1),
        (2, np.int16, 16, 1),
        (4, np.int8, 1, 1),
        (4, np.int8, 16, 1),
        (4, np.int8, 2, 2),
    ],
)
@pytest.mark.parametrize(
    ("n", "kernel", "channels", "in_c", "columns"),
    [(16, 1, 8, 8, 16), (17, 1, 5, 16, 8), (5, 3, 3, 3, 16), (40, 3, 6, 16, 32), (1, 7, 3, 3, 8)],
)
def test_each_weight_is_where_it_is_read(
    n: int,
    kernel: int,
    channels: int,
    in_c: int,
    columns: int,
    group: int,
    dtype: type,
    at_once: int,
    side_by_side: int,
) -> None:
    weight = np.arange(1, n * kernel**2 * channels + 1).astype(dtype).reshape(n, -1)
    packed = prepack(weight, kernel, in_c, group, columns, at_once, side_by_side)
    groups = -(-kernel * in_c // (group * at_once)) * at_once
    assert packed.shape == (-(-n // columns), kernel * groups, columns, group)
    assert packed.dtype == dtype
    assert packed.ctypes.data % ALIGNMENT == 0
    shape = len(packed), kernel * groups // side_by_side, columns, side_by_side, group
    expected = np.zeros(shape, dtype)
    ohwi = weight.reshape(n, kernel, kernel, channels)
    for out, i, j, c in np.ndindex(*ohwi.shape):
        k = j * in_c + c  # in the run that row i of the kernel is
        step, beside = divmod(i * groups + k // group, side_by_side)
        place = out // columns, step, out % columns, beside, k % group
        expected[place] = ohwi[out, i, j, c]
    assert np.array_equal(packed, expected.reshape(packed.shape))


def test_a_buffer_begins_on_a_cache_line_and_ends_in_zeros() -> None:
    for fill in (0, 7):
        array = aligned((3, 5), np.uint8, fill)
        assert array.ctypes.data % ALIGNMENT == 0
        assert np.all(array == fill)
        memory = array.base
        start = array.ctypes.data - memory.ctypes.data + array.nbytes
        assert np.array_equal(memory[start : start + SLACK], np.zeros(SLACK, np.uint8))


def test_a_bias_makes_up_for_activations_that_are_multiplied_less_128() -> None:
    random = np.random.RandomState(0)
    x = random.randint(0, 256, (5, 36)).astype(np.int32)
    w = random.randint(-128, 128, (7, 36)).astype(np.int8)
    bias = random.randint(-(2**30), 2**30, 7).astype(np.int32)
    sdot, usdot = ISAS["neon-dotprod"], ISAS["neon-i8mm"]
    made_up = make_up(sdot.instructions["u8s8"], bias, w)
    assert made_up.dtype == np.int32
    assert np.array_equal((x - 128) @ w.T + made_up, x @ w.T + bias)
    assert make_up(usdot.instructions["u8s8"], bias, w) is bias
