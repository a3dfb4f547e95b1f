"""What is remembered of removed rows, in a second table inside the folder of the first: readers see only live rows.

Names that begin with _ are no part of a Delta table, for readers as for a vacuum.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from connectors.delta.errors import Conflict, Missing
from connectors.delta.schema import VERSION
from connectors.delta.stored_table import StoredTable, rows, version_of
from replicator.batch import DocumentId
from replicator.errors import TransientError

FOLDER = "_tombstones"
SCHEMA = pa.schema([pa.field("id", pa.string()), pa.field(VERSION, pa.int64())])
_ATTEMPTS = 5

Known = Mapping[DocumentId, int]


@dataclass(slots=True)
class Tombstones:
    """The tombstones of one table: the highest version of each id. All of them are in memory."""

    stored: StoredTable
    _known: dict[DocumentId, int] = field(default_factory=dict)
    _version: int | None = None
    _doomed: tuple[int, frozenset[DocumentId]] | None = None

    def known(self) -> Known:
        """All that are there now."""
        self._read()
        return self._known

    def add(self, removed: Sequence[tuple[DocumentId, int]]) -> None:
        """Remember removed documents; durable on return."""
        if not removed:
            return
        for _ in range(_ATTEMPTS):
            table = self._read()
            ids, found = [json.dumps(id) for id, _ in removed], [version for _, version in removed]
            try:
                with self.stored.commit(table) as commit:
                    write_deltalake(
                        table,
                        pa.Table.from_arrays([pa.array(ids), pa.array(found, pa.int64())], schema=SCHEMA),
                        mode="append",
                        commit_properties=commit.properties,
                    )
            except Conflict:
                continue
            return
        raise TransientError(f"{self.stored.place} is changed by others all the time")

    def purge(self, below: int, spares: Callable[[DocumentId], bool]) -> int:
        """Remove what the last call found, if nothing was added since, and find what the next one removes.

        Another run may have taken over between the two, and may have added the same tombstone again.
        """
        table = self._read()
        doomed, self._doomed = self._doomed, None
        if doomed is not None and doomed[0] == version_of(table):
            self._replace(table, {id: v for id, v in self._known.items() if id not in doomed[1]})
            table = self._read()
        found = frozenset(id for id, version in self._known.items() if version < below and not spares(id))
        if found:
            self._doomed = version_of(table), found
        return len(found)

    def _replace(self, table: DeltaTable, kept: Known) -> None:
        ids, found = [json.dumps(id) for id in kept], list(kept.values())
        try:
            with self.stored.commit(table) as commit:
                write_deltalake(
                    table,
                    pa.Table.from_arrays([pa.array(ids, pa.string()), pa.array(found, pa.int64())], schema=SCHEMA),
                    mode="overwrite",
                    commit_properties=commit.properties,
                )
        except Conflict:
            return  # what was added may be needed; the next call looks again

    def _read(self) -> DeltaTable:
        try:
            table = self.stored.current()
        except Missing:
            raise self.stored.gone() from None
        self.stored.require_same(table)
        if version_of(table) != self._version:
            known: dict[DocumentId, int] = {}
            for piece in rows(table, SCHEMA.names):
                for text, version in zip(
                    piece.column("id").to_pylist(), piece.column(VERSION).to_pylist(), strict=True
                ):
                    id = tuple(json.loads(text))
                    known[id] = max(version, known.get(id, version))
            self._known, self._version = known, version_of(table)
        return table
