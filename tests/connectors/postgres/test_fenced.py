"""A run or worker that is replaced while it makes a batch, with a transaction in flight: it ends, or begins again.

Its heartbeats notice that, beside the transaction. On Postgres, and in memory with the same rule of one connection.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from replicator.engine.context import RunContext
from replicator.engine.delivery import Delivery
from replicator.engine.local import Driver
from replicator.engine.run import naming_the_owner
from replicator.engine.startup import RESUMING
from replicator.errors import Fenced
from replicator.hooks.hook import Hook
from replicator.state import Save, encode
from tests.connectors.postgres.test_function import OnPostgres
from tests.end_to_end.pipeline import eventually
from tests.engine.function_stack import Stack
from tests.engine.overlapping import OverlappingTarget

SECONDS = 0.3  # that the hook takes for a change


class Slow:
    """A hook that takes time once it ``is_slow``. ``replace`` is called once, while a batch of ``delivery`` is in
    flight.
    """

    def __init__(self) -> None:
        self.is_slow = False
        self.delivery: Delivery | None = None
        self.replace: Callable[[], None] | None = None
        self.hook = Hook("slow", self._slowly, "f", declared=False)
        self.stack: Stack | None = None

    def _slowly(self, item: Any) -> dict[str, Any]:
        if self.is_slow and self.stack is not None:
            self.stack.clock.now += SECONDS
            delivery, act = self.delivery, self.replace
            if delivery is not None and delivery._in_flight is not None and act is not None:
                eventually(delivery._is_ready, "the response is there")
                self.replace = None
                act()
        return {**item, "v": int(item["v"])}


@pytest.fixture(params=["memory", "postgres"])
def slow(request: pytest.FixtureRequest) -> Iterator[Slow]:
    slow = Slow()
    with ExitStack() as resources:
        if request.param == "postgres":
            slow.stack = OnPostgres(request.getfixturevalue("one_postgres"), resources, slow.hook)
        else:
            slow.stack = Stack(hook=slow.hook)
            slow.stack.target_type = partial(OverlappingTarget, chance=random.Random(3))  # type: ignore[assignment]
        yield slow


def stack_of(slow: Slow) -> Stack:
    assert slow.stack is not None
    return slow.stack


def written(slow: Slow) -> Stack:
    """What a worker or run takes minutes for."""
    stack = stack_of(slow)
    for n in range(400):
        stack.write(f"k{n}", 100 + n)
    slow.is_slow = True
    return stack


def claimed_by_another_run(context: RunContext, stack: Stack) -> None:
    context.checkpoints.claim(stack.owner("another run"))


def taken_away(context: RunContext, stack: Stack) -> None:
    """As by the coordinator at the end of a stage."""
    context.checkpoints.save([Save("owner", "0", None, encode(replace(stack.owner(""), run="")))])


def working(slow: Slow) -> Stack:
    """A run with one worker that has much to do."""
    stack = stack_of(slow)
    stack.slots = ("0",)
    stack.start()
    stack.settle()
    written(slow)
    held = stack.workers["0"]._held
    assert held is not None
    slow.delivery = held._delivery
    return stack


def steps(slow: Slow) -> None:
    """Of the worker, until it was replaced and has noticed that."""
    stack = stack_of(slow)
    worker = stack.workers["0"]
    for _ in range(2000):
        stack.clock.now += 0.05
        worker.step()
        if slow.replace is None and (worker._held is None or worker._held._delivery is not slow.delivery):
            return
    raise AssertionError("the worker was not replaced, or did not notice")


def test_a_worker_whose_slot_is_taken_away_while_it_makes_a_batch_claims_it_again(slow: Slow) -> None:
    stack = working(slow)
    slow.replace = partial(taken_away, stack.context(), stack)
    steps(slow)
    slow.is_slow = False
    stack.settle()


def test_a_worker_whose_run_is_replaced_while_it_makes_a_batch_ends_as_fenced(slow: Slow) -> None:
    stack = working(slow)
    slow.replace = partial(claimed_by_another_run, stack.context(), stack)
    with pytest.raises(Fenced):
        steps(slow)


def test_a_run_that_is_replaced_while_it_makes_a_batch_names_the_other(slow: Slow) -> None:
    stack = stack_of(slow)
    stack.write("k0", 0)
    context = stack.context()
    stack.until_over()
    Driver(context, stack.owner("run"), stack.environment()).run(until="caught-up", allowed=RESUMING)
    written(slow)
    stack._until = stack.clock.now + 1e6
    driver = Driver(context, stack.owner("run"), stack.environment())
    slow.delivery = driver._delivery
    slow.replace = partial(claimed_by_another_run, stack.context(), stack)
    with pytest.raises(Fenced, match="It is owned by process 1 on here"), naming_the_owner(context.checkpoints):
        driver.run(until="caught-up", allowed=RESUMING)
    assert slow.replace is None
