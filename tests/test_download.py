import errno
import gzip
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
import tracemalloc
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import requests  # through which pooch downloads

from minires import cache as cache_module
from minires import download, transfer
from minires.errors import DownloadError, WeightsError
from minires.preprocess import IMAGENET_V1, IMAGENET_V2, Preset

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PRESET = "preset = { resize = 40, crop = 32, mean = [0.1, 0.2, 0.3], std = [1.0, 2.0, 3.0] }"
CACHED = f"SMALL-{SHA256[:16]}.pth"


BOMB = gzip.compress(bytes(2**27))  # 130 KB
ENDLESS = {
    "endless": f"sends more than the {len(CONTENT)} bytes",
    "gzip bomb": f"sends more than the {len(CONTENT)} bytes",
    "trickle": r"only \d+ bytes came in",
}


class Server(http.server.ThreadingHTTPServer):
    """Give CONTENT away, once it has misbehaved as `plan` says, a request a word.

    A path that begins with /missing is never found.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan: list[str] = []
        self.requests: list[str] = []
        self.stop_stalling = threading.Event()
        self.hung_up = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        manner = self.server.plan.pop(0) if self.server.plan else "good"
        if self.path.startswith("/missing"):
            manner = "404"
        if manner == "silent":
            self.server.stop_stalling.wait(20)
            return
        if manner.isdecimal():
            self.send_error(int(manner))
            return
        content = CONTENT[::-1] if manner == "wrong" else CONTENT
        half = len(content) // 2
        self.send_response(200)
        if manner in ENDLESS:
            self.send_without_end(manner)
            return
        if manner != "cut unnoticed":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:half])
        if manner == "stalled":
            self.wfile.flush()
            self.server.stop_stalling.wait(20)
        elif not manner.startswith("cut"):
            time.sleep(0.2 if manner == "slow" else 0)
            self.wfile.write(content[half:])

    def send_without_end(self, manner: str) -> None:
        """Send until the other side hangs up, as it has to."""
        if manner == "gzip bomb":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        piece = {"endless": CONTENT, "gzip bomb": BOMB, "trickle": b"x"}[manner]
        try:
            while not self.server.stop_stalling.wait(0.05 if manner == "trickle" else 0):
                self.wfile.write(piece)
        except OSError:
            self.server.hung_up.set()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.stop_stalling.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of minires; torch's is empty too."""
    monkeypatch.setenv("MINIRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("MINIRES_OFFLINE", raising=False)
    monkeypatch.setattr(transfer, "TIMEOUT", 0.3)
    monkeypatch.setattr("pooch.core.time", types.SimpleNamespace(sleep=lambda _: None))
    return tmp_path / "cache"


def write_manifest(folder: Path, *urls: str, size: str = f"size = {len(CONTENT)}") -> None:
    """Make weights called SMALL known, to be had at `urls`."""
    folder.mkdir(exist_ok=True)
    (folder / "names.txt").write_text("cat\ndog\n")
    lines = ["[SMALL]", 'categories = "names.txt"', 'licence = "none"', PRESET]
    for url in urls:
        lines += ["[[SMALL.files]]", f'url = "{url}"', f'sha256 = "{SHA256}"', size]
    (folder / "manifest.toml").write_text("\n".join(lines))


FEW = f"""
[FEW]
categories = "names.txt"
{PRESET}
[[FEW.files]]
url = "few.pth"
sha256 = "{SHA256}"
size = {len(CONTENT)}
"""


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for `write_manifest`."""
    monkeypatch.setattr(download, "weights_dir", lambda: tmp_path / "weights")
    return tmp_path / "weights"


@pytest.fixture
def small(server: Server, manifest: Path) -> Server:
    """The server from which SMALL can be had."""
    write_manifest(manifest, server.url("/models/small.pth"))
    return server


@pytest.fixture
def few(small: Server, manifest: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights that come with the package, for where SMALL, which is the default, cannot be had."""
    with (manifest / "manifest.toml").open("a") as file:
        file.write(FEW)
    (manifest / "few.pth").write_bytes(CONTENT)
    monkeypatch.setattr(download, "DEFAULT", "SMALL")
    monkeypatch.setattr(download, "FALLBACK", "FEW")
    return manifest / "few.pth"


def torch_file(tmp_path: Path, content: bytes = CONTENT) -> Path:
    path = tmp_path / "torch" / "hub" / "checkpoints" / "small.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_what_arrives_is_kept(small: Server, cache: Path) -> None:
    assert download.locate("SMALL") is None
    path = download.fetch("SMALL")
    assert path == cache / CACHED
    assert path.read_bytes() == CONTENT
    assert download.fetch("SMALL") == download.locate("SMALL") == download.verify("SMALL") == path
    assert small.requests == ["/models/small.pth"]


FAILURES = {
    "cut": "",
    "cut unnoticed": "SHA256",
    "stalled": "timed out",
    "silent": "timed out",
    "wrong": "SHA256",
    "404": "404",
    "503": "503",
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_followed_by_another_try(failure: str, small: Server, cache: Path) -> None:
    small.plan += [failure] * (transfer.ATTEMPTS - 1)
    assert download.fetch("SMALL").read_bytes() == CONTENT
    assert len(small.requests) == transfer.ATTEMPTS
    assert os.listdir(cache) == [CACHED]


@pytest.mark.parametrize("failure", FAILURES)
def test_failures_without_end_are_told(failure: str, small: Server, cache: Path) -> None:
    small.plan += [failure] * 9
    with pytest.raises(DownloadError) as caught:
        download.fetch("SMALL")
    text = str(caught.value)
    for part in "SMALL", f"{small.url('/models/small.pth')}: ", "--weights PATH", FAILURES[failure]:
        assert part in text
    assert "\n" not in text
    assert len(small.requests) == transfer.ATTEMPTS
    assert os.listdir(cache) == []
    assert download.locate("SMALL") is None
    small.plan.clear()
    assert download.fetch("SMALL").read_bytes() == CONTENT


def test_the_mirror_is_asked_when_the_first_fails(server: Server, manifest: Path) -> None:
    write_manifest(manifest, server.url("/missing/small.pth"), server.url("/mirror.safetensors"))
    path = download.fetch("SMALL")
    assert path.read_bytes() == CONTENT
    assert path.suffix == ".safetensors"
    assert server.requests == ["/missing/small.pth"] * transfer.ATTEMPTS + ["/mirror.safetensors"]
    assert download.fetch("SMALL") == path


def test_all_that_was_tried_is_told(server: Server, manifest: Path) -> None:
    urls = [server.url("/missing/a.pth"), "http://127.0.0.1:1/b.pth"]
    write_manifest(manifest, *urls)
    with pytest.raises(DownloadError) as caught:
        download.fetch("SMALL")
    assert f"{urls[0]}: 404" in str(caught.value)
    assert re.search(rf"{urls[1]}: .*[Cc]onnection", str(caught.value))
    assert f"get {urls[0]} " in str(caught.value)


@pytest.mark.parametrize("manner", ENDLESS)
def test_a_server_without_end_is_left_for_the_mirror(
    manner: str, server: Server, manifest: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PATIENCE", 0.5)
    write_manifest(manifest, server.url("/a.pth"), server.url("/b.pth"))
    server.plan.append(manner)
    assert download.fetch("SMALL").read_bytes() == CONTENT
    assert server.requests == ["/a.pth", "/b.pth"]
    # A thread that waits for a piece learns only with the piece that nobody wants it.
    assert manner == "trickle" or server.hung_up.wait(10)
    assert os.listdir(cache) == [CACHED]


@pytest.mark.parametrize("manner", ENDLESS)
def test_what_a_server_without_end_does_is_told(
    manner: str, small: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PATIENCE", 0.5)
    small.plan.append(manner)
    tracemalloc.start()
    with pytest.raises(DownloadError, match=rf"small\.pth: {ENDLESS[manner]}"):
        download.fetch("SMALL")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24
    assert os.listdir(cache) == []


@pytest.mark.parametrize("failure", ["", "wrong"])
def test_a_size_that_is_not_known(failure: str, server: Server, manifest: Path) -> None:
    server.plan.append(failure or "good")
    write_manifest(manifest, server.url("/small.pth"), size="")
    assert download.fetch("SMALL").read_bytes() == CONTENT


def test_offline_nothing_is_asked(
    small: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIRES_OFFLINE", "1")
    with pytest.raises(DownloadError, match=r"MINIRES_OFFLINE.*small\.pth .*--weights PATH"):
        download.fetch("SMALL")
    assert small.requests == []
    cache.mkdir()
    (cache / CACHED).write_bytes(CONTENT)
    assert download.fetch("SMALL") == cache / CACHED


@pytest.mark.skipif(os.name != "posix", reason="there is no umask")
def test_what_arrives_may_be_read_as_any_new_file(small: Server, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    assert download.fetch("SMALL").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_without_stderr_nothing_is_told(
    small: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert download.fetch("SMALL").read_bytes() == CONTENT
    assert capsys.readouterr().out == ""


def test_an_interruption_leaves_nothing(
    small: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(thread: threading.Thread, arrival: Any, _: float) -> None:
        while arrival.count == 0:
            assert thread.is_alive()
            time.sleep(0.01)
        raise KeyboardInterrupt

    small.plan.append("stalled")
    monkeypatch.setattr(transfer, "_watch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download.fetch("SMALL")
    assert os.listdir(cache) == []


def test_a_cache_that_cannot_be_made(small: Server, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(WeightsError, match=re.escape(str(cache))):
        download.fetch("SMALL")


FETCH = """
import sys
from pathlib import Path
from minires import cache as cache_module
from minires import download
download.weights_dir = lambda: Path(sys.argv[1])
print(download.fetch("SMALL"))
"""


def fetch_elsewhere(manifest: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, str(manifest)],
        env={**os.environ, "PYTHONPATH": str(Path(download.__file__).parents[1])},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_at_once(small: Server, manifest: Path, cache: Path) -> None:
    small.plan += ["slow", "slow"]
    processes = [fetch_elsewhere(manifest) for _ in range(2)]
    answers = [process.communicate()[0] for process in processes]
    assert answers == [f"{cache / CACHED}\n"] * 2
    assert (cache / CACHED).read_bytes() == CONTENT
    assert os.listdir(cache) == [CACHED]


def test_a_killed_download_leaves_nothing_that_counts(
    small: Server, manifest: Path, cache: Path
) -> None:
    small.plan.append("stalled")
    process = fetch_elsewhere(manifest)
    with process:
        while not list(cache.glob(f"{transfer.PARTIAL}*/*")):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    [left] = cache.iterdir()
    assert download.locate("SMALL") is None
    assert download.fetch("SMALL").read_bytes() == CONTENT
    assert left.exists()  # it might be another process's, which is at work
    (cache / CACHED).unlink()
    os.utime(left, (0, 0))
    download.fetch("SMALL")
    assert os.listdir(cache) == [CACHED]


def test_minires_looks_in_its_own_cache_first(small: Server, tmp_path: Path, cache: Path) -> None:
    of_torch = torch_file(tmp_path)
    assert download.locate("SMALL") == download.fetch("SMALL") == of_torch
    (cache / CACHED).write_bytes(CONTENT)
    assert download.locate("SMALL") == cache / CACHED
    (cache / CACHED).write_bytes(CONTENT[:-1])
    assert download.locate("SMALL") == of_torch
    assert small.requests == []
    assert of_torch.read_bytes() == CONTENT


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"x", b""])
def test_a_damaged_file_is_replaced(content: bytes, small: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / CACHED).write_bytes(content)
    assert download.fetch("SMALL").read_bytes() == CONTENT
    assert len(small.requests) == 1


def test_a_damaged_file_that_cannot_be_replaced_is_told(
    small: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir()
    (cache / CACHED).write_bytes(CONTENT[::-1])
    monkeypatch.setenv("MINIRES_OFFLINE", "1")
    with pytest.raises(DownloadError, match="SMALL is damaged and could not be downloaded"):
        download.fetch("SMALL")
    assert small.requests == []


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[::-1], b""])
def test_a_wrong_file_of_torch_is_passed_over(
    content: bytes, small: Server, tmp_path: Path, cache: Path
) -> None:
    of_torch = torch_file(tmp_path, content)
    assert download.locate("SMALL") is None
    assert download.fetch("SMALL") == cache / CACHED
    assert of_torch.read_bytes() == content


@pytest.mark.parametrize("place", ["torch's", "minires's", "the package's"])
def test_a_file_is_hashed_once_after_each_change(
    place: str, small: Server, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "FEW" if place == "the package's" else "SMALL"
    path = torch_file(tmp_path) if place == "torch's" else download.fetch(name)
    assert download.locate(name) == path
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "sha256_of", lambda path: pytest.fail("hashed again"))
        assert download.locate(name) == path
    path.write_bytes(CONTENT[::-1])
    os.utime(path, (1, 1))
    assert download.locate(name) is None


def test_a_note_that_is_not_whole_is_not_believed(small: Server, cache: Path) -> None:
    path = download.fetch("SMALL")
    assert download.locate("SMALL") == path
    [note] = cache.glob(f"*{cache_module.NOTE}")
    for left in "", "1 2 3", note.read_text()[:-1], "\0" * 100:
        note.write_text(left)
        assert download.locate("SMALL") == path


def test_few_notes_are_kept(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "MOST_NOTES", 3)
    for number in range(5):
        path = tmp_path / f"{number}.pth"
        path.write_bytes(CONTENT)
        assert cache_module.noted_sha256(path) == SHA256
    assert len(list(cache.iterdir())) == 3


def test_a_flipped_bit_is_noticed_although_no_time_of_change_tells(few: Path) -> None:
    """What a disk does: neither the size nor a time changes."""
    path, entry = download.resolve("FEW")
    assert entry
    download.check_at_rest(path, entry)
    status = path.stat()
    path.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    renamed = path.with_suffix(".safetensors")  # PyTorch's archives have checksums of their own
    path.rename(renamed)
    with pytest.raises(WeightsError, match=r"damaged: its checksum is wrong; .* install minires"):
        download.check_at_rest(renamed, entry)


@pytest.mark.usefixtures("few")
def test_a_flipped_bit_is_noticed_before_the_weights_are_used(small: Server, cache: Path) -> None:
    path, _ = download.resolve("SMALL")
    assert download.resolve("SMALL")[0] == path
    path.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    assert download.resolve("SMALL")[0].read_bytes() == CONTENT
    assert len(small.requests) == 2


def test_a_file_of_torch_that_may_not_be_read_is_passed_over(
    small: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    torch_file(tmp_path)
    monkeypatch.setattr(cache_module, "sha256_of", refuse)
    assert download.locate("SMALL") is None


def test_a_file_of_torch_does_without_a_cache(small: Server, tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    of_torch = torch_file(tmp_path)
    assert download.locate("SMALL") == of_torch


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"TORCH_HOME": "/a"}, "/a/hub/checkpoints"),
        ({"TORCH_HOME": "/a", "XDG_CACHE_HOME": "/b"}, "/a/hub/checkpoints"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/torch/hub/checkpoints"),
        ({"TORCH_HOME": "~/a"}, "/home/me/a/hub/checkpoints"),
        ({}, "/home/me/.cache/torch/hub/checkpoints"),
    ],
)
def test_where_torch_keeps_its_files(
    variables: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "TORCH_HOME", "XDG_CACHE_HOME":
        monkeypatch.delenv(name, raising=False)
    for name, value in {**variables, "HOME": "/home/me", "USERPROFILE": "/home/me"}.items():
        monkeypatch.setenv(name, value)
    assert download.torch_cache_dir() == Path(folder)


def test_where_minires_keeps_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIRES_CACHE", "~/somewhere")
    assert download.cache_dir() == Path.home() / "somewhere"
    monkeypatch.delenv("MINIRES_CACHE")
    assert download.cache_dir().name == "minires"


def test_verify_reads_the_whole_file(small: Server, cache: Path) -> None:
    with pytest.raises(WeightsError, match=r"SMALL is not here.*minires weights fetch SMALL"):
        download.verify("SMALL")
    path = download.fetch("SMALL")
    path.write_bytes(CONTENT[::-1])
    assert download.locate("SMALL") is None
    with pytest.raises(WeightsError, match=f"{re.escape(str(path))} has.*wanted {SHA256}"):
        download.verify("SMALL")


def test_a_path_comes_before_a_name(
    small: Server, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert download.resolve("SMALL", progress=False) == (
        cache / CACHED,
        download.get_weights("SMALL"),
    )
    Path("SMALL").write_text("a file of that name")
    assert download.resolve("SMALL") == (Path("SMALL"), None)
    assert download.resolve(tmp_path) == (tmp_path, None)


def test_a_folder_is_not_taken_for_weights_of_its_name(
    small: Server, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("SMALL").mkdir()
    assert download.resolve("SMALL")[0] == cache / CACHED
    assert len(small.requests) == 1


def test_a_file_of_a_known_size_that_may_not_be_read_is_not_recognized(
    small: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    path = tmp_path / "mine.pth"
    path.write_bytes(CONTENT)
    monkeypatch.setattr(cache_module, "sha256_of", refuse)
    assert download.resolve(path) == (path, None)
    download.fetch("SMALL")
    with pytest.raises(WeightsError, match="cannot be read"):
        download.verify("SMALL")


@pytest.mark.parametrize("wanted", [123, None, ["SMALL"], b"SMALL", 1.5, "x" * 10_000])
def test_what_is_no_name_is_refused_in_a_sentence(wanted: Any, small: Server) -> None:
    for ask in download.resolve, download.get_weights:
        with pytest.raises(WeightsError) as caught:
            ask(wanted)
        assert len(str(caught.value)) < 500
    assert small.requests == []


@pytest.mark.parametrize("wanted", ["nothing/here.pth", Path("nothing/here.pth"), "IMAGENET22K"])
def test_neither_a_path_nor_a_name(wanted: str | Path) -> None:
    with pytest.raises(WeightsError, match=r"no such file, and.*IMAGENET1K_V1, IMAGENET1K_V2"):
        download.resolve(wanted)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("progress", [False, True])
def test_a_line_tells_and_a_bar_shows_on_a_terminal(
    terminal: bool,
    progress: bool,
    small: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    small.plan += ["slow"]
    download.fetch("SMALL", progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert (CACHED in err) == (terminal and progress)
    assert err.count("minires: downloading") == progress


def test_a_notebook_is_not_asked_for_widgets(
    small: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pooch imports tqdm.auto, which warns in a notebook; here another pooch does, anywhere."""
    warns = (
        "import warnings\nfrom tqdm import TqdmWarning\nwarnings.warn('no ipywidgets', TqdmWarning)"
    )
    (tmp_path / "pooch.py").write_text(f"{warns}\nraise RuntimeError('it was imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pooch", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="it was imported"):
            download.fetch("SMALL")


def test_what_is_known_by_name(small: Server) -> None:
    assert download.available_weights() == ["SMALL"]
    weights = download.get_weights("SMALL")
    assert weights.preset == Preset(40, 32, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert weights.sha256 == SHA256
    assert weights.meta == {
        "name": "SMALL",
        "categories": ["cat", "dog"],
        "licence": "none",
        "preset": weights.preset,
    }


@pytest.mark.parametrize("name", ["imagenet1k_v2", "IMAGENET1K-V2", "IMAGENETV2"])
def test_a_slip_gets_a_hint(name: str) -> None:
    with pytest.raises(WeightsError, match=rf"'{name}'.*did you mean IMAGENET1K_V2\?"):
        download.get_weights(name)


def test_no_hint_without_a_resemblance() -> None:
    with pytest.raises(WeightsError) as caught:
        download.get_weights("vgg")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "preset", "accuracy"),
    [
        ("IMAGENET1K_V1", IMAGENET_V1, {"acc@1": 76.130, "acc@5": 92.862}),
        ("IMAGENET1K_V2", IMAGENET_V2, {"acc@1": 80.858, "acc@5": 95.434}),
    ],
)
def test_the_real_manifest(name: str, preset: Preset, accuracy: dict[str, float]) -> None:
    weights = download.get_weights(name)
    assert weights.preset == preset
    assert weights.meta["accuracy"] == accuracy
    assert weights.meta["num_params"] == 25_557_032
    assert weights.meta["categories"] == download.imagenet_categories()
    assert "BSD-3-Clause" in weights.meta["licence"]
    json.dumps(weights.meta | {"preset": asdict(weights.preset)})  # it travels in INT8 files
    for file in weights.files:
        assert file.url.startswith("https://")
        assert re.fullmatch("[0-9a-f]{64}", file.sha256)
        assert file.url.endswith((f"-{file.sha256[:8]}.pth", ".safetensors"))


def test_the_default_is_known() -> None:
    assert download.DEFAULT in download.available_weights()


def test_the_categories_are_in_torchvisions_order() -> None:
    names = download.imagenet_categories()
    assert len(names) == len(set(names)) == 1000
    assert all(name == name.strip() and name for name in names)
    picked = {0: "tench", 1: "goldfish", 281: "tabby", 285: "Egyptian cat", 999: "toilet tissue"}
    assert {index: names[index] for index in picked} == picked


def test_the_wheel_has_them_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout, installed = tmp_path / "weights", tmp_path / "minires" / "weights"
    monkeypatch.setattr(download, "__file__", str(tmp_path / "minires" / "download.py"))
    checkout.mkdir()
    assert download.weights_dir() == checkout
    installed.mkdir(parents=True)
    assert download.weights_dir() == installed


def test_a_file_given_by_path_is_recognized_by_its_checksum(
    small: Server, cache: Path, tmp_path: Path
) -> None:
    """Fetched by other means, as the error says: it has its name, its accuracy and its preset."""
    path = tmp_path / "renamed.pth"
    path.write_bytes(download.fetch("SMALL").read_bytes())
    found, entry = download.resolve(path)
    assert found == path
    assert entry == download.get_weights("SMALL")
    path.write_bytes(b"x" * path.stat().st_size)
    assert download.resolve(path) == (path, None)


def test_a_file_by_its_path_that_is_no_longer_the_one_of_its_name_is_told(few: Path) -> None:
    few.write_bytes(CONTENT[::-1])
    with pytest.warns(UserWarning, match=r"few\.pth has the name and size of FEW, but not its"):
        assert download.resolve(few) == (few, None)


# What comes with the package


def test_what_comes_with_the_package_is_here(few: Path, small: Server, cache: Path) -> None:
    assert download.locate("FEW") == download.fetch("FEW") == download.verify("FEW") == few
    assert download.resolve("FEW") == (few, download.get_weights("FEW"))
    assert small.requests == []
    assert [path.suffix for path in cache.iterdir()] == [".verified"]


@pytest.mark.parametrize("ask", [download.fetch, download.verify])
@pytest.mark.parametrize("content", [None, CONTENT[:-1], CONTENT[::-1]])
def test_what_came_with_the_package_and_is_damaged(
    ask: Callable[[str], Path], content: bytes | None, few: Path, small: Server
) -> None:
    few.unlink() if content is None else few.write_bytes(content)
    with pytest.raises(WeightsError, match="install minires anew"):
        ask("FEW")
    assert small.requests == []


# Where nobody named any weights


def one_line(capture: pytest.CaptureFixture[str]) -> str:
    out, err = capture.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


@pytest.mark.usefixtures("few")
def test_the_default_is_downloaded_where_it_can_be(
    small: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert download.default_weights().name == "SMALL"
    assert one_line(capsys) == f"minires: downloading {small.url('/models/small.pth')}, 0 MB\n"
    assert os.listdir(cache) == [CACHED]
    monkeypatch.setenv("MINIRES_OFFLINE", "1")
    assert download.default_weights().name == "SMALL"
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("failure", FAILURES)
def test_the_package_answers_where_a_download_fails(
    failure: str, small: Server, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.plan += [failure] * 9
    assert download.default_weights().name == "FEW"
    out, err = capsys.readouterr()
    downloading, told = err.splitlines()
    assert out == ""
    assert downloading.startswith("minires: downloading http")
    assert len(small.requests) == 1
    assert told.startswith("minires: SMALL is not on this machine")
    assert FAILURES[failure] in told
    assert "FEW answers, with 2 classes" in told
    assert "minires weights fetch" in told
    assert [path.suffix for path in cache.iterdir()] == [".verified"]  # FEW's, no part of SMALL


@pytest.mark.usefixtures("few")
def test_the_package_answers_where_nothing_can_be_kept(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.write_text("a file where the folder should be")
    assert download.default_weights().name == "FEW"
    assert str(cache) in one_line(capsys)


def test_the_package_answers_where_nobody_listens(
    few: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(manifest, "http://127.0.0.1:1/a.pth", "http://127.0.0.1:1/b.pth")
    with (manifest / "manifest.toml").open("a") as file:
        file.write(FEW)
    assert download.default_weights().name == "FEW"
    downloading, told = capsys.readouterr().err.rstrip("\n").rsplit("\n", 1)
    assert downloading.count("minires: downloading") == 2
    assert re.search(r"a\.pth: .*refused.*b\.pth: .*refused", told)
    assert "HTTPConnection" not in told


@pytest.mark.usefixtures("few")
def test_a_network_that_swallows_everything_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    released = threading.Event()
    monkeypatch.setattr(requests, "get", lambda *_, **__: released.wait(20))
    monkeypatch.setattr(transfer, "HURRY", 0.1)
    began = time.monotonic()
    assert download.default_weights().name == "FEW"
    assert time.monotonic() - began < 10
    released.set()
    assert "only 0 bytes came" in capsys.readouterr().err


@pytest.mark.usefixtures("small", "few")
def test_a_folder_that_may_not_be_looked_into_holds_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stat = Path.stat

    def refuse(path: Path, **options: Any) -> os.stat_result:
        if cache in path.parents or "torch" in path.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    monkeypatch.setenv("MINIRES_OFFLINE", "1")
    assert download.default_weights().name == "FEW"
    assert "FEW answers" in one_line(capsys)


@pytest.mark.usefixtures("small", "few")
def test_a_folder_of_the_same_name_is_not_taken_for_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FEW").mkdir()
    monkeypatch.setenv("MINIRES_OFFLINE", "1")
    path, entry = download.resolve(download.default_weights())
    assert path.name == "few.pth"
    assert entry == download.get_weights("FEW")


def test_without_the_packages_own_file_nothing_answers(
    few: Path, small: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIRES_OFFLINE", "1")
    few.unlink()
    with pytest.raises(WeightsError, match=r"SMALL is not .*, nor is FEW here: .*install"):
        download.default_weights()
    assert small.requests == []


def test_a_missing_certificate_is_no_matter_of_the_disk(
    small: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("Could not find a suitable TLS CA certificate bundle")

    monkeypatch.setattr(requests, "get", refuse)
    with pytest.raises(DownloadError, match="certificate bundle"):
        download.fetch("SMALL")
    assert small.requests == []


@pytest.mark.usefixtures("few")
def test_offline_the_package_answers_at_once(
    small: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINIRES_OFFLINE", "1")
    monkeypatch.setattr(download, "download", lambda *_: pytest.fail("asked"))
    assert download.default_weights().name == "FEW"
    assert "MINIRES_OFFLINE or --offline" in one_line(capsys)
    assert small.requests == []
