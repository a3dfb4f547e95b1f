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


TAGS = """
from replicator import Document, documents

@documents
def hook(item):
    for tag in item["tags"]:
        yield Document(tag, {"n": item["n"]})
"""


def mark(world: World, options: str) -> None:
    old = f"url: {world.postgres.url}\n  table: orders"
    world.change(old, f"url: {world.postgres.url}\n  tables:\n    orders:\n      deletes: mark\n      {options}")


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


def test_a_row_is_marked_with_its_last_image_however_the_changes_are_cut_into_batches(world: World) -> None:
    """An update and the delete in one batch, an item that came and went, and items that time to live removes."""
    mark(world, "columns: {total: numeric}")
    world.db.create_table("orders")
    world.db.put("orders", {"id": "updated", "total": 1})
    world.catch_up()
    for total in (2, 3):
        world.db.put("orders", {"id": "updated", "total": total})
    world.db.delete("orders", {"id": "updated"})
    world.db.put("orders", {"id": "came and went", "total": 4})
    world.db.delete("orders", {"id": "came and went"})
    world.db.put("orders", {"id": "expired", "total": 5})
    world.db.expire("orders", {"id": "expired"})
    world.catch_up()
    assert live(world) == [("came and went", False), ("expired", False), ("updated", False)]
    assert world.rows("SELECT total FROM orders ORDER BY id") == [(4,), (5,), (3,)]


def test_a_row_whose_last_image_the_table_refuses_is_marked_as_it_was_stored(world: World) -> None:
    mark(world, "columns: {total: numeric}")
    world.db.create_table("orders")
    for id in ("parked", "same batch"):
        world.db.put("orders", {"id": id, "total": 1})
    world.catch_up()
    world.db.put("orders", {"id": "parked", "total": "not a number"})
    world.catch_up()
    world.db.delete("orders", {"id": "parked"})
    world.db.put("orders", {"id": "same batch", "total": "not a number"})
    world.db.delete("orders", {"id": "same batch"})
    world.db.put("orders", {"id": "never", "total": "not a number"})
    world.db.delete("orders", {"id": "never"})
    world.catch_up()
    assert live(world) == [("parked", False), ("same batch", False)]
    assert world.rows("SELECT total FROM orders") == [(1,), (1,)]
    assert world.lines("parked", "list", world.config) == []


def test_ids_of_a_hooks_own_are_marked_as_they_were_last(world: World) -> None:
    world.hook(TAGS)
    mark(world, "columns: {n: numeric}")
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1", "tags": ["a", "b"], "n": 1})
    world.catch_up()
    world.db.put("orders", {"id": "1", "tags": ["a"], "n": 2})
    world.db.put("orders", {"id": "1", "tags": ["a"], "n": 3})
    world.catch_up()
    query = "SELECT _id, n, deleted_at IS NULL FROM orders ORDER BY _id"
    assert world.rows(query) == [("a", 3, True), ("b", 1, False)]
    world.db.delete("orders", {"id": "1"})
    world.catch_up()
    assert world.rows(query) == [("a", 3, False), ("b", 1, False)]
    world.db.put("orders", {"id": "1", "tags": ["b"], "n": 4})
    world.catch_up()
    assert world.rows(query) == [("a", 3, False), ("b", 4, True)]


def test_retried_and_dropped_changes_leave_marked_rows_as_they_are(world: World) -> None:
    """What was parked when its item was deleted is marked with the image that the hook takes by now."""
    world.hook("def hook(item): return {'total': 100 // item['total']}")
    mark(world, "columns: {total: numeric}")
    world.db.create_table("orders")
    for id in ("retried", "dropped", "gone"):
        world.db.put("orders", {"id": id, "total": 1})
    world.catch_up()
    for id in ("retried", "dropped", "gone"):
        world.db.put("orders", {"id": id, "total": 0})
    world.catch_up()
    world.db.delete("orders", {"id": "gone"})
    world.hook("def hook(item): return {'total': 100 // (item['total'] or 50)}")
    world.catch_up("--accept-hook-change")
    for decision in (("drop", world.config, '["dropped"]', "--yes"), ("retry", world.config, '["retried"]')):
        code, _, err = world.call("parked", *decision)
        assert code == 0, err
    assert live(world) == [("dropped", True), ("gone", False), ("retried", True)]
    assert world.rows("SELECT total FROM orders ORDER BY id") == [(100,), (2,), (2,)]


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
