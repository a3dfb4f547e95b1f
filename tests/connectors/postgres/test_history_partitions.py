"""Partitions of a history: how retention removes them, and what must not keep it from that."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from connectors.postgres import history, history_note
from connectors.postgres.table_schema import TableSchema, shapes
from replicator.batch import Batch, Part, Past
from replicator.engine.cleanup import Cleanup
from replicator.errors import ConfigError, Fenced, TransientError
from replicator.key import KeyAttribute, KeySchema
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.state import Owner
from replicator.target.contract import Table
from replicator.target.past import Extent
from replicator.version import version
from tests.cli.command_line import World
from tests.connectors.postgres.history_kit import keep_history
from tests.connectors.postgres.postgres_kit import target
from tests.connectors.postgres.test_history_losses import execute

pytestmark = pytest.mark.postgres

ORDERS = Table("orders", KeySchema((KeyAttribute("id", "S"),)), {"history": {"keep": "2d"}})
PARTITIONS = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'orders_history'::regclass"
NOTE = "SELECT obj_description('orders_history_base'::regclass, 'pg_class')"


def add_partition(world: World, day: int, table: str = "orders") -> None:
    execute(
        world,
        f"CREATE TABLE {table}_history_200101{day:02} PARTITION OF {table}_history "
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


def test_a_time_is_refused_whose_changes_were_removed_since_it_was_allowed(kept: World) -> None:
    """The base has only what each document was last before the removed time's end."""
    add_partition(kept, 10)
    reader = target(kept.postgres, "orders")
    assert reader.history_extent(ORDERS) == Extent(1024)
    assert target(kept.postgres, "orders").retain([ORDERS])
    with pytest.raises(ConfigError, match=r"changes before 2001-01-11T00:00:00.* have just been removed"):
        list(reader.history_as_of(ORDERS, None, 979171199.0, (1024, 1025)))
    assert len(list(reader.history_as_of(ORDERS, None, 4e9, (1024, 1025)))) == 1


def test_a_history_that_is_held_keeps_no_other_from_being_removed(
    kept: World, caplog: pytest.LogCaptureFixture
) -> None:
    """And the log says so: a session that was forgotten may hold it for good."""
    others = replace(ORDERS, name="others")
    run = target(kept.postgres, "orders")
    run.open([ORDERS, others], 1024)
    for table in ("orders", "others"):
        add_partition(kept, 10, table)
    with kept.postgres.connect() as reader, reader.transaction():
        reader.execute("SELECT count(*) FROM orders_history")
        assert run.retain([ORDERS, others])
        with pytest.raises(TransientError):
            run.retain([ORDERS, others])
        view = CheckpointView(run.checkpoints.read())
        cleaning: Any = SimpleNamespace(mapping=SimpleNamespace(histories=True), settle=lambda: None, view=view)
        cleanup: Any = Cleanup(run, run.checkpoints, [ORDERS, others], cleaning, cleaning, cleaning, float, float, None)
        assert cleanup._retains_history()
    (logged,) = [record for record in caplog.records if record.message == "history not removed"]
    assert "holds a lock" in vars(logged)["reason"]
    assert not kept.has_table("others_history_20010110")
    assert run.retain([ORDERS, others])


def test_documents_that_a_repair_adds_after_a_hook_change_are_no_loss(world: World) -> None:
    """The history has no change of them: the source has not changed."""
    keep_history(world)
    world.db.create_table("orders")
    world.db.put("orders", {"id": "a", "n": 1})
    world.hook("def hook(item):\n    return None\n")
    world.catch_up()
    world.hook("def hook(item):\n    return {'n': int(item['n'])}\n")
    world.catch_up("--accept-hook-change")
    # As verify --repair does: an item that is missing gets the version of the scan.
    execute(world, """INSERT INTO orders VALUES ('a', '{"n": 1}', 1024::bigint << 48)""")
    assert world.call("check", world.config)[0] == 0
    world.catch_up()


def test_a_run_that_is_up_says_within_the_hour_and_once_which_part_of_a_history_is_gone(
    kept: World, caplog: pytest.LogCaptureFixture
) -> None:
    run, clock = target(kept.postgres, "orders"), iter(range(0, 99_999, 3600))
    view = CheckpointView(run.checkpoints.read())
    cleaning: Any = SimpleNamespace(mapping=SimpleNamespace(histories=True), settle=lambda: None, view=view)
    cleanup: Any = Cleanup(
        run, run.checkpoints, [ORDERS], cleaning, cleaning, cleaning, float, lambda: next(clock), None
    )
    assert cleanup._retains_history()
    assert [report.lost for report in cleanup.histories] == [""]
    execute(kept, "DROP TABLE orders_history_base")
    for _ in range(2):
        assert cleanup._retains_history()
    (logged,) = [record for record in caplog.records if record.message == "history lost"]
    assert (vars(logged)["table"], logged.levelname) == ("orders", "ERROR")
    assert '"public"."orders_history_base" is gone' in vars(logged)["reason"]
    assert cleanup.histories[0].lost == vars(logged)["reason"]
