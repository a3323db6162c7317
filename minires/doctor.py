"""``minires doctor``: a page on this machine and this installation, to paste into an issue.

It is called where something is ill, so nothing that it looks at is trusted. A fact that cannot be
found is told in its place, and the others follow. Whatever could end a process, such as compiled
code, runs in a child: this file is run by Python with the name of one of `JOBS`. The child answers
on stdout in lines of JSON, so that what it found before it ended is not lost.
"""

import contextlib
import getpass
import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from minires import cache, download, preprocess
from minires.errors import MiniresError
from minires.kernels import cpu
from minires.notice import tell
from minires.options import Parser

Row = tuple[str, str]  # a name, and what is said of it
Job = Callable[[Any], Iterator[Any]]

NEEDED = ("minires", "numpy", "numba", "llvmlite", "pillow", "safetensors", "platformdirs")
OPTIONAL = ("pooch", "requests", "tqdm", "matplotlib", "numba-cuda")
# Variables whose names begin so change what minires does.
VARIABLES = ("MINIRES_", "NUMBA_", "OMP_", "TORCH_HOME", "XDG_CACHE_HOME", "PYTHONIOENCODING")
OK, FAILED, UNSURE = "ok", "FAILED", "not sure"
# Seconds that a child may take. Compiling takes ten, a minute on a busy machine, and many minutes
# on an emulated one.
LONGEST = 2400
# How far logits may lie from the definition's, as a share of the largest. Sums in float32 are taken
# in another order. In bfloat16, some of these then round to the number next to the definition's,
# which is 2**-8 away.
BOUNDS = {"int8": 0.0, "fp32": 1e-3, "bf16": 2.0**-6}


def add_doctor(parser: Parser) -> None:
    """Add the options of `doctor`."""
    text = "test the instruction set that is in use, and none of the others"
    parser.add_argument("--quick", action="store_true", help=text)


def doctor(arguments: Namespace) -> int:
    """Tell what minires finds on this machine and test it: a page to paste into an issue."""
    page, held = examine(arguments.quick)
    print(page)
    return 0 if held else 1


def examine(quick: bool = False) -> tuple[str, bool]:
    """Make the page, and tell whether all tests held."""
    tell("minires: looking around")
    found, failure = ask("kernels")
    kernels = dict(found)
    sections: dict[str, Callable[[], list[Row]]] = {
        "versions": versions,
        "machine": lambda: [*kernels.get("machine", []), *machine()],
        "instruction sets, the best first": lambda: kernels.get("sets", []),
        "environment": environment,
        "folders": lambda: folders(kernels.get("code folder")),
        "weights": weights,
        "GPU": gpu,
    }
    blocks = [_layout(title, _told(section)) for title, section in sections.items()]
    tested = kernels.get("available", [])
    rows = [("instruction sets", f"{FAILED}: {failure}")] if failure else []
    rows += [("MINIRES_ISA", f"{FAILED}: {why}") for why in kernels.get("refused", [])]
    rows += self_test(tested[:1] if quick else tested)
    held = not any(text.startswith(FAILED) for _, text in rows)
    verdict = "all tests held" if held else "NOT all tests held"
    blocks.append(_layout("self-test", rows))
    return without_names("\n\n".join([*blocks, f"minires doctor: {verdict}"])), held


def _told(section: Callable[[], list[Row]]) -> list[Row]:
    try:
        return section()
    except Exception as error:  # whatever is wrong with this, the rest is told
        return [("", f"cannot be told: {type(error).__name__}: {error}")]


def _layout(title: str, rows: Sequence[Row]) -> str:
    width = max((len(name) for name, _ in rows), default=0)
    lines = [
        f"  {name.ljust(width)}  {' '.join(str(text).split())}".rstrip() for name, text in rows
    ]
    return "\n".join([title, *(lines or ["  none"])])


def without_names(page: str) -> str:
    """Write ~ for the home folder, and USER for a user's name where it is part of a path."""
    homes = {os.path.expanduser("~"), os.path.realpath(os.path.expanduser("~"))}
    for home in sorted(homes, key=len, reverse=True):
        if len(home) > 1:  # neither "~", where there is no home, nor "/", as in a container
            for written in (home, home.replace("\\", "\\\\")):  # the second as repr has it
                page = re.sub(rf"(?i){re.escape(written)}(?![\w-])", "~", page)
    with contextlib.suppress(Exception):  # this user's number may have no name
        page = re.sub(rf"(?i)(?<=[/\\]){re.escape(getpass.getuser())}(?![\w-])", "USER", page)
    # And other names: Windows shortens a long one, as in C:\Users\ALEXAN~1.
    return re.sub(r"(?i)([/\\](?:home|users)[/\\]+)[^/\\:;\s]+", r"\1USER", page)


# What this process can find out by itself


def versions() -> list[Row]:
    """List what is installed."""
    bits = 64 if sys.maxsize > 2**32 else 32
    rows = [("python", f"{platform.python_version()}, {sys.implementation.name}, {bits} bits")]
    for name in (*NEEDED, *OPTIONAL):
        try:
            rows.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            rows.append((name, "not installed" + (", but needed" if name in NEEDED else "")))
    return rows


def machine() -> list[Row]:
    """Describe the system, the caches and the threads."""
    caches = [
        f"{level} {size // 1024} KiB" + (f" for {sharers} threads" if sharers > 1 else "")
        for level, size, sharers in cpu.caches()
    ]
    quota = cpu.cpu_quota()
    limit = "no quota" if quota is None else f"a quota of {quota:g} cores' time"
    return [
        ("system", f"{platform.platform()}, {platform.machine()}"),
        ("caches", ", ".join(caches)),
        ("threads", f"{cpu.get_num_threads()} in use, {os.cpu_count()} cores, {limit}"),
    ]


def environment() -> list[Row]:
    """List the variables that are set, and how text is encoded."""
    encodings = sys.getfilesystemencoding(), getattr(sys.stdout, "encoding", None)
    rows = [("encodings", "of file names {}, of stdout {}".format(*encodings))]
    return rows + [(name, os.environ[name]) for name in sorted(os.environ)
                   if name.startswith(VARIABLES)]  # fmt: skip


def folders(code: str | None) -> list[Row]:
    """Tell of the folders that minires writes to, what is there, and whether it can write."""
    rows = _told(lambda: [("cache", _state(cache.cache_dir()))])
    rows += _told(lambda: [("compiled code", _state(Path(code)))]) if code else []
    # What else lies there is not minires's.
    return rows + _told(lambda: [("temporary files", _state(Path(tempfile.gettempdir()), False))])


def _state(path: Path, count: bool = True) -> str:
    above = next((p for p in (path, *path.parents) if os.path.exists(p)), path)
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        return f"{path}: CANNOT BE WRITTEN ({error.strerror or error})"
    if above != path:
        return f"{path}: not there yet, and can be made"
    told = f"{path}: can be written"
    files = [p.stat().st_size for p in path.rglob("*") if p.is_file()] if count else []
    return f"{told}; {len(files)} files, {sum(files) / 1e6:.1f} MB" if count else told


def weights() -> list[Row]:
    """Tell where the weights are that have a name."""
    return [(name, str(download.locate(name) or "not here, or damaged"))
            for name in download.available_weights()]  # fmt: skip


def gpu() -> list[Row]:
    """Tell which GPU there is, or why none can be used."""
    answers, failure = ask("gpu")
    return [("", text) for text in (*answers, failure) if text]


# What runs in a child


def ask(job: str, given: Any = None, isa: str = "") -> tuple[list[Any], str]:
    """Run a job in a child, held to an instruction set if one is named.

    You get its answers, and why no more of them came, or "".
    """
    path = os.pathsep.join(filter(None, sys.path))  # the child finds what this process would
    changed = {"PYTHONPATH": path, "PYTHONIOENCODING": "utf-8", "MINIRES_OFFLINE": "1"}
    changed |= {"MINIRES_ISA": isa} if isa else {}
    failure = ""
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-m", "minires.doctor", job],  # -P: no files of this folder
            input=json.dumps(given),
            env={**os.environ, **changed},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=LONGEST,
            check=False,
        )
        said = child.stdout
        if child.returncode:
            last = (child.stderr.strip().splitlines() or ["nothing was said"])[-1]
            failure = f"{_end(child.returncode)}: {last}"
    except subprocess.TimeoutExpired as stopped:
        # What it answered until then counts. It comes as bytes, but for Windows.
        late = stopped.stdout or ""
        said = late.decode(errors="replace") if isinstance(late, bytes) else late
        failure = f"it had not ended after {LONGEST} s"
    except (OSError, ValueError) as error:
        return [], f"no process could be started ({error})"
    answers = []
    for line in said.splitlines():
        with contextlib.suppress(ValueError):  # a line cut off, or one of somebody else's
            answers.append(json.loads(line))
    return answers, failure


def _end(status: int) -> str:
    """Name the end of a child that did not end well."""
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"ended by {signal.Signals(-status).name}"
    return f"exit status {status:#x}" if status > 255 else f"exit status {status}"  # Windows


def self_test(isas: Sequence[str]) -> Iterator[Row]:
    """Test instruction sets against the definitions, and the first one's peak by arithmetic."""
    tell("minires: computing what the definitions say")
    expected, failure = ask("definitions")
    if failure:
        yield "NumPy's definitions", f"{FAILED}: {failure}"
    for number, isa in enumerate(isas, 1):
        tell(f"minires: testing {isa}, {number} of {len(isas)}; compiling may take a minute")
        rows, failure = ask("network", dict(expected), isa)
        yield from ((f"{isa}, {name}", text) for name, text in rows)
        if failure:
            yield isa, f"{FAILED}: {failure}"
    if isas:
        tell("minires: measuring the multiplying instructions")
        rows, failure = ask("peak", isa=isas[0])
        yield from ((f"peak of {name}", text) for name, text in rows)
        if failure:
            yield "peak", f"{FAILED}: {failure}"


def _kernels(_: Any) -> Iterator[Any]:
    """Tell which instruction sets there are, which is chosen, and why each better one was not."""
    from minires.kernels.compile import code_dir
    from minires.kernels.ir import FAMILY
    from minires.kernels.isa import ISAS, available_isas, choose_isa, cpu_features
    from minires.measure.machine import cpu_name

    yield "code folder", str(code_dir())
    available = [isa.name for isa in available_isas()]
    isas = [isa for isa in ISAS.values() if isa.family == FAMILY or isa.name in available]
    found = cpu_features()
    asked = sorted(set().union(*(isa.features for isa in isas)))
    yield (
        "machine",
        [
            ("CPU", cpu_name()),
            ("features", f"found {' '.join(f for f in asked if f in found) or 'none'}"),
            ("", f"not found {' '.join(f for f in asked if f not in found) or 'none'}"),
        ],
    )
    chosen = ""
    try:
        chosen = choose_isa().name
    except MiniresError as error:
        yield "refused", [str(error)]
    rows = []
    for isa in isas:
        lacking = " ".join(sorted(isa.features - found))
        reason = f"not here: the CPU lacks {lacking}"
        if not lacking:
            reason = "not allowed: by the system, or by NUMBA_CPU_NAME or NUMBA_CPU_FEATURES"
        if isa.name in available:
            reason = "chosen" if isa.name == chosen else "can be chosen by MINIRES_ISA"
        rows.append((isa.name, reason))
    yield "sets", rows
    # The chosen one is the first to be tested.
    yield "available", sorted(available, key=lambda name: name != chosen)


def _gpu(_: Any) -> Iterator[Any]:
    if importlib.util.find_spec("numba_cuda") is None:
        yield "not looked for: numba-cuda is not installed"
        return
    from minires.kernels.cuda.driver import open_gpu

    try:
        gpu = open_gpu()
        yield f"{gpu.name}, compute capability {'.'.join(map(str, gpu.capability))}"
    except MiniresError as error:
        yield str(error)


def _photograph(model: Any) -> Any:  # (1, 3, H, W)
    from minires.quantize.default import calibration_photographs

    return preprocess(calibration_photographs()[0], model.meta["preset"])


def _definitions(_: Any) -> Iterator[Any]:
    """Compute the logits of a photograph by NumPy's definitions, on the network of the package."""
    from minires.api import resnet50

    for precision in BOUNDS:
        model = resnet50(download.FALLBACK, precision, "numpy")
        yield precision, model(_photograph(model)).ravel().tolist()


def _network(expected: dict[str, list[float]]) -> Iterator[Row]:
    """Compare compiled kernels with the definitions."""
    from minires.api import resnet50

    for precision, logits in expected.items():
        model = resnet50(download.FALLBACK, precision, "numba")
        right = np.array(logits, np.float32)
        apart = float(np.abs(model(_photograph(model)).ravel() - right).max())
        share, bound = apart / float(np.abs(right).max()), BOUNDS[precision]
        told = f"{share:.1e} from NumPy's, and the bound is {bound:.1e}"
        if bound == 0:
            told = "the bits of NumPy's" if share == 0 else "not the bits of NumPy's"
        yield precision, f"{OK if share <= bound else FAILED}: {told}"


def _peak(_: Any) -> Iterator[Row]:
    """Measure the multiplying instructions: they must run at a rate that CPUs have."""
    from minires.kernels.isa import choose_isa
    from minires.measure.peak import instructions, measure_peak

    isa = choose_isa()
    for instruction in instructions(isa):
        peak = measure_peak(instruction, isa)
        told = f"{peak.gops:.1f} GOP/s"
        if not instruction.rates:
            yield instruction.name, f"{OK}: {told}; nobody can say how many it should be"
        elif peak.arithmetic:
            yield instruction.name, f"{OK}: {told} of {peak.arithmetic:.1f} by arithmetic"
        else:
            why = "; ".join(peak.doubts) or "no CPU is known to do so many"
            state = UNSURE if peak.doubts else FAILED
            yield instruction.name, f"{state}: {told}, {peak.rate:.2g} a cycle: {why}"


JOBS: dict[str, Job] = {
    "kernels": _kernels,
    "gpu": _gpu,
    "definitions": _definitions,
    "network": _network,
    "peak": _peak,
}

if __name__ == "__main__":
    stdout, sys.stdout = sys.stdout, sys.stderr  # where libraries may print what they like
    for answer in JOBS[sys.argv[1]](json.load(sys.stdin)):
        print(json.dumps(answer), file=stdout, flush=True)
