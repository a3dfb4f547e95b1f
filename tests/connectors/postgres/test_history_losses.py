"""What others have removed from a history: ``check`` and ``run`` say so, and a resync goes on from there."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from tests.cli.command_line import World
from tests.connectors.postgres.history_kit import as_of, changes, keep_history, resync, soon

pytestmark = pytest.mark.postgres

NOTE = (
    "SELECT col_description('orders_history'::regclass, attnum) FROM pg_attribute "
    "WHERE attrelid = 'orders_history'::regclass AND attname = '_changed_at'"
)
ROWS = "SELECT tableoid::regclass::text FROM orders_history LIMIT 1"


def execute(world: World, *statements: str) -> None:
    with world.postgres.connect() as client:
        for statement in statements:
            client.execute(statement)


@pytest.fixture
def kept(world: World) -> World:
    """Live, with an item of the scan and one of the stream."""
    keep_history(world)
    world.db.create_table("orders")
    world.db.put("orders", {"id": "scanned", "n": 0})
    world.catch_up()
    world.db.put("orders", {"id": "a", "n": 1})
    world.catch_up()
    return world


def refused(world: World, expected: str, *, code: int = 2) -> None:
    """``check`` and ``run`` say the same."""
    for command in (["check"], ["run", "--until", "caught-up"]):
        found, out, err = world.call(command[0], world.config, *command[1:], "--human")
        assert (found, expected in out + err) == (code, True), out + err


def goes_on(world: World, *, first: Sequence[str] = ("a", "scanned")) -> None:
    """After a resync the history tells the states from then on, and no earlier ones."""
    before = datetime.now(UTC)
    resync(world)
    assert sorted(as_of(world, soon())) == sorted(first)
    code, _, err = world.call("history", world.config, "--at", before.isoformat(), "--human")
    assert (code, "--at: the history begins at" in err) == (2, True), err
    world.db.put("orders", {"id": "later", "n": 2})
    world.catch_up()
    assert sorted(as_of(world, soon())) == sorted([*first, "later"])
    assert world.call("check", world.config)[0] == 0


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        ("DROP TABLE orders_history", '"public"."orders_history" is gone'),
        ("DROP TABLE orders_history_base", '"public"."orders_history_base" is gone'),
        ("TRUNCATE orders_history", '"public"."orders_history" lacks changes of documents that "public"."orders" has'),
        ("DELETE FROM orders_history WHERE id = 'a'", '"public"."orders_history" lacks changes of documents'),
    ],
)
def test_tables_and_rows_that_are_missing_are_noticed(kept: World, taken: str, expected: str) -> None:
    execute(kept, taken)
    refused(kept, expected)
    goes_on(kept)


@pytest.mark.parametrize("how", ["DROP TABLE {}", "ALTER TABLE orders_history DETACH PARTITION {}"])
def test_a_partition_that_is_missing_is_noticed(kept: World, how: str) -> None:
    ((name,),) = kept.rows(ROWS)
    execute(kept, how.format(name))
    refused(kept, 'the partition of "public"."orders_history" with the changes from ')
    code, _, err = kept.call("history", kept.config, "--at", soon().isoformat(), "--human")
    assert (code, "is gone. Attach it again" in err) == (2, True), err
    goes_on(kept)


def test_a_partition_that_is_attached_again_is_as_before(kept: World) -> None:
    ((name,),) = kept.rows(ROWS)
    bounds = dict(kept.rows("SELECT oid::regclass::text, pg_get_expr(relpartbound, oid) FROM pg_class"))
    values = bounds[name]
    execute(kept, f"ALTER TABLE orders_history DETACH PARTITION {name}")
    refused(kept, 'Attach it again: ALTER TABLE "public"."orders_history" ATTACH PARTITION … FOR VALUES FROM (')
    execute(kept, f"ALTER TABLE orders_history ATTACH PARTITION {name} {values}")
    kept.catch_up()
    assert as_of(kept, soon()) == {"scanned": 0, "a": 1}


def test_a_copy_in_the_place_of_the_history_is_noticed(kept: World) -> None:
    """As after a restore of this one table, whose comments are restored with it."""
    ((note,),) = kept.rows(NOTE)
    ((epoch,),) = kept.rows(
        "SELECT col_description('orders_history'::regclass, attnum) FROM pg_attribute "
        "WHERE attrelid = 'orders_history'::regclass AND attname = '_version'"
    )
    execute(
        kept,
        "CREATE TABLE copy (LIKE orders_history INCLUDING ALL) PARTITION BY RANGE (_changed_at)",
        "CREATE TABLE copy_all PARTITION OF copy FOR VALUES FROM ('2020-01-01') TO ('2100-01-01')",
        "INSERT INTO copy SELECT * FROM orders_history WHERE id <> 'a'",
        "DROP TABLE orders_history",
        "ALTER TABLE copy RENAME TO orders_history",
        f"COMMENT ON COLUMN orders_history._changed_at IS $${note}$$",
        f"COMMENT ON COLUMN orders_history._version IS $${epoch}$$",
    )
    refused(kept, "is not the table that the last run wrote to: it was recreated, replaced by a copy, or restored")
    goes_on(kept)


@pytest.mark.parametrize(
    ("altered", "expected"),
    [
        ("ALTER TABLE orders_history DROP COLUMN _problem", '"public"."orders_history": column _problem is missing'),
        ("ALTER TABLE orders_history ALTER _new TYPE text", "column _new must be jsonb, but is text"),
        ("ALTER TABLE orders_history ADD extra int NOT NULL", "column extra is not in the config, but NOT NULL"),
        ("ALTER TABLE orders_history_base ALTER _old TYPE text", '"public"."orders_history_base": column _old must be'),
    ],
)
def test_columns_that_were_altered_are_refused(world: World, altered: str, expected: str) -> None:
    keep_history(world)
    world.db.create_table("orders")
    world.catch_up()
    execute(world, altered)
    refused(world, expected)


def test_a_partition_that_would_not_survive_a_crash_is_refused(kept: World) -> None:
    ((name,),) = kept.rows(ROWS)
    execute(kept, f"ALTER TABLE {name} SET UNLOGGED")
    refused(kept, name)


def test_a_history_whose_table_and_checkpoints_are_lost_is_kept(kept: World) -> None:
    """The scan of the new epoch is newer than all that the history has, and adds what differs."""
    resync(kept)
    kept.db.put("orders", {"id": "a", "n": 2})
    kept.catch_up()
    kept.db.disable_stream("orders")
    kept.db.put("orders", {"id": "a", "n": 3})
    kept.db.delete("orders", {"id": "scanned"})
    kept.db.enable_stream("orders")
    execute(kept, "DROP SCHEMA replicator CASCADE", "DROP TABLE orders")
    refused(kept, "the target's history was written by epoch 1025 of a pipeline whose checkpoints are lost", code=3)
    before = datetime.now(UTC)
    resync(kept)
    assert as_of(kept, soon()) == {"a": 3}
    assert changes(kept, "a") == [("insert", None, 1), ("modify", 1, 2), ("scan", None, 3)]
    assert changes(kept, "scanned", "--since", before.isoformat()) == [("remove", None, None)]
    assert {n for _, _, n in changes(kept, "scanned", "--until", before.isoformat())} == {0}
    code, _, err = kept.call("history", kept.config, "--at", before.isoformat(), "--human")
    assert (code, "--at: the history begins at" in err) == (2, True), err


def test_a_history_whose_table_is_lost_is_kept_and_so_are_its_times(kept: World) -> None:
    before = soon()
    execute(kept, "DROP TABLE orders")
    refused(kept, "is gone from the target since the last run", code=3)
    while datetime.now(UTC) <= before:
        pass
    resync(kept)
    assert as_of(kept, soon()) == {"scanned": 0, "a": 1}
    assert changes(kept, "a") == [("insert", None, 1)]


def test_rows_and_checkpoints_of_an_earlier_time_meet_the_changes_that_the_history_has(kept: World) -> None:
    """The stream is read again from the earlier positions: what the history has already is not added twice."""
    execute(
        kept,
        "CREATE SCHEMA saved",
        "CREATE TABLE saved.checkpoints AS SELECT * FROM replicator.checkpoints",
        "CREATE TABLE saved.orders AS SELECT * FROM orders",
    )
    kept.db.put("orders", {"id": "a", "n": 2})
    kept.db.delete("orders", {"id": "scanned"})
    kept.catch_up()
    execute(
        kept,
        "DELETE FROM replicator.checkpoints",
        "INSERT INTO replicator.checkpoints SELECT * FROM saved.checkpoints",
        "TRUNCATE orders",
        "INSERT INTO orders SELECT * FROM saved.orders",
    )
    kept.catch_up()
    assert changes(kept, "a") == [("insert", None, 1), ("modify", 1, 2)]
    assert as_of(kept, soon()) == {"a": 2}
    assert kept.call("check", kept.config)[0] == 0


def test_marked_rows_whose_history_was_removed_in_time_are_no_loss(world: World) -> None:
    keep_history(world, "history: {keep: 2d}\n      deletes: mark")
    world.db.create_table("orders")
    world.db.put("orders", {"id": "a", "n": 1})
    world.catch_up()
    world.db.delete("orders", {"id": "a"})
    world.catch_up()
    execute(world, "DELETE FROM orders_history")  # as retention does, once the document is gone for so long
    assert world.call("check", world.config)[0] == 0


def test_a_comment_of_people_on_the_history_changes_nothing(kept: World) -> None:
    resync(kept)
    note = kept.rows(NOTE)
    ((name,),) = kept.rows(ROWS)
    execute(kept, "COMMENT ON TABLE orders_history IS 'every change of an order'")
    kept.catch_up()
    assert kept.rows(NOTE) == note
    assert kept.rows("SELECT obj_description('orders_history'::regclass, 'pg_class')") == [
        ("every change of an order",)
    ]
    execute(kept, f"DROP TABLE {name}", "COMMENT ON TABLE orders_history IS 'every change'")
    refused(kept, 'the partition of "public"."orders_history" with the changes from ')


def test_a_note_of_an_earlier_version_on_the_table_is_read_and_moved(kept: World) -> None:
    ((note,),) = kept.rows(NOTE)
    ((name,),) = kept.rows(ROWS)
    execute(
        kept,
        f"COMMENT ON TABLE orders_history IS $${note}$$",
        "COMMENT ON COLUMN orders_history._changed_at IS NULL",
        f"ALTER TABLE orders_history DETACH PARTITION {name}",
    )
    refused(kept, 'the partition of "public"."orders_history" with the changes from ')
    resync(kept)
    assert kept.rows(NOTE)[0][0].startswith("replicator: {")
    assert kept.rows("SELECT obj_description('orders_history'::regclass, 'pg_class')") == [(None,)]
