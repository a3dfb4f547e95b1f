"""A Delta Lake target, read with DuckDB and polars, as users read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import duckdb
import polars
from deltalake import DeltaTable

from connectors.delta.schema import VERSION, column_name
from replicator.batch import DocumentId
from replicator.target.contract import Table
from tests.servers.s3 import Bucket

Options = Mapping[str, str]


def in_s3(bucket: Bucket, endpoint: str) -> dict[str, Any]:
    """The target's part of a config."""
    return {"type": "delta", "path": f"s3://{bucket.name}/lake", "endpoint_url": endpoint, "region": "us-east-1"}


def storage(endpoint: str) -> Options:
    """How other clients reach the same S3."""
    login = {"aws_access_key_id": "local", "aws_secret_access_key": "local", "aws_region": "us-east-1"}
    return {**login, "aws_endpoint_url_s3": endpoint, "aws_allow_http": "true"}


def remove_folder(bucket: Bucket, prefix: str) -> None:
    pages = bucket.client.get_paginator("list_objects_v2").paginate(Bucket=bucket.name, Prefix=prefix)
    for page in pages:
        for found in page.get("Contents", ()):
            bucket.client.delete_object(Bucket=bucket.name, Key=found["Key"])


def rows(place: str, storage: Options | None = None) -> list[dict[str, Any]]:
    """All that DuckDB sees. Its own reader of Delta tables is an extension to download, so it reads through Arrow."""
    seen = DeltaTable(place, storage_options=dict(storage or {})).to_pyarrow_dataset()
    with duckdb.connect() as connection:
        connection.register("seen", seen)
        found = connection.execute("SELECT * FROM seen")
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def with_polars(place: str, storage: Options | None = None, *, use_pyarrow: bool = False) -> list[dict[str, Any]]:
    return polars.read_delta(place, storage_options=dict(storage or {}), use_pyarrow=use_pyarrow).to_dicts()


def documents(folder: str, table: Table, storage: Options | None = None) -> Mapping[DocumentId, Any]:
    """The documents of a table, by id."""
    keys = [column_name(attribute.name) for attribute in table.keys.attributes]
    found = {}
    for row in rows(f"{folder}/{table.name}", storage):
        assert row[VERSION] is not None
        id = tuple(row[name] for name in keys)
        found[id] = json.loads(row["document"], parse_float=Decimal, parse_int=Decimal)
    return found
