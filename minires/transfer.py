"""Get a file from a server: whole and with the right checksum, or not at all.

pooch downloads, compares the checksum, and tries again. Here are the limits that it has not: how
much may come, and how slowly.
"""

import contextlib
import itertools
import os
import re
import shutil
import tempfile
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from minires.notice import bar_hidden, tell

ATTEMPTS = 3  # for each file
TIMEOUT = 10.0  # seconds to wait for a connection, and between two pieces of the file
SLOWEST = 10_000  # bytes a second that a server has to send; 100 MB then take three hours
PATIENCE = 30.0  # seconds over which that is measured
HURRY = 3.0  # seconds of the first measurement, if nobody asked for these weights by name
PIECE = 4096  # bytes; a compressed piece becomes at most 1,000 times as long
LARGEST = 2**28  # bytes, if the manifest tells no size: a ResNet-50 in float64 has 204 MB
PARTIAL = ".download-"  # the names of folders into which files are downloaded begin so
STALE_SECONDS = 24 * 60 * 60  # after this time such a folder is no longer in use


@dataclass(frozen=True)
class WeightsFile:
    """A file that comes with the package, or can be downloaded."""

    url: str  # relative to the manifest if the file comes with the package
    sha256: str  # in hexadecimal
    size: int | None = None  # in bytes, if it is known

    @property
    def name(self) -> str:
        """The file's name on its server, and in torch's cache."""
        return self.url.rpartition("/")[2]

    @property
    def bundled(self) -> bool:
        """Whether it comes with the package."""
        return self.url == self.name


@dataclass
class _Arrival:
    """The state of a download, which two threads share."""

    count: int = 0  # bytes that arrived, in all attempts together
    left: bool = False  # whether the other thread has stopped waiting for it


def download(file: WeightsFile, target: Path, progress: bool, hurry: bool) -> Path:
    """Download a file into a folder of its own, and move it to its place if it is the right one.

    Another thread downloads, so that this one can give up: there is no time-out for looking up a
    server's name, nor for a server that sends a byte every other second.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for old in target.parent.glob(f"{PARTIAL}*"):
        with contextlib.suppress(OSError):  # another process may be first
            if time.time() - old.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(old)
    if progress:
        size = f", {file.size / 1e6:.0f} MB" if file.size else ""
        tell(f"minires: downloading {file.url}{size}")
    bar = progress and not bar_hidden()
    arrival = _Arrival()
    failures: list[Exception] = []

    def work(arrived: Path) -> None:
        try:
            _run_pooch(file, arrived, arrival, bar, attempts=1 if hurry else ATTEMPTS)
        except Exception as error:  # otherwise the thread would print a traceback
            failures.append(error)

    with tempfile.TemporaryDirectory(
        prefix=PARTIAL, dir=target.parent, ignore_cleanup_errors=True
    ) as folder:
        arrived = Path(folder) / target.name
        thread = threading.Thread(target=work, args=[arrived], daemon=True)
        thread.start()
        try:
            _watch(thread, arrival, HURRY if hurry else PATIENCE)
        finally:
            arrival.left = True  # after an interruption, too
        if failures:
            raise failures[0]
        os.replace(arrived, target)
    return target


def _watch(thread: threading.Thread, arrival: _Arrival, first: float) -> None:
    """Wait for a download's end, and raise OSError if too little arrives."""
    for seconds in itertools.chain([first], itertools.repeat(PATIENCE)):
        before = arrival.count
        thread.join(seconds)
        if not thread.is_alive():
            return
        came = arrival.count - before
        if came < SLOWEST * seconds:
            raise OSError(f"only {came} bytes came in {seconds:.0f} s")


def _run_pooch(
    file: WeightsFile, arrived: Path, arrival: _Arrival, bar: bool, attempts: int
) -> None:
    """Let pooch download a file, compare its checksum, and try again after errors of requests.

    Any other OSError ends all attempts.
    """
    import requests  # here, because these imports take long and are seldom needed
    from tqdm import TqdmWarning, tqdm

    with warnings.catch_warnings():
        # pooch imports tqdm.auto, which asks for ipywidgets in a notebook. This bar needs none.
        warnings.simplefilter("ignore", TqdmWarning)
        import pooch

    most = file.size or LARGEST

    def download(url: str, path: str, _: object) -> None:
        os.remove(path)  # pooch created it so that only its owner can read it
        with (
            # A compressed answer would not tell its size.
            requests.get(
                url, stream=True, timeout=TIMEOUT, headers={"Accept-Encoding": "identity"}
            ) as response,
            open(path, "xb") as output,
            tqdm(
                desc=arrived.name,
                total=file.size,
                unit="B",
                unit_scale=True,
                leave=False,
                disable=not bar,
            ) as shown,
        ):
            response.raise_for_status()
            for piece in response.iter_content(PIECE):
                if arrival.left:
                    raise OSError("nobody waits for it")
                arrival.count += output.write(piece)
                if output.tell() > most:
                    raise OSError(f"sends more than the {most} bytes that the file has")
                shown.update(len(piece))

    pooch.get_logger().setLevel("ERROR")  # minires has messages of its own
    pooch.create(
        arrived.parent,
        base_url="",
        registry={arrived.name: file.sha256},
        urls={arrived.name: file.url},
        retry_if_failed=attempts - 1,
    ).fetch(arrived.name, downloader=download)


def reason(error: Exception) -> str:
    """Find the cause of an error: requests wraps a failed connection several times."""
    reason = getattr(error.args[0], "reason", error) if error.args else repr(error)
    told = re.sub(r"^(<.*?>|HTTPS?Connection(Pool)?\(.*?\)): ", "", str(reason))
    return told.partition(". Deleted download")[0]  # pooch adds this to a wrong checksum
