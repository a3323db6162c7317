"""Read the recorded runs of docs/cpu.json: what a chapter shows beside your machine's figures.

`benchmarks/record.py` makes them, on a quiet machine. A run is what minires measured, written as
JSON; here it becomes again what minires's own tables and plots take.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from minires.ladder.climb import Result
from minires.measure.latency import Latency
from minires.measure.peak import Bandwidth
from minires.measure.waterfall import Part, Waterfall

FILE = Path(__file__).parents[1] / "docs" / "cpu.json"


class Run:
    """One recorded run.

    `machine`, `isa`, `threads`, `date`, `commit` and `note` say where it comes from, and `doubts`
    what its own measurements contradict. `has` tells which parts were measured.
    """

    def __init__(self, name: str, told: dict[str, Any]) -> None:
        self.name, self.told = name, told
        self.machine, self.isa, self.threads = told["machine"], told["isa"], told["threads"]
        self.date, self.commit, self.note = told["date"], told["commit"], told["note"]
        self.doubts: list[str] = told["doubts"]

    def __str__(self) -> str:
        cores = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.machine}, {self.isa}, {cores}; {self.date}, commit {self.commit}"

    def has(self, *parts: str) -> bool:
        """Say whether parts were measured: ladders, peaks, memory, waterfall, layers, latency."""
        return all(part in self.told for part in parts)

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
        return [SimpleNamespace(**peak) for peak in self.told["peaks"]]

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
        return Waterfall(**told | parts | {"parts": every, "ablation": ablation})

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
