"""The contenders that replicator is compared with.

N  the loop people write: boto3, TypeDeserializer, executemany and a commit per page
L  the same with one transaction a record, as a function behind an event source mapping does it
M  the least that the rows cost: everything read, compacted and encoded before the clock starts, then per page a COPY
   into a temporary table, a guarded merge, the deletes and the position, on one connection
M2 the same with two pages a batch, in the order of keys
"""

from __future__ import annotations

import os
import pickle
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import orjson
import psycopg
from boto3.dynamodb.types import TypeDeserializer

from benchmarks import data
from benchmarks.destination import encoded
from benchmarks.product import CREDENTIALS, Result
from benchmarks.source import bodies, client
from replicator.items.attributes import plain

_KEYS = ", ".join(data.KEYS)


def upsert(table: str, names: Sequence[str], values: str) -> str:
    """INSERT or UPDATE if the version is newer; ``values`` follows the column list."""
    body = ", ".join(f"{name} = EXCLUDED.{name}" for name in names if name not in data.KEYS)
    return (
        f"INSERT INTO {table} AS t ({', '.join(names)}) {values} "
        f"ON CONFLICT ({_KEYS}) DO UPDATE SET {body} WHERE t._version < EXCLUDED._version"
    )


_UPSERT = upsert(data.TABLE, data.NAMES, f"VALUES ({', '.join(['%s'] * len(data.NAMES))})")
_DELETE = f"DELETE FROM {data.TABLE} WHERE pk = %s AND sk = %s AND _version < %s"
_CHECKPOINT = "INSERT INTO positions VALUES (%s, %s) ON CONFLICT (shard) DO UPDATE SET sequence = EXCLUDED.sequence"
_POSITIONS = "CREATE TABLE IF NOT EXISTS positions (shard text PRIMARY KEY, sequence text)"


# N and L: typical hand-written loops


def pages(endpoint: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Pages of records as boto3 returns them, shard by shard."""
    os.environ.update(CREDENTIALS)
    region = {"endpoint_url": endpoint, "region_name": "us-east-1"}
    arn = boto3.client("dynamodb", **region).describe_table(TableName=data.TABLE)["Table"]["LatestStreamArn"]
    streams = boto3.client("dynamodbstreams", **region)
    for shard in streams.describe_stream(StreamArn=arn)["StreamDescription"]["Shards"]:
        named = {"StreamArn": arn, "ShardId": shard["ShardId"]}
        iterator = streams.get_shard_iterator(ShardIteratorType="TRIM_HORIZON", **named)["ShardIterator"]
        while records := (answer := streams.get_records(ShardIterator=iterator))["Records"]:
            yield shard["ShardId"], records
            iterator = answer["NextShardIterator"]


def naive(endpoint: str, url: str, expected: int) -> Result:
    """N, for the first ``expected`` changes."""
    decode = TypeDeserializer().deserialize
    with psycopg.connect(url) as connection:
        connection.execute(_POSITIONS)
        connection.commit()
        started, cpu, done = time.perf_counter(), time.process_time(), 0
        for shard, records in pages(endpoint):
            with connection.cursor() as cursor:
                for kind, rows in _alike(records, decode, done):
                    cursor.executemany(_UPSERT if kind == "put" else _DELETE, rows)
                cursor.execute(_CHECKPOINT, (shard, records[-1]["dynamodb"]["SequenceNumber"]))
            connection.commit()
            done += len(records)
            if done >= expected:
                break
        return Result(done, time.perf_counter() - started, time.process_time() - cpu)


def _alike(records: Sequence[Mapping[str, Any]], decode: Any, done: int) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
    """The last change of each key, upserts first, as a careful loop would send them."""
    puts: dict[str, tuple[Any, ...]] = {}
    deletes: dict[str, tuple[Any, ...]] = {}
    for number, record in enumerate(records, done + 1):
        change = record["dynamodb"]
        key = change["Keys"]["pk"]["S"]
        puts.pop(key, None)
        deletes.pop(key, None)
        if "NewImage" in change:
            item = {name: decode(v) for name, v in change["NewImage"].items()}
            puts[key] = (*(encoded(item[name]) for name in (*data.KEYS, *data.COLUMNS)), number)
        else:
            deletes[key] = (key, change["Keys"]["sk"]["S"], number)
    yield "put", list(puts.values())
    yield "delete", list(deletes.values())


def one_by_one(endpoint: str, url: str, expected: int) -> Result:
    """L, for the first ``expected`` changes."""
    decode = TypeDeserializer().deserialize
    with psycopg.connect(url) as connection:
        connection.execute(_POSITIONS)
        connection.commit()
        started, cpu, done = time.perf_counter(), time.process_time(), 0
        for shard, records in pages(endpoint):
            for record in records:
                for kind, rows in _alike([record], decode, done):
                    for row in rows:
                        connection.execute(_UPSERT if kind == "put" else _DELETE, row)
                connection.execute(_CHECKPOINT, (shard, record["dynamodb"]["SequenceNumber"]))
                connection.commit()
                done += 1
                if done >= expected:
                    return Result(done, time.perf_counter() - started, time.process_time() - cpu)
        raise AssertionError("the stream has fewer changes")


# M: the minimum


@dataclass(frozen=True, slots=True)
class Prepared:
    """One encoded batch."""

    shard: str
    sequence: str
    changes: int
    rows: bytes  # COPY's text format, in the order of keys
    deletes: list[list[Any]]  # pks, sks, versions


def prepare(endpoint: str, path: Path, table: str, pages: int) -> None:
    """Write M's batches to a file; batches of several pages are sorted by key."""
    shards: dict[str, list[list[Any]]] = defaultdict(list)
    for shard, body in bodies(client(endpoint)):
        shards[shard].append(orjson.loads(body)["Records"])
    batches = [list(_batches(shard, found, table, pages)) for shard, found in shards.items()]
    turns = max(map(len, batches))
    path.write_bytes(pickle.dumps([b[turn] for turn in range(turns) for b in batches if turn < len(b)]))


def _batches(shard: str, found: list[list[Any]], table: str, pages: int) -> Iterator[Prepared]:
    done = 0
    for at in range(0, len(found), pages):
        records = [record["dynamodb"] for page in found[at : at + pages] for record in page]
        last = {r["Keys"]["pk"]["S"]: (r, done + n) for n, r in enumerate(records, 1)}
        ordered = list(last.items()) if pages == 1 else sorted(last.items())
        puts = [_line(r["NewImage"], version, table) for _, (r, version) in ordered if "NewImage" in r]
        gone = [(pk, r["Keys"]["sk"]["S"], v) for pk, (r, v) in ordered if "NewImage" not in r]
        done += len(records)
        columns = [list(column) for column in zip(*gone, strict=True)] or [[], [], []]
        yield Prepared(shard, records[-1]["SequenceNumber"], len(records), b"".join(puts), columns)


def _line(image: Mapping[str, Any], version: int, table: str) -> bytes:
    values = {name: plain(v) for name, v in image.items()}
    if table == data.DOCUMENTS:
        cells = [values["pk"], values["sk"], orjson.dumps(values).decode(), str(version)]
    else:
        cells = [*(_cell(values[name]) for name in (*data.KEYS, *data.COLUMNS)), str(version)]
    escaped = (c.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r") for c in cells)
    return "\t".join(escaped).encode() + b"\n"


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def merge(path: Path, url: str, table: str) -> Result:
    """M."""
    batches: list[Prepared] = pickle.loads(path.read_bytes())
    names = data.NAMES if table == data.TABLE else (*data.KEYS, "document", "_version")
    into = upsert(table, names, f"SELECT {', '.join(names)} FROM staging")
    gone = (
        f"DELETE FROM {table} AS t USING unnest(%s::text[], %s::text[], %s::bigint[]) AS d (pk, sk, v) "
        "WHERE t.pk = d.pk AND t.sk = d.sk AND t._version < d.v"
    )
    with psycopg.connect(url, prepare_threshold=1) as connection:
        connection.execute(
            "SET jit = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_seqscan = off"
        )
        connection.execute(_POSITIONS)
        connection.execute(f"CREATE TEMP TABLE staging (LIKE {table}) ON COMMIT DELETE ROWS")
        connection.commit()
        started, cpu = time.perf_counter(), time.process_time()
        for batch in batches:
            with connection.cursor() as cursor:
                with cursor.copy("COPY staging FROM STDIN") as copy:
                    copy.write(batch.rows)
                with connection.pipeline():
                    cursor.execute(into)
                    cursor.execute(gone, batch.deletes)
                    cursor.execute(_CHECKPOINT, (batch.shard, batch.sequence))
                    connection.commit()
        changes = sum(batch.changes for batch in batches)
        return Result(changes, time.perf_counter() - started, time.process_time() - cpu)
