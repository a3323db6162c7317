"""Weights by name: what is known of them, where they lie, and how they come here.

``weights/manifest.toml`` has the facts. Some files lie beside it and come with the package; others
are looked for in minires's cache and in torch's, and downloaded where neither has them.
"""

import contextlib
import difflib
import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from minires.errors import DownloadError, WeightsError
from minires.preprocess import Preset, read_preset

DEFAULT = "IMAGENET1K_V2"
FALLBACK = "CIFAR10"  # comes with the package
ATTEMPTS = 3  # for each file
TIMEOUTS = (5.0, 30.0)  # seconds: to be connected, and between two pieces of the file
PATIENCE = 3.0  # seconds for a server to answer, where the weights were not asked for by name
PARTIAL = ".download-"  # how the folders are called in which files arrive
STALE_SECONDS = 24 * 60 * 60  # such a folder is no longer in use


@dataclass(frozen=True)
class WeightsFile:
    """A file that comes with the package, or can be downloaded.

    Parameters
    ----------
    url : str
        Where it is; relative to the manifest where it comes with the package.
    sha256 : str
        Its checksum, in hexadecimal.
    size : int, optional
        In bytes, where it is known.
    """

    url: str
    sha256: str
    size: int | None = None

    @property
    def name(self) -> str:
        """The file's name on its server, and in torch's cache."""
        return self.url.rpartition("/")[2]

    @property
    def bundled(self) -> bool:
        """Whether it comes with the package."""
        return self.url == self.name


@dataclass(frozen=True)
class Weights:
    """What is known of weights.

    Parameters
    ----------
    name : str
        As `available_weights` lists it.
    files : tuple of WeightsFile
        Each has all of the weights; the first is preferred.
    meta : dict
        In torchvision's manner: name, categories, preset, accuracy (in percent), num_params,
        source, recipe and licence.
    """

    name: str
    files: tuple[WeightsFile, ...]
    meta: dict[str, Any]

    @property
    def preset(self) -> Preset:
        """How the network wants its images."""
        preset: Preset = self.meta["preset"]
        return preset

    @property
    def sha256(self) -> str:
        """What tells these weights from all others: the preferred file's checksum."""
        return self.files[0].sha256

    @property
    def remedy(self) -> str:
        """What to do where the file is missing or damaged."""
        if self.files[0].bundled:
            return "it comes with minires: install minires anew"
        return f"minires weights fetch {self.name} gets it"


def weights_dir() -> Path:
    """Find the folder of weights: in the installed package, or beside it in a checkout."""
    installed = Path(__file__).parent / "weights"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "weights"


def cache_dir() -> Path:
    """Find minires's cache: MINIRES_CACHE, or where the platform has such; it may not exist."""
    cache = os.environ.get("MINIRES_CACHE") or platformdirs.user_cache_dir("minires", False)
    return Path(os.path.expanduser(cache))  # which leaves ~ where there is no home


def torch_cache_dir() -> Path:
    """Find where torch keeps what torchvision downloads; it may not exist."""
    torch_home = os.environ.get("TORCH_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch"
    )
    return Path(os.path.expanduser(torch_home)) / "hub" / "checkpoints"


@contextlib.contextmanager
def offline(wanted: bool = True) -> Iterator[None]:
    """Download nothing while a with statement lasts: it sets MINIRES_OFFLINE.

    Parameters
    ----------
    wanted : bool
        Where False, MINIRES_OFFLINE stays as it is.
    """
    before = os.environ.get("MINIRES_OFFLINE")
    if wanted:
        os.environ["MINIRES_OFFLINE"] = "1"
    try:
        yield
    finally:
        os.environ.pop("MINIRES_OFFLINE", None)
        if before is not None:
            os.environ["MINIRES_OFFLINE"] = before


def imagenet_categories() -> list[str]:
    """List the names of ImageNet's 1000 classes, in the order of the outputs."""
    return _categories("imagenet_categories.txt")


def _categories(file_name: str) -> list[str]:
    return (weights_dir() / file_name).read_text(encoding="utf-8").splitlines()


def _manifest() -> dict[str, Any]:
    return tomllib.loads((weights_dir() / "manifest.toml").read_text(encoding="utf-8"))


def available_weights() -> list[str]:
    """List the names that `get_weights` and `fetch` take, sorted."""
    return sorted(_manifest())


def get_weights(name: str) -> Weights:
    """Look up what the manifest says of weights.

    Parameters
    ----------
    name : str
        One of `available_weights`.

    Returns
    -------
    Weights
        Whether or not the file is here.

    Raises
    ------
    WeightsError
        For a name that is not known.
    """
    manifest = _manifest()
    if name not in manifest:
        close = difflib.get_close_matches(name.upper(), manifest, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        known = ", ".join(sorted(manifest))
        raise WeightsError(f"no weights are called {name!r}; known are {known}{hint}")
    meta = {"name": name, **manifest[name]}
    files = tuple(WeightsFile(**file) for file in meta.pop("files"))
    meta["categories"] = _categories(meta["categories"])
    meta["preset"] = read_preset(meta["preset"])
    return Weights(name, files, meta)


def resolve(
    weights: str | os.PathLike[str] | Weights, progress: bool = True
) -> tuple[Path, Weights | None]:
    """Turn what a user asked for into a file that is here.

    Parameters
    ----------
    weights : str, path-like or Weights
        A path, or a name of `available_weights`; what exists as a path is one.
    progress : bool
        As for `fetch`.

    Returns
    -------
    Path
        The file.
    Weights or None
        What is known of it; a file given by path is known by its size and checksum.

    Raises
    ------
    WeightsError
        For what is neither.
    DownloadError
        As for `fetch`.
    """
    if isinstance(weights, Weights):
        return fetch(weights.name, progress), weights
    if os.path.exists(weights):
        return Path(weights), _recognize(Path(weights))
    try:
        entry = get_weights(os.fspath(weights))
    except WeightsError as error:
        raise WeightsError(f"{os.fspath(weights)}: no such file, and {error}") from error
    return fetch(entry.name, progress), entry


def default_weights(progress: bool = True) -> Weights:
    """Choose the weights where nobody named any: ImageNet's, or else those of the package.

    Those of ImageNet are downloaded where they are not here but can be had. Where they cannot, a
    line on stderr says so: ten classes answer in place of a thousand.

    Parameters
    ----------
    progress : bool
        As for `fetch`.

    Returns
    -------
    Weights
        Whose file is here.

    Raises
    ------
    WeightsError
        Where not even those of the package are.
    """
    wanted, fallback = get_weights(DEFAULT), get_weights(FALLBACK)
    try:
        _fetch(wanted, progress, hurry=True)
    except WeightsError as error:
        if _find(fallback) is None:
            raise WeightsError(f"{error}, nor is {FALLBACK} here: {fallback.remedy}") from error
        print(
            f"minires: {error}; {FALLBACK} answers, with {len(fallback.meta['categories'])} "
            f"classes; for {len(wanted.meta['categories'])} run minires weights fetch where there "
            "is a network, or give --weights PATH",
            file=sys.stderr,
        )
        return fallback
    return wanted


def _knock(file: WeightsFile) -> None:
    """Find out within seconds whether a server answers, in whatever way; OSError where not.

    A time-out of requests is for each of a server's addresses, and the name is looked up before
    it begins: where a firewall drops all packets, only another thread keeps the whole short.
    """
    import requests

    failures: list[OSError] = []

    def ask() -> None:
        try:
            requests.head(file.url, timeout=PATIENCE)
        except Exception as error:  # whatever it is, no thread may print it
            failures.append(error if isinstance(error, OSError) else OSError(repr(error)))

    thread = threading.Thread(target=ask, daemon=True)  # a daemon does not hold up the exit
    thread.start()
    thread.join(PATIENCE)
    if thread.is_alive():
        failures.append(OSError(f"no answer within {PATIENCE:.0f} s"))
    if failures:
        raise failures[0]


def _recognize(path: Path) -> Weights | None:
    """Find the entry of the manifest whose file this is, wherever it came from."""
    for entry in map(get_weights, available_weights()):
        for file in entry.files:
            if file.size and _has_size(path, file) and _was_right(path, file):
                return entry
    return None


def locate(name: str) -> Path | None:
    """Look for weights on this machine: in minires's cache, then in torch's.

    Parameters
    ----------
    name : str
        One of `available_weights`.

    Returns
    -------
    Path or None
        A file whose checksum was right when minires first met it, and whose size still is.

    Raises
    ------
    WeightsError
        For a name that is not known.
    """
    found = _find(get_weights(name))
    return found[0] if found else None


def _find(entry: Weights) -> tuple[Path, WeightsFile] | None:
    for file in entry.files:
        path = _own_path(entry, file)
        if _has_size(path, file):  # what lies there was checked when it was put there
            return path, file
    for file in entry.files:
        path = torch_cache_dir() / file.name
        with contextlib.suppress(OSError):  # a file that may not be read is as good as none
            if _has_size(path, file) and _was_right(path, file):
                return path, file
    return None


def _own_path(entry: Weights, file: WeightsFile) -> Path:
    if file.bundled:
        return weights_dir() / file.url
    # The checksum is part of the name, so that no other version can be taken for this one.
    return cache_dir() / f"{entry.name}-{file.sha256[:16]}{Path(file.name).suffix}"


def _has_size(path: Path, file: WeightsFile) -> bool:
    try:
        status = path.stat()
    except OSError:  # not there, or in a folder that may not be looked into
        return False
    return stat.S_ISREG(status.st_mode) and file.size in (None, status.st_size)


def _was_right(path: Path, file: WeightsFile) -> bool:
    """Compare the checksum of a file that another program wrote, once for as long as it stays."""
    status = path.stat()
    seen = f"{path} {status.st_size} {status.st_mtime_ns}"
    note = cache_dir() / f"{file.sha256[:16]}.verified"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if note.read_text(encoding="utf-8") == seen:
            return True
    if _sha256(path) != file.sha256:
        return False
    with contextlib.suppress(OSError):  # without a note it is compared again
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(seen, encoding="utf-8")
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(name: str) -> Path:
    """Compare the whole checksum of weights that are here.

    Parameters
    ----------
    name : str
        One of `available_weights`.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    WeightsError
        Where the weights are not here, or the checksum is wrong.
    """
    entry = get_weights(name)
    found = _find(entry)
    if found is None:
        raise WeightsError(f"{name} is not here, or not whole; {entry.remedy}")
    path, file = found
    if (sha256 := _sha256(path)) != file.sha256:
        raise WeightsError(
            f"{path} has the sha256 {sha256}, wanted {file.sha256}; delete it: {entry.remedy}"
        )
    return path


def fetch(name: str, progress: bool = True) -> Path:
    """Return the file of weights, downloading it where it is not on this machine.

    The file appears in the cache when it is whole and its checksum is right, not before, so that
    neither an interruption nor another process doing the same can spoil it.

    Parameters
    ----------
    name : str
        One of `available_weights`.
    progress : bool
        Whether stderr tells of a download: by a bar on a terminal, by a line elsewhere.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    WeightsError
        For a name that is not known, a file of the package that is missing, or a cache that cannot
        be written.
    DownloadError
        Where no server gave the file, or where MINIRES_OFFLINE is set.
    """
    entry = get_weights(name)
    try:
        return _fetch(entry, progress)
    except DownloadError as error:
        raise DownloadError(
            f"{error}; get {entry.files[0].url} by other means, and give its path (--weights PATH)"
        ) from error


def _fetch(entry: Weights, progress: bool, hurry: bool = False) -> Path:
    """Do what `fetch` does; in a hurry, what does not work soon and at once is left."""
    if found := _find(entry):
        return found[0]
    if entry.files[0].bundled:
        raise WeightsError(f"{_own_path(entry, entry.files[0])} is missing; {entry.remedy}")
    failures = []
    if os.environ.get("MINIRES_OFFLINE", "0") not in ("", "0"):
        failures.append("MINIRES_OFFLINE or --offline forbids it")
    else:
        for file in entry.files:
            try:
                if hurry:
                    _knock(file)
                attempts = 1 if hurry else ATTEMPTS
                return _download_patiently(file, _own_path(entry, file), progress, attempts)
            except (OSError, DownloadError) as error:  # those of requests are OSErrors
                failures.append(f"{file.url}: {_reason(error)}")
    raise DownloadError(
        f"{entry.name} is not on this machine and could not be downloaded ({'; '.join(failures)})"
    )


def _reason(error: Exception) -> str:
    """Dig out what happened: where no connection came about, requests wraps it several times."""
    reason = getattr(error.args[0], "reason", error) if error.args else repr(error)
    return re.sub(r"^(<.*?>|HTTPS?Connection\(.*?\)): ", "", str(reason))


def _download_patiently(file: WeightsFile, target: Path, progress: bool, attempts: int) -> Path:
    """Begin anew when the connection is cut or stalls, or when something else arrives."""
    from requests import ConnectTimeout, RequestException

    for attempts_left in reversed(range(attempts)):
        try:
            _download(file, target, progress, first=attempts_left == attempts - 1)
            break
        except (OSError, ValueError) as error:
            # Not of the disk are those of requests, and a missing certificate, which has no errno.
            if (
                isinstance(error, OSError)
                and not isinstance(error, RequestException)
                and error.errno is not None
            ):
                raise WeightsError(
                    f"{target} could not be written ({error.strerror or error}); make room, or "
                    "set MINIRES_CACHE to another folder"
                ) from error
            # Nobody there: each of a server's addresses may have used up the whole time-out.
            if isinstance(error, ConnectTimeout) or not attempts_left:
                raise
    return target


def _download(file: WeightsFile, target: Path, progress: bool, first: bool = True) -> None:
    """Let a file arrive in a folder of its own, and move it to its place if it is the right one."""
    import requests  # here, because it takes long and is seldom needed
    from tqdm import tqdm

    target.parent.mkdir(parents=True, exist_ok=True)
    for old in target.parent.glob(f"{PARTIAL}*"):
        with contextlib.suppress(OSError):  # another process may be first
            if time.time() - old.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(old)
    if progress and first and not sys.stderr.isatty():  # where no bar shows
        size = f", {file.size / 1e6:.0f} MB" if file.size else ""
        print(f"minires: downloading {file.url}{size}", file=sys.stderr)
    with (
        tempfile.TemporaryDirectory(prefix=PARTIAL, dir=target.parent) as folder,
        requests.get(file.url, stream=True, timeout=TIMEOUTS) as response,
    ):
        response.raise_for_status()
        arrived = Path(folder) / target.name
        with (
            arrived.open("wb") as output,
            tqdm(desc=target.name, total=file.size, unit="B", unit_scale=True, leave=False,
                 disable=None if progress else True) as bar,
        ):  # fmt: skip
            for piece in response.iter_content(2**16):
                output.write(piece)
                bar.update(len(piece))
        if (sha256 := _sha256(arrived)) != file.sha256:
            raise DownloadError(f"what arrived has the sha256 {sha256}, wanted {file.sha256}")
        os.replace(arrived, target)
