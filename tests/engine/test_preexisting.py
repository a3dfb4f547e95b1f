"""Inspection before a run: an empty table is a loss only if it was nonempty when the last run stopped cleanly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from replicator.batch import Batch, Part, Upsert
from replicator.checkpoints.contract import Claimed
from replicator.engine import preexisting
from replicator.errors import ConfigError
from replicator.identity import Change, Definition
from replicator.key import KeyAttribute, KeySchema
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.source.table import SourceTable
from replicator.state import Entry, Heartbeat, Retried, encode
from replicator.target.contract import Table
from replicator.testing.memory import MemoryDatabase, MemoryTarget
from replicator.version import FIRST_EPOCH, version

KEYS = KeySchema((KeyAttribute("id", "S"),))
TABLES = (Table("orders", KEYS), Table("lines", KEYS))
SOURCE = SourceTable(
    "source", "arn", "id", KEYS, 0, 0, "stream", True, "NEW_AND_OLD_IMAGES", "identity", "server", requested="source"
)


@pytest.fixture
def target() -> MemoryTarget:
    """Two tables, the first with a row."""
    found = MemoryTarget(MemoryDatabase())
    found.open(TABLES, FIRST_EPOCH)
    found.write(Batch([Part("", [Upsert("orders", ("a",), {"id": "a"}, version(FIRST_EPOCH, 1), ("a",))])]))
    return found


def emptied(target: MemoryTarget, last: Heartbeat | None) -> list[str]:
    entries = [Entry("retried", id, 1, encode(Retried(7))) for id in ("1024", "1025")]
    entries += [] if last is None else [Entry("pulse", "", 1, encode(last))]
    return list(preexisting.inspect(CheckpointView(Claimed(0, entries, {})), SOURCE, target, TABLES, None).emptied)


def test_nonempty_tables_are_recorded_when_a_run_stops(target: MemoryTarget) -> None:
    assert preexisting.filled(target.checkpoints, target, TABLES) == (["orders"], 0)


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (Heartbeat(0.0, "stopped", filled=("lines",), retried=2), ["lines"]),
        (Heartbeat(0.0, "stopped", filled=("orders",), retried=2), []),
        (Heartbeat(0.0, "stopped", retried=2), []),
        (Heartbeat(0.0, "live", filled=("lines",), retried=2), []),
        (Heartbeat(0.0, "stopped", filled=("lines",), retried=1), []),
        (Heartbeat(0.0, "stopped", filled=("lines",)), []),
        (None, []),
    ],
    ids=["emptied", "still filled", "was empty", "killed", "retried since", "an earlier version's", "never ran"],
)
def test_a_table_counts_as_emptied_only_if_it_was_recorded_as_nonempty(
    target: MemoryTarget, last: Heartbeat | None, expected: list[str]
) -> None:
    assert emptied(target, last) == expected


class Dividing(MemoryTarget):
    """A target whose option ``aside`` does not affect its documents."""

    def parts(self, table: Table) -> Mapping[str, str]:
        if "broken" in table.options:
            raise ConfigError("there is no option broken any more")
        return {name: str(value) for name, value in table.options.items() if name != "aside"}

    def additions(self, tables: Sequence[Table], changes: Sequence[Change]) -> Sequence[str] | None:
        return []

    def extend(self, tables: Sequence[Table], changes: Sequence[Change]) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ('{"aside": 1, "kind": "text"}', []),
        ('{"kind": "long"}', ["orders: kind was changed"]),
        ("{}", ["orders: kind was added"]),
        ('{"broken": 1}', ["orders: kind was added", "orders: options was removed"]),
    ],
    ids=["alike", "changed", "added", "not known any more"],
)
def test_options_stored_as_a_whole_are_compared_part_by_part(stored: str, expected: Sequence[str]) -> None:
    """Before a target was Defining, its options were stored as a single part."""
    target = Dividing(MemoryDatabase())
    tables = (Table("orders", KEYS, {"kind": "text", "aside": 2}),)
    target.open(tables, FIRST_EPOCH)
    entry = Entry("definition", "", 1, encode(Definition(parts={"orders": {"options": stored}})))
    found = preexisting.inspect(CheckpointView(Claimed(0, [entry], {})), SOURCE, target, tables, None)
    assert [str(change) for change in found.changes] == expected
