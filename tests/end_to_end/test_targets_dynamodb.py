"""Table to table, between two DynamoDB servers: whatever interrupts a copy, the other table ends as it should."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end import targets
from tests.end_to_end.targets import KILLS, OtherTable
from tests.end_to_end.world import Source
from tests.servers.dynamodb_fixtures import StartLocal
from tests.servers.dynamodb_local import DynamoDBLocal

pytestmark = [pytest.mark.dynamodb_local, pytest.mark.timeout(300 + 30 * KILLS)]


@pytest.fixture(scope="module")
def other_server(dynamodb_local: StartLocal, tmp_path_factory: pytest.TempPathFactory) -> DynamoDBLocal:
    """A second server, whose tables outlive it."""
    return dynamodb_local(directory=tmp_path_factory.mktemp("tables"))


@pytest.fixture
def other(tmp_path: Path, source: Source, other_server: DynamoDBLocal) -> Iterator[OtherTable]:
    """A pipeline into a table of the second server, which it makes."""
    yield OtherTable(tmp_path, source, other_server, name=f"copy-of-{source.table}")
    other_server.start()  # a test may have stopped it


def test_after_kills_and_a_restart_of_the_server_the_table_is_what_the_hook_makes(
    other: OtherTable, source: Source, local: DynamoDBLocal
) -> None:
    def roll(done: int) -> None:
        if done % 150 == 75:
            local.roll()

    targets.ends_equal_after_kills_and_a_restart(other, source, roll)


def test_a_backfill_that_nothing_interrupts_leaves_no_tombstone(other: OtherTable, source: Source) -> None:
    targets.leaves_no_tombstone(other, source)


def test_whole_items_are_copied_as_they_are(other: OtherTable, source: Source) -> None:
    other.configured(None)
    source.fill(20)
    odd = {"big": 12345678901234567890123456789012345678, "empty": "", "set": {"b", "a"}, "raw": b"\x00", "no": None}
    source.put("odd", n=1, **odd, deep={"list": [1, {"a.b": "c"}]})
    other.caught_up()
    source.delete("k3")
    other.caught_up()

    other.assert_equal()
