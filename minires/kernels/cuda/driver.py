"""The GPU itself: finding it, recording graphs, and its errors as sentences."""

import contextlib
import os
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

from minires.errors import MiniresError

OLDEST = (7, 5)  # compute capability of a Turing card: the first tensor cores for integers
AMPERE = (8, 0)  # since when memory is copied past the registers
opened_by: list[int] = []  # the process that first opened a GPU: its children cannot
abandoned = (
    contextlib.ExitStack()
)  # of a GPU that has failed: what keeps its memory from being freed


class Gpu(NamedTuple):
    """What the kernels need to know of a GPU."""

    name: str
    capability: tuple[int, int]
    processors: int  # streaming multiprocessors
    process: int  # that opened it

    def check_process(self) -> None:
        """Refuse a child that was forked: CUDA does not come along."""
        _check_process(self.process)


def _check_process(process: int) -> None:
    if os.getpid() != process:
        raise MiniresError(
            "a GPU that was in use before a fork cannot be used after it; "
            "start processes by multiprocessing's spawn"
        )


def open_gpu() -> Gpu:
    """Find the GPU; where there is none that can be used, say why."""
    from numba import cuda
    from numba.core.config import ENABLE_CUDASIM

    if ENABLE_CUDASIM:
        raise MiniresError(
            "NUMBA_ENABLE_CUDASIM simulates a GPU, which cannot run inline PTX; unset it"
        )
    for process in opened_by:
        _check_process(process)
    try:
        device = cuda.get_current_device()
    except Exception as error:
        raise MiniresError(
            f"no NVIDIA GPU can be used here ({_told(error)}); take backend numba or numpy"
        ) from error
    name = device.name.decode() if isinstance(device.name, bytes) else device.name
    capability = tuple(device.compute_capability)
    if capability < OLDEST:
        raise MiniresError(
            f"{name} has compute capability {capability[0]}.{capability[1]}; backend "
            f'"cuda" needs {OLDEST[0]}.{OLDEST[1]} or newer; take backend numba'
        )
    if not opened_by:
        opened_by.append(os.getpid())
    return Gpu(name, capability, device.MULTIPROCESSOR_COUNT, os.getpid())


@contextlib.contextmanager
def errors(what: str) -> Iterator[None]:
    """Turn the driver's errors into sentences; `what` needed the GPU's memory.

    They come from several libraries: numba-cuda calls some functions of the driver by itself, and
    others through NVIDIA's packages for Python.
    """
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("cuda.", "numba.cuda.cudadrv")):
            raise
        _abandon_if_failed()
        raise _sentence(_told(error), what) from error


def _abandon_if_failed() -> None:
    """Free nothing any more on a GPU that does not answer.

    A kernel that fails takes all memory of the process with it. numba-cuda would still try to free
    each array, and print a traceback for each when the process ends.
    """
    from numba import cuda

    try:
        cuda.synchronize()
    except Exception:
        with contextlib.suppress(Exception):  # where there was no GPU to begin with
            abandoned.enter_context(cuda.defer_cleanup())


def _sentence(told: str, what: str) -> MiniresError:
    """Say what an error of the driver's means; `what` needed the GPU's memory."""
    if "OUT_OF_MEMORY" in told.upper():
        return MiniresError(
            f"the GPU has not enough memory for {what}; take fewer images at once, or end what "
            "else runs on it"
        )
    if "PTX" in told.upper():
        return MiniresError(
            f"the GPU's driver is older than the compiler ({told}); update the driver, or "
            'install numba-cuda for an older one: pip install "numba-cuda[cu12]"'
        )
    return MiniresError(f"the GPU failed: {told}; a new process may find it well")


def _told(error: Exception) -> str:
    told = getattr(error, "msg", error)  # numba-cuda's alone, without its number in front
    return " ".join(str(told).split())[:200]


class Graph:
    """Launches that were recorded, ready to be run again by one call."""

    def __init__(self) -> None:
        self.executable: Any = None

    def launch(self, stream: Any) -> None:
        """Run them all, in order."""
        from cuda.bindings import driver as api

        _check(api.cuGraphLaunch(self.executable, int(stream.handle)))


def record_event(event: Any, stream: Any) -> None:
    """Have an event note the time each time that the graph comes to it."""
    from cuda.bindings import driver as api

    external = api.CUevent_record_flags.CU_EVENT_RECORD_EXTERNAL
    _check(api.cuEventRecordWithFlags(int(event.handle), int(stream.handle), external))


@contextlib.contextmanager
def recording(stream: Any) -> Iterator[Graph]:
    """Record what is launched on a stream, in place of running it."""
    from cuda.bindings import driver as api
    from numba import cuda

    graph = Graph()
    handle = int(stream.handle)
    mode = api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    with cuda.defer_cleanup():  # memory cannot be freed while launches are recorded
        _check(api.cuStreamBeginCapture(handle, mode))
        try:
            yield graph
        except BaseException:
            api.cuStreamEndCapture(handle)  # fails too; the first error is the one to tell
            raise
        recorded = _check(api.cuStreamEndCapture(handle))
    try:
        graph.executable = _check(api.cuGraphInstantiate(recorded, 0))
    finally:
        api.cuGraphDestroy(recorded)
    weakref.finalize(graph, api.cuGraphExecDestroy, graph.executable).atexit = False


def _check(answer: tuple[Any, ...]) -> Any:
    status, *rest = answer
    if int(status) != 0:
        raise _sentence(status.name, "a recorded run")
    return rest[0] if rest else None
