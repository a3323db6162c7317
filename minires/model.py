"""ResNet-50 v1.5 on one page: the list of layers, and the walk through it.

He et al., "Deep Residual Learning for Image Recognition" (2015), table 1; v1.5 moves a
block's stride from its first 1x1 to its 3x3 convolution, as torchvision does.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from time import perf_counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from minires import layers as ops
from minires.apart import OPERATORS_APART, take_apart
from minires.errors import MiniresError
from minires.hooks import Record
from minires.layers import Array, Layer, Operator, Shape, lock, read_only
from minires.preprocess import check_input
from minires.rounded import bfloat16, simulated
from minires.state_dict import fp32_params
from minires.summary import format_edges, format_summary, summarize

if TYPE_CHECKING:
    from minires.kernels.engine import Engine

# Which function computes an operator, precision by precision.
FP32: dict[str, Operator] = {
    "input": ops.input_f32,
    "conv": ops.conv_f32,
    "maxpool": ops.maxpool,
    "avgpool": ops.avgpool_f32,
    "linear": ops.linear_f32,
}
OPERATORS: dict[str, dict[str, Operator]] = {
    "fp32": {**FP32, **OPERATORS_APART},
    "bf16": {op: bfloat16(operator) for op, operator in FP32.items()},
    "int8-simulated": {op: simulated(operator) for op, operator in FP32.items()},
    "int8": {
        "input": ops.input_int8,
        "conv": ops.conv_int8,
        "maxpool": ops.maxpool,
        "avgpool": ops.avgpool_int8,
        "linear": ops.linear_int8,
    },
}


# Which precisions one set of parameters can run in: it holds either real numbers or INT8's.
SAME_PARAMETERS = [("fp32", "bf16"), ("int8", "int8-simulated")]
BACKENDS = ("numba", "numpy")


def resnet50_layers(num_classes: int = 1000) -> list[Layer]:
    """List the layers in the order they run."""

    def conv(name: str, x: str, in_c: int, out_c: int, kernel: int, stride: int = 1,
             relu: bool = True, residual: tuple[str, ...] = ()) -> Layer:  # fmt: skip
        bn = name[:-1] + "1" if "downsample" in name else name.replace("conv", "bn")
        return Layer(name, "conv", (x, *residual), in_c, out_c, kernel, stride, kernel // 2, bn,
                     relu)  # fmt: skip

    layers = [
        Layer("input", "input", (), 3, 3),
        conv("conv1", "input", 3, 64, kernel=7, stride=2),
        Layer("maxpool", "maxpool", ("conv1",), 64, 64, kernel=3, stride=2, padding=1),
    ]
    x, in_c = "maxpool", 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], start=1):
        for block in range(blocks):
            name, out_c = f"layer{stage}.{block}", 4 * width
            stride = 2 if block == 0 and stage > 1 else 1
            shortcut = x
            layers.append(conv(f"{name}.conv1", x, in_c, width, kernel=1))
            layers.append(conv(f"{name}.conv2", f"{name}.conv1", width, width, 3, stride))
            if block == 0:  # the shapes change: the shortcut needs a convolution too
                shortcut = f"{name}.downsample.0"
                layers.append(conv(shortcut, x, in_c, out_c, 1, stride, relu=False))
            x = f"{name}.conv3"
            layers.append(conv(x, f"{name}.conv2", width, out_c, 1, residual=(shortcut,)))
            in_c = out_c
    layers.append(Layer("avgpool", "avgpool", (x,), in_c, in_c))
    layers.append(Layer("fc", "linear", ("avgpool",), in_c, num_classes))
    return layers


class Step(NamedTuple):
    """One layer that has run: what went in, what came out."""

    layer: Layer
    inputs: tuple[Array, ...]
    output: Array

    @property
    def name(self) -> str:
        """The layer's name, as in torchvision."""
        return self.layer.name

    @property
    def op(self) -> str:
        """The operator: input, conv, maxpool, avgpool, linear."""
        return self.layer.op

    @property
    def input_shapes(self) -> tuple[Shape, ...]:
        """The inputs' shapes, NHWC; that of the first step is what was handed in, NCHW."""
        return tuple(x.shape for x in self.inputs)

    @property
    def output_shape(self) -> Shape:
        """The output's shape, NHWC."""
        return self.output.shape

    @property
    def macs(self) -> int:
        """Multiply-adds behind the output."""
        return self.layer.macs(self.output.shape)

    def __repr__(self) -> str:
        shapes = ", ".join(map(str, self.input_shapes))
        return f"Step({self.name}, {self.op}: {shapes} -> {self.output_shape}, {self.macs:,} MACs)"


class ResNet50:
    """ResNet-50 that can be called, stepped through, hooked and printed.

    Its layers and parameters are read-only, because compiled kernels keep a copy of the weights in
    an order of their own, which an edit would not reach. So writing into a weight raises a
    ValueError, with either backend. To run other weights, build another network: change a copy of
    a state_dict and hand it to `from_state_dict`, or change a copy of ``params``::

        params = dict(model.params)
        params["fc"] = params["fc"]._replace(bias=params["fc"].bias + 1)
        other = ResNet50(model.layers, params, model.precision, model.meta)

    A copy or a pickle has the layers, parameters, precision, backend and meta. What belongs to one
    process or one measurement stays behind: compiled kernels are laid out anew at the first run,
    and there are neither hooks nor a record.

    Parameters
    ----------
    layers : iterable of Layer
        What runs, in order: `resnet50_layers`.
    params : mapping
        Each layer's parameters, by its name, in the form its operators take. Arrays that can be
        written to are copied.
    precision : str
        A key of `OPERATORS`.
    meta : mapping, optional
        What is known about the weights: name, categories, preset, accuracy, source, licence.

    Attributes
    ----------
    record : callable or None
        Told of the steps that have run, as a profile wants it: see `minires.hooks.Record`.
    """

    def __init__(self, layers: Iterable[Layer], params: Mapping[str, Any], precision: str = "fp32",
                 meta: Mapping[str, Any] | None = None) -> None:  # fmt: skip
        check_choice("precision", precision, OPERATORS)
        self._layers = tuple(layers)
        self._params = MappingProxyType({name: read_only(p) for name, p in params.items()})
        self._precision = precision
        self._backend = "numpy"
        self.meta = dict(meta or {})
        self.record: Record | None = None
        self.apart = take_apart(self._layers)
        self.apart_params: Mapping[str, Any] = MappingProxyType({})
        self._engines: dict[str, Engine] = {}

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Array], meta: Mapping[str, Any] | None = None
    ) -> "ResNet50":
        """Build the float32 network.

        Parameters
        ----------
        state : mapping
            torchvision's state_dict as arrays: OIHW float32 under the keys that
            `state_dict_shapes` names. The number of classes is that of ``fc.bias``.
        meta : mapping, optional
            As for the class.

        Returns
        -------
        ResNet50
            With precision "fp32".
        """
        layers = resnet50_layers(num_classes=len(state["fc.bias"]))
        model = cls(layers, fp32_params(layers, state), meta=meta)
        model.apart_params = MappingProxyType(fp32_params(model.apart, state))
        return model

    @property
    def layers(self) -> tuple[Layer, ...]:
        """What runs, in order."""
        return self._layers

    @property
    def params(self) -> Mapping[str, Any]:
        """Each layer's parameters, by its name; read-only, and so are their arrays."""
        return self._params

    @property
    def precision(self) -> str:
        """A key of `OPERATORS`. It can become one that the same parameters can run in."""
        return self._precision

    @precision.setter
    def precision(self, precision: str) -> None:
        check_choice("precision", precision, OPERATORS)
        if not any({precision, self._precision} <= {*same} for same in SAME_PARAMETERS):
            raise MiniresError(
                f"weights in {self._precision} cannot run in {precision}; "
                f'load a network that can: minires.resnet50(weights, precision="{precision}")'
            )
        self._precision = precision

    @property
    def backend(self) -> str:
        """Which code computes: "numpy", the definitions, or "numba", compiled kernels."""
        return self._backend

    @backend.setter
    def backend(self, backend: str) -> None:
        check_choice("backend", backend, BACKENDS)
        self._backend = backend

    def __reduce__(self) -> tuple[Any, ...]:
        """Tell copy and pickle what a copy is made of."""
        layers = [replace(layer, hooks=[]) for layer in self.layers]
        params = dict(self.params), dict(self.apart_params)
        return _rebuild, (layers, *params, self.precision, self.backend, self.meta)

    def __call__(self, x: Array, fused: bool = True) -> Array:
        """Classify a batch.

        Parameters
        ----------
        x : ndarray
            (N, 3, H, W) float32, normalized as `minires.preprocess` does; H and W at least 32.
        fused : bool
            False runs convolution, batchnorm, add and relu as layers of their own.

        Returns
        -------
        ndarray
            Logits, (N, num_classes) float32.
        """
        if self.backend == "numba" and fused and not any(layer.hooks for layer in self.layers):
            started = perf_counter()
            check_input(x)
            return self._engine(x, self.record, started)
        for step in self.steps(x, fused):
            output = step.output
        return output

    def steps(self, x: Array, fused: bool = True) -> Iterator[Step]:
        """Walk through the network, stopping after each layer.

        Parameters
        ----------
        x, fused
            As in `__call__`.

        Yields
        ------
        Step
            The layer with its inputs and its output, NHWC; the last output is the logits.
        """
        check_input(x)
        if not fused and not (self.apart_params and self.precision == "fp32"):
            raise MiniresError(f"fused=False walks an fp32 network; this one is {self.precision}")
        layers, params = (self.layers, self.params) if fused else (self.apart, self.apart_params)
        operators = OPERATORS[self.precision]
        last_reader = {name: layer for layer in layers for name in layer.inputs}
        outputs: dict[str, Array] = {}
        for layer in layers:
            inputs = tuple(outputs[name] for name in layer.inputs) or (x,)
            started = perf_counter()
            if self.backend == "numba" and fused:
                output = self._engine.run(x.shape, layer, *inputs)
            else:
                output = operators[layer.op](layer, params.get(layer.name), *inputs)
            if self.record:
                self.record([layer], x.shape, 0, [(started, perf_counter())])
            for handle in list(layer.hooks):
                replacement = handle.hook(layer, inputs, output)
                output = output if replacement is None else replacement
            outputs[layer.name] = output
            for name in layer.inputs:  # keep no activation longer than a layer reads it
                if last_reader[name] is layer:
                    del outputs[name]
            yield Step(layer, inputs, output)

    @property
    def _engine(self) -> "Engine":
        from minires.kernels.engine import Engine  # here, because Numba takes long to import

        if self.precision not in self._engines:
            made = Engine(list(self.layers), self.params, self.precision)
            self._engines.setdefault(self.precision, made)
        return self._engines[self.precision]

    def __getitem__(self, name: str) -> Layer:
        """Find the layer to hook by its name: a fused one, else a part of one."""
        parts = self.apart if self.apart_params else []  # those that never run take no hooks
        layers = {layer.name: layer for layer in (*parts, *self.layers)}
        if name not in layers:
            raise KeyError(f"no layer is called {name!r}; print(model) lists them")
        return layers[name]

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __str__(self) -> str:
        table = format_summary(summarize(self.layers))
        if self.precision == "fp32":
            return table
        return f"{table}\n\n{format_edges(self.layers, self.meta.get('saturated', {}))}"


def _rebuild(layers: list[Layer], params: dict[str, Any], apart_params: dict[str, Any],
             precision: str, backend: str, meta: dict[str, Any]) -> ResNet50:  # fmt: skip
    """Make a copy of a network. Its arrays are nobody else's, but can be written to until here."""
    params, apart_params = (
        {name: lock(p) for name, p in d.items()} for d in (params, apart_params)
    )
    model = ResNet50(layers, params, precision, meta)
    model.apart_params = MappingProxyType(apart_params)
    model.backend = backend
    return model


def check_choice(what: str, chosen: object, known: Iterable[str]) -> None:
    """Refuse what is none of the known precisions or backends."""
    known = tuple(known)
    if chosen not in known:
        raise MiniresError(f"there is no {what} {chosen!r}; there is {', '.join(known)}")
