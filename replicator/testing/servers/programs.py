"""What the throwaway servers have in common: where their programs are kept, who runs them, and what is missing."""

from __future__ import annotations

import fcntl
import os
import pwd
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


class ServerMissing(Exception):
    """The programs are not installed; the message says what to install."""


def cache() -> Path:
    """The folder that fetched programs are kept in, outside of any clone; REPLICATOR_CACHE names another one."""
    if given := os.environ.get("REPLICATOR_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "replicator"


@contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Make the folder; no two processes are inside at once. ServerMissing, naming ``what``, if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ServerMissing(f"{what} is fetched into {folder}: {e}; set REPLICATOR_CACHE to a folder") from e
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def unprivileged(what: str, names: Sequence[str] = ("nobody",)) -> pwd.struct_passwd | None:
    """Who runs a server that refuses to run as root; None where we are not root."""
    if os.geteuid() != 0:
        return None
    for name in names:
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise ServerMissing(f"{what} refuses to run as root, and there is no user {' or '.join(names)} to run it as")


def free_port() -> int:
    """A port of loopback that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def lives(group: int) -> bool:
    """Whether any process of a group may still write. A server that no longer responds may: it writes last when it
    closes. An orphan that is not reaped yet may not."""
    listed = subprocess.run(["ps", "-A", "-o", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    return any(_alive(line.split(), group) for line in listed.splitlines())


def _alive(process: Sequence[str], group: int) -> bool:
    """A zombie with threads (l) still holds its sockets and locks."""
    own, state = process
    return own == str(group) and (not state.startswith("Z") or "l" in state)
