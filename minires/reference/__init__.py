"""The definitions: every operator of the network in plain NumPy.

Nothing here is tuned beyond what NumPy's BLAS gives. Fast kernels are checked against these
functions, so a definition is written to be read and to be right. Activations are NHWC,
weights OHWI. This folder imports NumPy alone.
"""

from minires.reference.activation import relu_ref, softmax_ref
from minires.reference.batchnorm import batchnorm_ref, fold_batchnorm
from minires.reference.bfloat16 import round_bf16_ref
from minires.reference.gemm import gemm_f32_ref, gemm_u8s8_ref
from minires.reference.im2col import im2col_ref, output_size
from minires.reference.integer_requantization import (
    quantize_multiplier,
    requantize_integer_ref,
    rounding_divide_by_power_of_two,
    rounding_doubling_high_multiply,
)
from minires.reference.pool import global_avgpool_ref, maxpool_ref
from minires.reference.quantization import (
    QParams,
    dequantize_ref,
    fake_quantize_ref,
    quantize_ref,
    requantize_ref,
)

__all__ = [
    "QParams",
    "batchnorm_ref",
    "dequantize_ref",
    "fake_quantize_ref",
    "fold_batchnorm",
    "gemm_f32_ref",
    "gemm_u8s8_ref",
    "global_avgpool_ref",
    "im2col_ref",
    "maxpool_ref",
    "output_size",
    "quantize_multiplier",
    "quantize_ref",
    "relu_ref",
    "requantize_integer_ref",
    "requantize_ref",
    "round_bf16_ref",
    "rounding_divide_by_power_of_two",
    "rounding_doubling_high_multiply",
    "softmax_ref",
]
