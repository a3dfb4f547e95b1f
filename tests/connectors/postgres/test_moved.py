"""A table that was moved to another schema keeps its tombstones, or the run is refused."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from connectors.postgres import Postgres, moved
from replicator.batch import Outcome
from replicator.identity import Definition, Identity, other_tables
from replicator.state import Save, encode
from replicator.target.contract import Table
from replicator.testing.contract import at, batch, put, remove
from replicator.version import FIRST_EPOCH
from tests.cli.command_line import World
from tests.cli.test_check_agrees_with_run import Wrong, assert_agreed, sql
from tests.connectors.postgres.postgres_kit import PK, opened, run, target
from tests.servers.postgres_fixtures import Database

TABLE = Table("contract", PK)
HERE, THERE = '"public"."contract"', '"shop"."contract"'


def labels(database: Database) -> list[tuple[str, str]]:
    with database.connect() as client:
        return [(at, id) for at, id in client.execute("SELECT target, id FROM replicator.tombstones ORDER BY 1, 2")]


def bound(to: Postgres) -> Mapping[str, Identity]:
    """What a run stores once it has opened its tables."""
    tables = to.identities([TABLE])
    to.checkpoints.save([Save("definition", "", None, encode(Definition(tables=tables)))])
    return tables


@pytest.fixture
def deleted(one_postgres: Database) -> Mapping[str, Identity]:
    """A run stopped during its backfill, after the stream had deleted an item that the scan has yet to find."""
    one = opened(one_postgres, TABLE)
    tables = bound(one)
    one.write(batch(put({"pk": "b"}, 1), remove("a", 5), tombstones=True))
    one.close()
    run(one_postgres, "CREATE SCHEMA shop")
    return tables


def scanned(to: Postgres) -> Outcome:
    return to.write(batch(put({"pk": "a"}, 0), tombstones=True))


@pytest.mark.parametrize(
    "how", ["ALTER TABLE contract SET SCHEMA shop", "DROP SCHEMA shop; ALTER SCHEMA public RENAME TO shop"]
)
def test_deletes_are_remembered_in_another_schema(
    one_postgres: Database, deleted: Mapping[str, Identity], how: str
) -> None:
    run(one_postgres, "INSERT INTO replicator.tombstones VALUES ('\"shop\".\"contract\"', 'of an earlier table', 1)")
    for statement in how.split("; "):
        run(one_postgres, statement)
    for _ in range(2):  # a command, and the run after it
        moved = target(one_postgres, schema="shop")
        assert other_tables(deleted, moved.identities([TABLE])) is None
        moved.open([TABLE], FIRST_EPOCH)
        assert scanned(moved).superseded
        moved.close()
    assert labels(one_postgres) == [(THERE, '["a"]')]
    again = opened(one_postgres, TABLE, schema="shop")
    bound(again)
    again.write(batch(remove("c", 6), tombstones=True))
    again.open([TABLE], FIRST_EPOCH)
    assert labels(one_postgres) == [(THERE, '["a"]'), (THERE, '["c"]')]
    while again.purge(TABLE, at(7)):
        pass
    assert labels(one_postgres) == []


def test_a_view_in_the_place_of_the_table_is_no_other_table(
    one_postgres: Database, deleted: Mapping[str, Identity]
) -> None:
    run(one_postgres, "ALTER TABLE contract SET SCHEMA shop")
    run(one_postgres, "CREATE VIEW public.contract AS SELECT * FROM shop.contract")
    moved = opened(one_postgres, TABLE, schema="shop")
    assert other_tables(deleted, moved.identities([TABLE])) is None
    assert scanned(moved).superseded


def test_deletes_of_a_table_that_has_the_former_name_stay_there(
    one_postgres: Database, deleted: Mapping[str, Identity]
) -> None:
    run(one_postgres, "ALTER TABLE contract SET SCHEMA shop")
    other = opened(one_postgres, TABLE, pipeline="other")
    other.write(batch(remove("x", 5), tombstones=True))
    moved = target(one_postgres, schema="shop")
    assert other_tables(deleted, moved.identities([TABLE])) == (HERE, THERE)
    moved.open([TABLE], FIRST_EPOCH + 1)
    assert labels(one_postgres) == [(HERE, '["x"]')]
    assert moved.identities([TABLE])["contract"].id


def test_the_former_schema_may_be_out_of_reach_by_now(one_postgres: Database) -> None:
    role = f"r_{one_postgres.name}"
    with one_postgres.connect() as client:
        client.execute("CREATE SCHEMA attic")
        client.execute("CREATE TABLE attic.contract (_version bigint)")
        client.execute(f"CREATE ROLE {role}".encode())
        try:
            client.execute(f"SET ROLE {role}".encode())
            assert moved.is_taken(client, '"attic"."contract"')
            assert not moved.is_taken(client, '"attic"."other"')
        finally:
            client.execute("RESET ROLE")
            client.execute(f"DROP ROLE {role}".encode())


def test_a_run_of_a_moved_table_resumes_unless_another_one_took_its_place(world: World) -> None:
    world.db.create_table("orders")
    for id in ("1", "2"):
        world.db.put("orders", {"id": id})
    world.catch_up()
    sql(b"CREATE SCHEMA shop", b"ALTER TABLE public.orders SET SCHEMA shop")(world)
    path = world.folder / "orders.yaml"
    path.write_text(path.read_text() + "  schema: shop\n")
    assert "run will resume" in world.call("check", world.config, "--human")[1]
    world.catch_up()
    sql(b"CREATE SCHEMA mall", b"ALTER TABLE shop.orders SET SCHEMA mall")(world)
    sql(b"CREATE TABLE shop.orders (LIKE mall.orders INCLUDING ALL)")(world)
    world.change("schema: shop", "schema: mall")
    assert "run will resume" in world.call("check", world.config, "--human")[1], "nothing is remembered under that name"
    sql(b'INSERT INTO replicator.tombstones VALUES (\'"shop"."orders"\', \'["9"]\', 1)')(world)
    words = 'this pipeline writes to "shop"."orders", but the config names "mall"."orders"'
    assert_agreed(world, Wrong(lambda _: None, 2, words))
    world.db.delete("orders", {"id": "2"})
    assert world.call("resync", world.config, "--accept-identity-change")[0] == 0
    world.catch_up()
    assert world.rows("SELECT id FROM mall.orders") == [("1",)]
    assert "run will resume" in world.call("check", world.config, "--human")[1]
