"""Shards open side by side, splitting: boto3 reads them from the in-memory DynamoDB, which is served over HTTP."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from tests.end_to_end.world import Copy, Load, Source
from tests.servers.postgres_fixtures import Database


@pytest.fixture
def memory() -> DynamoDB:
    return DynamoDB(now=time.time, random=random.Random(9), shards=4)


@pytest.fixture
def copy(tmp_path: Path, memory: DynamoDB, one_postgres: Database) -> Iterator[Copy]:
    with served(memory) as endpoint:
        yield Copy(tmp_path, Source(endpoint).create(), one_postgres).configure(backfill={"segments": 3})


def test_parallel_shards_that_split_and_roll_are_copied_once_each_in_order(copy: Copy, memory: DynamoDB) -> None:
    source, chance = copy.source, random.Random(10)
    source.fill(300)

    def reshard(done: int) -> None:
        if done % 100 == 50:
            shard = chance.choice(memory.open_shards(source.table))
            (memory.split if chance.random() < 0.5 else memory.roll)(source.table, shard)

    with copy.start() as run:
        run.until("snapshot started")
        with Load(source, seed=11, keys=300, every=reshard) as load:
            load.wait(500)
            run.kill()
            with copy.start() as run:
                run.until("resuming")
                load.wait(500)
                assert run.stop().code == 0
    copy.caught_up()

    copy.assert_equal()
    status = copy.status()
    assert status["shards"]["open"] > 4
    assert status["shards"]["ended"] >= 10
    assert copy.counts()["read"] == status["backfill"]["items"] + source.records
    assert memory.calls["GetRecords"] > 0
