"""The SQLite file: atomic creation, opening, row-by-row verification, and translation of SQLite's errors."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from replicator.checkpoints.checksums import Digest, seal
from replicator.errors import ConfigError, ReplicatorError, TransientError
from replicator.files import make_private
from replicator.state import Counts, DamagedCheckpoint, Entry

FORMAT = 1  # of the file; the table ``store`` must stay readable in all formats

# A row's seal covers the whole row; the text is covered by its checksum (``sum``), so that rows can be verified without
# reading parked images.
_TABLES = (
    "CREATE TABLE store (one INTEGER PRIMARY KEY, seal BLOB, format INTEGER, pipeline TEXT, saves INTEGER, "
    "digest BLOB)",
    "CREATE TABLE entries (kind TEXT, id TEXT, revision INTEGER, seal BLOB, sum BLOB, text TEXT, "
    "PRIMARY KEY (kind, id))",
    "CREATE TABLE counts (source TEXT PRIMARY KEY, seal BLOB, read INTEGER, applied INTEGER, stale INTEGER, "
    "dropped INTEGER, parked INTEGER)",
)
_WAIT = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM}
_WAIT_SYSTEM = {errno.ENOSPC, errno.EDQUOT, errno.EIO}
_NOT_OURS = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}
_MIN_FREE = 1 << 16  # bytes that a save may need
_LOCK_TIMEOUT = 20.0  # seconds to wait for another connection's save


@dataclass(frozen=True, slots=True)
class Head:
    """The file's header row. ``saves``: number of saves so far. ``digest``: of all other rows."""

    pipeline: str
    saves: int = 0
    digest: bytes = Digest().value
    format: int = FORMAT

    @property
    def seal(self) -> bytes:
        return seal("store", self.format, self.pipeline, self.saves, self.digest.hex())


def damaged(path: Path, what: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(
        f"the checkpoints in {path} cannot be trusted: {what}. Nothing was changed. Restore the file as the last run "
        f"left it; or move it away together with {path.name}-wal and {path.name}.lock, "
        "and start over with: replicator resync CONFIG --now"
    )


@contextlib.contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Translate SQLite's errors: TransientError, ConfigError or DamagedCheckpoint."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError, OSError) as e:
        raise _translated(path, e) from e


def _translated(path: Path, error: Exception) -> ReplicatorError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _WAIT or (isinstance(error, OSError) and error.errno in _WAIT_SYSTEM):
        why = f"{error} (its disk is full)" if _is_full(path.parent) else str(error)
        return TransientError(f"the checkpoints in {path} cannot be saved: {why}; positions do not advance until then")
    if code in _NOT_OURS or isinstance(error, OSError):
        return ConfigError(
            f"the checkpoints in {path} cannot be written: {error}. Allow this user to write to the file and to its "
            f"folder {path.parent}, or set another path with checkpoints: {{type: sqlite, path: ...}}"
        )
    return damaged(path, str(error))


def _is_full(folder: Path) -> bool:
    """Whether the disk is full; SQLite reports some of the resulting errors as plain I/O errors."""
    with contextlib.suppress(OSError):
        stats = os.statvfs(folder)
        return stats.f_bavail * stats.f_frsize < _MIN_FREE
    return False


def make(path: Path, pipeline: str) -> None:
    """Create the file atomically. Removes leftovers of an earlier file, which SQLite would apply to the new one."""
    new = path.with_name(path.name + ".new")
    for leftover in (new, *beside(new), *beside(path)):
        leftover.unlink(missing_ok=True)
    make_private(new)  # SQLite creates its other files with the same mode
    connection = sqlite3.connect(new, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN")
        for table in _TABLES:
            connection.execute(table)
        write_head(connection, Head(pipeline))
        connection.execute("COMMIT")
    finally:
        connection.close()
    os.replace(new, path)
    _sync(path)
    _sync(path.parent)


def beside(path: Path) -> Sequence[Path]:
    """The files that SQLite may create next to the database."""
    return [path.with_name(path.name + ending) for ending in ("-wal", "-shm", "-journal")]


def check_links(path: Path) -> None:
    """ConfigError if one of our files is a symbolic link: its creator would choose the file that we write to."""
    for place in (path, *beside(path), path.with_name(path.name + ".lock")):
        if place.is_symlink():
            raise ConfigError(
                f"checkpoints.path: {place} is a symbolic link, which replicator does not follow; "
                "remove it, or name the file that it points to"
            )


def check_writable(path: Path) -> None:
    """OSError if a run could not write to the file or create one in its folder. Leaves nothing behind."""
    if path.exists():
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))
    tempfile.TemporaryFile(dir=path.parent).close()


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def opened(path: Path) -> sqlite3.Connection:
    """A connection to the file, which must exist."""
    check_links(path)
    if path.stat().st_size == 0:
        raise damaged(path, "it is empty")
    uri = f"{path.resolve().as_uri()}?mode=rw"
    connection = sqlite3.connect(uri, uri=True, timeout=_LOCK_TIMEOUT, isolation_level=None, check_same_thread=False)
    try:
        for setting in ("trusted_schema = OFF", "cell_size_check = ON", "synchronous = FULL", "fullfsync = ON"):
            connection.execute(f"PRAGMA {setting}")
        _check_schema(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise ConfigError(
            f"the checkpoints in {path}: the file system does not support shared memory (is it a network drive?). "
            "Use a local disk: checkpoints: {type: sqlite, path: ...}"
        )
    there = {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")}
    if there != set(_TABLES) and not (_TABLES[0] in there and head(connection, path).format != FORMAT):
        raise damaged(path, "it is not a checkpoint file, or its tables are damaged")


def head(connection: sqlite3.Connection, path: Path) -> Head:
    """The file's header row, verified."""
    rows = connection.execute("SELECT seal, pipeline, saves, digest, format FROM store").fetchall()
    try:
        ((stored, *values),) = rows
        header = Head(*values)
        valid = header.seal == stored
    except (ValueError, TypeError, AttributeError, OverflowError):
        valid = False
    if not valid:
        raise damaged(path, "its header does not match its checksum")
    if header.format != FORMAT:
        raise damaged(
            path, f"its format is {header.format}, but this replicator reads {FORMAT}; use the version that made it"
        )
    return header


def write_head(connection: sqlite3.Connection, head: Head) -> None:
    values = (head.seal, head.format, head.pipeline, head.saves, head.digest)
    connection.execute(
        "INSERT OR REPLACE INTO store (one, seal, format, pipeline, saves, digest) VALUES (1, ?, ?, ?, ?, ?)", values
    )


def entry_seal(kind: str, id: str, revision: int, sum: bytes) -> bytes:
    return seal("entry", kind, id, revision, sum.hex())


def counts_seal(source: str, counts: Counts) -> bytes:
    return seal("counts", source, counts.read, counts.applied, counts.superseded, counts.filtered, counts.parked)


class Verified:
    """All rows of a file in one snapshot, verified against their checksums and the overall digest."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self._path = connection, path
        self._digest = Digest()
        self.head = head(connection, path)
        self.entries = list(self._entries())
        self.counts = dict(self._counts())
        if self._digest.value != self.head.digest:
            raise damaged(path, "entries are missing, or older than others")

    def _entries(self) -> Iterator[Entry]:
        query = """
        SELECT kind, id, revision, seal, sum, CASE kind WHEN 'parked' THEN NULL ELSE text END
        FROM entries ORDER BY kind, id"""
        for kind, id, revision, stored, sum, text in self._connection.execute(query):
            valid = self._is_entry(kind, id, revision, stored, sum)
            if not valid or (kind != "parked" and not is_text(text, sum)):
                raise damaged(self._path, f"its entry {kind!r} {id!r} does not match its checksum")
            self._digest.replace(None, stored)
            yield Entry(kind, id, revision, text or "")

    def _is_entry(self, kind: object, id: object, revision: object, stored: object, sum: object) -> bool:
        typed = isinstance(kind, str) and isinstance(id, str) and isinstance(revision, int) and isinstance(sum, bytes)
        return typed and entry_seal(kind, id, revision, sum) == stored  # type: ignore[arg-type]

    def _counts(self) -> Iterator[tuple[str, Counts]]:
        query = "SELECT source, seal, read, applied, stale, dropped, parked FROM counts ORDER BY source"
        for source, stored, *numbers in self._connection.execute(query):
            if not all(isinstance(n, int) for n in numbers) or counts_seal(source, Counts(*numbers)) != stored:
                raise damaged(self._path, f"its counts of {source!r} do not match their checksum")
            self._digest.replace(None, stored)
            yield source, Counts(*numbers)


def text_sum(text: str) -> bytes:
    return seal(text)


def is_text(text: object, sum: object) -> bool:
    return isinstance(text, str) and text_sum(text) == sum
