"""What a campaign aims at."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple


class Target(NamedTuple):
    """A kind of input: what makes a mutant, and what has to read or refuse it."""

    name: str
    make: Callable[[Random, Path], bytes]  # of chance alone; the folder is there to work in
    read: Callable[[Path], object]
