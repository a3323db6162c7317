import pytest

from minires.kernels.cpu import get_num_threads


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share work out even where there is one core, as for each of several test processes."""
    if get_num_threads() == 1:
        monkeypatch.setenv("NUMBA_NUM_THREADS", "2")
