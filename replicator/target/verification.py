"""Comparison and repair of what a target stores: optional capabilities, for ``replicator verify``.

Documents are compared in the target's own stored form: the expected document is encoded as a write would encode it, and
values are compared as values, never as text that a server reformats.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import msgspec

from replicator.batch import Delete, DocumentId, Upsert
from replicator.target.contract import Table

UNVERSIONED = -1  # the version of a stored document that has none
VERSION_FIELD = "version"  # how a wrong version is listed among the fields that differ
HISTORY_FIELD = "_history"  # and a history whose last state of the document is another one
HISTORY_ORDER = "_history._version"  # and one whose changes are in another order than their versions
CHANGED = "the document changed meanwhile"


class Comparison(msgspec.Struct, frozen=True, gc=False):
    """A stored document next to the expected one.

    ``version``: of the stored document; None if there is none. ``fields``: the names of the columns, fields or
    attributes whose values differ. ``refused``: why the target cannot store the expected document.
    """

    version: int | None
    fields: tuple[str, ...] = ()
    refused: str = ""


def cannot_compare(type: str, connector: object) -> str:
    """Why the documents of a target cannot be verified. ``connector``: it, or its class, whose attribute
    ``incomparable`` says what to do instead.
    """
    instead = getattr(connector, "incomparable", "")
    return f"{type} cannot compare documents; " + (
        instead or "its connector would have to implement replicator.target.verification.Verifiable"
    )


@dataclass(frozen=True, slots=True)
class Walked:
    """A piece of a walk: ids of documents, and where the next piece begins; None at the end.

    ``behind``: the cursor behind the n-th of these ids, so that an interrupted walk can go on within the piece. Without
    it, the whole piece is walked through again. ``versions``: of these ids, where a walk tells them anyway, as of some
    time since it began.
    """

    ids: Sequence[DocumentId]
    cursor: str | None
    behind: Callable[[int], str] | None = field(default=None, compare=False)
    versions: Sequence[int] | None = field(default=None, compare=False)


@runtime_checkable
class Verifiable(Protocol):
    """A target whose documents can be compared with what they should be.

    Used without ``open``, on its own connections, beside a run that writes. Nothing is changed. Tombstones count as
    absent. TransientError if the server cannot respond now; ConfigError if a table is missing.
    """

    def compare(self, table: Table, expected: Sequence[Upsert]) -> Sequence[Comparison]:
        """Compare each expected document, whatever its version, with the stored one. Ids are distinct."""

    def versions(self, table: Table, ids: Sequence[DocumentId]) -> Sequence[int | None]:
        """The version of each document; None if it is absent, UNVERSIONED if the table keeps no versions."""

    def walk(self, table: Table, cursor: str | None, within: DocumentId = ()) -> Walked:
        """The ids of some documents after ``cursor`` (None: the first): of all whose ids begin with ``within``.

        Every document that is stored during the whole walk is returned at least once. A cursor may be used again
        later; CursorExpired if the target no longer knows it. Postponed if an opened target is not done yet: the same
        call again tells.
        """


def can_compare(connector: Any) -> bool:
    """Whether the targets of a connector are ``Verifiable``, as far as that can be told before one is made."""
    return not isinstance(connector, type) or issubclass(connector, Verifiable)


@runtime_checkable
class Expiring(Protocol):
    """A target that removes documents by itself once their time has passed, as the source does."""

    def past(self, table: Table, ids: Sequence[DocumentId]) -> Sequence[bool]:
        """Which of these stored documents may be removed at any moment: none of them is extra."""


@runtime_checkable
class Repairable(Verifiable, Protocol):
    """A target that can change a document if, and only if, its version is exactly the one that was read."""

    @property
    def unrepairable(self) -> str:
        """Why documents cannot be repaired under the current options; empty if they can."""

    def replace(self, table: Table, writes: Sequence[Upsert]) -> Sequence[str]:
        """Replace the body of each document whose stored version is exactly that of the write, and keep the version.

        Returns "" for each that was replaced, CHANGED, or why the target refuses the document.
        """

    def remove(self, table: Table, writes: Sequence[Delete]) -> Sequence[str]:
        """Delete each document whose stored version is exactly that of the write, leaving a tombstone of that version.

        Returns as ``replace`` does.
        """


class TableComparer(Protocol):
    """What ``Repairable`` does, for one table."""

    def compare(self, expected: Sequence[Upsert]) -> Sequence[Comparison]: ...
    def versions(self, ids: Sequence[DocumentId]) -> Sequence[int | None]: ...
    def walk(self, cursor: str | None, within: DocumentId) -> Walked: ...
    def replace(self, writes: Sequence[Upsert]) -> Sequence[str]: ...
    def remove(self, writes: Sequence[Delete]) -> Sequence[str]: ...


class ComparesByTable(ABC):
    """Makes a target ``Repairable`` that has a ``TableComparer`` for each of its tables."""

    @abstractmethod
    def _verification(self, table: Table) -> TableComparer: ...

    def compare(self, table: Table, expected: Sequence[Upsert]) -> Sequence[Comparison]:
        return self._verification(table).compare(expected)

    def versions(self, table: Table, ids: Sequence[DocumentId]) -> Sequence[int | None]:
        return self._verification(table).versions(ids)

    def walk(self, table: Table, cursor: str | None, within: DocumentId = ()) -> Walked:
        return self._verification(table).walk(cursor, within)

    def replace(self, table: Table, writes: Sequence[Upsert]) -> Sequence[str]:
        return self._verification(table).replace(writes)

    def remove(self, table: Table, writes: Sequence[Delete]) -> Sequence[str]:
        return self._verification(table).remove(writes)


class CursorExpired(Exception):
    """The walk cannot continue from this cursor; start again."""
