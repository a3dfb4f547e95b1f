"""Generators advanced by one thread: when due, with many calls under way, and never after they were forgotten."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import orjson
import pytest

from replicator.aws.client import AT_ONCE, Call
from replicator.aws.errors import AwsError
from replicator.aws.threaded import Threads, calls_of
from replicator.engine.scheduler import Scheduler, StepResult

T = TypeVar("T")
SOON = 10.0  # seconds; more than any of these steps takes


class Held:
    """Calls that are answered when the test says so, with what it says."""

    def __init__(self) -> None:
        self.in_flight: dict[str, Any] = {}
        self.answers: deque[tuple[Any, bytes | Exception]] = deque()
        self.most = 0
        self.closed = False

    def begin(self, name: Any, call: Call) -> None:
        self.in_flight[call.operation] = name
        self.most = max(self.most, len(self.in_flight))

    def next(self, timeout: float) -> tuple[Any, bytes | Exception] | None:
        if self.answers:
            return self.answers.popleft()
        threading.Event().wait(timeout)
        return None

    def answer(self, operation: str, answer: bytes | Exception = b"") -> None:
        self.answers.append((self.in_flight.pop(operation), answer))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def calls() -> Held:
    return Held()


@pytest.fixture
def steps(calls: Held) -> Scheduler:
    return Scheduler(calls)


def asking(*operations: str) -> Iterator[Any]:
    """Makes a call, gives its answer, and so on."""
    for operation in operations:
        yield (yield Call(operation, {}))


def noting(taken: list[T], values: Iterable[T]) -> Iterator[None]:
    """Puts one more value into ``taken`` at each step."""
    for value in values:
        taken.append(value)
        yield


def test_a_step_gives_the_next_value_under_the_generators_name(steps: Scheduler) -> None:
    steps.add("a", iter([1, 2]))
    assert steps.get(SOON) == StepResult("a", 1)
    steps.again("a")
    assert steps.get(SOON) == StepResult("a", 2)


def test_a_generator_is_not_advanced_again_before_somebody_says_so(steps: Scheduler) -> None:
    taken: list[int] = []
    steps.add("a", noting(taken, range(9)))
    steps.get(SOON)
    steps.add("b", iter([1]))
    assert steps.get(SOON) == StepResult("b", 1)
    assert taken == [0]


def test_the_end_is_said_once_and_the_generator_forgotten(steps: Scheduler) -> None:
    steps.add("a", iter([]))
    assert steps.has("a")
    assert steps.get(SOON) == StepResult("a", ended=True)
    assert not steps.has("a")


def test_an_error_is_handed_over_and_the_generator_forgotten(steps: Scheduler) -> None:
    error = ValueError("wrong")

    def failing() -> Iterator[None]:
        raise error
        yield

    steps.add("a", failing())
    assert steps.get(SOON) == StepResult("a", error=error)
    assert not steps.has("a")
    steps.add("b", iter(["well"]))
    assert steps.get(SOON) == StepResult("b", "well")


def test_an_interrupt_is_no_matter_of_a_step(steps: Scheduler) -> None:
    steps.add("a", _interrupted())
    with pytest.raises(KeyboardInterrupt):
        steps.get(SOON)


def _interrupted() -> Iterator[None]:
    raise KeyboardInterrupt
    yield


def test_a_call_is_answered_to_who_made_it_while_others_have_their_turn(steps: Scheduler, calls: Held) -> None:
    steps.add("slow", asking("Slow"))
    steps.add("quick", asking("FastTemplate"))
    steps.add("none", iter(["at once"]))
    assert steps.get(SOON) == StepResult("none", "at once")
    calls.answer("FastTemplate", b"quick answer")
    assert steps.get(SOON) == StepResult("quick", b"quick answer")
    assert steps.get(0) is None
    calls.answer("Slow", b"slow answer")
    assert steps.get(SOON) == StepResult("slow", b"slow answer")


def test_a_step_may_make_several_calls(steps: Scheduler, calls: Held) -> None:
    def two() -> Generator[Call | bytes, bytes, None]:
        first = yield Call("First", {})
        second = yield Call("Second", {})
        yield first + second

    steps.add("a", two())
    for operation, answer in (("First", b"1"), ("Second", b"2")):
        assert steps.get(0) is None
        calls.answer(operation, answer)
    assert steps.get(SOON) == StepResult("a", b"12")


def test_a_failed_call_is_an_error_where_it_was_made(steps: Scheduler, calls: Held) -> None:
    def careful() -> Iterator[Any]:
        try:
            yield Call("Scan", {})
        except AwsError as e:
            yield e.code

    steps.add("careful", careful())
    steps.add("careless", asking("Other"))
    assert steps.get(0) is None
    calls.answer("Scan", AwsError("Throttled", "", 400))
    calls.answer("Other", error := AwsError("Refused", "", 400))
    assert steps.get(SOON) == StepResult("careful", "Throttled")
    assert steps.get(SOON) == StepResult("careless", error=error)


def test_a_thousand_generators_have_a_few_calls_under_way_and_all_get_their_turn(steps: Scheduler, calls: Held) -> None:
    for n in range(1000):
        steps.add(str(n), asking(str(n)))
    found: set[str] = set()
    while len(found) < 1000:
        stepped = steps.get(0)
        if stepped is None:
            for operation in list(calls.in_flight):
                calls.answer(operation)
        else:
            found.add(stepped.name)
    assert calls.most == AT_ONCE


def test_a_step_is_not_made_before_it_is_due(steps: Scheduler) -> None:
    begun = time.monotonic()
    steps.add("later", iter([1]), rest=0.2)
    assert steps.get(SOON) == StepResult("later", 1)
    assert time.monotonic() - begun >= 0.2


def test_what_is_due_earlier_comes_earlier_whatever_the_order_of_asking(steps: Scheduler) -> None:
    for name, rest in (("third", 0.3), ("first", 0.1), ("second", 0.2)):
        steps.add(name, iter([1]), rest)
    assert [s.name for _ in range(3) if (s := steps.get(SOON)) is not None] == ["first", "second", "third"]


def test_a_step_that_is_due_now_does_not_wait_for_one_that_is_due_later(steps: Scheduler) -> None:
    steps.add("much later", iter([1]), rest=3600)
    steps.add("now", iter([2]))
    assert steps.get(SOON) == StepResult("now", 2)


def test_nothing_due_is_none_after_the_timeout(steps: Scheduler) -> None:
    assert steps.get(0) is None
    begun = time.monotonic()
    assert steps.get(0.05) is None
    assert time.monotonic() - begun >= 0.05


def test_clear_drops_the_answer_of_a_call_under_way(steps: Scheduler, calls: Held) -> None:
    steps.add("a", asking("Old"))
    assert steps.get(0) is None
    steps.clear()
    assert not steps.has("a")
    steps.add("a", asking("New"))
    assert steps.get(0) is None
    calls.answer("Old", b"old")
    calls.answer("New", b"new")
    assert steps.get(SOON) == StepResult("a", b"new")


def test_clear_drops_a_step_that_nobody_fetched(steps: Scheduler) -> None:
    for n in range(3):
        steps.add(str(n), iter([n]))
    assert steps.get(SOON) == StepResult("0", 0)
    steps.clear()
    assert steps.get(0.05) is None


def test_clear_forgets_what_was_due(steps: Scheduler) -> None:
    taken: list[str] = []
    steps.add("a", noting(taken, ["a"]), rest=0.1)
    steps.clear()
    steps.add("b", iter([1]), rest=0.2)
    assert steps.get(SOON) == StepResult("b", 1)
    assert taken == []


def test_close_ends_the_calls(steps: Scheduler, calls: Held) -> None:
    steps.close()
    assert calls.closed


# What is held


def test_no_step_begins_while_there_is_no_room_and_one_does_as_soon_as_there_is(steps: Scheduler) -> None:
    full = True
    steps.full = lambda: full
    steps.add("a", iter([1]))
    assert steps.get(0.05) is None
    full = False
    assert steps.get(SOON) == StepResult("a", 1)


def test_what_was_begun_when_there_was_room_is_all_that_is_held(steps: Scheduler, calls: Held) -> None:
    held = 0
    steps.full = lambda: held >= 5
    for n in range(100):
        steps.add(str(n), asking(str(n)))
    for _ in range(100):
        if steps.get(0) is not None:
            held += 1
        elif calls.in_flight:
            calls.answer(next(iter(calls.in_flight)))
    assert held <= 5 + AT_ONCE


# Threads, for a wire that makes one call after the other


class Meeting:
    """A wire that answers no call before so many are made at the same time."""

    def __init__(self, parties: int) -> None:
        self._barrier = threading.Barrier(parties, timeout=SOON)

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        self._barrier.wait()
        if operation == "Fail":
            raise AwsError("Refused", "", 400)
        return operation.encode()


def workers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("calls-")}


def test_calls_of_any_wire_are_made_at_the_same_time_and_errors_come_back_as_such() -> None:
    before = workers()
    steps = Scheduler(calls_of(Meeting(4)))
    for operation in ("A", "B", "C", "Fail"):
        steps.add(operation, asking(operation))
    found = {s.name: s for _ in range(4) if (s := steps.get(SOON)) is not None}
    assert {name: s.value for name, s in found.items() if s.error is None} == {"A": b"A", "B": b"B", "C": b"C"}
    assert isinstance(found["Fail"].error, AwsError)
    steps.close()
    assert workers() <= before


def test_close_waits_for_a_call_that_is_being_made_and_may_be_called_twice() -> None:
    entered, gate = threading.Event(), threading.Event()

    class Gated:
        def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
            entered.set()
            assert gate.wait(SOON)
            return b""

    calls = Threads(Gated(), 3)
    calls.begin("a", Call("Scan", {}))
    assert entered.wait(SOON)
    threading.Timer(0.05, gate.set).start()
    calls.close()
    assert gate.is_set()
    calls.close()


def test_calls_can_be_begun_before_somebody_does_something_else(calls: Held, steps: Scheduler) -> None:
    steps.add("a", asking("one"))
    steps.add("b", asking("another"), rest=60.0)
    steps.begin()
    assert list(calls.in_flight) == ["one"]


def test_on_threads_a_body_that_is_at_hand_is_asked_too() -> None:
    class Echo:
        def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
            return orjson.dumps(request)

    calls = Threads(Echo(), 1)
    calls.begin("one", Call("PutItem", {"TableName": "t"}, b'{"TableName": "t", "Item": {}}'))
    assert calls.next(10) == ("one", b'{"TableName":"t","Item":{}}')
    calls.close()
