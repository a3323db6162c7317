"""Weights by name: look up their facts, find their file, or have it downloaded.

``weights/manifest.toml`` has the facts. Some files lie beside it and come with the package. Others
may be in minires's cache or in torch's; if they are in neither, ``minires/transfer.py`` gets them.
"""

import contextlib
import os
import stat
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minires import cache
from minires.cache import cache_dir
from minires.errors import DownloadError, WeightsError, nearest, short
from minires.notice import tell
from minires.preprocess import Preset, read_preset
from minires.transfer import WeightsFile, download, reason

DEFAULT = "IMAGENET1K_V2"
FALLBACK = "CIFAR10"  # comes with the package


@dataclass(frozen=True)
class Weights:
    """The facts about weights that have a name."""

    name: str  # as available_weights lists it
    files: tuple[WeightsFile, ...]  # each has all of the weights; the first is preferred
    # As in torchvision: name, categories, preset, accuracy (in percent), num_params, source, recipe
    # and licence.
    meta: dict[str, Any]

    @property
    def preset(self) -> Preset:
        """How the network wants its images."""
        preset: Preset = self.meta["preset"]
        return preset

    @property
    def sha256(self) -> str:
        """The preferred file's checksum, which tells these weights from all others."""
        return self.files[0].sha256

    @property
    def remedy(self) -> str:
        """The advice for a user whose file is missing or damaged."""
        if self.files[0].bundled:
            return "it comes with minires: install minires anew"
        return f"minires weights fetch {self.name} gets it"


def weights_dir() -> Path:
    """Find the folder of weights: in the installed package, or beside it in a checkout."""
    installed = Path(__file__).parent / "weights"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "weights"


def torch_cache_dir() -> Path:
    """Return the folder where torch keeps torchvision's downloads; it may not exist."""
    torch_home = os.environ.get("TORCH_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch"
    )
    return Path(os.path.expanduser(torch_home)) / "hub" / "checkpoints"


@contextlib.contextmanager
def offline(wanted: bool = True) -> Iterator[None]:
    """Set MINIRES_OFFLINE, if wanted, so that a with statement downloads nothing."""
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
    """List the names that `get_weights` takes.

    Returns
    -------
    list of str
        Sorted.

    Examples
    --------
    >>> minires.available_weights()
    ['CIFAR10', 'IMAGENET1K_V1', 'IMAGENET1K_V2']
    """
    return sorted(_manifest())


def get_weights(name: str) -> Weights:
    """Look up the facts about weights in the manifest.

    Parameters
    ----------
    name : str
        One of `available_weights`.

    Returns
    -------
    Weights
        The facts, even if the file is not on this machine.

    Raises
    ------
    WeightsError
        For an unknown name.

    Examples
    --------
    >>> minires.get_weights("IMAGENET1K_V2").meta["accuracy"]
    {'acc@1': 80.858, 'acc@5': 95.434}
    """
    manifest = _manifest()
    if not isinstance(name, str) or name not in manifest:
        known, hint = ", ".join(sorted(manifest)), nearest(short(name), manifest)
        raise WeightsError(f"no weights are called {short(repr(name))}; known are {known}{hint}")
    meta = {"name": name, **manifest[name]}
    files = tuple(WeightsFile(**file) for file in meta.pop("files"))
    meta["categories"] = _categories(meta["categories"])
    meta["preset"] = read_preset(meta["preset"])
    return Weights(name, files, meta)


def resolve(
    weights: str | os.PathLike[str] | Weights, progress: bool = True
) -> tuple[Path, Weights | None]:
    """Turn a path or a name into a file on this machine, and the facts about it if it is known.

    If a file is called like known weights, the file is taken; a folder is not. A file that you give
    by its path is recognized by its size and checksum.
    """
    if isinstance(weights, Weights):
        return _obtain(weights, progress), weights
    if not isinstance(weights, str | os.PathLike):
        raise WeightsError(f"weights are a name or a path, not {short(weights)}")
    known = weights in available_weights()
    if os.path.isfile(weights) or (os.path.exists(weights) and not known):
        return Path(weights), _recognize(Path(weights))
    try:
        entry = get_weights(os.fspath(weights))
    except WeightsError as error:
        raise WeightsError(f"{os.fspath(weights):.200}: no such file, and {error}") from None
    return _obtain(entry, progress), entry


def default_weights(progress: bool = True) -> Weights:
    """Choose the weights if nobody named any: ImageNet's, or else those of the package.

    ImageNet's weights are downloaded if they are not here. If that fails, a line on stderr says so,
    because a network of ten classes then answers in place of one of a thousand.
    """
    wanted = get_weights(DEFAULT)
    fallback = get_weights(FALLBACK)
    try:
        _fetch(wanted, progress, hurry=True)
    except WeightsError as error:
        if _find(fallback) is None:
            raise WeightsError(f"{error}, nor is {FALLBACK} here: {fallback.remedy}") from error
        tell(
            f"minires: {error}; {FALLBACK} answers, with {len(fallback.meta['categories'])} "
            f"classes; for {len(wanted.meta['categories'])} run minires weights fetch where there "
            "is a network, or give --weights PATH"
        )
        return fallback
    return wanted


def locate(name: str) -> Path | None:
    """Look for weights on this machine: in minires's cache, then in torch's."""
    found = _find(get_weights(name))
    return found[0] if found else None


def _find(entry: Weights, whole: bool = False) -> tuple[Path, WeightsFile] | None:
    """Look for a file with the right checksum; `whole` computes it anew, see `_is_right`."""
    return next((place for place in _places(entry) if _is_right(*place, whole)), None)


def _places(entry: Weights) -> list[tuple[Path, WeightsFile]]:
    """List the files that have the right name and size."""
    places = [(_own_path(entry, file), file) for file in entry.files]
    places += [(torch_cache_dir() / file.name, file) for file in entry.files]
    return [place for place in places if _has_size(*place)]


def _recognize(path: Path) -> Weights | None:
    """Find the entry of the manifest that a file belongs to, wherever it came from."""
    for entry in map(get_weights, available_weights()):
        for file in entry.files:
            if file.size and _has_size(path, file):
                if _is_right(path, file):
                    return entry
                if path.name == file.name:
                    text = f"{path} has the name and size of {entry.name}, but not its checksum"
                    warnings.warn(text, stacklevel=2)
    return None


def _own_path(entry: Weights, file: WeightsFile) -> Path:
    if file.bundled:
        return weights_dir() / file.url
    # The checksum is part of the name, so that another version has another file.
    return cache_dir() / f"{entry.name}-{file.sha256[:16]}{Path(file.name).suffix}"


def _has_size(path: Path, file: WeightsFile) -> bool:
    try:
        status = path.stat()
    except OSError:  # missing, or in a folder that may not be read
        return False
    return stat.S_ISREG(status.st_mode) and file.size in (None, status.st_size)


def _is_right(path: Path, file: WeightsFile, whole: bool = False) -> bool:
    """Compare a file's checksum: computed now if `whole`, else when it was last written to."""
    try:
        return (cache.sha256_of if whole else cache.noted_sha256)(path) == file.sha256
    except OSError:  # a file that may not be read counts as missing
        return False


def check_at_rest(path: Path, entry: Weights) -> None:
    """Compute the checksum of weights that are about to be read; `WeightsError` if it is wrong.

    A note from an earlier time is not enough, because a bit on a disk may flip without a change of
    the file's time. PyTorch's files are zip archives, which have a checksum for each tensor anyway.
    """
    if path.suffix != ".pth" and cache.sha256_of(path) not in [file.sha256 for file in entry.files]:
        raise WeightsError(f"{path} is damaged: its checksum is wrong; {entry.remedy}")


def verify(name: str) -> Path:
    """Compare the checksum of weights; `WeightsError` if they are damaged or not here."""
    entry = get_weights(name)
    places = _places(entry)
    if not places:
        raise WeightsError(f"{name} is not here, or not whole; {entry.remedy}")
    path, file = places[0]
    try:
        sha256 = cache.sha256_of(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
    if sha256 != file.sha256:
        raise WeightsError(f"{path} has the sha256 {sha256}, wanted {file.sha256}; {entry.remedy}")
    return path


def fetch(name: str, progress: bool = True) -> Path:
    """Return the file of weights; download it if it is not here or its checksum is wrong.

    The file appears in the cache only when it is whole and its checksum is right, so that neither
    an interruption nor another process that does the same can spoil it. While it is downloaded,
    stderr shows a line, and on a terminal a bar.
    """
    return _obtain(get_weights(name), progress, whole=True)


def _obtain(entry: Weights, progress: bool, whole: bool = False) -> Path:
    """Return the file of weights that somebody asked for by name."""
    try:
        return _fetch(entry, progress, whole=whole)
    except DownloadError as error:
        raise DownloadError(
            f"{error}; get {entry.files[0].url} by other means, and give its path (--weights PATH)"
        ) from error


def _fetch(entry: Weights, progress: bool, *, hurry: bool = False, whole: bool = False) -> Path:
    """Find or download; in a hurry, give up at the first failure or delay."""
    if found := _find(entry, whole):
        return found[0]
    if entry.files[0].bundled:
        path = _own_path(entry, entry.files[0])
        raise WeightsError(f"{path} is missing or damaged; {entry.remedy}")
    failures = []
    if os.environ.get("MINIRES_OFFLINE", "0") not in ("", "0"):
        failures.append("MINIRES_OFFLINE or --offline forbids it")
    else:
        for file in entry.files:
            try:
                return download(file, _own_path(entry, file), progress, hurry)
            except (OSError, ValueError) as error:
                # An error with an errno is one of the disk: errors of the network have none.
                if isinstance(error, OSError) and error.errno is not None:
                    raise WeightsError(
                        f"{cache_dir()} could not be written to ({error.strerror}); make room, or "
                        "set MINIRES_CACHE to another folder"
                    ) from error
                failures.append(f"{file.url}: {reason(error)}")
    lack = "is damaged" if _places(entry) else "is not on this machine"
    raise DownloadError(f"{entry.name} {lack} and could not be downloaded ({'; '.join(failures)})")
