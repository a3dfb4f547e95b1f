"""Compares rows with expected documents by value, and repairs them on condition of their version."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from deltalake import DeltaTable

from connectors.delta.encode import Encoder, Row, as_table, reason
from connectors.delta.errors import Conflict
from connectors.delta.lookup import located, rows_of
from connectors.delta.schema import DOCUMENT, GOES, VERSION, TableSchema
from connectors.delta.stored_table import StoredTable
from connectors.delta.tombstones import Tombstones
from connectors.delta.walk import TableWalk
from replicator.batch import Delete, DocumentId, Upsert
from replicator.items.attributes import Malformed
from replicator.items.to_json import Unfit
from replicator.target.verification import CHANGED, Comparison, Walked

_ATTEMPTS = 5


@dataclass(slots=True)
class TableVerification:
    """Comparison and repair of one table."""

    shape: TableSchema
    encoder: Encoder
    stored: StoredTable
    tombstones: Tombstones
    walks: TableWalk

    def compare(self, expected: Sequence[Upsert]) -> list[Comparison]:
        there = self._read([write.id for write in expected])
        return [self._comparison(write, there.get(write.id)) for write in expected]

    def _comparison(self, write: Upsert, stored: Mapping[str, Any] | None) -> Comparison:
        version = None if stored is None else stored[VERSION]
        try:
            row = self.encoder.row(write, "")
        except Unfit as e:
            return Comparison(version, refused=reason(e))
        except Malformed:
            return Comparison(version, refused="the item is not valid DynamoDB JSON")
        assert row is not None
        if stored is None:
            return Comparison(None)
        return Comparison(version, tuple(self._differing(row, stored)))

    def _differing(self, row: Row, stored: Mapping[str, Any]) -> Iterator[str]:
        """The names of columns that differ; if one has the whole document, of its fields."""
        wanted = as_table(self.shape, [row]).to_pylist()[0]
        for column in self.shape.columns:
            was, now = stored[column.name], wanted[column.name]
            if was == now:
                continue
            if column.name == DOCUMENT and column.attribute is None:
                yield from _differing_fields(was, now)
            elif column.type != "json" or _exact(was) != _exact(now):
                yield column.name

    def versions(self, ids: Sequence[DocumentId]) -> list[int | None]:
        there = located(self._table(), self.shape, _texts(ids)).versions
        return [there.get(id) for id in ids]

    def walk(self, cursor: str | None, within: DocumentId) -> Walked:
        return self.walks.piece(cursor, within)

    def replace(self, writes: Sequence[Upsert]) -> list[str]:
        made: dict[DocumentId, Row] = {}
        reasons: dict[DocumentId, str] = {}
        for write in writes:
            try:
                row = self.encoder.row(write, "")
            except Unfit as e:
                reasons[write.id] = reason(e)
            except Malformed:
                reasons[write.id] = "the item is not valid DynamoDB JSON"
            else:
                assert row is not None
                made[write.id] = row
        return self._changed([made[w.id] for w in writes if w.id in made], [w.id for w in writes], reasons)

    def remove(self, writes: Sequence[Delete]) -> list[str]:
        made = [Row(write, "") for write in writes]
        return self._changed(made, [write.id for write in writes], {})

    def _changed(self, made: Sequence[Row], ids: Sequence[DocumentId], reasons: Mapping[DocumentId, str]) -> list[str]:
        for _ in range(_ATTEMPTS):
            table = self._table()
            there = located(table, self.shape, _texts([row.write.id for row in made])).versions
            exact = [row for row in made if there.get(row.write.id) == row.write.version]
            try:
                self._commit(table, exact)
            except Conflict:
                continue
            done = {row.write.id for row in exact}
            return [reasons.get(id, "" if id in done else CHANGED) for id in ids]
        return [reasons.get(id, CHANGED) for id in ids]

    def _commit(self, table: DeltaTable, exact: Sequence[Row]) -> None:
        """Conflict if the table has changed since it was read: then a version may be another one."""
        if not exact:
            return
        self.tombstones.add([(row.write.id, row.write.version) for row in exact if row.goes])
        on = " and ".join(f'old."{name}" = new."{name}"' for name in (*self.shape.keys, VERSION))
        with self.stored.commit(table) as commit:
            merge = table.merge(
                as_table(self.shape, exact),
                on,
                source_alias="new",
                target_alias="old",
                streamed_exec=False,
                commit_properties=commit.properties,
            )
            merge = merge.when_matched_delete(f'new."{GOES}"')
            merge.when_matched_update_all(f'not new."{GOES}"', except_cols=[GOES]).execute()

    def _read(self, ids: Sequence[DocumentId]) -> dict[DocumentId, Mapping[str, Any]]:
        wanted = set(_texts(ids))
        if not wanted:
            return {}
        names = [*self.shape.keys, VERSION, *(column.name for column in self.shape.columns)]
        found: dict[DocumentId, Mapping[str, Any]] = {}
        for piece in rows_of(self._table(), self.shape, names, sorted(wanted)):
            for row in piece.to_pylist():
                id = tuple(row[name] for name in self.shape.keys)
                if id in wanted:
                    found[id] = row
        return found

    def _table(self) -> DeltaTable:
        return self.stored.current()


def _texts(ids: Sequence[DocumentId]) -> list[DocumentId]:
    """Those that are valid text: no row has another one."""
    return [id for id in ids if not any("\ud800" <= mark <= "\udfff" for part in id for mark in part)]


def _differing_fields(stored: Any, expected: Any) -> Iterator[str]:
    was, now = _exact(stored), _exact(expected)
    if not isinstance(was, dict) or not isinstance(now, dict):
        if was != now:
            yield DOCUMENT
        return
    yield from (name for name in sorted(was.keys() | now.keys()) if was.get(name, ...) != now.get(name, ...))


def _exact(text: Any) -> Any:
    try:
        return json.loads(text, parse_float=Decimal, parse_int=Decimal)
    except (TypeError, ValueError):
        return text
