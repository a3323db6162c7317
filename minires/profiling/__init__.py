"""Where the time goes: profiles, this machine's peak, rooflines, the waterfall and latency."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minires.profiling.machine import Roofs, measure_roofs
    from minires.profiling.profiler import Event, Profile, Row, profile

__all__ = ["Event", "Profile", "Roofs", "Row", "measure_roofs", "profile"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported where it is used, because it takes Numba along
        from minires.profiling import machine, profiler

        return getattr(machine if name in ("Roofs", "measure_roofs") else profiler, name)
    raise AttributeError(f"module 'minires.profiling' has no attribute {name!r}")
