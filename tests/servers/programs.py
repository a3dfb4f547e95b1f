"""Programs of servers that only the tests start: where they are cached, and whether one still runs."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from replicator.testing.servers.programs import ServerMissing


def cache() -> Path:
    """The folder for downloaded programs, outside of any clone; REPLICATOR_CACHE overrides it."""
    if given := os.environ.get("REPLICATOR_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "replicator"


@contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Create the folder and lock it against other processes.

    ServerMissing, naming ``what``, if it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ServerMissing(f"{what} is fetched into {folder}: {e}; set REPLICATOR_CACHE to a folder") from e
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def lives(group: int) -> bool:
    """Whether any process of a group may still write. A server that no longer responds may: it writes when it closes.

    An orphan that has not been reaped yet may not.
    """
    listed = subprocess.run(["ps", "-A", "-o", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    return any(_alive(line.split(), group) for line in listed.splitlines())


def _alive(process: Sequence[str], group: int) -> bool:
    """A zombie with threads (l) still holds its sockets and locks."""
    own, state = process
    return own == str(group) and (not state.startswith("Z") or "l" in state)
