"""What is known of a record that retention has moved to the base, and what retention holds up while it moves them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import psycopg
import pytest

from connectors.postgres import history
from connectors.postgres.table_schema import shapes
from replicator.errors import Fenced, TransientError
from replicator.operations import history as operation
from tests.cli.command_line import World
from tests.cli.test_rebuild import done, running, use
from tests.connectors.postgres.history_kit import as_of, keep_history, soon
from tests.connectors.postgres.postgres_kit import owner, target, until
from tests.connectors.postgres.test_history import FAILS
from tests.connectors.postgres.test_history_losses import execute
from tests.connectors.postgres.test_history_partitions import ORDERS, PARTITIONS, add_partition
from tests.connectors.postgres.test_history_rebuild import NEW, OLD, after, at, caught_up, live, put, switched

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(120)]

MANY = 12  # documents: one alone may be right by chance
DOCUMENTS = [f"a{i:02}" for i in range(MANY)]


def test_a_parked_change_that_is_retried_after_retention_has_its_document_in_the_history(world: World) -> None:
    world.hook(FAILS)
    keep_history(world, "history: {keep: 2d}")
    world.db.create_table("orders")
    world.catch_up()
    for id in DOCUMENTS:
        for n in (1, 3):
            world.db.put("orders", {"id": id, "n": n})
    world.catch_up()
    run = target(world.postgres, "orders")
    make_old(world)
    assert run.retain([ORDERS])
    assert world.rows("SELECT count(*) FROM orders_history_base WHERE _problem IS NOT NULL") == [(MANY,)]
    world.hook(FAILS.replace('item["n"] - 3', 'item["n"] - 4'))
    assert world.call("parked", "retry", world.config, "--all")[0] == 0
    assert as_of(world, soon()) == dict.fromkeys(DOCUMENTS, -6)
    assert run.retain([ORDERS])
    assert world.rows("SELECT count(*) FROM orders_history_base WHERE _problem IS NOT NULL") == [(0,)]
    assert as_of(world, soon()) == dict.fromkeys(DOCUMENTS, -6)


def make_old(world: World) -> None:
    """As if all had happened ten days ago."""
    old = float(int(time.time() - 10 * 86_400))
    with world.postgres.connect() as client:
        (shape,) = shapes([ORDERS], "public").values()
        with client.transaction():
            history.add_partitions(client, shape, [old])
        client.execute("UPDATE orders_history SET _changed_at = to_timestamp(%s)", (old,))
        for id, value in client.execute(
            "SELECT id, value FROM replicator.checkpoints WHERE kind = 'parked'"
        ).fetchall():
            changed = (value if isinstance(value, dict) else json.loads(value)) | {"created": old}
            client.execute(
                "UPDATE replicator.checkpoints SET value = %s WHERE kind = 'parked' AND id = %s",
                (json.dumps(changed), id),
            )


def test_a_rebuild_that_takes_longer_than_is_kept_ends_with_the_states_of_its_hook(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new copy has read records from before its scan, and retention has moved them to both bases."""
    monkeypatch.setattr(operation, "MARGIN", 1.0)
    world.db.create_table("orders")
    for n in (2, 4):
        for id in DOCUMENTS:
            world.db.put("orders", {"id": id, "n": n})
        if n == 2:
            world.hook(OLD)
            keep_history(world)
        world.catch_up()
    use(world, NEW)
    after(soon(), 3.0)
    done(world, "start")
    with running(world) as process:
        live(world, process)
        execute(
            world,
            "INSERT INTO orders_history_new SELECT id, _changed_at, _sequence,"
            " (SELECT max(_version) FROM orders_history_new) + 1, _operation,"
            """ '{"made": "new", "n": 20}', '{"made": "new", "n": 40}'"""
            " FROM orders_history WHERE _operation = 'modify' ON CONFLICT DO NOTHING",
        )
        for name in ("orders_history", "orders_history_new"):
            execute(
                world,
                f"INSERT INTO {name}_base SELECT * FROM {name} WHERE _operation = 'modify'",  # noqa: S608
                f"DELETE FROM {name}",  # noqa: S608
                f"COMMENT ON TABLE {name}_base IS 'replicator: changes are kept since 1000000000'",
            )
        switched(world)
        live(world, process)
        done(world, "finish")
        put(world, process, "last", 12, "orders")
    caught_up(world)
    twice = "SELECT count(*) FROM orders_history JOIN orders_history_base USING (id, _changed_at, _sequence)"
    assert world.rows(twice) == [(0,)]
    assert at(world, soon()) == dict.fromkeys(DOCUMENTS, ("new", 40)) | {"last": ("new", 120)}


FOLDS = """
CREATE FUNCTION folds() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS $$ BEGIN
  PERFORM pg_advisory_xact_lock(42);
  RETURN NULL;
END $$"""
ON_FOLD = "CREATE TRIGGER folds BEFORE INSERT ON orders_history_base FOR EACH STATEMENT EXECUTE FUNCTION folds()"
TABLES = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND objid <> 42 AND NOT granted"
HISTORY = '"public"."orders_history"'
DROPS = "SELECT count(*) > 0 FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted"
WAITS = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND objid = 42 AND NOT granted"


@pytest.fixture
def slow(world: World) -> Iterator[psycopg.Connection]:
    """A session that retention of ``orders`` waits for while it moves what it removes."""
    keep_history(world, "history: {keep: 2d}")
    world.db.create_table("orders")
    world.catch_up()
    add_partition(world, 10)
    execute(
        world,
        "INSERT INTO orders_history VALUES ('old', '2001-01-10T10:00:00Z', '7', 1024::bigint << 48, 'insert', NULL, "
        """'{"n": 7}')""",
        FOLDS,
        ON_FOLD,
    )
    with world.postgres.connect() as client:
        client.execute("SELECT pg_advisory_lock(42)")
        yield client


def test_retention_of_one_pipeline_holds_up_no_other(world: World, slow: psycopg.Connection) -> None:
    one, other, others = (
        target(world.postgres, "orders"),
        target(world.postgres, "other"),
        replace(ORDERS, name="others"),
    )
    other.open([others], 1024)
    with ThreadPoolExecutor(1) as pool:
        removal = pool.submit(one.retain, [ORDERS])
        until(world.postgres, WAITS)
        add_partition(world, 10, "others")
        began = time.monotonic()
        try:
            assert other.retain([others])
            assert time.monotonic() - began < 10
        finally:
            slow.execute("SELECT pg_advisory_unlock(42)")
        assert removal.result()
    assert world.rows("SELECT id FROM orders_history_base") == [("old",)]


def test_a_change_that_is_retried_during_retention_waits_for_it(world: World, slow: psycopg.Connection) -> None:
    """Added to the partition after it was read, it would be dropped with it."""
    one, added = target(world.postgres, "orders"), "INSERT INTO orders_history SELECT 'new', * FROM "
    added += "(VALUES ('2001-01-10T10:00:00Z'::timestamptz, '8', 1024::bigint << 48, 'insert')) AS t"
    with ThreadPoolExecutor(1) as pool, world.postgres.connect() as client:
        removal = pool.submit(one.retain, [ORDERS])
        until(world.postgres, WAITS)
        client.execute("SET lock_timeout = '100ms'")
        try:
            with pytest.raises(psycopg.errors.LockNotAvailable):
                client.execute(added)
        finally:
            slow.execute("SELECT pg_advisory_unlock(42)")
        assert removal.result()


@contextmanager
def meeting(world: World, slow: psycopg.Connection, statement: str) -> Iterator[Future[bool]]:
    """Retention that has moved the records, while another transaction that began meanwhile holds what it needs."""
    one = target(world.postgres, "orders")
    with ThreadPoolExecutor(1) as pool, world.postgres.connect() as other:
        removal = pool.submit(one.retain, [ORDERS])
        until(world.postgres, WAITS)
        with other.transaction():
            other.execute(statement.encode())
            slow.execute("SELECT pg_advisory_unlock(42)")
            yield removal


def test_a_reader_who_comes_while_records_are_moved_does_not_undo_that(world: World, slow: psycopg.Connection) -> None:
    with meeting(world, slow, "SELECT count(*) FROM orders_history") as removal:
        until(world.postgres, DROPS)
        until(world.postgres, f"SELECT NOT ({DROPS})")
    assert removal.result()
    assert world.rows("SELECT id FROM orders_history_base") == [("old",)]


def test_a_reader_who_stays_holds_a_run_up_for_a_while_and_the_records_are_not_moved(
    world: World, slow: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.postgres.target._DROP_SECONDS", 1.0)
    reads, said = "SELECT count(*) FROM orders_history", "holds a lock"
    with meeting(world, slow, reads) as removal, pytest.raises(TransientError, match=said):
        removal.result(6)
    assert world.rows("SELECT id FROM orders_history_base") == []
    assert target(world.postgres, "orders").retain([ORDERS])


def test_a_run_that_is_replaced_while_it_moves_records_removes_nothing(world: World, slow: psycopg.Connection) -> None:
    """The next one may keep them for longer."""
    one, other = target(world.postgres, "orders"), target(world.postgres, "orders")
    one.checkpoints.claim(owner("first"))
    with ThreadPoolExecutor(1) as pool:
        removal = pool.submit(one.retain, [ORDERS])
        until(world.postgres, WAITS)
        try:
            other.checkpoints.claim(owner("second"))
        finally:
            slow.execute("SELECT pg_advisory_unlock(42)")
        with pytest.raises(Fenced):
            removal.result(20)
    assert world.rows("SELECT id FROM orders_history") == [("old",)]
    assert world.rows("SELECT id FROM orders_history_base") == []


def test_two_runs_do_not_move_the_same_records_at_a_time(world: World, slow: psycopg.Connection) -> None:
    slow.execute("SELECT pg_advisory_unlock(42)")
    with world.postgres.connect() as other, other.transaction():
        other.execute("SELECT pg_advisory_xact_lock(hashtextextended('replicator history ' || %s, 0))", (HISTORY,))
        with pytest.raises(TransientError, match="holds a lock"):
            target(world.postgres, "orders").retain([ORDERS])
    assert world.rows("SELECT id FROM orders_history_base") == []


def test_nothing_is_removed_while_others_open_or_exchange_tables(world: World, slow: psycopg.Connection) -> None:
    locks = "SELECT pg_advisory_xact_lock(hashtextextended('replicator tables', 0))"
    with meeting(world, slow, locks) as removal:
        until(world.postgres, TABLES)
        assert not removal.done()
    assert removal.result()


def test_a_history_that_a_reader_holds_is_not_moved_in_vain(world: World, slow: psycopg.Connection) -> None:
    one = target(world.postgres, "orders")
    with ThreadPoolExecutor(1) as pool, world.postgres.connect() as reader, reader.transaction():
        reader.execute("SELECT count(*) FROM orders_history")
        removal = pool.submit(one.retain, [ORDERS])
        try:
            with pytest.raises(TransientError, match="holds a lock"):
                removal.result(10)
        finally:
            slow.execute("SELECT pg_advisory_unlock(42)")
    assert world.rows(PARTITIONS) != [(0,)]
    assert one.retain([ORDERS])
