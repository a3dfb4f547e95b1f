"""Walks through a table as it was when the walk began, a piece at a time, whatever is written meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from connectors.delta.errors import Missing, translated
from connectors.delta.schema import VERSION
from connectors.delta.stored_table import StoredTable, ids_and_versions, version_of
from replicator.batch import DocumentId
from replicator.errors import TransientError
from replicator.target.verification import CursorExpired, Walked

_PIECE = 20_000  # ids, at least, but for the last piece: each one opens a file


@dataclass(slots=True)
class TableWalk:
    """Of one table, by its files in the order of their names. What is opened for a piece is kept for the next one.

    A cursor is the table's version, the number of a file and that of a row there.
    """

    stored: StoredTable
    keys: Sequence[str]
    _version: int | None = None
    _options: Mapping[str, str] = field(default_factory=dict)
    _schema: pa.Schema | None = None
    _files: Sequence[Any] = ()  # pyarrow's fragments, which keep what they have read of the files' footers

    def piece(self, cursor: str | None, within: DocumentId) -> Walked:
        """The next ids that begin with ``within``, with their versions of then. CursorExpired once files are gone."""
        version, file, row = (version_of(self.stored.current()), 0, 0) if cursor is None else _position(cursor)
        ids: list[DocumentId] = []
        versions: list[int] = []
        behind: list[tuple[int, int]] = []  # each of the ids, its file and row
        try:
            self._open(version)
            for number in range(file, len(self._files)):
                for start, rows in self._rows(number, row if number == file else 0):
                    for at, (id, stored) in enumerate(rows, start + 1):
                        if id[: len(within)] == within:
                            ids.append(id)
                            versions.append(stored)
                            behind.append((number, at))
                    if len(ids) >= _PIECE:
                        return Walked(
                            ids, _cursor(version, behind[-1]), lambda n: _cursor(version, behind[n]), versions
                        )
        except BaseException:
            self._version = None  # some connections do not recover
            raise
        return Walked(ids, None, lambda n: _cursor(version, behind[n]), versions)

    def _open(self, version: int) -> None:
        options = self.stored.storage.options()  # credentials may have changed
        if (version, options) == (self._version, self._options):
            return
        try:
            table = self.stored.as_of(version)
        except (Missing, TransientError) as e:
            if version == version_of(self.stored.current()):
                raise
            raise CursorExpired from e
        with translated(self.stored.place):
            dataset = table.to_pyarrow_dataset()
            self._files = sorted(dataset.get_fragments(), key=lambda file: str(file.path))
        self._version, self._options, self._schema = version, options, dataset.schema

    def _rows(self, number: int, first: int) -> Iterator[tuple[int, Iterator[tuple[DocumentId, int]]]]:
        """Those of a file from the row ``first`` on: number of a row, and ids and versions from there."""
        file = self._files[number]
        try:
            with translated(self.stored.place):
                groups, at = list(file.row_groups), 0
                while groups and at + groups[0].num_rows <= first:
                    at += groups.pop(0).num_rows
                if not groups:
                    return
                scanner = file.subset(row_group_ids=[group.id for group in groups]).scanner(
                    schema=self._schema,
                    columns=[*self.keys, VERSION],
                    use_threads=False,
                    batch_size=_PIECE,
                    batch_readahead=1,
                )
                for batch in scanner.to_batches():
                    rest = batch.slice(max(0, first - at))
                    if rest.num_rows:
                        yield at + batch.num_rows - rest.num_rows, ids_and_versions(rest, self.keys)
                    at += batch.num_rows
        except TransientError as e:
            if isinstance(e.__cause__, FileNotFoundError):  # as earlier versions' files are after a while
                raise CursorExpired from e
            raise


def _cursor(version: int, at: tuple[int, int]) -> str:
    return f"{version} {at[0]} {at[1]}"


def _position(cursor: str) -> tuple[int, int, int]:
    try:
        version, file, row = map(int, cursor.split())
    except ValueError:
        raise CursorExpired from None
    return version, file, row
