"""Record what this machine's CPU does, and show a recorded run: what the README tells of one.

    python benchmarks/record.py imagenet.safetensors examples/images/cat.jpg --into docs/cpu.json
    python benchmarks/record.py --show docs/cpu.json --readme README.md --plots docs

The first command measures the ladder, the peaks and the waterfall with the instruction set that is
in use (MINIRES_ISA chooses another), and puts them into the file under that set's name, beside the
runs that are there. Each rung's output is checked before it is timed. Take a quiet machine: a run
whose own measurements contradict each other is not recorded. The second command lays a run out
again, as the README's table and as pictures, and measures nothing.
"""

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import minires
from minires.kernels.cpu import get_num_threads
from minires.kernels.isa import choose_isa
from minires.ladder import climb
from minires.measure.machine import describe_machine, measure_machine
from minires.measure.text import around, to_json
from minires.measure.waterfall import Part, Waterfall, measure_waterfall, plot_waterfall

LADDERS = ("fp32", "int8", "bf16")
SHOWN = ("fp32", "int8")  # in the README, and in the plot
NETWORKS = ("fp32", "bf16", "int8")
ROUNDS = 40  # of the waterfall


def commit():
    """Name the commit that is measured, or what stands for it in a copy without git."""
    named = ["git", "describe", "--always", "--dirty"]
    told = subprocess.run(named, capture_output=True, text=True, cwd=Path(__file__).parent)
    return told.stdout.strip() or minires.__name__


def measure(weights, image):
    """Measure all that a record has: the ladders, the peaks and the waterfall."""
    ladders = {precision: list(climb.climb(precision)) for precision in LADDERS}
    peaks, memory = measure_machine()
    models = {precision: minires.resnet50(weights, precision) for precision in NETWORKS}
    fall = measure_waterfall(models, Path(image).read_bytes(), rounds=ROUNDS)
    doubts = climb.doubts_about(result for ladder in ladders.values() for result in ladder)
    doubts += [doubt for peak in peaks for doubt in peak.doubts] + fall.doubts
    return {
        "machine": describe_machine(),
        "threads": get_num_threads(),
        "date": f"{datetime.date.today()}",
        "commit": commit(),
        "doubts": doubts,
        "ladders": {
            precision: [
                [r.rung.name, r.rung.idea, r.seconds, r.spread, r.gops, r.share, r.rung.threads]
                for r in ladder
            ]
            for precision, ladder in ladders.items()
        },
        "peaks": [[p.instruction.name, p.gops, p.all_gops] for p in peaks],
        "memory": json.loads(to_json(memory)),
        "waterfall": json.loads(to_json(fall)),
    }


def ladders_of(run):
    """Read a record's ladders, as `climb.climb` gave them."""
    return {
        precision: [
            climb.Result(SimpleNamespace(name=name, idea=idea, threads=threads), *figures)
            for name, idea, *figures, threads in rows
        ]
        for precision, rows in run["ladders"].items()
    }


def waterfall_of(run):
    """Read a record's waterfall, as `measure_waterfall` gave it."""
    told = dict(run["waterfall"])
    for part in ("whole", "spread", "convolutions"):
        told[part] = Part(**told[part])
    told["parts"] = [Part(**part) for part in told["parts"]]
    return Waterfall(**told)


def head(run):
    """Name a run in a line: where, when and what."""
    return f"{run['machine']}; {run['date']}, {run['commit']}"


def show(run, readme, plots):
    """Put a run's ladder into the README between its marks, and draw the pictures."""
    ladders = {p: ladder for p, ladder in ladders_of(run).items() if p in SHOWN}
    table = climb.format_table(ladders)
    if readme:
        before, after = around(readme, "ladder")
        readme.write_text(f"{before}\n{table}\n\n{after}", encoding="utf-8")
    if plots:
        title = f"{climb.describe_problem()}, on {head(run)}"
        climb.plot(ladders, plots / "ladder.png", title)
        plot_waterfall(waterfall_of(run), plots / "waterfall.png")
    print(f"{head(run)}\n\n{table}")


def main():
    """Record a run, or show one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("weights", nargs="?", help="of a ResNet-50 for 224 x 224 pixels")
    parser.add_argument("image", nargs="?", help="a photograph")
    parser.add_argument("--into", type=Path, metavar="FILE", help="the .json that gets the run")
    text = "record it although its own measurements contradict each other; it keeps its doubts"
    parser.add_argument("--doubtful", action="store_true", help=text)
    parser.add_argument("--show", type=Path, metavar="FILE", help="lay out a run of this .json")
    parser.add_argument("--isa", default="avx512bf16", help="which run to show: %(default)s")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="gets the ladder's table")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="gets the pictures")
    arguments = parser.parse_args()
    if arguments.show:
        runs = json.loads(arguments.show.read_text(encoding="utf-8"))
        show(runs[arguments.isa], arguments.readme, arguments.plots)
        return
    if not (arguments.image and arguments.into):
        parser.error("give WEIGHTS IMAGE --into FILE, or --show FILE")
    found = measure(arguments.weights, arguments.image)
    if found["doubts"] and not arguments.doubtful:
        sys.exit(f"not recorded, for the machine was not quiet: {'; '.join(found['doubts'])}")
    runs = {}
    if arguments.into.exists():
        runs = json.loads(arguments.into.read_text(encoding="utf-8"))
    runs[choose_isa().name] = found
    arguments.into.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    print(head(found))


if __name__ == "__main__":
    main()
