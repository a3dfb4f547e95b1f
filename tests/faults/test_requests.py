"""A resync that is requested while a run is up: the run carries it out, or says why not and goes on."""

from __future__ import annotations

from collections.abc import Sequence

from replicator.config.settings import load
from replicator.engine import preexisting
from replicator.engine.assembly import target_tables
from replicator.engine.startup import digest
from replicator.errors import GapFound
from replicator.key import Key
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.source.table import describe_table
from replicator.state import ResyncRequest, Save, encode
from replicator.target.contract import Table
from replicator.testing.memory import MemoryTarget
from tests.faults.test_gaps import with_another_key
from tests.faults.world import TABLE, World


class Changeable(MemoryTarget):
    """A target on which something changes that decides what documents become, as an ingest pipeline does."""

    problems: Sequence[str] = ()

    def check(self, tables: Sequence[Table]) -> Sequence[str]:
        return self.problems


def request_one(faults: World, keys: Sequence[Key] = (("k1",),)) -> None:
    """Of a rescan of these items; without any, of the whole table."""
    config = load(faults.folder / "orders.yaml")
    table, target, checkpoints = describe_table(faults.client, TABLE), faults.target(), faults.store()
    tables = target_tables(config, table, None)
    found = preexisting.inspect(CheckpointView(checkpoints.read()), table, target, tables, None)
    request = ResyncRequest(requested=faults.clock(), config=digest(found), keys=tuple(keys))
    checkpoints.save([Save("request", "", 0, encode(request))])


def test_a_partial_resync_is_not_begun_while_a_new_start_would_be_refused(faults: World) -> None:
    """Its epoch would note for all documents what only the chosen ones come from; no later start would notice."""
    faults.fill()
    target = Changeable(faults.database)
    faults.target = lambda: target
    faults.copied()
    epoch = faults.states("pipeline")[""].epoch
    target.problems = ["the ingest pipeline p has changed"]
    faults.clock.plan(20, lambda: request_one(faults))
    faults.clock.plan(60, lambda: faults.put("k2", n=1))
    ended = faults.run(seconds=120)
    assert ended.event("requested resync not started")["reason"] == "the ingest pipeline p has changed"
    assert (ended.code, faults.states("pipeline")[""].epoch) == (0, epoch)
    faults.assert_equal()
    target.problems = ()
    faults.copied()
    assert faults.states("pipeline")[""].epoch == epoch + 1


class Emptied(MemoryTarget):
    """A server that can tell that it has lost documents, until an epoch begins: then it counts anew, as Redis does."""

    lost: bool = False

    def recheck(self, tables: Sequence[Table]) -> Sequence[str]:
        if self.lost:
            raise GapFound("the server has lost changes that it had stored", of_target=True)
        return ()

    def open(self, tables: Sequence[Table], epoch: int) -> None:
        self.lost = False
        super().open(tables, epoch)


def test_chosen_items_are_not_read_from_a_table_that_was_made_again(faults: World) -> None:
    """Of a key that it lacks the document would be removed."""
    faults.fill()
    faults.copied()
    before = faults.documents

    def recreated() -> None:
        request_one(faults, (("k1",), ("k2",)))
        faults.db.call("DeleteTable", {"TableName": TABLE})
        faults.db.create_table(TABLE)
        faults.put("k1", other="table")

    faults.clock.plan(10, recreated)
    ended = faults.run(seconds=600)
    assert ended.code == 3
    assert "was deleted and created again" in ended.err
    assert faults.documents == before


def test_chosen_items_are_read_again_while_describe_table_does_not_find_the_table(faults: World) -> None:
    """It is eventually consistent."""
    faults.fill()
    faults.copied()

    def request() -> None:
        request_one(faults, (("k1",), ("k2",)))
        looked_up = len(faults.client.times("BatchGetItem"))
        faults.db.fail(
            "DescribeTable",
            "ResourceNotFoundException",
            when=lambda _: len(faults.client.times("BatchGetItem")) > looked_up,
        )

    faults.clock.plan(10, request)
    epoch = faults.states("pipeline")[""].epoch
    assert faults.run(seconds=600).code == 0
    assert faults.states("pipeline")[""].epoch > epoch
    assert len(faults.client.times("BatchGetItem")) == 3, "asked whether it may be, and twice for the items"
    faults.assert_equal()


def test_a_requested_resync_copies_no_table_that_was_made_again_with_another_key(faults: World) -> None:
    """Whose stream the run has not seen yet."""
    faults.fill()
    faults.copied()
    before = faults.documents

    def requested() -> None:
        request_one(faults, ())
        faults.db.fail("GetRecords", times=None)
        with_another_key(faults)

    faults.clock.plan(10, requested)
    faults.clock.plan(60, faults.db.heal)
    ended = faults.run(seconds=600)
    assert "created again with another key (id: S, n: N)" in ended.event("requested resync not started")["reason"]
    assert ended.code == 3
    assert faults.documents == before


def test_what_the_target_lost_in_the_last_minute_is_noticed_before_a_partial_resync_begins(faults: World) -> None:
    faults.fill()
    target = Emptied(faults.database)
    faults.target = lambda: target
    faults.copied()
    epoch = faults.states("pipeline")[""].epoch

    def lose() -> None:
        faults.database.rows[TABLE].pop(("k2",))
        target.lost = True
        request_one(faults)

    faults.clock.plan(75, lose)
    ended = faults.run(seconds=200)
    assert ended.code == 3
    assert "the server has lost changes" in ended.event("gap")["reason"]
    assert faults.states("pipeline")[""].epoch == epoch
