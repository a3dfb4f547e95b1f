"""What the tests of the Postgres target share: targets on a fresh database, batches, and a plain look at the tables."""

from __future__ import annotations

import select
from collections.abc import Mapping
from typing import Any

from psycopg import sql

from connectors.postgres import Postgres, PostgresOptions
from replicator.key import KeyAttribute, KeySchema
from replicator.state import Owner
from replicator.target.contract import Table
from replicator.version import FIRST_EPOCH
from tests.servers.postgres_fixtures import Database

PK = KeySchema((KeyAttribute("pk", "S"),))


made: list[Postgres] = []
"""Targets of the running test; they are closed when it ends."""


def target(database: Database, pipeline: str = "contract", **options: Any) -> Postgres:
    made.append(Postgres(PostgresOptions.model_validate({"url": database.url, **options}), pipeline))
    return made[-1]


def typed(name: str = "contract", keys: KeySchema = PK, /, **columns: object) -> Table:
    """A table with typed columns, which may have any name."""
    return Table(name, keys, {"columns": columns})


def opened(database: Database, *tables: Table, **options: Any) -> Postgres:
    one = target(database, **options)
    one.open(tables, FIRST_EPOCH)
    return one


def owner(run: str = "run") -> Owner:
    return Owner(run, "host", 1, 0.0)


def rows(database: Database, table: str = "contract") -> list[Mapping[str, Any]]:
    """Every row as a plain client sees it, in the order of the first column."""
    with database.connect() as client:
        cursor = client.execute(sql.SQL("SELECT * FROM {} ORDER BY 1").format(sql.Identifier("public", table)))
        assert cursor.description is not None
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]


def run(database: Database, statement: str) -> None:
    with database.connect() as client:
        client.execute(statement)


def until(database: Database, query: str) -> None:
    """Wait until a query says true, at most half a minute."""
    with database.connect() as client:
        for _ in range(3000):
            if client.execute(query).fetchone() == (True,):
                return
            select.select([], [], [], 0.01)
    raise AssertionError(f"never true: {query}")
