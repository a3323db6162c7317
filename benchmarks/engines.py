"""Time minires against PyTorch, ONNX Runtime and OpenVINO: same weights, images and threads.

    python benchmarks/engines.py imagenet.safetensors PHOTOGRAPHS --out RESULTS

Needs .[test], torch, torchvision and openvino; an engine that is not installed is left out. Every
engine is a process of its own, since their waiting threads would disturb each other in one, and
they take turns. Outputs are compared before anything is timed: in FP32 the logits, in INT8 how
many of the photographs get FP32's label. ONNX Runtime's static quantization (per channel, min-max,
50 photographs) makes the one INT8 model that it and OpenVINO run.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import minires
from minires.kernels.isa import available_isas
from minires.measure.peak import peak
from minires.measure.text import around
from minires.model import resnet50_layers
from minires.quantize import calibrate, quantize_model, save_int8
from minires.summary import summarize

NEEDS = {"minires": "numba", "pytorch": "torch", "onnxruntime": "onnxruntime",
         "openvino": "openvino"}  # fmt: skip
NAMES = {"minires": "minires", "pytorch": "PyTorch", "onnxruntime": "ONNX Runtime",
         "openvino": "OpenVINO"}  # fmt: skip
CONTESTS = {
    "fp32": ["minires", "pytorch", "onnxruntime", "openvino"],
    "int8": ["minires", "onnxruntime", "openvino"],
    "bf16": ["minires", "openvino"],
}
CALIBRATION = 50


# The models, in the forms that the engines take


def onnx_model(model):
    """Write the network down in ONNX, BatchNorms folded as minires folds them."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants = [], []
    for layer in model.layers[1:]:
        x = [name if name != "input" else "image" for name in layer.inputs]
        pads = {"kernel_shape": [layer.kernel] * 2, "strides": [layer.stride] * 2,
                "pads": [layer.padding] * 4}  # fmt: skip
        if layer.op in ("conv", "linear"):
            weight, bias = model.params[layer.name]
            if layer.op == "conv":
                ohwi = weight.reshape(layer.out_c, layer.kernel, layer.kernel, layer.in_c)
                weight = np.ascontiguousarray(ohwi.transpose(0, 3, 1, 2))
            for field, value in (("weight", weight), ("bias", bias)):
                constants.append(numpy_helper.from_array(value, f"{layer.name}.{field}"))
        parameters = [f"{layer.name}.weight", f"{layer.name}.bias"]
        if layer.op == "conv":
            steps = [("Conv", [x[0], *parameters], pads)]
            steps += [("Add", ["", x[1]], {})] if x[1:] else []
            steps += [("Relu", [""], {})] if layer.relu else []
        elif layer.op == "maxpool":
            steps = [("MaxPool", x, pads)]
        elif layer.op == "avgpool":
            steps = [("GlobalAveragePool", x, {}), ("Flatten", [""], {})]
        else:
            steps = [("Gemm", [*x, *parameters], {"transB": 1})]
        for i, (op, inputs, attributes) in enumerate(steps):
            output = layer.name if i + 1 == len(steps) else f"{layer.name}/{op}"
            named = [name or nodes[-1].output[0] for name in inputs]
            nodes.append(helper.make_node(op, named, [output], f"{layer.name}/{op}", **attributes))

    def value(name, *shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    images, logits = value("image", "N", 3, "H", "W"), value("fc", "N", model.layers[-1].out_c)
    graph = helper.make_graph(nodes, "resnet50", [images], [logits], constants)
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10)


def prepare(weights, folder, out):
    """Write photographs and models into `out`, once."""
    model = minires.resnet50(weights)
    files = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    x = np.concatenate([minires.preprocess(file, model.meta["preset"]) for file in files])
    np.save(out / "images.npy", x)
    spread = x[:: max(1, len(x) // CALIBRATION)][:CALIBRATION]
    save_int8(quantize_model(model, calibrate(model, spread[:, None], "minmax")),
              out / "int8.safetensors")  # fmt: skip
    if importlib.util.find_spec("onnx"):
        import onnx

        onnx.save(onnx_model(model), out / "fp32.onnx")
    if importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime"):
        from onnxruntime import quantization

        class Reader(quantization.CalibrationDataReader):
            rest = iter(spread)

            def get_next(self):
                image = next(self.rest, None)
                return None if image is None else {"image": image[None]}

        # Without VNNI ONNX Runtime multiplies by vpmaddubsw, which saturates unless weights have
        # seven bits: that is what it recommends there, and what it is given.
        exact = available_isas()[0].instructions["u8s8"].name in ("vpdpbusd", "tdpbusd")
        # And activations are u8, weights s8: its default, s8 for both, ran eight times slower in
        # OpenVINO and three times in ONNX Runtime, on a CPU with AMX.
        quantization.quantize_static(
            out / "fp32.onnx", out / "int8.onnx", Reader(), per_channel=True,
            reduce_range=not exact, activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8)  # fmt: skip


# The engines: each returns a function of a batch


def start_minires(precision, out, threads, weights):
    """Compile minires's kernels."""
    minires.set_num_threads(threads)
    file = out / "int8.safetensors" if precision == "int8" else weights
    return minires.resnet50(file, precision)


def start_pytorch(precision, out, threads, weights):
    """Freeze the graph in PyTorch, with channels last."""
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from minires.checkpoint import read_checkpoint
    from tests.torch_oracle import load_torchvision

    torch.set_num_threads(threads)
    network = load_torchvision().models.resnet50(weights=None).eval()
    state = {k: torch.from_numpy(np.array(v)) for k, v in read_checkpoint(weights).items()}
    network.load_state_dict(state, strict=False)
    network = network.to(memory_format=torch.channels_last)
    example = torch.zeros(1, 3, 224, 224).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        frozen = torch.jit.freeze(torch.jit.trace(network, example))

    def run(x):
        with torch.inference_mode():
            return frozen(torch.from_numpy(x).to(memory_format=torch.channels_last)).numpy()

    return run


def start_onnxruntime(precision, out, threads, weights):
    """Open a session of ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(out / f"{precision}.onnx", options,
                                           ["CPUExecutionProvider"])  # fmt: skip
    return lambda x: session.run(None, {"image": x})[0]


def start_openvino(precision, out, threads, weights):
    """Compile the model in OpenVINO, anew for each shape: that is what it is fastest with."""
    import openvino

    core, compiled = openvino.Core(), {}
    file = out / ("int8.onnx" if precision == "int8" else "fp32.onnx")
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY",
              "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}  # fmt: skip

    def run(x):
        if x.shape not in compiled:
            model = core.read_model(file)
            model.reshape(x.shape)
            compiled[x.shape] = core.compile_model(model, "CPU", config)
        return compiled[x.shape](x)[0]

    return run


def peak_memory():
    """Tell the most MiB that this process has had in memory; None where Linux is not there to ask.

    The resource module would tell the parent's, where that has had more.
    """
    status = Path("/proc/self/status")
    lines = status.read_text("utf-8").splitlines() if status.exists() else []
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), None)


def work(arguments):
    """Serve one engine: a line of standard input asks for memory, for logits or for times."""
    start = globals()[f"start_{arguments.worker}"]
    run = start(arguments.precision, arguments.out, arguments.threads, arguments.weights)
    images = np.load(arguments.out / "images.npy", mmap_mode="r")
    for line in sys.stdin:
        what, *numbers = line.split()
        if what == "memory":
            run(np.array(images[:1]))
            answer = peak_memory()
        elif what == "logits":
            logits = [run(np.array(images[i : i + 8])) for i in range(0, len(images), 8)]
            np.save(arguments.out / f"{arguments.worker}-{arguments.precision}.npy",
                    np.concatenate(logits))  # fmt: skip
            answer = []
        else:
            batch, size, count = map(int, numbers)
            x = np.resize(images[:batch], (batch, *images.shape[1:]))
            if size != x.shape[2]:
                x = np.pad(x, ((0, 0), (0, 0), *[(0, max(0, size - x.shape[2]))] * 2))
            x = np.ascontiguousarray(x[:, :, :size, :size])
            answer = []
            # Wake the threads, and bring back what the other engines put out of the caches.
            run(x)
            for _ in range(count):
                begin = time.perf_counter()
                run(x)
                answer.append(time.perf_counter() - begin)
        print("answer " + json.dumps(answer), flush=True)


def operations(size):
    """Count the multiplications and additions of an image."""
    return 2 * sum(row.macs for row in summarize(resnet50_layers(1000), size, size))


class Worker:
    """An engine in a process of its own."""

    def __init__(self, engine, precision, arguments):
        command = [sys.executable, __file__, str(arguments.weights), "-", "--out",
                   str(arguments.out), "--threads", str(arguments.threads), "--worker", engine,
                   "--precision", precision]  # fmt: skip
        threads = {"OMP_NUM_THREADS": str(arguments.threads)}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env={**os.environ, **threads})  # fmt: skip

    def ask(self, *words):
        """Send a line, and wait for the answer."""
        print(*words, file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line[7:])
        raise SystemExit(f"engines.py: {self.process.args} ended with {self.process.wait()}")

    def close(self):
        """Let the process end."""
        self.process.stdin.close()
        self.process.wait()


def contest(precision, engines, arguments, reference):
    """Compare one precision's outputs, then time its engines in turns."""
    minires.set_num_threads(arguments.threads)
    roof = peak(precision)  # the instruction's, before any engine is awake
    print(f"{precision}: {roof.instruction.name} peaks at {roof.all_gops:.0f} GOP/s, all threads")
    workers = {engine: Worker(engine, precision, arguments) for engine in engines}
    memory = {}
    for engine, worker in workers.items():
        memory[engine] = worker.ask("memory")
        worker.ask("logits")
        logits = np.load(arguments.out / f"{engine}-{precision}.npy")
        reference = logits if reference is None else reference
        agreement = np.mean(logits.argmax(1) == reference.argmax(1))
        error = np.abs(logits - reference).max()
        print(f"{precision} {engine}: FP32's label on {agreement:.1%}, a logit off by {error:.2g}, "
              f"at most {memory[engine]} MiB in memory at the first image")  # fmt: skip
        if error > 1e-3 if precision == "fp32" else agreement < 0.94:
            raise SystemExit(f"engines.py: {engine}'s {precision} is not the same network")
    rows = []
    for batch, size, rounds in arguments.sizes:
        turns = take_turns(workers, batch, size, rounds)
        for engine in workers:
            others = [e for e in workers if e != "minires"]
            ratios = [min(turn[e] for e in others) / turn["minires"] for turn in turns if others]
            seconds = np.array([turn[engine] for turn in turns])
            low, middle, high = np.percentile(seconds, [25, 50, 75])
            row = {"precision": precision, "engine": engine, "batch": batch, "size": size}
            row |= {"images_per_second": batch / middle, "spread": (high - low) / middle}
            row["peak_memory_mib"] = memory[engine]  # at the first image; each imports Numba
            row["of_peak"] = batch / middle * operations(size) / (1e9 * roof.all_gops)
            if engine == "minires" and ratios:
                row["to_best_other"] = middle_of(ratios)
            rows.append(row)
            ratio = row.get("to_best_other")
            told = f", {tell(ratio)} the best other" if ratio else ""
            print(f"  batch {batch} at {size}: {engine:<12}{batch / middle:8.1f} images/s (spread "
                  f"{row['spread']:.0%}), {row['of_peak']:.0%} of the peak{told}",
                  flush=True)  # fmt: skip
    for worker in workers.values():
        worker.close()
    return rows, reference


def take_turns(workers, batch, size, rounds):
    """Time one worker after another, again and again; seconds by worker, turn by turn."""
    for worker in workers.values():
        worker.ask("times", batch, size, 3)  # warm-up
    count = max(4, 16 // batch)
    return [
        {name: float(np.median(w.ask("times", batch, size, count))) for name, w in workers.items()}
        for _ in range(rounds)
    ]


def middle_of(ratios):
    """Find the median, and what 95% lie between."""
    return list(np.percentile(ratios, [50, 2.5, 97.5]))


def tell(ratio):
    """Write what `middle_of` has found."""
    return "{:.2f}x ({:.2f} to {:.2f})".format(*ratio)


def compare_precisions(rows, arguments):
    """Time minires's precisions in turns, and note in their rows how they compare with FP32."""
    own = {(r["precision"], r["batch"], r["size"]): r for r in rows if r["engine"] == "minires"}
    workers = {p: Worker("minires", p, arguments) for p in arguments.precisions}
    for batch, size, rounds in arguments.sizes:
        turns = take_turns(workers, batch, size, rounds)
        for precision in arguments.precisions:
            if precision == "fp32":
                continue
            ratio = middle_of([turn["fp32"] / turn[precision] for turn in turns])
            own[precision, batch, size]["to_fp32"] = ratio
            print(f"minires, batch {batch} at {size}: {precision} is {tell(ratio)} its own fp32")
    for worker in workers.values():
        worker.close()


def format_markdown(rows):
    """Lay out images a second as a table, a column an engine, and the memory as a sentence."""
    found = {(r["precision"], r["batch"], r["size"], r["engine"]): r for r in rows}
    ratios = {"to_best_other": "minires to the best other", "to_fp32": "to its own fp32"}
    lines = [["images/s", *NAMES.values(), *ratios.values()]]
    lines.append(["---"] * len(lines[0]))
    for group in dict.fromkeys(key[:3] for key in found):
        of_group = [found.get((*group, engine)) for engine in NAMES]
        precision, batch, size = group
        where = f"{precision}, batch {batch}" + (f", {size} x {size}" if size != 224 else "")
        speeds = [r["images_per_second"] if r else None for r in of_group]
        cells = [f"{s:.{0 if s >= 100 else 1}f}" if s else "" for s in speeds]
        row = found[*group, "minires"]
        cells += [tell(row[ratio]) if ratio in row else "" for ratio in ratios]
        lines.append([where, *cells])
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    memory = {NAMES[r["engine"]]: r["peak_memory_mib"] for r in rows if r["precision"] == "int8"}
    told = ", ".join(f"{mib} MiB with {engine}" for engine, mib in memory.items())
    most = "The most memory that a process has had up to its first image in INT8"
    return f"{text}\n\n{most}: {told}."


def plot(rows, path):
    """Draw images a second, engine by engine."""
    from matplotlib.figure import Figure

    groups = sorted({(r["precision"], r["batch"], r["size"]) for r in rows})
    figure = Figure(figsize=(10, 1 + 0.35 * len(rows)), layout="constrained")
    axes = figure.subplots()
    labels, values, colours = [], [], []
    for group in groups:
        for r in rows:
            if (r["precision"], r["batch"], r["size"]) == group:
                labels.append(f"{r['precision']}, {r['batch']} of {r['size']}²: {r['engine']}")
                values.append(r["images_per_second"])
                colours.append("tab:blue" if r["engine"] == "minires" else "tab:gray")
    axes.barh(labels, values, color=colours)
    axes.set(xlabel="images a second", xlim=(0, None))
    axes.invert_yaxis()
    figure.savefig(path, dpi=120)


def main():
    """Read the arguments; prepare, compare, time, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("photographs")
    parser.add_argument("--out", type=Path, required=True, help="folder for models and results")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"], choices=CONTESTS)
    parser.add_argument("--update", type=Path, metavar="FILE", help="put the table between the "
                        "marks <!-- engines --> and <!-- /engines --> of this")  # fmt: skip
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments)
    if arguments.update:  # told before the minutes that measuring takes
        around(arguments.update, "engines")
    arguments.out.mkdir(parents=True, exist_ok=True)
    prepare(arguments.weights, arguments.photographs, arguments.out)
    few = max(3, arguments.rounds // 5)
    arguments.sizes = [(1, 224, arguments.rounds), (8, 224, arguments.rounds),
                       (32, 224, few), (1, 320, few)]  # fmt: skip
    rows, reference = [], None
    for precision in arguments.precisions:
        engines = [e for e in CONTESTS[precision] if importlib.util.find_spec(NEEDS[e])]
        found, logits = contest(precision, engines, arguments, reference)
        reference = logits if reference is None else reference
        rows += found
    if {"fp32"} < set(arguments.precisions):
        compare_precisions(rows, arguments)
    (arguments.out / "engines.json").write_text(json.dumps(rows, indent=2) + "\n")
    if arguments.update:
        before, after = around(arguments.update, "engines")  # it may have been edited meanwhile
        arguments.update.write_text(f"{before}\n{format_markdown(rows)}\n\n{after}", "utf-8")
    if importlib.util.find_spec("matplotlib"):
        plot(rows, arguments.out / "engines.png")
    return None


if __name__ == "__main__":
    main()
