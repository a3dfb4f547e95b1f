"""Stores the rows of a batch in one table: those with newer versions, in one commit that succeeds once or not at all.

The stored versions are read first, and the commit fails if the table has changed since. So its effect is known before,
and a batch of new rows is an append, which costs a fraction of a merge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from deltalake import DeltaTable, write_deltalake

from connectors.delta.encode import Row, as_table
from connectors.delta.errors import Conflict, Missing
from connectors.delta.lookup import Located, located, partition_conditions
from connectors.delta.schema import GOES, TableSchema
from connectors.delta.stored_table import Commit, StoredTable
from connectors.delta.tombstones import Known, Tombstones
from replicator.batch import Batch, DocumentId
from replicator.errors import TransientError, Unfinished
from replicator.state import FORGOTTEN, Save
from replicator.target.in_doubt import TOO_LATE

_ATTEMPTS = 5  # at a commit, while others change the table
_BEHIND = 1 << 62  # added to a revision: the run that noted it has not reached the version yet
_OF_PARKED = ("parked", "dropped", "item")

Superseded = Counter[str]
"""By source: the weight of the changes that the table already knew."""


@dataclass(slots=True)
class _Attempt:
    """What was tried of a batch. ``commits``: those that may be stored."""

    batch: Batch
    buried: set[tuple[DocumentId, int]] = field(default_factory=set)
    commits: list[tuple[Commit, Superseded]] = field(default_factory=list)
    done: Superseded | None = None


@dataclass(slots=True)
class TableWriter:
    """Writes to one table. A batch is one commit, made from the state in which the run last saw the table."""

    shape: TableSchema
    stored: StoredTable
    tombstones: Tombstones
    _attempt: _Attempt | None = None
    _noted: dict[str, int] = field(default_factory=dict)  # revisions, by source, as this process last knew them

    def has_to_note(self, batch: Batch) -> bool:
        """Whether a batch without rows for the table is noted there: see ``_progress``."""
        if batch.replaces_same:
            return False
        saved = _saved_shards(batch)
        if unknown := [source for source in saved if source not in self._noted]:
            table = self._current()
            self._noted |= {source: self._revision(table, source) for source in unknown}
        return any(save.expected is not None and self._noted[s] > save.expected for s, save in saved.items())

    def write(self, batch: Batch, rows: Sequence[Row], *, tombstones: bool) -> Superseded:
        """Durable on return. Unfinished if another process of the pipeline has changed the table meanwhile."""
        if self._attempt is None or self._attempt.batch is not batch:
            self._attempt = _Attempt(batch)
        attempt = self._attempt
        if attempt.done is None:
            attempt.done = self._stored(attempt, rows, tombstones=tombstones)
        return attempt.done

    def _stored(self, attempt: _Attempt, rows: Sequence[Row], *, tombstones: bool) -> Superseded:
        for source in _saved_shards(attempt.batch):
            self._noted.pop(source, None)
        for _ in range(_ATTEMPTS):
            table = self._current()
            if (known := self._earlier(attempt, table)) is not None:
                return known
            self._require_own(table)
            try:
                return self._committed(attempt, table, rows, tombstones=tombstones)
            except Conflict:  # perhaps with this one itself: clients repeat a request whose response is lost
                del attempt.commits[:-_ATTEMPTS]
        raise TransientError(f"{self.stored.place} is changed by others all the time; waiting until a commit succeeds")

    def _current(self) -> DeltaTable:
        """The table as it is now. GapFound if it is not the one that was opened."""
        try:
            table = self.stored.current()
        except Missing:
            raise self.stored.gone() from None
        self.stored.require_same(table)
        return table

    def _earlier(self, attempt: _Attempt, table: DeltaTable) -> Superseded | None:
        """What an earlier commit of this batch did, if it is stored and only its response was lost."""
        for commit, superseded in attempt.commits:
            if self.stored.has(commit, table):
                self.stored.number = commit.number
                return superseded
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

    def _committed(self, attempt: _Attempt, table: DeltaTable, rows: Sequence[Row], *, tombstones: bool) -> Superseded:
        batch = attempt.batch
        known = self.tombstones.known()  # later than the table itself: see docs/architecture.md
        again = self._stored_already(batch, table, rows)
        skipped = {row.write.id for row in again}
        fresh = [row for row in rows if row.write.id not in skipped]
        wanted, older = _judged(fresh, known, attempt.buried, same=batch.replaces_same)
        found = located(table, self.shape, [row.write.id for row in wanted])
        there = found.versions
        stale = [row for row in wanted if _is_older(row, there, same=batch.replaces_same)]
        newer = [row for row in wanted if not _is_older(row, there, same=batch.replaces_same)]
        superseded = _weights([*again, *older, *stale])
        if tombstones:
            self._bury(attempt, newer, known)
        with self.stored.commit(table, self._progress(batch, table, rows)) as commit:
            attempt.commits.append((commit, superseded))
            self._store(table, [row for row in newer if not row.goes or row.write.id in there], found, commit)
        return superseded

    def _store(self, table: DeltaTable, rows: Sequence[Row], there: Located, commit: Commit) -> None:
        """Commit rows, of which those in ``there`` replace or remove a row. Conflict if the table has changed."""
        if not rows:
            self.stored.commit_nothing(table, commit)
        elif not any(row.write.id in there.versions for row in rows):  # a merge would read the whole table
            made = as_table(self.shape, rows).drop_columns([GOES])
            write_deltalake(table, made, mode="append", commit_properties=commit.properties)
        else:
            self._merge(table, rows, there, commit)

    def _merge(self, table: DeltaTable, rows: Sequence[Row], there: Located, commit: Commit) -> None:
        merge = table.merge(
            as_table(self.shape, rows),
            self._same_row(there),
            source_alias="new",
            target_alias="old",
            streamed_exec=False,  # then files are skipped whose statistics rule out the batch's keys
            commit_properties=commit.properties,
        )
        if any(row.goes for row in rows):
            merge = merge.when_matched_delete(f'new."{GOES}"')
        if not all(row.goes for row in rows):
            merge = merge.when_matched_update_all(f'not new."{GOES}"', except_cols=[GOES])
            merge = merge.when_not_matched_insert_all(f'not new."{GOES}"', except_cols=[GOES])
        merge.execute()

    def _same_row(self, there: Located) -> str:
        """The condition that a stored row is replaced. Only files of partitions are read that have such rows."""
        conditions = [f'old."{name}" = new."{name}"' for name in self.shape.keys]
        return " and ".join([*conditions, *partition_conditions("old", self.shape, there.partitions)])

    def _bury(self, attempt: _Attempt, rows: Sequence[Row], known: Known) -> None:
        removed = [(row.write.id, row.write.version) for row in rows if row.goes]
        removed = [one for one in removed if known.get(one[0], -1) < one[1]]
        attempt.buried.update(removed)
        self.tombstones.add(removed)

    def _stored_already(self, batch: Batch, table: DeltaTable, rows: Sequence[Row]) -> Sequence[Row]:
        """The rows that a run stored that was killed before its position was saved.

        Such a row may have been removed by a later change, which is stored, too. It would be back for a moment.
        """
        reached = {source: self._reached(table, source, save) for source, save in _of_shards(batch).items()}
        return [row for row in rows if row.write.version < reached.get(row.source, -1)]

    def _reached(self, table: DeltaTable, source: str, save: Save) -> int:
        """The last version of a shard that is stored although its position does not say so; -1 if it does.

        That is the work of the batch that would have made the next revision, and of no other: if checkpoints went back
        further, a batch that parked changes may be among those that are repeated, and a fixed hook makes documents.
        """
        revision, expected = self._revision(table, source), save.expected
        if expected is None:
            return -1
        is_next = revision == expected + 1
        is_behind = _BEHIND < revision <= _BEHIND + expected + 1
        return (self.stored.transaction(table, f"{source} version") or -1) if is_next or is_behind else -1

    def _progress(self, batch: Batch, table: DeltaTable, rows: Sequence[Row]) -> dict[str, int]:
        """What to note of each shard: the last version that is stored, and the revision of the position that says so.

        While a killed run got further, what that noted stays until it is reached, whatever the size of batches, or
        until one parks changes. What was noted of later positions than there are now, because the checkpoints went
        back, is no longer true once a batch is repeated.
        """
        found: dict[str, int] = {}
        last = {} if batch.replaces_same or _parks(batch) else _last_versions(rows)
        shards = _of_shards(batch)
        for source, save in _saved_shards(batch).items():
            if save.expected is None:
                continue
            reached = self._reached(table, source, save) if source in shards else -1
            stored = max(last.get(source, -1), reached)
            if stored >= 0:
                is_behind = last.get(source, -1) < reached
                found[f"{source} version"] = stored
                found[f"{source} revision"] = save.expected + 1 + (_BEHIND if is_behind else 0)
            elif not batch.replaces_same and self._revision(table, source) > save.expected:
                found[f"{source} revision"] = 0
        return found

    def _revision(self, table: DeltaTable, source: str) -> int:
        """The one that is noted; 0 if there is none."""
        return self.stored.transaction(table, f"{source} revision") or 0


def _judged(
    rows: Sequence[Row], known: Known, buried: set[tuple[DocumentId, int]], *, same: bool
) -> tuple[Sequence[Row], Sequence[Row]]:
    """The rows that no tombstone rules out, and those that count as known.

    A removal with a tombstone of its own version may not have reached the table, so it is repeated: it is in both.
    """
    wanted: list[Row] = []
    older: list[Row] = []
    for row in rows:
        id, version = row.write.id, row.write.version
        tombstone = known.get(id, -1)
        is_repeated = tombstone == version and row.goes
        if tombstone < version or is_repeated or (tombstone == version and same):
            wanted.append(row)
        if tombstone > version or (tombstone == version and not same and (id, version) not in buried):
            older.append(row)
    return wanted, older


def _is_older(row: Row, there: Mapping[DocumentId, int], *, same: bool) -> bool:
    stored = there.get(row.write.id, -1)
    return stored > row.write.version or (stored == row.write.version and not same)


def _weights(rows: Iterable[Row]) -> Superseded:
    """Of different rows."""
    found: Superseded = Counter()
    for row in {row.write.id: row for row in rows}.values():
        if row.write.weight:
            found[row.source] += row.write.weight
    return found


def _of_shards(batch: Batch) -> dict[str, Save]:
    """The saves of shards' positions, by source; none if the batch does more than follow shards."""
    return {} if batch.replaces_same or _parks(batch) else _saved_shards(batch)


def _parks(batch: Batch) -> bool:
    return any(save.kind in _OF_PARKED for save in batch.saves)


def _saved_shards(batch: Batch) -> dict[str, Save]:
    return {f"{FORGOTTEN}{save.id}": save for save in batch.saves if save.kind == "shard" and save.text is not None}


def _last_versions(rows: Sequence[Row]) -> dict[str, int]:
    """By source."""
    last: dict[str, int] = {}
    for row in rows:
        last[row.source] = max(row.write.version, last.get(row.source, -1))
    return last
