"""The scheduler: steps start when due, many requests are in flight, and cleared generators are never advanced."""

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
    """Calls that the test answers."""

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
    """Alternates between calls and values: yields each response."""
    for operation in operations:
        yield (yield Call(operation, {}))


def noting(taken: list[T], values: Iterable[T]) -> Iterator[None]:
    """Appends a value to ``taken`` at each step."""
    for value in values:
        taken.append(value)
        yield


def test_a_step_returns_the_next_value_with_the_generators_name(steps: Scheduler) -> None:
    steps.add("a", iter([1, 2]))
    assert steps.get(SOON) == StepResult("a", 1)
    steps.again("a")
    assert steps.get(SOON) == StepResult("a", 2)


def test_a_generator_is_not_advanced_until_again_is_called(steps: Scheduler) -> None:
    taken: list[int] = []
    steps.add("a", noting(taken, range(9)))
    steps.get(SOON)
    steps.add("b", iter([1]))
    assert steps.get(SOON) == StepResult("b", 1)
    assert taken == [0]


def test_the_end_of_a_generator_is_reported_once(steps: Scheduler) -> None:
    steps.add("a", iter([]))
    assert steps.has("a")
    assert steps.get(SOON) == StepResult("a", ended=True)
    assert not steps.has("a")


def test_an_error_of_a_generator_is_reported_and_ends_it(steps: Scheduler) -> None:
    error = ValueError("wrong")

    def failing() -> Iterator[None]:
        raise error
        yield

    steps.add("a", failing())
    assert steps.get(SOON) == StepResult("a", error=error)
    assert not steps.has("a")
    steps.add("b", iter(["well"]))
    assert steps.get(SOON) == StepResult("b", "well")


def test_an_interrupt_is_not_caught_by_a_step(steps: Scheduler) -> None:
    steps.add("a", _interrupted())
    with pytest.raises(KeyboardInterrupt):
        steps.get(SOON)


def _interrupted() -> Iterator[None]:
    raise KeyboardInterrupt
    yield


def test_a_response_goes_to_its_caller_while_other_generators_advance(steps: Scheduler, calls: Held) -> None:
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


def test_a_failed_call_raises_where_it_was_made(steps: Scheduler, calls: Held) -> None:
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


def test_a_thousand_generators_share_a_few_requests_in_flight(steps: Scheduler, calls: Held) -> None:
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


def test_a_step_does_not_start_before_it_is_due(steps: Scheduler) -> None:
    begun = time.monotonic()
    steps.add("later", iter([1]), rest=0.2)
    assert steps.get(SOON) == StepResult("later", 1)
    assert time.monotonic() - begun >= 0.2


def test_steps_start_in_the_order_in_which_they_are_due(steps: Scheduler) -> None:
    for name, rest in (("third", 0.3), ("first", 0.1), ("second", 0.2)):
        steps.add(name, iter([1]), rest)
    assert [s.name for _ in range(3) if (s := steps.get(SOON)) is not None] == ["first", "second", "third"]


def test_a_step_that_is_due_now_does_not_wait_for_one_that_is_due_later(steps: Scheduler) -> None:
    steps.add("much later", iter([1]), rest=3600)
    steps.add("now", iter([2]))
    assert steps.get(SOON) == StepResult("now", 2)


def test_get_returns_none_after_the_timeout(steps: Scheduler) -> None:
    assert steps.get(0) is None
    begun = time.monotonic()
    assert steps.get(0.05) is None
    assert time.monotonic() - begun >= 0.05


def test_clear_discards_the_response_to_a_call_in_flight(steps: Scheduler, calls: Held) -> None:
    steps.add("a", asking("Old"))
    assert steps.get(0) is None
    steps.clear()
    assert not steps.has("a")
    steps.add("a", asking("New"))
    assert steps.get(0) is None
    calls.answer("Old", b"old")
    calls.answer("New", b"new")
    assert steps.get(SOON) == StepResult("a", b"new")


def test_clear_discards_results_not_taken_yet(steps: Scheduler) -> None:
    for n in range(3):
        steps.add(str(n), iter([n]))
    assert steps.get(SOON) == StepResult("0", 0)
    steps.clear()
    assert steps.get(0.05) is None


def test_clear_discards_scheduled_steps(steps: Scheduler) -> None:
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


def test_no_step_starts_while_full(steps: Scheduler) -> None:
    full = True
    steps.full = lambda: full
    steps.add("a", iter([1]))
    assert steps.get(0.05) is None
    full = False
    assert steps.get(SOON) == StepResult("a", 1)


def test_results_are_bounded_by_the_steps_started_while_there_was_room(steps: Scheduler, calls: Held) -> None:
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
    """A client that answers no call until so many are in flight."""

    def __init__(self, parties: int) -> None:
        self._barrier = threading.Barrier(parties, timeout=SOON)

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        self._barrier.wait()
        if operation == "Fail":
            raise AwsError("Refused", "", 400)
        return operation.encode()


def workers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("calls-")}


def test_threaded_calls_run_concurrently_and_errors_are_returned() -> None:
    before = workers()
    steps = Scheduler(calls_of(Meeting(4)))
    for operation in ("A", "B", "C", "Fail"):
        steps.add(operation, asking(operation))
    found = {s.name: s for _ in range(4) if (s := steps.get(SOON)) is not None}
    assert {name: s.value for name, s in found.items() if s.error is None} == {"A": b"A", "B": b"B", "C": b"C"}
    assert isinstance(found["Fail"].error, AwsError)
    steps.close()
    assert workers() <= before


def test_close_waits_for_calls_in_flight_and_may_be_called_twice() -> None:
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


def test_begin_puts_calls_in_flight_before_get(calls: Held, steps: Scheduler) -> None:
    steps.add("a", asking("one"))
    steps.add("b", asking("another"), rest=60.0)
    steps.begin()
    assert list(calls.in_flight) == ["one"]


def test_threaded_calls_also_return_responses_that_are_ready() -> None:
    class Echo:
        def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
            return orjson.dumps(request)

    calls = Threads(Echo(), 1)
    calls.begin("one", Call("PutItem", {"TableName": "t"}, b'{"TableName": "t", "Item": {}}'))
    assert calls.next(10) == ("one", b'{"TableName":"t","Item":{}}')
    calls.close()
