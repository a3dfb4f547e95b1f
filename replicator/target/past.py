"""What a target says of the changes it has kept (``history: true``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from replicator.target.contract import Table


@dataclass(frozen=True, slots=True)
class Period:
    """Which changes of an item: from ``since`` to ``until``, both included; of those the newest ``limit``.

    Times are in seconds since 1970; None: no bound.
    """

    since: float | None = None
    until: float | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a document. ``key``: its id by attribute. ``at``: ISO 8601. ``old``, ``new``: as JSON; None: none.

    ``problem``: why the document after the change is not known. ``sequence``: of the stream record, "" for a scan.
    """

    key: Mapping[str, str]
    version: int
    at: str
    operation: str
    old: str | None
    new: str | None
    problem: str | None
    sequence: str


@dataclass(frozen=True, slots=True)
class State:
    """A document as of a time, as JSON; None: not known, because of the ``problem``.

    ``version``: of its last change; None if only a later change tells what it was before.
    """

    key: Mapping[str, str]
    document: str | None
    problem: str | None
    version: int | None


@dataclass(frozen=True, slots=True)
class Extent:
    """What a table's history contains. ``created``: the epoch it was created in. ``since``: times before it are removed
    (``keep``), in seconds since 1970; None: none are."""

    created: int
    since: float | None = None


@dataclass(frozen=True, slots=True)
class Size:
    """Of a table's history. ``bytes``: on disk, with indexes."""

    bytes: int
    partitions: int


@runtime_checkable
class KeepsHistory(Protocol):
    """A target that can keep every change of a table."""

    def retain(self, tables: Sequence[Table]) -> bool:
        """Make room for the changes of the next days, and remove some that are older than is kept; whether any were.

        TransientError if nothing was, because readers hold a history. Called about once an hour, with no batch in
        flight.
        """

    def history_epoch(self, tables: Sequence[Table]) -> int:
        """The latest epoch that any of their histories has; 0 if there is none."""

    def history_epoch_beside(self, tables: Sequence[Table]) -> int:
        """For the new copy of a rebuild: the latest epoch in the histories of the old one. 0: there are none."""

    def history_losses(self, tables: Sequence[Table], epoch: int, *, scanned: bool) -> Sequence[str]:
        """Why the histories lack changes of what the tables have, a sentence each; tables not opened in ``epoch`` have
        nothing yet. ``scanned``: whether they began with a scan, so that the history has all of their documents.

        Cheap: it looks up some documents, and what the histories consist of.
        """

    def history_extent(self, table: Table) -> Extent | None:
        """What the history contains; None if it does not exist yet. The table's keys may be ``UNKNOWN_KEYS``."""

    def history_size(self, table: Table) -> Size | None:
        """How much there is; None if it does not exist yet. Cheap: nothing is counted."""

    def history_changes(self, table: Table, key: str, period: Period) -> Iterator[Change]:
        """The changes of an item's documents, oldest first. ValueError: what is wrong with the ``key``, in JSON."""

    def history_as_of(self, table: Table, key: str | None, at: float, epochs: tuple[int, int]) -> Iterator[State]:
        """The documents as of a time, of one item or (None) all.

        ``epochs``: the one that tells the state at that time, and the next one. ValueError as above; ConfigError if
        changes up to that time have been removed since ``history_extent`` was read.
        """
