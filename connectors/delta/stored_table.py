"""One table as it is stored: loading it, and commits of which one at a time succeeds.

Every commit of a pipeline has a number, one higher than that of its last commit, as an application transaction of Delta
Lake's protocol. Of two commits with the same number, one fails: it was made from a state that has changed.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import time

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, QueryBuilder, Transaction

from connectors.delta.errors import Missing, failure, translated
from connectors.delta.schema import VERSION
from connectors.delta.storage import Storage
from replicator.batch import DocumentId
from replicator.errors import GapFound

PIPELINE, EPOCH = "replicator.pipeline", "replicator.epoch"
ADDED = "replicator.added"  # columns, as JSON, that were added for an epoch that has not begun
KEEP = "delta.deletedFileRetentionDuration"
TOKEN = "replicator.commit"  # in a commit's metadata
_TRANSACTIONS = "interval 30 days"  # for which the log knows a pipeline's commits; longer than any run is suspended
_COMMITS = "20"  # after which the log gets a checkpoint: who opens the table reads at most that many files of the log
_MOST_HISTORY = 50  # commits to look through for our own, after a lost response


@dataclass(slots=True)
class StoredTable:
    """A table at a place, as this process last read it.

    ``number``: of the pipeline's last commit that this process knows of; None before it has read the table. ``id``: of
    the table that was opened, None before. ``purpose``: what is said if others have removed or replaced it. ``_mark``:
    of the file of the last commit that was read or made.
    """

    storage: Storage
    place: str
    pipeline: str
    number: int | None = None
    id: str | None = None
    purpose: str = ""
    _mark: object = None
    _table: DeltaTable | None = None
    _options: Mapping[str, str] = field(default_factory=dict)

    def current(self) -> DeltaTable:
        """The table as it is now. Missing if there is none."""
        options = self.storage.options()
        with translated(self.place):
            if self._table is None or options != self._options or not self._goes_on(self._table):
                self._table = DeltaTable(self.place, storage_options=options)
                self._options, self._mark = options, self._last_file(self._table)
        return self._table

    def _goes_on(self, table: DeltaTable) -> bool:
        """Whether nothing was committed since, but by this process.

        Otherwise all is read anew: the log of a table that replaced this one is no continuation of it. In S3 one with
        exactly as many commits is told apart only when it is read anew, at least by every recheck.
        """
        if self._mark is None or self._last_file(table) != self._mark:
            return False
        version = table.version()
        table.update_incremental()
        return bool(table.version() == version)

    def _last_file(self, table: DeltaTable) -> object:
        """What tells the file of the last commit that was read from any other one; None if it is gone."""
        if self.storage.config.in_s3:
            return ""
        try:
            found = os.stat(f"{self.place}/_delta_log/{table.version():020}.json")
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns

    def require_same(self, table: DeltaTable) -> None:
        """GapFound if it is another table than the one that was opened."""
        if self.id is not None and id_of(table) != self.id:
            raise self.gone()

    def gone(self) -> GapFound:
        what = f"{self.place} was removed or replaced while this run wrote to it"
        return GapFound(f"{what}: {self.purpose}" if self.purpose else what, of_target=True)

    def found(self) -> DeltaTable | None:
        """The table as it is now, read from the beginning; None if there is none."""
        self._table = None
        try:
            return self.current()
        except Missing:
            return None

    def forget(self) -> None:
        """Open new connections for the next request: the client does not recover from some that broke."""
        self._table = None

    def as_of(self, version: int) -> DeltaTable:
        with translated(self.place):
            return DeltaTable(self.place, version=version, storage_options=self.storage.options())

    def create(self, schema: pa.Schema, partition_by: Sequence[str], notes: Mapping[str, str]) -> DeltaTable:
        configuration = {
            "delta.setTransactionRetentionDuration": _TRANSACTIONS,
            "delta.checkpointInterval": _COMMITS,
            "delta.logRetentionDuration": f"interval {self.storage.config.log_days:.0f} days",
            KEEP: self.keep,
            **notes,
        }
        with translated(self.place):
            DeltaTable.create(
                self.place,
                schema,
                mode="ignore",
                partition_by=list(partition_by),
                configuration=configuration,
                storage_options=self.storage.options(),
                raise_if_key_not_exists=False,
            )
        self._table = None
        return self.current()

    @property
    def keep(self) -> str:
        """How long the log knows of removed files, as a table's property."""
        return f"interval {max(1, round(self.storage.config.keep_days * 24))} hours"

    def last_number(self, table: DeltaTable) -> int:
        """Of the pipeline's last commit to the table as it was read."""
        with translated(self.place):
            return table.transaction_version(self._app()) or 0

    def transaction(self, table: DeltaTable, name: str) -> int | None:
        with translated(self.place):
            found: int | None = table.transaction_version(self._app(name))
        return found

    @contextmanager
    def commit(self, table: DeltaTable, more: Mapping[str, int] | None = None) -> Iterator[Commit]:
        """A commit on top of the table as it was read. Conflict if another one came first.

        ``more``: further numbers to note with it, by name.
        """
        number, moment = self.last_number(table) + 1, int(time() * 1000)
        commit = Commit(number, uuid.uuid4().hex, table.version())
        transactions = [Transaction(self._app(), number, moment)]
        transactions += [Transaction(self._app(name), value, moment) for name, value in (more or {}).items()]
        commit.properties = CommitProperties({TOKEN: commit.token}, max_commit_retries=0, app_transactions=transactions)
        with translated(self.place):
            yield commit
        self.number, self._mark = number, self._last_file(table)

    def has(self, commit: Commit, table: DeltaTable) -> bool:
        """Whether a commit whose response was lost is in the table."""
        if self.last_number(table) < commit.number:
            return False
        with translated(self.place):
            limit = min(_MOST_HISTORY, table.version() - commit.base + 1)
            return any(entry.get(TOKEN) == commit.token for entry in table.history(limit))

    def commit_nothing(self, table: DeltaTable, commit: Commit) -> None:
        """Commit without a change: a process that works from an earlier state finds that it has changed."""
        table.create_write_transaction([], "append", table.schema(), commit_properties=commit.properties)

    def note(self, table: DeltaTable, notes: Mapping[str, str]) -> None:
        with self.commit(table) as commit:
            table.alter.set_table_properties(
                dict(notes), raise_if_not_exists=False, commit_properties=commit.properties
            )

    def _app(self, name: str = "") -> str:
        return json.dumps(["replicator", self.pipeline, name] if name else ["replicator", self.pipeline])


@dataclass(slots=True)
class Commit:
    """``base``: the version of the table that it builds on. ``token``: tells it from others with its number."""

    number: int
    token: str
    base: int
    properties: CommitProperties | None = None


def rows(table: DeltaTable, columns: Sequence[str], where: str = "") -> Iterator[pa.RecordBatch]:
    """The rows of a table as it was read, in any order, a piece at a time.

    By the client's own engine: pyarrow cannot compare texts as that stores them.
    """
    query = ["SELECT", ", ".join(map(quoted, columns)), "FROM seen", f"WHERE {where}" if where else ""]
    try:
        reader = QueryBuilder().register("seen", table).execute(" ".join(query))
        yield from pa.RecordBatchReader.from_stream(reader)  # unlike the client's, lets other threads run meanwhile
    except Exception as e:  # what the client raises where a file cannot be read
        raise failure(str(e), table.table_uri.removeprefix("file://").rstrip("/")) from e


def quoted(name: str) -> str:
    """A name in a query. Names of columns contain no quotes."""
    return f'"{name}"'


def ids_and_versions(batch: pa.RecordBatch, keys: Sequence[str]) -> Iterator[tuple[DocumentId, int]]:
    columns = [batch.column(name).to_pylist() for name in keys]
    return zip(zip(*columns, strict=True), batch.column(VERSION).to_pylist(), strict=True)


def id_of(table: DeltaTable) -> str:
    """Of a table for as long as it is there; one that replaces it has another."""
    return str(table.metadata().id)


def version_of(table: DeltaTable) -> int:
    found: int = table.version()
    return found
