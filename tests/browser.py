"""A headless Chromium that tests drive as a person would, over its DevTools protocol: `with browser(folder)
as page: …`."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from cluster.core.network import free_port

needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium: see .ci/debian-packages")


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._number = socket, 0
        self.errors: list[str] = []
        """What scripts threw, and what the browser refused to load."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self._heard(message)

    def _heard(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(message["params"]["exceptionDetails"])[:500])
        elif message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            self.errors.append(message["params"]["entry"]["text"])

    def open(self, url: str, headers: dict[str, str] | None = None) -> None:
        self.call("Network.setExtraHTTPHeaders", headers=headers or {})
        self.call("Page.navigate", url=url)

    def js(self, expression: str) -> Any:
        """The value of an expression, or of the promise that it gives."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str, timeout_s: float = 60) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (value := self.js(expression)):
            assert time.monotonic() < deadline, (
                f"{expression} is not so after {timeout_s} s: {self.js('document.body.innerText')}")
            time.sleep(0.05)
        return value

    def size(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 500)

    def place(self, selector: str) -> tuple[float, float, float, float]:
        """x, y, width, height of an element, once it has been scrolled to."""
        return tuple(self.js(f"(e => {{e.scrollIntoView({{block: 'nearest'}}); const b = e.getBoundingClientRect(); "
                             "return [b.x, b.y, b.width, "
                             f"b.height]}})(document.querySelector({json.dumps(selector)}))"))

    def draw(self, selector: str, *points: tuple[float, float]) -> None:
        """One stroke with the mouse, through points in fractions of an element's size."""
        x, y, width, height = self.place(selector)
        for number, (across, down) in enumerate(points):
            kind = "mousePressed" if number == 0 else "mouseMoved"
            self._mouse(kind, x + across * width, y + down * height)
        self._mouse("mouseReleased", x + points[-1][0] * width, y + points[-1][1] * height)

    def click(self, selector: str) -> None:
        self.draw(selector, (0.5, 0.5))

    def _mouse(self, kind: str, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def press(self, key: str, code: int) -> None:
        text = {"text": "\r"} if key == "Enter" else {}  # without it, a button does not hear of it
        for kind, more in (("keyDown", text), ("keyUp", {})):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """Ends with the block. folder: for its profile."""
    port = free_port()
    process = subprocess.Popen(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--remote-debugging-port={port}",
         f"--user-data-dir={folder}/profile", "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with connect(_tab(port), max_size=None) as socket:
            yield Page(socket)
    finally:
        process.kill()
        process.wait()


def _tab(port: int) -> str:
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5) as response:
                return next(tab["webSocketDebuggerUrl"] for tab in json.load(response) if tab["type"] == "page")
        except (OSError, StopIteration):
            assert time.monotonic() < deadline, "chromium does not start"
            time.sleep(0.1)
