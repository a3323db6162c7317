"""A GPU whose clock is a number: a launch takes as long as it says, and computes nothing."""

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numba import cuda

from minires.kernels.cuda import driver


class MadeUpGpu:
    """Takes the place of a GPU in `numba.cuda` and the driver; `now` is its clock, in seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.bandwidth = 1e12  # bytes a second, read and written
        self.stream = SimpleNamespace(synchronize=lambda: None)
        monkeypatch.setattr(cuda, "stream", lambda: self.stream)
        monkeypatch.setattr(cuda, "event", self.event)
        monkeypatch.setattr(cuda, "device_array", self.device_array)
        monkeypatch.setattr(driver, "recording", self.recording)

    def event(self) -> Any:
        """Make an event, which keeps the time when it is recorded."""
        made = SimpleNamespace()
        made.record = lambda _: setattr(made, "at", self.now)
        made.elapsed_time = lambda other: 1000 * (other.at - made.at)
        return made

    def takes(self, seconds: float) -> Callable[..., None]:
        """Make a launch that takes so long."""
        return lambda *_: setattr(self, "now", self.now + seconds)

    def device_array(self, size: int, dtype: Any) -> Any:
        """Make an array that can only be copied to."""
        copied = self.takes(2 * size * np.dtype(dtype).itemsize / self.bandwidth)
        address = {"data": (0, False)}
        return SimpleNamespace(
            copy_to_device=lambda _, stream: copied(), __cuda_array_interface__=address
        )

    @contextlib.contextmanager
    def recording(self, _: Any) -> Iterator[Any]:
        """Record how long launches take, and take that time when they are launched."""
        graph, began = SimpleNamespace(), self.now
        yield graph
        graph.launch, self.now = self.takes(self.now - began), began


@pytest.fixture
def made_up_gpu(monkeypatch: pytest.MonkeyPatch) -> MadeUpGpu:
    """Put one in a GPU's place."""
    return MadeUpGpu(monkeypatch)
