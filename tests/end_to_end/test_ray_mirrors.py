"""Several workers on Ray, and targets without transactions: what is sent by a killed worker may still arrive."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psycopg
import pytest

from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from tests.end_to_end.targets import Index, Mirror, OtherTable
from tests.end_to_end.world import Load, Source
from tests.servers.dynamodb_local import DynamoDBLocal
from tests.servers.postgres_fixtures import Database
from tests.servers.search_fixtures import Search

RAY = ("--engine", "ray")


def process_of(kept: Database, slot: str) -> int:
    """The process of the worker that has claimed the slot; 0 if none has."""
    owners = "SELECT (value->>'pid')::int FROM replicator.checkpoints WHERE kind = 'owner' AND value->>'run' <> ''"
    with psycopg.connect(kept.url) as connection:
        found = connection.execute(f"{owners} AND id = %s", [slot]).fetchone()
    return 0 if found is None else int(found[0])


def outlives_its_workers(mirror: Mirror, source: Source, kept: Database, split: Callable[[int], None]) -> None:
    """Workers are killed in the backfill and live, and the copy is what the source is, also for one process behind
    them. ``split`` is called after each change, with their number.
    """
    mirror.configured(None, backfill={"segments": 3}, checkpoints={"type": "postgres", "url": kept.url})
    source.fill(300)
    with mirror.start("run", *RAY) as run:
        run.until("snapshot started")
        with Load(source, seed=12, keys=300, pause=0.02, every=split) as load:
            for slot in ("0", "1"):
                killed = run.eventually(partial(process_of, kept, slot), "the slot is claimed")
                os.kill(killed, signal.SIGKILL)
                run.until("worker restarted", worker=slot)
                run.until("progress", phase="live")
            load.wait(100)
        assert run.stop().code == 0, run.ended()
    tombstones = mirror.tombstones()
    mirror.caught_up("run", *RAY)
    mirror.assert_equal()
    assert tombstones > 0
    mirror.caught_up()
    mirror.assert_equal()


def unsplit(_: int) -> None:
    """The shards stay as they are."""


@pytest.mark.search
def test_deleted_items_stay_deleted_in_a_search_engine_when_a_worker_is_killed(
    tmp_path: Path, one_postgres: Database, one_search: Search
) -> None:
    """In the backfill and live; what a killed worker had sent may still arrive, so deletes leave tombstones."""
    memory = DynamoDB(now=time.time, random=random.Random(9), shards=4)
    with served(memory) as endpoint:
        source = Source(endpoint).create()
        outlives_its_workers(Index(tmp_path, source, one_search), source, one_postgres, unsplit)


@pytest.mark.dynamodb_local
def test_deleted_items_stay_deleted_in_a_dynamodb_table_when_a_worker_is_killed(
    tmp_path: Path, one_postgres: Database, tables_local: DynamoDBLocal
) -> None:
    """The same, from a table whose shards split meanwhile, so that children go to other workers than their parents."""
    memory, chance = DynamoDB(now=time.time, random=random.Random(9), shards=4), random.Random(10)
    with served(memory) as endpoint:
        source = Source(endpoint).create()

        def split(done: int) -> None:
            if done % 40 == 20 and len(shards := memory.open_shards(source.table)) < 8:
                memory.split(source.table, chance.choice(shards))

        table = OtherTable(tmp_path, source, tables_local, name=f"copy-of-{source.table}")
        outlives_its_workers(table, source, one_postgres, split)
        assert table.status()["shards"]["ended"] >= 2
