"""The engine against the definitions: INT8 bit for bit, float32 and bfloat16 within bounds."""

import ctypes
import mmap
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings

from minires.errors import MiniresError
from minires.kernels import engine as engine_module
from minires.kernels import pack as pack_module
from minires.kernels.engine import Engine
from minires.kernels.isa import choose_isa
from minires.kernels.pack import ALIGNMENT, SLACK
from minires.kernels.plan import Division, in_runs
from minires.layers import OPERATORS, FloatParams, Layer
from minires.model import ResNet50
from minires.quantize.calibrate import calibrate
from minires.quantize.convert import quantize_model
from minires.reference import QParams, im2col_ref, round_bf16_ref
from tests.comparing import EPS, assert_close, assert_same, gemm_bound
from tests.int8_oracle import ConvCase, conv_cases
from tests.seeded_weights import seeded_input, seeded_state_dict, uniform

pytestmark = pytest.mark.usefixtures("two_threads")

FP32 = OPERATORS["fp32"]
INT8 = OPERATORS["int8"]

Array = npt.NDArray[Any]


def image(case: ConvCase) -> Layer:
    """The layer whose output a convolution reads."""
    in_c = case.layer.in_c
    return Layer("x", "input", (), in_c, in_c, qparams=case.x_qparams)


def run_conv(precision: str, layers: list[Layer], params: Any, *inputs: Array) -> Array:
    """Have the engine run the last of `layers` alone, on what the others would have given."""
    engine = Engine(layers, {layers[-1].name: params}, precision)
    batch, height, width, channels = inputs[0].shape
    return engine.run((batch, channels, height, width), layers[-1], *inputs)


# One convolution: any shape, scale and zero point


@given(conv_cases())
@settings(derandomize=True, deadline=None, max_examples=150)
def test_int8_conv_has_the_definitions_bits(case: ConvCase) -> None:
    y = run_conv("int8", [image(case), case.layer], case.params, case.x)
    assert_same(y, INT8["conv"](case.layer, case.params, case.x))


def with_residual(case: ConvCase) -> tuple[list[Layer], dict[str, Any], Array]:
    """Make of a case layers that end in one with a residual; and their parameters; and that."""
    expected = INT8["conv"](case.layer, case.params, case.x)
    random = np.random.RandomState(case.x.sum() % 2**32)
    residual = random.randint(0, 256, expected.shape).astype(np.uint8)
    r_qparams = QParams(case.y_qparams.scale * np.float32(0.7), 77)
    params = case.params._replace(residual_qparams=r_qparams)
    # The residual comes from a convolution of the same shape.
    shortcut = replace(case.layer, name="r", qparams=r_qparams)
    layer = replace(case.layer, inputs=("x", "r"))
    return [image(case), shortcut, layer], {"r": params, "conv": params}, residual


@given(conv_cases())
@settings(derandomize=True, deadline=None, max_examples=50)
def test_int8_residual_has_the_definitions_bits(case: ConvCase) -> None:
    layers, params, residual = with_residual(case)
    engine = Engine(layers, params, "int8")
    batch, height, width, channels = case.x.shape
    y = engine.run((batch, channels, height, width), layers[-1], case.x, residual)
    assert_same(y, INT8["conv"](layers[-1], params["conv"], case.x, residual))


def float_case(case: ConvCase, residual: bool) -> tuple[Layer, FloatParams, Array, Array | None]:
    """Make of an integer case one in float32, of the same shape."""
    layer = replace(case.layer, relu=case.y_qparams.zero_point % 2 == 0, qparams=None)
    weight = uniform(-1, 1, case.params.w_s8.shape, 1)
    x = uniform(-1, 1, case.x.shape, 2)
    shape = layer.output_shape(x.shape)
    params = FloatParams(weight, uniform(-1, 1, (layer.out_c,), 3))
    return layer, params, x, uniform(-1, 1, shape, 4) if residual else None


def magnitude(layer: Layer, p: FloatParams, x: Array) -> Array:
    """What the products, and the bias, add up to without their signs."""
    columns = im2col_ref(np.abs(x), layer.kernel, layer.kernel, layer.stride, layer.padding)
    sums = columns.astype(np.float64) @ np.abs(p.weight.T) + np.abs(p.bias)
    return sums.reshape(layer.output_shape(x.shape))


@given(conv_cases())
@settings(derandomize=True, deadline=None, max_examples=80)
def test_fp32_conv_is_within_its_bound(case: ConvCase) -> None:
    layer, p, x, _ = float_case(case, residual=False)
    y = run_conv("fp32", [image(case), layer], p, x)
    K = p.weight.shape[1]
    assert_close(y, FP32["conv"](layer, p, x), gemm_bound(K + 4, magnitude(layer, p, x)))


@given(conv_cases())
@settings(derandomize=True, deadline=None, max_examples=50)
def test_fp32_residual_is_within_its_bound(case: ConvCase) -> None:
    layer, p, x, residual = float_case(case, residual=True)
    assert residual is not None
    shortcut = replace(layer, name="r")
    layer = replace(layer, inputs=("x", "r"))
    engine = Engine([image(case), shortcut, layer], {"r": p, "conv": p}, "fp32")
    batch, height, width, channels = x.shape
    y = engine.run((batch, channels, height, width), layer, x, residual)
    bound = gemm_bound(p.weight.shape[1] + 4, magnitude(layer, p, x) + np.abs(residual))
    assert_close(y, FP32["conv"](layer, p, x, residual), bound)


@given(conv_cases())
@settings(derandomize=True, deadline=None, max_examples=50)
def test_bf16_conv_is_within_its_bound(case: ConvCase) -> None:
    """Operands are rounded alike; the sums differ as in fp32, and may end on the other side of
    one rounding to 8 bits. vdpbf16ps takes denormals for zero: at most 2**-126 a term."""
    layer, p, x, _ = float_case(case, residual=False)
    p, x = FloatParams(round_bf16_ref(p.weight), p.bias), round_bf16_ref(x)
    y = run_conv("bf16", [image(case), layer], p, x)
    sums = gemm_bound(p.weight.shape[1] + 4, magnitude(layer, p, x))
    expected = FP32["conv"](layer, p, x)
    assert_same(y, round_bf16_ref(y))
    assert_close(y, expected, sums + 2.0**-8 * np.abs(expected) + 2.0**-100)


def broken_pixels() -> tuple[list[Layer], FloatParams, Array, Array]:
    """A first layer like ResNet's, and an image with infinity in it; and which outputs meet it."""
    layer = Layer("conv", "conv", ("x",), 3, 8, kernel=7, stride=2, padding=3)
    x = uniform(-1, 1, (1, 24, 25, 3), 1)
    x[0, 11, [6, 13], [0, 2]] = np.inf, -np.inf
    windows = im2col_ref(x, layer.kernel, layer.kernel, layer.stride, layer.padding)
    meets = np.isinf(windows).any(1).reshape(layer.output_shape(x.shape)[:3])
    params = FloatParams(uniform(-1, 1, (8, 147), 2), uniform(-1, 1, (8,), 3))
    return [Layer("x", "input", (), 3, 3), layer], params, x, meets


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_pixel_counts_that_is_not_under_the_kernel(precision: str) -> None:
    """A step along K may read on behind the kernel: zero weights do not make zero of infinity."""
    layers, params, x, meets = broken_pixels()
    y = run_conv(precision, layers, params, x)
    assert 0 < meets.sum() < meets.size / 2
    assert np.array_equal(~np.isfinite(y).all(3), meets)
    assert np.array_equal(~np.isfinite(y).any(3), meets)


# The whole network


def model_of(precision: str) -> ResNet50:
    """A seeded network; one in INT8 is calibrated on seeded pixels."""
    model = ResNet50.from_state_dict(seeded_state_dict())
    if precision.startswith("int8"):
        model = quantize_model(model, calibrate(model, [seeded_input((1, 3, 64, 64), 9)], "minmax"))
    model.precision = precision
    return model


SHAPES = [(1, 3, 64, 64), (2, 3, 50, 75), (3, 3, 32, 33)]


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_network_has_the_definitions_bits_on_every_layer(shape: tuple[int, ...]) -> None:
    model, x = model_of("int8"), seeded_input(shape)
    expected = list(model.steps(x))
    model.backend = "numba"
    for mine, step in zip(model.steps(x), expected, strict=True):
        assert mine.name == step.name
        assert_same(mine.output, step.output)
    assert_same(model(x), expected[-1].output)  # in one go, buffers shared


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8-simulated"])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_layer_of_a_float_network_is_within_its_bound(
    precision: str, shape: tuple[int, ...]
) -> None:
    """Each layer gets the definition's inputs: errors do not add up, so each is seen."""
    model, x = model_of(precision), seeded_input(shape)
    engine = Engine(model.layers, model.params, precision)
    operators = OPERATORS[precision]
    for step in model.steps(x):
        layer, p = step.layer, model.params.get(step.name)
        y = engine.run(x.shape, layer, *step.inputs)
        if layer.op in ("input", "maxpool"):
            assert_same(y, step.output)
            continue
        assert_same(step.output, operators[layer.op](layer, p, *step.inputs))
        bound: Array | float = 64 * EPS * np.abs(step.inputs[0]).max()  # avgpool: few terms
        if layer.op in ("conv", "linear"):
            floats = p.dequantize() if precision == "int8-simulated" else p
            columns = step.inputs[0] if layer.op == "conv" else step.inputs[0][:, None, None]
            sums = magnitude(replace(layer, op="conv"), floats, columns)
            if len(step.inputs) > 1:
                sums = sums + np.abs(step.inputs[1])
            # Half of this bound is for how far the sums usually lie within it: 1.01 for weights
            # that bf16 rounds.
            bound = 1.01 * gemm_bound(floats.weight.shape[1] + 4, sums).reshape(y.shape)
        if precision == "bf16" and layer.op != "linear":
            bound = bound + 2.0**-7 * np.abs(step.output)  # two roundings, a last bit apart
        if layer.qparams:  # a step more or less, where a sum lies next to a tie
            bound = bound + layer.qparams.scale
        assert_close(y, step.output, bound)


def test_fp32_network_is_close_to_the_definition() -> None:
    model, x = model_of("fp32"), seeded_input((2, 3, 64, 64))
    expected = model(x)
    model.backend = "numba"
    assert_close(model(x), expected, 1e-3 * np.abs(expected).max())


# What surrounds the kernels


def test_hooks_see_and_replace_what_they_do_in_numpy() -> None:
    x, answers = seeded_input((1, 3, 32, 32)), []
    for backend in ("numpy", "numba"):
        model = model_of("int8")
        model.backend = backend
        seen: list[Array] = []

        def look(_: Layer, inputs: tuple[Array, ...], y: Array, seen: list[Array] = seen) -> None:
            seen.append(inputs[0])

        with (
            model["layer1.0.conv1"].register_forward_hook(lambda _, x, y: np.full_like(y, 3)),
            model["layer1.0.conv2"].register_forward_hook(look),
        ):
            answers.append(model(x))
        assert_same(seen[0], np.full_like(seen[0], 3))
    assert_same(answers[1], answers[0])


def test_outputs_are_the_callers_own() -> None:
    model = model_of("int8")
    model.backend = "numba"
    first, second = seeded_input((1, 3, 32, 32), 1), seeded_input((1, 3, 32, 32), 2)
    y = model(first)
    kept, steps = y.copy(), [(step.output, step.output.copy()) for step in model.steps(first)]
    assert np.any(model(second) != kept)
    assert_same(y, kept)
    for output, copy in steps:
        assert_same(output, copy)


def test_the_record_has_each_step_in_the_time_of_the_call() -> None:
    """What is noted in between are ticks; in seconds they follow each other, part by part."""
    model, x = model_of("int8"), seeded_input((4, 3, 64, 64))
    engine, seen = Engine(model.layers, model.params, "int8"), []
    expected = engine(x)
    before = time.perf_counter()
    y = engine(x, seen.append)
    after = time.perf_counter()
    assert_same(y, expected)
    [ran] = seen
    assert ran.layers == model.layers
    assert (ran.shape, ran.call) == (x.shape, 0)
    times = np.ravel(ran.times)
    assert before < times[0]
    assert times[-1] < after
    assert np.all(np.diff(times) >= 0)
    assert np.diff(times)[::2].sum() > np.diff(times)[1::2].sum(), "more in between than in steps"


def test_a_steps_time_leaves_out_what_wakes_the_threads() -> None:
    """The step before it runs in the same call, and its ticks do not count."""
    model = model_of("fp32")
    engine = Engine(model.layers, model.params, "fp32")

    def execute(_steps: Array, ticks: Array, first: int, last: int, _threads: int) -> None:
        assert (first, last) == (3, 5)
        ticks[3:6] = 100, 1100, 1107

    x = seeded_input((1, 3, 32, 32))
    engine(x)
    steps = engine.program(x.shape).steps
    assert engine.time_step(steps, 4, execute) == 7
    assert engine.time_step(steps, 4) > 0


def test_several_threads_may_call_one_network() -> None:
    model = model_of("int8")
    model.backend = "numba"
    inputs = [seeded_input((1, 3, 32, 32), seed) for seed in range(4)]
    expected = [model(x) for x in inputs]
    answers: dict[int, list[Array]] = {}

    def work(i: int) -> None:
        answers[i] = [model(inputs[i]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, logits in enumerate(expected):
        for answer in answers[i]:
            assert_same(answer, logits)


def test_an_unaligned_and_strided_image_is_as_good() -> None:
    model = model_of("int8")
    model.backend = "numba"
    x = seeded_input((1, 3, 40, 40))
    strided = np.zeros((1, 3, 40, 80), np.float32)[:, :, :, ::2]
    strided[...] = x
    memory = np.zeros(x.nbytes + 1, np.uint8)
    unaligned = memory[1:].view(np.float32).reshape(x.shape)
    unaligned[...] = x
    for image in (strided, unaligned):
        assert_same(model(image), model(x))


GUARD = 4096  # bytes of a page


def guarded(made: list[tuple[Array, int, int]]) -> Any:
    """Make a stand-in for `aligned`: a page behind the array that no one may touch, and canaries.

    The array ends as near to the page as its alignment lets it, with `SLACK` between. Canaries
    fill what else there is, the slack too: whoever reads them must not let them count.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def aligned(shape: tuple[int, ...], dtype: Any, fill: float = 0) -> Array:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        length = -(-(size + SLACK + ALIGNMENT) // GUARD) * GUARD
        pages = mmap.mmap(-1, length + GUARD)
        memory = np.frombuffer(pages, np.uint8)
        assert libc.mprotect(ctypes.c_void_p(memory.ctypes.data + length), GUARD, 0) == 0
        start = (length - SLACK - size) // ALIGNMENT * ALIGNMENT
        memory[:length] = 0x5A
        array = memory[start : start + size].view(dtype).reshape(shape)
        array[...] = fill
        made.append((memory[:length], start, start + size))
        return array

    return aligned


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="guard pages are made by mprotect")
@pytest.mark.parametrize("few", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8-simulated", "int8"])
def test_nothing_outside_of_a_buffer_is_touched(
    precision: str, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read behind the slack ends this process; a write before or behind a buffer is seen."""
    made: list[tuple[Array, int, int]] = []
    for module in (engine_module, pack_module):
        monkeypatch.setattr(module, "aligned", guarded(made))
    model, x = model_of(precision), seeded_input((2, 3, 40, 47))
    engine = Engine(model.layers, model.params, precision)
    engine.divisions[x.shape[2:]] = engine._divide(x.shape)._replace(few=few)
    logits = engine(x)
    assert len(engine.program(x.shape).plan.calls) == (1 if few == 2 else 3)
    monkeypatch.undo()
    assert len(made) > 100
    for memory, start, end in made:
        assert np.all(memory[:start] == 0x5A)
        assert np.all(memory[end:] == 0x5A)
    assert_same(logits, Engine(model.layers, model.params, precision)(x))
    program = engine.program(x.shape)
    for memory, buffer in zip(program.memory, program.plan.buffers, strict=True):
        border, pad = memory.copy(), buffer.pad  # padding holds what it held at first
        border[:, pad : -pad or None, pad : -pad or None] = border.flat[0]
        assert np.all(border == border.flat[0])


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize(
    ("batch", "height", "width", "pad", "stride"),
    [(1, 7, 7, 1, 1), (3, 5, 20, 0, 1), (2, 14, 33, 1, 2), (1, 1, 40, 0, 3), (2, 1, 1, 0, 1)],
)
def test_rows_are_arranged_in_runs(
    batch: int, height: int, width: int, pad: int, stride: int, together: int
) -> None:
    """Each row once, the others marked; 16 a fixed step apart, all in the buffer or its spare."""
    pixel, padded = 5, (height + 2 * pad, width + 2 * pad)  # bytes; pixels
    out_h, out_w = (-(-n // stride) for n in (height, width))
    strides = (padded[0] * padded[1] * pixel, padded[1] * stride * pixel, stride * pixel)
    counts = (batch, out_h, out_w)
    places = [np.arange(n) * s for n, s in zip(counts, strides, strict=True)]
    x = (places[0][:, None, None] + places[1][:, None] + places[2]).ravel()
    y = 3 * np.arange(len(x))
    line = out_w if stride > 1 else len(x)
    in_x, in_y = in_runs(x, y, stride * pixel, line, 16, together)
    real = in_y >= 0
    assert sorted(zip(in_x[real], in_y[real], strict=True)) == list(zip(x, y, strict=True))
    assert set(in_y[~real]) <= {-1}
    runs = in_x.reshape(-1, 16)
    assert len(runs) % together == 0
    assert np.all(np.diff(runs) == stride * pixel)
    assert in_x.min() >= 0
    assert in_x.max() <= x.max() + 15 * stride * pixel


def test_a_plan_is_kept_and_the_oldest_goes() -> None:
    model = model_of("int8")
    engine = Engine(model.layers, model.params, "int8")
    for size in (32, 33, 34, 35, 36):
        engine(seeded_input((1, 3, size, size)))
    assert [shape[2] for shape, _ in engine.programs] == [33, 34, 35, 36]


def test_what_is_kept_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("int8")
    engine = Engine(model.layers, model.params, "int8")
    small, large = seeded_input((1, 3, 32, 32)), seeded_input((1, 3, 96, 96))
    expected = [engine(x) for x in (small, large)]
    little, much = (program.nbytes for program in engine.programs.values())
    assert 4 * little < much
    monkeypatch.setattr(engine_module, "KEPT", much)
    for x, logits in zip((small, large), expected, strict=True):
        assert_same(engine(x), logits)
    assert [shape for shape, _ in engine.programs] == [large.shape], "the oldest go"
    monkeypatch.setattr(engine_module, "KEPT", 2 * little)
    assert_same(engine(large), expected[1])
    assert engine.programs == {}, "a large one does not stay"
    assert_same(engine(small), expected[0])
    assert len(engine.programs) == 1


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_too_little_memory_is_told(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the network goes on as it was."""

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    model, x = model_of("int8"), seeded_input((1, 3, 48, 32))
    model.backend = backend
    with monkeypatch.context() as patched:
        patched.setattr(engine_module, "lay_out", fail)
        patched.setattr("minires.reference.im2col_ref", fail)
        with pytest.raises(MiniresError, match="memory is not there"):
            model(x)
        with pytest.raises(MiniresError, match=r"1 x 48 x 32 pixels take .* GB"):
            list(model.steps(x))
    assert model(x).shape == (1, 1000)


def test_an_instruction_set_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("int8")
    monkeypatch.setenv("MINIRES_ISA", "abacus")
    with pytest.raises(MiniresError, match="MINIRES_ISA is 'abacus'; on this machine it may be"):
        Engine(model.layers, model.params, "int8")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    ("few", "more", "calls"),  # of 7 images; from the late step on the most that a call takes
    [
        (7, 7, [7]),
        (9, 9, [7]),
        (3, 7, [1] * 7 + [7]),
        (2, 4, [2, 2, 4, 1, 1, 1, 3]),
        (1, 1, [1] * 7),
    ],
)
def test_a_batch_is_computed_in_calls(
    precision: str, few: int, more: int, calls: list[int]
) -> None:
    """Each image gets the bits that it gets alone, in the order they came in."""
    model = model_of(precision)
    x = seeded_input((7, 3, 64, 64))
    engine = Engine(model.layers, model.params, precision)
    alone = np.concatenate([engine(image[np.newaxis]) for image in x])
    late = engine._divide(x.shape).late
    engine.divisions[x.shape[2:]] = Division(late, few, more)
    seen: list[tuple[list[Layer], int, int]] = []
    y = engine(x, lambda ran: seen.append((list(ran.layers), ran.shape[0], ran.call)))
    assert_same(y, alone)
    assert [images for _, images, _ in seen] == calls
    assert [call for _, _, call in seen] == list(range(len(calls)))
    assert sum(len(layers) * images for layers, images, _ in seen) == 7 * len(model.layers)
    assert engine.run(x.shape, model.layers[0], x).shape == (7, 64, 64, 3)  # all in one


def test_a_batch_is_divided_where_weights_outweigh_activations() -> None:
    model = model_of("int8")
    engine = Engine(model.layers, model.params, "int8")
    engine.tiling = replace(engine.tiling, room=2 * 3 * 64 * 112 * 112)  # three images' stem
    late, few, more = engine._divide((8, 3, 224, 224))
    assert engine.layers[late].name == "layer3.1.conv1"
    assert 3 == few < more
    assert engine._divide((8, 3, 64, 64)).late < late
    assert engine._divide((8, 3, 1024, 1024)).late == 0


def test_engines_that_cannot_be_are_refused() -> None:
    model = model_of("fp32")
    isa = choose_isa()
    with pytest.raises(MiniresError, match="one of available_isas"):
        Engine(model.layers, model.params, "fp32", replace(isa, lanes=2))
    with pytest.raises(MiniresError, match="at least one thread"):
        Engine(model.layers, model.params, "fp32", threads=0)


def test_precision_and_backend_may_change() -> None:
    x, model = seeded_input((1, 3, 32, 32)), model_of("int8")
    for precision in ("int8", "int8-simulated", "int8"):
        model.precision, model.backend = precision, "numpy"
        expected = model(x)
        model.backend = "numba"
        assert_close(model(x), expected, 0 if precision == "int8" else 0.1 * np.abs(expected).max())


# What is compiled is kept on the disk


def test_kernels_from_the_cache_are_told_apart(tmp_path: Path) -> None:
    """Each was the first that its process compiled, so that Numba counted both as number one."""
    program = """if True:
        import sys
        from minires.ladder.climb import LAYER, _engine, check, problem
        from minires.kernels.operators import compile_network
        from minires.kernels.isa import ISAS
        from minires.layers import OPERATORS
        for precision in sys.argv[1:]:
            compile_network(precision, "generic")
        if "fp32" in sys.argv:
            layer, p, x = problem("fp32", LAYER, (1, 6, 6, 128))
            y = _engine("fp32", ISAS["generic"])(layer, p)(x)
            check(y, OPERATORS["fp32"]["conv"](layer, p, x), layer, "fp32")
    """
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    plain = "fp32, plain store"  # whose results are others
    for precisions in (["fp32"], [plain], [plain, "fp32"], ["fp32", plain]):
        command = [sys.executable, "-c", program, *precisions]
        process = subprocess.run(command, env=environment, text=True, capture_output=True)
        assert process.returncode == 0, process.stderr


def test_a_kernel_is_compiled_anew_where_its_source_has_changed(tmp_path: Path) -> None:
    """In another file than the function that is cached, where Numba alone would not notice."""
    shutil.copytree(Path(engine_module.__file__).parents[1], tmp_path / "minires")
    file = tmp_path / "minires" / "kernels" / "microkernel.py"
    source = file.read_text(encoding="utf-8")
    changed = source.replace('compare[name[0]](">"', 'compare[name[0]]("<"')
    assert changed != source
    program = """if True:
        import numpy as np
        from minires.kernels.engine import Engine
        from minires.layers import Layer
        pool = Layer("pool", "maxpool", ("x",), 8, 8, kernel=2, stride=2)
        engine = Engine([Layer("x", "input", (), 8, 8), pool], {}, "fp32")
        x = np.arange(128, dtype=np.float32).reshape(1, 4, 4, 8)
        print(engine.run((1, 8, 4, 4), pool, x).ravel()[0])
    """
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    environment |= {"PYTHONPATH": str(tmp_path), "MINIRES_ISA": "generic"}  # the quickest one
    for text, expected in [(source, "40.0"), (changed, "0.0"), (source, "40.0")]:
        file.write_text(text, encoding="utf-8")
        command = [sys.executable, "-c", program]
        process = subprocess.run(
            command, env=environment, cwd=tmp_path, text=True, capture_output=True, check=True
        )
        assert process.stdout.strip() == expected, process.stderr
