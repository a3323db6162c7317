"""The GPU's rungs where there is no GPU: their arrays in the host's memory, and no launch."""

from typing import Any

import numpy as np
import pytest
from numba import cuda


class OnHost(np.ndarray):
    """An array that says of itself that it lies on a GPU."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return dict(self.__array_interface__)


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `prepare` copy to the host; a kernel becomes (function, signature, options)."""
    monkeypatch.setattr(cuda, "to_device", lambda array: array.view(OnHost))
    monkeypatch.setattr(cuda, "device_array", lambda *of: np.empty(*of).view(OnHost))
    monkeypatch.setattr(
        cuda, "jit", lambda signature, **options: lambda function: (function, signature, options)
    )
