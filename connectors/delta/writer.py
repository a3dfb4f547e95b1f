"""Stores the rows of a batch in one table: a guarded merge, of which each succeeds once or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from deltalake import DeltaTable

from connectors.delta.encode import Row, as_table
from connectors.delta.errors import Conflict, Missing
from connectors.delta.schema import GOES, VERSION, TableSchema
from connectors.delta.stored_table import Commit, StoredTable, version_of, versions
from connectors.delta.tombstones import Known, Tombstones
from replicator.batch import Batch, DocumentId
from replicator.errors import ConfigError, TransientError, Unfinished
from replicator.state import FORGOTTEN, Save
from replicator.target.in_doubt import TOO_LATE

_ATTEMPTS = 5  # at a commit, while others change the table
_OF_PARKED = ("parked", "dropped", "item")

Superseded = Counter[str]
"""By source: the weight of the changes that the table already knew."""


@dataclass(slots=True)
class _Attempt:
    """What was tried of a batch. ``commits``: those whose response was lost, or is awaited."""

    batch: Batch
    buried: set[tuple[DocumentId, int]] = field(default_factory=set)
    commits: list[tuple[Commit, Sequence[Row], Superseded]] = field(default_factory=list)
    done: Superseded | None = None


@dataclass(slots=True)
class TableWriter:
    """Writes to one table. A batch is one commit, made from the state in which the run last saw the table."""

    shape: TableSchema
    stored: StoredTable
    tombstones: Tombstones
    _attempt: _Attempt | None = None

    def write(self, batch: Batch, rows: Sequence[Row], *, tombstones: bool) -> Superseded:
        """Durable on return. Unfinished if another process of the pipeline has changed the table meanwhile."""
        if self._attempt is None or self._attempt.batch is not batch:
            self._attempt = _Attempt(batch)
        attempt = self._attempt
        if attempt.done is None:
            attempt.done = self._stored(attempt, rows, tombstones=tombstones)
        return attempt.done

    def _stored(self, attempt: _Attempt, rows: Sequence[Row], *, tombstones: bool) -> Superseded:
        for _ in range(_ATTEMPTS):
            table = self._current()
            if (known := self._earlier(attempt, table)) is not None:
                return known
            self._require_own(table)
            try:
                return self._merged(attempt, table, rows, tombstones=tombstones)
            except Conflict:  # nothing of it is stored
                attempt.commits.pop()
        raise TransientError(f"{self.stored.place} is changed by others all the time; waiting until a commit succeeds")

    def _current(self) -> DeltaTable:
        try:
            return self.stored.current()
        except Missing:
            raise ConfigError(
                f"there is no Delta table at {self.stored.place} any more. Copy everything with: replicator resync"
            ) from None

    def _earlier(self, attempt: _Attempt, table: DeltaTable) -> Superseded | None:
        """What an earlier commit of this batch did, if it is stored and only its response was lost."""
        for commit, rows, superseded in attempt.commits:
            if self.stored.has(commit, table):
                self.stored.number = commit.number
                return superseded + self._stale(commit.base, rows, attempt.batch)
        return None

    def _require_own(self, table: DeltaTable) -> None:
        """Unfinished if the last commit of the pipeline is not the one that this process knows.

        Another run took over, or a command wrote. If this run still owns the pipeline, the next attempt goes on from
        there.
        """
        number = self.stored.last_number(table)
        if number != self.stored.number:
            self.stored.number = number
            raise Unfinished(f"{self.stored.place} was changed by another process of the pipeline; {TOO_LATE}")

    def _merged(self, attempt: _Attempt, table: DeltaTable, rows: Sequence[Row], *, tombstones: bool) -> Superseded:
        batch, base = attempt.batch, version_of(table)
        known = self.tombstones.known()  # later than the table itself: see docs/architecture.md
        fresh, superseded = self._unknown(batch, table, rows)
        wanted, older = _judged(fresh, known, attempt.buried, same=batch.replaces_same)
        superseded += older
        if tombstones:
            self._bury(attempt, wanted, known)
        with self.stored.commit(table, _progress(batch, rows)) as commit:
            attempt.commits.append((commit, wanted, superseded))
            changed = self._merge(table, wanted, commit, batch) if wanted else 0
            if version_of(table) == base:
                self.stored.commit_nothing(table, commit)
        if changed < len(wanted):
            superseded = superseded + self._stale(base, wanted, batch)
        return superseded

    def _merge(self, table: DeltaTable, rows: Sequence[Row], commit: Commit, batch: Batch) -> int:
        """How many rows it inserted, replaced and removed."""
        on = " and ".join(f'old."{name}" = new."{name}"' for name in self.shape.keys)
        newer = f'new."{VERSION}" {">=" if batch.replaces_same else ">"} old."{VERSION}"'
        merge = table.merge(
            as_table(self.shape, rows),
            on,
            source_alias="new",
            target_alias="old",
            streamed_exec=False,  # then files are skipped whose statistics rule out the batch's keys
            commit_properties=commit.properties,
        )
        if any(row.goes for row in rows):
            merge = merge.when_matched_delete(f'new."{GOES}" and {newer}')
        if not all(row.goes for row in rows):
            merge = merge.when_matched_update_all(f'not new."{GOES}" and {newer}', except_cols=[GOES])
            merge = merge.when_not_matched_insert_all(f'not new."{GOES}"', except_cols=[GOES])
        metrics = merge.execute()
        return sum(int(metrics[f"num_target_rows_{what}"]) for what in ("inserted", "updated", "deleted"))

    def _stale(self, base: int, rows: Sequence[Row], batch: Batch) -> Superseded:
        """Which of the rows a merge left alone, because the table had newer ones before it."""
        there = versions(self.stored.as_of(base), self.shape.keys, [row.write.id for row in rows])
        return _weights(row for row in rows if _is_older(row, there, same=batch.replaces_same))

    def _bury(self, attempt: _Attempt, rows: Sequence[Row], known: Known) -> None:
        removed = [(row.write.id, row.write.version) for row in rows if row.goes]
        removed = [one for one in removed if known.get(one[0], -1) < one[1]]
        attempt.buried.update(removed)
        self.tombstones.add(removed)

    def _unknown(self, batch: Batch, table: DeltaTable, rows: Sequence[Row]) -> tuple[Sequence[Row], Superseded]:
        """The rows without those that a run stored that was killed before its position was saved.

        Such a row may have been removed by a later change, which is stored, too. It would be back for a moment.
        """
        reached = {source: self._reached(table, source, save) for source, save in _of_shards(batch).items()}
        again = [row for row in rows if row.write.version < reached.get(row.source, -1)]
        if not again:
            return rows, Counter()
        return [row for row in rows if row.write.version >= reached.get(row.source, -1)], _weights(again)

    def _reached(self, table: DeltaTable, source: str, save: Save) -> int:
        """The last version of a shard that is stored although its position does not say so; -1 if it does."""
        revision = self.stored.transaction(table, f"{source} revision")
        if revision is None or save.expected is None or revision <= save.expected:
            return -1
        return self.stored.transaction(table, f"{source} version") or -1


def _judged(
    rows: Sequence[Row], known: Known, buried: set[tuple[DocumentId, int]], *, same: bool
) -> tuple[Sequence[Row], Superseded]:
    """The rows that no tombstone rules out, and the weight of the others.

    A removal with a tombstone of its own version may not have reached the table, so it is repeated.
    """
    if not known:
        return rows, Counter()
    wanted: list[Row] = []
    older: list[Row] = []
    for row in rows:
        id, version = row.write.id, row.write.version
        tombstone = known.get(id, -1)
        repeated = row.goes and tombstone == version
        if tombstone > version or (tombstone == version and not same and not row.goes):
            older.append(row)
            continue
        wanted.append(row)
        if repeated and not same and (id, version) not in buried:
            older.append(row)
    return wanted, _weights(older)


def _is_older(row: Row, there: Mapping[DocumentId, int], *, same: bool) -> bool:
    stored = there.get(row.write.id, -1)
    return stored > row.write.version or (stored == row.write.version and not same)


def _weights(rows: Iterable[Row]) -> Superseded:
    found: Superseded = Counter()
    for row in rows:
        if row.write.weight:
            found[row.source] += row.write.weight
    return found


def _of_shards(batch: Batch) -> dict[str, Save]:
    """The saves of shards' positions, by source; none if the batch does more than follow shards."""
    if batch.replaces_same or any(save.kind in _OF_PARKED for save in batch.saves):
        return {}
    return {f"{FORGOTTEN}{save.id}": save for save in batch.saves if save.kind == "shard" and save.text is not None}


def _progress(batch: Batch, rows: Sequence[Row]) -> dict[str, int]:
    """What to note of each shard: the last version that is stored, and the revision of the position that says so."""
    last: dict[str, int] = {}
    for row in rows:
        last[row.source] = max(row.write.version, last.get(row.source, -1))
    found: dict[str, int] = {}
    for source, save in _of_shards(batch).items():
        if source in last and save.expected is not None:
            found |= {f"{source} version": last[source], f"{source} revision": save.expected + 1}
    return found
