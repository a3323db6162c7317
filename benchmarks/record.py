"""Record what this machine's CPU does: the runs that the README and the book show beside yours.

    python benchmarks/record.py zen3-avx2 imagenet.safetensors examples/images/cat.jpg
    python benchmarks/record.py --show zen3-avx2

The first command measures the peaks, the ladder, the layers, the waterfall and the latency, with
the instruction set that is in use (MINIRES_ISA chooses another). It puts each part into
docs/cpu.json, under the name that you give, as soon as it is measured. Each output is compared
with the definition's before it is timed. Take a quiet machine: what speaks against a measurement
is kept in the run as the doubts of that part. With `--tries 5` it measures a part up to five times
while it is in doubt, and keeps the measurement with the fewest doubts. The second command measures
nothing: it writes a run into the README, and draws its waterfall.
"""

import argparse
import datetime
import functools
import json
import subprocess
import sys
from pathlib import Path

import minires
from minires.kernels.cpu import get_num_threads
from minires.kernels.isa import choose_isa
from minires.ladder import climb
from minires.measure.latency import measure_latency
from minires.measure.machine import cpu_name, measure_machine
from minires.measure.peak import doubts_about
from minires.measure.roofline import measure_layers
from minires.measure.text import around, to_json
from minires.measure.trust import measure_until_steady
from minires.measure.waterfall import measure_waterfall

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples"))
import recorded  # noqa: E402

PRECISIONS = ("fp32", "bf16", "int8")
SHOWN = ("fp32", "int8")  # in the README, and how long you wait


def commit():
    """Name the commit that is measured, or the version where there is no git."""
    named = ["git", "describe", "--always", "--dirty"]
    told = subprocess.run(named, capture_output=True, text=True, cwd=ROOT, check=False)
    return told.stdout.strip() or minires.__version__


def measure_peaks(_models, _data):
    """Measure the multiplying instructions in registers, and the memory's levels."""
    peaks, memory = measure_machine()
    told = [
        {
            "name": peak.instruction.name,
            "operands": peak.instruction.operands,
            "gops": peak.gops,
            "all_gops": peak.all_gops,
            "rate": peak.rate,
            "clock": peak.clock,
            "spread": peak.spread,
        }
        for peak in peaks
    ]
    doubts = [doubt for peak in peaks for doubt in peak.doubts] + doubts_about(memory)
    return {"peaks": told, "memory": memory}, doubts


def measure_ladders(_models, _data):
    """Climb the ladder in each precision."""
    ladders = {precision: list(climb.climb(precision)) for precision in PRECISIONS}
    return {"ladders": ladders}, climb.doubts_about(r for found in ladders.values() for r in found)


def measure_steps(models, data):
    """Time each layer of the network, in turns, beside its roofs."""
    found = measure_layers(models, models["fp32"].preprocess(data), runs=20)
    names = ("name", "kind", "seconds", "macs", "bytes", "gops", "intensity", "share", "bound",
             "of_roof")  # fmt: skip
    layers = {
        precision: [{name: getattr(row, name) for name in names} for row in rows]
        for precision, rows in found.items()
    }
    return {"layers": layers}, [d for rows in found.values() for d in rows[0].roofs.doubts]


def measure_fall(models, data):
    """Measure where the 4x goes."""
    fall = measure_waterfall(models, data, rounds=40)
    return {"waterfall": fall}, fall.doubts


def measure_waiting(models, data):
    """Measure the way from a file to a label, and batches."""
    shown = {precision: models[precision] for precision in SHOWN}
    found = measure_latency(shown, data, runs=100, batches=(1, 2, 4, 8))
    return {"latency": found}, [doubt for one in found for doubt in one.doubts]


PARTS = [measure_peaks, measure_ladders, measure_steps, measure_fall, measure_waiting]


def record(name, weights, image, tries):
    """Measure all parts, and put each into the file as soon as it is there.

    A part that is in doubt is measured up to `tries` times. The one with the fewest doubts stays.
    """
    models = {precision: minires.resnet50(weights, precision) for precision in PRECISIONS}
    run = {
        "machine": cpu_name(),
        "isa": choose_isa().name,
        "threads": get_num_threads(),
        "date": f"{datetime.datetime.now(datetime.UTC).date()}",
        "commit": commit(),
        "note": "",
        "doubts": {},
    }
    data = Path(image).read_bytes()
    for measure in PARTS:
        (told, doubts), _ = measure_until_steady(
            functools.partial(measure, models, data), lambda found: found[1], tries
        )
        run |= json.loads(to_json(told))
        part = next(iter(told))
        run["doubts"] |= {part: list(dict.fromkeys(doubts))}
        known = {}
        if recorded.FILE.exists():
            known = json.loads(recorded.FILE.read_text(encoding="utf-8"))
        known[name] = run
        recorded.FILE.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        print(f"{part}: {'; '.join(doubts) or 'nothing in doubt'}", flush=True)


def tell(run):
    """Lay out a run's ladder as the README has it, between its marks."""
    ladders = {precision: run.ladders[precision] for precision in SHOWN}
    title = f"{climb.describe_problem()}, on {run}"
    note = f"\n\n{run.note}" if run.note else ""
    return f"{climb.format_table(ladders, title)}{note}"


def show(name):
    """Put a run's ladder into the README between its marks, and draw its waterfall."""
    run, readme = recorded.run(name), ROOT / "README.md"
    before, after = around(readme, "ladder")
    readme.write_text(f"{before}\n{tell(run)}\n\n{after}", encoding="utf-8")
    if run.has("waterfall"):
        run.waterfall.plot(ROOT / "docs" / "waterfall.png")


def main():
    """Record a run, or show one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", nargs="?", help="what the run is called in docs/cpu.json")
    parser.add_argument("weights", nargs="?", help="of a ResNet-50 for 224 x 224 pixels")
    parser.add_argument("image", nargs="?", help="a photograph")
    text = "how often a part that is in doubt is measured, at most (1)"
    parser.add_argument("--tries", type=int, default=1, metavar="N", help=text)
    text = "put a run into the README, and draw docs/waterfall.png"
    parser.add_argument("--show", metavar="NAME", help=text)
    arguments = parser.parse_args()
    if arguments.show:
        show(arguments.show)
    elif arguments.image:
        record(arguments.name, arguments.weights, arguments.image, arguments.tries)
    else:
        parser.error("give NAME WEIGHTS IMAGE, or --show NAME")


if __name__ == "__main__":
    main()
