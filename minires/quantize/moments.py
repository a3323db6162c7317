"""What calibration notes of a layer's inputs, for its weights to be rounded by."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minires.layers import Array, Layer
from minires.reference import gemm_f32_ref, im2col_ref

SIDE = 14  # output pixels along each axis of an image that are looked at: neighbours are much alike
# Inputs that are multiplied by each other. The products of all 4608 inputs of a layer would take
# eight times the memory and the time. INT8 is as good without them: ImageNet's logits are at 25.0
# dB, by all products at 24.9, with the package's photographs, and at 27.3 and 27.4 with 128.
GROUP = 576
SAMPLE = 128  # rows that are kept whole; a hundred tell a channel's error to a few percent


def squared(errors: Array, products: Array) -> Array:
    """Return the squared error of each output, (N,) float64, for errors in its weights, (N, K)."""
    result: Array = np.einsum("nk,nk->n", gemm_f32_ref(errors, products), errors, dtype=np.float64)
    return result


@dataclass
class Moments:
    """Sums over rows of K values, each of which a layer multiplies by all of its weights.

    Like an observer it sees one batch at a time, and its memory does not grow. A network's
    moments take a tenth of a gigabyte.
    """

    # The sums of x x^T, which GPTQ calls the Hessian, float32, for x from one index to another:
    # as much of it as lies in squares along its diagonal.
    products: dict[tuple[int, int], Array] = field(default_factory=dict)
    total: Any = 0  # (K,) float64: the sum of x
    rows: int = 0
    images: int = 0
    # Every so many rows, whole, where the products are only of groups.
    sample: list[Array] = field(default_factory=list)
    apart: int = 1

    def observe(self, layer: Layer, x: Array) -> None:
        """Add the inputs of some output pixels, in even steps; x is NHWC or (N, K) float32."""
        self.images += len(x)
        if layer.op == "conv":
            apart = -(-layer.output_shape(x.shape)[1] // SIDE)
            # Every so many pixels of the output are those of a convolution with a larger stride.
            stride = layer.stride * apart
            x = im2col_ref(x, layer.kernel, layer.kernel, stride, layer.padding)
        for start in range(0, x.shape[1], GROUP):
            group = x[:, start : start + GROUP]
            place = start, start + group.shape[1]
            products = gemm_f32_ref(group.T, group)
            self.products[place] = self.products.get(place, np.float32(0)) + products
        if len(self.products) > 1:
            self._take_sample(x)
        self.total += x.sum(axis=0, dtype=np.float64)
        self.rows += len(x)

    def _take_sample(self, x: Array) -> None:
        """Keep rows in even steps; when there are too many, every other one goes."""
        self.sample += [row.copy() for row in x[-self.rows % self.apart :: self.apart]]
        while len(self.sample) > SAMPLE:
            del self.sample[1::2]
            self.apart *= 2

    def mean(self) -> Array:
        """Return the mean input, (K,) float64."""
        mean: Array = self.total / self.rows
        return mean

    def error(self, errors: Array) -> Array:
        """Return each output's mean squared error, (N,), for errors in its weights, (N, K).

        The errors of different groups count as independent.
        """
        parts = [squared(errors[:, slice(*place)], h) for place, h in self.products.items()]
        result: Array = np.sum(parts, axis=0) / self.rows
        return result

    def sampled_error(self, errors: Array) -> Array:
        """Return each output's mean squared error over the sample, (N,), all groups together."""
        outputs = gemm_f32_ref(errors, np.array(self.sample).T)
        result: Array = np.square(outputs, dtype=np.float64).mean(axis=1)
        return result

    def variance(self, errors: Array) -> Array:
        """Return the variance of each output's error, (N,), with the groups independent too."""
        means = [errors[:, slice(*place)] @ self.mean()[slice(*place)] for place in self.products]
        result: Array = self.error(errors) - np.square(means).sum(axis=0)
        return np.maximum(result, 0)
