"""Checkpoints in a local SQLite file, for one run at a time and commands besides it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from pydantic import Field

from replicator.checkpoints.compare_and_set import check_owned, saved_already
from replicator.checkpoints.contract import NO_COUNTS, Claimed
from replicator.checkpoints.sqlite import file as file
from replicator.checkpoints.sqlite.lock import Lock
from replicator.checkpoints.sqlite.transaction import Changes
from replicator.errors import ConfigError
from replicator.files import exposure, open_to_writers
from replicator.options import Options
from replicator.state import (
    Counts,
    Entry,
    Owner,
    Parked,
    PipelineState,
    Save,
    counted,
    decode_parked,
    decode_pipeline,
    encode,
    forgotten,
)


class SqliteOptions(Options):
    """An SQLite file on a local disk."""

    path: str | None = Field(
        default=None, min_length=1, description="file, relative to the config; default: PIPELINE.checkpoints"
    )


class SqliteCheckpoints:
    """``Checkpoints`` in a file. Every save is on disk when it returns.

    A run holds ``PATH.lock`` from its claim to its end. A second run gets Fenced, which names the holder. The workers
    of the run, on the same machine, do not lock it.
    """

    Options = SqliteOptions

    def __init__(self, options: SqliteOptions, pipeline: str, base: Path) -> None:
        self._named = options.path is not None
        self._path = base / (options.path or f"{pipeline}.checkpoints")
        self._pipeline = pipeline
        self._lock = Lock(self._path)
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None
        self._claims: dict[str, int] = {}

    @property
    def place(self) -> str:
        return f"the file {self._path}"

    def check(self) -> Sequence[str]:
        if not self._path.parent.is_dir():
            return [f"checkpoints.path: there is no folder {self._path.parent}; create it"]
        file.check_links(self._path)
        with file.guarded(self._path):
            file.check_writable(self._path)
        with self._reading() as connection:
            if connection is not None:
                self._verified(connection)
        return []

    def warnings(self) -> Sequence[str]:
        """Who else may read or replace the files, which contain the images of parked items."""
        folder = self._path.parent
        files = (self._path, *file.beside(self._path), self._lock.path)
        warnings = [f"checkpoints.path: {text}" for text in map(exposure, files) if text]
        if folder.is_dir() and open_to_writers(folder):
            warnings.append(
                f"checkpoints.path: other users may replace files in the folder {folder}; chmod go-w {folder}"
            )
        return warnings

    def pipelines(self) -> Sequence[str]:
        """The pipelines with files of default names in the same folder."""
        return [] if self._named else sorted(path.stem for path in self._path.parent.glob("*.checkpoints"))

    def plan(self) -> Sequence[str]:
        return [] if self._path.exists() else [f"create the file {self._path}"]

    def create(self) -> None:
        """Does nothing: the first run creates the file."""

    def claim(self, owner: Owner) -> Claimed:
        if not self._path.parent.is_dir():
            raise ConfigError(f"checkpoints.path: there is no folder {self._path.parent}; create it")
        file.check_links(self._path)
        with file.guarded(self._path):
            self._lock.take(owner)
            if not self._path.exists():
                file.make(self._path, self._pipeline)
                self._lock.bear(0)
            connection = self._open()
            self._verify_all(connection)
            with self._changing(connection) as changes:
                self._claims = {"": changes.put("owner", "", encode(owner))}
        return self.read()

    def claim_slot(self, owner: Owner, slot: str, run: int) -> Claimed:
        with file.guarded(self._path), self._changing(self._open_still()) as changes:
            check_owned(_owners(changes, [""]), {"": run})
            self._lock.share()
            self._claims = {"": run, slot: changes.put("owner", slot, encode(owner))}
        return replace(self.read(), revision=self._claims[slot])

    def save(self, saves: Sequence[Save], counts: Mapping[str, Counts] = NO_COUNTS) -> None:
        with file.guarded(self._path), self._changing(self._open_still()) as changes:
            found = {(save.kind, save.id): changes.row(save.kind, save.id) for save in saves}
            if saved_already(saves, found, _owners(changes, self._claims), self._claims):
                return
            if not self._claims:
                counts = counted(counts, lambda shard: changes.row("shard", shard).revision > 0)
            for save in saves:
                changes.put(save.kind, save.id, save.text)
            for source, more in counts.items():
                changes.add(source, more)
            for source in forgotten(saves):
                changes.fold(source)

    def read(self) -> Claimed:
        with self._reading() as connection:
            if connection is None:
                return Claimed(0)
            found = self._verified(connection)
            owner = next((e.revision for e in found.entries if (e.kind, e.id) == ("owner", "")), 0)
            return Claimed(owner, found.entries, found.counts)

    def pipeline(self) -> PipelineState | None:
        with self._reading() as connection:
            found = [] if connection is None else list(self._texts(connection, "pipeline", ""))
        return decode_pipeline(found[0][1]) if found else None

    def request(self) -> Entry | None:
        with self._reading() as connection:
            if connection is None or (text := next(self._texts(connection, "request", ""), None)) is None:
                return None
            row = Changes(connection, file.head(connection, self._path)).row("request", "")
            return Entry("request", "", row.revision, text[1])

    def parked(self, prefix: str = "", ids: Collection[str] | None = None) -> Iterator[tuple[str, Parked]]:
        query = "SELECT id FROM entries WHERE kind = 'parked' AND id >= ? ORDER BY id"
        with self._reading() as connection:
            found = [] if connection is None else [str(id) for (id,) in connection.execute(query, (prefix,))]
        begins = takewhile(lambda id: id.startswith(prefix), found)
        for id in [id for id in begins if ids is None or id in ids]:
            with self._reading() as connection:
                entry = None if connection is None else next(self._parked(connection, id), None)
            if entry is not None and entry[0] == id:
                yield entry

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        self._claims = {}
        self._lock.release()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """A read transaction; None if there is no file."""
        if not self._path.exists():
            yield None
            return
        with file.guarded(self._path):
            connection = self._open()
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("ROLLBACK")

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = file.opened(self._path)
            self._opened = _identity(self._path)
        return self._connection

    def _open_still(self) -> sqlite3.Connection:
        """The connection, after checking that the path still refers to the file it has open."""
        current = _identity(self._path)
        if current is None or (self._connection is not None and current != self._opened):
            raise file.damaged(self._path, "it was removed or replaced while this run used it")
        return self._open()

    @contextlib.contextmanager
    def _changing(self, connection: sqlite3.Connection) -> Iterator[Changes]:
        """A write transaction; durable on exit."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            changes = Changes(connection, file.head(connection, self._path))
            yield changes
            changed = changes.end()
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        if changed is not None:
            self._lock.bear(changed.saves)

    def _verify_all(self, connection: sqlite3.Connection) -> None:
        """Verify every page of the file and every text in it, before a run relies on them."""
        problems = [text for (text,) in connection.execute("PRAGMA integrity_check(5)")]
        if problems != ["ok"]:
            raise file.damaged(self._path, problems[0])
        connection.execute("BEGIN")
        try:
            self._verified(connection)
            for _ in self._parked(connection, ""):
                pass
        finally:
            connection.execute("ROLLBACK")

    def _verified(self, connection: sqlite3.Connection) -> file.Verified:
        witness = self._lock.witness  # read first, because another run may keep saving
        verified = file.Verified(connection, self._path)
        if verified.head.pipeline != self._pipeline:
            raise ConfigError(
                f"checkpoints.path: {self._path} belongs to pipeline {verified.head.pipeline!r}, not to "
                f"{self._pipeline!r}; use a separate file for each pipeline"
            )
        if verified.head.saves < witness:
            raise file.damaged(
                self._path, f"it is older than the last run left it ({verified.head.saves} saves instead of {witness})"
            )
        return verified

    def _parked(self, connection: sqlite3.Connection, prefix: str) -> Iterator[tuple[str, Parked]]:
        for id, text in self._texts(connection, "parked", prefix):
            yield id, decode_parked(id, text)

    def _texts(self, connection: sqlite3.Connection, kind: str, prefix: str) -> Iterator[tuple[str, str]]:
        query = "SELECT id, sum, text FROM entries WHERE kind = ? AND id >= ? ORDER BY id"
        for id, sum, text in connection.execute(query, (kind, prefix)):
            if not str(id).startswith(prefix):
                return
            if not file.is_text(text, sum):
                raise file.damaged(self._path, f"its entry {kind!r} {id!r} does not match its checksum")
            yield id, text


def _owners(changes: Changes, slots: Iterable[str]) -> dict[str, int]:
    return {slot: changes.row("owner", slot).revision for slot in slots}


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of the file at ``path``; None if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
