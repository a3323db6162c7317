"""ResNet-50 inference from scratch: every operator in plain NumPy, and compiled by Numba."""

import importlib
from typing import TYPE_CHECKING, Any

from minires.api import Prediction, classify, predict, resnet50
from minires.download import available_weights, get_weights
from minires.errors import DownloadError, ImageError, MiniresError, WeightsError
from minires.images import load_image
from minires.kernels.cpu import get_num_threads, set_num_threads
from minires.preprocess import Preset, preprocess

if TYPE_CHECKING:
    from minires.measure.profiler import profile

__version__ = "0.1.0"
__all__ = [
    "DownloadError",
    "ImageError",
    "MiniresError",
    "Prediction",
    "Preset",
    "WeightsError",
    "available_weights",
    "classify",
    "get_num_threads",
    "get_weights",
    "load_image",
    "predict",
    "preprocess",
    "profile",
    "resnet50",
    "set_num_threads",
]
ROOMS = ("measure", "quantize")  # packages with public functions of their own


def __getattr__(name: str) -> Any:
    """Import what takes long, such as Numba, only when it is used."""
    if name == "profile":
        from minires.measure.profiler import profile

        return profile
    if name in ROOMS:
        return importlib.import_module(f"minires.{name}")
    raise AttributeError(f"module 'minires' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List what is public, for a prompt that completes names."""
    return [*__all__, *ROOMS, "__version__"]
