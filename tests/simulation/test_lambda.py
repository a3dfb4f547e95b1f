"""Claims about the function on AWS Lambda: no seed diverges or counts twice, and wrong designs are noticed."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from replicator.engine import function, function_cleanup
from replicator.engine.function import Function
from replicator.engine.lane_run import LaneRun
from replicator.engine.retry import Stopped
from replicator.errors import Fenced
from replicator.pipeline import batching, lanes
from replicator.pipeline.batching import PageBuffer
from replicator.source.lambda_event import ShardBatch
from tests.simulation.lambda_mirrors import ForgetfulWorld, MirrorWorld
from tests.simulation.lambda_world import SlowHookWorld, SlowWorld, World, simulate

SEEDS = int(os.environ.get("REPLICATOR_SEEDS", "400")) // 150
SLOW_SEEDS = 10 * SEEDS  # of few shards
MIRROR_SEEDS = 20 * SEEDS
FAILED_ONCE = (105, 9086)
"""Events of shards without a lane: one had ended before the epoch, one the stream no longer lists."""
MOST = 200  # seeds that may pass until a wrong design is noticed
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _silent() -> None:
    logging.getLogger("replicator").setLevel(logging.CRITICAL)


@pytest.mark.timeout(60 + 6 * SEEDS)
def test_whatever_happens_to_invocations_the_target_converges_and_nothing_counts_twice() -> None:
    simulate_all(range(SEEDS))


@pytest.mark.timeout(60 + 6 * SLOW_SEEDS)
def test_however_slow_listings_are_invocations_of_half_a_minute_add_shards_and_record_gaps() -> None:
    simulate_all(range(SLOW_SEEDS), SlowWorld)


@pytest.mark.timeout(60 + 6 * SLOW_SEEDS)
def test_however_slow_the_hook_is_invocations_store_what_is_delivered_and_say_what_is_not() -> None:
    simulate_all(range(SLOW_SEEDS), SlowHookWorld)


@pytest.mark.timeout(60 + 6 * MIRROR_SEEDS)
def test_without_transactions_no_late_request_changes_the_copy_and_tombstones_are_purged() -> None:
    simulate_all(range(MIRROR_SEEDS), MirrorWorld)


def simulate_all(seeds: Iterable[int], kind: type[World] = World) -> None:
    for seed in seeds:
        simulate(seed, kind)


@pytest.mark.parametrize("seed", FAILED_ONCE)
def test_a_seed_that_failed_once_holds(seed: int) -> None:
    simulate(seed)


def test_a_seed_of_slow_listings_that_failed_once_holds() -> None:
    """A shard whose records were trimmed, and its parent's too: no event came, and the schedule listed once."""
    simulate(101, SlowWorld)


def trusts_the_event(patch: Patch) -> None:
    patch.setattr(LaneRun, "_continues", lambda *_: True)


def looks_at_the_first_record_of_a_batch_alone(patch: Patch) -> None:
    continues: Any = LaneRun._continues
    patch.setattr(LaneRun, "_continues", lambda self, batch, left: continues(self, batch, left[:1]))


def takes_the_parent_for_finished(patch: Patch) -> None:
    patch.setattr(lanes, "unended_ancestors", lambda *_: [])


def stores_what_is_delivered_again(patch: Patch) -> None:
    def left_of(self: LaneRun, batch: ShardBatch) -> object:
        return () if self.pipeline.shards[batch.shard].ended else batch.records

    patch.setattr(LaneRun, "left_of", left_of)
    patch.setattr(LaneRun, "_continues", lambda *_: True)


def never_looks_at_idle_shards(patch: Patch) -> None:
    patch.setattr(Function, "_idle_shard", lambda *_: None)


def forgets_what_earlier_invocations_saw_missing(patch: Patch) -> None:
    patch.setattr(function, "ORPHAN_PAUSE", -1.0)


def goes_on_counting_after_minutes_without_a_listing(patch: Patch) -> None:
    """The parent may have been listed meanwhile, and be omitted again."""
    patch.setattr(function, "ORPHAN_PAUSE", math.inf)


def starts_the_clock_over_with_each_invocation(patch: Patch) -> None:
    """The listings of earlier invocations count, but the minutes that they must cover begin with each one."""
    resumed: Any = function._discovery

    def begun(view: Any, now: float) -> Any:
        found = resumed(view, now)
        found.orphaned = {id: replace(orphan, since=now) for id, orphan in found.orphaned.items()}
        return found

    patch.setattr(function, "_discovery", begun)


def gives_up_once_another_invocation_lists(patch: Patch) -> None:
    claim: Any = Function._claim_listing

    def once(self: Function, run: int) -> Any:
        return getattr(self, "claimed", None) or claim(self, run)

    def add(self: Function, shard: str | None, run: int) -> object:
        self.claimed = None  # type: ignore[attr-defined]
        self.claimed = claim(self, run)  # type: ignore[attr-defined]
        return added(self, shard, run)

    added: Any = Function._add
    patch.setattr(Function, "_add", add)
    patch.setattr(Function, "_claim_listing", once)


def takes_what_it_had_no_time_for_as_stored(patch: Patch) -> None:
    accept: Any = LaneRun._accept

    def accepts(*given: Any) -> None:
        with contextlib.suppress(Stopped):
            accept(*given)

    patch.setattr(LaneRun, "_accept", accepts)


def stores_a_page_or_nothing(patch: Patch) -> None:
    patch.setattr(PageBuffer, "divide", lambda _: None)


def begins_with_all_there_is(patch: Patch) -> None:
    """Which is divided, but only once it took long: a batch that is begun when time is over is made for nothing."""
    divide: Any = PageBuffer.divide

    def at_once(buffer: Any) -> None:
        divide(buffer)
        buffer._most = math.inf

    patch.setattr(PageBuffer, "divide", at_once)
    patch.setattr(batching, "MOST_SECONDS", math.inf)


def leaves_a_batch_in_flight(patch: Patch) -> None:
    """The container's next use of the connection is a bug then."""
    patch.setattr(Function, "_collect", lambda _: None)


def rests_as_if_all_requests_were_answered(patch: Patch) -> None:
    rest: Any = LaneRun.rest

    def rests(self: LaneRun) -> None:
        if self._in_doubt is not None:
            self._until, self._begun = 0.0, self._in_doubt.begun
        rest(self)

    patch.setattr(LaneRun, "rest", rests)


def takes_a_killed_container_for_one_that_rested(patch: Patch) -> None:
    patch.setattr(lanes, "_own_until", lambda slot, now: slot.until or 0.0)


def works_on_without_saying_so(patch: Patch) -> None:
    """A container that kept its lane: if it is killed then, the lane is taken for one that rests."""
    patch.setattr(LaneRun, "wake", lambda self: setattr(self, "_rests", False))


def keeps_a_lane_whose_note_was_not_heard(patch: Patch) -> None:
    """That it rests is stored, and the container goes on as if it were not."""

    def rest(self: Function) -> bool:
        if self._held is not None:
            with contextlib.suppress(Fenced, Stopped):
                self._held.rest()
        return True

    patch.setattr(Function, "_rest", rest)


def purges_whatever_is_in_doubt(patch: Patch) -> None:
    patch.setattr(lanes, "may_purge", lambda *_: True)


def takes_a_purge_that_was_cut_short_for_a_whole_one(patch: Patch) -> None:
    patch.setattr(function_cleanup, "is_whole", lambda *_, **__: True)


def leaves_lanes_without_shards_alone(patch: Patch) -> None:
    patch.setattr(lanes, "unattended", lambda _: [])


NOTICED: dict[Callable[[Patch], None], tuple[int, str]] = {
    looks_at_the_first_record_of_a_batch_alone: (78, "changes were counted"),
    trusts_the_event: (7, "changes were counted"),
    takes_the_parent_for_finished: (32, "no invocation succeeds any more: the invocation's time was over"),
    stores_what_is_delivered_again: (1, "changes were counted"),
    never_looks_at_idle_shards: (17, "the copy differs"),
}
"""A seed that notices each wrong design, and what it says."""

SLOWLY_NOTICED: dict[Callable[[Patch], None], tuple[int, str]] = {
    forgets_what_earlier_invocations_saw_missing: (0, "missing for good is no gap"),
    goes_on_counting_after_minutes_without_a_listing: (1, "nothing was lost, but there are gaps"),
    starts_the_clock_over_with_each_invocation: (0, "missing for good is no gap"),
    gives_up_once_another_invocation_lists: (1, "no invocation|for good is no gap succeeds any more"),
}


MIRRORS_NOTICED: dict[Callable[[Patch], None], tuple[int, str]] = {
    rests_as_if_all_requests_were_answered: (3, "tombstones are never purged"),
    takes_a_killed_container_for_one_that_rested: (9, "the copy differs"),
    works_on_without_saying_so: (8, "the copy differs"),
    purges_whatever_is_in_doubt: (43, "the copy differs"),
    takes_a_purge_that_was_cut_short_for_a_whole_one: (22, "tombstones are never purged"),
    leaves_lanes_without_shards_alone: (8, "tombstones are never purged"),
}


HOOKS_NOTICED: dict[Callable[[Patch], None], tuple[int, str]] = {
    takes_what_it_had_no_time_for_as_stored: (22, "a response says that records are stored that are not"),
    stores_a_page_or_nothing: (22, "invocations store no more"),
    begins_with_all_there_is: (22, "invocations store no more"),
    leaves_a_batch_in_flight: (10, "a batch is in flight"),
}


def assert_noticed(seed: int, said: str, world: type[World] = World) -> None:
    """By this seed, which the design is listed with, or one of the first ones."""
    with pytest.raises(AssertionError, match=said):
        simulate_all([seed, *range(MOST)], world)


@pytest.mark.parametrize("design", HOOKS_NOTICED, ids=lambda design: design.__name__)
@pytest.mark.timeout(300)
def test_a_wrong_design_is_noticed_where_hooks_are_slow(design: Callable[[Patch], None], monkeypatch: Patch) -> None:
    design(monkeypatch)
    assert_noticed(*HOOKS_NOTICED[design], SlowHookWorld)


@pytest.mark.parametrize("design", MIRRORS_NOTICED, ids=lambda design: design.__name__)
@pytest.mark.timeout(300)
def test_a_wrong_design_is_noticed_where_there_are_no_transactions(
    design: Callable[[Patch], None], monkeypatch: Patch
) -> None:
    design(monkeypatch)
    assert_noticed(*MIRRORS_NOTICED[design], MirrorWorld)


@pytest.mark.timeout(300)
def test_a_lane_that_is_kept_though_its_note_was_not_heard_is_noticed_where_checkpoints_lose_responses(
    monkeypatch: Patch,
) -> None:
    keeps_a_lane_whose_note_was_not_heard(monkeypatch)
    assert_noticed(8, "^$|the copy differs", ForgetfulWorld)


@pytest.mark.parametrize("design", SLOWLY_NOTICED, ids=lambda design: design.__name__)
@pytest.mark.timeout(300)
def test_a_wrong_design_is_noticed_where_listings_are_slow(design: Callable[[Patch], None], monkeypatch: Patch) -> None:
    design(monkeypatch)
    assert_noticed(*SLOWLY_NOTICED[design], SlowWorld)


@pytest.mark.parametrize("design", NOTICED, ids=lambda design: design.__name__)
@pytest.mark.timeout(300)
def test_a_wrong_design_is_noticed(design: Callable[[Patch], None], monkeypatch: Patch) -> None:
    design(monkeypatch)
    assert_noticed(*NOTICED[design])
