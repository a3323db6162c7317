"""ResNet-50 inference from scratch, in FP32 and INT8, every operator in plain NumPy."""

from minires.api import Prediction, classify, predict, resnet50
from minires.download import available_weights, get_weights
from minires.errors import DownloadError, ImageError, MiniresError, WeightsError
from minires.preprocess import Preset, load_image, preprocess

__all__ = [
    "DownloadError",
    "ImageError",
    "MiniresError",
    "Prediction",
    "Preset",
    "WeightsError",
    "available_weights",
    "classify",
    "get_weights",
    "load_image",
    "predict",
    "preprocess",
    "resnet50",
]
