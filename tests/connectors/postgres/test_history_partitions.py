"""Partitions of a history: how retention removes them, and what must not keep it from that."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from connectors.postgres import history, history_note
from connectors.postgres.table_schema import TableSchema, shapes
from replicator.batch import Batch, Part, Past
from replicator.errors import Fenced, TransientError
from replicator.key import KeyAttribute, KeySchema
from replicator.state import Owner
from replicator.target.contract import Table
from replicator.version import version
from tests.cli.command_line import World
from tests.connectors.postgres.history_kit import keep_history
from tests.connectors.postgres.postgres_kit import target
from tests.connectors.postgres.test_history_losses import execute

pytestmark = pytest.mark.postgres

ORDERS = Table("orders", KeySchema((KeyAttribute("id", "S"),)), {"history": {"keep": "2d"}})
PARTITIONS = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'orders_history'::regclass"
NOTE = "SELECT obj_description('orders_history_base'::regclass, 'pg_class')"


def add_partition(world: World, day: int) -> None:
    execute(
        world,
        f"CREATE TABLE orders_history_200101{day:02} PARTITION OF orders_history "
        f"FOR VALUES FROM ('2001-01-{day:02}T00:00:00Z') TO ('2001-01-{day + 1:02}T00:00:00Z')",
    )


@pytest.fixture
def kept(world: World) -> World:
    keep_history(world, "history: {keep: 2d}")
    world.db.create_table("orders")
    world.db.put("orders", {"id": "a", "n": 1})
    world.catch_up()
    return world


def test_times_that_were_removed_stay_so_when_an_older_partition_comes_back(kept: World) -> None:
    one = target(kept.postgres, "orders")
    for day in (10, 1):
        add_partition(kept, day)
        assert one.retain([ORDERS])
        assert kept.rows(NOTE) == [("replicator: changes are kept since 979171200",)]


def test_a_run_that_was_replaced_removes_nothing(kept: World) -> None:
    """It may have been suspended, and the run that replaced it may keep changes for longer."""
    before, now = target(kept.postgres, "orders"), target(kept.postgres, "orders")
    for one in (before, now):
        one.checkpoints.claim(Owner("token", "host", 1, 1.0))
    add_partition(kept, 10)
    with pytest.raises(Fenced):
        before.retain([ORDERS])
    assert now.retain([ORDERS])


def test_a_run_that_was_replaced_adds_no_partition(kept: World) -> None:
    before, now = target(kept.postgres, "orders"), target(kept.postgres, "orders")
    before.checkpoints.claim(Owner("token", "host", 1, 1.0))
    before.open([ORDERS], 1024)
    now.checkpoints.claim(Owner("token", "host", 2, 1.0))
    there = kept.rows(PARTITIONS)
    past = Past("orders", ("b",), version(1024, 9), 1_000_000_000.0, "9", "remove")
    with pytest.raises(Fenced):
        before.write(Batch([Part("", history=[past])]))
    assert kept.rows(PARTITIONS) == there


def test_what_retention_removes_meanwhile_is_no_loss(kept: World, monkeypatch: pytest.MonkeyPatch) -> None:
    add_partition(kept, 10)
    execute(kept, "UPDATE orders_history SET _changed_at = '2001-01-10T10:00:00Z'")
    reader, run = target(kept.postgres, "orders"), target(kept.postgres, "orders")
    with kept.postgres.connect() as client:
        (shape,) = shapes([ORDERS], "public").values()
        history.add_partitions(client, shape, [])  # notes the one that was made here
    look = history_note.losses

    def losses(connection: psycopg.Connection[Any], shape: TableSchema, *, scanned: bool) -> Iterator[str]:
        with contextlib.suppress(TransientError):  # readers hold the history: it tries again later
            run.retain([ORDERS])
        yield from look(connection, shape, scanned=scanned)

    monkeypatch.setattr(history_note, "losses", losses)
    assert reader.history_losses([ORDERS], 1024, scanned=True) == []
    assert run.retain([ORDERS])
    assert reader.history_losses([ORDERS], 1024, scanned=True) == []


def test_a_partition_that_was_moved_to_another_schema_is_removed_in_time(kept: World) -> None:
    """And no table that has its name."""
    add_partition(kept, 10)
    execute(
        kept,
        "INSERT INTO orders_history VALUES ('old', '2001-01-10T10:00:00Z', '', 1024::bigint << 48, 'scan', NULL, "
        """'{"n": 7}')""",
        "CREATE SCHEMA archive",
        "ALTER TABLE orders_history_20010110 SET SCHEMA archive",
        "CREATE TABLE orders_history_20010110 (LIKE orders_history)",
    )
    assert target(kept.postgres, "orders").retain([ORDERS])
    assert kept.has_table("orders_history_20010110")
    assert kept.rows("SELECT 1 FROM pg_tables WHERE schemaname = 'archive'") == []
    assert kept.rows("SELECT id FROM orders_history_base") == [("old",)]
    kept.catch_up()
