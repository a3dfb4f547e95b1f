"""Partitions of a history: how retention removes them, and what must not keep it from that."""

from __future__ import annotations

import pytest

from replicator.key import KeyAttribute, KeySchema
from replicator.target.contract import Table
from tests.cli.command_line import World
from tests.connectors.postgres.history_kit import keep_history
from tests.connectors.postgres.postgres_kit import target
from tests.connectors.postgres.test_history_losses import execute

pytestmark = pytest.mark.postgres

ORDERS = Table("orders", KeySchema((KeyAttribute("id", "S"),)), {"history": {"keep": "2d"}})
NOTE = "SELECT obj_description('orders_history_base'::regclass, 'pg_class')"


def add_partition(world: World, day: int) -> None:
    execute(
        world,
        f"CREATE TABLE orders_history_200101{day:02} PARTITION OF orders_history "
        f"FOR VALUES FROM ('2001-01-{day:02}T00:00:00Z') TO ('2001-01-{day + 1:02}T00:00:00Z')",
    )


@pytest.fixture
def kept(world: World) -> World:
    keep_history(world, "history: {keep: 2d}")
    world.db.create_table("orders")
    world.db.put("orders", {"id": "a", "n": 1})
    world.catch_up()
    return world


def test_times_that_were_removed_stay_so_when_an_older_partition_comes_back(kept: World) -> None:
    one = target(kept.postgres, "orders")
    for day in (10, 1):
        add_partition(kept, day)
        assert one.retain([ORDERS])
        assert kept.rows(NOTE) == [("replicator: changes are kept since 979171200",)]
