"""The ONNX project's own tests of single operators, run on minires's definitions.

Each test is a model of one node with inputs and expected outputs. Those that the definitions can
express are listed first, those that they cannot under the reason; a test of these operators that
is in neither list, in another version of onnx, fails. Tests that end in ``_expanded`` spell the
same operator out in others and are no tests of it.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx.backend.test.case.test_case import TestCase as Case
from onnx.backend.test.loader import load_model_tests

from minires.reference import (
    dequantize_ref,
    gemm_f32_ref,
    gemm_u8s8_ref,
    global_avgpool_ref,
    im2col_ref,
    maxpool_ref,
    output_size,
    quantize_ref,
    softmax_ref,
)

Array = npt.NDArray[Any]

RUN = {
    "Conv": """
        basic_conv_with_padding basic_conv_without_padding conv_with_strides_padding
        conv_with_strides_no_padding conv_with_autopad_same""",
    "ConvInteger": "convinteger_without_padding",
    "MatMulInteger": "matmulinteger",
    "Gemm": """
        gemm_default_zero_bias gemm_default_no_bias gemm_default_scalar_bias
        gemm_default_single_elem_vector_bias gemm_default_vector_bias gemm_default_matrix_bias
        gemm_transposeA gemm_transposeB gemm_alpha gemm_beta gemm_all_attributes""",
    "QuantizeLinear": "quantizelinear quantizelinear_axis",
    "DequantizeLinear": """
        dequantizelinear dequantizelinear_axis dequantizelinear_uint16 dequantizelinear_int16
        dequantizelinear_uint4 dequantizelinear_int4 dequantizelinear_uint2
        dequantizelinear_int2""",
    "MaxPool": """
        maxpool_2d_default maxpool_2d_uint8 maxpool_2d_strides maxpool_2d_precomputed_pads
        maxpool_2d_precomputed_strides maxpool_2d_precomputed_same_upper
        maxpool_2d_ceil_output_size_reduce_by_one""",
    "GlobalAveragePool": "globalaveragepool globalaveragepool_precomputed",
    "Softmax": """
        softmax_example softmax_large_number softmax_axis_0 softmax_axis_1 softmax_axis_2
        softmax_negative_axis softmax_default_axis""",
}

LEFT_OUT = {
    "padding is the same at all four sides here": """
        conv_with_strides_and_asymmetric_padding maxpool_2d_same_upper maxpool_2d_same_lower""",
    "padding is at most half the kernel here": "maxpool_2d_pads",
    "weights have the zero point 0 here, and its -255 does not fit in s8": "qlinearconv",
    "weights have the zero point 0 here": "convinteger_with_padding",
    "images have two dimensions here": """
        maxpool_1d_default maxpool_3d_default maxpool_3d_dilations
        maxpool_3d_dilations_use_ref_impl maxpool_3d_dilations_use_ref_impl_large""",
    "output sizes are rounded down here": "maxpool_2d_ceil",
    "there are no dilations here": "maxpool_2d_dilations",
    "max-pool tells no indices here": """
        maxpool_with_argmax_2d_precomputed_pads maxpool_with_argmax_2d_precomputed_strides""",
    "the average is over all pixels here, which is GlobalAveragePool": """
        averagepool_1d_default averagepool_2d_default averagepool_3d_default averagepool_2d_ceil
        averagepool_2d_ceil_last_window_starts_on_pad averagepool_2d_dilations averagepool_2d_pads
        averagepool_2d_pads_count_include_pad averagepool_2d_precomputed_pads
        averagepool_2d_precomputed_pads_count_include_pad averagepool_2d_precomputed_same_upper
        averagepool_2d_precomputed_strides averagepool_2d_same_lower averagepool_2d_same_upper
        averagepool_2d_strides averagepool_3d_dilations_small
        averagepool_3d_dilations_large_count_include_pad_is_0_ceil_mode_is_False
        averagepool_3d_dilations_large_count_include_pad_is_0_ceil_mode_is_True
        averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_False
        averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_True""",
    "steps are u8 here": """
        quantizelinear_uint16 quantizelinear_int16 quantizelinear_uint4 quantizelinear_int4
        quantizelinear_uint2 quantizelinear_int2""",
    "steps are integers here": """
        quantizelinear_e4m3fn quantizelinear_e5m2 quantizelinear_float4e2m1
        dequantizelinear_e4m3fn dequantizelinear_e4m3fn_float16 dequantizelinear_e4m3fn_zero_point
        dequantizelinear_e5m2 dequantizelinear_float4e2m1""",
    "there is one scale for a tensor or a channel here, not for a block": """
        quantizelinear_blocked_asymmetric quantizelinear_blocked_symmetric
        dequantizelinear_blocked""",
}


def names(lists: dict[str, str]) -> list[str]:
    return [name for names in lists.values() for name in names.split()]


# ONNX's operators, in NCHW, by minires's definitions; its attributes arrive as keywords.


def nhwc(x: Array) -> Array:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def nchw(x: Array) -> Array:
    return x.transpose(0, 3, 1, 2)


def window(
    x: Array,
    kernel_shape: list[int],
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, ...] = (0, 0, 0, 0),
    auto_pad: bytes = b"NOTSET",
) -> tuple[int, int]:
    """Translate what ONNX says about a window into one stride and one padding."""
    stride, padding = strides[0], pads[0]
    if auto_pad.startswith(b"SAME"):  # as many outputs as strides fit; the same size all around
        outputs = -(-x.shape[2] // stride)
        padding, odd = divmod((outputs - 1) * stride + kernel_shape[0] - x.shape[2], 2)
        assert not odd
        assert x.shape[2] == x.shape[3]
        pads = (padding,) * 4
    assert len(kernel_shape) == 2
    assert set(strides) == {stride}
    assert set(pads) == {padding}
    return stride, padding


def conv(x: Array, weight: Array, kernel_shape: list[int], **attributes: Any) -> Array:
    stride, padding = window(x, kernel_shape, **attributes)
    columns = im2col_ref(nhwc(x), *kernel_shape, stride, padding)
    y = gemm_f32_ref(columns, nhwc(weight).reshape(len(weight), -1).T)
    out_h, out_w = (
        output_size(size, kernel, stride, padding)
        for size, kernel in zip(x.shape[2:], kernel_shape, strict=True)
    )
    return nchw(y.reshape(len(x), out_h, out_w, len(weight)))


def convinteger(x: Array, weight: Array, x_zero_point: Array) -> Array:
    k_h, k_w = weight.shape[2:]
    rows = nhwc(weight).reshape(len(weight), -1)  # (N, K)
    y = matmulinteger(im2col_ref(nhwc(x), k_h, k_w, 1, 0), rows.T, x_zero_point)
    return nchw(y.reshape(len(x), x.shape[2] - k_h + 1, x.shape[3] - k_w + 1, len(weight)))


def matmulinteger(a: Array, b: Array, a_zero_point: Array, b_zero_point: Array | int = 0) -> Array:
    assert not b_zero_point
    assert b.max() <= 127
    fold = a_zero_point.astype(np.int32) * b.sum(axis=0, dtype=np.int32)
    return gemm_u8s8_ref(a, b.astype(np.int8)) - fold


def gemm(
    a: Array,
    b: Array,
    c: Array | float = 0,
    alpha: float = 1,
    beta: float = 1,
    transA: int = 0,
    transB: int = 0,
) -> Array:
    product = gemm_f32_ref(a.T if transA else a, b.T if transB else b)
    return np.float32(alpha) * product + np.float32(beta) * c


def by_channel(function: Callable[..., Array], x: Array, scale: Array, zero_point: Array) -> Array:
    """Apply a function with one scale, or with a scale for each channel, axis 1."""
    if scale.ndim == 0:
        return function(x, scale[()], zero_point.item())
    channels = zip(np.moveaxis(x, 1, 0), scale, zero_point, strict=True)
    return np.stack([function(c, s, int(z)) for c, s, z in channels], axis=1)


def quantizelinear(x: Array, scale: Array, zero_point: Array) -> Array:
    return by_channel(quantize_ref, x, scale, zero_point)


def dequantizelinear(q: Array, scale: Array, zero_point: Array, axis: int = 1) -> Array:
    return by_channel(dequantize_ref, q, scale, zero_point)


def maxpool(x: Array, kernel_shape: list[int], ceil_mode: int = 0, **attributes: Any) -> Array:
    stride, padding = window(x, kernel_shape, **attributes)
    # Rounding up and down differ unless the last window ends where the image does.
    assert not ceil_mode or all((s + 2 * padding - kernel_shape[0]) // stride
                                == (s - 1) // stride for s in x.shape[2:])  # fmt: skip
    return nchw(maxpool_ref(nhwc(x), kernel_shape[0], stride, padding))


def globalaveragepool(x: Array) -> Array:
    return global_avgpool_ref(nhwc(x))[:, :, np.newaxis, np.newaxis]


def softmax(x: Array, axis: int = -1) -> Array:
    return np.moveaxis(softmax_ref(np.moveaxis(x, axis, -1)), -1, axis)


OPERATORS: dict[str, Callable[..., Array]] = {
    "Conv": conv,
    "ConvInteger": convinteger,
    "MatMulInteger": matmulinteger,
    "Gemm": gemm,
    "QuantizeLinear": quantizelinear,
    "DequantizeLinear": dequantizelinear,
    "MaxPool": maxpool,
    "GlobalAveragePool": globalaveragepool,
    "Softmax": softmax,
}
LEFT_OUT_ALTOGETHER = {"QLinearConv", "AveragePool"}


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    """Make all tests of one node that has one of the operators above."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of the others overflow on purpose
        tests = load_model_tests(kind="node")
    wanted = OPERATORS.keys() | LEFT_OUT_ALTOGETHER
    return {
        test.name.removeprefix("test_"): test
        for test in tests
        if len(test.model.graph.node) == 1 and test.model.graph.node[0].op_type in wanted
    }


def as_array(value: Any) -> Array:
    """Unpack integers of 4 and 2 bits, which have no dtype in NumPy."""
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value).astype(np.int8)
    return np.asarray(value)


def test_every_test_is_either_run_or_left_out_with_a_reason(cases: dict[str, Case]) -> None:
    assert sorted(names(RUN) + names(LEFT_OUT)) == sorted(cases)


@pytest.mark.parametrize("name", names(RUN))
def test_node(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    node = case.model.graph.node[0]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert case.data_sets
    for inputs, (expected,) in case.data_sets:
        y = OPERATORS[node.op_type](*map(as_array, inputs), **attributes)
        assert y.dtype == expected.dtype
        assert y.shape == expected.shape
        if y.dtype == np.float32:
            np.testing.assert_allclose(y, expected, case.rtol, case.atol, equal_nan=False)
        else:
            np.testing.assert_array_equal(y, expected)
