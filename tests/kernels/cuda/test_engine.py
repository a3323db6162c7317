"""The engine for GPUs against the definitions, on a GPU made of NumPy: INT8 bit for bit."""

import functools
import gc
import logging
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="kernels for a GPU need numba-cuda: pip install .[cuda]")

from cuda.core._utils.cuda_utils import CUDAError
from numba import cuda
from numba.cuda.cudadrv import driver as numba_driver
from numba.cuda.cudadrv.driver import CudaAPIError

from minires import api
from minires.errors import MiniresError
from minires.kernels.cuda import driver
from minires.kernels.cuda import engine as engine_module
from minires.kernels.cuda import gemm as gemm_module
from minires.kernels.cuda import launches as launches_module
from minires.kernels.cuda import operators as operators_module
from minires.kernels.cuda.engine import BATCH, Engine, most_images
from minires.kernels.cuda.gemm import LARGE, SMALL, SPLIT, TALL, TINY, WIDE
from minires.kernels.cuda.instructions import choose_instruction
from minires.kernels.cuda.launches import choose_tile
from minires.kernels.cuda.operators import FORMATS
from minires.model import ResNet50
from minires.reference import round_bf16_ref, round_f16_ref, round_tf32_ref
from tests.comparing import assert_same
from tests.kernels.cuda import pretend
from tests.seeded_weights import seeded_input

OPEN_GPU = driver.open_gpu  # which the tests below put another in the place of
# Half of the last bit that a precision keeps, of the largest value: with a tie, one more step.
STEPS = {"fp32": 1e-5, "tf32": 2.0**-10, "fp16": 2.0**-10, "bf16": 2.0**-7}


@pytest.fixture(autouse=True)
def _pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend.install(monkeypatch)


@functools.cache
def bundled(precision: str) -> ResNet50:
    return api.resnet50("CIFAR10", precision, "numpy", progress=False)


def laid_out(precision: str) -> Engine:
    model = bundled(precision)
    return Engine(list(model.layers), model.params, precision)


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (1, 3, 35, 51)])
def test_int8_is_the_definitions_bit_for_bit(shape: tuple[int, ...]) -> None:
    x = seeded_input(shape)
    assert_same(laid_out("int8")(x), bundled("int8")(x))


@pytest.mark.parametrize("precision", [p for p in FORMATS if p != "int8"])
def test_each_layer_is_the_definitions_but_for_a_rounding(precision: str) -> None:
    model, engine = bundled(precision), laid_out(precision)
    for step in model.steps(seeded_input((1, 3, 33, 64))):
        y = engine.run((1, 3, 33, 64), step.layer, *step.inputs)
        assert y.shape == step.output.shape
        bound = STEPS[precision] * np.abs(step.output).max()
        assert np.abs(y - step.output).max() <= bound, step.name


def test_a_graph_is_recorded_once_and_gives_the_same_each_time() -> None:
    engine, x = laid_out("int8"), seeded_input((1, 3, 32, 32))
    first = engine(x)
    assert_same(engine(x), first)
    kernels = [launch.kernel for launch in engine.program(x.shape).launches]
    assert sum(kernel.launches for kernel in set(kernels)) == 2 * len(kernels)  # by hand, recorded


def test_steps_are_timed_by_events_between_them() -> None:
    engine, x, told = laid_out("int8"), seeded_input((3, 3, 32, 32)), []
    wanted = engine(x)
    assert_same(engine(x, told.append, 0.5), wanted)
    [ran] = told
    assert (list(ran.layers), ran.shape, ran.call) == (list(engine.layers), x.shape, 0)
    times = ran.times
    assert times[0, 0] == 0.5, "the image's way to the GPU is the first step's"
    np.testing.assert_allclose(np.diff(times[1:], axis=1), 1e-3, rtol=1e-3)
    np.testing.assert_allclose(times[1:, 0], times[:-1, 1])


def test_what_cannot_be_recorded_is_tried_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, x = laid_out("int8"), seeded_input((1, 3, 32, 32))
    wanted = engine(x)

    def fails(*_: Any) -> None:
        raise CudaAPIError(700, "CUDA_ERROR_ILLEGAL_ADDRESS")

    with monkeypatch.context() as once:
        once.setattr(driver, "record_event", fails)
        with pytest.raises(MiniresError, match="the GPU failed"):
            engine(x, lambda *_: None)
    assert_same(engine(x, lambda *_: None), wanted)


def test_large_images_go_in_smaller_parts() -> None:
    assert most_images(224, 224) == BATCH
    assert most_images(512, 512) < BATCH
    assert most_images(512, 512) * 256 * 256 <= 64 * (2**16 - 1)
    assert most_images(2**14, 2**14) == 1


def test_int8_layers_run_one_by_one() -> None:
    model, engine = bundled("int8"), laid_out("int8")
    for step in model.steps(seeded_input((2, 3, 33, 64))):
        assert_same(engine.run((2, 3, 33, 64), step.layer, *step.inputs), step.output)


def test_a_large_batch_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "BATCH", 2)
    x = seeded_input((5, 3, 32, 32))
    engine = laid_out("int8")
    assert_same(engine(x), bundled("int8")(x))
    assert {shape[0] for shape in engine.programs} == {2, 1}
    assert BATCH >= 128


def test_no_more_than_a_few_shapes_are_kept() -> None:
    engine = laid_out("int8")
    for width in range(32, 32 + 2 * engine_module.PLANS, 1):
        engine.program((1, 3, 32, width))
    assert len(engine.programs) == engine_module.PLANS


def test_tiles_fill_the_gpu() -> None:
    assert choose_tile(128 * 3136, 64, 9, 132) == (TALL, 1)
    assert choose_tile(128 * 196, 1024, 8, 132) == (LARGE, 1)
    assert choose_tile(128 * 3136, 256, 1, 132) == (WIDE, 1)
    assert choose_tile(128 * 49, 512, 72, 132) == (WIDE, 1)
    assert choose_tile(3136, 256, 1, 132) == (SMALL, 1)
    assert choose_tile(49, 512, 72, 132) == (SPLIT, 4)
    assert choose_tile(49, 512, 144, 132) == (SPLIT, 8)
    assert choose_tile(49, 2048, 8, 132) == (TINY, 1)


def test_an_instruction_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_instruction("u8s8", (9, 0)).name == "mma-u8s8"
    monkeypatch.setenv("MINIRES_ISA", "cuda-cores")
    assert choose_instruction("u8s8", (9, 0)).name == "dp4a"
    with pytest.raises(MiniresError, match="cuda-cores cannot multiply f16"):
        choose_instruction("f16", (9, 0))
    monkeypatch.setenv("MINIRES_ISA", "avx2")  # a CPU's: it says nothing of the GPU
    assert choose_instruction("u8s8", (9, 0)).name == "mma-u8s8"
    monkeypatch.setenv("MINIRES_ISA", "tensor-core")
    with pytest.raises(MiniresError, match="for a GPU it may be tensor-cores, turing, cuda-cores"):
        choose_instruction("u8s8", (9, 0))


def test_an_old_gpu_is_told() -> None:
    with pytest.raises(MiniresError, match=r"compute capability 7\.5, and mma-bf16 needs 8\.0"):
        choose_instruction("bf16", (7, 5))
    assert choose_instruction("u8s8", (7, 0)).name == "dp4a", "the best that it has"


def test_a_turing_card_multiplies_in_smaller_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_instruction("u8s8", (7, 5)).name == "mma-small-u8s8"
    assert choose_instruction("f16", (7, 5)).name == "mma-small-f16"
    assert choose_instruction("f32", (7, 5)).name == "fma"
    monkeypatch.setattr(driver, "open_gpu", lambda: pretend.GPU._replace(capability=(7, 5)))
    engine = laid_out("int8")
    engine.program((1, 3, 32, 32))
    assert engine.launcher.gemms
    assert all(gemm.turing for gemm in engine.launcher.gemms)
    assert {gemm.instruction for gemm in engine.launcher.gemms} == {"mma-small-u8s8"}


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ("[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY", "enough memory for a thing"),
        ("CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "driver is older than the compiler"),
        ("CUDA_ERROR_ECC_UNCORRECTABLE", "the GPU failed"),
    ],
)
def test_the_drivers_errors_are_sentences(told: str, sentence: str) -> None:
    for error in (CudaAPIError(2, told), CUDAError(told)):  # numba-cuda's, and NVIDIA's own
        with pytest.raises(MiniresError, match=sentence), driver.errors("a thing"):
            raise error
    with pytest.raises(KeyError), driver.errors("a thing"):
        raise KeyError(told)


def test_nothing_is_freed_on_a_gpu_that_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """numba-cuda's own list of what to free, which goes on trying once it has more than ten."""
    waiting = numba_driver._PendingDeallocs()
    monkeypatch.setattr(numba_driver, "_logger", logging.getLogger(__name__), raising=False)

    def fails(*_: Any) -> None:
        raise CudaAPIError(719, "CUDA_ERROR_LAUNCH_FAILED")

    def fail_in_a_run() -> None:
        with pytest.raises(MiniresError, match="the GPU failed"), driver.errors("a run"):
            fails()

    monkeypatch.setattr(cuda, "defer_cleanup", waiting.disable)
    monkeypatch.setattr(cuda, "synchronize", lambda: None)
    fail_in_a_run()
    assert not waiting.is_disabled, "the GPU still answers"
    monkeypatch.setattr(cuda, "synchronize", fails)
    for _ in range(2):
        fail_in_a_run()
    gc.collect()
    assert waiting.is_disabled
    for handle in range(100):
        waiting.add_item(fails, handle)
    driver.abandoned.close()
    with pytest.raises(CudaAPIError):
        waiting.clear()


def test_too_many_images_are_told_with_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def device_array(*_: Any) -> Any:
        raise CudaAPIError(2, "CUDA_ERROR_OUT_OF_MEMORY")

    engine = laid_out("int8")
    before = pretend.Cuda.device_array
    monkeypatch.setattr(pretend.Cuda, "device_array", device_array)
    with pytest.raises(
        MiniresError, match=r"for 2 images of 64 x 64, which take 0\.0 GB; take few"
    ):
        engine(seeded_input((2, 3, 64, 64)))
    monkeypatch.setattr(pretend.Cuda, "device_array", before)
    assert engine(seeded_input((2, 3, 64, 64))).shape == (2, 10), "it works afterwards"


def test_a_forked_child_is_told() -> None:
    with pytest.raises(MiniresError, match="spawn"):
        pretend.GPU._replace(process=-1).check_process()


def test_a_forked_child_cannot_open_the_gpu_that_its_parent_has_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driver, "opened_by", [-1])
    with pytest.raises(MiniresError, match="spawn"):
        OPEN_GPU()


def test_the_parents_process_may_go_on() -> None:
    pretend.GPU.check_process()


def test_the_backend_runs_what_api_says() -> None:
    assert ResNet50.backends["cuda"].precisions == tuple(FORMATS)


def test_modules_are_those_that_run() -> None:
    """The pretended functions take the place of these."""
    assert launches_module.__dict__["gemm_function"] is not gemm_module.gemm_function
    assert launches_module.__dict__["operators"] is not operators_module.operators


@pytest.mark.parametrize(
    ("precision", "narrow"),
    [("tf32", round_tf32_ref), ("fp16", round_f16_ref), ("bf16", round_bf16_ref)],
)
def test_weights_are_rounded_as_the_definition_does(precision: str, narrow: Any) -> None:
    weight = bundled(precision).params["fc"].weight
    engine = laid_out(precision)
    assert_same(engine._widen(np.asarray(engine._narrow(weight))), narrow(weight))
