"""Several workers on a Ray of their own, into a DynamoDB table: what is sent by a killed worker may still arrive.

On a cluster, and into a search engine: test_ray.py.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from tests.end_to_end.pipeline import Run
from tests.end_to_end.ray_story import Slots
from tests.end_to_end.targets import OtherTable
from tests.end_to_end.world import Load, Source
from tests.servers.dynamodb_local import DynamoDBLocal
from tests.servers.postgres_fixtures import Database

RAY = ("--engine", "ray")


@pytest.mark.dynamodb_local
def test_deleted_items_stay_deleted_in_a_dynamodb_table_when_a_worker_is_killed(
    tmp_path: Path, one_postgres: Database, tables_local: DynamoDBLocal
) -> None:
    """In the backfill and live, from a table whose shards split meanwhile, so that children go to other workers than
    their parents. The copy is what the source is, also for one process behind the workers.
    """
    memory, chance = DynamoDB(now=time.time, random=random.Random(9), shards=4), random.Random(10)
    with served(memory) as endpoint:
        source = Source(endpoint).create()

        def split(done: int) -> None:
            if done % 40 == 20 and len(shards := memory.open_shards(source.table)) < 8:
                memory.split(source.table, chance.choice(shards))

        table = OtherTable(tmp_path, source, tables_local, name=f"copy-of-{source.table}")
        table.configured(None, backfill={"segments": 3}, checkpoints={"type": "postgres", "url": one_postgres.url})
        source.fill(300)
        with table.start("run", *RAY) as run:
            run.until("snapshot started")
            with Load(source, seed=12, keys=300, pause=0.02, every=split) as load:
                for slot in ("0", "1"):
                    kill_worker(run, Slots(one_postgres), slot)
                    run.until("progress", phase="live")
                load.wait(100)
            assert run.stop().code == 0, run.ended()
        tombstones = table.tombstones()
        table.caught_up("run", *RAY)
        table.assert_equal()
        assert tombstones > 0
        table.caught_up()
        table.assert_equal()
        assert table.status()["shards"]["ended"] >= 2


def kill_worker(run: Run, slots: Slots, slot: str) -> None:
    """As soon as there is one, until another one has replaced it."""
    os.kill(run.eventually(lambda: slots.owners().get(slot), "the slot is claimed") or 0, signal.SIGKILL)
    run.until("worker restarted", worker=slot)
