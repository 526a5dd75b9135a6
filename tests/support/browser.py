"""Chromium, driven through its WebDriver: what a person does with a page, and what the page says to its console."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from axe_core_python.base import AXE_SCRIPT

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
_WAIT_S = 60.0
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """One window; ``close`` it.

    Args:
        folder: for its profile.
    """

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._base = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen([str(DRIVER), f"--port={port}"], stdout=subprocess.DEVNULL)
        self.wait(self._is_ready)
        arguments = [*_FLAGS.split(), f"--user-data-dir={folder}"]
        options = {"binary": CHROMIUM, "args": arguments}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._base += f"/session/{made['sessionId']}"

    def open(self, url: str, *, width: int = 1600, height: int = 1200, dark: bool = False) -> None:
        """Go to a page in a window of this size, on a system that asks for light or dark colours."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._devtools("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._devtools("Emulation.setDeviceMetricsOverride", size)
        self._ask("POST", "/url", {"url": "about:blank"})
        self.complaints()  # of the page before, whose server may be gone
        self._ask("POST", "/url", {"url": url})

    def run(self, script: str) -> Any:
        """What a script returns that runs in the page."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": []})

    def text(self, selector: str) -> str:
        """What an element says."""
        return str(self.run(f"return document.querySelector({json.dumps(selector)})?.textContent ?? ''"))

    def click(self, selector: str) -> None:
        """Click on an element as a person does: it has to be there to be seen."""
        found = self._ask("POST", "/element", {"using": "css selector", "value": selector})
        self._ask("POST", f"/element/{found[_ELEMENT]}/click", {})

    def press(self, key: str) -> None:
        """Press a key."""
        strokes = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self._ask("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": strokes}]})

    def picture(self, path: Path) -> None:
        """Write the whole page as a PNG."""
        import base64

        height = self.run("return document.documentElement.scrollHeight")
        width = self.run("return innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        found = self._devtools("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(found["data"]))

    def complaints(self) -> list[str]:
        """What the console has got since the last time."""
        return [line["message"] for line in self._ask("POST", "/se/log", {"type": "browser"})]

    def barriers(self) -> list[str]:
        """What axe finds that keeps people from using the page, with all opened that can be: rule and element."""
        self.run("document.querySelectorAll('details').forEach((one) => { one.open = true })")
        self.run(AXE_SCRIPT + "\nwindow.found = null; axe.run().then((found) => { window.found = found })")
        self.wait(lambda: self.run("return window.found !== null"))
        nodes = "rule.nodes.map((node) => `${rule.id} (${rule.impact}): ${node.html.slice(0, 160)}`)"
        found: list[str] = self.run(f"return window.found.violations.flatMap((rule) => {nodes})")
        return found

    def wait(self, until: Callable[[], object]) -> None:
        """Until something is so; fails after a while."""
        end = time.monotonic() + _WAIT_S
        while not until():
            assert time.monotonic() < end, f"still not so after {_WAIT_S:.0f} s: {until}"
            time.sleep(0.1)

    def close(self) -> None:
        """End the browser and its driver."""
        try:
            self._ask("DELETE", "", None)
        finally:
            self._process.terminate()
            self._process.wait(_WAIT_S)

    def _is_ready(self) -> bool:
        try:
            return bool(self._ask("GET", "/status", None)["ready"])
        except OSError:
            return False

    def _devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        return self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _ask(self, method: str, path: str, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=_WAIT_S) as answer:
            return json.load(answer)["value"]
