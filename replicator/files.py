"""Reads and creates files safely: no devices, pipes, oversized files, or symbolic links."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

PRIVATE = 0o600


class NotAFile(OSError):
    """Not a regular file, or too large. ``strerror`` says which."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.EINVAL, what)


def read_regular(path: Path, most: int, *, follow: bool = True) -> bytes:
    """The contents of a regular file of at most ``most`` bytes. OSError otherwise; never blocks."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    with open(path, "rb", opener=lambda path, _: os.open(path, flags)) as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise NotAFile("it is not a regular file")
        content = opened.read(most + 1)
    if len(content) > most:
        raise NotAFile(f"it is larger than {most:,} bytes")
    return content


def make_private(path: Path) -> None:
    """Create an empty file with mode 600. FileExistsError if the path exists, even as a link."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE))


def write_new(path: Path, text: str, mode: int = PRIVATE) -> None:
    """Create a file with this text and mode. FileExistsError if the path exists, even as a link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(path, "w", encoding="utf-8", opener=lambda path, _: os.open(path, flags, mode)) as opened:
        opened.write(text)


def exposure(path: Path) -> str:
    """Why other users may access the file; empty if they cannot, or the file does not exist."""
    try:
        status = path.lstat()
    except OSError:
        return ""
    if status.st_uid != os.geteuid():
        return f"{path} belongs to another user (id {status.st_uid})"
    if status.st_mode & 0o077:
        return f"other users may access {path} (mode {stat.S_IMODE(status.st_mode):04o}); chmod 600 {path}"
    return ""


def key_exposure(path: Path) -> str:
    """Why others may read a private key, by libpq's rule; empty if they cannot. OSError if it does not exist.

    It follows links, and accepts a file of root that a group may read: Kubernetes mounts secrets so.
    """
    status = path.stat()
    if status.st_uid not in (0, os.geteuid()):
        return f"{path} belongs to another user (id {status.st_uid})"
    if status.st_mode & (0o037 if status.st_uid == 0 else 0o077):
        return f"other users may access {path} (mode {stat.S_IMODE(status.st_mode):04o}); chmod 600 {path}"
    return ""


def open_to_writers(folder: Path) -> bool:
    """Whether other users may replace files in a folder."""
    mode = folder.stat().st_mode
    return bool(mode & 0o022) and not mode & stat.S_ISVTX
