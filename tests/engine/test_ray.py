"""A run on Ray as its driver sees it; Ray and its actors are simulated. On real Ray: tests/end_to_end/test_ray.py."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import logging
import os
import pickle
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from replicator.config.engine import Ray
from replicator.config.settings import Config, Source
from replicator.config.target import Destination
from replicator.engine import connections
from replicator.engine.context import Environment
from replicator.engine.measurements import Unmeasured
from replicator.engine.ray import actors, driver
from replicator.engine.ray.actors import CoordinatorActor, WorkerActor, guarded
from replicator.engine.ray.cluster import check_version, cluster
from replicator.engine.ray.driver import GIVEN_UP, HANGS, STUCK, UNHEARD, Run, follow, unheard
from replicator.engine.ray.reports import (
    MOST_EVENTS,
    Ended,
    Event,
    EventBuffer,
    FromCoordinator,
    FromWorker,
    Heard,
    Plan,
    Recorder,
    ToWorker,
    Unlogged,
    Where,
)
from replicator.engine.retry import Stopped
from replicator.engine.startup import RESUMING, Allowed
from replicator.errors import ConfigError, Fenced, GapFound, NotPermitted, ReplicatorError, TransientError
from replicator.hooks.loading import load
from replicator.monitoring.health import Verdict
from replicator.monitoring.monitor import Monitor
from replicator.pipeline.progress import Progress, WorkerProgress
from replicator.state import Owner
from replicator.testing.memory import MemoryDatabase, MemoryTarget
from tests.end_to_end.pipeline import eventually
from tests.monitoring.phases import NOW, SUBJECT, Clock

PLAN = Plan(
    Config("orders", Source(table="orders"), Destination("memory", None, None, {"orders": {}}), engine=Ray()),  # type: ignore[arg-type]
    7,
    ("0", "1"),
    None,
    RESUMING,
)
HERE, WORKER = Where("a", "here", 1), Where("w", "here", 3)


class RayError(Exception):
    """What all errors of Ray derive from."""


class RayActorError(RayError):
    """Of an actor that is gone, or being restarted."""

    actor_init_failed = False


class RayTaskError(RayError):
    """Of a method that raised."""


class ObjectLostError(RayError):
    """Of a result whose node is gone."""


class OutOfMemoryError(RayError):
    """Of a process that Ray killed because its node had no memory left."""


class NodeDiedError(RayError): ...


class WorkerCrashedError(RayError): ...


LOST = (ObjectLostError, OutOfMemoryError, NodeDiedError, WorkerCrashedError)


@dataclass(eq=False)
class Ref:
    """The result of a call; pending until there is one."""

    result: Any = None


@dataclass
class Method:
    """A method of an actor."""

    call: Callable[..., Any]

    def options(self, **_: Any) -> Method:
        return self

    def remote(self, *given: Any) -> Ref:
        return Ref(self.call(*given))


@dataclass
class Simulated:
    """The module ``ray``, its actors, and the clock. ``reports``: of the coordinator; the last one again and again."""

    reports: list[FromCoordinator | Exception]
    works: list[Ref] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)  # what was replaced
    names: list[str] = field(default_factory=list)  # of the actors in the cluster
    logged: list[dict[str, int]] = field(default_factory=list)  # what the coordinator was told of that
    restarts: dict[str, int] = field(default_factory=dict)  # as the coordinator was told
    incarnation: Callable[[Any], int | None] = lambda _: 0
    observed: list[Progress] = field(default_factory=list)
    now: float = 0.0
    turns: int = 0
    stops_after: int = 200
    ends: bool = True  # the coordinator, in time
    exceptions = SimpleNamespace(**{e.__name__: e for e in (RayError, RayActorError, RayTaskError, *LOST)})

    def remote(self, actor: type) -> Any:
        made = self._worker if actor is WorkerActor else self._coordinator

        def options(name: str, **_: Any) -> Any:
            self.names.append(name)
            return SimpleNamespace(remote=lambda *_: made())

        return SimpleNamespace(options=options)

    def _worker(self) -> Any:
        def run() -> Any:
            self.works.append(Ref())
            return None

        return SimpleNamespace(
            name=f"worker {len(self.works)}",
            run=SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: (run(), self.works[-1])[1])),
        )

    def _coordinator(self) -> Any:
        def report(logged: dict[str, int], restarts: dict[str, int]) -> Any:
            self.now += 0.01
            self.restarts = restarts
            self.logged.append(logged)
            return self.reports.pop(0) if len(self.reports) > 1 else self.reports[0]

        def drain() -> bool:
            self.said.append("drain")
            for work in self.works:
                work.result = work.result or Ended()
            return True

        def end() -> bool:
            self.said.append("end")
            last = self.reports[0]
            if isinstance(last, FromCoordinator) and self.ends:
                self.reports = [replace(last, ended=last.ended or Ended())]
            return True

        return SimpleNamespace(name="coordinator", report=Method(report), drain=Method(drain), end=Method(end))

    def wait(self, refs: list[Ref], num_returns: int = 1, timeout: float = 0.0) -> tuple[list[Ref], list[Ref]]:
        done = [ref for ref in refs if ref.result is not None]
        self.now += 0.0 if done else timeout
        return done, [ref for ref in refs if ref.result is None]

    def get(self, ref: Ref) -> Any:
        if isinstance(ref.result, Exception):
            raise ref.result
        return ref.result

    def kill(self, actor: Any, no_restart: bool) -> None:
        assert not no_restart, "Ray starts another one"
        self.killed.append(actor.name)

    def run(self, plan: Plan = PLAN) -> int:
        stop = threading.Event()

        def turn(seconds: float) -> bool:
            self.now += seconds
            self.turns += 1
            return self.turns > self.stops_after

        stop.wait = turn  # type: ignore[method-assign, assignment]
        environment = Environment(stop, self.observed.append, monotonic=lambda: self.now)
        run = Run(self, plan, environment, self.incarnation)
        return run.work()


def report(**more: Any) -> FromCoordinator:
    known = {"0": Heard(HERE), "1": Heard(WORKER)}
    return FromCoordinator(HERE, **{"progress": Progress("live"), "workers": known, **more})


def test_a_stop_ends_the_workers_first_and_then_the_coordinator() -> None:
    ray = Simulated([report(parked=3)], stops_after=5)
    assert ray.run() == 3
    assert ray.said == ["drain", "end"]
    assert {p.phase for p in ray.observed} == {"live"}


@pytest.mark.parametrize("new", [True, False])
def test_a_restarted_coordinator_is_not_asked_again_and_may_sweep_no_more_than_the_first_one(
    monkeypatch: pytest.MonkeyPatch, new: bool
) -> None:
    allowed: queue.Queue[Allowed] = queue.Queue()

    class Started:
        is_new_run, read_at, caught_up = new, 0.0, False
        pipeline = SimpleNamespace(parked=())

        def __init__(self, *_: Any) -> None:
            self.start, self.news = allowed.put, dict

        def step(self) -> None: ...
        def end(self) -> None: ...

    monkeypatch.setattr(actors, "Coordinator", Started)
    monkeypatch.setattr(actors, "connected", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(actors, "tune_allocator", lambda: None)
    actor = CoordinatorActor(replace(PLAN, allowed=Allowed(resync=True, sweep=False)))
    assert allowed.get(timeout=60) == Allowed(resync=new, sweep=False)
    actor.end()


class Claims:
    """Coordinators of a process in their order: each is fenced by another process after its claim, or at it."""

    is_new_run, read_at, caught_up = False, 0.0, False
    pipeline = SimpleNamespace(parked=())

    def __init__(self, patch: pytest.MonkeyPatch, *, fenced_at: int, refused_at: int) -> None:
        self.made, self._fenced_at, self._refused_at = 0, fenced_at, refused_at
        self.fenced = threading.Event()
        patch.setattr(actors, "Coordinator", self._claim)
        patch.setattr(actors, "connected", lambda *_: contextlib.nullcontext())
        patch.setattr(actors, "tune_allocator", lambda: None)
        patch.setattr(actors, "AGAIN", 0.01)

    def _claim(self, *_: Any) -> Claims:
        self.made += 1
        if self.made == self._refused_at:
            raise Fenced("another run owns this pipeline")
        return self

    def start(self, _: Allowed) -> None: ...
    def end(self) -> None: ...
    def restarted(self, _: Any) -> None: ...
    def news(self) -> dict[str, Any]:
        return {}

    def step(self) -> None:
        if self.made <= self._fenced_at:
            self.fenced.set()
            raise Fenced("another process claimed the coordinator's entry")


def test_a_coordinator_that_is_fenced_by_one_that_it_replaced_goes_on_if_the_driver_asks_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that was stopped before its claim, and goes on later."""
    claims = Claims(monkeypatch, fenced_at=1, refused_at=0)
    actor = CoordinatorActor(PLAN)
    assert claims.fenced.wait(60)
    eventually(lambda: actor.report({}, {}) and claims.made == 2, "it claims its entry again")
    assert actor.report({}, {}).ended is None
    actor.end()
    eventually(lambda: actor.report({}, {}).ended == Ended(), "it ends as it is told to")


def test_a_coordinator_that_was_replaced_claims_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    claims = Claims(monkeypatch, fenced_at=1, refused_at=0)
    actor = CoordinatorActor(PLAN)
    assert claims.fenced.wait(60)
    actor._stop.wait(0.1)  # ten times as long as it waits before it looks whether it is asked
    assert claims.made == 1
    actor.end()


def test_a_coordinator_ends_the_run_if_another_run_has_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    claims = Claims(monkeypatch, fenced_at=1, refused_at=2)
    actor = CoordinatorActor(PLAN)
    eventually(lambda: actor.report({}, {}).ended is not None, "it ends")
    ended = actor.report({}, {}).ended
    assert ended is not None
    assert isinstance(ended.failure, Fenced)
    assert claims.made == 2


def test_a_run_that_is_stopped_while_ray_starts_claims_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run owns the pipeline perhaps, and goes on."""
    stop = threading.Event()

    @contextlib.contextmanager
    def starting(_: Ray) -> Iterator[Simulated]:
        stop.set()
        yield Simulated([report()])

    monkeypatch.setattr(driver, "cluster", starting)
    monkeypatch.setattr(driver, "check_supported", lambda *_: None)
    context: Any = SimpleNamespace(config=PLAN.config, target=None, checkpoints=None, hook=None)
    with pytest.raises(Stopped):
        follow(
            context,
            Owner("a", "here", 1, NOW),
            Environment(stop, lambda _: None),
            None,
            RESUMING,
            contextlib.nullcontext,
        )


def test_pipelines_of_one_name_on_a_cluster_do_not_share_an_actor() -> None:
    """Such as of staging and production, both in their first run."""
    rays = [Simulated([report()], stops_after=1) for _ in range(2)]
    for ray in rays:
        ray.run()
    assert len({*rays[0].names, *rays[1].names}) == 6


def test_what_is_parked_is_known_although_the_coordinator_does_not_end_in_time() -> None:
    last = report(progress=Progress("live", parked=3), caught_up=True)
    assert Simulated([last], ends=False).run(replace(PLAN, until="caught-up")) == 3


def test_a_run_that_has_caught_up_ends_by_itself() -> None:
    ray = Simulated([report(), report(caught_up=True)])
    ray.run(replace(PLAN, until="caught-up"))
    assert ray.said == ["drain", "end"]
    assert ray.turns < 5


@pytest.mark.parametrize(
    "failure",
    [GapFound("trimmed", "shard-1", "12"), ConfigError("a", "b"), NotPermitted("no", "Scan", "table")],
    ids=type,
)
def test_what_ends_the_coordinator_ends_the_run_with_all_that_it_says(failure: ReplicatorError) -> None:
    ray = Simulated([report(ended=pickle.loads(pickle.dumps(Ended(failure))))])
    with pytest.raises(type(failure)) as raised:
        ray.run()
    assert (str(raised.value), vars(raised.value)) == (str(failure), vars(failure))
    assert ray.said == ["drain", "end"], "workers store what is in flight"


def test_what_ends_a_worker_ends_the_run() -> None:
    ray = Simulated([report()])
    run = Run(ray, PLAN, Environment(threading.Event(), lambda _: None, monotonic=lambda: ray.now))
    ray.works[1].result = Ended(ConfigError("transform: no"))
    with pytest.raises(ConfigError, match="transform: no"):
        run.work()
    assert len(ray.works) == 2


def test_a_worker_whose_process_cannot_start_ends_the_run() -> None:
    ray = Simulated([report()])
    run = Run(ray, PLAN, Environment(threading.Event(), lambda _: None, monotonic=lambda: ray.now))
    ray.works[1].result = RayActorError("Traceback\nModuleNotFoundError: No module named 'replicator'\n")
    ray.works[1].result.actor_init_failed = True
    with pytest.raises(ConfigError, match=r"engine: worker 1 cannot start: .*No module named 'replicator'$"):
        run.work()


@pytest.mark.parametrize("error", [RayActorError, RayError])
def test_a_worker_that_ray_has_given_up_ends_the_run_so_that_it_can_be_started_again(error: type[RayError]) -> None:
    """The raylet of the driver's machine is gone: the config is right."""
    ray = Simulated([report()])
    run = Run(ray, PLAN, Environment(threading.Event(), lambda _: None, monotonic=lambda: ray.now))
    ray.works[1].result = error("The actor died unexpectedly.\n\tclass_name: WorkerActor")
    lost = r"engine: Ray has lost worker 1, and does not restart it: The actor died unexpectedly\.$"
    with pytest.raises(TransientError, match=lost):
        run.work()


@pytest.mark.parametrize("error", LOST)
def test_a_worker_whose_result_is_lost_with_its_node_begins_again(
    error: type[RayError], caplog: pytest.LogCaptureFixture
) -> None:
    ray = Simulated([report()], stops_after=40)

    def lose_once() -> None:
        ray.works[0].result = error("the node is gone\nTraceback")

    ray.observed = _OnFirst(lose_once)
    with caplog.at_level(logging.WARNING, "replicator"):
        ray.run()
    assert len(ray.works) == 3
    assert [(r.message, vars(r)["reason"]) for r in caplog.records] == [("worker result lost", "the node is gone")]


@pytest.mark.parametrize("error", [RayActorError, RayError, *LOST])
def test_a_report_that_is_lost_ends_nothing(error: type[RayError]) -> None:
    """Its process was killed by Ray's memory monitor, or the node that has the report is gone."""
    ray = Simulated([report(parked=1), report(), error("lost"), report(parked=3)], stops_after=5)
    assert ray.run() == 3
    assert ray.said == ["drain", "end"]


def test_a_fault_in_the_coordinators_report_ends_the_run_at_once_with_its_traceback() -> None:
    """It responds: to replace it would help nothing, and hide the fault."""
    ray = Simulated([report(), RayTaskError("AttributeError in report"), report()], stops_after=5)
    with pytest.raises(RayTaskError, match="AttributeError in report"):
        ray.run()


def test_the_names_of_errors_are_those_of_ray() -> None:
    exceptions = pytest.importorskip("ray").exceptions
    for error in (RayActorError, RayTaskError, *LOST):
        assert issubclass(getattr(exceptions, error.__name__), exceptions.RayError)
    assert exceptions.ActorDiedError().actor_init_failed is RayActorError.actor_init_failed


def test_a_worker_that_was_fenced_begins_again_as_long_as_the_run_owns_the_pipeline() -> None:
    """A process that was replaced may have claimed the slot once more."""
    ray = Simulated([report()], stops_after=40)

    def fence_once() -> None:
        ray.works[0].result = Ended(Fenced("another worker"))

    ray.observed = _OnFirst(fence_once)
    ray.run()
    assert len(ray.works) == 3


class _OnFirst(list[Progress]):
    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__()
        self._then = then

    def append(self, progress: Progress) -> None:
        if not self:
            self._then()
        super().append(progress)


def test_a_worker_that_gives_no_sign_for_longer_than_a_hook_may_take_is_replaced_once() -> None:
    turns = int(4 * (unheard(10.0) + 2))
    reports = [report(workers={"0": Heard(HERE, silent=n / 4), "1": Heard(WORKER)}) for n in range(turns)]
    ray = Simulated([*reports], stops_after=turns)
    ray.run()
    assert ray.killed == ["worker 0"]
    assert unheard(None) > unheard(10.0) > 10.0


@pytest.mark.parametrize(("seconds", "replaced"), [(UNHEARD + 1, []), (unheard(10.0) + 1, ["worker 1"])])
def test_a_worker_that_hangs_is_noticed_although_the_coordinator_was_restarted_and_never_heard_it(
    seconds: float, replaced: list[str]
) -> None:
    later = replace(report(workers={"0": Heard(HERE)}), where=Where("b", "there", 2))
    ray = Simulated([report(), later], stops_after=int(4 * seconds))
    ray.run()
    assert ray.killed == replaced
    assert "Ray: worker 1 does not respond" in {p.waiting_for for p in ray.observed}


@pytest.mark.parametrize(("stuck", "replaced"), [(STUCK - 1, []), (STUCK + 1, ["worker 0"])])
def test_a_worker_whose_main_thread_hangs_is_reported_and_replaced(stuck: float, replaced: list[str]) -> None:
    ray = Simulated([report(workers={"0": Heard(HERE, stuck=stuck), "1": Heard(WORKER)})], stops_after=4)
    ray.run()
    assert ray.killed == replaced
    if not replaced:
        assert ray.observed[-1].waiting_for == f"Ray: worker 0 makes no progress for {stuck:.0f} s"


def test_workers_and_a_coordinator_whose_target_is_at_work_on_a_long_request_are_not_replaced() -> None:
    """The sweep of a large table would never end: the next one would begin the same statement."""
    long = STUCK * 10
    at_work = report(stuck=long, age=long, at_work=True, workers={"0": Heard(HERE, stuck=long, at_work=True)})
    ray = Simulated([at_work], stops_after=8)
    ray.run()
    assert ray.killed == []
    assert ray.observed[-1].waiting_for == f"Ray: the coordinator makes no progress for {long:.0f} s"


def test_what_the_target_says_of_its_work_holds_for_five_minutes_and_reaches_the_driver() -> None:
    clock = Clock()
    recorder = Recorder(clock)
    assert not recorder.at_work
    recorder.working()
    clock.time += STUCK - 1
    assert (recorder.at_work, recorder.stuck) == (True, STUCK - 1)
    clock.time += 2
    assert not recorder.at_work
    coordinator = Quiet(PLAN)
    coordinator.exchange("1", FromWorker(WORKER, at_work=True))
    told = coordinator.report({}, {})
    assert (told.at_work, told.workers["1"].at_work) == (False, True)
    coordinator._recorder.working()
    assert coordinator.report({}, {}).at_work


def test_a_worker_tells_that_its_target_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "EXCHANGE_INTERVAL", 0.001)
    told = threading.Event()

    def exchange(_: str, said: FromWorker) -> ToWorker:
        if said.at_work:
            told.set()
        return ToWorker()

    def work(_owner: Any, _stop: Any, recorder: Recorder, _news: Any) -> None:
        recorder.working()
        assert told.wait(60)

    worker = WorkerActor(PLAN, "1", exchange)
    monkeypatch.setattr(worker, "_work", work)
    assert worker.run().failure is None


def test_the_target_of_an_actor_tells_it_while_it_waits_for_a_long_request(monkeypatch: pytest.MonkeyPatch) -> None:
    class Long(MemoryTarget):
        def while_waiting(self, working: Callable[[], None]) -> None:
            self.working = working

    target = Long(MemoryDatabase())
    monkeypatch.setattr(connections, "connect", lambda _: None)
    monkeypatch.setattr(connections, "describe_table", lambda *_: None)
    monkeypatch.setattr(connections, "ends", lambda _: contextlib.nullcontext((target, None)))
    monkeypatch.setattr(connections, "assemble", lambda *_: None)
    recorder = Recorder()
    environment = Environment(threading.Event(), lambda _: None, measurements=recorder)
    with connections.connected(PLAN.config, None, environment):
        assert not recorder.at_work
        target.working()
        assert recorder.at_work


@pytest.mark.parametrize("later", [None, 1], ids=["starting", "started"])
def test_a_process_that_ray_has_already_replaced_is_not_killed_once_more(later: int | None) -> None:
    """It would be the new one, which has not said anything yet: on a busy machine a start takes longer than that."""
    turns = int(4 * (unheard(10.0) + 2))
    reports = [report(workers={"0": Heard(HERE, silent=n / 4), "1": Heard(WORKER)}) for n in range(turns)]
    ray = Simulated([*reports], stops_after=turns)
    ray.incarnation = lambda _: 0 if ray.now < 1.0 else later
    ray.run()
    assert ray.killed == []
    hanging = Hanging([report()], stops_after=int(4 * (HANGS + 5)))
    hanging.incarnation = lambda _: 0 if hanging.now < 0.3 else later
    hanging.run()
    assert hanging.killed == []


def test_what_a_worker_waits_for_is_what_the_run_waits_for() -> None:
    stored = tuple(WorkerProgress(slot, "here", 1, silent=40.0) for slot in ("coordinator", "0", "1"))
    said = {"0": Heard(HERE), "1": Heard(WORKER, 0.5, waiting_for="no route")}
    ray = Simulated([report(progress=Progress("live", workers=stored), workers=said)], stops_after=3)
    ray.run()
    assert ray.observed[-1].waiting_for == "worker 1: no route"
    assert ray.observed[-1].workers[2] == WorkerProgress("1", "here", 3, silent=0.5, waiting_for="no route", restarts=0)


class Hanging(Simulated):
    """The coordinator stops responding after its first report, until it was replaced."""

    def wait(self, refs: list[Ref], num_returns: int = 1, timeout: float = 0.0) -> tuple[list[Ref], list[Ref]]:
        asked = [ref for ref in refs if isinstance(ref.result, FromCoordinator)]
        if asked and len(self.logged) > 1 and not self.killed:
            self.now += timeout
            return [], refs
        return super().wait(refs, num_returns, timeout)


def test_a_coordinator_that_hangs_is_reported_and_replaced_and_meanwhile_the_lag_grows() -> None:
    live = Progress("live", lag_seconds=1.0)
    ray = Hanging([report(progress=live)], stops_after=100)
    ray.run()
    assert ray.killed == ["coordinator"]
    reported = next(p for p in ray.observed if p.waiting_for == "Ray: the coordinator does not respond")
    assert reported.phase == "catching-up"
    assert reported.lag_seconds is not None
    assert UNHEARD < reported.lag_seconds < HANGS
    assert ray.observed[-1] == live, "the next one reports again"


def test_a_coordinator_whose_own_thread_hangs_is_unhealthy_and_then_replaced() -> None:
    def hanging(seconds: float) -> FromCoordinator:
        return report(progress=Progress("live", lag_seconds=1.0), age=seconds, stuck=seconds)

    clock = Clock()
    monitor = Monitor(SUBJECT, now=clock, monotonic=clock)
    turn = 0.26  # seconds that one takes in this simulation
    turns = int(STUCK / turn) + 4
    ray = Simulated([hanging(turn * n) for n in range(turns)], stops_after=turns)

    def observe(progress: Progress) -> None:
        clock.time = NOW + ray.now
        monitor.observe(progress)
        if ray.now == pytest.approx(STUCK / 2, abs=0.2):
            verdicts.append(monitor.health())

    verdicts: list[Verdict] = []
    ray.observed = SimpleNamespace(append=observe)  # type: ignore[assignment]
    ray.run()
    assert ray.killed == ["coordinator"]
    assert not verdicts[0].ok
    assert "waiting for: Ray: the coordinator makes no progress for" in verdicts[0].reason


def test_workers_that_ray_has_not_started_are_what_the_run_waits_for() -> None:
    ray = Simulated([report(workers={"0": Heard(HERE)})], stops_after=100)
    ray.run()
    assert ray.observed[0].waiting_for is None
    assert ray.observed[-1].waiting_for == "Ray: 1 of 2 workers have not started: no CPU is free, or nodes are slow"


def test_restarts_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    other = Where("b", "there", 2)
    moved = report(workers={"0": Heard(other), "1": Heard(WORKER)})
    ray = Simulated([report(), replace(moved, where=other)], stops_after=5)
    with caplog.at_level(logging.WARNING, "replicator"):
        ray.run()
    assert [(r.message, vars(r)["host"]) for r in caplog.records] == [
        ("coordinator restarted", "there"),
        ("worker restarted", "there"),
    ]
    assert ray.restarts == {"coordinator": 1, "0": 1, "1": 0}, "they are stored, for status"


def test_a_process_that_was_killed_before_anything_was_heard_of_it_counts_as_a_restart(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ray = Simulated([report()], stops_after=5)
    ray.incarnation = lambda actor: {"coordinator": 1, "worker 0": 2}.get(actor.name, 0)
    with caplog.at_level(logging.WARNING, "replicator"):
        ray.run()
    assert [r.message for r in caplog.records] == ["coordinator restarted", "worker restarted"]
    assert ray.restarts == {"coordinator": 1, "0": 2, "1": 0}


def test_a_process_that_was_killed_while_it_was_first_heard_of_counts_as_one_restart() -> None:
    other = report(workers={"0": Heard(Where("b", "here", 2)), "1": Heard(WORKER)})
    ray = Simulated([report(), other], stops_after=5)
    ray.incarnation = lambda actor: 1 if actor.name == "worker 0" else 0
    ray.run()
    assert ray.restarts == {"coordinator": 0, "0": 1, "1": 0}


def test_a_coordinator_that_does_not_come_back_is_reported_and_then_ends_the_run() -> None:
    ray = Simulated([report(), RayActorError("no node is left\nTraceback")], stops_after=2000)
    with pytest.raises(TransientError, match=r"engine: Ray does not run the coordinator: no node is left$"):
        ray.run()
    assert ray.observed[-1].waiting_for == "Ray: the coordinator does not respond"
    assert ray.now >= GIVEN_UP


def test_a_bug_in_an_actor_is_shown_without_item_data(caplog: pytest.LogCaptureFixture) -> None:
    data = {"card": "4711"}

    def work() -> None:
        raise KeyError(data["card"])

    ray = Simulated([report(ended=guarded(work))])
    with caplog.at_level(logging.ERROR, "replicator"), pytest.raises(RuntimeError, match="failed unexpectedly"):
        ray.run()
    (record,) = caplog.records
    assert "KeyError: (message hidden" in vars(record)["traceback"]
    assert "4711" not in vars(record)["traceback"]


# What the processes send each other


def test_events_of_an_actor_are_logged_again_with_the_worker_that_logged_them(caplog: pytest.LogCaptureFixture) -> None:
    buffer = EventBuffer()
    logger = logging.Logger("actor")
    logger.addHandler(buffer)
    logger.warning("slot claimed", extra={"epoch": 3, "object": object(), "counts": {"read": 1}})
    sent = buffer.unlogged("w")
    assert sent.events == (Event(logging.WARNING, "slot claimed", {"epoch": 3, "counts": {"read": 1}}),)
    ray = Simulated([report(logs=(("1", sent),))], stops_after=3)
    with caplog.at_level(logging.INFO, "replicator"):
        ray.run()
    assert [(r.message, vars(r)["worker"], vars(r)["epoch"]) for r in caplog.records] == [("slot claimed", "1", 3)]
    assert ray.logged[-1] == {"w": 1}, "and that is confirmed"
    buffer.logged(1)
    assert buffer.unlogged("w") == Unlogged("w", 2)


def test_only_the_oldest_events_are_dropped_if_too_many_are_not_fetched() -> None:
    buffer = EventBuffer()
    logger = logging.Logger("actor")
    logger.addHandler(buffer)
    for n in range(MOST_EVENTS + 2):
        logger.warning("%d", n)
    assert (buffer.unlogged("w").first, buffer.unlogged("w").events[0].text) == (3, "2")


def test_events_of_a_worker_are_sent_until_they_are_confirmed_and_the_last_ones_come_with_its_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(actors, "EXCHANGE_INTERVAL", 0.001)
    sent: list[Unlogged] = []
    twice, logger = threading.Event(), logging.getLogger("replicator")

    def exchange(_: str, said: FromWorker) -> ToWorker:
        sent.append(said.log)
        if said.log.events and not twice.is_set():
            if sent[-2:] != [said.log, said.log]:
                raise RayActorError("the coordinator is being restarted")
            twice.set()
        return ToWorker(logged=0)

    def work(*_: Any) -> None:
        logger.warning("first")
        assert twice.wait(60)
        logger.warning("last")

    worker = WorkerActor(PLAN, "1", exchange)
    monkeypatch.setattr(worker, "_work", work)
    ended = worker.run()
    assert ended.log is not None
    assert [event.text for event in ended.log.events] == ["first", "last"]


def test_events_that_are_sent_again_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    first, last = Event(logging.WARNING, "first", {}), Event(logging.WARNING, "last", {})
    ray = Simulated([report(logs=(("1", Unlogged("w", 1, (first,))),))])
    run = Run(ray, PLAN, Environment(threading.Event(), lambda _: None, monotonic=lambda: ray.now))
    ray.works[1].result = Ended(ConfigError("transform: no"), log=Unlogged("w", 1, (first, last)))
    with caplog.at_level(logging.WARNING, "replicator"), pytest.raises(ConfigError, match="transform: no"):
        run.work()
    assert [r.message for r in caplog.records] == ["first", "last"]


class Quiet(CoordinatorActor):
    """Only hears and tells."""

    def _run(self) -> None: ...


def test_a_coordinator_passes_events_on_until_the_driver_has_them() -> None:
    said = FromWorker(WORKER, Unlogged("w", 1, (Event(logging.ERROR, "gap", {}),)))
    coordinator = Quiet(PLAN)
    assert coordinator.exchange("1", said).logged == 0
    assert ("1", said.log) in coordinator.report({}, {}).logs
    assert ("1", said.log) in coordinator.report({"w": 1}, {}).logs
    assert coordinator.exchange("1", FromWorker(WORKER)).logged == 1


def test_a_hook_that_was_edited_during_the_run_is_refused_by_a_process_that_starts(tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text("def hook(item):\n    return item\n")
    config = replace(PLAN.config, path=tmp_path / "c.yaml", transform="hooks.py:hook")
    hook = load("hooks.py:hook", tmp_path)
    plan = replace(PLAN, config=config, hook=hook.fingerprint)
    assert actors.hook_of(plan) is not None
    (tmp_path / "hooks.py").write_text("def hook(item):\n    return None\n")
    with pytest.raises(
        ConfigError, match=r"hooks.py:hook on .* is not what this run was started with: its file may not"
    ):
        actors.hook_of(plan)


def test_the_config_is_found_from_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of a cluster have that of ``ray start``."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    monkeypatch.chdir(here)
    sent = pickle.dumps(replace(PLAN, config=replace(PLAN.config, path=Path("orders.yaml"))))
    monkeypatch.chdir(there)
    assert pickle.loads(sent).config.base == here


def test_measurements_of_an_actor_are_counted_by_the_driver_once() -> None:
    class Counting(Unmeasured):
        def __init__(self) -> None:
            self.calls: list[tuple[Any, ...]] = []

        def stored(self, changes: int, seconds: float) -> None:
            self.calls.append((changes, seconds))

        def retried(self, cause: str) -> None:
            self.calls.append((cause,))

        def responded(self, operation: str, outcome: str) -> None:
            self.calls.append((operation, outcome))

        def scanned(self, read_units: float) -> None:
            self.calls.append(("scanned", read_units))

    recorder, counting = Recorder(), Counting()
    recorder.stored(5, 0.1)
    recorder.retried("target")
    recorder.responded("Scan", "ok")
    recorder.responded("Scan", "ok")
    recorder.scanned(1.5)
    recorder.scanned(2.0)
    for _ in range(2):
        pickle.loads(pickle.dumps(recorder.fetch())).replay(counting)
    assert counting.calls == [(5, 0.1), ("target",), ("Scan", "ok"), ("Scan", "ok"), ("scanned", 3.5)]


# Ray itself


def test_a_version_of_ray_that_does_not_fit_is_refused() -> None:
    check_version("2.60.0")
    check_version("2.61.1rc1")
    for version in ("2.59.9", "3.0.0"):
        with pytest.raises(ConfigError, match=rf"Ray {version} is installed, but 2.60 or newer, below 3, is needed"):
            check_version(version)


def test_without_ray_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> str:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr("replicator.engine.ray.cluster.importlib.metadata.version", missing)
    with (
        pytest.raises(
            ConfigError, match=r"engine.type: Ray is not installed: pip install '\.\[ray\]' in a clone of replicator"
        ),
        cluster(Ray()),
    ):
        pass


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (
            ConnectionError("nobody\nthere"),
            TransientError,
            "engine.address: no Ray cluster answers at auto: nobody. Start this command on a node of a cluster;",
        ),
        (RuntimeError("Version mismatch"), ConfigError, "cannot join the Ray cluster at auto: Version mismatch"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_named(
    monkeypatch: pytest.MonkeyPatch, error: Exception, raised: type[Exception], said: str
) -> None:
    def init(**_: Any) -> None:
        raise error

    fake = SimpleNamespace(init=init)
    monkeypatch.setattr("replicator.engine.ray.cluster.importlib.import_module", lambda _: fake)
    with pytest.raises(raised, match=said), cluster(Ray(address="auto")):
        pass


class AuthenticationError(RayError):
    """Of a process with ``RAY_AUTH_MODE`` and no token."""


WRONG_TOKEN = ConnectionError("Failed to connect to Ray cluster at 127.0.0.1:6379")
WRONG_TOKEN.__cause__ = RuntimeError("Traceback\nray.exceptions.AuthenticationError: InvalidAuthToken")


@pytest.mark.parametrize("error", [WRONG_TOKEN, AuthenticationError("no token was found")], ids=type)
def test_a_cluster_that_refuses_the_token_is_not_taken_for_one_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It would be tried for ever."""
    errors = SimpleNamespace(AuthenticationError=AuthenticationError)
    fake = SimpleNamespace(init=_raising(error), exceptions=errors)
    monkeypatch.setattr("replicator.engine.ray.cluster.importlib.import_module", lambda _: fake)
    said = "cannot join the Ray cluster at auto: it refuses the token of this process, or there is none. RAY_AUTH_MODE"
    with pytest.raises(ConfigError, match=said), cluster(Ray(address="auto")):
        pass


def _raising(error: Exception) -> Callable[..., None]:
    def init(**_: Any) -> None:
        raise error

    return init


@pytest.mark.parametrize(("before", "tries"), [(None, "1"), ("7", "7")], ids=["by default", "as its user says"])
def test_ray_tries_once_to_join_what_may_be_no_cluster(
    monkeypatch: pytest.MonkeyPatch, before: str | None, tries: str
) -> None:
    """A try takes 41 seconds where something listens that is no head."""
    monkeypatch.setenv("RAY_NUM_REDIS_GET_RETRIES", before or "")  # restored afterwards
    if before is None:
        monkeypatch.delenv("RAY_NUM_REDIS_GET_RETRIES")
    imported: list[str | None] = []

    def ray(_: str) -> Any:
        imported.append(os.environ.get("RAY_NUM_REDIS_GET_RETRIES"))
        return SimpleNamespace(init=_raising(ConnectionError("Failed to connect to Ray cluster at 127.0.0.1:8265")))

    monkeypatch.setattr("replicator.engine.ray.cluster.importlib.import_module", ray)
    said = r"8265\. If something listens there, it is no head of Ray 2\.x .* Start this command on a node of a cluster"
    with pytest.raises(TransientError, match=said), cluster(Ray(address="auto")):
        pass
    assert imported == [tries]


def test_an_address_where_nothing_listens_is_named_before_ray_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise AssertionError("Ray waits for more than a minute")

    fake = SimpleNamespace(init=init)
    monkeypatch.setattr("replicator.engine.ray.cluster.importlib.import_module", lambda _: fake)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        said = f"engine.address: no Ray cluster answers at {address}: .*refused"
        with pytest.raises(TransientError, match=said), cluster(Ray(address=address)):
            pass


@pytest.mark.parametrize("code", [errno.EHOSTUNREACH, errno.ENETUNREACH])
def test_a_head_whose_machine_is_down_may_be_there_later(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def connect(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("replicator.engine.ray.cluster.importlib.import_module", lambda _: SimpleNamespace())
    monkeypatch.setattr(socket, "create_connection", connect)
    said = f"no Ray cluster answers at 10.0.0.5:6379: .*{os.strerror(code)}. Start this command on a node"
    with pytest.raises(TransientError, match=said), cluster(Ray(address="10.0.0.5:6379")):
        pass


def test_a_ray_that_does_not_start_on_this_machine_leaves_no_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def init(**_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")  # restored afterwards
    fake = SimpleNamespace(init=init)
    monkeypatch.setattr("replicator.engine.ray.cluster.importlib.import_module", lambda _: fake)
    with pytest.raises(ConfigError, match=r"engine: Ray does not start on this machine: no space left"), cluster(Ray()):
        pass
    assert list(tmp_path.iterdir()) == []
