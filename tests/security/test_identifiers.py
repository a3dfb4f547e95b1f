"""Whatever a table, column, schema, pipeline, attribute or key is called, Postgres gets the same few statements.

Everything is carried out by a real server: tables are made, written, swept and looked at with a plain client. Each
statement that was sent is reduced to its shape by a reader of SQL of our own (what is quoted is a name, or a text),
and the shapes are those of a pipeline whose names are plain.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import count, islice
from typing import Any

import psycopg
import pytest
from psycopg import sql

from connectors.postgres import Postgres, PostgresOptions
from connectors.postgres.liveness import Watched
from connectors.postgres.session import Session
from replicator.batch import Batch, Delete, Part, Upsert
from replicator.errors import ConfigError
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.key import KeyAttribute, KeySchema
from replicator.target.contract import Table
from replicator.version import FIRST_EPOCH, version
from tests.security.identifiers import is_possible, names
from tests.servers.postgres_fixtures import Database

SEED = 20261125
HOW_MANY = 100_000 if os.environ.get("REPLICATOR_PROVE") else 5_000
TABLES = 8  # in one schema
TYPES = (
    "text",
    "numeric",
    "bigint",
    "boolean",
    "jsonb",
    "text[]",
    "bytea",
    "numeric[]",
    "text",
    "text",
    "text",
    "text",
)
_SQL = re.compile(
    r"""(?P<name>"(?:[^"]|"")*")|(?P<text>\s?E'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*')|(?P<rest>(?:(?!\s?E')[^"'])+|.)""",
    re.DOTALL,
)


def shape(statement: str) -> str:
    """A statement without its quoted parts."""
    kinds = {"name": "<name>", "text": "<text>"}
    return "".join(kinds.get(m.lastgroup or "", m[0]) for m in _SQL.finditer(statement))


@dataclass(frozen=True)
class Named:
    """A pipeline into tables with the given names; two of them differ in nothing else."""

    schema: str
    pipeline: str
    tables: Sequence[Table]
    ids: Sequence[tuple[str, str]]
    """Three documents."""

    @classmethod
    def of(cls, given: Iterator[str]) -> Named:
        schema = next(n for n in given if not n.startswith("pg_"))
        pipeline, tables = next(given), [_table(given) for _ in range(TABLES)]
        ids = [(next(given), next(given)) for _ in range(3)]
        return cls(schema, pipeline, tables, ids)

    def item(self, table: Table, id: Sequence[str]) -> dict[str, object]:
        """An item with the attributes that the columns come from."""
        keys = zip(table.keys.names, id, strict=True)
        return {attribute: _VALUES[type] for _, type, attribute in _columns(table)} | dict(keys)


_VALUES: dict[str, Any] = {
    "text": "'); DROP TABLE public.victim; --",
    "numeric": Decimal("1.5"),
    "bigint": 7,
    "boolean": True,
    "jsonb": {'"': ["'", {"$1": "%s"}]},
    "text[]": frozenset({'{"', "',", "\\"}),
    "bytea": b"';--\x00\xff",
    "numeric[]": frozenset({Decimal(1), Decimal(2)}),
}
_STORED = _VALUES | {
    "text[]": sorted(_VALUES["text[]"]),
    "bytea": "\\x273b2d2d00ff",
    "numeric[]": [1, 2],
    "numeric": 1.5,
}


def _table(given: Iterator[str]) -> Table:
    name, *keys = islice(given, 3)
    columns = {column: {"type": type, "from": [next(given)]} for type, column in zip(TYPES, given, strict=False)}
    keys_of = KeySchema(tuple(KeyAttribute(key, "S") for key in keys))
    return Table(name, keys_of, {"columns": columns, "extra": "ignore"})


def _columns(table: Table) -> Iterator[tuple[str, str, str]]:
    for name, given in table.options["columns"].items():
        yield name, given["type"], given["from"][0]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every statement that the target sends."""
    found: list[str] = []
    queue, execute = Session._queue, psycopg.Cursor.execute

    def noted_queue(self: Any, connection: Any, statement: Any) -> None:
        found.append(statement.sql.decode())
        queue(self, connection, statement)

    def noted_execute(self: Any, query: Any, *given: Any, **named: Any) -> Any:
        if isinstance(self.connection, Watched):
            found.append(query.as_string(None) if isinstance(query, sql.Composable) else str(query))
        return execute(self, query, *given, **named)

    monkeypatch.setattr(Session, "_queue", noted_queue)
    monkeypatch.setattr(psycopg.Cursor, "execute", noted_execute)
    return found


def lived_through(database: Database, named: Named) -> None:
    """Everything a pipeline does with its tables, each step with its expected effect."""
    options = PostgresOptions.model_validate({"url": database.url, "schema": named.schema})
    target, (a, b, c) = Postgres(options, named.pipeline), named.ids
    try:
        assert target.check(named.tables) == []
        assert len(target.plan(named.tables)) == TABLES
        assert target.epoch(named.tables) is None
        target.open(named.tables, FIRST_EPOCH)
        assert target.check(named.tables) == []
        assert target.epoch(named.tables) == FIRST_EPOCH
        first, second, later = (version(FIRST_EPOCH, n) for n in (1, 2, 3))
        stored = [Upsert(t.name, id, Item(image(named.item(t, id))), first, id) for t in named.tables for id in (a, b)]
        assert not target.write(Batch([Part(a[0], stored)])).rejections
        changed = [Upsert(t.name, c, named.item(t, c), second, c) for t in named.tables]
        deleted = [Delete(t.name, a, second, a) for t in named.tables]
        assert not target.write(Batch([Part(a[0], [*changed, *deleted])], tombstones=True)).rejections
        assert target.write(Batch([Part(a[0], stored[::2])], tombstones=True)).superseded == {a[0]: TABLES}
        assert [target.sweep(t, second, [(c[0],)]) for t in named.tables] == [1] * TABLES
        assert [target.purge(t, later) for t in named.tables] == [2] * TABLES
        assert not target.write(Batch([Part(a[0], stored[:1])])).rejections
        assert not target.write(Batch([Part(a[0], [Delete(named.tables[0].name, a, second, a)])])).rejections
    finally:
        target.close()


_RELATIONS = """
SELECT c.relname, array_agg(a.attname ORDER BY a.attnum) FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %s) AND c.relkind = 'r' AND a.attnum > 0
GROUP BY 1"""
_ELSEWHERE = """
SELECT count(*), (SELECT array_agg(id) FROM public.victim) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname NOT IN (%s, 'pg_toast')"""


def is_as_named(client: psycopg.Connection[Any], named: Named) -> None:
    """The expected tables exist under exactly these names, and nothing else does."""
    wanted = {t.name: [*t.keys.names, *(name for name, *_ in _columns(t)), "_version"] for t in named.tables}
    assert dict(client.execute(_RELATIONS, [named.schema]).fetchall()) == wanted
    for table in named.tables:
        rows = carried_out(client, "SELECT to_jsonb(whole_row) FROM %I.%I AS whole_row", named.schema, table.name)
        columns = {name: _STORED[type] for name, type, _ in _columns(table)}
        keys = dict(zip(table.keys.names, named.ids[2], strict=True))
        assert list(rows or ()) == [({**columns, **keys, "_version": version(FIRST_EPOCH, 2)},)]


def carried_out(client: psycopg.Connection[Any], statement: str, *given: str) -> Any:
    """A statement of ours in which the server quotes the names."""
    (query,) = client.execute("SELECT format(%s, VARIADIC %s::text[])", [statement, list(given)]).fetchone() or ("",)
    return client.execute(query)


def made(client: psycopg.Connection[Any], named: Named) -> None:
    carried_out(client, "CREATE SCHEMA %I", named.schema)


def removed(client: psycopg.Connection[Any], named: Named) -> None:
    carried_out(client, "DROP SCHEMA %I CASCADE", named.schema)


def expected_of(database: Database, client: psycopg.Connection[Any], sent: list[str]) -> list[str]:
    """The shapes of the statements sent for plain names."""
    for round in range(2):  # the first one also makes the schema replicator
        sent.clear()
        plain = Named.of(f"n{round}_{i}" for i in count())
        made(client, plain)
        lived_through(database, plain)
        is_as_named(client, plain)
        removed(client, plain)
    return [shape(statement) for statement in sent]


def test_only_statements_of_the_expected_shape_are_sent(one_postgres: Database, sent: list[str]) -> None:
    given = list(islice(names(SEED), HOW_MANY))
    possible = [name for name in given if is_possible(name, column=True)]
    refuses([name for name in given if not is_possible(name, column=True)])
    taken = 0

    def counted() -> Iterator[str]:
        nonlocal taken
        while True:  # the last pipeline takes some names again
            yield possible[taken % len(possible)]
            taken += 1

    with one_postgres.connect() as client:
        client.execute("CREATE TABLE public.victim AS SELECT 1 AS id")
        expected = expected_of(one_postgres, client, sent)
        while taken < len(possible):
            sent.clear()
            named = Named.of(counted())
            made(client, named)
            elsewhere = client.execute(_ELSEWHERE, [named.schema]).fetchall()
            lived_through(one_postgres, named)
            assert [shape(statement) for statement in sent] == expected, named
            is_as_named(client, named)
            assert client.execute(_ELSEWHERE, [named.schema]).fetchall() == elsewhere
            removed(client, named)


def refuses(impossible: Sequence[str]) -> None:
    """A name that Postgres would truncate, change or reject is refused in advance, wherever it is used."""
    from connectors.postgres.table_schema import shapes

    chance = random.Random(SEED)
    key = KeySchema((KeyAttribute("pk", "S"),))
    for name in impossible:
        places = [
            (Table("t", KeySchema((KeyAttribute(name, "S"),))), "public"),
            (Table("t", key, {"columns": {name: "text"}}), "public"),
        ]
        if not is_possible(name):
            places += [(Table(name, key), "public"), (Table("t", key), name)]
        table, schema = chance.choice(places)
        with pytest.raises(ConfigError):
            shapes([table], schema)


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("SELECT \"a\"\"b\".'c''d' E'\\'' x", "SELECT <name>.<text><text> x"),
        ('SELECT "a"; DROP TABLE "victim"; --"', 'SELECT <name>; DROP TABLE <name>; --"'),
    ],
)
def test_the_shape_of_a_statement_is_what_is_outside_quotes(statement: str, found: str) -> None:
    assert shape(statement) == found


def test_a_name_that_breaks_out_of_its_quotes_is_noticed(
    one_postgres: Database, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with one_postgres.connect() as client:
        client.execute("CREATE TABLE public.victim AS SELECT 1 AS id")
        expected = expected_of(one_postgres, client, sent)
        monkeypatch.setattr(sql.Identifier, "as_string", lambda self, _=None: ".".join(f'"{n}"' for n in self._obj))
        monkeypatch.setattr(sql.Identifier, "as_bytes", lambda self, _=None: self.as_string().encode())
        sent.clear()
        broken = ('x" (id int); DROP TABLE public.victim; --', *(f"n{i}" for i in range(1000)))
        named = Named.of(iter(("s", "p", *broken)))
        made(client, named)
        with pytest.raises((AssertionError, ConfigError, psycopg.Error)):
            lived_through(one_postgres, named)
        assert [shape(statement) for statement in sent] != expected[: len(sent)]
