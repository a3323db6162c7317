"""Where the time goes: profiles, this machine's peak, rooflines, the waterfall and latency."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minires.measure.machine import Roofs, measure_roofs
    from minires.measure.profiler import Event, Profile, Row, profile

__all__ = ["Event", "Profile", "Roofs", "Row", "measure_roofs", "profile"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported only when used, because it needs Numba
        from minires.measure import machine, profiler

        return getattr(machine if name in ("Roofs", "measure_roofs") else profiler, name)
    raise AttributeError(f"module 'minires.measure' has no attribute {name!r}")
