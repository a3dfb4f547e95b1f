"""Several workers on this machine, on Ray: the same pipeline, and the same copy, as with one process."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from tests.end_to_end.world import Copy, Load, Source, eventually
from tests.servers.postgres_fixtures import Database

RAY = ("--engine", "ray")


@pytest.fixture
def memory() -> DynamoDB:
    return DynamoDB(now=time.time, random=random.Random(9), shards=4)


@pytest.fixture
def copy(tmp_path: Path, memory: DynamoDB, one_postgres: Database) -> Iterator[Copy]:
    with served(memory) as endpoint:
        yield Copy(tmp_path, Source(endpoint).create(), one_postgres).configure(backfill={"segments": 3})


def process_of(copy: Copy, slot: str) -> int:
    """The process of the worker that has claimed the slot; 0 if none has."""
    owners = "SELECT value->>'pid' AS pid FROM replicator.checkpoints WHERE kind = 'owner' AND id = "
    return next((int(row["pid"]) for row in copy.query(f"{owners}'{slot}' AND value->>'run' <> ''")), 0)


def test_a_killed_worker_and_changes_of_the_engine_lose_nothing_and_repeat_nothing(
    copy: Copy, memory: DynamoDB
) -> None:
    source, chance = copy.source, random.Random(10)
    source.fill(300)

    def reshard(done: int) -> None:
        if done % 100 == 50 and len(memory.open_shards(source.table)) < 8:
            shard = chance.choice(memory.open_shards(source.table))
            (memory.split if chance.random() < 0.5 else memory.roll)(source.table, shard)

    with copy.start("run", *RAY) as run:
        run.until("snapshot started")
        with Load(source, seed=11, keys=300, every=reshard, pause=0.02) as load:
            run.until("progress", phase="live")
            eventually(lambda: process_of(copy, "0") and process_of(copy, "1"), "the slots are claimed for this stage")
            assert process_of(copy, "0") != process_of(copy, "1")
            os.kill(process_of(copy, "0"), signal.SIGKILL)
            run.until("worker restarted", worker="0")
            load.wait(100)
            assert run.stop().code == 0, run.ended()
            with copy.start("run") as alone:
                alone.until("resuming")
                load.wait(100)
                assert alone.stop().code == 0
    copy.caught_up("run", *RAY)

    copy.assert_equal()
    status = copy.status()
    assert status["shards"]["ended"] >= 4
    assert copy.counts()["read"] == status["backfill"]["items"] + source.records
