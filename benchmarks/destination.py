"""The Postgres side: its server, tables as replicator creates them, and their expected final contents."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import partial
from typing import Any

import orjson
import psycopg
from boto3.dynamodb.types import TypeDeserializer
from psycopg.types.json import Json, set_json_loads
from pydantic import SecretStr

from benchmarks import data
from connectors.postgres import Postgres
from connectors.postgres.options import PostgresOptions
from replicator.key import KeyAttribute, KeySchema
from replicator.target.contract import Table
from replicator.testing.dynamodb.http import UnsignedClient

SETTINGS = {"shared_buffers": "1GB", "max_wal_size": "8GB", "checkpoint_timeout": "30min", "autovacuum": "off"}
KEYS = KeySchema(tuple(KeyAttribute(name, "S") for name in data.KEYS))
SHAPES: Mapping[str, Table] = {
    data.TABLE: Table(data.TABLE, KEYS, {"columns": dict(data.COLUMNS)}),
    data.DOCUMENTS: Table(data.DOCUMENTS, KEYS),
}


def encoded(value: Any) -> Any:
    """A value as psycopg sends it; maps and lists become JSON."""
    if isinstance(value, Mapping | list | set | frozenset):
        return Json(value, dumps=partial(json.dumps, default=_default, ensure_ascii=False))
    return value


def _default(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return sorted(value)


def prepare(url: str) -> None:
    """The tables' contents before the first change, once for all rounds."""
    with psycopg.connect(url, autocommit=True) as connection:
        for table in SHAPES.values():
            _create(connection, url, table)
            _load(connection, table)
            connection.execute(f"ALTER TABLE {table.name} RENAME TO {table.name}_before")


def _create(connection: psycopg.Connection[Any], url: str, table: Table) -> None:
    target = Postgres(PostgresOptions(url=SecretStr(url)), "benchmark")
    for statement in target.plan([table]):
        connection.execute(statement)
    target.close()


def _load(connection: psycopg.Connection[Any], table: Table) -> None:
    row = data.row if table.name == data.TABLE else data.document
    with connection.cursor() as cursor, cursor.copy(f"COPY {table.name} FROM STDIN") as copy:
        for item in data.initial():
            copy.write_row([*map(encoded, row(item)), 0])


def reset(url: str, table: str) -> None:
    """Reset the table to its state before the first change, without checkpoints of any pipeline."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS replicator CASCADE")
        connection.execute("DROP TABLE IF EXISTS positions")
    reset_one(url, table)


def reset_one(url: str, table: str) -> None:
    """The same, with the checkpoints left as they are."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP TABLE IF EXISTS {table}")
        _create(connection, url, SHAPES[table])
        connection.execute(f"INSERT INTO {table} SELECT * FROM {table}_before")
        connection.execute(f"VACUUM ANALYZE {table}")
        connection.execute("CHECKPOINT")


def items(endpoint: str) -> list[dict[str, Any]]:
    """The source's final items, decoded without any of replicator's code."""
    client, decode = UnsignedClient(endpoint), TypeDeserializer().deserialize
    found: list[dict[str, Any]] = []
    request: dict[str, Any] = {"TableName": data.TABLE}
    while True:
        page = orjson.loads(client.call("Scan", request))
        found += ({name: decode(v) for name, v in item.items()} for item in page["Items"])
        if "LastEvaluatedKey" not in page:
            return found
        request["ExclusiveStartKey"] = page["LastEvaluatedKey"]


def differences(url: str, table: str, wanted: Iterable[tuple[Any, ...]]) -> int:
    """The number of rows that are missing, unexpected or different."""
    with psycopg.connect(url) as connection:
        set_json_loads(partial(json.loads, parse_float=Decimal), connection)
        found = {row[:2]: row[:-1] for row in connection.execute(f"SELECT * FROM {table}")}
    right = {row[:2]: row for row in wanted}
    return sum(found.get(key) != right.get(key) for key in found.keys() | right.keys())
