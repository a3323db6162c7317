"""``minires lab``, as far as its own words go."""

import threading
import urllib.request
import webbrowser
from http.server import ThreadingHTTPServer

import pytest

from minires import cli
from minires.lab import export


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    asked: list[tuple[object, ...]] = []

    def made(weights: object, image: object, **own: object) -> dict[str, bytes]:
        asked.append((weights, image, own))
        return {"int8.json": b"{}"}

    monkeypatch.setattr(export, "export_network", made)
    return asked


def interrupt(server: ThreadingHTTPServer) -> None:
    """Serve one request, and then be interrupted as by Ctrl-C."""
    server.handle_request()
    raise KeyboardInterrupt


def test_it_serves_until_ctrl_c(
    network: list[tuple[object, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers: list[bytes] = []

    def look(url: str) -> None:
        def fetch() -> None:
            with urllib.request.urlopen(f"{url}weights/int8.json") as answer:
                answers.append(answer.read())

        readers.append(threading.Thread(target=fetch))
        readers[0].start()

    readers: list[threading.Thread] = []
    monkeypatch.setattr(webbrowser, "open", look)
    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", interrupt)
    assert cli.main(["lab", "--weights", "mine.safetensors", "--preset", "CIFAR10"]) == 0
    readers[0].join()
    assert answers == [b"{}"]
    assert network == [("mine.safetensors", None, {"categories": None, "preset": "CIFAR10"})]
    assert capsys.readouterr().out.startswith("http://127.0.0.1:")


def test_the_browser_can_be_left_closed(
    network: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: ThreadingHTTPServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", stop)
    monkeypatch.setattr(webbrowser, "open", lambda url: pytest.fail(f"opened {url}"))
    assert cli.main(["lab", "--no-browser", "cat.jpg"]) == 0
    assert str(network[0][1]) == "cat.jpg"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--weights", "no-such-weights"], "no such file"),
        (["no-such.jpg"], "no-such.jpg: cannot be opened"),
        (["--port", "70000"], "port 70000 cannot be had"),
    ],
)
def test_bad_words_are_told(
    words: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--port" in words:
        monkeypatch.setattr(export, "export_network", lambda *_, **__: {})
    assert cli.main(["lab", "--no-browser", *words]) == 1
    assert told in capsys.readouterr().err
