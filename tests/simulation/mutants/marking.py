"""Rule 5 where deletes only mark: a marked document keeps its last image, and only newer writes make it live again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from replicator.batch import Delete, DocumentId, Write
from replicator.pipeline import compaction
from replicator.pipeline.compaction import Last
from replicator.target.contract import Table
from replicator.target.verification import Walked
from replicator.testing.memory import Marked, MemoryRows
from tests.simulation.mutants.mutant import Patch, mutant
from tests.simulation.mutants.scenarios import marked_copies, marked_deletes


@mutant("a sweep removes marked documents", 5, shape=marked_deletes)
def sweeps_marked(patch: Patch) -> None:
    right = MemoryRows.older

    def older(self: MemoryRows, table: Table, below: int, spare: Sequence[DocumentId]) -> Sequence[DocumentId]:
        marked = self._database.marked.get(table.name, {})
        for id in [id for id, one in marked.items() if one.version < below]:
            del marked[id]
        return right(self, table, below, spare)

    patch.setattr(MemoryRows, "older", older)


@mutant("a sweep removes documents instead of marking them", 5, shape=marked_deletes)
def sweeps_without_marks(patch: Patch) -> None:
    right = MemoryRows._mark

    def mark(self: MemoryRows, write: Delete) -> bool:
        return bool(write.weight or write.created is not None) and right(self, write)

    patch.setattr(MemoryRows, "_mark", mark)


@mutant("a write leaves the document marked", 5, shape=marked_deletes)
def writes_keep_the_mark(patch: Patch) -> None:
    right = MemoryRows._apply

    def apply(self: MemoryRows, write: Write, *, keep: bool, same: bool = False) -> bool:
        before = self._database.marked.get(write.table, {}).get(write.id)
        applied = right(self, write, keep=keep, same=same)
        if applied and before is not None:
            self._database.marked[write.table].setdefault(write.id, before)
        return applied

    patch.setattr(MemoryRows, "_apply", apply)


@mutant("a late, older write makes a marked document live again", 5, shape=marked_deletes)
def late_writes_clear_the_mark(patch: Patch) -> None:
    patch.setattr(MemoryRows, "_marked", lambda self, table, id: -1)


@mutant("verify calls a marked document extra", 5, shape=marked_copies)
def marked_is_extra(patch: Patch) -> None:
    walk, versions = MemoryRows.walk, MemoryRows.versions

    def walks(self: MemoryRows, table: Table, cursor: str | None, within: DocumentId = ()) -> Walked:
        found = walk(self, table, cursor, within)
        return Walked([*found.ids, *self._database.marked.get(table.name, {})], found.cursor)

    def known(self: MemoryRows, table: Table, ids: Sequence[DocumentId]) -> Sequence[int | None]:
        marked: Mapping[DocumentId, Marked] = self._database.marked.get(table.name, {})
        found = zip(ids, versions(self, table, ids), strict=True)
        return [marked[id].version if id in marked else version for id, version in found]

    patch.setattr(MemoryRows, "walk", walks)
    patch.setattr(MemoryRows, "versions", known)


@mutant("a document is marked as it was stored, whatever its last image", 5, shape=marked_deletes)
def marks_what_is_stored(patch: Patch) -> None:
    patch.setattr(compaction, "_deletion", lambda last, created: (created, None))


@mutant("a document vanished when its batch's last change was made", 5, shape=marked_deletes)
def vanishes_with_the_batch(patch: Patch) -> None:
    right = compaction._deletion

    def deletion(last: Last | None, created: float | None) -> tuple[float | None, Mapping[str, object] | None]:
        _, body = right(last, created)
        return created, body

    patch.setattr(compaction, "_deletion", deletion)
