"""Run chapters where their paths are right: at the project's root."""

import os
from pathlib import Path
from typing import Any


def at_root(gallery_conf: dict[str, Any], file: str) -> None:
    """Go to the project's root before and after each script."""
    os.chdir(Path(__file__).parents[1])
