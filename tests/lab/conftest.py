"""The page with the bundled network, from a server of its own, and a browser to look at it with."""

import threading
from collections.abc import Iterator, Mapping

import pytest

from minires.lab.export import export_network
from minires.lab.serve import make_server, site
from tests.lab.browser import PROGRAM, Browser


@pytest.fixture(scope="session")
def files() -> Mapping[str, bytes]:
    """All that is served: the page, and the bundled network."""
    return site(export_network())


@pytest.fixture(scope="session")
def address(files: Mapping[str, bytes]) -> Iterator[str]:
    with make_server(files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser, which all tests share: to start one takes a second."""
    if PROGRAM is None:
        pytest.skip("there is no Chromium here")
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started
