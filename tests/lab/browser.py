"""A browser that a test can drive: Chromium over the DevTools protocol, through two pipes.

A pipe needs no port and no WebSocket. A message is JSON with a zero byte behind it.
https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
PATIENCE = 120.0  # seconds: guards against hanging, on a loaded machine too
# No sandbox, since tests run as root in containers; shared memory may be tiny there.
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
           "--no-first-run", "--hide-scrollbars", "--disable-background-networking",
           "--disable-component-update", "--disable-sync", "--remote-debugging-pipe")  # fmt: skip


class Page:
    """What all browsers have in common: a page that runs JavaScript, and what went wrong in it."""

    errors: Any  # list[str]: what the page logged as an error, or did not catch

    def run(self, script: str) -> Any:
        """Run JavaScript in the page, and return its value; a promise is waited for."""
        raise NotImplementedError

    def wait(self, script: str) -> Any:
        """Ask the page until JavaScript is true there, and return its value."""
        end = time.monotonic() + PATIENCE
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}; errors: {self.errors}"
            time.sleep(0.02)
        return value


class Browser(Page):
    """A headless Chromium with one page, for a with statement."""

    def __init__(self, profile: Path, *options: str) -> None:
        assert PROGRAM is not None
        # It reads commands from descriptor 3 and answers on descriptor 4.
        self.process = subprocess.Popen(
            ["sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null', "sh", PROGRAM, *OPTIONS,
             f"--user-data-dir={profile}", *options, "about:blank"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.to, self.out = self.process.stdin.fileno(), self.process.stdout.fileno()
        self.count, self.buffer, self.session = 0, b"", ""
        self.errors: list[str] = []  # what the page logged as an error, or did not catch
        self.requests: list[str] = []  # every address that the page asked for
        pages = self.send("Target.getTargets")["targetInfos"]
        target = next(page["targetId"] for page in pages if page["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        with self.process:  # it closes both pipes, and waits
            self.process.terminate()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, and return its answer."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self.count:
                assert "error" not in answer, f"{method}: {answer}"
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.out], [], [], PATIENCE)
            assert ready, "the browser does not answer"
            read = os.read(self.out, 2**20)
            assert read, "the browser ended"
            self.buffer += read
        message, _, self.buffer = self.buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        self._note(answer.get("method", ""), answer.get("params", {}))
        return answer

    def _note(self, event: str, parameters: Mapping[str, Any]) -> None:
        """Keep what a test asks for later: errors and requests."""
        if event == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        if event == "Runtime.consoleAPICalled" and parameters["type"] == "error":
            self.errors.append(str(parameters["args"]))
        if event == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url')}")
        if event == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])

    def run(self, script: str) -> Any:
        """Run JavaScript in the page, and return its value; a promise is waited for."""
        answer = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True,
            userGesture=True,
        )  # fmt: skip
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, url: str) -> None:
        """Open a page of its own, even where only what stands behind # differs."""
        self.send("Page.navigate", url="about:blank")
        self.wait("location.href === 'about:blank'")
        self.errors, self.requests = [], []
        self.send("Page.navigate", url=url)
        self.wait("location.href !== 'about:blank' && document.readyState === 'complete'")

    def look(self, width: int, height: int, scheme: str) -> None:
        """Give the page a size, and a colour scheme: light or dark."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.send("Emulation.setEmulatedMedia", features=[feature])

    def press(self, key: str) -> None:
        """Press a key and let it go; ' ' is the space bar."""
        typed = {"Enter": "\r", " ": " "}.get(key, key if len(key) == 1 else "")
        codes = {"Enter": 13, "Tab": 9, " ": 32, "Escape": 27, "End": 35, "Home": 36,
                 "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}  # fmt: skip
        code = codes.get(key, ord(key[0].upper()))
        down: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": code}
        self.send(
            "Input.dispatchKeyEvent", type="keyDown", **down, **({"text": typed} if typed else {})
        )
        self.send("Input.dispatchKeyEvent", type="keyUp", **down)

    def mouse(self, kind: str, x: float, y: float) -> None:
        """Do one thing with the mouse: pressed, moved or released."""
        held = {"button": "left", "buttons": 1, "clickCount": 1}
        self.send("Input.dispatchMouseEvent", type=f"mouse{kind.title()}", x=x, y=y, **held)

    def click(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        """Click on an element, at a share of its width and height.

        A view is shown a moment after its link was clicked, so what is in it is waited for.
        """
        self.wait(f"!!document.querySelector({json.dumps(selector)})?.getClientRects().length")
        box = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'});"
            "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
        )
        assert box[2] * box[3] > 0, f"too small to click on: {selector}"
        at = box[0] + x * box[2], box[1] + y * box[3]
        for kind in ("moved", "pressed", "released"):
            self.mouse(kind, *at)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """Keep what the page shows as a PNG: all of it, or what a reader sees first."""
        picture = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(picture["data"]))
