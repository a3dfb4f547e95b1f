"""The processes of a run on Ray: one coordinator, and workers. What they know is in the checkpoints, or in the plan.

Ray restarts them, on another node if theirs is gone, and has a restarted worker do its work again. The process that was
replaced may still be there: each claims its slot with a name of its own, so the checkpoints fence the earlier one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from replicator import log as logs
from replicator.engine.connections import connected
from replicator.engine.context import Environment
from replicator.engine.coordinator import Coordinator
from replicator.engine.ray.reports import (
    Ended,
    EventBuffer,
    FromCoordinator,
    FromWorker,
    Heard,
    Measured,
    Plan,
    Recorder,
    ToWorker,
    Unlogged,
    Where,
)
from replicator.engine.retry import Stopped
from replicator.engine.run import tune_allocator
from replicator.engine.startup import Allowed
from replicator.engine.worker import Post, Worker
from replicator.errors import ConfigError, Fenced, ReplicatorError
from replicator.hooks import redaction
from replicator.hooks.hook import Hook
from replicator.hooks.loading import load
from replicator.hooks.time_limit import HookLimit
from replicator.pipeline.progress import Progress
from replicator.state import Entry, Owner

log = logging.getLogger("replicator")

EXCHANGE_INTERVAL = 0.5  # seconds between two messages of a worker to the coordinator
RESPONSE_TIMEOUT = 5.0  # seconds that it waits for the response
AGAIN = 0.5  # seconds after which a coordinator that was fenced may begin again


def guarded(work: Callable[[], None]) -> Ended:
    """How ``work`` ended. The messages of unexpected exceptions may contain item data: they are hidden."""
    try:
        work()
    except ReplicatorError as e:
        return Ended(e)
    except Exception as e:
        return Ended(bug=redaction.trace(e).stack)
    return Ended()


def started() -> tuple[Owner, Where]:
    """This process, from now on: as an owner of slots, and for reports."""
    owner = Owner(uuid.uuid4().hex, socket.gethostname(), os.getpid(), time.time())
    return owner, Where(owner.run, owner.host, owner.pid)


def hook_of(plan: Plan) -> Hook | None:
    """The hook, loaded on this node. ConfigError if it is not the driver's: processes of one run share a hook."""
    config = plan.config
    if config.transform is None:
        return None
    hook = load(config.transform, config.base)
    if hook.fingerprint != plan.hook:
        raise ConfigError(
            f"transform: {config.transform} on {socket.gethostname()} is not what this run was started with: its file "
            "may not change during a run, and must be the same on every node. Start the run again"
        )
    return hook


class WorkerActor:
    """Works on one slot. ``coordinator``: tells the coordinator something, and returns its response."""

    def __init__(self, plan: Plan, slot: str, coordinator: Callable[[str, FromWorker], ToWorker]) -> None:
        self._plan, self._slot, self._coordinator = plan, slot, coordinator

    def run(self) -> Ended:
        """Until told to stop, or until something is wrong. On the main thread: only there hooks can be interrupted."""
        stop, recorder, events, news = (
            threading.Event(),
            Recorder(),
            EventBuffer(logging.WARNING),
            deque[tuple[Entry, ...]](),
        )
        logs.silence_libraries()
        logs.install(events)
        owner, where = started()

        def exchange() -> None:
            measured: Measured | None = None
            while not done.wait(EXCHANGE_INTERVAL):
                measured = measured or recorder.fetch()
                said = FromWorker(
                    where, events.unlogged(where.id), measured, recorder.reason, recorder.stuck, recorder.at_work
                )
                with contextlib.suppress(Exception):  # it is being restarted: what was not received is sent again
                    told = self._coordinator(self._slot, said)
                    measured = None
                    events.logged(told.logged)
                    news.append(told.entries)
                    if told.stop:
                        stop.set()

        done = threading.Event()
        talking = threading.Thread(target=exchange, daemon=True, name="exchange")
        talking.start()
        try:
            ended = guarded(lambda: self._work(owner, stop, recorder, news))
            return replace(ended, log=events.unlogged(where.id))
        finally:
            done.set()
            talking.join(RESPONSE_TIMEOUT)

    def _work(self, owner: Owner, stop: threading.Event, recorder: Recorder, news: deque[tuple[Entry, ...]]) -> None:
        config, hook = self._plan.config, hook_of(self._plan)
        environment = Environment(stop, _ignored, hook_limit=HookLimit(config.hook_timeout), measurements=recorder)
        post = Post(self._slot, self._plan.run, len(self._plan.slots))
        worker = Worker(post, owner, lambda: connected(config, hook, environment), environment)
        tune_allocator()

        def told() -> tuple[Entry, ...]:
            recorder.active()
            return news.popleft() if news else ()

        worker.run(told)


def _ignored(_: Progress) -> None:
    """Workers report what they store; the coordinator makes one picture of it."""


class CoordinatorActor:
    """Coordinates the run on a thread of its own, hears the workers, and tells the driver."""

    def __init__(self, plan: Plan) -> None:
        logs.silence_libraries()
        self._events = EventBuffer()
        logs.install(self._events)
        self._plan = plan
        self._owner, self._where = started()
        self._recorder, self._stop, self._caught_up = Recorder(), threading.Event(), threading.Event()
        self._lock = threading.Lock()  # of what follows: several threads hear workers and the driver
        self._draining = False
        self._news: dict[str, tuple[Entry, ...]] = {}
        self._said: dict[str, tuple[float, FromWorker]] = {}  # when, and what each worker said last
        self._measured: list[Measured] = []
        self._logged: Mapping[str, int] = {}
        self._restarts: Mapping[str, int] = {}
        self._progress: tuple[float, Progress] | None = None
        self._parked = 0
        self._told_of = 0.0  # when what the last news are of was read
        self._ended: Ended | None = None
        self._asked = -math.inf  # when the driver last asked for a report
        self._claimed = False
        threading.Thread(target=self._run, daemon=True, name="coordinator").start()

    # Called by others

    def exchange(self, slot: str, said: FromWorker) -> ToWorker:
        with self._lock:
            self._said[slot] = (time.monotonic(), said)
            self._measured.append(said.measured)
            return ToWorker(self._draining, self._news.pop(slot, ()), self._logged.get(said.where.id, 0))

    def drain(self) -> None:
        """Tell the workers to store what is in flight, and to end."""
        with self._lock:
            self._draining = True

    def end(self) -> None:
        """End, now that no worker is left."""
        self._stop.set()

    def report(self, logged: Mapping[str, int], restarts: Mapping[str, int]) -> FromCoordinator:
        """What is new since the last report. ``logged``: by process, the number of its last event that was logged.
        ``restarts``: of each actor, by its slot.
        """
        self._restarts, self._asked = restarts, time.monotonic()
        ended = self._ended  # first: the events that led to it are there
        with self._lock:
            measured, self._measured, self._logged, now = self._measured, [], logged, time.monotonic()
            self._events.logged(logged.get(self._where.id, 0))
            at, progress = self._progress or (now, None)
            workers = {
                slot: Heard(said.where, now - heard, said.waiting_for, said.stuck, said.at_work)
                for slot, (heard, said) in self._said.items()
            }
            logs: list[tuple[str, Unlogged]] = [("", self._events.unlogged(self._where.id))]
            return FromCoordinator(
                where=self._where,
                workers=workers,
                progress=progress,
                age=now - at,
                stuck=self._recorder.stuck,
                at_work=self._recorder.at_work,
                details=self._recorder.details,
                waiting_for=self._recorder.reason,
                logs=(*logs, *((slot, said.log) for slot, (_, said) in self._said.items())),
                measured=(self._recorder.fetch(), *measured),
                parked=self._parked,
                caught_up=self._caught_up.is_set(),
                ended=ended,
            )

    # On the coordinator's own thread

    def _run(self) -> None:
        ended = guarded(self._work)
        while isinstance(ended.failure, Fenced) and self._claimed and self._is_asked():
            self._claimed = False
            ended = guarded(self._work)
        self._ended = ended

    def _is_asked(self) -> bool:
        """Whether the driver asks this process, although it was fenced: by one that it replaced, and that was stopped
        before its claim. That one is not asked any more, and waits here. If another run has taken over, the next claim
        says so.
        """
        fenced = time.monotonic()
        while not self._stop.wait(AGAIN):
            if self._asked > fenced:
                return True
        return False

    def _work(self) -> None:
        plan, config, hook = self._plan, self._plan.config, hook_of(self._plan)
        environment = Environment(self._stop, self._observe, measurements=self._recorder)
        with contextlib.suppress(Stopped), connected(config, hook, environment) as context:
            coordinator = Coordinator(context, self._owner, environment, plan.slots, plan.run)
            self._claimed = True
            again = Allowed(sweep=plan.allowed.sweep)  # what was asked for is done once
            coordinator.start(plan.allowed if coordinator.is_new_run else again)
            tune_allocator()
            while not self._stop.is_set():
                self._recorder.active()
                coordinator.restarted(self._restarts)
                coordinator.step()
                self._take_news(coordinator)
            coordinator.end()
            self._parked = len(coordinator.pipeline.parked)

    def _take_news(self, coordinator: Coordinator) -> None:
        if coordinator.read_at != self._told_of:
            self._told_of = coordinator.read_at
            news = {slot: tuple(entries) for slot, entries in coordinator.news().items()}
            with self._lock:
                self._news = news
        if self._plan.until is not None and coordinator.caught_up:
            self._caught_up.set()

    def _observe(self, progress: Progress) -> None:
        self._progress = time.monotonic(), progress


@dataclass(frozen=True, slots=True)
class Asking:
    """How a worker asks the coordinator: by the ``name`` of its actor.

    A handle would be an object in Ray's store. That would be gone with its node, and the worker could not be restarted.
    """

    name: str

    def __call__(self, slot: str, said: FromWorker) -> ToWorker:
        import ray  # an extra

        told: ToWorker = ray.get(ray.get_actor(self.name).exchange.remote(slot, said), timeout=RESPONSE_TIMEOUT)
        return told
