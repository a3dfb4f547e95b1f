"""Several workers on Ray, and a target without transactions: what is sent by a killed worker may still arrive."""

from __future__ import annotations

import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import psycopg
import pytest

from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from tests.end_to_end.targets import Index
from tests.end_to_end.world import Load, Source
from tests.servers.postgres_fixtures import Database
from tests.servers.search_fixtures import Search

RAY = ("--engine", "ray")


def process_of(kept: Database, slot: str) -> int:
    """The process of the worker that has claimed the slot; 0 if none has."""
    owners = "SELECT (value->>'pid')::int FROM replicator.checkpoints WHERE kind = 'owner' AND value->>'run' <> ''"
    with psycopg.connect(kept.url) as connection:
        found = connection.execute(f"{owners} AND id = %s", [slot]).fetchone()
    return 0 if found is None else int(found[0])


@pytest.mark.search
def test_deleted_items_stay_deleted_in_a_search_engine_when_a_worker_is_killed(
    tmp_path: Path, one_postgres: Database, one_search: Search
) -> None:
    """In the backfill and live; what a killed worker had sent may still arrive, so deletes leave tombstones."""
    memory = DynamoDB(now=time.time, random=random.Random(9), shards=4)
    with served(memory) as endpoint:
        source = Source(endpoint).create()
        index = Index(tmp_path, source, one_search)
        index.configured(None, backfill={"segments": 3}, checkpoints={"type": "postgres", "url": one_postgres.url})
        source.fill(300)
        with index.start("run", *RAY) as run:
            run.until("snapshot started")
            with Load(source, seed=12, keys=300, pause=0.02) as load:
                for slot in ("0", "1"):
                    killed = run.eventually(partial(process_of, one_postgres, slot), "the slot is claimed")
                    os.kill(killed, signal.SIGKILL)
                    run.until("worker restarted", worker=slot)
                    run.until("progress", phase="live")
                load.wait(100)
            assert run.stop().code == 0, run.ended()
        tombstones = index.tombstones()
        index.caught_up("run", *RAY)
        index.assert_equal()
        assert tombstones > 0
        index.caught_up()
        index.assert_equal()
