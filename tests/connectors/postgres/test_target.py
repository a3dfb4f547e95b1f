"""The target contract on real servers, oldest and newest: what only Postgres can do wrong is in its neighbours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from psycopg import sql
from psycopg.types.json import set_json_loads

from replicator.batch import DocumentId
from replicator.items.attributes import canonical_number
from replicator.target.contract import Table
from replicator.testing.contract import TargetContract
from replicator.testing.contract.definitions import Options
from replicator.testing.contract.marked import Marking
from replicator.testing.contract.moves import Remade
from replicator.testing.proxy import Proxy
from tests.servers.postgres_fixtures import Database

pytestmark = pytest.mark.postgres


class TestPostgres(TargetContract):
    races = 150
    seeds = 20

    @pytest.fixture
    def config(self, postgres: Database) -> Mapping[str, Any]:
        return {"type": "postgres", "url": postgres.url}

    @pytest.fixture
    def unreachable(self) -> Mapping[str, Any]:
        return {"type": "postgres", "url": "postgresql://postgres@127.0.0.1:1/postgres"}

    @pytest.fixture
    def stored(self, postgres: Database) -> Callable[[Table], Any]:
        return partial(documents, postgres)

    @pytest.fixture
    def restart(self, postgres: Database) -> Callable[[], None]:
        def kill_and_start() -> None:
            postgres.server.kill()
            postgres.server.start()

        return kill_and_start

    @pytest.fixture
    def refuse_at_commit(self, postgres: Database) -> Callable[[Table], None]:
        return partial(constrain, postgres)

    @pytest.fixture
    def keep(self, postgres: Database) -> Callable[[Table, DocumentId], None]:
        return partial(refer_to, postgres)

    @pytest.fixture
    def dropped(self, postgres: Database) -> Callable[[Table], None]:
        return partial(drop, postgres)

    @pytest.fixture
    def proxied(self, postgres: Database) -> Iterator[tuple[Mapping[str, Any], Proxy]]:
        with Proxy("127.0.0.1", postgres.server.port) as proxy:
            url = postgres.url.replace(f":{postgres.server.port}/", f":{proxy.port}/")
            yield {"type": "postgres", "url": url}, proxy

    @pytest.fixture
    def otherwise(self, postgres: Database) -> Mapping[str, Any]:
        return {"type": "postgres", "url": postgres.url.replace("127.0.0.1", "localhost")}

    @pytest.fixture
    def recreated(self, postgres: Database) -> Remade:
        return partial(made_anew, postgres)

    @pytest.fixture
    def options(self) -> Options:
        total = {"total": "numeric"}
        return Options(
            {"columns": total},
            {"columns": {"total": {"type": "numeric", "from": "total"}}, "extra": "ignore"},
            {"columns": {**total, "city": {"type": "text", "from": "town"}}},
        )

    @pytest.fixture
    def marking(self, postgres: Database) -> Marking:
        return Marking({"deletes": "mark"}, partial(marked, postgres))

    @pytest.fixture
    def sever(self, postgres: Database) -> Callable[[], None]:
        return partial(terminate, postgres)


def documents(postgres: Database, table: Table) -> dict[tuple[str, ...], Any]:
    """The jsonb documents of a table by key."""
    columns = sql.SQL(", ").join(map(sql.Identifier, table.keys.names))
    query = sql.SQL("SELECT document, {} FROM {}").format(columns, sql.Identifier("public", table.name))
    with postgres.connect() as client:
        set_json_loads(partial(json.loads, parse_float=Decimal, parse_int=Decimal), client)
        rows = client.execute(query).fetchall()
    return {tuple(_key(value) for value in key): document for document, *key in rows}


def marked(postgres: Database, table: Table) -> dict[tuple[str, ...], Any]:
    """The jsonb documents of a table by key, and when they were deleted."""
    columns = sql.SQL(", ").join(map(sql.Identifier, table.keys.names))
    query = sql.SQL("SELECT document, deleted_at, {} FROM {}").format(columns, sql.Identifier("public", table.name))
    with postgres.connect() as client:
        rows = client.execute(query).fetchall()
    return {tuple(key): (document, at and at.timestamp()) for document, at, *key in rows}


def _key(value: object) -> str:
    return canonical_number(str(value)) if isinstance(value, Decimal) else str(value)


def terminate(postgres: Database) -> None:
    """End every session of replicator, as an administrator would."""
    with postgres.connect() as client:
        client.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE application_name = 'replicator' AND datname = current_database()"
        )


def constrain(postgres: Database, table: Table) -> None:
    """A constraint trigger that looks at rows when their transaction commits."""
    refused = "(NEW.document OPERATOR(pg_catalog.->>) 'late')::boolean"
    with postgres.connect() as client:
        client.execute(
            f"""CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN IF {refused} THEN RAISE EXCEPTION 'late'; END IF; RETURN NULL; END $$"""
        )
        trigger = """CREATE CONSTRAINT TRIGGER late AFTER INSERT OR UPDATE ON {}
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late()"""
        client.execute(sql.SQL(trigger).format(sql.Identifier("public", table.name)))


def refer_to(postgres: Database, table: Table, id: DocumentId) -> None:
    """A table of the user's that has a foreign key."""
    with postgres.connect() as client:
        create = "CREATE TABLE IF NOT EXISTS public.notes (pk text REFERENCES {})"
        client.execute(sql.SQL(create).format(sql.Identifier("public", table.name)))
        client.execute("INSERT INTO public.notes VALUES (%s)", id)


def drop(postgres: Database, table: Table) -> None:
    with postgres.connect() as client:
        client.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier("public", table.name)))


def made_anew(postgres: Database, table: Table) -> None:
    """As a migration does it."""
    with postgres.connect() as client:
        name = sql.Identifier("public", table.name)
        client.execute(sql.SQL("CREATE TABLE made (LIKE {} INCLUDING ALL)").format(name))
        client.execute(sql.SQL("DROP TABLE {}").format(name))
        client.execute(sql.SQL("ALTER TABLE made RENAME TO {}").format(sql.Identifier(table.name)))
