"""What must hold at every step, and what the target has to be in the end."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import orjson

from replicator import version
from replicator.batch import Delete, DocumentId, Write
from replicator.hooks.hook import Hook, Poison
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.key import key_text
from replicator.pipeline import stages
from replicator.pipeline.parked import key_in
from replicator.pipeline.progress import Progress
from replicator.state import Counts, Gap, Parked, PipelineState, Save, ShardState, decode, shard_of
from replicator.target.in_doubt import WINDOW
from replicator.testing.memory import MemoryCheckpoints, MemoryDatabase, body
from replicator.version import FIRST_EPOCH
from tests.simulation import vanished

if TYPE_CHECKING:
    from tests.simulation.world import Universe

Entries = Mapping[tuple[str, str], tuple[int, str]]


@lru_cache(maxsize=4096)  # most are asked for again and again
def decoded(kind: str, text: str) -> object:
    """The value of an entry."""
    return decode(kind, "", text)


def check_version(write: Write, before: int, *, applied: bool, same: bool) -> None:
    """What the target knows of a document is never replaced by something older.

    A tombstone may take the place of what an engine had in mind of the very same delete. ``same``: a retry replaces
    what a refused batch had stored at its version.
    """
    newer = write.version > before or ((same or isinstance(write, Delete)) and write.version == before)
    assert not applied or newer, f"{write.id} went back from {before} to {write.version}"


def check_repaired(write: Write, before: int, after: int) -> None:
    """A repair replaces nothing by something older."""
    assert after >= before, f"a repair took {write.id} back from {before} to {after}"


def check_saved(before: Entries, entries: Entries) -> None:
    """Inside an epoch no position ever goes back, and what has ended stays ended. The epoch only rises.

    ``before``: what the entries that were saved, and the pipeline's, had been.
    """
    epoch, now = epoch_of(before), epoch_of(entries)
    assert now >= epoch, f"the epoch fell from {epoch} to {now}"
    if now > epoch:
        return
    for (kind, id), (_, text) in before.items():
        if kind == "shard" and (kind, id) in entries:
            _check_shard(id, text, entries[kind, id][1])


def places(entries: Entries, saves: Sequence[Save]) -> Entries:
    """The entries that ``saves`` are about to change, and the pipeline's."""
    named = [("pipeline", ""), *((s.kind, s.id) for s in saves)]
    return {place: entries[place] for place in named if place in entries}


def _check_shard(id: str, before: str, after: str) -> None:
    was, now = decoded("shard", before), decoded("shard", after)
    assert isinstance(was, ShardState)
    assert isinstance(now, ShardState)
    assert now.ordinal >= was.ordinal, f"shard {id} went back from {was} to {now}"
    assert now.ended >= was.ended, f"shard {id} began again"


class Spared:
    """What ids began with whose tombstones the last purge of a table spared, of parked items; the next one may not."""

    def __init__(self) -> None:
        self._by_table: dict[str, set[DocumentId]] = {}
        self._passing: dict[str, set[DocumentId]] = {}
        self._below: dict[str, int] = {}

    def passes(self, table: str, below: int, spare: Sequence[DocumentId]) -> None:
        self._passing.setdefault(table, set()).update(spare)
        self._by_table.setdefault(table, set()).update(spare)
        self._below[table] = max(below, self._below.get(table, 0))

    def passed(self, table: str, below: int) -> None:
        """A purge has come to the end of the table: what it spared at no time is gone."""
        if below == self._below[table]:
            self._by_table[table] = self._passing.pop(table, set())

    def has(self, table: str, id: DocumentId) -> bool:
        spared = self._by_table.get(table, set())
        return any(id[:length] in spared for length in range(1, len(id) + 1))


def check_told(database: MemoryDatabase, told: Progress, unread: Collection[tuple[str, str]] = ()) -> None:
    """A copy is never reported as live before its backfill is stored, or while there is a gap that was not stored by
    another process since this one last read (``unread``).
    """
    if told.phase != "live":
        return
    state = pipeline_of(database.entries)
    assert state is not None
    if told.waiting_for and told.epoch is not None and told.epoch < state.epoch:
        return  # whether the next epoch is stored is what the run waits to learn
    assert state.epoch == told.epoch
    assert state.stage == stages.FOLLOWING, f"live while {state.stage}"
    for (kind, id), (_, text) in database.entries.items():
        if kind == "gap" and (kind, id) not in unread:
            gap = decoded(kind, text)
            assert isinstance(gap, Gap)
            assert gap.repaired is not None or gap.epoch < state.repairing, "live with an open gap"


def check_end(universe: Universe) -> None:
    """The target is what the hook gives for each item; parked items are excepted, and listed."""
    database = universe.database
    _check_parked(universe)
    parked = {p.key for _, p in MemoryCheckpoints(database).parked()}
    _check_left(universe, parked | universe.damage.keys)
    parked |= _given_up(universe)
    _check_kept(universe, parked)
    parked |= universe.damage.keys
    parked |= universe.expired.keys()  # what a rescan does not find goes with it
    returned = _returned(universe)
    want: dict[str, dict[DocumentId, bytes]] = {name: {} for name in universe.tables}
    for item in universe.source.items(universe.TABLE):
        key = (str(item["pk"]),)
        if key not in parked:
            for table, id, document in _documents(universe, key, item):
                want[table][id] = _stored(universe, table, document)
    for table in universe.tables:
        _check_table(table, want[table], database.rows.get(table, {}), parked, returned[table])
        vanished.check(universe, table, parked)
        buried = [id for id in database.tombstones.get(table, ()) if (table, id) not in universe.late_tombstones]
        left = [id for id in buried if not universe.spared.has(table, id)]
        assert not left, f"tombstones are left in {table}: {left}"
    _check_counts(database)
    universe.records.check_complete(universe)


def check_swept(universe: Universe, began_in: int, lasted: float) -> None:
    """After a run that ended in good order: once such runs of an epoch have lasted for as long as a request lingers,
    nothing of an earlier epoch is left, however many responses they lost.

    Where nothing else brings older documents there: in the worlds that leak.
    """
    database = universe.database
    epoch = epoch_of(database.entries)
    if "leak" not in universe.scenario.rates or epoch != began_in:
        return
    of, before = universe.undisturbed
    universe.undisturbed = epoch, lasted + (before if of == epoch else 0.0)
    state = pipeline_of(database.entries)
    if state is None or state.stage != stages.FOLLOWING or universe.undisturbed[1] < WINDOW:
        return
    parked = {p.key for _, p in MemoryCheckpoints(database).parked()}
    parked |= {key for kind, id in database.entries if kind == "spared" and (key := key_in(id)) is not None}
    parked |= {key for kind, id in database.entries if kind == "dropped" and (key := key_in(id)) is not None}
    for table, rows in database.rows.items():
        older = [
            id for id, (v, _) in rows.items() if version.epoch_of(v) < state.complete and not _of_parked(id, parked)
        ]
        assert not older, f"{table} has {older} of an earlier epoch, and runs of {universe.undisturbed[1]:.0f} s"


def _stored(universe: Universe, table: str, document: bytes) -> bytes:
    """What a table holds of a document: the columns that the config names by now, filled for every item."""
    fields = universe.tables[table].get("fields")
    if fields is None:
        return document
    return body({name: value for name, value in orjson.loads(document).items() if name in fields})


Kept = tuple[int, Mapping[tuple[str, DocumentId], bytes]]
"""An epoch, and what was stored of an item in it."""


def kept(universe: Universe, item: Mapping[str, object]) -> Kept:
    """What is stored of an item that expires now; nothing where an older state of it is."""
    epoch, rows = complete_of(universe.database.entries), universe.database.rows
    key = (str(item["pk"]),)
    if (hook := universe.hook()) is not None and hook.declared:
        universe.returned.append((key, item))  # also if the hook fails on it now: it may be fixed before it is read
    try:
        wanted = {(table, id): document for table, id, document in _documents(universe, key, item)}
    except AssertionError:  # poison
        return epoch, {}
    there = {(table, id): rows.get(table, {}).get(id, (0, b"")) for table, id in wanted}
    stored = all(version.epoch_of(v) >= epoch and b == wanted[place] for place, (v, b) in there.items())
    return epoch, wanted if stored and universe.scenario.view != "KEYS_ONLY" else {}


class Left(NamedTuple):
    """What the target had of an item when its parked change was given up: its image and epoch, and the documents.

    ``scanned``: a scan, or a look-up, had found the item, and the change that made it so may have been stored since.
    """

    image: str | None
    epoch: int
    scanned: bool
    documents: Mapping[tuple[str, DocumentId], bytes]


def left(universe: Universe, entry: Parked) -> Left:
    looked_up = universe.scenario.view == "KEYS_ONLY"
    scanned = entry.sequence is None or looked_up
    return Left(entry.new, version.epoch_of(entry.version), scanned, _documents_of(universe, entry.key))


def _documents_of(universe: Universe, key: tuple[str, ...]) -> Mapping[tuple[str, DocumentId], bytes]:
    tables = universe.database.rows.items()
    return {(table, id): row for table, rows in tables for id, (_, row) in rows.items() if _of_parked(id, {key})}


def _check_left(universe: Universe, parked: set[tuple[str, ...]]) -> None:
    """What a person gave up of an item that exists stays as it was, until its next change, the next full scan, or the
    repair of a gap, which looks up what it may concern.
    """
    newest, epoch = _newest(universe), repairing_of(universe.database.entries)
    passed_over = parked | universe.expired.keys() | {key for key, _, _ in universe.retried_with_another_hook}
    items: dict[tuple[str, ...], Mapping[str, object]] = {
        (str(item["pk"]),): item for item in universe.source.items(universe.TABLE)
    }
    for key, (given, of, scanned, documents) in universe.left.items():
        if of >= epoch and key not in passed_over and given is not None and _same(given, newest.get(key)):
            now = _documents_of(universe, key)
            again = scanned or "strain" in universe.scenario.rates  # or people had it read again, in less time
            again = again or epoch_of(universe.database.entries) > of  # or asked for a rescan of this item
            stored = again and _is_stored(universe, key, items[key], now)
            assert stored or now == documents, f"{key} was given up with {documents}, and has {now}"


def _is_stored(
    universe: Universe,
    key: tuple[str, ...],
    item: Mapping[str, object],
    documents: Mapping[tuple[str, DocumentId], bytes],
) -> bool:
    try:
        wanted = _documents(universe, key, item)
        return documents == {(table, id): _stored(universe, table, document) for table, id, document in wanted}
    except AssertionError:  # poison
        return False


def _returned(universe: Universe) -> Mapping[str, set[DocumentId]]:
    """Documents under ids of their own of items that expired, whatever became of the items."""
    found: dict[str, set[DocumentId]] = {name: set() for name in universe.tables}
    for key, item in universe.returned:
        with suppress(AssertionError):
            for table, id, _ in _documents(universe, key, item):
                found[table].add(id)
    return found


def _check_kept(universe: Universe, parked: set[tuple[str, ...]]) -> None:
    """What expired stays, if that is ignored, until the next epoch."""
    database = universe.database
    for key, (epoch, documents) in universe.expired.items():
        if epoch == complete_of(database.entries) and key not in parked:
            for (table, id), document in documents.items():
                assert database.rows[table].get(id, (0, b""))[1] == document, f"{id}, which expired, did not stay"


def _check_parked(universe: Universe) -> None:
    """What is parked is each item's newest image, in one entry. A page of a scan may be older than the stream."""
    found: dict[tuple[str, ...], list[Parked]] = {}
    for _, parked in MemoryCheckpoints(universe.database).parked():
        found.setdefault(parked.key, []).append(parked)
    newest, given_up = _newest(universe), _given_up(universe)
    for key, entries in found.items():
        entries.sort(key=lambda parked: parked.version)
        assert version.epoch_of(entries[0].version) >= complete_of(universe.database.entries), f"{key} is obsolete"
        if entries[0].sequence is not None and key not in given_up and key not in universe.expired:
            assert _same(entries[-1].new, newest.get(key)), f"{key} is parked with an image that is not its newest"
        assert len(entries) == 1, f"{key} has {len(entries)} entries"


def _given_up(universe: Universe) -> set[tuple[str, ...]]:
    """Items that did not change since a person dropped their parked changes, or retried them with another hook.

    In this epoch: anything may be stored of them.
    """
    newest, epoch = _newest(universe), complete_of(universe.database.entries)
    decided = [*universe.dropped, *universe.retried_with_another_hook]
    return {key for key, of, given in decided if of >= epoch and _same(given, newest.get(key))}


def _newest(universe: Universe) -> dict[tuple[str, ...], bytes]:
    return {(str(item["pk"]),): image(item) for item in universe.source.items(universe.TABLE)}


def _same(parked: str | None, newest: bytes | None) -> bool:
    return (None if parked is None else Item(parked.encode())) == (None if newest is None else Item(newest))


def _check_table(
    table: str,
    want: Mapping[DocumentId, bytes],
    rows: Mapping[DocumentId, tuple[int, bytes]],
    parked: set[tuple[str, ...]],
    returned: set[DocumentId],
) -> None:
    """``returned``: documents of items that had expired and came back: no record says that they are to go."""
    got = {id: stored for id, (_, stored) in rows.items() if not _of_parked(id, parked)}
    assert not (lost := want.keys() - got.keys()), f"{table} lacks {sorted(lost)}"
    assert not (ghosts := got.keys() - want.keys() - returned), f"{table} has {sorted(ghosts)}, which are gone"
    stale = {id: (got[id], want[id]) for id in want if got[id] != want[id]}
    assert not stale, f"{table} is not up to date: {stale}"


def _check_counts(database: MemoryDatabase) -> None:
    for source, c in database.counts.items():
        assert c.read == c.applied + c.superseded + c.filtered + c.parked, f"counts of {source}: {c}"
        assert min(c.read, c.applied, c.superseded, c.filtered) >= 0
        shard = shard_of(source)
        assert shard is None or ("shard", shard) in database.entries, f"the counts of {shard} outlived its entry"
    parked = [c.parked for c in database.counts.values()]
    assert sum(parked) >= 0
    if epoch_of(database.entries) == FIRST_EPOCH:
        # Later, an item that is dropped may have been parked in an earlier epoch, whose counts are elsewhere.
        assert min(parked, default=0) >= 0
        _check_read(database)


def _check_read(database: MemoryDatabase) -> None:
    """Each record of an epoch is read once: stored again after no crash, counted whatever became of it.

    Of a shard whose parent is forgotten by now, nothing says any more where its ordinals began: not before the first.
    """
    shards = {id: decoded(k, t) for (k, id), (_, t) in database.entries.items() if k == "shard"}
    for id, state in shards.items():
        assert isinstance(state, ShardState)
        parent = shards.get(state.parent or "")
        base = parent.ordinal if isinstance(parent, ShardState) else 0
        passed = state.ordinal - base if state.sequence is not None else 0
        counted = database.counts.get(f"shard:{id}", Counts()).read
        known = parent is not None or state.parent is None
        assert counted == passed or (counted < passed and not known), f"shard {id}: {counted} counted, {passed} passed"


def _of_parked(id: DocumentId, parked: set[tuple[str, ...]]) -> bool:
    return id in parked or any(id[0] == key_text(key) for key in parked)


def _documents(
    universe: Universe, key: tuple[str, ...], item: Mapping[str, object]
) -> Iterator[tuple[str, DocumentId, bytes]]:
    encoded, hook = Item(image(item)), universe.hook()
    try:
        if hook is None:
            yield universe.TABLE, key, body(encoded)
        elif hook.declared:
            yield from _own(hook, key, encoded, universe.tables)
        elif (found := hook.one(encoded)) is not None:
            yield universe.TABLE, key, body(found)
    except Poison:
        raise AssertionError(f"the item {key} is poison, and is not parked") from None


def _own(
    hook: Hook, key: tuple[str, ...], item: Item, tables: Mapping[str, object]
) -> Iterator[tuple[str, DocumentId, bytes]]:
    for (table, id), document in hook.many(item, tuple(tables)).items():
        yield table, (key_text(key), id), body(document)


def pipeline_of(entries: Entries) -> PipelineState | None:
    if ("pipeline", "") not in entries:
        return None
    state = decoded("pipeline", entries["pipeline", ""][1])
    assert isinstance(state, PipelineState)
    return state


def complete_of(entries: Entries) -> int:
    """The last epoch that scanned the whole table; 0 before the first."""
    state = pipeline_of(entries)
    return 0 if state is None else state.complete


def repairing_of(entries: Entries) -> int:
    """The last epoch that scanned the whole table or repaired a gap; 0 before the first."""
    state = pipeline_of(entries)
    return 0 if state is None else state.repairing


def epoch_of(entries: Entries) -> int:
    state = pipeline_of(entries)
    return 0 if state is None else state.epoch
