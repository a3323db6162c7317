"""Hooks: functions of the user's that see, and may replace, what a layer has computed."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

Hook = Callable[[Any, tuple[Any, ...], Any], Any]
# Told of steps that have run: the layers, the shape of the images that went through together
# (NCHW), how many calls went before for the same batch, and of each step when it started and ended,
# in seconds as time.perf_counter counts them.
Record = Callable[[Sequence[Any], tuple[int, ...], int, Iterable[Iterable[float]]], None]


@dataclass(eq=False)
class HookHandle:
    """A hook that is on, as in torch: what `Layer.register_forward_hook` returns.

    It comes off by ``remove()``, or at the end of a with statement.

    Attributes
    ----------
    hooks : list of HookHandle
        Those of the same layer.
    hook : callable
        Called as ``hook(layer, inputs, output)`` after each run of the layer. What it returns,
        unless None, takes the output's place.
    """

    hooks: list["HookHandle"] = field(repr=False)
    hook: Hook

    def remove(self) -> None:
        """Take the hook off; a second time does nothing."""
        self.hooks[:] = [other for other in self.hooks if other is not self]

    def __enter__(self) -> "HookHandle":
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()
