"""A run with several workers and a coordinator, step by step in memory."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from replicator.batch import Batch, DocumentId, Outcome, Upsert
from replicator.checkpoints.contract import Claimed
from replicator.config.engine import Ray
from replicator.engine import binding, preexisting
from replicator.engine.binding import check_start
from replicator.engine.context import RunContext
from replicator.engine.coordinator import COORDINATOR, Coordinator
from replicator.engine.heartbeat import HEARTBEAT_INTERVAL
from replicator.engine.local import Driver
from replicator.engine.ray.reports import Recorder
from replicator.engine.startup import RESUMING, StartupState, digest
from replicator.engine.worker import Post, Worker
from replicator.errors import ConfigError, Fenced, GapFound, ReplicatorError, TransientError
from replicator.hooks.hook import Hook
from replicator.key import Key
from replicator.operations.dry_run import outlook
from replicator.operations.repair import Repairs
from replicator.operations.verify import Ends
from replicator.pipeline import stages
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.pipeline.parked import item_of, version_in
from replicator.pipeline.progress import HEARTBEAT_TIMEOUT, Progress, progress
from replicator.state import (
    LONGEST_IN_DOUBT,
    Gap,
    GapRepair,
    Heartbeat,
    PipelineState,
    Repair,
    ResyncRequest,
    Retried,
    Save,
    Slot,
    decode,
    encode,
)
from replicator.target.contract import Table
from replicator.testing.dynamodb.faults import Listed
from replicator.testing.memory import MemoryCheckpoints, MemoryTarget
from replicator.testing.memory_index import MemoryIndex, Request
from replicator.verification.differences import Finding
from replicator.verification.examiner import Examiner, Floor
from replicator.verification.verifier import Result, Verifier
from replicator.version import FIRST_EPOCH, epoch_of, version
from tests.engine.cluster import TABLE, Cluster
from tests.simulation.runs import limit_turns
from tests.simulation.targets import Killed

KINDS = pytest.mark.parametrize("index", [False, True], ids=["transactions", "no transactions"])


def churn(cluster: Cluster, chance: random.Random, steps: int) -> None:
    """Items change, and shards split and roll over, while the run goes on."""
    for n in range(steps):
        cluster.round()
        key = f"k{chance.randrange(20)}"
        if chance.random() < 0.3:
            cluster.delete(key)
        else:
            cluster.write(key, n)
        if n % 40 == 20 and len(shards := cluster.source.open_shards(TABLE)) < 6:
            cluster.source.split(TABLE, shards[chance.randrange(len(shards))])


def alone(cluster: Cluster, one: Worker | Coordinator) -> None:
    """Steps of one of them, which the others outlive."""
    for _ in range(100):
        cluster.clock.now += 0.1
        one.step()


def slot_of(cluster: Cluster, slot: str) -> Slot:
    found = decode("slot", slot, cluster.database.entries["slot", slot][1])
    assert isinstance(found, Slot)
    return found


@KINDS
def test_workers_follow_a_table_whose_shards_split_until_the_target_equals_it(index: bool) -> None:
    cluster = Cluster(index=index)
    for n in range(20):
        cluster.write(f"k{n}", n)
    cluster.start()
    churn(cluster, random.Random(1), 120)
    cluster.settle()
    assert cluster.stored == cluster.wanted
    assert {shard.slot for shard in cluster.running.pipeline.shards.values() if not shard.ended} == {"0", "1", "2"}
    total = cluster.running.pipeline.total
    assert total.read == total.applied + total.superseded + total.filtered + total.parked > 100
    cluster.outlive_doubt()
    assert cluster.stored == cluster.wanted
    assert cluster.database.tombstones == {TABLE: {}}


def test_workers_read_nothing_until_the_stream_is_enabled() -> None:
    cluster = Cluster()
    for n in range(20):
        cluster.write(f"k{n}", n)
    cluster.source.disable_stream(TABLE)
    cluster.source.enable_stream(TABLE, enabling=60.0)
    enabled = cluster.clock.now + 60.0
    cluster.start()
    assert cluster.clock.now >= enabled
    assert cluster.running.pipeline.state is not None
    assert cluster.running.pipeline.state.started >= enabled
    cluster.settle()
    assert cluster.stored == cluster.wanted


def test_workers_begin_the_epoch_after_a_gap_once_the_stream_is_enabled() -> None:
    cluster = Cluster()
    cluster.write("k0", 0)
    cluster.start()
    cluster.settle()
    cluster.source.disable_stream(TABLE)
    cluster.source.enable_stream(TABLE, enabling=60.0)
    enabled = cluster.clock.now + 60.0
    for n in range(400):
        cluster.write("k0", n)  # until the stream is enabled, in no stream
        cluster.round()
        if cluster.clock.now >= enabled:
            break
    cluster.settle()
    assert cluster.running.pipeline.state is not None
    assert cluster.running.pipeline.state.started >= enabled
    assert cluster.stored == cluster.wanted


def test_a_worker_that_starts_on_an_old_stream_reads_it_as_its_own_view_says() -> None:
    """Of the table it only learns the view of the new stream."""
    cluster = Cluster(view="KEYS_ONLY", on_gap="stop")
    for n in range(5):
        cluster.write(f"k{n}", n)
    cluster.start()
    cluster.settle()
    for n in range(5):
        cluster.write(f"k{n}", 100 + n)
    cluster.source.disable_stream(TABLE)
    cluster.source.enable_stream(TABLE)
    cluster.restart_workers()
    with pytest.raises(GapFound, match="the stream was replaced: this run read"):
        cluster.rounds(3000)
    assert cluster.stored == cluster.wanted


def test_a_worker_looks_no_item_up_in_a_table_that_was_made_again() -> None:
    cluster = Cluster(view="KEYS_ONLY", on_gap="stop")
    for n in range(5):
        cluster.write(f"k{n}", n)
    cluster.start()
    cluster.settle()
    before = cluster.stored
    for n in range(5):
        cluster.write(f"k{n}", 100 + n)
    cluster.source.call("DeleteTable", {"TableName": TABLE})
    cluster.clock.now += 1
    cluster.source.create_table(TABLE, keys={"pk": "S"}, view="KEYS_ONLY")
    cluster.write("k1", 555)
    cluster.restart_workers()
    with pytest.raises(GapFound, match="was deleted and created again before all of its stream"):
        cluster.rounds(3000)
    assert cluster.stored == before


def test_a_worker_whose_slot_another_one_has_claimed_ends_and_stores_nothing_more() -> None:
    cluster = Cluster()
    cluster.start()
    cluster.settle()
    old = cluster.workers["0"]
    cluster.workers["0"] = cluster.worker("0")
    for n in range(10):
        cluster.write(f"k{n}", n)
    cluster.settle()
    before = dict(cluster.database.entries)
    with pytest.raises(Fenced):
        alone(cluster, old)
    assert {p: e for p, e in cluster.database.entries.items() if before.get(p) != e} == {}
    assert cluster.stored == cluster.wanted


def test_a_worker_whose_slot_is_taken_for_the_next_epoch_as_it_begins_claims_it_again() -> None:
    cluster = Cluster()
    cluster.start()
    cluster.settle()

    class Overtaken(MemoryTarget):
        def open(self, tables: Sequence[Table], epoch: int) -> None:
            cluster.target_type = MemoryTarget
            request(cluster, ())
            for _ in range(100):
                cluster.clock.now += 0.1
                cluster.running.step()
            self.checkpoints.save(())  # as in Postgres, where tables are opened under the claim

    cluster.target_type = Overtaken
    cluster.workers["0"] = worker = cluster.worker("0")
    cluster.write("k", 1)
    cluster.settle()
    assert cluster.running.pipeline.epoch == FIRST_EPOCH + 1
    assert cluster.workers["0"] is worker
    assert cluster.stored == cluster.wanted


@pytest.mark.parametrize("refusal", [ConfigError("written by a later epoch"), GapFound("written by a later epoch")])
def test_a_worker_whose_tables_are_refused_because_the_next_epoch_has_begun_claims_its_slot_again(
    refusal: ReplicatorError,
) -> None:
    """As a search engine refuses an index whose notes name a later epoch: it is this run's own."""
    cluster = Cluster(index=True)
    cluster.start()
    cluster.settle()

    class Overtaken(MemoryIndex):
        def open(self, tables: Sequence[Table], epoch: int) -> None:
            cluster.index_type = MemoryIndex
            request(cluster, ())
            for _ in range(100):
                cluster.clock.now += 0.1
                cluster.running.step()
            raise refusal

    cluster.index_type = Overtaken
    cluster.workers["0"] = worker = cluster.worker("0")
    cluster.write("k", 1)
    cluster.settle()
    assert cluster.running.pipeline.epoch == FIRST_EPOCH + 1
    assert cluster.workers["0"] is worker
    assert cluster.stored == cluster.wanted
    assert not cluster.gaps


def test_a_worker_whose_tables_are_refused_for_good_ends_with_the_reason() -> None:
    cluster = Cluster(index=True)
    cluster.start()
    cluster.settle()

    class Refusing(MemoryIndex):
        def open(self, tables: Sequence[Table], epoch: int) -> None:
            raise ConfigError("the index takes no writes")

    cluster.index_type = Refusing
    with pytest.raises(ConfigError, match="the index takes no writes"):
        cluster.worker("0").step()


def test_a_later_coordinator_goes_on_with_the_same_workers_and_the_earlier_one_ends() -> None:
    cluster = Cluster()
    cluster.start()
    cluster.settle()
    early, claims = cluster.running, {s: cluster.database.entries["owner", s][0] for s in cluster.slots}
    cluster.replace_coordinator()
    with pytest.raises(Fenced, match=COORDINATOR):
        alone(cluster, early)
    assert {s: cluster.database.entries["owner", s][0] for s in cluster.slots} == claims
    churn(cluster, random.Random(2), 60)
    cluster.settle()
    assert cluster.stored == cluster.wanted


def test_a_later_run_replaces_the_coordinator_and_all_workers_of_the_earlier_one() -> None:
    cluster = Cluster()
    cluster.start()
    cluster.settle()
    early, workers = cluster.running, dict(cluster.workers)
    cluster.start()
    everyone: list[Worker | Coordinator] = [early, *workers.values()]
    for one in everyone:
        with pytest.raises(Fenced):
            alone(cluster, one)
    cluster.write("k", 1)
    cluster.settle()
    assert cluster.stored == cluster.wanted


def test_a_worker_that_waits_keeps_its_connections_and_claims_nothing() -> None:
    cluster = Cluster()
    cluster.coordinator = Coordinator(
        cluster.context(), cluster.owner("coordinator"), cluster.environment(), cluster.slots
    )
    opened, closed = list[RunContext](), list[RunContext]()

    @contextlib.contextmanager
    def connect() -> Iterator[RunContext]:
        opened.append(cluster.context())
        yield opened[-1]
        closed.append(opened[-1])

    post = Post("0", cluster.running.revision, len(cluster.slots))
    worker = Worker(post, cluster.owner("worker 0"), connect, cluster.environment())
    for _ in range(20):
        assert not worker.step()
    assert (len(opened), len(closed)) == (1, 0)
    before = dict(cluster.database.entries)
    assert not worker.step()
    assert dict(cluster.database.entries) == before
    cluster.running.start(RESUMING)
    cluster.workers["0"] = worker
    for _ in range(100):
        cluster.round()
    assert (len(opened), closed) == (2, opened[:1])
    worker.close()
    assert closed == opened


def test_a_worker_that_waits_ends_once_another_run_has_begun() -> None:
    cluster = Cluster()
    cluster.coordinator = Coordinator(
        cluster.context(), cluster.owner("coordinator"), cluster.environment(), cluster.slots
    )
    worker = cluster.worker("0")
    assert not worker.step()
    cluster.start()
    with pytest.raises(Fenced):
        worker.step()


def store(cluster: Cluster, state: PipelineState) -> None:
    cluster.database.entries["pipeline", ""] = (99, encode(state))


def test_what_the_coordinator_tells_is_repeated_until_the_worker_has_begun_with_it() -> None:
    cluster = Cluster(shards=1)
    cluster.start()
    cluster.settle()
    for shard in cluster.source.open_shards(TABLE):
        cluster.source.split(TABLE, shard)
    cluster.write("k", 1)
    for _ in range(300):
        cluster.round(told=False)
    assert cluster.stored == {}, "no worker knows of the children"
    assert cluster.running.news()
    cluster.settle()
    assert cluster.stored == cluster.wanted
    assert cluster.running.news() == {}


@KINDS
def test_a_gap_that_a_worker_finds_begins_an_epoch_for_all_of_them(index: bool) -> None:
    cluster = Cluster(index=index)
    cluster.start()
    lose_records(cluster)
    cluster.delete("k1")
    epoch = cluster.running.pipeline.epoch
    cluster.rounds(300)
    cluster.settle()
    assert cluster.running.pipeline.epoch == epoch + 1
    assert cluster.stored == cluster.wanted
    gaps = [decode(*place, text) for place, (_, text) in cluster.database.entries.items() if place[0] == "gap"]
    assert [gap.repaired is not None for gap in gaps if isinstance(gap, Gap)] == [True] * len(gaps)
    assert gaps


def test_a_gap_that_a_worker_finds_ends_the_run_where_the_config_says_so() -> None:
    cluster = Cluster(on_gap="stop")
    cluster.start()
    lose_records(cluster)
    with pytest.raises(GapFound):
        cluster.rounds(300)


def test_a_worker_that_begins_where_another_run_writes_leaves_it_to_a_person() -> None:
    """With checkpoints of its own: each run would repair after the other."""
    cluster = Cluster(index=True)
    cluster.start()
    cluster.settle()
    cluster.database.epochs[TABLE] = FIRST_EPOCH + 1
    cluster.restart_workers()
    with pytest.raises(GapFound) as found:
        cluster.rounds(3000)
    assert found.value.by_hand
    assert cluster.running.pipeline.epoch == FIRST_EPOCH


def lose_records(cluster: Cluster) -> None:
    """While no worker is there, records are written and trimmed."""
    cluster.write("k0", 0)
    cluster.settle()
    cluster.workers.clear()
    for n in range(20):
        cluster.write(f"k{n}", n)
    cluster.trim_all()
    cluster.restart_workers()


def omitting(shard: str) -> Callable[[Sequence[Listed]], Sequence[Listed]]:
    return lambda listed: [one for one in listed if one.id != shard]


def test_a_shard_that_listings_do_not_show_is_no_gap_while_a_worker_reads_it() -> None:
    """The coordinator lists, but only workers read."""
    cluster = Cluster(on_gap="stop")
    cluster.start()
    cluster.settle()
    cluster.source.misreport(omitting(cluster.source.open_shards(TABLE)[0]))
    for n in range(2000):
        cluster.round()
        cluster.write(f"k{n % 20}", n)
    cluster.source.heal()
    cluster.settle()
    assert cluster.stored == cluster.wanted


def test_a_shard_that_is_gone_before_anything_needed_in_it_was_trimmed_is_no_gap() -> None:
    """Its worker is told so; the coordinator finds that listings do not show it either."""
    cluster = Cluster(on_gap="stop")
    cluster.start()
    cluster.settle()
    gone = cluster.source.open_shards(TABLE)[0]
    cluster.source.roll(TABLE, gone)
    cluster.source.misreport(omitting(gone))
    for call in ("GetRecords", "GetShardIterator"):
        cluster.source.fail(call, "ResourceNotFoundException", times=None, shard=gone)
    for n in range(200):
        cluster.round()
        cluster.write(f"k{n % 20}", n)
        cluster.clock.now += 0.3  # between listings
    assert cluster.running.pipeline.shards[gone].leaf
    cluster.rounds(100)
    assert cluster.stored == cluster.wanted


def test_empty_pages_of_a_closed_shard_are_not_taken_for_its_end_by_a_worker() -> None:
    cluster = Cluster(shards=1)
    cluster.start()
    cluster.settle()
    (first,) = cluster.source.open_shards(TABLE)
    cluster.workers.clear()
    second = cluster.source.roll(TABLE, first)
    for n in range(9):
        cluster.write(f"k{n}", n)
    cluster.source.roll(TABLE, second)
    cluster.rounds(100)
    cluster.clock.now += 3600
    cluster.source.blank(times=30, shard=second)
    cluster.restart_workers()
    seen = set[tuple[bool, bool]]()
    for _ in range(300):
        cluster.round()
        if (shard := cluster.running.pipeline.shards.get(second)) is not None:
            seen.add((shard.ended, shard.through is not None))
    assert seen == {(False, False), (True, True)}


def test_parked_limit_holds_for_all_workers_together() -> None:
    cluster = Cluster(hook=hook(lambda item: 1 / 0), parked_limit=5)
    for n in range(5):
        cluster.write(f"k{n}", n)
    cluster.start()
    cluster.rounds(200)
    assert sum(kind == "parked" for kind, _ in cluster.database.entries) == 5
    cluster.write("k5", 5)
    with pytest.raises(ConfigError, match="parked_limit"):
        cluster.rounds(200)


def test_an_item_that_two_workers_refuse_at_the_same_time_is_parked_once() -> None:
    """One has scanned it, and one has its change."""
    cluster = Cluster(hook=hook(lambda item: 1 / 0), shards=1)
    for n in range(8):
        cluster.write(f"k{n}", n)
    cluster.start()
    for n in range(200):
        cluster.round()
        cluster.write(f"k{n % 8}", n)
    cluster.rounds(200)
    parked = [id for kind, id in cluster.database.entries if kind == "parked"]
    assert Counter(map(item_of, parked)) == {f'["k{n}"]': 1 for n in range(8)}
    assert {epoch_of(version_in(id)) << 48 == version_in(id) for id in parked} == {False}, "the newest is kept"


def hook(function: Callable[[Any], Any], fingerprint: str = "one") -> Hook:
    return Hook("hook", function, fingerprint, declared=False)


@KINDS
def test_a_worker_whose_page_takes_longer_than_one_may_hang_is_heard_of_and_shows_activity_meanwhile(
    index: bool,
) -> None:
    """The hook takes five minutes for the 1,000 records of a page, 0.3 seconds for each."""
    seconds, silences, stuck = 0.0, list[float](), list[float]()

    def slow(item: Any) -> Any:
        cluster.clock.now += seconds
        if seconds:
            stuck.append(recorder.stuck)
            beat = decode("pulse", "0", cluster.database.entries["pulse", "0"][1])
            assert isinstance(beat, Heartbeat)
            silences.append(cluster.clock.wall() - beat.at)
        return dict(item)

    cluster = Cluster(slots=1, shards=1, index=index, hook=hook(slow))
    recorder = Recorder(cluster.clock)
    cluster.start()
    cluster.workers["0"]._environment = replace(cluster.environment(), measurements=recorder)
    cluster.settle()
    for n in range(1000):
        cluster.write(f"k{n}", n)
    seconds = 0.31
    while len(stuck) < 1000:
        recorder.active()  # as before each step of a worker on Ray
        cluster.round()
    assert len(stuck) == 1000
    assert max(stuck) < HEARTBEAT_INTERVAL + 1
    assert max(silences) < HEARTBEAT_TIMEOUT


def test_a_call_of_the_hook_that_does_not_return_is_no_activity() -> None:
    stuck = list[float]()

    def hanging(item: Any) -> Any:
        cluster.clock.now += 400
        stuck.append(recorder.stuck)
        return dict(item)

    cluster = Cluster(slots=1, shards=1, hook=hook(hanging))
    recorder = Recorder(cluster.clock)
    cluster.write("k", 1)
    cluster.start()
    cluster.workers["0"]._environment = replace(cluster.environment(), measurements=recorder)
    cluster.settle()
    assert max(stuck) >= 400


def test_a_worker_with_another_hook_than_the_run_is_refused() -> None:
    cluster = Cluster(hook=hook(lambda item: item))
    cluster.start()
    cluster.hook = hook(lambda item: None, "two")
    with pytest.raises(ConfigError, match="another hook"):
        cluster.workers["0"].step()


@KINDS
def test_one_process_goes_on_where_workers_ended_and_workers_where_it_ended(index: bool) -> None:
    """Whether they end in good order, or are killed."""
    cluster = Cluster(index=index)
    for n in range(20):
        cluster.write(f"k{n}", n)
    for n in range(6):
        if n % 2:
            run_in_one_process(cluster)
            continue
        cluster.slots = ("0", "1", "2") if n % 4 else ("0", "1")
        cluster.start()
        churn(cluster, random.Random(n), 40)
        if n == 2:
            cluster.stop()
    cluster.start()
    cluster.settle()
    cluster.outlive_doubt()
    assert cluster.stored == cluster.wanted
    assert cluster.database.tombstones == {TABLE: {}}
    assert cluster.running.pipeline.epoch == FIRST_EPOCH, "nothing was taken for a gap"


ONE_PROCESS = "which only one process does: run the pipeline without engine until"


def inspected(context: RunContext, view: CheckpointView) -> StartupState:
    return preexisting.inspect(view, context.table, context.target, context.tables, context.hook)


@pytest.mark.parametrize("done", [False, True])
def test_workers_refuse_a_gap_that_one_process_was_repairing_from_exports_and_go_on_once_it_has(done: bool) -> None:
    cluster = Cluster(index=True, on_gap="stop")
    cluster.start()
    cluster.settle()
    cluster.stop()
    place = "pipeline", ""
    revision, text = cluster.database.entries[place]
    before = decode(*place, text)
    assert isinstance(before, PipelineState)
    stage = stages.PURGING if done else stages.SCANNING
    repairs = replace(before, epoch=before.epoch + 1, full=before.epoch, stage=stage, opening=True)
    repairs = replace(repairs, repair=GapRepair(1.0, 1, done=done))
    gap = Save("gap", "1", 0, encode(Gap("lost", 1.0, before.epoch)))
    MemoryCheckpoints(cluster.database).save([Save(*place, revision, encode(repairs)), gap])
    context = cluster.context()
    with nullcontext() if done else pytest.raises(ConfigError, match=ONE_PROCESS):  # before the run has claimed
        check_start(context.checkpoints, partial(inspected, context), RESUMING, lambda _: None, several=True)
    on_ray = replace(context.config, engine=Ray())
    with nullcontext() if done else pytest.raises(ConfigError, match=ONE_PROCESS):
        outlook(on_ray, context.target, context.checkpoints, context.table, context.tables, None)
    check_start(context.checkpoints, partial(inspected, context), RESUMING, lambda _: None)
    if not done:
        with pytest.raises(ConfigError, match=ONE_PROCESS):
            cluster.start()
        return
    cluster.start()
    cluster.running._watch_workers()  # finds no gap that is not repaired
    cluster.rounds(50)
    cluster.outlive_doubt()
    assert cluster.running.pipeline.view.gaps["1"].repaired is not None


def run_in_one_process(cluster: Cluster) -> None:
    cluster.write("k1", 1)
    driver = Driver(cluster.context(), cluster.owner("one"), cluster.environment())
    limit_turns(driver, 100)
    with suppress(Killed):
        driver.run(until=None)


@KINDS
def test_a_requested_resync_is_carried_out_by_all_workers(index: bool) -> None:
    cluster = Cluster(index=index)
    for n in range(9):
        cluster.write(f"k{n}", n)
    cluster.start()
    cluster.settle()
    cluster.outlive_doubt()
    for keys in ((("k1",), ("k2",)), ()):
        rows = cluster.database.rows[TABLE]
        del rows["k1",]
        rows["k2",] = rows["k2",][0], b'{"by": "hand"}'
        request(cluster, keys)
        for n in range(200):
            cluster.round()
            cluster.write("k3", n)
        cluster.settle()
        assert cluster.stored == cluster.wanted
        cluster.outlive_doubt()
    assert cluster.running.pipeline.state is not None
    assert cluster.running.pipeline.state.epoch == FIRST_EPOCH + 2


def test_a_resync_that_is_requested_while_an_epoch_begins_follows_it() -> None:
    """Its epoch may know of nothing to sweep."""

    class Changed(MemoryIndex):
        def open(self, tables: Sequence[Table], epoch: int) -> None:
            super().open(tables, epoch)
            if ("request", "") not in cluster.database.entries and not cluster.stored:
                cluster.database.rows[TABLE]["by hand",] = version(epoch, 0), b"{}"
                request(cluster, (("by hand",),))

    cluster = Cluster(index=True)
    cluster.index_type = Changed
    cluster.write("k", 1)
    cluster.start()
    cluster.rounds(100)
    cluster.settle()
    assert ("request", "") not in cluster.database.entries
    assert cluster.stored == cluster.wanted


def request(cluster: Cluster, keys: tuple[tuple[str, ...], ...]) -> None:
    context, view = cluster.context(), CheckpointView(MemoryCheckpoints(cluster.database).read())
    found = preexisting.inspect(view, context.table, context.target, context.tables, context.hook)
    wanted = ResyncRequest(cluster.clock(), digest(found), keys=keys)
    MemoryCheckpoints(cluster.database).save([Save("request", "", 0, encode(wanted))])


# Commands beside several workers


class Silent:
    def waiting(self, reason: str | None) -> None: ...
    def repair(self, finding: Finding, reason: str) -> None: ...


@KINDS
def test_a_repair_waits_until_every_worker_that_writes_leaves_tombstones(index: bool) -> None:
    """And these are purged when all workers have stopped leaving them."""
    cluster = Cluster(index=index, shards=3)
    cluster.start()
    cluster.settle()
    both = ends_of(cluster)
    verifier = verifier_of(cluster, both)
    with Repairs(both, Silent(), wanted=True, monotonic=cluster.clock, token="one") as repairs:
        asleep = cluster.workers.pop("1")
        for _ in range(100):
            cluster.clock.now += 1.0
            cluster.round()
            repairs.flush(verifier)
        assert {id for id, repair in repairing(cluster).items() if repair} == {"", "0", "2"}
        assert repairs.waits
        cluster.workers["1"] = asleep
        while repairs.waits:
            cluster.clock.now += 1.0
            cluster.round()
            repairs.flush(verifier)
        assert all(repairing(cluster).values())
        cluster.workers.pop("1")
    pass_minutes(cluster)
    assert ("repair", "") in cluster.database.entries, "the worker that sleeps may still leave tombstones"
    cluster.workers["1"] = asleep
    pass_minutes(cluster)
    assert not any(repairing(cluster).values())
    assert ("repair", "") not in cluster.database.entries


def test_a_repair_beside_workers_asks_again_when_a_response_is_lost() -> None:
    cluster, lost = Cluster(), Counter[str]()
    cluster.write("x", 1)
    cluster.start()
    cluster.settle()
    both = ends_of(cluster)

    def cut(name: str, request: Callable[..., Any], *given: Any) -> Any:
        found = request(*given)
        if lost[name] > 0:
            lost[name] -= 1
            raise TransientError("the connection was cut")
        return found

    def again(function: Callable[[], Any]) -> Any:
        while True:
            with suppress(TransientError):
                return function()

    for end, name in ((both.target, "write"), (both.checkpoints, "read"), (both.checkpoints, "save")):
        setattr(end, name, partial(cut, name, getattr(end, name)))
    verifier = verifier_of(cluster, both)
    write = Upsert(TABLE, ("x",), {"pk": "x", "v": 1}, version(FIRST_EPOCH, 0), ("x",), 0)
    with Repairs(both, Silent(), wanted=True, monotonic=cluster.clock, retrying=again) as repairs:
        while repairs.waits:
            lost.update(read=1)
            cluster.clock.now += 1.0
            cluster.round()
            repairs.flush(verifier)
        del cluster.database.rows[TABLE]["x",]
        repairs.offer(Result("difference", Finding("missing", TABLE, ("x",), ("x",)), write))
        lost.update(read=1, write=1)
        repairs.flush(verifier)
        lost.update(read=1, save=1)
    assert not any(lost.values())
    assert cluster.stored == cluster.wanted != {}


def test_a_repair_that_reaches_nothing_as_it_begins_ends_with_that() -> None:
    cluster = Cluster()
    cluster.start()
    both = ends_of(cluster)

    def fail() -> Claimed:
        raise TransientError("there is no way to it")

    both.checkpoints.read = fail  # type: ignore[method-assign]
    with pytest.raises(TransientError), Repairs(both, Silent(), wanted=True, monotonic=cluster.clock):
        pass


def ends_of(cluster: Cluster) -> Ends:
    context, state = cluster.context(), cluster.running.pipeline.state
    assert state is not None
    store, tables = MemoryCheckpoints(cluster.database), {TABLE: context.tables[0]}
    comparing: Any = context.target
    ends = (context.config, context.client, context.table, context.target, comparing, store, tables)
    return Ends(*ends, context.mapping, state)


def verifier_of(cluster: Cluster, both: Ends) -> Verifier:
    examiner = Examiner(both.mapping, both.tables, both.comparing, Floor(0, 0))
    return Verifier(examiner, no, no, cluster.clock, cluster.clock)


def test_a_repair_brings_no_item_back_whose_tombstone_a_coordinator_purges_that_knows_nothing_of_it() -> None:
    """The coordinator's request to purge what an earlier repair needed takes minutes."""

    class Slow(MemoryTarget):
        meanwhile: Callable[[], None] = staticmethod(lambda: None)

        def purge(self, table: Table, below: int, spare: Sequence[DocumentId] = ()) -> int:
            act, Slow.meanwhile = Slow.meanwhile, staticmethod(lambda: None)
            act()
            return super().purge(table, below, spare)

    cluster = Cluster()
    cluster.target_type = Slow
    cluster.write("x", 1)
    cluster.start()
    cluster.settle()
    both = ends_of(cluster)
    verifier, repairs = verifier_of(cluster, both), Repairs(both, Silent(), wanted=True, monotonic=cluster.clock)
    write = Upsert(TABLE, ("x",), {"pk": "x", "v": 1}, version(FIRST_EPOCH, 0), ("x",), 0)

    def meanwhile() -> None:
        repairs.__enter__()
        del cluster.database.rows[TABLE]["x",]
        for _ in range(300):
            cluster.clock.now += 1.0
            for worker in cluster.workers.values():
                worker.step()
            repairs.flush(verifier)
        if not repairs.waits:
            repairs.offer(Result("difference", Finding("missing", TABLE, ("x",), ("x",)), write))
        cluster.delete("x")
        for _ in range(300):
            cluster.clock.now += 0.1
            for worker in cluster.workers.values():
                worker.step()

    Slow.meanwhile = staticmethod(meanwhile)
    MemoryCheckpoints(cluster.database).save([Save("repair", "", 0, encode(Repair("earlier", ended=True)))])
    cluster.rounds(100)
    repairs.flush(verifier)
    assert cluster.stored == cluster.wanted == {}


def pass_minutes(cluster: Cluster) -> None:
    for _ in range(100):
        cluster.clock.now += 1.0
        cluster.round()


def no(keys: Collection[Key]) -> Mapping[Key, bytes]:
    return {}


def repairing(cluster: Cluster) -> dict[str, str]:
    """The repairs for which each process leaves tombstones, by its slot."""
    beats = {
        id: decode("pulse", id, text) for (kind, id), (_, text) in cluster.database.entries.items() if kind == "pulse"
    }
    return {id: beat.repair for id, beat in beats.items() if isinstance(beat, Heartbeat)}


# Requests in doubt, at a target without transactions


def test_a_worker_says_that_its_writes_are_in_doubt_before_a_delete_relies_on_a_tombstone() -> None:
    cluster = Cluster(index=True, slots=2)
    losing, said = set[str](), list[float]()

    class Losing(MemoryIndex):
        def write(self, batch: Batch) -> Outcome:
            """The response of some items is lost once; what the entries say is noted as a tombstone is left."""
            items = {str(w.id[0]) for part in batch.parts for w in part.writes}
            if self.in_doubt and items:
                said.append(max(slot_of(cluster, slot).in_doubt for slot in cluster.slots))
            if lost := items & losing:
                losing.difference_update(lost)
                self.in_doubt.begin()
                raise TransientError("the response was lost")
            return super().write(batch)

    cluster.index_type = Losing
    cluster.start()
    cluster.settle()
    cluster.outlive_doubt()
    assert {slot_of(cluster, slot).in_doubt for slot in cluster.slots} == {0.0}
    losing.add("k0")
    cluster.write("k0", 0)
    cluster.delete("k0")
    cluster.settle()
    assert said
    assert min(said) > 0.0
    cluster.outlive_doubt()
    assert cluster.database.tombstones == {TABLE: {}}


def test_a_purge_waits_until_no_worker_has_writes_in_doubt() -> None:
    """Also for one that loses a response between the look for tombstones and their removal."""
    cluster = Cluster(index=True, slots=2)
    purges = list[float]()

    class Noting(MemoryIndex):
        def purge(self, table: Table, below: int, spare: Sequence[DocumentId] = ()) -> int:
            purges.append(max(slot_of(cluster, slot).in_doubt for slot in cluster.slots))
            return super().purge(table, below, spare)

    cluster.index_type = Noting
    for n in range(9):
        cluster.write(f"k{n}", n)
    cluster.start()
    for n in range(9):
        cluster.round()
        cluster.delete(f"k{n}")
    cluster.settle()
    assert cluster.database.tombstones[TABLE]
    assert not purges, "the workers began with an in-doubt window"
    cluster.outlive_doubt()
    assert cluster.database.tombstones == {TABLE: {}}
    assert set(purges) == {0.0}


def test_a_sweep_waits_for_a_worker_that_is_away_however_the_clock_is_set() -> None:
    """Or if the clock of another coordinator's node is wrong."""
    cluster = Cluster(index=True, slots=2)
    cluster.write("k", 1)
    cluster.start()
    cluster.settle()
    request(cluster, ())
    for _ in range(1000):
        cluster.round()
        if stage(cluster) == stages.SWEEPING:
            cluster.workers.pop("1", None)
    cluster.clock.skew = LONGEST_IN_DOUBT - 60
    cluster.rounds(100)
    assert stage(cluster) == stages.SWEEPING
    cluster.replace_coordinator()
    cluster.rounds(100)
    assert stage(cluster) == stages.SWEEPING
    cluster.clock.now += LONGEST_IN_DOUBT
    cluster.rounds(100)
    assert stage(cluster) == stages.FOLLOWING


def stage(cluster: Cluster) -> str:
    assert cluster.running.pipeline.state is not None
    return cluster.running.pipeline.state.stage


def test_a_child_in_another_slot_opens_with_the_in_doubt_window_of_its_parents_worker() -> None:
    cluster = Cluster(index=True, slots=2, shards=1)
    cluster.start()
    cluster.settle()
    cluster.outlive_doubt()
    (parent,) = cluster.source.open_shards(TABLE)
    held = cluster.workers[cluster.running.pipeline.shards[parent].slot]._held
    assert held is not None
    assert held._in_doubt is not None
    held._in_doubt.begin()
    cluster.source.split(TABLE, parent)
    cluster.rounds(100)
    windows = [worker._held._in_doubt for worker in cluster.workers.values() if worker._held is not None]
    assert [bool(window) for window in windows] == [True, True]


def test_a_worker_that_ends_in_good_order_leaves_no_window_to_the_next_and_one_that_is_killed_all_of_it() -> None:
    cluster = Cluster(index=True, slots=2)
    cluster.start()
    cluster.settle()
    cluster.outlive_doubt()
    cluster.workers["0"].end()
    assert [slot_of(cluster, slot).lingers for slot in cluster.slots] == [None, LONGEST_IN_DOUBT]
    cluster.restart_workers()
    cluster.rounds(10)
    assert [bool(slot_of(cluster, slot).in_doubt) for slot in cluster.slots] == [False, True]


@pytest.mark.parametrize("later", ["workers", "one process"])
def test_a_run_begins_with_the_in_doubt_window_that_another_engines_killed_run_left(later: str) -> None:
    cluster = Cluster(index=True, slots=2)
    cluster.start()
    cluster.settle()
    cluster.outlive_doubt()
    if later == "one process":
        cluster.running.end()  # only the workers are killed
        driver = Driver(cluster.context(), cluster.owner("one"), cluster.environment())
        driver.start(RESUMING)
        assert bool(driver._in_doubt)
        assert {slot_of(cluster, slot).lingers for slot in cluster.slots} == {None}
        return
    cluster.stop()
    run_in_one_process(cluster)
    cluster.start()
    cluster.rounds(3)
    assert min(slot_of(cluster, slot).in_doubt for slot in cluster.slots) > 0.0


def test_a_command_that_wrote_while_no_worker_was_there_is_in_doubt_for_all_of_them() -> None:
    cluster = Cluster(index=True, slots=2)
    cluster.start()
    cluster.settle()
    cluster.outlive_doubt()
    cluster.stop()
    cluster.start()
    cluster.rounds(5)
    assert not any(in_doubt(cluster).values())
    cluster.stop()
    retried = Save("retried", str(FIRST_EPOCH), 0, encode(Retried(version(FIRST_EPOCH, 1))))
    MemoryCheckpoints(cluster.database).save([retried])
    cluster.start()
    cluster.rounds(5)
    assert all(in_doubt(cluster).values())


def test_the_last_inserts_of_a_repair_that_has_ended_are_in_doubt_for_the_next_run() -> None:
    cluster = Cluster(index=True, slots=2)
    cluster.start()
    cluster.settle()
    cluster.outlive_doubt()
    cluster.stop()
    MemoryCheckpoints(cluster.database).save([Save("repair", "", 0, encode(Repair("of a command", ended=True)))])
    cluster.start()
    cluster.workers = {slot: cluster.worker(slot) for slot in cluster.slots}
    for worker in cluster.workers.values():
        worker.step()
    assert all(in_doubt(cluster).values())


class Lossy(MemoryIndex):
    """Loses requests: those of the next batch that ``loses`` chooses get no response, and are applied later."""

    loses: str | None = None  # the beginning of the batch's source
    dies = False  # the worker that sends it is killed
    lost: Sequence[Request] = ()

    def write(self, batch: Batch) -> Outcome:
        sent = [part for part in batch.parts if part.writes and type(self).loses]
        if not any(part.source.startswith(type(self).loses or "") for part in sent):
            return super().write(batch)
        type(self).loses, type(self).lost = None, self.requests(batch)
        if type(self).dies:
            raise Killed
        self.in_doubt.begin()
        raise TransientError("no response")


def in_doubt(cluster: Cluster) -> Mapping[str, bool]:
    """Which workers' deletes leave tombstones."""
    held = {slot: worker._held for slot, worker in cluster.workers.items()}
    return {slot: run is not None and bool(run._in_doubt) for slot, run in held.items()}


def deleted_before_a_late_request(cluster: Cluster, late: Request) -> None:
    """The item is deleted, the engine forgets that, and the request arrives: it must change nothing."""
    (key,) = late.write.id
    cluster.delete(key)
    cluster.settle()
    assert late.write.id not in cluster.stored
    cluster.clock.now += 100
    assert not cluster.context().target.carry_out(late)  # type: ignore[attr-defined]
    cluster.outlive_doubt()
    assert cluster.stored == cluster.wanted
    assert cluster.database.tombstones == {TABLE: {}}


@pytest.mark.parametrize("dies", [False, True], ids=["response lost", "worker killed"])
def test_a_scanned_page_that_is_applied_late_restores_no_item_that_another_worker_has_deleted(dies: bool) -> None:
    class Losing(Lossy): ...

    cluster = Cluster(index=True, slots=2, shards=1)
    cluster.index_type = Losing
    for n in range(6):
        cluster.write(f"k{n}", n)
    cluster.start()
    cluster.settle()
    cluster.outlive_doubt()
    assert not any(in_doubt(cluster).values())
    request(cluster, (("k1",), ("k2",)))
    Losing.loses, Losing.dies = "segment", dies
    while not Losing.lost:
        step(cluster)
    cluster.settle()
    assert all(in_doubt(cluster).values()), "also of the worker that has the stream"
    deleted_before_a_late_request(cluster, Losing.lost[0])


def test_a_worker_that_was_replaced_and_goes_on_leaves_tombstones_because_of_what_its_replacement_has_sent() -> None:
    """The coordinator has taken the slot away from the replacement, which is gone, so that both may claim it."""

    class Losing(Lossy):
        dies = True

    cluster = Cluster(index=True, slots=1, shards=1)
    cluster.index_type = Losing
    cluster.start()
    cluster.settle()
    cluster.outlive_doubt()
    first = cluster.workers.pop("0")
    cluster.workers["0"] = cluster.worker("0")
    cluster.rounds(5)
    cluster.outlive_doubt()
    Losing.loses = "shard"
    cluster.write("x", 5)
    while not Losing.lost:
        step(cluster)
    cluster.workers.clear()
    request(cluster, (("k1",),))
    cluster.rounds(100)
    cluster.workers["0"] = first
    cluster.settle()
    deleted_before_a_late_request(cluster, Losing.lost[0])


def step(cluster: Cluster) -> None:
    """A round in which workers may be killed and replaced."""
    cluster.clock.now += 0.05
    cluster.running.step()
    for slot, worker in list(cluster.workers.items()):
        try:
            worker.step()
        except Killed:
            cluster.workers[slot] = cluster.worker(slot)


# What is refused


def test_what_compares_no_versions_is_refused_for_several_workers() -> None:
    class Pristine(MemoryIndex):
        unguarded = True

    cluster = Cluster(index=True)
    cluster.index_type = Pristine
    with pytest.raises(ConfigError, match="pristine"):
        cluster.start()
    assert cluster.database.entries == {}


def test_a_store_that_only_one_process_can_write_is_refused() -> None:
    class Single(MemoryCheckpoints):
        claim_slot = None  # type: ignore[assignment]

    cluster = Cluster(index=True)
    context = replace(cluster.context(), checkpoints=Single(cluster.database))
    with pytest.raises(ConfigError, match="several workers"):
        Coordinator(context, cluster.owner("c"), cluster.environment(), cluster.slots)


def test_what_a_worker_waits_for_is_in_status_and_in_what_the_coordinator_reports() -> None:
    class Stuck(BaseException):
        """In production the coordinator is another process, and goes on."""

    class Down(MemoryIndex):
        attempts: int | None = None  # None: it is up

        def write(self, batch: Batch) -> Outcome:
            if Down.attempts is None:
                return super().write(batch)
            Down.attempts += 1
            if Down.attempts == 3:
                raise Stuck
            raise TransientError("connection refused")

    cluster = Cluster(slots=1, index=True, shards=1)
    cluster.index_type = Down
    cluster.write("a", 1)
    cluster.start()
    cluster.settle()
    cluster.write("b", 1)
    Down.attempts = 0
    with pytest.raises(Stuck):
        cluster.rounds(500)
    Down.attempts = None  # the coordinator only sees what is stored
    stored = cluster.context().checkpoints.read()
    coordinator, worker = progress(stored.entries, stored.counts, cluster.clock()).workers
    assert (coordinator.slot, worker.slot, worker.shards, worker.is_up) == ("coordinator", "0", 1, True)
    assert worker.waiting_for is not None
    assert worker.waiting_for.startswith("connection refused (failing for ")
    reported: list[Progress] = []
    cluster.running._reporter.observe = reported.append
    for _ in range(20):
        cluster.clock.now += 0.1
        cluster.running.step()
    assert [w.waiting_for for w in reported[-1].workers] == [None, worker.waiting_for]


def test_a_worker_that_finds_another_runs_later_epoch_ends_the_run_whatever_on_gap_says() -> None:
    """Each of the two would supersede the other with a rescan, in turns."""

    class Superseded(MemoryTarget):
        def recheck(self, tables: Sequence[Table]) -> Sequence[str]:
            if by_workers:
                raise GapFound("written by a later epoch", of_target=True, by_hand=True)
            return ()

    cluster, by_workers = Cluster(slots=3), False
    cluster.target_type = Superseded
    cluster.write("a", 1)
    cluster.start()
    cluster.settle()
    state = cluster.running.pipeline.state
    assert state is not None

    def turns() -> None:
        nonlocal by_workers
        for _ in range(1000):
            cluster.clock.now += 1
            by_workers = True
            for worker in cluster.workers.values():
                worker.step()
            by_workers = False
            cluster.running.step()

    with pytest.raises(GapFound, match="written by a later epoch"):
        turns()
    assert cluster.running.pipeline.state is not None
    assert cluster.running.pipeline.state.epoch == state.epoch


def test_a_gap_that_only_a_person_may_repair_ends_the_run_also_beside_one_that_on_gap_repairs() -> None:
    """The epoch after the other gap would repair both."""

    class Superseded(MemoryTarget):
        def recheck(self, tables: Sequence[Table]) -> Sequence[str]:
            if gaps:
                raise gaps.pop(0)
            return ()

    gaps: list[GapFound] = []
    cluster = Cluster(slots=3)
    cluster.target_type = Superseded
    cluster.write("a", 1)
    cluster.start()
    cluster.settle()
    state = cluster.running.pipeline.state
    assert state is not None
    gaps += [GapFound("it has lost rows", of_target=True), GapFound("a later epoch", of_target=True, by_hand=True)]
    for _ in range(100):
        cluster.clock.now += 1
        for worker in cluster.workers.values():
            worker.step()
    assert not gaps

    with pytest.raises(GapFound, match="a later epoch"):
        cluster.rounds(100)
    assert cluster.running.pipeline.state == state
    assert [gap.repaired for gap in cluster.running.pipeline.view.gaps.values()] == [None, None]


@pytest.mark.parametrize("one", ["worker", "coordinator"])
def test_one_that_was_replaced_does_not_log_what_its_own_run_has_written_as_another_ones(
    one: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Superseded(MemoryTarget):
        def recheck(self, tables: Sequence[Table]) -> Sequence[str]:
            if replaced:
                raise GapFound("written by a later epoch", of_target=True, by_hand=True)
            return ()

    cluster, replaced = Cluster(), False
    cluster.target_type = Superseded
    cluster.start()
    cluster.settle()
    old: Worker | Coordinator = cluster.running
    if one == "worker":
        old, cluster.workers["0"] = cluster.workers["0"], cluster.worker("0")
        cluster.workers["0"].step()
    else:
        cluster.replace_coordinator()
    before, replaced = dict(cluster.database.entries), True
    monkeypatch.setattr(binding, "RECHECK_INTERVAL", 0.0)  # before anything else tells it that it was replaced
    with pytest.raises(Fenced):
        old.step()
    assert "gap" not in caplog.messages
    assert not [place for place in cluster.database.entries if place[0] == "gap"]
    assert {p: e for p, e in cluster.database.entries.items() if before.get(p) != e} == {}
