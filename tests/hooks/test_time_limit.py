"""A hook that takes too long is interrupted and its item parked; nothing else is ever interrupted."""

from __future__ import annotations

import asyncio
import gc
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from replicator.hooks.hook import Document, Hook, Poison, documents
from replicator.hooks.time_limit import EXIT_DEADLINE, ExitDeadline, HookInterrupted, HookLimit, HookTimeout
from replicator.items.item import Item

ITEM = Item(b'{"v":{"S":"a"}}')
EVIL = "a" * 60 + "!"


def hook(function: Callable[[Any], Any], *, declared: bool = False) -> Hook:
    return Hook("slow", function, "", declared)


def loops(item: Any) -> None:
    while True:
        pass


def reads_forever(item: Any) -> None:
    while item["v"] != "x":
        pass


def matches(item: Any) -> None:
    re.match(r"(a+)+$", EVIL)


def sleeps(item: Any) -> None:
    time.sleep(3600)


def swallows_once(item: Any) -> None:
    try:
        loops(item)
    except BaseException:
        loops(item)


@documents
def yields_forever(item: Any) -> Iterator[Document]:
    while True:
        yield Document("1", {})


@pytest.mark.parametrize("function", [loops, reads_forever, matches, sleeps, swallows_once])
def test_a_slow_hook_is_interrupted_and_its_item_parked(function: Callable[[Any], Any]) -> None:
    """Even a pattern that backtracks endlessly without releasing the GIL, and a sleep."""
    with HookLimit(0.1), pytest.raises(Poison) as caught:
        hook(function).one(ITEM)
    reason = r"hook slow took longer than 0\.1 s \(hook_timeout\) and was interrupted at test_time_limit\.py:\d+"
    assert re.fullmatch(reason, caught.value.reason)


class Held:
    """Its finalizer takes about as long as its owner's own work."""

    chance = random.Random(7)  # irregular, so that ticks cannot fall into step

    def __del__(self) -> None:
        busy(self.chance.uniform(0.001, 0.004))


def busy(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def finalizes_forever(item: Any) -> None:
    while True:
        Held()
        busy(Held.chance.uniform(0.001, 0.004))


def test_no_finalizer_is_interrupted() -> None:
    """An exception in one would only be printed: an unraisable exception, which pytest turns into a failure."""
    for _ in range(20):
        with HookLimit(0.02), pytest.raises(Poison, match="took longer than"):
            hook(finalizes_forever).one(ITEM)


def test_no_callback_of_the_garbage_collector_is_interrupted() -> None:
    def callback(phase: str, info: dict[str, int]) -> None:
        busy(Held.chance.uniform(0.001, 0.004))

    def collects_forever(item: Any) -> None:
        while True:
            gc.collect(0)
            busy(Held.chance.uniform(0.001, 0.004))

    gc.callbacks.append(callback)
    try:
        for _ in range(20):
            with HookLimit(0.02), pytest.raises(Poison, match="took longer than"):
                hook(collects_forever).one(ITEM)
    finally:
        gc.callbacks.remove(callback)


EXITS = """
import time
from replicator.hooks.time_limit import EXIT_DEADLINE

class Slow:
    def __del__(self):
        time.sleep(1)

kept = Slow()
EXIT_DEADLINE.set(30.0, lambda: None)
"""


def test_a_process_that_exits_in_time_is_not_killed_by_its_timer() -> None:
    """At interpreter exit the handler is gone, and an alarm without one kills the process."""
    assert subprocess.run([sys.executable, "-c", EXITS], timeout=60).returncode == 0


def test_a_generator_that_never_ends_is_interrupted() -> None:
    gc.collect()  # else garbage of other tests may be finalized inside it
    with HookLimit(0.1), pytest.raises(Poison, match="took longer than"):
        hook(yields_forever, declared=True).many(ITEM, ("t",))


def test_many_quick_calls_may_take_longer_together() -> None:
    def pauses(item: Any) -> dict[str, int]:
        time.sleep(0.02)
        return {}

    with HookLimit(0.2):
        for _ in range(30):
            assert hook(pauses).one(ITEM) == {}


def test_an_interruption_never_lands_outside_the_hook() -> None:
    """Each call ends about when its last tick comes; one that comes too late must do nothing."""
    ended = interrupted = 0

    def nearly(item: Any) -> dict[str, int]:
        until = time.monotonic() + 0.0032
        while time.monotonic() < until:
            pass
        return {}

    with HookLimit(0.003):
        for _ in range(400):
            try:
                hook(nearly).one(ITEM)
                ended += 1
            except Poison as e:
                interrupted += "took longer" in e.reason
    assert ended + interrupted == 400


def test_code_outside_hooks_has_no_limit() -> None:
    with HookLimit(0.01):
        until = time.monotonic() + 0.1
        while time.monotonic() < until:
            pass


def test_an_earlier_timer_is_restored() -> None:
    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    timer = signal.setitimer(signal.ITIMER_REAL, 500.0)
    try:
        with HookLimit(1.0):
            assert signal.getitimer(signal.ITIMER_REAL)[0] <= 1.0
        assert signal.getsignal(signal.SIGALRM) is signal.SIG_IGN
        assert 400 < signal.getitimer(signal.ITIMER_REAL)[0] <= 500
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def test_the_exit_deadline_holds_while_hooks_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    before, timer = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    deadline, left = ExitDeadline(), threading.Event()
    monkeypatch.setattr("replicator.hooks.time_limit.EXIT_DEADLINE", deadline)
    try:
        with HookLimit(30.0):
            deadline.set(0.1, left.set)  # as a signal handler does
        while not left.is_set():
            time.sleep(0.01)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)
    assert not EXIT_DEADLINE.is_set


def test_another_thread_has_no_limit_and_no_error() -> None:
    done: list[object] = []

    def work() -> None:
        with HookLimit(0.01):
            done.append(hook(lambda item: {}).one(ITEM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert done == [{}]


@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit, SystemExit, HookTimeout])
def test_no_exception_from_a_hook_escapes_its_item(error: type[BaseException]) -> None:
    def fails(item: Any) -> None:
        raise error(1)

    with pytest.raises(Poison):
        hook(fails).one(ITEM)


def test_a_keyboard_interrupt_is_the_hooks_during_a_run_and_the_users_elsewhere() -> None:
    def interrupts(item: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            hook(interrupts).one(ITEM)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with pytest.raises(Poison, match="raised KeyboardInterrupt"):
            hook(interrupts).one(ITEM)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_hook_is_ended_once_the_time_of_all_is_over_and_its_item_is_not_parked() -> None:
    begun = time.monotonic()
    for function, declared in ((loops, False), (reads_forever, False), (yields_forever, True)):
        over = time.monotonic() + 0.3
        limit = HookLimit(60.0, lambda over=over: time.monotonic() >= over)  # type: ignore[misc]
        with limit, pytest.raises(HookInterrupted):
            hook(function, declared=declared).many(ITEM, ["t"]) if declared else hook(function).one(ITEM)
    assert time.monotonic() - begun < 30


def test_a_hook_that_may_be_ended_early_has_its_whole_limit_before() -> None:
    began = time.monotonic()
    with HookLimit(1.0, lambda: False), pytest.raises(Poison, match=r"took longer than 1 s"):
        hook(loops).one(ITEM)
    assert time.monotonic() - began >= 0.9


def test_nothing_but_a_hook_is_ended_when_the_time_of_all_is_over() -> None:
    with HookLimit(60.0, lambda: True):
        began = time.monotonic()
        while time.monotonic() - began < 0.6:
            pass
