"""Generators advanced on a few threads: when due, never twice at once, and never after they were forgotten."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from replicator.steps import Stepped, Steps

SOON = 10.0  # seconds; more than any of these steps takes


@pytest.fixture
def steps() -> Iterator[Steps]:
    before = workers()
    made = Steps(threads=4)
    yield made
    made.close()
    assert workers() <= before


def workers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("steps-")}


def gated(entered: threading.Event, gate: threading.Event, value: object) -> Iterator[Any]:
    """Says that its step began, and ends it when the gate opens."""
    entered.set()
    assert gate.wait(SOON)
    yield value


def test_a_step_gives_the_next_value_under_the_generators_name(steps: Steps) -> None:
    steps.add("a", iter([1, 2]))
    assert steps.get(SOON) == Stepped("a", 1)
    steps.again("a")
    assert steps.get(SOON) == Stepped("a", 2)


def test_a_generator_is_not_advanced_again_before_somebody_says_so(steps: Steps) -> None:
    taken: list[int] = []
    steps.add("a", (taken.append(n) for n in range(9)))
    steps.get(SOON)
    steps.add("b", iter([1]))
    assert steps.get(SOON) == Stepped("b", 1)
    assert taken == [0]


def test_the_end_is_said_once_and_the_generator_forgotten(steps: Steps) -> None:
    steps.add("a", iter([]))
    assert steps.has("a")
    assert steps.get(SOON) == Stepped("a", ended=True)
    assert not steps.has("a")


def test_an_error_is_handed_over_and_the_generator_forgotten(steps: Steps) -> None:
    error = KeyboardInterrupt("not even this one is swallowed")

    def failing() -> Iterator[None]:
        raise error
        yield

    steps.add("a", failing())
    assert steps.get(SOON) == Stepped("a", error=error)
    assert not steps.has("a")


def test_a_thread_goes_on_after_an_error() -> None:
    one = Steps(threads=1)
    try:
        steps_of_a = (1 / n for n in [0])
        one.add("a", steps_of_a)
        found = one.get(SOON)
        assert found is not None
        assert isinstance(found.error, ZeroDivisionError)
        one.add("b", iter(["well"]))
        assert one.get(SOON) == Stepped("b", "well")
    finally:
        one.close()


def test_a_generator_is_never_run_by_two_threads(steps: Steps) -> None:
    running: Counter[int] = Counter()
    overlaps: list[int] = []

    def counted(n: int) -> Iterator[int]:
        for value in range(50):
            running[n] += 1
            time.sleep(0)  # let another thread in, if it could get in
            overlaps.append(running[n])
            running[n] -= 1
            yield value

    for n in range(20):
        steps.add(str(n), counted(n))
    found: dict[str, list[int]] = {str(n): [] for n in range(20)}
    ended = 0
    while ended < 20:
        stepped = steps.get(SOON)
        assert stepped is not None
        assert stepped.error is None
        if stepped.ended:
            ended += 1
        else:
            found[stepped.name].append(stepped.value)
            steps.again(stepped.name)
    assert set(overlaps) == {1}
    assert all(values == list(range(50)) for values in found.values())


def test_different_generators_run_at_the_same_time(steps: Steps) -> None:
    together = threading.Barrier(4, timeout=SOON)
    for n in range(4):
        steps.add(str(n), (together.wait() for _ in range(1)))
    found = [steps.get(SOON) for _ in range(4)]
    assert all(s is not None and s.error is None for s in found)


def test_more_generators_than_threads_all_get_their_turn(steps: Steps) -> None:
    for n in range(1000):
        steps.add(str(n), iter([n]))
    assert sorted(s.value for _ in range(1000) if (s := steps.get(SOON)) is not None) == list(range(1000))


def test_a_step_is_not_made_before_it_is_due(steps: Steps) -> None:
    begun = time.monotonic()
    steps.add("later", iter([1]), rest=0.2)
    assert steps.get(SOON) == Stepped("later", 1)
    assert time.monotonic() - begun >= 0.2


def test_what_is_due_earlier_comes_earlier_whatever_the_order_of_asking() -> None:
    one = Steps(threads=1)
    try:
        for name, rest in (("third", 0.3), ("first", 0.1), ("second", 0.2)):
            one.add(name, iter([1]), rest)
        assert [s.name for _ in range(3) if (s := one.get(SOON)) is not None] == ["first", "second", "third"]
    finally:
        one.close()


def test_a_step_that_is_due_now_does_not_wait_for_one_that_is_due_later(steps: Steps) -> None:
    steps.add("much later", iter([1]), rest=3600)
    steps.add("now", iter([2]))
    assert steps.get(SOON) == Stepped("now", 2)


def test_nothing_due_is_none_after_the_timeout(steps: Steps) -> None:
    assert steps.get(0) is None
    assert steps.get(0.01) is None


def test_an_interrupt_wakes_whoever_waits(steps: Steps) -> None:
    begun = time.monotonic()
    threading.Timer(0.05, steps.interrupt).start()
    assert steps.get(SOON) is None
    assert time.monotonic() - begun < SOON


def test_clear_drops_the_result_of_a_step_under_way(steps: Steps) -> None:
    entered, gate = threading.Event(), threading.Event()
    steps.add("a", gated(entered, gate, "old"))
    assert entered.wait(SOON)
    steps.clear()
    assert not steps.has("a")
    steps.add("a", iter(["new"]))
    gate.set()
    found = [s for _ in range(2) if (s := steps.get(1.0)) is not None]
    assert found == [Stepped("a", "new")]


def test_clear_drops_a_result_that_nobody_fetched(steps: Steps) -> None:
    done = threading.Event()

    def announced() -> Iterator[str]:
        done.set()
        yield "old"

    steps.add("a", announced())
    assert done.wait(SOON)
    steps.clear()
    assert steps.get(0.05) is None


def test_clear_forgets_what_was_due(steps: Steps) -> None:
    taken: list[str] = []
    steps.add("a", (taken.append("a") for _ in range(1)), rest=0.1)
    steps.clear()
    steps.add("b", iter([1]), rest=0.2)
    assert steps.get(SOON) == Stepped("b", 1)
    assert taken == []


def test_close_waits_for_a_step_under_way_and_leaves_no_thread() -> None:
    before = workers()
    made = Steps(threads=3)
    entered, gate = threading.Event(), threading.Event()
    made.add("a", gated(entered, gate, 1))
    made.add("never", iter([1]), rest=3600)
    assert entered.wait(SOON)
    threading.Timer(0.05, gate.set).start()
    made.close()
    assert gate.is_set()
    assert workers() <= before


def test_close_may_be_called_twice() -> None:
    made = Steps(threads=1)
    made.close()
    made.close()


class Sized(int):
    """A value that weighs as many bytes as it says."""

    @property
    def size(self) -> int:
        return int(self)


def unlooked_at(steps: Steps, most: int) -> int:
    """How much is found while nobody looks, if no step begins from ``most`` bytes on."""
    weighed: list[int] = []
    stopped: set[int] = set()
    all_stopped = threading.Event()

    def full(unseen: int) -> bool:
        weighed.append(unseen)
        if unseen >= most:
            stopped.add(threading.get_ident())
        if len(stopped) == 4:
            all_stopped.set()
        return unseen >= most

    steps.full = full
    for n in range(100):
        steps.add(str(n), iter([Sized(10)]))
    assert all_stopped.wait(SOON)
    return max(weighed)


def test_what_nobody_looked_at_never_weighs_more_than_what_is_allowed_and_one_value_a_thread(steps: Steps) -> None:
    assert unlooked_at(steps, 50) <= 50 + 4 * 10


def test_steps_that_were_held_back_are_made_as_soon_as_somebody_looks(steps: Steps) -> None:
    unlooked_at(steps, 50)
    found = [steps.get(SOON) for _ in range(100)]
    assert sorted(s.name for s in found if s is not None) == sorted(map(str, range(100)))


def test_what_weighs_nothing_is_never_held_back(steps: Steps) -> None:
    steps.full = lambda unseen: unseen > 0
    for n in range(1000):
        steps.add(str(n), iter([n]))
    assert sum(steps.get(SOON) is not None for _ in range(1000)) == 1000


def test_forgotten_results_weigh_nothing_once_somebody_looked(steps: Steps) -> None:
    unlooked_at(steps, 50)
    steps.clear()
    steps.add("new", iter(["value"]))
    found = None
    while found is None:  # what is forgotten is None, at once
        found = steps.get(SOON)
    assert found == Stepped("new", "value")
