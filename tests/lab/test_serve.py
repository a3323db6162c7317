"""The server of the page: what it gives, to whom, and what not."""

import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from minires.errors import MiniresError
from minires.lab.serve import PAGE, make_server, site, write_site


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    files = site({"int8.safetensors": bytes(5_000_000), "int8.json": b"{}"})
    with make_server(files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def get(port: int, path: str, host: str = "") -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{port}"})
    return connection.getresponse()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/engine/network.js", "text/javascript; charset=utf-8"),
        ("/engine/kernels.wasm?again", "application/wasm"),
    ],
)
def test_the_page_is_served(port: int, path: str, kind: str) -> None:
    answer = get(port, path)
    assert answer.status == 200
    assert answer.getheader("Content-Type") == kind
    assert answer.read() == (PAGE / path.lstrip("/").partition("?")[0]).read_bytes()


def test_a_network_lies_beside_the_page(port: int) -> None:
    answer = get(port, "/weights/int8.safetensors", f"localhost:{port}")
    assert answer.getheader("Content-Type") == "application/octet-stream"
    assert answer.getheader("Content-Length") == "5000000"
    assert len(answer.read()) == 5_000_000


@pytest.mark.parametrize(
    "path", ["/engine", "/engine/", "/nothing", "/../serve.py", "/engine/../../serve.py",
             "/%2e%2e/serve.py", "//etc/passwd", "/weights/../../serve.py"]
)  # fmt: skip
def test_nothing_else_is(port: int, path: str) -> None:
    assert get(port, path).status == 404


def test_pages_from_elsewhere_read_nothing(port: int) -> None:
    assert get(port, "/weights/int8.json", f"example.com:{port}").status == 403


def test_a_reader_may_leave(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(("127.0.0.1", port)) as reader:
        request = f"GET /weights/int8.safetensors HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"
        reader.sendall(request.encode())
        reader.recv(10)
    assert get(port, "/weights/int8.json").status == 200
    assert capsys.readouterr().err == ""


def test_the_same_files_can_lie_in_a_folder(tmp_path: Path) -> None:
    files = site({"int8.json": b"{}"})
    write_site(tmp_path / "lab", files)
    written = {path for path in (tmp_path / "lab").rglob("*") if path.is_file()}
    found = {path.relative_to(tmp_path / "lab").as_posix(): path.read_bytes() for path in written}
    assert found == files
    assert {"engine/network.js", "engine/kernels.wasm", "weights/int8.json"} <= set(files)


def test_a_port_that_is_taken_is_told(port: int) -> None:
    with pytest.raises(MiniresError, match=f"port {port} cannot be had"):
        make_server({}, port)
