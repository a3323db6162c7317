"""torchvision, where it is installed: the oracle that the FP32 network is held to."""

from types import ModuleType
from typing import Any

import pytest

_keep: list[Any] = []  # a torch.library.Library undoes its definitions when it is collected


def load_torchvision() -> ModuleType:
    """Import torchvision or skip the test.

    torchvision's wheel on the package index is built for a CUDA torch and refuses to import
    beside a CPU one, because two operators that ResNet-50 never uses are missing. Declaring
    their schemas is enough.
    """
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not _keep:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        _keep.append(library)
    torchvision: ModuleType = pytest.importorskip("torchvision", reason="no torchvision")
    return torchvision
