"""The folder of a run's own Ray, and the removal of those of runs that were killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "ray-"  # short: the paths of Ray's sockets have a limit
LOCK = "replicator.lock"  # locked as long as the run is up, also for processes that do not see its process id


@contextlib.contextmanager
def own_folder() -> Iterator[str]:
    """A folder for Ray's logs and sockets, which no other user can read. It is removed on exit, or by the next run."""
    remove_left_over()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    with contextlib.ExitStack() as resources:
        resources.callback(shutil.rmtree, folder, ignore_errors=True)
        locked = folder / f"{LOCK}.new"
        fcntl.flock(resources.enter_context(locked.open("w")), fcntl.LOCK_EX)
        locked.rename(folder / LOCK)  # it is never there without the lock while this run is up
        yield str(folder / "r")  # Ray lets all users write to the one that it is given


def remove_left_over() -> None:
    """Remove the folders of runs that were killed. What cannot be removed stays."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if _is_own(folder) and _is_left_over(folder / LOCK):
                shutil.rmtree(folder, ignore_errors=True)


def _is_own(folder: Path) -> bool:
    """Whether it is a folder of this user that no other one can write to."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _is_left_over(lock: Path) -> bool:
    """Whether no run has the lock. OSError if there is none: the folder is another program's, or that run begins."""
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
