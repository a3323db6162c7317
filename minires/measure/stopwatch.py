"""Where the time of many photographs goes: loading, the network, and all else.

Photographs are read while the network computes, so only waiting for them counts as all else.
"""

from time import perf_counter

from minires.backends import Ran
from minires.model import ResNet50


class Stopwatch:
    """Starts when it is made; `network` is told when the weights are loaded."""

    def __init__(self) -> None:
        self._begun = self._loaded = perf_counter()
        self._computing = 0.0  # seconds

    def network(self, model: ResNet50) -> None:
        """Watch a network that is loaded, and that nothing else watches."""
        self._loaded = perf_counter()
        model.record = self._record

    def _record(self, ran: Ran) -> None:
        self._computing += sum(float(ended) - float(started) for started, ended in ran.times)

    def tell(self, images: int) -> str:
        """Say how long so many images took since the weights were loaded."""
        whole = perf_counter() - self._loaded
        speed = images / whole
        return (
            f"{images} image{'s' * (images != 1)} in {whole:.2f} s, "
            f"{speed:.{1 if speed >= 1 else 3}f} a second: the network "
            f"{self._computing:.2f} s, waiting for photographs and the rest "
            f"{whole - self._computing:.2f} s; before that, loading took "
            f"{self._loaded - self._begun:.2f} s"
        )
