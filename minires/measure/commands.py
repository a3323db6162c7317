"""The commands that measure: ``minires ladder``, ``profile``, ``peak`` and ``roofline``.

A command imports modules that need Numba only when it runs, so that ``minires --help`` is quick.
"""

import json
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from minires import api, options
from minires.backends import check_backend
from minires.errors import MiniresError
from minires.images import load_image
from minires.layers import Array
from minires.measure import plots
from minires.measure.groups import GROUPS, SORTS
from minires.measure.session import rounds, session
from minires.model import ResNet50
from minires.notice import tell
from minires.options import Parser
from minires.preprocess import preprocess
from minires.writing import check_folder

if TYPE_CHECKING:
    from minires.measure.peak import Peak


def add_ladder(parser: Parser) -> None:
    """Add the options of `ladder`."""
    options.precisions(parser, "fp32", "int8")
    _backend(parser)
    options.threads(parser)
    _quick(parser)
    options.plot(parser)
    text = (
        "put the table between two marks in a Markdown file: <!-- ladder --> and <!-- /ladder -->"
    )
    text += ", with ladder-cuda in place of ladder for backend cuda"
    parser.add_argument("--update", type=options.path, metavar="FILE", help=text)
    text = "measure nothing: print a rung's source, and the loop that LLVM made of it"
    parser.add_argument("--show", metavar="RUNG", help=text)


def ladder(arguments: Namespace) -> int:
    """Climb from a convolution's definition to the engine: check each rung, then time it."""
    from minires.measure.text import around

    _check(arguments)
    if arguments.show:
        return _show_rung(arguments)
    mark, climb = LADDERS[arguments.backend]
    if arguments.update:  # a bad file should be told before measuring, which takes a minute
        around(arguments.update, mark)
    with session(arguments.quick):
        table = climb(arguments)
    if arguments.update:
        before, after = around(arguments.update, mark)  # it may have been edited meanwhile
        arguments.update.write_text(f"{before}\n{table}\n\n{after}", encoding="utf-8")
    print(table)
    return 0


def _show_rung(arguments: Namespace) -> int:
    if arguments.backend != "numba":
        raise MiniresError("--show prints the CPU's rungs; leave --backend out")
    if arguments.plot or arguments.update or arguments.quick:
        raise MiniresError("--show measures nothing; leave --plot, --update and --quick out")
    from minires.ladder.show import show

    print("\n\n".join(show(arguments.show, precision) for precision in arguments.precisions))
    return 0


def _climb_cpu(arguments: Namespace) -> str:
    from minires.ladder.climb import Ladder

    found = Ladder.climb(*arguments.precisions)
    if arguments.plot:
        found.plot(arguments.plot, arguments.dark)
    return str(found)


def _climb_gpu(arguments: Namespace) -> str:
    from minires.kernels.cuda.driver import open_gpu

    gpu = open_gpu()  # before the rungs, whose compiler may not be there either
    from minires.ladder.cuda import climb

    for precision in arguments.precisions:
        climb.rungs(precision)
    results = {precision: climb.climb(precision) for precision in arguments.precisions}
    if arguments.plot:
        climb.plot(results, gpu, arguments.plot, arguments.dark)
    return climb.format_table(results, gpu)


# By the backend: the table's mark in a file, and what makes it.
LADDERS = {"numba": ("ladder", _climb_cpu), "cuda": ("ladder-cuda", _climb_gpu)}


def _check(arguments: Namespace) -> None:
    """Refuse what could not be done or shown, before anything is measured."""
    arguments.precisions = options.chosen_precisions(arguments)
    for precision in arguments.precisions:
        check_backend(ResNet50.backends, getattr(arguments, "backend", "numba"), precision)
    if arguments.plot:
        plots.check(arguments.plot)
    elif arguments.dark:
        raise MiniresError("--dark changes a plot; give --plot FILE with it")


def _load(arguments: Namespace) -> dict[str, ResNet50]:
    """Load the networks to be measured, by precision."""
    weights = options.chosen_weights(arguments)
    own = options.own(arguments)
    return {p: api.resnet50(weights, p, arguments.backend, **own) for p in arguments.precisions}


def _quick(parser: Parser) -> None:
    """Add --quick."""
    text = "measure fewer rounds, and repeat none that differ: sooner, but less certain"
    parser.add_argument("--quick", action="store_true", help=text)


def _backend(parser: Parser) -> None:
    """Add --backend, for what measures the CPU or a GPU."""
    text = "numba: compiled for the CPU; cuda: for an NVIDIA GPU. Default: %(default)s"
    parser.add_argument("--backend", default="numba", choices=tuple(LADDERS), help=text)


def add_profile(parser: Parser) -> None:
    """Add the options of `profile`."""
    parser.add_argument("image", type=options.path, help="a photograph")
    options.weights(parser)
    options.preset(parser)
    options.offline(parser)
    options.precisions(parser, "fp32", "bf16", "int8")
    _backend(parser)
    options.number(parser, "--batch", 1, "how many copies of the image go together")
    text = "what a row is. Default: a stage"
    parser.add_argument("--group", choices=tuple(GROUPS), help=text)
    text = "the order of the rows. Default: as they run"
    parser.add_argument("--sort", choices=tuple(SORTS), help=text)
    options.threads(parser)
    _quick(parser)
    text = "how many runs are measured: 30 (5 with --quick), or 200 images (20) with --latency"
    parser.add_argument("--runs", type=options.at_least(1), metavar="N", help=text)
    text = "time the whole way instead, from a file's bytes to the label, and throughput by batch"
    parser.add_argument("--latency", action="store_true", help=text)
    options.plot(parser)
    text = "write a .json that Perfetto opens"
    parser.add_argument("--trace", type=options.path, metavar="FILE", help=text)
    options.json_answer(parser)


def profile(arguments: Namespace) -> int:
    """Tell where an image's time goes, and where the 4x of INT8 goes."""
    _check(arguments)
    if arguments.trace:
        check_folder(arguments.trace)
    if arguments.latency and arguments.trace:
        raise MiniresError("--trace records steps, and --latency the whole way; give one of them")
    if arguments.latency and arguments.backend != "numba":
        raise MiniresError("--latency times the CPU's kernels; leave --backend out")
    if arguments.latency and arguments.batch > 1:
        raise MiniresError("--latency has batches of its own; leave --batch out")
    if arguments.latency and (arguments.group or arguments.sort):
        raise MiniresError("--latency has no steps; leave --group and --sort out")
    if arguments.json and arguments.sort:
        raise MiniresError("--sort orders the table, and --json has none; leave --sort out")
    load_image(arguments.image)  # a bad image should be told before weights are downloaded
    data = arguments.image.read_bytes()
    models = _load(arguments)
    with session(arguments.quick):
        if arguments.latency:
            _tell_latency(models, data, arguments)
        else:
            _tell_profiles(models, data, arguments)
    return 0


def _tell_latency(models: dict[str, ResNet50], data: bytes, arguments: Namespace) -> None:
    from minires.measure import latency
    from minires.measure.peak import peak
    from minires.measure.text import to_json

    found = latency.measure_latency(models, data, arguments.runs or rounds(200, 20))
    _warn([peak(precision) for precision in models])
    if arguments.json:
        print(to_json(found))
    else:
        print("\n\n".join(latency.format_latency(of_model) for of_model in found))
    if arguments.plot:
        latency.plot_latency(found, arguments.plot, arguments.dark)


def _tell_profiles(models: dict[str, ResNet50], data: bytes, arguments: Namespace) -> None:
    from minires.measure import machine, profiler, waterfall
    from minires.measure.text import to_json
    from minires.measure.trace import write_chrome_trace

    runs = arguments.runs or rounds(30, 5)
    on_gpu = arguments.backend == "cuda"
    group = arguments.group or "stage"
    first = next(iter(models.values()))
    x = preprocess(data, first.meta["preset"])  # (1, 3, H, W)
    x = np.repeat(x, arguments.batch, axis=0)
    measure_roofs = machine.measure_roofs
    if on_gpu:
        first(x)  # tells what is missing, before modules that need it are imported
        from minires.measure import gpu_waterfall
        from minires.measure.gpu import measure_roofs

        if len(models) > 1:
            gpu_waterfall.check_images(x)  # before all the measuring
    profiles = profiler.profile_in_turns(models, x, runs)
    roofs = {precision: measure_roofs(precision) for precision in models}
    _warn([])  # only of a quota, because doubts stand beneath the tables
    fall: Any = None
    told = ""
    if on_gpu and len(models) > 1:
        fall = gpu_waterfall.measure_waterfall(models, profiles, roofs, x, runs)
        told = gpu_waterfall.format_waterfall(fall)
    elif {"fp32", "int8"} <= models.keys() and len(x) == 1:
        fall = waterfall.measure_waterfall(models, data, group, runs)
        told = waterfall.format_waterfall(fall)
    if arguments.trace:
        write_chrome_trace(arguments.trace, list(profiles.values()))
    if arguments.plot and fall:
        fall.plot(arguments.plot, arguments.dark)
    elif arguments.plot:
        next(iter(profiles.values())).plot(arguments.plot, group, arguments.dark)
    if arguments.json:
        rows = [json.loads(prof.to_json(roofs[p])) for p, prof in profiles.items()]
        print(to_json({"profiles": rows, "waterfall": fall}))
    else:
        by = group, arguments.sort or "order"
        tables = [prof.table(*by, roofs[p]) for p, prof in profiles.items()]
        print("\n\n".join([*tables, told] if told else tables))


def add_peak(parser: Parser) -> None:
    """Add the options of `peak`."""
    _backend(parser)
    options.threads(parser)
    _quick(parser)
    options.json_answer(parser)


def peak(arguments: Namespace) -> int:
    """Measure this machine: each multiplying instruction, one core and all, and the memory."""
    from minires.measure.text import to_json

    with session(arguments.quick):
        answer, table = PEAKS[arguments.backend]()
        print(to_json(answer) if arguments.json else table())
    return 0


def _peak_of_cpu() -> tuple[dict[str, Any], Callable[[], str]]:
    from minires.measure import machine

    peaks, memory = machine.measure_machine()
    _warn(peaks)
    answer = {"machine": machine.describe_machine(), "peaks": peaks, "memory": memory}
    return answer, lambda: machine.format_machine(peaks, memory)


def _open_gpu() -> tuple[Any, Any]:
    """Open the GPU, and import what measures it."""
    from minires.kernels.cuda.driver import open_gpu

    opened = open_gpu()  # before what needs a compiler: if there is no GPU, say that
    from minires.measure import gpu

    return opened, gpu


def _peak_of_gpu() -> tuple[dict[str, Any], Callable[[], str]]:
    _, machine = _open_gpu()
    gpu, peaks, memory = machine.measure_gpu()
    answer = {"machine": machine.describe_gpu(gpu), "peaks": peaks, "memory": memory}
    return answer, lambda: machine.format_gpu(gpu, peaks, memory)


# By the backend: what measures; it gives the answer, and a function that lays it out as a table.
PEAKS = {"numba": _peak_of_cpu, "cuda": _peak_of_gpu}


def add_roofline(parser: Parser) -> None:
    """Add the options of `roofline`."""
    options.weights(parser)
    options.preset(parser)
    options.offline(parser)
    options.precisions(parser, "fp32", "int8")
    _backend(parser)
    options.input_size(parser)
    options.threads(parser)
    _quick(parser)
    options.plot(parser)


def roofline(arguments: Namespace) -> int:
    """Put every layer on the CPU's roofline, or on a GPU's."""
    _check(arguments)
    options.check_size(arguments, arguments.precisions)
    models = _load(arguments)
    facts = next(iter(models.values())).meta
    shape = (arguments.batch, 3, *options.chosen_size(arguments, facts["preset"]))
    x = np.random.default_rng(0).standard_normal(shape, np.float32)  # fine for measuring speed
    with session(arguments.quick):
        _tell_roofline(models, x, f"{facts['name']}, {' x '.join(map(str, shape))}", arguments)
    return 0


def _tell_roofline(
    models: dict[str, ResNet50], x: Array, network: str, arguments: Namespace
) -> None:
    from minires.measure import roofline as roofs
    from minires.measure.machine import describe_measurement

    measure_roofs = None  # the CPU's
    machine = ""
    if arguments.backend == "cuda":
        opened, gpu = _open_gpu()
        measure_roofs = gpu.measure_roofs
        machine = gpu.describe_gpu(opened)
    layers = roofs.measure_layers(models, x, measure_roofs, rounds(10, 3))
    if arguments.backend == "numba":
        from minires.measure.peak import peak

        _warn([peak(precision) for precision in models])
    title = f"{network}, on {describe_measurement(machine)}"
    print(roofs.format_layers(layers, title))
    if arguments.plot:
        roofs.plot_layers(layers, arguments.plot, title, arguments.dark)


def _warn(peaks: "list[Peak]") -> None:
    """Print the reasons to doubt this machine's figures to stderr."""
    from minires.measure.machine import warnings_about

    for text in warnings_about(peaks):
        tell(f"minires: {text}")
