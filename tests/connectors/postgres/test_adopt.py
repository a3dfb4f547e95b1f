"""``adopt: true``: a table that something else filled becomes a copy, on a real Postgres."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from connectors.postgres import Postgres
from replicator.errors import TransientError
from replicator.identity import changes
from replicator.target.contract import Table
from replicator.version import FIRST_EPOCH
from tests.cli.command_line import World
from tests.connectors.postgres.postgres_kit import PK, rows, run, target
from tests.servers.postgres_fixtures import Database

pytestmark = pytest.mark.postgres

ADOPT = "tables:\n    orders:\n      adopt: true\n      columns: {total: numeric}"


@pytest.fixture
def legacy(world: World) -> World:
    """A table ``orders`` as another tool left it: a row is out of date, one has no item, and one is right."""
    world.db.create_table("orders")
    for n in range(4):
        world.db.put("orders", {"id": str(n), "total": n})
    with world.postgres.connect() as client:
        client.execute("CREATE TABLE orders (id text PRIMARY KEY, total numeric, note text DEFAULT 'kept')")
        client.execute("INSERT INTO orders (id, total) VALUES ('0', 0), ('1', 99), ('gone', 5)")
    world.change(f"url: {world.postgres.url}\n  table: orders", f"url: {world.postgres.url}\n  {ADOPT}")
    return world


def totals(world: World) -> list[tuple[str, int]]:
    return [(id, int(total)) for id, total in world.rows("SELECT id, total FROM orders ORDER BY id")]


COPIED = [(str(n), n) for n in range(4)]


def test_rows_that_something_else_wrote_are_replaced_and_those_that_no_item_has_removed(legacy: World) -> None:
    code, out, err = legacy.call("check", legacy.config, "--human")
    assert code == 0, err
    assert 'ALTER TABLE "public"."orders" ADD COLUMN "_version" bigint NOT NULL DEFAULT 0;' in out
    legacy.catch_up()
    assert totals(legacy) == COPIED
    assert legacy.rows("SELECT note FROM orders WHERE id = '1'") == [("kept",)]
    legacy.db.put("orders", {"id": "0", "total": 7})
    legacy.db.delete("orders", {"id": "1"})
    legacy.catch_up()  # it resumes
    assert totals(legacy) == [("0", 7), *COPIED[2:]]
    assert legacy.lines("status", legacy.config)[0]["epoch"] == FIRST_EPOCH


def test_an_adopted_table_is_a_copy_even_without_a_backfill(legacy: World) -> None:
    legacy.change("target:", "backfill: {enabled: false}\ntarget:")
    legacy.catch_up()
    assert totals(legacy) == COPIED


def test_a_row_that_others_add_later_is_replaced_by_its_item_and_removed_by_a_resync(legacy: World) -> None:
    legacy.catch_up()
    with legacy.postgres.connect() as client:
        client.execute("INSERT INTO orders (id, total) VALUES ('5', 1), ('6', 1)")
    legacy.db.put("orders", {"id": "5", "total": 5})
    legacy.catch_up()
    assert totals(legacy) == [*COPIED, ("5", 5), ("6", 1)]
    assert legacy.call("resync", legacy.config)[0] == 0
    legacy.catch_up()
    assert totals(legacy) == [*COPIED, ("5", 5)]


def test_without_adopt_such_a_table_is_refused_and_left_as_it_is(legacy: World) -> None:
    legacy.change("      adopt: true\n", "")
    before = legacy.rows("SELECT * FROM orders ORDER BY id")
    for command in (("check",), ("run", "--until", "caught-up")):
        name, *rest = command
        code, out, err = legacy.shell.run(name, legacy.config, *rest)
        assert code == 2
        assert "there is no column _version, so something else created the table" in out + err
    assert legacy.rows("SELECT * FROM orders ORDER BY id") == before


def test_a_table_whose_columns_differ_is_not_adopted(legacy: World) -> None:
    legacy.change("total: numeric", "total: bigint")
    code, _, err = legacy.shell.run("run", legacy.config, "--until", "caught-up")
    assert (code, "column total must be bigint, but is numeric" in err) == (2, True), err
    assert legacy.rows("SELECT count(*) FROM information_schema.columns WHERE table_name = 'orders'") == [(3,)]


def test_a_table_that_was_adopted_is_not_adopted_again(one_postgres: Database) -> None:
    run(
        one_postgres,
        "CREATE TABLE orders (pk text PRIMARY KEY, document jsonb NOT NULL); INSERT INTO orders VALUES ('a', '{}')",
    )
    table = Table("orders", PK, {"adopt": True})
    one: Postgres = target(one_postgres)
    assert (one.adopted([table]), one.epoch([table])) == (["orders"], 0)
    for _ in range(2):
        one.open([table], FIRST_EPOCH)
        assert (one.adopted([table]), one.plan([table]), one.epoch([table])) == ([], [], FIRST_EPOCH)
    assert [(row["pk"], row["_version"]) for row in rows(one_postgres, "orders")] == [("a", 0)]


ADOPTED = Table("orders", PK, {"adopt": True})
_WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"


@pytest.mark.parametrize("step", ["adopt", "extend"])
def test_while_a_long_transaction_holds_the_table_other_readers_do_not_wait_for_it(
    one_postgres: Database, step: str
) -> None:
    run(one_postgres, "CREATE TABLE orders (pk text PRIMARY KEY, document jsonb NOT NULL)")
    one, more = target(one_postgres), Table("orders", PK, {"columns": {"total": "numeric"}})
    added = changes({"orders": {}}, {"orders": one.parts(more)})

    def alter(stop: threading.Event) -> None:
        while not stop.is_set():
            with contextlib.suppress(TransientError):
                one.open([ADOPTED], FIRST_EPOCH) if step == "adopt" else one.extend([more], added)

    with one_postgres.connect() as long, one_postgres.connect() as reader, ThreadPoolExecutor() as pool:
        long.execute("BEGIN; SELECT FROM orders")
        stop = threading.Event()
        altering = pool.submit(alter, stop)
        while reader.execute(_WAITING).fetchone() == (0,):
            assert not altering.done()
        reader.execute("SET statement_timeout = '20s'")  # less than a session waits for other locks
        try:
            assert reader.execute("SELECT count(*) FROM orders").fetchone() == (0,)
        finally:
            stop.set()
            long.execute("COMMIT")


def test_versions_of_another_tool_are_taken_over_only_where_adopt_says_so(one_postgres: Database) -> None:
    run(one_postgres, "CREATE TABLE orders (pk text PRIMARY KEY, document jsonb NOT NULL, _version bigint NOT NULL)")
    one = target(one_postgres)
    assert one.adopted([Table("orders", PK, {"adopt": True})]) == []  # it is empty
    run(one_postgres, "INSERT INTO orders VALUES ('a', '{}', 1700000000000000)")
    assert one.adopted([Table("orders", PK, {"adopt": True})]) == ["orders"]
    assert one.adopted([Table("orders", PK)]) == []
