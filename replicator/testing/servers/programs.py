"""Common to the throwaway servers: which user runs them, free ports, and waiting until they are ready."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress


class ServerMissing(Exception):
    """The programs are not installed; the message says what to install."""


def unprivileged(what: str, names: Sequence[str] = ("nobody",)) -> pwd.struct_passwd | None:
    """The user to run a server as that refuses to run as root; None if we are not root."""
    if os.geteuid() != 0:
        return None
    for name in names:
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise ServerMissing(f"{what} refuses to run as root, and there is no user {' or '.join(names)} to run it as")


def free_port() -> int:
    """A port on loopback that is free right now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def await_ready(
    name: str,
    process: subprocess.Popen[bytes],
    ready: Callable[[], bool],
    log: Callable[[], str],
    *,
    within: float,
    pause: float = 0.05,
) -> None:
    """Wait until ``ready``. RuntimeError, with the end of the log, if the process exits first or it takes too long.

    ``within`` and ``pause`` (between two attempts) are in seconds.
    """
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{name} did not start:\n{log()[-3000:]}")
        if ready():
            return
        time.sleep(pause)
    raise RuntimeError(f"{name} was not ready within {within:.0f} seconds:\n{log()[-3000:]}")
