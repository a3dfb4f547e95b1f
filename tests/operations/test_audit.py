"""A run audits itself: when a pass begins, goes on, pauses and ends, and what is logged of it; on a virtual clock."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from replicator.config.settings import Config, load
from replicator.config.verification import Verify
from replicator.engine.context import Environment
from replicator.errors import Fenced, NotPermitted, TransientError
from replicator.hooks.hook import Hook, Poison
from replicator.hooks.time_limit import interrupt
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.operations import audit as operation
from replicator.operations.audit import LONGEST_REST, LOOK_INTERVAL, MOST_LOGGED, PAUSE, RETRY_AFTER, Audit, due_in
from replicator.operations.parked import void_verified
from replicator.operations.pass_record import PassRecord
from replicator.pipeline.progress import Progress
from replicator.state import BY_RUN, FULL, SAMPLE, UNFINISHED, Owner, PipelineState, Verified
from replicator.testing.memory import MemoryCheckpoints
from tests.faults.world import TABLE, OrderedScheduler, World
from tests.faults.world import faults as faults
from tests.operations.passes import Passes
from tests.operations.passes import forgetful as forgetful
from tests.operations.passes import passes as passes
from tests.operations.passes import patched as patched

HOUR, DAY = 3600.0, 86_400.0
STATE = PipelineState(1024, "stream", "arn", "id", "following", hook="h")
ENDED = Verified(1000.0, 2000.0, 1024, "full", 4, ended=2000.0, hook="h")


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[str], list[Any]]]:
    """The events of a name."""
    logger = logging.getLogger("replicator")
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(caplog.handler)
    yield lambda event: [record for record in caplog.records if record.getMessage() == event]
    logger.removeHandler(caplog.handler)
    logger.setLevel(before)


def audit_of(passes: Passes, *, phase: str = "live", **options: float) -> Audit:
    """The audit of a run that has reported its phase."""
    world = passes.world
    config = replace(load(world.folder / "orders.yaml"), verify=Verify(**{"read_units": 1000, **options}))
    outside = partial(Environment, steps=lambda client: OrderedScheduler(world.clock, client))
    stop: Any = world.stop
    audit = Audit(config, world.clock, world.clock, world.random, stop, outside)
    tell(audit, phase)
    return audit


def tell(audit: Audit, phase: str) -> Progress:
    """The run reports its progress; what others see of it."""
    seen: list[Progress] = []
    audit.observing(seen.append)(Progress(phase))
    return seen[0]


def stopped_after(passes: Passes, seconds: float | None) -> None:
    passes.world.stop.until = None if seconds is None else passes.world.clock() + seconds


def test_a_pass_begins_once_the_run_is_live(passes: Passes) -> None:
    audit = audit_of(passes, phase="catching-up")
    stopped_after(passes, None)
    before = len(passes.world.client.times("Scan"))
    assert audit.turn(None) == LOOK_INTERVAL
    assert len(passes.world.client.times("Scan")) == before
    tell(audit, "live")
    audit.turn(None)
    seen = tell(audit, "live")
    assert seen.verified is not None
    assert (seen.verified.items, seen.verified.differences, seen.verifying) == (450, 0, None)
    assert passes.recorded == {BY_RUN: seen.verified}
    assert audit.turn(None) == LONGEST_REST, "the next pass is due in a day"


@pytest.mark.parametrize(
    ("passes_made", "now", "wanted"),
    [
        ({}, 5000.0, 0.0),
        ({BY_RUN: ENDED}, 5000.0, DAY - 4000),
        ({BY_RUN: ENDED}, 1000.0 + DAY, 0.0),
        ({BY_RUN: ENDED}, 9e9, 0.0),
        ({BY_RUN: ENDED}, -9e9, DAY),
        ({FULL: ENDED}, 5000.0, DAY - 4000),
        ({FULL: replace(ENDED, started=3000.0), BY_RUN: ENDED}, 5000.0, DAY - 2000),
        ({SAMPLE: replace(ENDED, scope="1 %")}, 5000.0, 0.0),
        ({BY_RUN: replace(ENDED, epoch=1023)}, 5000.0, 0.0),
        ({BY_RUN: replace(ENDED, hook="")}, 5000.0, 0.0),
        ({BY_RUN: replace(ENDED, ttl_deletes="ignore")}, 5000.0, 0.0),
        ({UNFINISHED[FULL]: replace(ENDED, ended=None)}, 5000.0, 0.0),
    ],
)
def test_a_pass_is_due_some_time_after_the_last_full_one_of_this_copy_began(
    passes_made: dict[str, Verified], now: float, wanted: float
) -> None:
    assert due_in(passes_made, STATE, DAY, now) == wanted


def test_the_next_run_goes_on_with_the_pass_of_one_that_was_stopped(passes: Passes) -> None:
    first = audit_of(passes, read_units=5)
    stopped_after(passes, 80)
    first.turn(None)
    so_far = tell(first, "live").verifying
    assert so_far is not None
    assert (so_far.by, 0.5 < so_far.so_far.done < 1) == ("run", True)
    before = passes.requested_keys()
    stopped_after(passes, None)
    second = audit_of(passes, read_units=5)
    second.turn(None)
    after = passes.requested_keys()[len(before) :]
    assert len(after) < 450, "what was compared is not compared again"
    assert set(before) | set(after) == {f"k{n}" for n in range(450)}
    assert passes.recorded[BY_RUN].started == so_far.so_far.started


def test_a_pass_pauses_while_the_run_is_not_live(passes: Passes) -> None:
    audit = audit_of(passes, read_units=5)
    stopped_after(passes, None)
    passes.world.clock.plan(60.0, partial(tell, audit, "catching-up"))
    assert audit.turn(None) == PAUSE
    reads = len(passes.requested_keys())
    assert audit.turn(None) == LOOK_INTERVAL
    assert len(passes.requested_keys()) == reads < 450
    left = passes.recorded[UNFINISHED[BY_RUN]]
    tell(audit, "live")
    audit.turn(None)
    assert passes.recorded[BY_RUN].started == left.started


def test_a_pass_waits_in_its_place_for_a_run_that_is_soon_live_again(
    passes: Passes, logged: Callable[[str], list[Any]]
) -> None:
    audit = audit_of(passes, read_units=5)
    stopped_after(passes, None)
    clock, reads = passes.world.clock, list[int]()
    clock.plan(40.0, partial(tell, audit, "catching-up"))
    for after in (55.0, 340.0):
        clock.plan(after, lambda: reads.append(len(passes.requested_keys())))
    clock.plan(340.0, partial(tell, audit, "live"))
    audit.turn(None)
    assert reads[0] == reads[1] < 450, "what was begun within ten seconds is the last that is read"
    assert passes.recorded[BY_RUN].items == 450
    assert logged("verify paused") == []


def test_a_pass_ends_without_a_word_once_another_run_owns_the_pipeline(passes: Passes) -> None:
    audit = audit_of(passes, read_units=5)
    stopped_after(passes, None)

    def claim() -> None:
        MemoryCheckpoints(passes.world.database).claim(Owner("other", "there", 2, 0.0))

    passes.world.clock.plan(30.0, claim)
    assert audit.turn(None) == PAUSE
    assert BY_RUN not in passes.recorded


def test_a_pass_begins_anew_when_parked_changes_were_discarded(
    passes: Passes, logged: Callable[[str], list[Any]]
) -> None:
    audit = audit_of(passes, read_units=5)
    stopped_after(passes, None)
    passes.world.clock.plan(60.0, lambda: void_verified(MemoryCheckpoints(passes.world.database)))
    begun = passes.world.clock()
    assert audit.turn(None) == PAUSE
    assert passes.recorded == {}
    audit.turn(None)
    assert passes.recorded[BY_RUN].started > begun + 60
    assert [record.reason for record in logged("verify paused")] == [
        "parked changes were discarded, so the pass begins anew"
    ]


def test_a_pass_of_a_run_and_one_by_hand_do_not_disturb_each_other(passes: Passes) -> None:
    from replicator.operations.verify import Request

    audit = audit_of(passes, read_units=5)
    stopped_after(passes, 40)
    audit.turn(None)
    left = passes.recorded[UNFINISHED[BY_RUN]]
    passes.make(Request(read_units=5), seconds=30)
    by_hand = passes.recorded[UNFINISHED[FULL]]
    assert passes.recorded[UNFINISHED[BY_RUN]] == left
    stopped_after(passes, None)
    audit.turn(None)
    assert passes.recorded[UNFINISHED[FULL]] == by_hand
    assert passes.recorded[BY_RUN].started == left.started
    passes.make(Request(resume=True))
    assert set(passes.recorded) == {FULL, BY_RUN}


def differ(world: World, count: int) -> None:
    for n in range(count):
        version, _ = world.database.rows[TABLE][(f"k{n}",)]
        world.database.rows[TABLE][(f"k{n}",)] = (version, b'{"id": "secret"}')


def test_differences_are_logged_with_their_keys_and_without_values(
    passes: Passes, logged: Callable[[str], list[Any]]
) -> None:
    differ(passes.world, 2)
    audit = audit_of(passes)
    stopped_after(passes, None)
    audit.turn(None)
    found = logged("difference")
    assert {(r.kind, r.table, r.id, tuple(r.fields)) for r in found} == {
        ("different", TABLE, f'["k{n}"]', ("id",)) for n in range(2)
    }
    (ended,) = logged("verify ended")
    assert (ended.levelname, ended.differences, ended.different) == ("WARNING", 2, 2)
    assert "replicator verify CONFIG --repair" in ended.do
    assert not any("secret" in str(vars(record)) for record in found)
    assert tell(audit, "live").verified == passes.recorded[BY_RUN]


def test_of_many_differences_only_some_are_logged(passes: Passes, logged: Callable[[str], list[Any]]) -> None:
    differ(passes.world, MOST_LOGGED + 20)
    stopped_after(passes, None)
    audit_of(passes).turn(None)
    assert len(logged("difference")) == MOST_LOGGED
    assert len(logged("more differences")) == 1
    assert passes.recorded[BY_RUN].differences == MOST_LOGGED + 20


@pytest.mark.parametrize(
    ("error", "rest", "event", "said"),
    [
        (
            NotPermitted("dynamodb:BatchGetItem on orders is not permitted"),
            RETRY_AFTER,
            "verify failed",
            "BatchGetItem",
        ),
        (TransientError("no response"), PAUSE, "verify waiting", "no response"),
        (ZeroDivisionError("secret"), RETRY_AFTER, "verify failed", "test_audit.py"),
    ],
)
def test_what_fails_in_a_pass_is_logged_and_tried_again_later(
    passes: Passes,
    monkeypatch: pytest.MonkeyPatch,
    logged: Callable[[str], list[Any]],
    error: Exception,
    rest: float,
    event: str,
    said: str,
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(operation, "examine", failing)
    assert audit_of(passes).turn(None) == rest
    (record,) = logged(event)
    assert said in str(vars(record))
    assert "secret" not in str({name: vars(record).get(name) for name in ("error", "at", "problems", "reason")})


def config_of(world: World) -> Config:
    return replace(load(world.folder / "orders.yaml"), verify=Verify())


def test_the_thread_of_the_passes_ends_with_the_run(faults: World) -> None:
    audit = Audit(config_of(faults))
    with audit.beside(None):
        (thread,) = [t for t in threading.enumerate() if t.name == "pipeline orders"]
    assert not thread.is_alive()


def test_a_run_does_not_wait_for_a_pass_that_hangs(faults: World, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(operation, "LEAVES_WITHIN", 0.0)
    monkeypatch.setattr(Audit, "turn", lambda *_: go_on.wait() and 0.0)
    audit = Audit(config_of(faults))
    with audit.beside(None):
        (thread,) = [t for t in threading.enumerate() if t.name == "pipeline orders"]
    assert (thread.is_alive(), thread.daemon) == (True, True)
    go_on.set()
    thread.join()


def test_a_hook_that_does_not_return_on_another_thread_is_interrupted() -> None:
    called = threading.Event()

    def endless(item: Item) -> None:
        called.set()
        while True:
            pass

    failures: list[Poison] = []

    def work() -> None:
        try:
            Hook("endless", endless, "", declared=False).one(Item(image({"id": "1"})))
        except Poison as e:
            failures.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    called.wait()
    interrupt(thread.ident or 0, 2.5)
    thread.join()
    assert "took longer than 2.5 s" in failures[0].reason


def test_the_run_interrupts_a_hook_of_the_pass_that_does_not_return(
    faults: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted: list[tuple[int, float]] = []
    monkeypatch.setattr(operation, "interrupt", lambda thread, seconds: interrupted.append((thread, seconds)))
    called, go_on, now = threading.Event(), threading.Event(), [100.0]

    def slow(item: Item) -> None:
        called.set()
        go_on.wait()

    hook = Hook("slow", slow, "", declared=False)
    monkeypatch.setattr(Audit, "turn", lambda *_: hook.one(Item(image({"id": "1"}))) or LOOK_INTERVAL)
    audit = Audit(config_of(faults), monotonic=lambda: now[0])
    with audit.beside(hook):
        called.wait()
        tell(audit, "live")
        now[0] += 9.0
        tell(audit, "live")
        assert interrupted == []
        now[0] += 2.0
        tell(audit, "live")
        go_on.set()
    assert [seconds for _, seconds in interrupted] == [10.0]


def test_a_run_that_was_replaced_records_nothing_more_of_its_pass(passes: Passes) -> None:
    """Its tables may have been exchanged for those of the other generation since."""
    checkpoints = MemoryCheckpoints(passes.world.database)
    owner = checkpoints.claim(Owner("run", "here", 1, 1.0)).revision
    record = PassRecord(checkpoints, BY_RUN, owner)
    record.save(ENDED)
    MemoryCheckpoints(passes.world.database).claim(Owner("later", "here", 2, 2.0))
    with pytest.raises(Fenced, match="another run owns this pipeline"):
        record.save(replace(ENDED, items=1))
    with pytest.raises(Fenced, match="another run owns this pipeline"):
        record.end(ENDED)
