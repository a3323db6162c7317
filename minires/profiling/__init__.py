"""Where the time goes: profiles, this machine's peak, rooflines, the waterfall and latency."""

from minires.profiling.machine import Roofs, measure_roofs
from minires.profiling.profiler import Event, Profile, Row, profile

__all__ = ["Event", "Profile", "Roofs", "Row", "measure_roofs", "profile"]
