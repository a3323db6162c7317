"""The recorded runs of docs/cpu.json, and a table that puts your machine's figures beside them.

`benchmarks/record.py` makes a run, on a quiet machine. It is what minires measured, written as
JSON; here it becomes again what minires's own tables and plots take.
"""

import json
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np

from minires.ladder.climb import Result
from minires.measure.latency import Latency
from minires.measure.machine import describe_measurement
from minires.measure.peak import Bandwidth, doubt_gain
from minires.measure.text import format_columns
from minires.measure.trust import MARK, doubt_others, measure_until_steady
from minires.measure.waterfall import Part, Waterfall, doubt_convolutions

Found = TypeVar("Found")
PARTS = ("peaks", "memory", "ladders", "layers", "waterfall", "latency")
WIDTH = 46  # letters of a printed line, as a phone shows
FILE = Path(__file__).parents[1] / "docs" / "cpu.json"


class Run:
    """One recorded run.

    `machine`, `isa`, `threads`, `date`, `commit` and `note` say where it comes from. `has` tells
    which parts were measured, and `doubts` why not to rely on them.
    """

    def __init__(self, name: str, told: dict[str, Any]) -> None:
        self.name, self.told = name, told
        self.machine, self.isa, self.threads = told["machine"], told["isa"], told["threads"]
        self.date, self.commit, self.note = told["date"], told["commit"], told["note"]

    def __str__(self) -> str:
        cores = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.machine}, {self.isa}, {cores}; {self.date}, commit {self.commit}"

    def has(self, *parts: str) -> bool:
        """Say whether all these of `PARTS` were measured."""
        return all(part in self.told for part in parts)

    @property
    def doubts(self) -> list[str]:
        """Why not to rely on this run: the reasons of all its parts, each once."""
        return self.doubts_about(*PARTS)

    def doubts_about(self, *parts: str) -> list[str]:
        """Why not to rely on these parts: what was seen at the time, and where two disagree."""
        found = [doubt for part in parts for doubt in self.told["doubts"].get(part, [])]
        if "peaks" in parts and self.has("peaks"):
            first, *others = self.peaks
            found += [doubt for other in others for doubt in doubt_gain(other, first)]
        if "waterfall" in parts and self.has("waterfall"):
            found += self.waterfall.doubts
        return list(dict.fromkeys(found))

    @property
    def ladders(self) -> dict[str, list[Result]]:
        """What `climb` gave, by precision."""
        return {
            precision: [
                Result(**result | {"rung": SimpleNamespace(**result["rung"])}) for result in climbed
            ]
            for precision, climbed in self.told["ladders"].items()
        }

    @property
    def peaks(self) -> list[SimpleNamespace]:
        """One for each instruction: name, operands, gops of a core, all_gops, rate, clock."""
        found = [SimpleNamespace(**peak, threads=self.threads) for peak in self.told["peaks"]]
        for peak in found:
            peak.instruction = SimpleNamespace(name=peak.name)
        return found

    @property
    def memory(self) -> list[Bandwidth]:
        """How fast each level of the memory was read."""
        return [Bandwidth(**level) for level in self.told["memory"]]

    @property
    def waterfall(self) -> Waterfall:
        """Where the 4x went, for the ImageNet network at 224 x 224."""
        told = self.told["waterfall"]
        parts = {name: Part(**told[name]) for name in ("whole", "spread", "convolutions")}
        ablation = [tuple(cause) for cause in told["ablation"]]
        every = [Part(**part) for part in told["parts"]]
        doubts = [*told["doubts"], *doubt_convolutions(every, parts["convolutions"])]
        lists = {"parts": every, "ablation": ablation, "doubts": list(dict.fromkeys(doubts))}
        return Waterfall(**told | parts | lists)

    @property
    def layers(self) -> dict[str, list[SimpleNamespace]]:
        """By precision, each step that multiplies: its seconds, gops, share of the peak, roof."""
        return {
            precision: [SimpleNamespace(**row) for row in rows]
            for precision, rows in self.told["layers"].items()
        }

    @property
    def latency(self) -> list[Latency]:
        """The times of single images by parts, and the throughput of batches."""
        return [
            Latency(**one | {"seconds": {k: np.array(v) for k, v in one["seconds"].items()}})
            for one in self.told["latency"]
        ]


def runs(*parts: str) -> list[Run]:
    """Read the recorded runs that have these parts."""
    told = json.loads(FILE.read_text(encoding="utf-8"))
    return [run for name in told if (run := Run(name, told[name])).has(*parts)]


def run(name: str) -> Run:
    """Read one recorded run by its name."""
    return Run(name, json.loads(FILE.read_text(encoding="utf-8"))[name])


def measure_yours(
    name: str,
    measure: Callable[[], Found],
    doubts_about: Callable[[Found], list[str]],
    tries: int = 1,
) -> tuple[Found, list[str]]:
    """Measure something on this machine; return it and its doubts.

    It is in doubt also where other programs had too much of the cores' time. So `measure` has to
    compute all the while, on this thread among others. Most of what minires measures is measured
    again where it is in doubt; `tries` is for what is not.
    """

    def once() -> tuple[Found, float]:
        started, mine = time.perf_counter(), time.thread_time()
        found = measure()
        had = (time.thread_time() - mine) / (time.perf_counter() - started)
        return found, 1 - had

    (found, _), doubts = measure_until_steady(
        once, lambda pair: [*doubts_about(pair[0]), *doubt_others(name, pair[1])], tries
    )
    return found, doubts


def worked_out(text: str, doubts: Sequence[str]) -> str:
    """Write what was worked out from measurements, such as a ratio: not at all if in doubt."""
    return MARK if doubts else text


def side_by_side(
    head: str,
    rows: Sequence[Sequence[str]],
    recorded: Sequence[Run],
    parts: Sequence[str] = (),
    doubts: Sequence[str] = (),
) -> str:
    """Lay out figures of recorded runs beside yours, and say what to believe of both.

    A row has a name, a cell for each run, and yours last. `parts` are what was shown of the runs,
    and `doubts` those about yours: if there are any, a banner stands above.
    """
    table = format_columns([head, *(run.name for run in recorded), "yours"], rows)
    told = [*(tell(run, *parts) for run in recorded), _fill(f"yours: {describe_measurement()}.")]
    trust = _fill(banner(doubts))
    return "\n".join([trust, "", table, "", *told] if doubts else [table, "", *told, trust])


def tell(run: Run, *parts: str) -> str:
    """Say where a run comes from, and why not to rely on these parts of it."""
    doubts = run.doubts_about(*parts)
    in_doubt = [_fill(f"In doubt there: {_first(doubts)}.")] if doubts else []
    return "\n".join([_fill(f"{run.name}: {run}."), *in_doubt])


def banner(doubts: Sequence[str]) -> str:
    """Say in a sentence or two whether to believe what was measured on this machine."""
    if not doubts:
        return "Yours are steady: their runs agree."
    return (
        f"YOURS ARE IN DOUBT: {_first(doubts)}. Most likely something else uses this machine. "
        f"Rely on no figure with {MARK}. A {MARK} alone is a ratio that is not worth telling."
    )


def _first(doubts: Sequence[str]) -> str:
    more = f" (other doubts: {len(doubts) - 1})" if len(doubts) > 1 else ""
    return f"{doubts[0]}{more}"


def _fill(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
