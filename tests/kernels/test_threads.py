"""The same bits from any number of threads; and a process that has used some may fork."""

import os
import subprocess
import sys

import numpy as np
import pytest

import minires
from minires.kernels import cpu
from minires.model import ResNet50
from tests.comparing import assert_same
from tests.seeded_weights import seeded_input, seeded_state_dict

pytestmark = pytest.mark.usefixtures("two_threads")


def test_any_number_of_threads_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_chosen", None)
    model = ResNet50.from_state_dict(seeded_state_dict())
    model.backend = "numba"
    x, answers = seeded_input((1, 3, 32, 32)), []
    for count in range(1, cpu._most() + 1):
        minires.set_num_threads(count)
        answers.append(model(x))
    for answer in answers:
        assert_same(answer, answers[0])


PROGRAM = """
import numpy as np, sys
from minires.kernels.engine import Engine
from tests.kernels.test_engine import model_of
from tests.seeded_weights import seeded_input
model = model_of("int8")
engine = Engine(model.layers, model.params, "int8")
np.save(sys.argv[1], engine(seeded_input((2, 3, 40, 40))))
print(engine.isa.name)
"""
RESTRICTIONS = {  # what the process is told, and what it then uses
    "generic by name": ({"MINIRES_ISA": "generic"}, "generic"),
    "generic CPU": ({"NUMBA_CPU_NAME": "generic"}, "generic"),
    "one thread": ({"NUMBA_NUM_THREADS": "1"}, ""),
    "avx2": ({"MINIRES_ISA": "avx2"}, "avx2"),
    "avx512": ({"MINIRES_ISA": "avx512"}, "avx512"),
    "avx512vnni": ({"MINIRES_ISA": "avx512vnni"}, "avx512vnni"),
    "amx": ({"MINIRES_ISA": "amx"}, "amx"),
}


@pytest.mark.parametrize("restriction", RESTRICTIONS)
def test_every_path_gives_the_same_bits(restriction: str, tmp_path: "os.PathLike[str]") -> None:
    from minires.kernels.isa import available_isas
    from tests.kernels.test_engine import model_of

    environment, isa = RESTRICTIONS[restriction]
    if isa and isa not in [available.name for available in available_isas()]:
        pytest.skip(f"this CPU lacks {isa}")
    file = os.path.join(tmp_path, "logits.npy")
    command = [sys.executable, "-c", PROGRAM, file]
    changed = {**os.environ, **environment}
    result = subprocess.run(command, env=changed, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == isa or not isa
    assert_same(np.load(file), model_of("int8")(seeded_input((2, 3, 40, 40))))


# Forking, as multiprocessing does on Linux, and with it PyTorch's DataLoader

FORKING = """if True:
    import multiprocessing, os, signal, sys, threading, time
    import numpy as np
    from minires.model import ResNet50
    from tests.seeded_weights import seeded_input, seeded_state_dict

    signal.alarm(300)  # a child that waits forever is a failure, not a test that never ends
    model = ResNet50.from_state_dict(seeded_state_dict())
    model.backend = "numba"
    x = seeded_input((1, 3, 32, 32))
    expected = model(x)

    def answers() -> bool:
        return np.array_equal(model(x), expected)

    def forked(run) -> bool:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = 0 if run() else 1
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

"""
WAYS = {
    "a fork after a run": "ok = forked(answers)",
    "a fork in a fork": "ok = forked(lambda: answers() and forked(answers))",
    "a fork, and the parent goes on": "ok = all(forked(answers) and answers() for _ in range(3))",
    "a pool of two processes": """
    def run(image):
        return model(image)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        ok = all(np.array_equal(y, expected) for y in pool.map(run, [x] * 6))
""",
    "processes that begin anew": """
    ok = True
    for way in {"spawn", "forkserver"} & {*multiprocessing.get_all_start_methods()}:
        with multiprocessing.get_context(way).Pool(1) as pool:
            ok = ok and np.array_equal(pool.apply(model, (x,)), expected)
""",
    "torch's DataLoader": """
    from torch.utils.data import DataLoader
    class Answers:
        def __len__(self):
            return 6
        def __getitem__(self, number):
            return model(x)
    batches = DataLoader(Answers(), num_workers=2, multiprocessing_context="fork")
    ok = answers() and all(np.array_equal(y[0].numpy(), expected) for y in batches) and answers()
""",
    "a fork while another thread computes": """
    at_work = True
    def work():
        while at_work:
            model(x)
    others = [threading.Thread(target=work) for _ in range(2)]
    for thread in others:
        thread.start()
    ok = all(forked(answers) for _ in range(10))
    at_work = False
    for thread in others:
        thread.join()
""",
    "a fork while another thread compiles": """
    from numba import types
    from minires.kernels.compile import compile_for
    from minires.kernels.isa import choose_isa
    def compile_one(number):
        def add(x):
            return x + number
        add.__name__ = f"add{number}"
        return compile_for(choose_isa(), add, types.int64(types.int64), keep=False)(1)
    other = threading.Thread(target=lambda: [compile_one(i) for i in range(8)])
    other.start()
    ok = all(forked(lambda: compile_one(100 + i) == 101 + i and answers()) for i in range(3))
    other.join()
""",
    "a fork in a callback": """
    import minires
    seen = []
    def fork_once(event):
        if not seen:
            seen.append(None)  # the child's run has this callback, too, and is not to fork
            seen[0] = forked(answers)
    with minires.profile(model, fork_once):
        model(x)
    ok = seen == [True]
""",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("way", WAYS)
def test_a_process_that_has_run_a_network_may_fork(way: str) -> None:
    if "torch" in way:
        pytest.importorskip("torch", reason="torch is not installed")
    program = f"{FORKING}    {WAYS[way].strip()}\n    sys.exit(0 if ok else 1)\n"
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_a_callback_may_run_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ResNet50.from_state_dict(seeded_state_dict())
    model.backend = "numba"
    x, answers = seeded_input((1, 3, 32, 32)), []

    def run_once(_: object) -> None:
        if not answers:
            answers.append(None)
            answers[0] = model(x)

    with minires.profile(model, run_once):
        expected = model(x)
    assert_same(answers[0], expected)
