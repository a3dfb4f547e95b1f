"""Reads and makes files without being led astray: by devices, pipes, endless files, or links to another file."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

PRIVATE = 0o600


class NotAFile(OSError):
    """Something else than a regular file, or too much of one. ``strerror`` says which, for people."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.EINVAL, what)


def read_regular(path: Path, most: int, *, follow: bool = True) -> bytes:
    """What is in a regular file of at most ``most`` bytes. OSError, also for anything else, at once."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    with open(path, "rb", opener=lambda path, _: os.open(path, flags)) as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise NotAFile("it is not a regular file")
        found = opened.read(most + 1)
    if len(found) > most:
        raise NotAFile(f"it is larger than {most:,} bytes")
    return found


def make_private(path: Path) -> None:
    """A new, empty file that only this user may read and write. FileExistsError if anything is there, even a link."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE))


def exposure(path: Path) -> str:
    """Why others may reach what is in a file; empty if they cannot, or it is not there."""
    try:
        found = path.lstat()
    except OSError:
        return ""
    if found.st_uid != os.geteuid():
        return f"{path} belongs to another user (id {found.st_uid})"
    if found.st_mode & 0o077:
        return f"others than its owner may use {path} (mode {stat.S_IMODE(found.st_mode):04o}); chmod 600 {path}"
    return ""


def open_to_writers(folder: Path) -> bool:
    """Whether other users may replace files in a folder."""
    mode = folder.stat().st_mode
    return bool(mode & 0o022) and not mode & stat.S_ISVTX
