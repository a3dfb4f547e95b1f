"""A verification pass compares the pipeline's table with its copy, and no other table that got its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from replicator.errors import ConfigError, GapFound
from replicator.operations.verify import Request
from replicator.state import FULL, UNFINISHED
from tests.faults.world import TABLE, World
from tests.faults.world import faults as faults
from tests.operations.passes import Passes, Report
from tests.operations.passes import forgetful as forgetful
from tests.operations.passes import passes as passes
from tests.operations.passes import patched as patched

ITEMS = tuple(f"k{n}" for n in range(450))


class Changing:
    """A client under which the table is made again, with these items, once ``after`` such calls were answered."""

    server = ""

    def __init__(self, world: World, operation: str, after: int, items: tuple[str, ...]) -> None:
        self.world, self.operation, self.left, self.items = world, operation, after, items

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        response: bytes = self.world.db.call(operation, request)
        self.left -= operation == self.operation
        if operation == self.operation and self.left == 0:
            self.world.db.call("DeleteTable", {"TableName": TABLE})
            self.world.db.create_table(TABLE)
            self.world.put(*self.items)
        return response


@pytest.mark.parametrize("items", [(), ITEMS], ids=["an empty table", "the same items"])
@pytest.mark.parametrize(("operation", "after"), [("Scan", 2), ("Scan", 12), ("BatchGetItem", 2), ("BatchGetItem", 5)])
def test_a_pass_during_which_the_table_is_made_again_ends_with_a_gap_and_finds_nothing(
    faults: World, passes: Passes, operation: str, after: int, items: tuple[str, ...]
) -> None:
    faults.db.page_sizes(items=40)
    faults.client = Changing(faults, operation, after, items)
    report = Report()
    with pytest.raises(GapFound, match="the table orders was deleted and created again before"):
        passes.make(Request(), report)
    assert faults.client.left <= 0
    assert not report.results
    assert FULL not in passes.recorded

    with pytest.raises((GapFound, ConfigError), match="was deleted and created again"):
        passes.make(Request(resume=UNFINISHED[FULL] in passes.recorded))


@pytest.mark.parametrize(("share", "seconds"), [(1.0, 50), (0.5, 0)])
def test_a_pass_looks_the_table_up_once_a_second_however_many_segments_it_reads(
    faults: World, passes: Passes, share: float, seconds: float
) -> None:
    faults.client.asked.clear()
    began = faults.clock()
    passes.make(Request(share, read_units=5 if seconds else None))
    lasted, pages = faults.clock() - began, len(faults.client.times("Scan"))
    assert lasted > seconds
    assert pages > (15 if share < 1.0 else 3)
    assert len(faults.client.times("DescribeTable")) < lasted + 8


def test_a_look_up_of_the_table_that_fails_is_made_again(faults: World, passes: Passes) -> None:
    faults.db.fail("DescribeTable", "ThrottlingException", times=2, when=lambda _: bool(passes.requested_keys()))
    tally = passes.make(Request())
    assert (tally.exit_code, tally.items, tally.documents) == (0, 450, 450)
