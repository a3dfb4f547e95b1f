"""Writes rows with their checksums within one transaction, and maintains the overall digest."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

from replicator.checkpoints.checksums import Digest
from replicator.checkpoints.compare_and_set import Row
from replicator.checkpoints.sqlite.file import Head, counts_seal, entry_seal, text_sum, write_head
from replicator.state import FORGOTTEN, Counts


class Changes:
    """The changes of one transaction."""

    def __init__(self, connection: sqlite3.Connection, head: Head) -> None:
        self._connection, self._head = connection, head
        self._digest = Digest(head.digest)
        self._changed = False

    def row(self, kind: str, id: str) -> Row:
        query = "SELECT revision, text FROM entries WHERE kind = ? AND id = ?"
        found = self._connection.execute(query, (kind, id)).fetchone()
        return Row() if found is None else Row(*found)

    def put(self, kind: str, id: str, text: str | None) -> int:
        """Set the entry's text (None: remove the entry); return its new revision."""
        query = "SELECT revision, seal FROM entries WHERE kind = ? AND id = ?"
        revision, old = self._connection.execute(query, (kind, id)).fetchone() or (0, None)
        if text is None:
            self._connection.execute("DELETE FROM entries WHERE kind = ? AND id = ?", (kind, id))
            self._count(old, None)
            return 0
        sum = text_sum(text)
        new = entry_seal(kind, id, revision + 1, sum)
        self._connection.execute(
            "INSERT OR REPLACE INTO entries (kind, id, revision, seal, sum, text) VALUES (?, ?, ?, ?, ?, ?)",
            (kind, id, revision + 1, new, sum, text),
        )
        self._count(old, new)
        return int(revision) + 1

    def add(self, source: str, more: Counts) -> None:
        query = "SELECT seal, read, applied, stale, dropped, parked FROM counts WHERE source = ?"
        old, *numbers = self._connection.execute(query, (source,)).fetchone() or (None,)
        total = Counts(*numbers) + more
        new = counts_seal(source, total)
        self._connection.execute(
            "INSERT OR REPLACE INTO counts (source, seal, read, applied, stale, dropped, parked) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (source, new, total.read, total.applied, total.superseded, total.filtered, total.parked),
        )
        self._count(old, new)

    def fold(self, source: str) -> None:
        """Move the counts of ``source`` to FORGOTTEN."""
        query = "SELECT seal, read, applied, stale, dropped, parked FROM counts WHERE source = ?"
        found = self._connection.execute(query, (source,)).fetchone()
        if found is not None:
            old, *numbers = found
            self._connection.execute("DELETE FROM counts WHERE source = ?", (source,))
            self._count(old, None)
            self.add(FORGOTTEN, Counts(*numbers))

    def _count(self, old: bytes | None, new: bytes | None) -> None:
        self._digest.replace(old, new)
        self._changed = True

    def end(self) -> Head | None:
        """Update the file's header and return it; None if nothing changed."""
        if not self._changed:
            return None
        head = replace(self._head, saves=self._head.saves + 1, digest=self._digest.value)
        write_head(self._connection, head)
        return head
