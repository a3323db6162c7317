"""Read machines, and what is claimed of them, from a TOML file: the appendix judges them."""

import os
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from minires.errors import MiniresError

KNOWN = Path(__file__).with_name("machines.toml")
FORM = (
    "each [[machine]] wants name, bandwidth_gb_s, tdp_w, kind and peak_tops, or cores, clock_ghz "
    "and ops_per_cycle"
)
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}  # of one value


class Claim(NamedTuple):
    """What somebody says of ResNet-50 on a machine."""

    images_per_second: float
    parts: int
    precision: str
    kind: str
    source: str
    upper_limit: bool = False  # it was less than that


class Machine(NamedTuple):
    """A machine as its papers have it."""

    name: str
    peaks: dict[str, float]  # 10^12 operations a second, by precision, of one part
    bandwidth: float  # 10^9 bytes a second
    watts: float
    dollars: float | None
    kind: str
    note: str
    claims: list[Claim]


def read_machines(path: str | os.PathLike[str] = KNOWN) -> list[Machine]:
    """Read the machines of a file, in its order; a bad file raises `MiniresError`."""
    try:
        entries = tomllib.loads(Path(path).read_text(encoding="utf-8"))["machine"]
        return [_machine(entry) for entry in entries]
    except OSError as error:
        raise MiniresError(f"{path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MiniresError(f"{path} is not TOML: {error}") from error
    except KeyError as error:
        raise MiniresError(f"{path}: {error} is missing; {FORM}") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise MiniresError(f"{path}: {error}; {FORM}") from error


def _machine(entry: dict[str, Any]) -> Machine:
    peaks = entry.get("peak_tops")
    kind = entry["kind"]
    if peaks is None:
        gigacycles = entry["cores"] * entry["clock_ghz"]  # a second, of all cores
        peaks = {p: ops * gigacycles / 1e3 for p, ops in entry["ops_per_cycle"].items()}
        kind = f"peak by arithmetic from cores, clock and operations a cycle; {kind}"
    machine = Machine(
        name=entry["name"],
        peaks=peaks,
        bandwidth=entry["bandwidth_gb_s"],
        watts=entry["tdp_w"],
        dollars=entry.get("price_usd"),
        kind=kind,
        note=entry.get("note", ""),
        claims=[Claim(**claim) for claim in entry.get("claims", [])],
    )
    figures = [machine.bandwidth, machine.watts, machine.dollars or 1, *peaks.values()]
    if not all(isinstance(figure, int | float) and figure > 0 for figure in figures):
        raise ValueError(f"{machine.name} has a figure that is no number above 0")
    for precision in [*peaks, *(claim.precision for claim in machine.claims)]:
        if precision not in BYTES or precision not in peaks:
            raise ValueError(f"{machine.name} has no peak in {precision}, or none is known by it")
    return machine
