"""The page's files, and a server of them for this machine's own browser."""

import contextlib
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from minires.errors import MiniresError

PAGE = Path(__file__).with_name("page")
# Told here, because not every system knows them. A browser runs no script of another kind.
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
OTHER = "application/octet-stream"


def site(network: Mapping[str, bytes]) -> dict[str, bytes]:
    """Put together all that is served: the page's files, and beside them a network's."""
    page = (path for path in PAGE.rglob("*") if path.is_file())
    files = {path.relative_to(PAGE).as_posix(): path.read_bytes() for path in page}
    return files | {f"weights/{name}": content for name, content in network.items()}


def write_site(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the same files into a folder, for any server of plain files."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def make_server(files: Mapping[str, bytes], port: int = 0) -> ThreadingHTTPServer:
    """Make a server of these files, for this machine alone.

    An address is looked up among their names, so nothing else can be asked for. A port that is
    taken raises `MiniresError`.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.partition("?")[0].removeprefix("/") or "index.html"
            # A page from elsewhere may have a name that leads here, and must not read what is here.
            if self.headers.get("Host") not in names:
                self.send_error(HTTPStatus.FORBIDDEN)
            elif name not in files:
                self.send_error(HTTPStatus.NOT_FOUND)
            else:
                self._send(name, files[name])

        def _send(self, name: str, content: bytes) -> None:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", KINDS.get(Path(name).suffix, OTHER))
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")  # other weights may come next time
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the reader has left the page
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Keep silent."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        raise MiniresError(f"port {port} cannot be had ({error}); name another one") from error
    names = {f"{name}:{server.server_port}" for name in ("127.0.0.1", "localhost")}
    return server
