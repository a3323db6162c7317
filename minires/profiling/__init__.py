"""Where the time goes: profiles, this machine's peak, rooflines, the waterfall and latency."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minires.profiling.profiler import Event, Profile, Row, profile

__all__ = ["Event", "Profile", "Row", "profile"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported where it is used, because it takes Numba along
        from minires.profiling import profiler

        return getattr(profiler, name)
    raise AttributeError(f"module 'minires.profiling' has no attribute {name!r}")
