"""What a verification pass found counts until a pass over the whole table has ended that began later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from replicator.batch import Delete, Upsert
from replicator.errors import ConfigError
from replicator.operations.cutover import Criteria, ready, standing
from replicator.operations.pass_record import PassRecord
from replicator.operations.verify import Request
from replicator.state import FULL, Heartbeat, Repair, decode, encode
from replicator.target.contract import Table
from replicator.target.verification import CHANGED
from replicator.testing.memory import MemoryCheckpoints, MemoryTarget
from tests.faults.world import TABLE, World
from tests.faults.world import faults as faults
from tests.operations.passes import Passes, Report
from tests.operations.passes import forgetful as forgetful
from tests.operations.passes import passes as passes
from tests.operations.passes import patched as patched


def answer(passes: Passes) -> list[str]:
    """Why applications may not switch; what only says that no run reads is left out."""
    at = standing(MemoryCheckpoints(passes.world.database).read(), passes.world.clock())
    return [reason.text for reason in ready(at, Criteria(at.at, ttl_deletes="apply")) if "verify" in reason.text]


def lose(passes: Passes, count: int) -> None:
    for n in range(count):
        passes.world.database.rows[TABLE].pop((f"k{n}",))


def test_a_pass_that_is_interrupted_at_its_beginning_does_not_hide_what_an_interrupted_one_found(
    passes: Passes,
) -> None:
    passes.make(Request())
    assert answer(passes) == []
    lose(passes, 5)

    def enough() -> None:
        if report.results and passes.world.stop.until is None:
            passes.world.stop.until = passes.world.clock() + 1

    report = Report(enough)
    assert passes.make(Request(read_units=5), report).missing == 5
    found = ["a later verify pass (full, in progress) found 5 difference(s); verify again"]
    assert answer(passes) == found
    replaced = [found[0].replace("progress)", "progress), or one that it replaced,")]
    for resume in (False, False, True):
        passes.make(Request(read_units=5, resume=resume), seconds=1)
        assert answer(passes) == replaced
    assert passes.make(Request()).missing == 5
    assert answer(passes) == ["the last verify pass found 5 difference(s); verify again"]


def test_a_sample_does_not_hide_what_an_earlier_one_found_but_a_full_pass_settles_it(passes: Passes) -> None:
    passes.make(Request())
    kept = dict(passes.world.database.rows[TABLE])
    lose(passes, 5)
    assert passes.make(Request(share=0.9999)).differences == 5
    found = ["a later verify pass (99.99 %) found 5 difference(s); verify again"]
    assert answer(passes) == found
    passes.world.database.rows[TABLE].update(kept)
    for _ in range(2):
        assert passes.make(Request(share=0.0001)).differences == 0
        assert answer(passes) == [found[0].replace("99.99 %)", "0.01 %), or one that it replaced,")]
    assert passes.make(Request()).exit_code == 0
    assert answer(passes) == []


def test_a_pass_that_was_left_long_ago_is_not_resumed(passes: Passes) -> None:
    passes.make(Request(read_units=3), seconds=60)
    passes.world.clock.move(passes.world.clock() + 25 * 3600)
    lose(passes, 449)
    with pytest.raises(ConfigError, match="--resume: the unfinished pass was left 25 hours ago"):
        passes.make(Request(resume=True))


def test_the_age_of_a_pass_counts_from_its_beginning_also_if_it_was_resumed(passes: Passes) -> None:
    passes.make(Request(read_units=3), seconds=60)
    for _ in range(2):
        passes.world.clock.move(passes.world.clock() + 20 * 3600)
        passes.make(Request(read_units=3, resume=True), seconds=1)
    assert passes.make(Request(resume=True)).exit_code == 0
    (text,) = answer(passes)
    assert text.startswith("the last verify pass began 40.0 hours ago, too long for --verified-within")


def test_a_full_pass_that_came_across_hashed_keys_is_not_resumed_as_what_it_saw_of_them_is_not_stored(
    passes: Passes,
) -> None:
    passes.make(Request(read_units=3), seconds=60)
    record = PassRecord(MemoryCheckpoints(passes.world.database), FULL)
    left = record.unfinished()
    assert left is not None
    record.resume(left)
    record.save(replace(left, hashed=True))
    with pytest.raises(ConfigError, match="--resume: the unfinished pass came across documents whose ids only have"):
        passes.make(Request(resume=True))


def foreign(passes: Passes, id: tuple[str, ...]) -> None:
    rows = passes.world.database.rows[TABLE]
    version, _ = next(iter(rows.values()))
    rows[id] = (version, b'{"id": "x"}')


@pytest.mark.parametrize("id", ["", "x" * 3000])
def test_a_document_that_no_item_can_have_is_extra_and_its_key_is_not_looked_up(passes: Passes, id: str) -> None:
    foreign(passes, (id,))
    report = Report()
    assert passes.make(Request(), report).extra == 1
    assert [result.finding.id for result in report.results] == [(id,)]
    assert id not in passes.requested_keys()


class Acknowledging(Passes):
    """The run has noticed the repairs."""

    def _beat(self) -> None:
        super()._beat()
        entries = self.world.database.entries
        announced = entries.get(("repair", ""))
        repair = None if announced is None else decode("repair", "", announced[1])
        token = repair.token if isinstance(repair, Repair) else ""
        entries["pulse", ""] = (1, encode(Heartbeat(self.world.clock(), "live", repair=token)))


class Late(MemoryTarget):
    """Each document changes once, just before it is repaired."""

    late = 0

    def replace(self, table: Table, writes: Sequence[Upsert]) -> Sequence[str]:
        Late.late += 1
        return [CHANGED] * len(writes) if Late.late == 1 else super().replace(table, writes)

    def remove(self, table: Table, writes: Sequence[Delete]) -> Sequence[str]:
        Late.late += 1
        return [CHANGED] * len(writes) if Late.late == 1 else super().remove(table, writes)


@pytest.mark.parametrize("possible", [True, False])
def test_what_is_repaired_after_it_had_changed_once_is_one_difference(
    faults: World, patched: None, *, possible: bool
) -> None:
    faults.fill(20)
    passes = Acknowledging(faults)
    Late.late, faults.target = 0, lambda: Late(faults.database)
    rows = faults.database.rows[TABLE]
    if possible:
        for n in range(3):
            rows[(f"k{n}",)] = (rows[(f"k{n}",)][0], b'{"id": "other"}')
    else:
        foreign(passes, ("",))
    tally = passes.make(Request(repair=True))
    count = 3 if possible else 1
    assert (tally.differences, tally.repaired, tally.exit_code) == (count, count, 0)
    assert ("",) not in rows
    assert passes.make(Request()).differences == 0
