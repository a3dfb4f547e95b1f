"""The lock file next to the checkpoints: held by a run while it lives; records its owner and its progress."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import msgspec

from replicator.errors import ConfigError, Fenced
from replicator.files import PRIVATE, read_regular
from replicator.state import Owner, encode

_LARGEST = 1 << 16  # bytes; it has a few hundred
_WITNESS = 30  # bytes: 20 digits, a space, 8 hex digits of their checksum, a newline


class Lock:
    """``PATH.lock``. The system releases the lock with the process, so a killed run blocks no later one.

    Its first line is the witness: the number of a save that is certainly in the file. It is updated after each save, so
    a file with fewer saves is older than the last run left it.
    """

    def __init__(self, beside: Path) -> None:
        self.path = beside.with_name(beside.name + ".lock")
        self._held: int | None = None
        self._shared: int | None = None  # a worker's; the run that it is of holds the lock

    def take(self, owner: Owner) -> None:
        """Acquire the lock until ``release`` or the end of the process. Fenced, with the holder, if it is taken."""
        if self._held is None:
            self._held = self._taken()
        os.pwrite(self._held, encode(owner).encode().ljust(400), _WITNESS)

    def share(self) -> None:
        """As a worker of the run that holds the lock, record what is stored in the same file."""
        if self._held is None and self._shared is None and self.path.exists():
            self._shared = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    def _taken(self) -> int:
        try:
            import fcntl
        except ImportError as e:
            raise ConfigError(
                "checkpoints.type: sqlite needs file locks (Linux or macOS), which this system does not have; "
                "use dynamodb or postgres"
            ) from e
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            os.close(file)
            raise Fenced(
                f"another run has locked this pipeline: {self._holder()}. Stop that one first; "
                f"two runs cannot share {self.path}"
            ) from e
        return file

    def _read(self) -> bytes:
        return read_regular(self.path, _LARGEST, follow=False)

    def _holder(self) -> str:
        try:
            owner = msgspec.json.decode(self._read()[_WITNESS:].strip(b" \0"), type=Owner)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return "it has just started"
        return owner.who

    @property
    def witness(self) -> int:
        """The number of a save that is certainly stored; 0 if unreadable."""
        try:
            number, _, check = self._read()[:_WITNESS].strip().partition(b" ")
        except OSError:
            return 0
        return int(number) if check == _check(number) and number.isdigit() else 0

    def bear(self, saves: int) -> None:
        """Record that so many saves are stored."""
        number = b"%020d" % saves
        line = number + b" " + _check(number) + b"\n"
        if self._held is not None:
            os.pwrite(self._held, line, 0)
        elif self._shared is not None and saves > self.witness:  # another worker may be ahead
            os.pwrite(self._shared, line, 0)

    def release(self) -> None:
        files, self._held, self._shared = (self._held, self._shared), None, None
        for file in files:
            if file is not None:
                os.close(file)


def _check(number: bytes) -> bytes:
    return b"%08x" % zlib.crc32(number)
