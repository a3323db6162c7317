"""Hold the docstrings of the public names, those that docs/api.rst lists, to numpydoc's checks."""

import pydoc
import re
import sys
import tomllib
from pathlib import Path

from numpydoc.validate import validate

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
CHECKS = set(SETTINGS["numpydoc_validation"]["checks"])
OF_A_CLASS = CHECKS - {"PR01"}  # its fields may be told beside them
NAMES = re.findall(r"^   (minires\.[\w.]+)$", (ROOT / "docs" / "api.rst").read_text("utf-8"), re.M)

found = [
    f"{name}: {code} {text}"
    for name in NAMES
    for code, text in validate(name)["errors"]
    if code in (OF_A_CLASS if isinstance(pydoc.locate(name), type) else CHECKS)
]
print(*found, f"{len(NAMES)} public docstrings were read", sep="\n")
sys.exit(bool(found) or len(NAMES) < 20)
