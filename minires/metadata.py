"""What a file of weights says of itself, checked before anything relies on it.

A file's metadata is text, and whoever made the file chose it. One preset asks for images of five
gigabytes, one scale makes every logit NaN. So both kinds of file, float and INT8, pass here.
"""

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from minires.errors import WeightsError, short
from minires.preprocess import read_preset
from minires.reference import QParams

MOST_NESTED = 16  # lists and objects inside each other; what minires writes has 3
LONGEST_NAME = 200  # characters of a label; the longest of ImageNet's has 121
# Networks are trained in float16 too, so no activation is beyond its largest number. Those of the
# bundled network and of ImageNet's stay below 25.
MOST_ACTIVATION = float(np.finfo(np.float16).max)
MOST_SCALE = 2 * MOST_ACTIVATION / 255


def read_json(text: str) -> Any:
    """Parse what a file has as JSON, if it is not nested beyond measure."""
    try:
        value = json.loads(text)
        if _depth(value) <= MOST_NESTED:
            return value
    except RecursionError:
        pass
    except ValueError as error:
        raise WeightsError(f"its metadata is no JSON ({short(str(error))})") from error
    raise WeightsError(f"refused: its metadata is nested more than {MOST_NESTED} times")


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


def read_meta(told: object, classes: int) -> dict[str, Any]:
    """Check what becomes a network's meta, and give it the types that it has there.

    `told` is as JSON had it. What minires does not use may be anything.
    """
    if not isinstance(told, dict):
        raise WeightsError(f"its metadata is {short(told)}; wanted names and values")
    meta = {key: READERS[key](value) if key in READERS else value for key, value in told.items()}
    categories = meta.get("categories")
    if categories is not None and len(categories) != classes:
        raise WeightsError(f"it names {len(categories)} categories for {classes} classes")
    return meta


def read_qparams(told: object, edges: Collection[str]) -> dict[str, QParams]:
    """Check the scale and zero point of each edge of an INT8 network."""
    qparams = {}
    for name, pair in _of_each_edge(told, edges, "scales").items():
        match pair:
            case [scale, zero_point] if (
                _is_number(scale, 0, MOST_SCALE) and type(zero_point) is int
            ):
                qparams[name] = QParams(np.float32(scale), zero_point)
        scale, zero_point = qparams.get(name, (0, 0))
        if not (scale > 0 and 0 <= zero_point <= 255):
            raise WeightsError(
                f"{name} has {short(pair)}; wanted a scale above 0 and at most {MOST_SCALE:g}, "
                "and a zero point from 0 to 255"
            )
    return qparams


def read_calibration(text: str, edges: Collection[str]) -> dict[str, Any]:
    """Check the ranges that came with float weights, and return a `Calibration`'s fields."""
    told = read_json(text)
    if not isinstance(told, dict):
        raise WeightsError(f"it is {short(told)}; wanted names and values")
    recipe = {key: value for key, value in told.items() if key not in ("ranges", "saturated")}
    limits = {}
    for name, limit in _of_each_edge(told.get("ranges"), edges, "ranges").items():
        match limit:
            case [low, high] if _is_number(low) and _is_number(high, low):
                limits[name] = (low, high)
            case _:
                raise WeightsError(
                    f"{name} has the range {short(limit)}; wanted two numbers, from "
                    f"{-MOST_ACTIVATION:.0f} to {MOST_ACTIVATION:.0f}"
                )
    shares = _shares(_of_each_edge(told.get("saturated"), edges, "shares"))
    return {"ranges": limits, "saturated": shares, **_observed(recipe)}


def _of_each_edge(told: object, edges: Collection[str], what: str) -> dict[str, Any]:
    if not isinstance(told, dict) or set(told) != set(edges):
        raise WeightsError(f"its {what} are not those of this network's edges")
    return told


def _is_number(
    value: object, least: float = -MOST_ACTIVATION, most: float = MOST_ACTIVATION
) -> bool:
    """Tell whether a value is a number between two others; NaN is none."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and least <= value <= most  # type: ignore[operator]


def _name(told: object) -> str:
    # What is not printable could move a terminal's cursor, and write over what stands there.
    if not isinstance(told, str) or not told.isprintable() or len(told) > LONGEST_NAME:
        raise WeightsError(
            f"{short(told)} is given as a name; wanted printable text of at most {LONGEST_NAME} "
            "characters"
        )
    return told


def check_categories(told: object) -> list[str]:
    """Check the names of classes."""
    if not isinstance(told, list):
        raise WeightsError(f"the categories are {short(told)}; wanted a list of names")
    return [_name(name) for name in told]


def _shares(told: object) -> dict[str, float]:
    if not isinstance(told, dict) or not all(_is_number(x, 0, 1) for x in told.values()):
        raise WeightsError("it tells of saturated values; wanted shares from 0 to 1")
    return told


def _observed(told: object) -> dict[str, Any]:
    match told:
        case {"observer": str(observer), "images": int(images), **more} if not more:
            return {"observer": _name(observer), "images": images}
    raise WeightsError(f"its calibration is {short(told)}; wanted an observer and how many images")


def _recipe(told: object) -> dict[str, Any]:
    """Check how a network became INT8; files made before the choice of roundings tell of none."""
    if not isinstance(told, dict):
        return _observed(told)
    chosen = {key: _name(told[key]) for key in ("rounding", "correction") if key in told}
    return _observed({key: told[key] for key in told if key not in chosen}) | chosen


# What checks each value that minires uses, by its name in a network's meta.
READERS: Mapping[str, Callable[[Any], Any]] = {
    "name": _name,
    "categories": check_categories,
    "preset": read_preset,
    "saturated": _shares,
    "calibration": _recipe,
}
