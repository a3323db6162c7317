"""Check and time minires on an NVIDIA GPU, and PyTorch beside it: same card, weights and images.

    python benchmarks/gpu.py imagenet.safetensors PHOTOGRAPHS --out RESULTS [--compile SECONDS]

Outputs come first. INT8's logits of all photographs have to be the CPU's, bit for bit, and two
photographs go layer by layer against NumPy's definitions, in every precision. Only then is anything
timed: the whole network as one CUDA graph, images in the GPU's memory, by the GPU's own events.
Engines take turns; a figure is the median, with quartiles. PyTorch folds its BatchNorms, keeps
channels last and replays a graph, too; with --compile also what torch.compile makes by
max-autotune. That takes minutes, so you say how many seconds it has for each batch; if they are not
enough, the record says so. Without torch that part is left out. RESULTS gets gpu.json. The docs
show the one in docs/, as `tell` lays it out.
"""

import argparse
import contextlib
import datetime
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import minires
from minires.sources import find_images

PRECISIONS = ("int8", "fp16", "bf16", "tf32", "fp32")
BATCHES = (1, 8, 32, 128, 256)
COMPARED = (1, 128)  # batches that PyTorch runs, too
COMPILED = "PyTorch, torch.compile"
TURNS, REPLAYS = 5, 10
MLPERF = 88_714  # images/s: MLPerf inference v4.0, offline, one H100 SXM, TensorRT in INT8
# Of the largest logit: what rounding operands to so few bits may change, layer after layer.
BOUNDS = {"fp32": 1e-4, "tf32": 0.01, "fp16": 0.01, "bf16": 0.1}
LAYER_BOUNDS = {"fp32": 1e-4, "tf32": 2e-3, "fp16": 2e-3, "bf16": 1.6e-2}


def logits_of(model, x, batch=64):
    """Run a batch after another: (N, classes)."""
    return np.concatenate([model(x[i : i + batch]) for i in range(0, len(x), batch)])


# Outputs


def check(weights, x):
    """Compare outputs with the CPU's and the definitions'; return what to tell, or end."""
    fp32 = logits_of(minires.resnet50(weights), x, 8)
    told = {}
    for precision in PRECISIONS:
        model = minires.resnet50(weights, precision, "cuda")
        logits = logits_of(model, x)
        same = float((logits.argmax(1) == fp32.argmax(1)).mean())
        told[precision] = {"photographs": len(x), "labels_as_fp32": same}
        if precision == "int8":
            wanted = logits_of(minires.resnet50(weights, "int8"), x, 8)
            wrong = int((logits != wanted).sum())
            told[precision]["logits_that_differ_from_the_cpu"] = wrong
            ends_well = wrong == 0
        else:
            off = float(np.abs(logits - fp32).max() / np.abs(fp32).max())
            told[precision]["furthest_from_fp32"] = off
            ends_well = off <= BOUNDS[precision]
        told[precision]["layers"] = layers = check_layers(weights, precision, x[:2])
        print(precision, told[precision], flush=True)
        if not ends_well or layers["wrong"]:
            sys.exit(f"{precision} computes something else: nothing is timed")
    return told


def check_layers(weights, precision, x):
    """Hand each layer the definition's inputs, and compare what it makes of them."""
    numpy_model = minires.resnet50(weights, precision, "numpy")
    model = minires.resnet50(weights, precision, "cuda")
    count, wrong, furthest = 0, [], 0.0
    for step in numpy_model.steps(x):
        y = model._engine.run(x.shape, model[step.name], *step.inputs)
        count += 1
        if precision == "int8":
            wrong += [step.name] * (not np.array_equal(y, step.output))
            continue
        off = float(np.abs(y - step.output).max() / np.abs(step.output).max())
        furthest = max(furthest, off)
        wrong += [step.name] * (not off <= LAYER_BOUNDS[precision])
    return {"count": count, "wrong": wrong, "furthest": furthest}


# Times


def minires_runs(weights, batches):
    """Yield (engine, precision, batch) and a function that times some replays, in ms."""
    from numba import cuda

    for precision in PRECISIONS:
        model = minires.resnet50(weights, precision, "cuda")
        engine = model._engine
        for batch in batches:
            x = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), np.float32)
            model(x[: min(batch, 128)])
            program = engine.allocate((batch, 3, 224, 224))
            program.images.copy_to_device(x)
            engine.replay(program)
            engine.stream.synchronize()

            def run(engine=engine, program=program):
                times = []
                for _ in range(REPLAYS):
                    begin, end = cuda.event(), cuda.event()
                    begin.record(engine.stream)
                    engine.replay(program)
                    end.record(engine.stream)
                    engine.stream.synchronize()
                    times.append(begin.elapsed_time(end))
                return times

            yield ("minires", precision, batch), run


def torch_network(weights):
    """Make PyTorch's network, with its BatchNorms folded, and compare its logits with ours."""
    import torch
    import torchvision
    from safetensors.torch import load_file
    from torch.fx.experimental.optimization import fuse

    torch.backends.cudnn.benchmark = True
    network = torchvision.models.resnet50()
    network.load_state_dict(load_file(weights))
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((8, 3, 224, 224), np.float32))
    with torch.inference_mode():
        theirs = network.eval()(x).numpy()
    ours = minires.resnet50(weights)(x.numpy())
    off = float(np.abs(theirs - ours).max() / np.abs(theirs).max())
    print(f"PyTorch's logits in fp32 are {off:.1e} of the largest from minires's", flush=True)
    if not off < 1e-3:
        sys.exit("PyTorch runs another network: nothing is timed")
    return fuse(network.eval())


def graph_runs(network):
    """Yield what `minires_runs` does of PyTorch's graphs."""
    import torch

    kinds = {"fp16": (torch.float16, True), "tf32": (torch.float32, True),
             "fp32": (torch.float32, False)}  # fmt: skip
    for precision, (dtype, tf32) in kinds.items():
        for batch in COMPARED:
            model, x = on_card(network, dtype, batch)
            yield ("PyTorch, graph", precision, batch), graph_run(model, x, tf32)


def on_card(network, dtype, batch):
    """Copy a network to the card, and make images for it."""
    import copy

    import torch

    model = copy.deepcopy(network).to("cuda", dtype, memory_format=torch.channels_last)
    x = torch.randn(batch, 3, 224, 224, device="cuda", dtype=dtype)
    return model, x.contiguous(memory_format=torch.channels_last)


def graph_run(model, x, tf32):
    """Record a graph; return a function that times some replays, in ms."""
    import torch

    def allow():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32

    allow()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.inference_mode():
        with torch.cuda.stream(stream):
            for _ in range(3):
                model(x)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            model(x)
    torch.cuda.synchronize()

    def run():
        allow()
        times = []
        for _ in range(REPLAYS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        return times

    run.needs = model, x  # a graph holds its weights and images by address alone
    return run


def compile_network(network, batch, limit):
    """Have torch.compile tune for a batch; return a function to time, or None, and what to tell.

    `limit` is in seconds.
    """
    import torch

    model, x = on_card(network, torch.float16, batch)
    # The mode max-autotune would record a graph of its own, and launch it from Python at each call.
    # Recorded and replayed as all others are, it is faster.
    compiled = torch.compile(model, mode="max-autotune-no-cudagraphs", dynamic=False)

    def too_long(*_):
        raise TimeoutError(f"not tuned after {limit} s")

    before = signal.signal(signal.SIGALRM, too_long)
    started = time.perf_counter()
    # Again and again, because the tuner takes an error for one of a kernel that it tries.
    signal.setitimer(signal.ITIMER_REAL, limit, 1)
    try:
        with torch.inference_mode():
            off = float((compiled(x) - model(x)).abs().max() / model(x).abs().max())
        seconds = time.perf_counter() - started
        run = graph_run(compiled, x, True)
    except Exception as error:
        return None, " ".join(str(error).split())[:200]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if not off < BOUNDS["fp16"]:
        return None, f"its logits are {off:.1e} of the largest from PyTorch's own"
    return run, f"tuned in {seconds:.0f} s"


def time_in_turns(runs):
    """Time each of the runs some times, one after another, again and again."""
    for run in runs.values():
        run()
    times = {key: [] for key in runs}
    for _ in range(TURNS):
        for key, run in runs.items():
            times[key] += run()
    return {key: [float(q) for q in np.percentile(ms, (25, 50, 75))] for key, ms in times.items()}


# What is told


def tell(record):
    """Lay a recorded run out in Markdown: the table of times, and the ratios asked for."""
    found = {tuple(row[:3]): row[3:] for row in record["times"]}
    lines = ["| engine | precision | batch | ms (quartiles) | images/s |", "|---|---|--:|--:|--:|"]
    for (engine, precision, batch), (low, median, high) in found.items():
        speed = batch / median * 1000
        lines.append(
            f"| {engine} | {precision} | {batch} | {median:.3f} ({low:.3f} to {high:.3f}) "
            f"| {speed:,.0f} |"
        )
    asked = [f"- {line}" for line in [*ratios(found), *compiling(record)]]
    return "\n".join([f"{record['head']}.", "", *lines, "", *asked]) + "\n"


def ratios(found):
    """Tell the ratios of medians that say how minires compares."""
    speed = {key: key[2] / median for key, (_, median, _) in found.items()}
    lines = []
    for batch in COMPARED:
        theirs = [s for (engine, precision, n), s in speed.items()
                  if engine != "minires" and precision == "fp16" and n == batch]  # fmt: skip
        for precision in ("int8", "fp16"):
            if theirs:
                ratio = speed["minires", precision, batch] / max(theirs)
                lines.append(f"{precision} to PyTorch's best of fp16, batch {batch}: {ratio:.2f}x")
    ratio = speed["minires", "int8", 128] / speed["minires", "fp16", 128]
    lines.append(f"int8 to minires's own fp16, batch 128: {ratio:.2f}x")
    best = max(s for (engine, precision, _), s in speed.items()
               if engine == "minires" and precision == "int8") * 1000  # fmt: skip
    lines.append(f"share of MLPerf's {MLPERF:,} images/s: {best / MLPERF:.1%}")
    return lines


def compiling(record):
    """Tell where torch.compile did not come to an end."""
    told = record.get("compiling", {})
    timed = {row[2] for row in record["times"] if row[0] == COMPILED}
    return [f"torch.compile, batch {batch}: {outcome}" for batch, outcome in told.items()
            if int(batch) not in timed]  # fmt: skip


def commit():
    """Name the commit, if this is a checkout."""
    with contextlib.suppress(OSError):
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() or "no checkout"
    return "no checkout"


def main():
    """Check, time and tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--compile", type=int, metavar="SECONDS", default=0)
    arguments = parser.parse_args()
    told = check(arguments.weights, read(arguments.weights, arguments.photographs))
    print(tell(measure(arguments.weights, told, arguments.out, arguments.compile)))


def read(weights, folder):
    """Read all photographs of a folder: (N, 3, H, W)."""
    preset = minires.resnet50(weights).meta["preset"]
    return np.concatenate([minires.preprocess(file, preset) for file in find_images([folder])])


def measure(weights, checks, out, limit):
    """Time all engines, and write the record down; torch.compile has `limit` seconds a batch."""
    from numba import cuda

    card = cuda.get_current_device().name
    head = f"{card}, {datetime.date.today()}, {commit()}; {TURNS * REPLAYS} replays each, in turns"
    record = {"card": card, "head": head, "checks": checks, "times": []}
    runs, network = dict(minires_runs(weights, BATCHES)), None
    with contextlib.suppress(ImportError):
        network = torch_network(weights)
        runs |= dict(graph_runs(network))
    keep(record, time_in_turns(runs), out)
    if network and limit:  # last, since it takes minutes
        keep(record, time_compiled(network, runs, record, limit), out)
    return record


def time_compiled(network, runs, record, limit):
    """Time what torch.compile makes, beside the others in fp16 and int8 at the same batches."""
    record["compiling"], compiled = {}, {}
    for batch in COMPARED:
        run, record["compiling"][str(batch)] = compile_network(network, batch, limit)
        if run:
            compiled[COMPILED, "fp16", batch] = run
    beside = {key: run for key, run in runs.items()
              if key[1] in ("fp16", "int8") and key[2] in COMPARED}  # fmt: skip
    found = time_in_turns(compiled | beside)
    return {key: found[key] for key in compiled}


def keep(record, found, folder):
    """Add what was timed to the record, and write it down."""
    record["times"] += [[*key, *quartiles] for key, quartiles in found.items()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
