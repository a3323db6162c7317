"""What calibration notes of a layer's inputs, for its weights to be rounded by."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minires.layers import Array, Layer
from minires.reference import im2col_ref

SIDE = 14  # output pixels along each axis of an image that are looked at: neighbours are much alike


@dataclass
class Moments:
    """Sums over rows of K values, each of which a layer multiplies by all of its weights.

    Like an observer it sees one batch at a time, and its memory does not grow. A network's
    moments take half a gigabyte, most of it in the 3x3 convolutions with 512 channels.
    """

    products: Any = 0  # (K, K) float32: the sum of x x^T, which GPTQ calls the Hessian
    total: Any = 0  # (K,) float64: the sum of x
    rows: int = 0
    images: int = 0

    def observe(self, layer: Layer, x: Array) -> None:
        """Add the inputs of some output pixels, in even steps; x is NHWC or (N, K) float32."""
        self.images += len(x)
        if layer.op == "conv":
            apart = -(-layer.output_shape(x.shape)[1] // SIDE)
            # Every so many pixels of the output are those of a convolution with a larger stride.
            stride = layer.stride * apart
            x = im2col_ref(x, layer.kernel, layer.kernel, stride, layer.padding)
        self.products += x.T @ x
        self.total += x.sum(axis=0, dtype=np.float64)
        self.rows += len(x)

    def mean(self) -> Array:
        """Return the mean input, (K,) float64."""
        mean: Array = self.total / self.rows
        return mean

    def error(self, errors: Array) -> Array:
        """Return each output's mean squared error, (N,), for errors in its weights, (N, K)."""
        power = np.einsum("nk,nk->n", errors @ self.products, errors, dtype=np.float64)
        result: Array = power / self.rows
        return result
