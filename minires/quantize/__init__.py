"""OFFLINE: turning the FP32 network into an INT8 one. Nothing here runs during inference."""

from minires.quantize.calibrate import Calibration, calibrate
from minires.quantize.convert import quantize_model, quantize_weights
from minires.quantize.correction import CORRECTIONS
from minires.quantize.int8_file import load_int8, save_int8
from minires.quantize.observers import OBSERVERS, qparams_of_range
from minires.quantize.rounding import ROUNDINGS

__all__ = [
    "CORRECTIONS",
    "OBSERVERS",
    "ROUNDINGS",
    "Calibration",
    "calibrate",
    "load_int8",
    "qparams_of_range",
    "quantize_model",
    "quantize_weights",
    "save_int8",
]
