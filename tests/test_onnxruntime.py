"""INT8 bit for bit against ONNX Runtime, over random shapes, scales and zero points.

ONNX Runtime computes QLinearConv as minires does (float32(acc + bias) times x_scale * w_scale /
y_scale, in this order, half to even, clipped before the conversion), so nothing below is compared
with a tolerance. MINIRES_LONG_TESTS=1 runs more than 10,000 cases; a few minutes.
"""

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from minires.layers import OPERATORS, Layer
from minires.reference import dequantize_ref, maxpool_ref, quantize_ref
from tests.comparing import assert_same
from tests.int8_oracle import ConvCase, conv_cases, scales, seeds, zero_points

INT8 = OPERATORS["int8"]

Array = npt.NDArray[Any]
LONG = bool(os.environ.get("MINIRES_LONG_TESTS"))


def sweep(short: int, long: int) -> settings:
    """Choose how many cases; the same ones in every run."""
    return settings(derandomize=True, deadline=None, max_examples=long if LONG else short)


def has_vnni() -> bool:
    """Tell whether an instruction sums four u8 x s8 products without saturating in between."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return True  # ARM's kernels widen
    cpuinfo = Path("/proc/cpuinfo")
    features = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return "avx512_vnni" in features or "avx_vnni" in features


# On x86 without VNNI, ONNX Runtime multiplies with vpmaddubsw, which saturates the sum of two
# products at 32,767: documented, and wrong beyond weights of 64 (2 * 255 * 64 = 32,640). minires
# never saturates there, so the full range can be compared only where ONNX Runtime does not either.
largest_weights = pytest.mark.parametrize(
    "largest_weight",
    [
        63,
        pytest.param(
            128,
            marks=pytest.mark.skipif(
                not has_vnni(),
                reason="without VNNI, ONNX Runtime's kernels saturate; weights within 63 only",
            ),
        ),
    ],
)


TYPES = {np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.float32): TensorProto.FLOAT}


def run(nodes: list[Any], constants: dict[str, Array], y_type: int, **inputs: Array) -> Array:
    """Run a graph with ONNX Runtime; its output is called y."""
    values = [
        helper.make_tensor_value_info(name, TYPES[value.dtype], value.shape)
        for name, value in inputs.items()
    ]
    y = helper.make_tensor_value_info("y", y_type, None)
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "case", values, [y], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    output: Array = session.run(["y"], inputs)[0]
    return output


def nchw(x: Array) -> Array:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def nhwc(x: Array) -> Array:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def qlinearconv(case: ConvCase) -> Array:
    """Run a case with ONNX Runtime, NHWC in and out."""
    constants = {
        "x_scale": np.array(case.x_qparams.scale),
        "x_zero_point": np.array(case.x_qparams.zero_point, np.uint8),
        "weight": nchw(case.weight),
        "w_scale": case.w_scale,
        "w_zero_point": np.zeros(len(case.weight), np.int8),
        "y_scale": np.array(case.y_qparams.scale),
        "y_zero_point": np.array(case.y_qparams.zero_point, np.uint8),
        "bias": case.bias,
    }
    node = helper.make_node(
        "QLinearConv",
        ["x", *constants],
        ["y"],
        strides=[case.stride] * 2,
        pads=[case.padding] * 4,
    )
    return nhwc(run([node], constants, TensorProto.UINT8, x=nchw(case.x)))


@largest_weights
@given(data=st.data())
@sweep(short=150, long=10_000)
def test_conv_is_qlinearconv(largest_weight: int, data: st.DataObject) -> None:
    case = data.draw(conv_cases(largest_weight))
    assert_same(INT8["conv"](case.layer, case.params, case.x), qlinearconv(case))


@largest_weights
@given(data=st.data())
@sweep(short=60, long=2_000)
def test_linear_is_a_1x1_qlinearconv(largest_weight: int, data: st.DataObject) -> None:
    """The requantized form is a QLinearConv; the logits are its sums, dequantized."""
    case = data.draw(conv_cases(largest_weight, linear=True))
    assert_same(INT8["conv"](case.layer, case.params, case.x), qlinearconv(case))

    x = case.x.reshape(len(case.x), -1)  # (batch, K)
    constants = {
        "x_zero_point": np.array(case.x_qparams.zero_point, np.uint8),
        "weight": np.ascontiguousarray(case.params.w_s8.T),  # (K, N)
        "bias": case.bias,
        "scale": case.x_qparams.scale * case.w_scale,
    }
    nodes = [
        helper.make_node("MatMulInteger", ["x", "weight", "x_zero_point"], ["products"]),
        helper.make_node("Add", ["products", "bias"], ["acc"]),
        helper.make_node("DequantizeLinear", ["acc", "scale"], ["y"], axis=1),
    ]
    layer = Layer("fc", "linear", ("x",), x.shape[1], len(case.weight))
    assert_same(
        INT8["linear"](layer, case.params, x),
        run(nodes, constants, TensorProto.FLOAT, x=x),
    )


@given(st.integers(1, 5), st.integers(1, 3), st.data())
@sweep(short=100, long=2_000)
def test_maxpool_on_steps_is_maxpool(kernel: int, stride: int, data: st.DataObject) -> None:
    padding = data.draw(st.integers(0, kernel // 2))
    shape = data.draw(
        st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.integers(1, 40))
    )
    assume(min(shape[1:3]) + 2 * padding >= kernel)
    x = np.random.RandomState(data.draw(seeds)).randint(0, 256, shape).astype(np.uint8)
    node = helper.make_node(
        "MaxPool",
        ["x"],
        ["y"],
        kernel_shape=[kernel] * 2,
        strides=[stride] * 2,
        pads=[padding] * 4,
    )
    expected = nhwc(run([node], {}, TensorProto.UINT8, x=nchw(x)))
    assert_same(maxpool_ref(x, kernel, stride, padding), expected)


@given(scales, zero_points, st.integers(1, 200), seeds)
@sweep(short=100, long=2_000)
def test_quantize_is_quantizelinear(
    scale: np.float32, zero_point: int, size: int, seed: int
) -> None:
    """Among the values: exact ties, their neighbours, and what saturates, infinity included."""
    random = np.random.RandomState(seed)
    ties = (random.randint(-600, 600, size) / 2).astype(np.float32) * scale
    up, down = np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf))
    anywhere = random.uniform(-300, 300, size).astype(np.float32) * scale
    large = np.array([1e30, -1e30, np.inf, -np.inf, 0, -0.0, 1e-45], np.float32)
    x = np.concatenate([ties, up, down, anywhere, large])
    constants = {"scale": np.array(scale), "zero_point": np.array(zero_point, np.uint8)}
    node = helper.make_node("QuantizeLinear", ["x", *constants], ["y"])
    expected = run([node], constants, TensorProto.UINT8, x=x)
    assert_same(quantize_ref(x, scale, zero_point), expected)


@given(scales, zero_points)
@sweep(short=100, long=2_000)
def test_dequantize_is_dequantizelinear(scale: np.float32, zero_point: int) -> None:
    q = np.arange(256, dtype=np.uint8)
    constants = {"scale": np.array(scale), "zero_point": np.array(zero_point, np.uint8)}
    node = helper.make_node("DequantizeLinear", ["q", *constants], ["y"])
    expected = run([node], constants, TensorProto.FLOAT, q=q)
    assert_same(dequantize_ref(q, scale, zero_point), expected)
