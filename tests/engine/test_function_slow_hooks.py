"""Invocations with a slow hook: a response names what is not stored, and each invocation stores something."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from replicator.config.engine import BESIDES, shortest_timeout
from replicator.engine.aws_lambda import MARGIN
from replicator.engine.context import RunContext
from replicator.engine.function import IDLE, LAST_RESPONSE, Deadline, Function
from replicator.engine.retry import Stopped
from replicator.errors import TransientError
from replicator.hooks.hook import Document, Hook
from replicator.hooks.time_limit import HookInterrupted, HookTimeout
from replicator.pipeline.pipeline import Pipeline
from replicator.state import ShardState, decode
from tests.engine.function_stack import Stack
from tests.engine.overlapping import OverlappingTarget

SHORT = 27.0  # seconds: the shortest Timeout, less the margin


class Slow(Stack):
    """Twenty items, copied, and a hook that takes ``seconds`` for each. ``ended``: when one is interrupted."""

    def __init__(self, **config: Any) -> None:
        self.seconds, self.ended = 0.0, math.inf
        super().__init__(shards=1, hook=Hook("slow", self._hook, "f", declared=False), **config)
        self.write_all(0)
        self.backfill()

    def _hook(self, item: Mapping[str, Any]) -> dict[str, Any]:
        self.clock.now += self.seconds
        if self.clock.now >= self.ended:
            raise HookInterrupted
        return {**item, "v": int(item["v"])}

    def write_all(self, first: int) -> None:
        for n in range(20):
            self.write(f"k{n}", first + n)

    def until_over(self) -> None:
        self._until = self.clock.now + SHORT

    @property
    def read(self) -> int:
        """How many changes of the stream are stored."""
        return sum(c.read for source, c in self.database.counts.items() if source.startswith("shard:"))

    def state(self, shard: str) -> ShardState:
        state = decode("shard", shard, self.database.entries["shard", shard][1])
        assert isinstance(state, ShardState)
        return state


def invoked(stack: Slow) -> list[str]:
    """What the next event's response says is not stored; ["all"] if the invocation fails, and [] at the end."""
    (shard,) = stack.mapping.ready()
    batch = stack.mapping.event(shard)
    if batch is None:
        return []
    stack.until_over()
    try:
        response = stack.container().invoke(batch)
    except TransientError:
        return ["all"]
    stack.mapping.done(shard, batch, response)
    return [failure["itemIdentifier"] for failure in response["batchItemFailures"]]


@pytest.mark.parametrize("seconds", [0.5, 2.0, 10.0, 26.0])
def test_each_invocation_stores_some_changes_however_slow_the_hook_is_and_names_the_first_of_the_others(
    seconds: float,
) -> None:
    stack = Slow()
    stack.write("k0", 99)
    stack.deliver(stack.container())
    stack.write_all(100)
    stack.seconds, before, left = seconds, stack.read, ["all"]
    while left:
        left = invoked(stack)
        (shard,) = stack.mapping.ready()
        event = stack.mapping.event(shard)
        first = [] if event is None else [event["Records"][0]["dynamodb"]["SequenceNumber"]]
        assert left == first, "the mapping delivers again from the first record that is not stored"
        assert stack.read > before
        before = stack.read
    assert stack.stored == stack.wanted


@pytest.mark.parametrize("seconds", [0.5, 2.0, 10.0])
def test_what_an_event_does_not_continue_is_read_page_by_page_and_stored_in_parts_by_events_and_the_schedule(
    seconds: float,
) -> None:
    stack = Slow()
    stack.write_all(100)
    (shard,) = stack.mapping.ready()
    given_up = stack.mapping.event(shard)
    assert given_up is not None
    stack.mapping.drop(shard, given_up)
    stack.write("k1", 500)
    stack.seconds, before = seconds, stack.read
    for n in range(20):
        if stack.stored == stack.wanted:
            break
        if n % 2:
            invoked(stack)
        else:
            stack.clock.now += IDLE + 1
            stack.until_over()
            stack.container().invoke({})
        assert stack.read > before
        before = stack.read
    assert stack.stored == stack.wanted
    assert not stack.gaps


def test_a_slow_hook_does_not_make_the_shards_position_older_than_what_is_stored_nor_newer() -> None:
    stack = Slow()
    stack.write("k0", 99)
    stack.deliver(stack.container())
    for n in range(6):
        stack.write(f"k{n}", 100 + n)
        stack.clock.now += 3600.0
    stack.seconds = SHORT + 1
    (shard,) = stack.mapping.ready()
    batch = stack.mapping.event(shard)
    assert batch is not None
    created = [record["dynamodb"]["ApproximateCreationDateTime"] for record in batch["Records"]]
    for n in range(6):
        invoked(stack)
        state = stack.state(shard)
        assert state.sequence == batch["Records"][n]["dynamodb"]["SequenceNumber"]
        assert state.created == state.through == created[n]
        assert state.since <= created[n]


def test_a_hook_that_is_interrupted_as_time_is_over_parks_nothing_and_what_was_stored_before_it_stays() -> None:
    stack = Slow()
    stack.write("k0", 99)
    stack.deliver(stack.container())
    stack.write_all(100)
    stack.seconds, stack.ended, before = 20.0, stack.clock.now + SHORT + 1.5, stack.read
    (first,) = invoked(stack)
    assert stack.read == before + 1
    (shard,) = stack.mapping.ready()
    event = stack.mapping.event(shard)
    assert event is not None
    assert first == event["Records"][0]["dynamodb"]["SequenceNumber"]
    stack.ended, stack.seconds = math.inf, 0.0
    stack.deliver(stack.container())
    assert stack.stored == stack.wanted
    assert not [kind for kind, _ in stack.database.entries if kind == "parked"]


class NoResponse(OverlappingTarget):
    """One that never has a response."""

    def ready(self) -> bool:
        return False


@pytest.mark.parametrize("event", [True, False])
def test_an_invocation_waits_for_the_response_to_its_last_batch_for_seconds_and_gives_the_connection_up(
    event: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``Stopped`` has the container close its connections."""
    stack = Slow()
    stack.write_all(100)
    stack.target_type = partial(NoResponse, chance=random.Random(1))  # type: ignore[assignment]
    deadline = Deadline(stack.clock)
    context = stack.context()
    function = Function(context, stack.owner("container"), replace(stack.environment(), stop=deadline))
    (shard,) = stack.mapping.ready()
    stack.clock.now += IDLE + 1
    stack.seconds, over = 2.0, stack.clock.now + SHORT
    deadline.move(SHORT)
    monkeypatch.setattr(time, "sleep", lambda seconds: setattr(stack.clock, "now", stack.clock.now + seconds))
    with pytest.raises(Stopped, match="did not answer the last batch of this invocation within 2 s"):
        function.invoke(stack.mapping.event(shard) or {} if event else {})
    assert over + LAST_RESPONSE <= stack.clock.now < over + MARGIN
    assert isinstance(context.target, OverlappingTarget)
    assert context.target.in_flight
    function.close()  # as the container does, which waits no longer
    assert stack.clock.now < over + MARGIN


class Hanging(Stack):
    """A hook that hangs on every image once it ``hangs``. ``calls``: of it that hung, in the last batch."""

    def __init__(self, *, own_ids: bool, history: bool) -> None:
        self.hangs, self.calls, self._history = False, 0, history
        function = self._documents if own_ids else self._document
        super().__init__(shards=1, hook=Hook("hanging", function, "f", declared=own_ids))

    def context(self) -> RunContext:
        made = super().context()
        (table,) = made.tables
        return replace(made, tables=(replace(table, options={"history": {}} if self._history else {}),))

    def _document(self, item: Mapping[str, Any]) -> dict[str, Any]:
        self.calls += self.hangs
        if self.hangs:
            raise HookTimeout(10.0)
        return {"v": int(item["v"])}

    def _documents(self, item: Mapping[str, Any]) -> list[Document]:
        body = self._document(item)
        return [Document(f"d{body['v']}", body)]


@pytest.mark.parametrize("history", [False, True])
@pytest.mark.parametrize("own_ids", [False, True])
def test_a_hook_that_hangs_is_called_for_a_change_no_more_often_than_check_counts(
    own_ids: bool, history: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the item is parked, with whatever its entries keep of it by then."""
    stack, most = Hanging(own_ids=own_ids, history=history), 0
    take = Pipeline.take

    def counted(pipeline: Pipeline, *args: Any, **more: Any) -> Any:
        nonlocal most
        stack.calls = 0
        batch = take(pipeline, *args, **more)
        most = max(most, stack.calls)
        return batch

    monkeypatch.setattr(Pipeline, "take", counted)
    stack.write("k1", 0)
    stack.backfill()
    for n in range(1, 30):
        stack.hangs = n % 4 != 0
        stack.delete("k1") if n % 7 == 0 else stack.write("k1", n)
        stack.deliver(stack.container())
    room = shortest_timeout(1.0, history=history) - BESIDES
    assert (3 if history else 1) <= most <= room
