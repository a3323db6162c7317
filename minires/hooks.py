"""Hooks: functions of yours that a layer calls after each run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from minires.errors import check_is


@dataclass(eq=False)
class HookHandle:
    """A hook that is on, as in torch; `Layer.register_forward_hook` returns it.

    Take it off by ``remove()``, or use it in a with statement, which does so at its end. An array
    that the hook returns takes the output's place.

    Examples
    --------
    >>> with model["conv1"].register_forward_hook(lambda layer, *_: print(layer.name)):
    ...     logits = model(x)
    conv1
    """

    hooks: list["HookHandle"] = field(repr=False)  # those of the same layer
    hook: Callable[..., Any]

    def remove(self) -> None:
        """Take the hook off; a second time does nothing."""
        self.hooks[:] = [other for other in self.hooks if other is not self]

    def __enter__(self) -> "HookHandle":
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def put_on(hooks: list[HookHandle], hook: Callable[..., Any]) -> HookHandle:
    """Add a hook to a layer's others."""
    check_is("hook", hook, Callable, "a function of layer, inputs and output")
    hooks.append(HookHandle(hooks, hook))
    return hooks[-1]
