"""Means that all rungs share: a convolution as a matrix product, and a way to compile.

A convolution is c = a * b, where a is the im2col matrix, (M, K), and b the weights. All that rungs
have in common is here, so that a rung's file has its idea and nothing else.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import from_dtype, types

from minires.kernels.compile import compile_for
from minires.kernels.isa import ISA
from minires.kernels.operators import FORMATS, Format
from minires.kernels.pack import from_bf16, make_up, to_bf16
from minires.layers import Array, Int8Params, Layer

# The types of an epilogue's scalars, in the order of `minires.kernels.epilogue.SCALARS`.
SCALARS = types.Tuple(
    [types.float32, types.int32, types.float32, types.float32, types.int32, types.float32]
)
_compiled: dict[str, Callable[..., None]] = {}  # by name, so that nothing is compiled twice
_watched: list[list[tuple[Path, Any]]] = []  # of each `watching`


class Product(NamedTuple):
    """A convolution's parameters as a rung reads them."""

    layer: Layer
    precision: str
    isa: ISA  # the instructions that a rung may use
    threads: int
    weight: Array  # (N, K) float32, s8, or the bits of bfloat16
    bias: Array  # (N,), of the sums' type
    m: Array  # (N,) float32: factors that turn sums into the output's steps
    zero_point: int  # of the input: the padding's value
    scalars: tuple[Any, ...]  # of the epilogue

    @property
    def form(self) -> Format:
        """How this precision keeps its tensors."""
        return FORMATS[self.precision]

    @property
    def step(self) -> int:
        """Count the values of a row that the microkernel takes in a step along K."""
        return self.form.group * self.isa.instructions[self.form.operands].multiple

    @property
    def sums(self) -> Any:
        """The type of the sums."""
        return np.int32 if self.precision == "int8" else np.float32

    @property
    def matrices(self) -> Any:
        """The signature of a rung that takes a, b and c."""
        a, b, c = (from_dtype(np.dtype(t)) for t in self._dtypes)
        return types.void(a[:, ::1], b[:, ::1], c[:, ::1])

    @property
    def packed(self) -> Any:
        """The signature of a rung that takes b as panels, with 32 bits for each column."""
        a, _, c = (from_dtype(np.dtype(t)) for t in self._dtypes)
        return types.void(a[:, ::1], types.uint32[:, :, ::1], c[:, ::1])

    def blocked(self, *more: Any) -> Any:
        """Return the signature of a rung around the engine's microkernel: see `fused`."""
        a = from_dtype(np.dtype(self.form.activation))
        bias = from_dtype(np.dtype(self.sums))
        epilogue = types.Tuple([bias[::1], types.float32[::1], SCALARS])
        offsets = types.int32[:, ::1]
        w = types.uint32[:, :, ::1]
        return types.void(a[:, ::1], offsets, w, epilogue, a[:, ::1], *more)

    def epilogue(self, columns: int) -> tuple[Any, ...]:
        """Return an epilogue's operands: bias and m, filled up to whole panels, and scalars."""
        bias = make_up(self.isa.instructions[self.form.operands], self.bias, self.weight)
        bias, m = (fill_up(values[None], 1, columns)[0] for values in (bias, self.m))
        return bias, m, self.scalars

    @property
    def _dtypes(self) -> tuple[Any, Any, Any]:
        return self.form.activation, self.weight.dtype, self.sums


def product_of(layer: Layer, p: Any, precision: str, isa: ISA, threads: int) -> Product:
    """Bring a layer's parameters into the form that rungs read."""
    if isinstance(p, Int8Params):
        assert layer.qparams is not None
        scale, zero_point = layer.qparams
        m = p.x_qparams.scale * p.w_scale / scale
        low, high = float(-zero_point), float(255 - zero_point)
        weight = p.w_s8
        bias = p.bias_s32
        padding = p.x_qparams.zero_point
    else:
        weight, bias = p
        weight = in_memory(weight, precision)
        m = bias
        padding = 0
        low, high = 0.0 if layer.relu else -np.inf, np.inf
        scale = np.float32(1)
        zero_point = 0
    f32, i32 = np.float32, np.int32
    # The first two are a residual's; they are not used, because no rung adds one.
    scalars = f32(0), i32(0), f32(low), f32(high), i32(zero_point), f32(scale)
    return Product(layer, precision, isa, threads, weight, bias, m, padding, scalars)


def in_memory(x: Array, precision: str) -> Array:
    """Turn numbers into the form they have in memory: for bfloat16 a float32's upper half."""
    return to_bf16(x) if precision == "bf16" else x


def from_memory(y: Array, precision: str) -> Array:
    """Undo `in_memory`."""
    return from_bf16(y) if precision == "bf16" else y


def fill_up(matrix: Array, rows: int, columns: int) -> Array:
    """Add zeros below and to the right, up to a multiple of `rows` and of `columns`."""
    missing = [(0, -matrix.shape[0] % rows), (0, -matrix.shape[1] % columns)]
    return np.pad(matrix, missing) if any(map(any, missing)) else np.ascontiguousarray(matrix)


@contextlib.contextmanager
def watching() -> Iterator[list[tuple[Path, Any]]]:
    """List what `compile_rung` compiles during the with statement: a file, and its function."""
    _watched.append([])
    try:
        yield _watched[-1]
    finally:
        _watched.pop()


def compile_rung(
    product: Product, function: Callable[..., None], signature: Any, what: str = ""
) -> Callable[..., None]:
    """Compile a rung's loops for the rung's instruction set.

    Code is kept on the disk by the text of the rung's file, which may change, and by `what`. If the
    code depends on a value outside of the function, `what` has to name that value.
    """
    file = Path(function.__code__.co_filename)
    text = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    what = f"{file.stem}/{product.precision}/{what}/{text}"
    if _watched:  # not kept on the disk, because the assembly of code from there cannot be shown
        compiled = compile_for(product.isa, function, signature, f"{what}/shown", keep=False)
        _watched[-1].append((file, compiled))
        return compiled
    key = f"{what}/{product.isa.name}"
    if key not in _compiled:
        _compiled[key] = compile_for(product.isa, function, signature, what)
    return _compiled[key]
