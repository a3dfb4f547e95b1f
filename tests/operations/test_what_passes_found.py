"""What a verification pass found counts until a pass over the whole table has ended that began later."""

from __future__ import annotations

from dataclasses import replace

import pytest

from replicator.errors import ConfigError
from replicator.operations.cutover import Criteria, ready, standing
from replicator.operations.pass_record import PassRecord
from replicator.operations.verify import Request
from replicator.state import FULL
from replicator.testing.memory import MemoryCheckpoints
from tests.faults.world import TABLE
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
