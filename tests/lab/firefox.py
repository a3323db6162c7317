"""Firefox, driven by a test through Marionette, its own protocol.

A message is JSON behind its length and a colon, over a socket of this machine.
https://firefox-source-docs.mozilla.org/testing/marionette/Protocol.html
"""

import base64
import json
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.lab.browser import PATIENCE, Page

PROGRAM = next(filter(None, map(shutil.which, ("firefox", "firefox-esr"))), None)
# It chooses a free port and writes it into the profile; it asks nobody for anything.
PREFERENCES = """
user_pref("marionette.port", 0);
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("app.update.enabled", false);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
user_pref("toolkit.telemetry.enabled", false);
"""
# What went wrong in the page since it was opened.
LISTEN = """
    globalThis.wrong = [];
    addEventListener('error', event => wrong.push(String(event.message)));
    addEventListener('unhandledrejection', event => wrong.push(String(event.reason)));
    const log = console.error;
    console.error = (...words) => { wrong.push(words.join(' ')); log(...words); };
"""


class Firefox(Page):
    """A headless Firefox with one page, for a with statement."""

    def __init__(self, profile: Path) -> None:
        assert PROGRAM is not None
        profile.mkdir(parents=True, exist_ok=True)
        (profile / "user.js").write_text(PREFERENCES, encoding="utf-8")
        self.process = subprocess.Popen(
            [PROGRAM, "--headless", "--no-remote", "--marionette", "--profile", str(profile)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        port = self._wait_for_port(profile / "MarionetteActivePort")
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.stream, self.count = self.socket.makefile("rb"), 0
        self._receive()  # it says hello
        limits = {"script": int(1000 * PATIENCE), "pageLoad": int(1000 * PATIENCE)}
        self.send("WebDriver:NewSession", capabilities={"alwaysMatch": {"timeouts": limits}})

    def _wait_for_port(self, file: Path) -> int:
        end = time.monotonic() + PATIENCE
        while not (file.exists() and file.read_text(encoding="utf-8").strip()):
            assert self.process.poll() is None, "Firefox ended"
            assert time.monotonic() < end, "Firefox does not answer"
            time.sleep(0.05)
        return int(file.read_text(encoding="utf-8"))

    def __enter__(self) -> "Firefox":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.stream.close()
        self.socket.close()
        with self.process:
            self.process.terminate()

    def send(self, command: str, **parameters: Any) -> Any:
        """Send a command, and return its answer."""
        self.count += 1
        message = json.dumps([0, self.count, command, parameters]).encode()
        self.socket.sendall(b"%d:%s" % (len(message), message))
        _, number, error, result = self._receive()
        assert number == self.count
        assert error is None, f"{command}: {error}"
        return result

    def _receive(self) -> Any:
        digits = b""
        while (byte := self.stream.read(1)) != b":":
            assert byte, "Firefox ended"
            digits += byte
        return json.loads(self.stream.read(int(digits)))

    def run(self, script: str) -> Any:
        """Run JavaScript in the page, and return its value; a promise is waited for."""
        # In the page's own world, so that what one script defines the next one finds.
        script = f"return window.eval({json.dumps(script)});"
        return self.send("WebDriver:ExecuteScript", script=script, args=[], sandbox=None)["value"]

    def open(self, url: str) -> None:
        """Open a page, and listen to what goes wrong in it."""
        self.send("WebDriver:Navigate", url="about:blank")
        self.send("WebDriver:Navigate", url=url)
        self.run(f"(() => {{{LISTEN}}})()")

    @property
    def errors(self) -> list[str]:
        """What the page logged as an error, or did not catch."""
        found: list[str] = self.run("wrong")
        return found

    @property
    def requests(self) -> list[str]:
        """Every address that the page asked for."""
        resources = "performance.getEntriesByType('resource').map(entry => entry.name)"
        found: list[str] = self.run(f"[location.href, ...{resources}]")
        return found

    def screenshot(self, path: Path) -> None:
        """Keep the whole page as a PNG."""
        picture = self.send("WebDriver:TakeScreenshot", full=True, hash=False)["value"]
        path.write_bytes(base64.b64decode(picture))
