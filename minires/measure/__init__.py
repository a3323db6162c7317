"""Where the time goes: profiles, this machine's peak, rooflines, the waterfall and latency."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minires.measure.machine import Roofs, measure_roofs
    from minires.measure.profiler import Profile, profile
    from minires.measure.rows import Event, Row

# Each public name with its file, which is imported only when the name is used: it needs Numba.
HOME = {
    "Event": "rows",
    "Profile": "profiler",
    "Roofs": "machine",
    "Row": "rows",
    "measure_roofs": "machine",
    "profile": "profiler",
}
__all__ = ["Event", "Profile", "Roofs", "Row", "measure_roofs", "profile"]


def __getattr__(name: str) -> Any:
    if name in HOME:
        return getattr(importlib.import_module(f"minires.measure.{HOME[name]}"), name)
    raise AttributeError(f"module 'minires.measure' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List what is public, for a prompt that completes names."""
    return __all__
