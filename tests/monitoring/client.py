"""A run with its monitoring, and a plain HTTP client for it."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from replicator.testing.servers.programs import free_port
from tests.cli.command_line import World

T = TypeVar("T")
PATIENCE = 60.0


@dataclass(frozen=True)
class Response:
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def get(port: int, path: str, method: str = "GET", **headers: str) -> Response:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        named = {name.lower(): value for name, value in response.getheaders()}
        return Response(response.status, named, response.read().decode())
    finally:
        connection.close()


@dataclass(frozen=True)
class Monitored:
    """A run in a process of its own."""

    process: subprocess.Popen[str]
    port: int

    def get(self, path: str) -> Response:
        return get(self.port, path)

    def eventually(self, found: Callable[[], T], what: str) -> T:
        """What ``found`` returns once it is true. A refused connection is not true: the server may not be up yet."""
        deadline = time.monotonic() + PATIENCE
        while True:
            assert self.process.poll() is None, f"{what}: the run ended: {self.process.communicate()}"
            try:
                if value := found():
                    return value
            except OSError:
                pass
            assert time.monotonic() < deadline, f"{what}: not within {PATIENCE:.0f} s"
            time.sleep(0.05)

    def live(self) -> None:
        self.eventually(lambda: self.get("/readyz").status == 200, "the run is live")


@contextmanager
def monitored(world: World, port: int | None = None) -> Iterator[Monitored]:
    """A run that listens on a free port, or on the one that its config names."""
    chosen = free_port() if port is None else port
    listen = ("--listen", f"127.0.0.1:{chosen}") if port is None else ()
    with world.shell.start("run", world.config, *listen, cwd=world.folder) as process:
        try:
            yield Monitored(process, chosen)
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE)
