"""``deletes: mark`` on a real Postgres: whole runs, and turning the option on and off."""

from __future__ import annotations

import pytest

from connectors.postgres import Postgres
from replicator.errors import ConfigError
from replicator.identity import Change
from replicator.target.contract import Table
from replicator.testing.contract import at, batch, put, remove
from replicator.version import FIRST_EPOCH
from tests.cli.command_line import World
from tests.connectors.postgres.postgres_kit import PK, rows, run, target
from tests.servers.postgres_fixtures import Database

pytestmark = pytest.mark.postgres

MARK = Table("contract", PK, {"deletes": "mark"})
APPLY = Table("contract", PK)


def live(world: World) -> list[tuple[str, bool]]:
    return [(str(id), bool(live)) for id, live in world.rows("SELECT id, deleted_at IS NULL FROM orders ORDER BY id")]


def test_deleted_rows_stay_marked_through_adoption_stream_and_resync(world: World) -> None:
    world.db.create_table("orders")
    for n in range(3):
        world.db.put("orders", {"id": str(n), "total": n})
    with world.postgres.connect() as client:
        client.execute("CREATE TABLE orders (id text PRIMARY KEY, total numeric)")
        client.execute("INSERT INTO orders VALUES ('0', 9), ('legacy', 1)")
    options = "tables:\n    orders:\n      adopt: true\n      deletes: mark\n      columns: {total: numeric}"
    world.change(f"url: {world.postgres.url}\n  table: orders", f"url: {world.postgres.url}\n  {options}")
    code, out, err = world.call("check", world.config, "--human")
    assert code == 0, err
    assert 'ALTER TABLE "public"."orders" ADD COLUMN IF NOT EXISTS "deleted_at" timestamptz;' in out
    world.catch_up()
    assert live(world) == [("0", True), ("1", True), ("2", True), ("legacy", False)]
    world.db.delete("orders", {"id": "1"})
    world.catch_up()
    kept = world.rows("SELECT total, deleted_at FROM orders WHERE id = '1'")
    assert kept[0][0] == 1
    assert world.rows("SELECT 1 FROM orders WHERE id = '1' AND now() - deleted_at < interval '1 day'") == [(1,)]
    assert world.call("resync", world.config, "--now", "--until", "caught-up")[0] == 0
    assert world.rows("SELECT total, deleted_at FROM orders WHERE id = '1'") == kept
    world.db.put("orders", {"id": "1", "total": 7})
    world.catch_up()
    assert live(world) == [("0", True), ("1", True), ("2", True), ("legacy", False)]


def test_turning_marks_on_adds_a_column_to_a_copy(one_postgres: Database) -> None:
    one = target(one_postgres)
    one.open([APPLY], FIRST_EPOCH)
    one.write(batch(put({"pk": "a"}, 1)))
    with pytest.raises(ConfigError, match="column deleted_at is missing"):
        target(one_postgres).open([MARK], FIRST_EPOCH)
    assert one.parts(MARK) == {**one.parts(APPLY), "deletes": "mark"}
    added = [Change("contract", "deletes", "", "mark")]
    assert one.additions([MARK], added) == [
        'ALTER TABLE "public"."contract" ADD COLUMN IF NOT EXISTS "deleted_at" timestamptz;'
    ]
    for _ in range(2):
        one.extend([MARK], added)
    one.open([MARK], FIRST_EPOCH)
    one.write(batch(remove("a", 2)))
    assert [row["deleted_at"] is None for row in rows(one_postgres)] == [False]


def test_turning_marks_off_says_how(one_postgres: Database) -> None:
    """Otherwise readers would find rows that are neither deleted nor updated."""
    one: Postgres = target(one_postgres)
    one.open([MARK], FIRST_EPOCH)
    one.write(batch(put({"pk": "a"}, 1), put({"pk": "b"}, 1)))
    one.write(batch(remove("a", 2)))
    (problem,) = target(one_postgres).check([APPLY])
    assert "was written with deletes: mark" in problem
    fix = problem.partition("remove those rows and the column: ")[2].partition("; then")[0]
    run(one_postgres, fix)
    assert target(one_postgres).check([APPLY]) == []
    assert [row["_version"] for row in rows(one_postgres)] == [at(1)]


def test_a_column_deleted_at_of_the_users_is_no_mark(one_postgres: Database) -> None:
    theirs = Table("contract", PK, {"columns": {"deleted_at": "timestamptz"}})
    target(one_postgres).open([theirs], FIRST_EPOCH)
    assert target(one_postgres).check([theirs]) == []
    both = Table("contract", PK, {"columns": {"deleted_at": "timestamptz"}, "deletes": "mark"})
    (problem,) = target(one_postgres).check([both])
    assert "the column deleted_at holds the time of deletion under deletes: mark" in problem
