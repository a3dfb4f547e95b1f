"""A headless Chromium, driven over its DevTools pipe: what a person sees, and what the browser complains about."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from replicator.testing.servers.programs import ServerMissing

PATIENCE = 60.0
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--proxy-server=127.0.0.1:9",  # nothing but this machine
    "--proxy-bypass-list=127.0.0.1",
    "--remote-debugging-pipe",
)


def program() -> str:
    path = next((path for name in _PROGRAMS if (path := shutil.which(name))), None)
    if path is None:
        raise ServerMissing("the page is looked at with Chromium: install chromium")
    return path


def _high(fd: int) -> int:
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(fd)
    return moved


class Browser:
    """One page. ``complaints``: errors in its console, and what its security policy blocked."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self._numbers = itertools.count(1)
        self._buffer = b""
        self._session: str | None = None

    def __enter__(self) -> Browser:
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        (self._to, commands), (self._results, events) = self._pipes()
        ends = f'exec 3<&{commands} 4>&{events}; exec {commands}<&- {events}>&-; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", ends, "bash", program(), *_OPTIONS, f"--user-data-dir={self._profile.name}", "about:blank"],
            pass_fds=(commands, events),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(commands)
        os.close(events)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        return self

    @staticmethod
    def _pipes() -> tuple[tuple[int, int], tuple[int, int]]:
        """Chromium expects its ends as 3 and 4, so ours must be others."""
        (commands, to), (results, events) = (map(_high, os.pipe()) for _ in range(2))
        return (to, commands), (results, events)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._to)
        os.close(self._results)
        self._profile.cleanup()

    def call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (response := self._next()).get("id") != number:
            self._note(response)
        assert "error" not in response, response
        return response["result"]

    def _next(self) -> Mapping[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._results], [], [], PATIENCE)
            chunk = os.read(self._results, 1 << 16) if ready else b""
            assert chunk, "Chromium does not respond"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        parsed: Mapping[str, Any] = json.loads(message)
        return parsed

    def _note(self, event: Mapping[str, Any]) -> None:
        entry = event.get("params", {}).get("entry", {})
        if event.get("method") == "Log.entryAdded" and entry.get("level") == "error":
            self.complaints.append(f"{entry['text']} {entry.get('url', '')}")
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(event["params"]["exceptionDetails"]))

    def size(self, width: int, *, dark: bool = False, height: int = 800, scale: float = 1.0) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        calm = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.call("Emulation.setEmulatedMedia", features=[scheme, calm])

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")

    def leave(self) -> None:
        """Close the page, before its server goes."""
        self.open("about:blank")

    def run(self, script: str) -> Any:
        """The value of an expression on the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script: str) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {script}"
            time.sleep(0.05)
        return value

    def picture(self, path: Path) -> None:
        """The whole page, however long it is."""
        form = {"format": "webp", "quality": 70} if path.suffix == ".webp" else {"format": "png"}
        shown = self.call("Page.captureScreenshot", captureBeyondViewport=True, **form)
        path.write_bytes(base64.b64decode(shown["data"]))

    def texts(self, selector: str) -> Sequence[str]:
        found: Sequence[str] = self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.innerText)")
        return found
