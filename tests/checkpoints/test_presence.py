"""A typo in a pipeline's name: no command mistakes it for an empty pipeline, and none stores anything."""

from __future__ import annotations

import pytest

from replicator.checkpoints.contract import Claimed
from replicator.checkpoints.presence import check_known
from replicator.errors import ConfigError
from replicator.state import Entry
from replicator.testing.memory import MemoryDatabase, MemoryTarget
from tests.cli.command_line import World
from tests.cli.test_checkpoint_stores import NEED_A_PIPELINE, called

READ = "SELECT pipeline, kind, id, revision, value::text, saved FROM replicator.checkpoints ORDER BY 1, 2, 3"


def test_an_existing_pipeline_is_accepted() -> None:
    check_known("orders", MemoryTarget(MemoryDatabase()).checkpoints, Claimed(1, [Entry("owner", "", 1, "{}")]))


def test_other_pipelines_are_not_listed_if_the_store_cannot_list_them() -> None:
    with pytest.raises(ConfigError, match=r"no pipeline orders in the target's database\. If the name is"):
        check_known("orders", MemoryTarget(MemoryDatabase()).checkpoints, Claimed(0))


@pytest.mark.parametrize("command", NEED_A_PIPELINE)
def test_an_unknown_pipeline_is_reported_with_the_existing_ones(world: World, command: str) -> None:
    world.db.create_table("orders")
    world.catch_up()
    world.change("pipeline: orders", "pipeline: ordres")
    before = world.rows(READ)
    code, output = called(world, command)

    assert code == 2, output
    if command == "resync":  # the target knows its pipeline
        assert "is written by the pipeline orders; two copies in one table would overwrite each other" in output
        assert "If this config belongs to that pipeline, correct its pipeline: key" in output
    else:
        assert "pipeline: there is no pipeline ordres in the target's database; existing pipelines: orders. " in output
    assert world.rows(READ) == before


def test_a_resync_of_an_unknown_pipeline_and_table_starts_nothing(world: World) -> None:
    world.db.create_table("orders")
    world.catch_up()
    world.change("pipeline: orders", "pipeline: ordres")
    world.change(f"url: {world.postgres.url}\n  table: orders", f"url: {world.postgres.url}\n  table: order2")
    before = world.rows(READ)
    code, output = called(world, "resync")

    assert (code, "there is no pipeline ordres in the target's database; existing pipelines: orders. " in output) == (
        2,
        True,
    ), output
    assert world.rows(READ) == before
    assert not world.has_table("order2")


def test_an_unknown_pipeline_is_reported_if_none_exists_either(world: World) -> None:
    world.db.create_table("orders")
    for command in NEED_A_PIPELINE:
        code, output = called(world, command)
        assert (code, "there is no pipeline orders in the target's database. If" in output) == (2, True), output
    assert not world.has_table("checkpoints")


def test_lost_checkpoints_can_be_recreated_by_a_resync(world: World) -> None:
    """The pipeline is no longer stored, and the target shows that it belongs to no other one."""
    world.db.create_table("orders")
    world.catch_up()
    with world.postgres.connect() as client:
        client.execute("DELETE FROM replicator.checkpoints")
    assert called(world, "resync")[0] == 0
