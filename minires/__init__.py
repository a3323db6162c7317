"""ResNet-50 inference from scratch: every operator in plain NumPy, and compiled by Numba."""

from typing import TYPE_CHECKING, Any

from minires.api import Prediction, classify, predict, resnet50
from minires.download import available_weights, get_weights
from minires.errors import DownloadError, ImageError, MiniresError, WeightsError
from minires.images import load_image
from minires.kernels.cpu import get_num_threads, set_num_threads
from minires.preprocess import Preset, preprocess

if TYPE_CHECKING:
    from minires.measure.profiler import profile

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


def __getattr__(name: str) -> Any:
    if name == "profile":  # imported only when used, because it needs Numba
        from minires.measure.profiler import profile

        return profile
    raise AttributeError(f"module 'minires' has no attribute {name!r}")
