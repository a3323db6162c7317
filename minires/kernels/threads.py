"""How many threads the kernels use."""

import os

from minires.errors import MiniresError

_chosen: int | None = None


def _most() -> int:
    from numba import config  # here, because it takes long to import

    return int(config.NUMBA_NUM_THREADS)


def set_num_threads(count: int) -> None:
    """Set how many threads the kernels use from now on.

    Parameters
    ----------
    count : int
        From 1 to what Numba starts with: the cores that this process may use, or
        NUMBA_NUM_THREADS.

    Raises
    ------
    MiniresError
        For any other number.
    """
    global _chosen
    if not isinstance(count, int) or not 1 <= count <= _most():
        raise MiniresError(
            f"{count!r} threads cannot be had; wanted 1 to {_most()}, and NUMBA_NUM_THREADS, set "
            "before Python starts, allows more"
        )
    _chosen = count


def get_num_threads() -> int:
    """Tell how many threads the kernels use.

    Returns
    -------
    int
        What `set_num_threads` was last given; before that OMP_NUM_THREADS, if it is set, and at
        most what Numba starts with.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    default = max(1, int(wanted)) if wanted.isdecimal() else _most()
    return _chosen or min(default, _most())
