import numpy as np
import pytest

pytest.importorskip("resource", reason="Unix's way to tell how much memory a process has")
from minires.layers import Array
from tests.fuzz import small, soak
from tests.fuzz.soak import Job

X = np.zeros(3, np.float32)


def fail_after(count: int, run: soak.Callable[[Array], Array]) -> soak.Callable[[Array], Array]:
    """Answer as many calls with what came in, and then by a function."""
    calls = iter(range(10**9))
    return lambda x: x if next(calls) < count else run(x)


def failing(x: Array) -> Array:
    raise ValueError("broken")


def test_what_holds_is_counted() -> None:
    network = small.int8_network()
    jobs = {"copy": Job(np.copy, X), "network": Job(network, small.IMAGE)}
    result = soak.soak(jobs, threads=3, seconds=0.1)
    assert result.failures == []
    assert min(result.counts.values()) >= 3  # each thread has done each
    assert result.before > 0
    assert result.after > 0


@pytest.mark.parametrize(
    ("run", "told"),
    [
        (lambda x: -x, "other bits"),  # 0 and -0 are equal, but not in their bits
        (failing, "broken"),
    ],
)
def test_one_wrong_answer_is_told(run: soak.Callable[[Array], Array], told: str) -> None:
    jobs = {"fine": Job(np.copy, X), "late": Job(fail_after(20, run), X)}
    result = soak.soak(jobs, threads=2, seconds=60)  # they end at the failure
    assert result.failures
    assert all(line.startswith("late") and told in line for line in result.failures)


def test_a_leak_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []

    def leak(x: Array) -> Array:
        if len(kept) < 40:
            kept.append(np.ones(2**18))  # 2 MB
        return x.copy()

    monkeypatch.setattr(soak, "MOST_GROWTH", 2**25)
    result = soak.soak({"leaking": Job(leak, X)}, threads=2, seconds=0.3)
    assert "memory grew by" in result.failures[0]
