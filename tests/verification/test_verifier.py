"""A difference counts only if lag cannot explain it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from replicator.errors import GapFound, TransientError
from replicator.hooks.hook import Document, DocumentMapping, Hook
from replicator.items.item import Item
from replicator.operations.verify import positions_of
from replicator.pipeline import stages
from replicator.pipeline.coordination import COORDINATOR
from replicator.state import Entry, Heartbeat, Owner, PipelineState, ShardState, Slot, encode
from replicator.testing.memory import body
from replicator.verification.compared_ids import FEWEST, ComparedIds
from replicator.verification.differences import (
    LOOKS,
    MOST_CHANGES,
    NO_RUN,
    STALLED,
    Candidate,
    Finding,
    Positions,
    Verdict,
    at_most,
    digest,
    is_due,
    looked_again,
    positions,
    verdict,
)
from replicator.verification.verifier import MOST_PENDING
from replicator.version import FIRST_EPOCH, version
from tests.verification.world import NAME, World

DIFFERENT = Finding("different", NAME, ("a",), ("a",), 7, ("n",))
MISSING = Finding("missing", NAME, ("a",), ("a",))


def seen(finding: Finding, looks: int = 1) -> Candidate:
    return Candidate(finding, b"image", 10.0, "segment:0", looks)


def test_what_is_equal_on_a_second_look_is_no_difference() -> None:
    assert verdict(seen(DIFFERENT), None, b"image") is Verdict.GONE


def test_the_same_item_and_the_same_document_still_different_is_a_difference() -> None:
    assert verdict(seen(DIFFERENT), replace(DIFFERENT, fields=("m",)), b"image") is Verdict.CONFIRMED


@pytest.mark.parametrize(
    ("after", "image"),
    [(DIFFERENT, b"other"), (replace(DIFFERENT, version=8), b"image"), (MISSING, b"image")],
    ids=["the item changed", "the document changed", "the document is gone"],
)
def test_what_changed_in_between_is_a_candidate_again(after: Finding, image: bytes) -> None:
    assert verdict(seen(DIFFERENT), after, image) is Verdict.AGAIN
    assert looked_again(seen(DIFFERENT, 5), after, image, 20.0, steady=True).looks == 1


def test_an_item_that_was_not_read_between_two_equal_reads_of_its_document_proves_nothing() -> None:
    assert verdict(seen(DIFFERENT, 0), DIFFERENT, b"image") is Verdict.AGAIN
    assert looked_again(seen(DIFFERENT, 0), DIFFERENT, b"image", 20.0, steady=False).looks == 0
    assert looked_again(seen(DIFFERENT, 0), DIFFERENT, b"image", 20.0, steady=True).looks == 1


def test_a_missing_document_is_looked_at_several_times_because_no_version_vouches_for_it() -> None:
    candidate = seen(MISSING, 0)
    for _ in range(LOOKS["missing"]):
        assert verdict(candidate, MISSING, b"image") is Verdict.AGAIN
        candidate = looked_again(candidate, MISSING, b"image", 20.0, steady=True)
    assert verdict(candidate, MISSING, b"image") is Verdict.CONFIRMED


def test_a_candidate_is_due_once_every_shard_is_stored_beyond_it() -> None:
    assert not is_due(seen(DIFFERENT), None)
    assert not is_due(seen(DIFFERENT), 10.5)
    assert is_due(seen(DIFFERENT), 12.0)


def test_an_items_digest_depends_on_its_content_alone() -> None:
    one = digest(b'{"a":{"N":"1"},"s":{"SS":["x","y"]},"l":{"L":[{"S":"x"},{"S":"y"}]}}')
    assert digest(b'{"s":{"SS":["y","x"]},"l":{"L":[{"S":"x"},{"S":"y"}]},"a":{"N":"1"}}') == one
    assert digest(b'{"a":{"N":"1"},"s":{"SS":["x","y"]},"l":{"L":[{"S":"y"},{"S":"x"}]}}') != one
    assert digest(None) not in (one, digest(b"{}"))


STATE = PipelineState(FIRST_EPOCH, "stream", "arn", "id", stages.FOLLOWING)
SHARDS = {
    "old": ShardState(None, None, whole=False, since=0.0, ended=True, through=50.0),
    "one": ShardState("old", None, whole=True, since=50.0, through=90.0),
    "two": ShardState("old", None, whole=True, since=50.0, through=80.0),
}
BEAT = Heartbeat(100.0, "live")


def test_positions_are_those_of_the_shard_that_is_furthest_behind() -> None:
    assert positions(STATE, FIRST_EPOCH, SHARDS, BEAT, 101.0).through == 80.0
    unread = {**SHARDS, "two": replace(SHARDS["two"], through=None)}
    assert positions(STATE, FIRST_EPOCH, unread, BEAT, 101.0).through is None
    childless = {"old": replace(SHARDS["old"], since=40.0)}
    assert positions(STATE, FIRST_EPOCH, childless, BEAT, 101.0).through == 40.0


@pytest.mark.parametrize(
    ("state", "beat", "now", "reason"),
    [
        (STATE, None, 101.0, NO_RUN),
        (STATE, Heartbeat(100.0, "stopped"), 101.0, NO_RUN),
        (STATE, BEAT, 200.0, NO_RUN),
        (replace(STATE, epoch=FIRST_EPOCH + 1), BEAT, 101.0, "a resync has begun"),
        (replace(STATE, stage=stages.SCANNING), BEAT, 101.0, "the backfill is still in progress"),
        (replace(STATE, stage=stages.SWEEPING), BEAT, 101.0, "the backfill is still in progress"),
    ],
)
def test_why_no_difference_can_be_confirmed(
    state: PipelineState, beat: Heartbeat | None, now: float, reason: str
) -> None:
    assert positions(state, FIRST_EPOCH, SHARDS, beat, now).blocked_by.startswith(reason)


@pytest.mark.parametrize(
    ("first", "per_second", "ahead"),
    [(-5.0, 1.0, 60.0), (59.5, 0.0, 0.0)],
    ids=["the run's clock is ahead", "the clock was set back"],
)
def test_lag_is_no_difference_whatever_the_clocks_say(first: float, per_second: float, ahead: float) -> None:
    """By its own clock the run has read beyond the moment that an item was read, but not that item's last change."""
    world = World(pauses=True)
    verifier, read = world.verifier(), world.now + first
    list(verifier.settle(Positions(read, ahead=ahead)))
    world.put("k0", n=1)
    list(verifier.scanned(world.scanned(), world.now, "segment:0"))
    for _ in range(59):
        world.now, read = world.now + 1, read + per_second
        world._take(verifier.settle(Positions(read, ahead=ahead)), None)
    assert world.results == []
    assert verifier.pending == 1
    assert positions(STATE, FIRST_EPOCH, SHARDS, replace(BEAT, at=161.0), 101.0).ahead == 60.0


def test_each_worker_says_by_its_own_clock_until_when_it_has_read() -> None:
    noted, given = Slot(0, "", begun=7), replace(SHARDS["one"], slot="0")
    entries = [
        Entry("owner", "", 7, encode(Owner("run", "here", 1, 0.0))),
        Entry("slot", COORDINATOR, 1, encode(noted)),
        Entry("pipeline", "", 1, encode(STATE)),
        *(Entry("shard", id, 1, encode(given)) for id in SHARDS),
        *(Entry("pulse", id, 1, encode(replace(BEAT, at=101.0 + ahead))) for id, ahead in AHEAD.items()),
    ]
    assert positions_of(entries, FIRST_EPOCH, 101.0).ahead == 60.0


AHEAD = {"": 20.0, "0": 60.0, "1": 90.0}  # of a coordinator, a worker, and a slot of an earlier run


def test_an_equal_copy_is_equal_whatever_is_written_meanwhile() -> None:
    """Not a single false alarm, from many seeds, with lag and writes between any two reads."""
    for seed in range(1500):
        world = World(seed)
        for n in range(world.keys):
            world.put(f"k{n}", n=n)
        world.verified(world.verifier())
        assert world.found() == {}, f"seed {seed}"


def test_what_was_changed_behind_its_back_is_found() -> None:
    world = World(pauses=True)
    for n in range(6):
        world.put(f"k{n}", n=n)
    world.catch_up()
    rows = world.database.rows[NAME]
    del rows["k0",]
    rows["k1",] = rows["k1",][0], body({"pk": "k1", "n": -1})
    rows["x",] = rows["k2",]
    rows["k3",] = version(FIRST_EPOCH, 0) - 1, rows["k3",][1]
    verifier = world.verifier()
    with pytest.raises(AssertionError, match="4 candidates"):
        world.verified(verifier, rounds=3)
    for _ in range(6):
        world.now += 10
        world._take(verifier.settle(world.positions), None)
    assert world.found() == {"k0": "missing", "k1": "different", "x": "extra", "k3": "different"}
    fields = {r.finding.id[0]: r.finding.fields for r in world.results}
    assert (fields["k1"], fields["k3"]) == (("n",), ("version",))


def test_items_whose_documents_the_scan_compared_are_not_looked_up_again() -> None:
    world = World(pauses=True)
    for n in range(6):
        world.put(f"k{n}", n=n)
    world.catch_up()
    world.database.rows[NAME]["x",] = world.database.rows[NAME]["k2",]
    verifier, looked_up = world.verifier(), list[str]()
    verifier.exists = lambda keys: looked_up.extend(key[0] for key in keys) or world.read(keys)  # type: ignore[func-returns-value]
    list(verifier.scanned(world.scanned()[:4], world.now, "segment:0"))
    list(verifier.walked(NAME, sorted(world.database.rows[NAME]), "table:t"))
    assert sorted(looked_up) == ["k4", "k5", "x"]
    assert verifier.pending == 1


def test_a_document_that_another_table_has_as_well_is_looked_up() -> None:
    compared = ComparedIds()
    compared.add("one", [("k1",), ("k2", "a")])
    assert compared.others("one", [("k1",), ("k2",), ("k2", "a"), ("k2", "b")]) == [("k2",), ("k2", "b")]
    assert compared.others("two", [("k1",)]) == [("k1",)]


def test_compared_ids_are_remembered_up_to_a_bound_and_no_other_id_is_taken_for_one_of_them() -> None:
    compared, count = ComparedIds(most=2 * FEWEST), 4 * FEWEST
    for start in range(0, count, 1000):
        compared.add(NAME, [(f"k{n}",) for n in range(start, min(count, start + 1000))])
        if start == FEWEST // 2000 * 1000:
            assert len(compared.others(NAME, [(f"k{n}",) for n in range(start)])) < start / 5, "most are remembered"
    assert compared.slots == 2 * FEWEST
    assert FEWEST < compared.count <= compared.slots
    assert len(compared.others(NAME, [(f"k{n}",) for n in range(count)])) == count - compared.count
    others = [(f"x{n}",) for n in range(count)]
    assert compared.others(NAME, others) == others


def test_without_a_run_candidates_are_unconfirmed() -> None:
    world = World(pauses=True, running=False)
    world.put("k0", n=1)
    world.verified(world.verifier())
    assert world.found("unconfirmed") == {"k0": "missing"}
    assert world.results[0].reason == "no run"


def test_where_positions_stand_still_candidates_are_unconfirmed() -> None:
    world = World(pauses=True)
    world.put("k0", n=1)
    verifier = world.verifier()
    list(verifier.scanned(world.scanned(), world.now, "segment:0"))
    assert list(verifier.settle(world.positions)) == []
    world.now += STALLED - 1
    assert list(verifier.settle(world.positions)) == []
    world.now += 2
    assert [r.outcome for r in verifier.settle(world.positions)] == ["unconfirmed"]


def test_an_item_that_changes_more_often_than_the_copy_follows_does_not_keep_a_pass_from_ending() -> None:
    world = World(pauses=True)
    world.put("k0", n=0)
    verifier, looks = world.verifier(), 0
    list(verifier.scanned(world.scanned(), world.now, "segment:0"))
    while verifier.pending and looks < 2 * MOST_CHANGES:
        looks += 1
        world.now += 3
        world.put("k0", n=looks)
        while len(world.backlog) > 1:
            world.apply()
        found = list(verifier.settle(Positions(world.now)))
    assert looks == MOST_CHANGES
    assert [(r.outcome, "changes more often than the copy" in r.reason) for r in found] == [("unconfirmed", True)]


def test_parked_items_are_told_apart_and_reported_once() -> None:
    world = World(pauses=True)
    world.put("k0", n=1)
    verifier = world.verifier(parked={'["k0"]'})
    for _ in range(2):
        world._take(verifier.scanned(world.scanned(), world.now, "segment:0"), None)
    assert world.found("parked") == {"k0": "missing"}
    assert len(world.results) == 1
    assert verifier.pending == 0


def test_an_item_that_the_hook_comes_to_refuse_is_parked_whatever_its_documents_are_called() -> None:
    def hook(item: Item) -> list[Document]:
        if "bad" in item:
            raise ValueError("bad")
        return [Document("a", {})]

    world = World(pauses=True)
    world.put("k0")
    verifier = world.verifier()
    verifier.examiner.mapping = DocumentMapping(Hook("hook", hook, "", declared=True), (NAME,))
    list(verifier.scanned(world.scanned(), world.now, "segment:0"))
    world.put("k0", bad=True)
    world.catch_up()
    for _ in range(3):
        world.now += 10
        world._take(verifier.settle(world.positions), None)
    assert [r.outcome for r in world.results] == ["parked"]
    assert verifier.pending == 0


def test_documents_of_items_that_expired_are_kept() -> None:
    world = World(pauses=True)
    world.put("k0", n=1)
    world.catch_up()
    del world.items["k0"]
    world.verified(world.verifier(keeps_expired=True))
    assert world.found("kept") == {"k0": "extra"}


def test_nothing_more_is_read_while_too_many_candidates_wait() -> None:
    world = World(pauses=True, running=False)
    for n in range(MOST_PENDING):
        world.items[f"k{n}"] = b'{"pk":{"S":"k%d"}}' % n
    verifier = world.verifier()
    list(verifier.scanned(world.scanned(), world.now, "segment:0"))
    assert verifier.full
    assert len(list(verifier.settle(world.positions))) == MOST_PENDING
    assert not verifier.full


@pytest.mark.parametrize(
    ("found", "of", "bound"), [(0, 41_233, 0.0000727), (0, 10, 0.2589), (5, 100, 0.1028), (2000, 4000, 0.513)]
)
def test_the_bound_of_a_sample(found: int, of: int, bound: float) -> None:
    """As tables of Clopper and Pearson's one-sided bound have it."""
    assert at_most(found, of) == pytest.approx(bound, rel=0.01)


def test_no_difference_is_confirmed_before_it_is_checked_whose_the_items_were() -> None:
    """A check that fails is made again, with what it is about; a repair would remove what another table lacks."""
    world = World(pauses=True)
    world.put("k0", n=1)
    world.catch_up()
    items = world.scanned()
    world.items.clear()
    errors = [TransientError("throttled"), GapFound("the table was deleted and created again")]

    def check_same() -> None:
        if errors:
            raise errors.pop(0)

    verifier = world.verifier(check_same=check_same)
    list(verifier.walked(NAME, [items[0][0]], "table:t"))
    world.now += 10
    for error in (TransientError, GapFound):
        with pytest.raises(error):
            list(verifier.settle(world.positions))
        assert verifier.pending == 1
    for _ in range(6):
        world.now += 10
        world._take(verifier.settle(world.positions), None)
    assert world.found() == {"k0": "extra"}
