"""Wrong designs of repairs from exports: what an incremental export does not say, or does not cover."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from replicator.engine.gap_repair import Repairs
from replicator.pipeline import gap_repair, parked
from replicator.state import GapRepair
from tests.simulation.mutants.mutant import Patch, mutant
from tests.simulation.mutants.scenarios import discards_before_gaps, repairing_gaps


@mutant("what changed before a gap is not looked up", 9, shape=repairing_gaps)
def nothing_is_looked_up(patch: Patch) -> None:
    def ends(self: Repairs, state: Any, repair: GapRepair) -> None:
        self._read(replace(state, repair=replace(repair, done=True)), {})

    patch.setattr(Repairs, "_walk", ends)


@mutant("the export of a gap begins when the gap is found", 9, shape=repairing_gaps)
def begins_late(patch: Patch) -> None:
    right = gap_repair.windows
    patch.setattr(gap_repair, "windows", lambda since, until: right(until, until))


@mutant("the export of a gap begins at the last change stored in any shard", 9, shape=repairing_gaps)
def begins_at_the_last_change(patch: Patch) -> None:
    right = gap_repair.planned

    def planned(state: Any, since: float, until: float, *, inserting: bool) -> GapRepair:
        return right(state, max(since, state.floors[0].at if state.floors else since), until, inserting=inserting)

    patch.setattr(gap_repair, "planned", planned)
    patch.setattr(gap_repair, "OVERLAP", 60.0)


@mutant("the export of a gap ends before the positions", 9, shape=repairing_gaps)
def ends_early(patch: Patch) -> None:
    right = gap_repair.windows
    patch.setattr(gap_repair, "windows", lambda since, until: right(since, until - gap_repair.OVERLAP - 120.0))


@mutant("the exports of a gap are read oldest first", 9, shape=repairing_gaps)
def oldest_first(patch: Patch) -> None:
    right = gap_repair.planned

    def reverse(*given: Any, **named: Any) -> GapRepair:
        plan = right(*given, **named)
        return replace(plan, windows=tuple(reversed(plan.windows)))

    patch.setattr(gap_repair, "planned", reverse)
    patch.setattr(gap_repair, "LONGEST", 1800.0)


@mutant("a gap during a repair is repaired from where the second one begins", 9, shape=repairing_gaps)
def begins_anew(patch: Patch) -> None:
    right = gap_repair.planned
    patch.setattr(
        gap_repair, "planned", lambda state, *given, **named: right(replace(state, repair=None), *given, **named)
    )


@mutant("documents above the newest floor are looked up, whatever its time", 9, shape=repairing_gaps)
def floor_of_any_time(patch: Patch) -> None:
    right = gap_repair.above

    def newest(state: Any, since: float, *, inserting: bool) -> int:
        return state.floors[0].version if state.floors else right(state, since, inserting=inserting)

    patch.setattr(gap_repair, "above", newest)


@mutant("parked changes from before a gap stay", 9, shape=repairing_gaps)
def parked_stay(patch: Patch) -> None:
    patch.setattr("replicator.engine.gap_repair.kept_keys", lambda *_: ({}, {}))


@mutant("discarded changes from before a gap are not looked up", 9, shape=discards_before_gaps)
def discarded_stay(patch: Patch) -> None:
    patch.setattr("replicator.engine.gap_repair.kept_keys", lambda *given: (parked.kept_keys(*given)[0], {}))
