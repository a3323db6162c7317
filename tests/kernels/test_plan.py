"""Plans: buffers, offsets and tiles, checked without a CPU that would run them."""

import math
from dataclasses import replace

import numpy as np
import pytest

from minires.errors import MiniresError
from minires.kernels.division import divide
from minires.kernels.plan import LOGITS, Division, Plan, Tiling, lay_out
from minires.layers import Layer
from minires.model import resnet50_layers

FLOATS = Tiling(item=4, group=1, quantized=False, rows=6, columns=64)
BYTES = Tiling(
    item=1,
    group=4,
    quantized=True,
    rows=32,
    columns=32,
    run=16,
    groups=16,
    may_be_fewer=True,
)
LAYERS = resnet50_layers()


def plan_of(shape: tuple[int, ...], tiling: Tiling, layers: list[Layer] = LAYERS) -> Plan:
    return lay_out(layers, shape, tiling, Division(0, shape[0], shape[0]))


@pytest.mark.parametrize("tiling", [FLOATS, BYTES])
@pytest.mark.parametrize("shape", [(1, 3, 224, 224), (2, 3, 33, 50)])
def test_a_convolution_reads_what_im2col_would_copy(tiling: Tiling, shape: tuple[int, ...]) -> None:
    """Each row's offset, and each run's, lead to the pixels under the kernel; all are in memory."""
    plan = plan_of(shape, tiling)
    for step in plan.steps:
        if not step.gemm or step.layer.op == "linear":
            continue
        layer, gemm = step.layer, step.gemm
        assert step.x is not None
        buffer = plan.buffers[step.x.buffer]
        _, row, pixel = buffer.strides(tiling.item)
        places = np.arange(math.prod(buffer.shape[:3])).reshape(buffer.shape[:3])
        b, i, j = np.unravel_index(np.arange(step.batch * step.out_h * step.out_w),
                                   (step.batch, step.out_h, step.out_w))  # fmt: skip
        first = buffer.pad - layer.padding
        wanted = places[b, i * layer.stride + first, j * layer.stride + first] * pixel
        written = gemm.y_offsets != -1
        found = (step.x.offset + gemm.x_offsets[:-1].astype(np.int64))[written][: len(wanted)]
        assert sorted(found) == sorted(wanted)
        # The last run of the last row ends inside of the buffer and what is spare behind it.
        run = 4 * gemm.groups
        end = step.x.offset + int(gemm.x_offsets.max()) + (gemm.runs - 1) * gemm.run_stride + run
        assert end <= tiling.item * (math.prod(buffer.shape) + buffer.spare)
        assert gemm.run_stride == row
        assert len(gemm.y_offsets) == gemm.rows * tiling.rows
        assert 1 <= gemm.block <= gemm.rows


def test_outputs_that_are_alive_together_have_buffers_of_their_own() -> None:
    plan = plan_of((1, 3, 224, 224), FLOATS)
    alive: dict[int, str] = {}
    last_reader = {name: layer for layer in LAYERS for name in layer.inputs}
    for step in plan.steps:
        layer = step.layer
        for name in layer.inputs:
            assert alive[plan.outputs[name]] == name, f"{name} was overwritten"
        if step.y.buffer != LOGITS:
            taken = alive.get(step.y.buffer)
            # Free, or the residual, which a tile reads before it writes there.
            assert taken is None or last_reader[taken].name == layer.name
            assert taken is None or taken in layer.inputs[1:]
            alive[step.y.buffer] = layer.name
        for name in layer.inputs:
            if last_reader[name] is layer and alive.get(plan.outputs[name]) == name:
                del alive[plan.outputs[name]]
    assert len(plan.buffers) < len(LAYERS) / 2, "hardly any buffer is used twice"


def test_a_plan_can_be_read() -> None:
    text = str(plan_of((2, 3, 224, 224), FLOATS))
    stem = next(line for line in text.splitlines() if line.startswith("conv1"))
    assert f"{2 * 112 * 112} x 64 x {7 * 7 * 3}" in stem
    assert sum(line.startswith("layer") for line in text.splitlines()) == 52


def test_padding_holds_what_its_reader_wants() -> None:
    plan = plan_of((1, 3, 64, 64), FLOATS)
    fills = {name: plan.buffers[number].fill for name, number in plan.outputs.items()}
    assert fills["conv1"] is None  # the max-pool's: the least there is
    assert fills["input"] == fills["layer1.0.conv1"] == 0.0


def test_a_call_takes_some_images_and_the_last_steps_all() -> None:
    late = next(i for i, layer in enumerate(LAYERS) if layer.name == "layer3.1.conv1")
    plan = lay_out(LAYERS, (4, 3, 64, 64), FLOATS, Division(late, 2, 8))
    early = slice(0, late)
    assert [call.images for call in plan.calls] == [slice(0, 2), slice(2, 4), slice(0, 4)]
    assert [call.steps for call in plan.calls] == [early, early, slice(late, len(LAYERS))]
    assert plan.steps[late - 1].batch == 2
    collected = plan.outputs[LAYERS[late - 1].name]
    assert plan.buffers[collected].shape[0] == 4


def test_small_caches_divide_a_batch() -> None:
    size = (224, 224)
    stem = 4 * 64 * 112 * 112
    division = divide(LAYERS, size, replace(FLOATS, room=2 * 3 * stem))
    assert division.few == 3
    assert division.more > 3
    assert LAYERS[division.late].name.startswith("layer")
    assert divide(LAYERS, size, replace(FLOATS, room=1)).few == 1


def test_a_batch_that_offsets_cannot_span_is_refused() -> None:
    image = Layer("x", "input", (), 64, 64)
    conv = Layer("conv", "conv", ("x",), 64, 64)
    with pytest.raises(MiniresError, match=r"3 x .* pixels are too large.*fewer at once"):
        plan_of((3, 64, 2000, 2000), FLOATS, [image, conv])
