"""What happens to a target's tables during a run, when the run writes nothing, or all that it writes is superseded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from connectors.dynamodb import catalog
from connectors.dynamodb.options import DynamoDBOptions
from connectors.dynamodb.tables import Tables
from connectors.dynamodb.target import DynamoDB as Target
from replicator.batch import Batch, Part, Upsert
from replicator.config.settings import load
from replicator.errors import ConfigError, GapFound, TransientError
from replicator.items.item import Item
from replicator.key import KeyAttribute, KeySchema
from replicator.target.contract import Rechecking, Table
from replicator.testing.dynamodb import DynamoDB
from replicator.version import FIRST_EPOCH, version
from tests.connectors.dynamodb import dynamodb_kit as kit
from tests.faults.world import World
from tests.faults.world import faults as faults

COPY = Table("copy", KeySchema((KeyAttribute("id", "S"),)))
CONFIG = """\
pipeline: orders
source: {table: orders, region: us-east-1}
target: {type: dynamodb, region: us-east-1, endpoint_url: "%s", table: copy, create: true}
checkpoints: {type: sqlite, path: orders.db}
on_gap: %s
"""
Started = Callable[[str], Path]


@pytest.fixture
def started(faults: World, endpoint: str) -> Started:
    """A copy of six items that has caught up, with this ``on_gap``."""

    def start(on_gap: str) -> Path:
        path = faults.folder / "orders.yaml"
        path.write_text(CONFIG % (endpoint, on_gap))
        config = load(str(path))
        faults.target = lambda: config.target.build("orders")
        faults.fill()
        assert faults.run().code == 0
        return path

    return start


@pytest.fixture
def target(endpoint: str) -> Iterator[Target]:
    """Its table is open."""
    made = Target(DynamoDBOptions(region="us-east-1", endpoint_url=endpoint, create=True), "orders")
    made.open([COPY], FIRST_EPOCH)
    assert isinstance(made, Rechecking)
    assert made.recheck([COPY]) == []
    yield made
    made.close()


def another_epoch(endpoint: str, epoch: int = FIRST_EPOCH + 1) -> None:
    """What a run with checkpoints of its own leaves: its epoch in the note and in the items."""
    target = Target(DynamoDBOptions(region="us-east-1", endpoint_url=endpoint, create=True), "orders")
    target.open([COPY], epoch)
    ids = [(f"k{n}",) for n in range(6)]
    images = [Item(b'{"id":{"S":"%s"}}' % id[0].encode()) for id in ids]
    target.write(
        Batch(
            [Part("segment:0", [Upsert("copy", i, m, version(epoch, 0), i) for i, m in zip(ids, images, strict=True)])]
        )
    )
    target.close()


def test_a_table_that_is_created_again_while_a_run_is_idle_is_a_gap_within_a_minute(
    faults: World, started: Started, endpoint: str, db: DynamoDB
) -> None:
    started("stop")
    faults.clock.plan(100, lambda: kit.made_anew(endpoint, COPY))
    ended = faults.run(seconds=300)
    assert ended.code == 3
    assert "table/copy is not the table that this run has written to: it was deleted and created again" in ended.err
    assert "replicator resync" in ended.err
    assert [gap.reason in ended.err for gap in faults.gaps] == [True]


def test_such_a_table_is_filled_again_by_the_run_with_on_gap_resync(
    faults: World, started: Started, endpoint: str, db: DynamoDB
) -> None:
    started("resync")
    faults.clock.plan(100, lambda: kit.made_anew(endpoint, COPY))
    faults.clock.plan(2000, lambda: faults.put("k1", n=5))
    assert faults.run(seconds=3000).code == 0
    stored = {item["id"]: item.get("n") for item in db.items("copy")}
    assert stored == {f"k{n}": 5 if n == 1 else None for n in range(6)}


@pytest.mark.parametrize("on_gap", ["stop", "resync"])
def test_a_run_that_another_epoch_supersedes_ends_instead_of_writing_in_vain(
    faults: World, started: Started, endpoint: str, on_gap: str
) -> None:
    """Whatever ``on_gap`` is: the other run would repair after it, and both for ever."""
    started(on_gap)
    faults.clock.plan(100, lambda: another_epoch(endpoint))
    faults.clock.plan(200, lambda: faults.put("k1", n=5))
    ended = faults.run(seconds=4000)
    assert ended.code == 3
    assert f"copy was written by epoch {FIRST_EPOCH + 1} since this run, of epoch {FIRST_EPOCH}, opened it" in ended.err
    assert [e["event"] for e in ended.events].count("snapshot started") == 0


@pytest.mark.parametrize("on_gap", ["stop", "resync"])
def test_so_does_the_run_that_is_started_after_it(
    faults: World, started: Started, endpoint: str, db: DynamoDB, on_gap: str
) -> None:
    started(on_gap)
    faults.clock.plan(100, lambda: another_epoch(endpoint))
    assert faults.run(seconds=2000).code == 3
    again = faults.run(seconds=300)
    assert again.code == 3
    assert [e["event"] for e in again.events].count("snapshot started") == 0


@pytest.mark.parametrize("on_gap", ["stop", "resync"])
def test_the_first_start_of_a_pipeline_sweeps_no_table_of_another_one_whose_note_is_elsewhere(
    faults: World, endpoint: str, db: DynamoDB, on_gap: str
) -> None:
    """Its items have versions as the pipeline's own would have, if its checkpoints and its note were lost."""
    options = DynamoDBOptions(region="us-east-1", endpoint_url=endpoint, create=True, epochs_table="elsewhere")
    another = Target(options, "another")
    another.open([COPY], FIRST_EPOCH)
    theirs = Upsert("copy", ("theirs",), Item(b'{"id":{"S":"theirs"}}'), version(FIRST_EPOCH, 0), ("theirs",))
    another.write(Batch([Part("segment:0", [theirs])]))
    another.close()
    path = faults.folder / "orders.yaml"
    path.write_text(CONFIG % (endpoint, on_gap))
    config = load(str(path))
    faults.target = lambda: config.target.build("orders")
    faults.fill()
    ended = faults.run(seconds=2000)

    assert (ended.code, "of a pipeline whose checkpoints are lost or stored elsewhere" in ended.err) == (3, True)
    (item,) = db.items("copy")
    assert (item["id"], item.get("_replicator_deleted")) == ("theirs", None)


def test_a_control_plane_that_does_not_answer_leaves_a_run_alone(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: object) -> None:
        raise TransientError("DescribeTable is throttled")

    monkeypatch.setattr(catalog, "describe", down)
    assert target.recheck([COPY]) == ()


@pytest.mark.parametrize("pristine", [False, True])
def test_a_table_that_is_not_ready_is_waited_for_and_not_scanned(
    endpoint: str, db: DynamoDB, monkeypatch: pytest.MonkeyPatch, pristine: bool
) -> None:
    """DynamoDB refuses to scan one that is being created. Here the response of CreateTable was lost, too."""
    created, describe = catalog.create, catalog.describe

    def lost(*given: Any) -> None:
        created(*given)
        raise TransientError("no response to CreateTable")

    def creating(client: Any, name: str) -> catalog.Described | None:
        found = describe(client, name)
        return found if found is None or name != "copy" else replace(found, ready=False)

    options = DynamoDBOptions(region="us-east-1", endpoint_url=endpoint, create=True, pristine=pristine)
    made = Target(options, "orders")
    with monkeypatch.context() as patch:
        patch.setattr(catalog, "create", lost)
        patch.setattr(catalog, "describe", creating)
        patch.setattr(Tables, "_sample", None)
        patch.setattr(Tables, "_is_empty", None)
        for _ in range(2):
            with pytest.raises(TransientError):
                made.open([COPY], FIRST_EPOCH)
    made.open([COPY], FIRST_EPOCH)
    made.close()


def test_a_table_that_is_gone_ends_a_run_that_writes_nothing(target: Target, endpoint: str) -> None:
    kit.client(endpoint).delete_table(TableName="copy")
    assert target.recheck([COPY]) == ["the target's table copy no longer exists; it did when the run started"]


def test_a_table_of_another_id_or_of_a_later_epoch_is_a_gap(target: Target, endpoint: str) -> None:
    another_epoch(endpoint, FIRST_EPOCH)
    assert target.recheck([COPY]) == []
    another_epoch(endpoint)
    with pytest.raises(GapFound, match="Let only one of them run") as later:
        target.recheck([COPY])
    assert (later.value.of_target, later.value.by_hand) == (True, True)
    kit.made_anew(endpoint, COPY)
    with pytest.raises(GapFound, match="restored from a backup, while the run was up") as replaced:
        target.recheck([COPY])
    assert (replaced.value.of_target, replaced.value.by_hand) == (True, False)
    target.open([COPY], FIRST_EPOCH + 2)
    assert target.recheck([COPY]) == []


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"pipeline": {"S": "other"}}, "is written by the pipeline other, according to the table replicator-epochs"),
        ({"stripped": {"BOOL": True}}, "replicator strip has removed the versions from copy"),
    ],
)
def test_a_table_that_another_pipeline_has_taken_over_or_that_is_stripped_ends_the_run(
    target: Target, endpoint: str, changed: dict[str, object], says: str
) -> None:
    api = kit.client(endpoint)
    note = api.get_item(TableName=kit.EPOCHS, Key={"table": {"S": "copy"}})["Item"]
    api.put_item(TableName=kit.EPOCHS, Item={**note, **changed})
    (problem,) = target.recheck([COPY])
    assert says in problem
    with pytest.raises(ConfigError):
        target.open([COPY], FIRST_EPOCH)


def test_a_note_that_is_lost_during_a_run_does_not_end_it(target: Target, endpoint: str) -> None:
    """The next start derives the epoch from the items."""
    kit.client(endpoint).delete_table(TableName=kit.EPOCHS)
    assert target.recheck([COPY]) == []
