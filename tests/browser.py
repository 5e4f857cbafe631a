"""Drives a headless Chromium by its DevTools protocol, over two pipes and no network."""

import base64
import contextlib
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 60.0  # In which it must answer, on a machine that does much else.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--disable-quic", "--hide-scrollbars"),
    *("--force-color-profile=srgb", "--remote-debugging-pipe"),
)


def missing() -> str | None:
    """Returns why pages cannot be looked at here; nothing where they can."""
    if any(map(shutil.which, PROGRAMS)):
        return None
    return "needs Chromium: apt-get install --no-install-recommends chromium"


class Tab:
    """A page in a browser, and all that it complained of or asked for."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._unread, self._number = b"", 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Returns the browser's answer."""
        self._number += 1
        message: dict[str, Any] = dict(id=self._number, method=method)
        message["params"] = parameters
        if self._session:
            message["sessionId"] = self._session
        left = json.dumps(message).encode() + b"\0"
        while left:
            left = left[os.write(self._to, left) :]
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(
        self, path: pathlib.Path, width: int, height: int, dark: bool = False
    ) -> None:
        """Shows a file in a window of that many CSS pixels."""
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = dict(name="prefers-color-scheme", value="dark" if dark else "light")
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.as_uri())
        while not self.told("Page.loadEventFired"):
            self.events.append(self._read())

    def told(self, *methods: str) -> list[dict[str, Any]]:
        """Returns the events of these kinds since the page was opened."""
        return [e["params"] for e in self.events if e.get("method") in methods]

    def complaints(self) -> list[dict[str, Any]]:
        """Returns exceptions, and what is on the console."""
        return self.told(
            "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"
        )

    def requests(self) -> list[str]:
        """Returns the addresses that the page asked for, itself among them."""
        asked = self.told("Network.requestWillBeSent")
        urls = [one["request"]["url"] for one in asked]
        return [url for url in urls if not url.startswith("data:")]

    def value(self, expression: str) -> Any:
        """Returns the value of an expression in JavaScript."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, path: pathlib.Path) -> None:
        """Writes a picture of the whole page, PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _read(self) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._from], [], [], end - time.monotonic())
            part = os.read(self._from, 1 << 16) if ready else b""
            assert part, "the browser says nothing"
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)


@contextlib.contextmanager
def tab() -> Iterator[Tab]:
    """Gives a tab of a browser of its own, which ends with it."""
    program = next(filter(None, map(shutil.which, PROGRAMS)))
    theirs_in, to_browser = os.pipe()
    from_browser, theirs_out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # It reads from descriptor 3 and writes to 4.
        pipes = (
            f"import os, sys; os.dup2({theirs_in}, 3); os.dup2({theirs_out}, 4); "
            "os.execv(sys.argv[1], sys.argv[1:])"
        )
        command = [program, *FLAGS, f"--user-data-dir={profile}"]
        process = subprocess.Popen(
            [sys.executable, "-c", pipes, *command],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            yield Tab(to_browser, from_browser)
        finally:
            os.close(to_browser)  # On which it leaves.
            os.close(from_browser)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
