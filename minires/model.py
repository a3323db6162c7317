"""ResNet-50 v1.5 on one page: the list of layers, and the walk through it.

He et al., "Deep Residual Learning for Image Recognition" (2015), table 1; v1.5 moves a
block's stride from its first 1x1 to its 3x3 convolution, as torchvision does.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from time import perf_counter
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from minires import checkpoint, preprocess, show
from minires.backends import Backend, Engine, Ran, Record, check_backend, check_parameters
from minires.errors import MiniresError, check_choice, check_is, check_whole, no_layer
from minires.layers import OPERATORS, Array, Layer, Operator, PhaseTime, Shape
from minires.mixed import run_kept
from minires.summary import enough_memory


def resnet50_layers(num_classes: int = 1000) -> list[Layer]:
    """List the layers in the order they run."""
    num_classes = check_whole("num_classes", num_classes)

    def conv(
        name: str, inputs: tuple[str, ...], in_c: int, out_c: int, kernel: int, stride: int = 1
    ) -> Layer:
        shortcut = "downsample" in name  # its ReLU comes after the addition, in conv3
        # torchvision's name of its BatchNorm: downsample.1, or bn1 for conv1.
        bn = name[:-1] + "1" if shortcut else name.replace("conv", "bn")
        padding = kernel // 2
        return Layer(name, "conv", inputs, in_c, out_c, kernel, stride, padding, bn, not shortcut)

    layers = [
        Layer("input", "input", (), 3, 3),
        conv("conv1", ("input",), 3, 64, kernel=7, stride=2),
        Layer("maxpool", "maxpool", ("conv1",), 64, 64, kernel=3, stride=2, padding=1),
    ]
    x, in_c = "maxpool", 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], start=1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            out_c = 4 * width  # conv3 widens what the 3x3 computed
            stride = 2 if block == 0 and stage > 1 else 1
            shortcut = x
            layers.append(conv(f"{name}.conv1", (x,), in_c, width, kernel=1))
            layers.append(conv(f"{name}.conv2", (f"{name}.conv1",), width, width, 3, stride))
            if block == 0:  # the shapes change: the shortcut needs a convolution too
                shortcut = f"{name}.downsample.0"
                layers.append(conv(shortcut, (x,), in_c, out_c, 1, stride))
            x = f"{name}.conv3"
            layers.append(conv(x, (f"{name}.conv2", shortcut), width, out_c, 1))
            in_c = out_c
    layers.append(Layer("avgpool", "avgpool", (x,), in_c, in_c))
    layers.append(Layer("fc", "linear", ("avgpool",), in_c, num_classes))
    return layers


class Step(NamedTuple):
    """One layer that has run, with its inputs and its output.

    Examples
    --------
    >>> next(model.steps(x))
    Step(input, input: (1, 3, 64, 64) -> (1, 64, 64, 3), 0 MACs)
    """

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
        """The inputs' shapes, NHWC; only the first step, which reads the images, has NCHW."""
        return tuple(x.shape for x in self.inputs)

    @property
    def output_shape(self) -> Shape:
        """The output's shape, NHWC."""
        return self.output.shape

    @property
    def macs(self) -> int:
        """The multiply-adds that the output took."""
        return self.layer.macs(self.output.shape)

    def __repr__(self) -> str:
        return show.step_line(self)

    def _repr_html_(self) -> str:  # notebooks call it
        return show.step_html(self)


class ResNet50:
    """ResNet-50 that can be called, stepped through, hooked and printed.

    Its layers and parameters are read-only, because compiled kernels run on a copy of them. To run
    other weights, build another network: by `from_state_dict`, or from other params:

    >>> params = dict(model.params)
    >>> params["fc"] = params["fc"]._replace(bias=params["fc"].bias + 1)
    >>> other = ResNet50(model.layers, params, model.precision, model.meta)

    A copy or a pickle has all of it but the hooks, the record and the compiled kernels.

    Parameters
    ----------
    layers : iterable of Layer
        The layers in the order they run, as `resnet50_layers` lists them.
    params : mapping
        Each layer's parameters, by its name. Arrays that can be written to are copied.
    precision : str
        A key of `OPERATORS`.
    meta : mapping, optional
        Facts about the weights: name, categories, preset, accuracy, source, licence.
    """

    operators: ClassVar[Mapping[str, Mapping[str, Operator]]] = OPERATORS
    # By name. api.py adds the compiled ones, so that this file depends on no compiler.
    backends: ClassVar[dict[str, Backend]] = {"numpy": Backend(tuple(OPERATORS))}

    def __init__(
        self,
        layers: Iterable[Layer],
        params: Mapping[str, Any],
        precision: str = "fp32",
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        check_choice("precision", precision, self.operators)
        check_is("layers", layers, Iterable, "those of resnet50_layers")
        check_is("params", params, Mapping, "each layer's parameters by its name")
        check_is("meta", meta, Mapping | None, "facts by their names")
        self._layers = tuple(layers)
        self._params = MappingProxyType(
            {name: checkpoint.read_only(p) for name, p in params.items()}
        )
        self._precision = precision
        self._backend = "numpy"
        self._engines: dict[tuple[str, str], Engine] = {}  # by backend and precision
        self.meta: dict[str, Any] = show.Meta(meta or {})
        self.record: Record | None = None  # a profile puts itself here, to be told of each step

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Array], meta: Mapping[str, Any] | None = None
    ) -> "ResNet50":
        """Build the float32 network of a state_dict as torchvision's: OIHW, any classes."""
        layers = resnet50_layers(checkpoint.count_classes(state))
        state = checkpoint.check_state_dict(state, checkpoint.state_dict_shapes(layers))
        return cls(layers, checkpoint.fp32_params(layers, state), meta=meta)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in the order they run."""
        return self._layers

    @property
    def params(self) -> Mapping[str, Any]:
        """Each layer's parameters, by its name; read-only, and so are their arrays."""
        return self._params

    @property
    def precision(self) -> str:
        """A key of `OPERATORS`. You can set it to another that the same parameters can run in."""
        return self._precision

    @precision.setter
    def precision(self, precision: str) -> None:
        check_choice("precision", precision, self.operators)
        check_parameters(self._precision, precision)
        check_backend(self.backends, self._backend, precision)
        self._precision = precision

    @property
    def backend(self) -> str:
        """Either "numpy" for the definitions, "numba" for compiled kernels, or "cuda" for a GPU."""
        return self._backend

    @backend.setter
    def backend(self, backend: str) -> None:
        check_backend(self.backends, backend, self._precision)
        self._backend = backend

    def preprocess(self, images: Any) -> Array:
        """Turn images into a batch by `minires.preprocess`, with the preset of these weights."""
        if "preset" not in self.meta:
            raise MiniresError("these weights name no preset; call minires.preprocess with one")
        return preprocess.preprocess(images, self.meta["preset"])

    def __call__(self, x: Array) -> Array:
        """Compute a batch's logits: (batch, 3, H, W) from `preprocess` to (batch, num_classes).

        Both are float32; H and W are at least 32.
        """
        if self.backend != "numpy" and not any(layer.hooks or layer.kept for layer in self.layers):
            started = perf_counter()
            x = preprocess.check_input(x)
            return self._engine(x, self.record, started)
        for step in self.steps(x):
            output = step.output
        return output

    def steps(self, x: Array) -> Iterator[Step]:
        """Walk through the network, stopping after each layer; the last output is the logits."""
        x = preprocess.check_input(x)
        last_reader = {name: layer for layer in self.layers for name in layer.inputs}
        outputs: dict[str, Array] = {}
        for layer in self.layers:
            inputs = tuple(outputs[name] for name in layer.inputs) or (x,)  # layer "input" reads x
            times: list[PhaseTime] = []
            started = perf_counter()
            with enough_memory(self.layers, x.shape, self.precision):
                if layer.kept and self.precision == "int8":
                    output = run_kept(layer, self.params[layer.name], *inputs)
                elif self.backend == "numpy":
                    operator = self.operators[self.precision][layer.op]
                    output = operator(layer, self.params.get(layer.name), *inputs, times=times)
                else:
                    output = self._engine.run(x.shape, layer, *inputs)
            if self.record:
                self.record(Ran([layer], x.shape, 0, [(started, perf_counter())], times))
            for handle in list(layer.hooks):
                replacement = handle.hook(layer, inputs, output)
                output = output if replacement is None else replacement
            outputs[layer.name] = output
            for name in layer.inputs:  # drop each activation after the last layer that reads it
                if last_reader[name] is layer:
                    del outputs[name]
            yield Step(layer, inputs, output)

    @property
    def _engine(self) -> Engine:
        key = self.backend, self.precision
        if key not in self._engines:
            made = self.backends[self.backend].make(self.layers, self.params, self.precision)
            self._engines.setdefault(key, made)  # another thread may have been quicker
        return self._engines[key]

    def __getitem__(self, name: str) -> Layer:
        """Find a layer by its name, for example to hook it."""
        names = show.layer_names(self)
        if isinstance(name, str) and name in names:
            return self.layers[names.index(name)]
        raise no_layer(name, names, "print(model)")

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    __repr__ = show.network_line
    __str__ = show.network_text
    _repr_html_ = show.network_html
    _ipython_key_completions_ = show.layer_names

    def __reduce__(self) -> tuple[Any, ...]:
        """Tell copy and pickle how to make the same network again: by `_rebuild`."""
        layers = [replace(layer) for layer in self.layers]  # without hooks
        network = layers, dict(self.params), self.precision, self.meta, self.backend
        return _rebuild, (type(self), *network)


def _rebuild(
    cls: type[ResNet50], layers: Any, params: Any, precision: str, meta: Any, backend: str
) -> ResNet50:
    """Make a network of a copy's parts; pickle leaves their arrays writable, so lock them first."""
    model = cls(layers, {name: checkpoint.lock(p) for name, p in params.items()}, precision, meta)
    model.backend = backend
    return model
