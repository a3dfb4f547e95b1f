"""A sweep that the target refuses: the run ends with the reason, and the next one continues."""

from __future__ import annotations

from collections.abc import Sequence

from replicator.batch import DocumentId
from replicator.errors import Postponed
from replicator.target.contract import Table
from replicator.testing.memory import MemoryTarget
from tests.faults.world import HOUR, TABLE, World


def _gone_behind_a_gap(faults: World) -> None:
    """An item that is deleted while no stream records it: only a sweep removes its document."""
    faults.fill()
    faults.copied()
    faults.db.disable_stream(TABLE)
    faults.db.delete(TABLE, {"id": "k0"})
    faults.db.delete(TABLE, {"id": "k1"})
    faults.db.enable_stream(TABLE)
    assert faults.run().code == 3


def test_a_sweep_refused_by_the_target_ends_the_run_with_the_reason_and_the_next_run_continues_it(
    faults: World,
) -> None:
    def keeps(table: str, id: DocumentId) -> str | None:
        return "the foreign key about of notes refuses it" if id == ("k0",) else None

    _gone_behind_a_gap(faults)
    free = faults.database.keeps
    faults.database.keeps = keeps
    for name in ("resync", "run"):
        ended = faults.run(name=name)
        assert ended.code == 2
        assert f"{TABLE}: 1 documents cannot be deleted: the foreign key about of notes refuses it" in ended.err
        assert set(faults.documents) == {f"k{n}" for n in range(6)} - {"k1"}
        assert len(faults.gaps) == 1
    faults.database.keeps = free
    faults.copied()
    assert faults.gaps == []


def test_a_sweep_that_must_wait_holds_up_no_change_and_is_carried_out_later(faults: World) -> None:
    moving = "slots are moving"

    class Moving(MemoryTarget):
        def sweep(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
            if faults.clock() < until:
                raise Postponed(moving)
            return super().sweep(table, below, spare)

    _gone_behind_a_gap(faults)
    until, seen = faults.clock() + 2 * HOUR, []
    faults.target = lambda: Moving(faults.database)
    faults.clock.plan(HOUR, lambda: faults.put("k3", n=99))
    faults.clock.plan(1.1 * HOUR, lambda: seen.append(dict(faults.documents["k3"])["n"]))
    ended = faults.run(name="resync", seconds=3 * HOUR)
    assert ended.code == 0
    assert ended.event("waiting")["reason"] == moving
    assert seen == [99]
    assert set(faults.documents) == {f"k{n}" for n in range(2, 6)}
    assert faults.gaps == []
