"""What the processes of a run on Ray tell each other. Everything here is pickled."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from replicator import log as logs
from replicator.config.settings import Config
from replicator.engine.measurements import Cause, Measurements, Outcome, Reader
from replicator.engine.startup import Allowed
from replicator.errors import ReplicatorError
from replicator.pipeline.details import Details
from replicator.pipeline.progress import Progress
from replicator.state import Entry

MOST_EVENTS = 1000  # log events that a process keeps until the driver has logged them; the oldest are dropped
AT_WORK = 300.0  # seconds for which the target's server counts as being at work after it was found so


@dataclass(frozen=True, slots=True)
class Plan:
    """What every process of a run is given. ``run``: the revision of its claim of the pipeline. ``hook``: the
    fingerprint of the driver's hook, "" without one. The config's path is absolute: processes that Ray starts on a
    cluster have the working directory of ``ray start``.
    """

    config: Config
    run: int
    slots: tuple[str, ...]
    until: Literal["caught-up", "backfilled"] | None
    allowed: Allowed
    hook: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", replace(self.config, path=self.config.path.absolute()))


@dataclass(frozen=True, slots=True)
class Event:
    """A log event, to be logged again by the driver."""

    level: int
    text: str
    fields: Mapping[str, Any]

    def log(self, **more: Any) -> None:
        logging.getLogger(logs.ROOT).log(self.level, self.text, extra={**self.fields, **more})


@dataclass(frozen=True, slots=True)
class Unlogged:
    """Events of a ``process`` (``Where.id``) that the driver may not have logged. ``first``: the first one's number.

    They are sent again until the driver has confirmed them, so that none is lost with a message, or with a coordinator.
    """

    process: str
    first: int = 1
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """What a process measured since it was last asked."""

    stored: tuple[tuple[int, float], ...] = ()
    retried: Mapping[Cause, int] = field(default_factory=dict)
    responded: Mapping[tuple[str, Outcome], int] = field(default_factory=dict)
    scanned: float = 0.0

    def replay(self, measurements: Measurements) -> None:
        for changes, seconds in self.stored:
            measurements.stored(changes, seconds)
        for cause, times in self.retried.items():
            for _ in range(times):
                measurements.retried(cause)
        for (operation, outcome), times in self.responded.items():
            for _ in range(times):
                measurements.responded(operation, outcome)
        if self.scanned:
            measurements.scanned(self.scanned)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process' work ended. ``bug``: the redacted traceback of an unexpected exception. ``log``: last events."""

    failure: ReplicatorError | None = None
    bug: str = ""
    log: Unlogged | None = None


@dataclass(frozen=True, slots=True)
class Where:
    """A process: ``id`` distinguishes it from any earlier one of the same worker."""

    id: str
    host: str
    pid: int


@dataclass(frozen=True, slots=True)
class FromWorker:
    """What a worker tells the coordinator, again and again.

    ``stuck``: seconds since its main thread did anything. ``at_work``: the target's server does, on a long request.
    """

    where: Where
    log: Unlogged = Unlogged("")
    measured: Measured = Measured()
    waiting_for: str | None = None
    stuck: float = 0.0
    at_work: bool = False


@dataclass(frozen=True, slots=True)
class ToWorker:
    """The coordinator's response. ``stop``: store what is in flight, and end. ``logged``: the number of the last of the
    worker's events that the driver has logged.
    """

    stop: bool = False
    entries: tuple[Entry, ...] = ()
    logged: int = 0


@dataclass(frozen=True, slots=True)
class Heard:
    """What the coordinator last heard of a worker, ``silent`` seconds ago; the rest is what it said."""

    where: Where
    silent: float = 0.0
    waiting_for: str | None = None
    stuck: float = 0.0
    at_work: bool = False


@dataclass(frozen=True, slots=True)
class FromCoordinator:
    """What the coordinator tells the driver.

    ``workers``: by slot. ``progress`` was true ``age`` seconds ago. ``stuck``: seconds since its thread did anything.
    ``at_work``: the target's server does, on a long request.
    ``ended``: the coordinator's own work has. ``caught_up``: it is time to end, as ``until`` says. ``parked``: items.
    """

    where: Where
    workers: Mapping[str, Heard] = field(default_factory=dict)
    progress: Progress | None = None
    age: float = 0.0
    stuck: float = 0.0
    details: Details | None = None
    waiting_for: str | None = None
    logs: tuple[tuple[str, Unlogged], ...] = ()  # with the worker's slot, "" for the coordinator
    measured: tuple[Measured, ...] = ()
    parked: int = 0
    caught_up: bool = False
    ended: Ended | None = None
    at_work: bool = False


class EventBuffer(logging.Handler):
    """Keeps log events of at least a level, numbered from 1, until the driver has logged them."""

    def __init__(self, level: int = logging.INFO) -> None:
        super().__init__(level)
        self._first = 1
        self._events: list[Event] = []

    def emit(self, record: logging.LogRecord) -> None:
        fields = {name: value for name, value in logs.fields(record).items() if _is_plain(value)}
        self._events.append(Event(record.levelno, record.getMessage(), fields))  # under the handler's lock
        self._drop(len(self._events) - MOST_EVENTS)

    def unlogged(self, process: str) -> Unlogged:
        with self.lock or threading.RLock():
            return Unlogged(process, self._first, tuple(self._events))

    def logged(self, last: int) -> None:
        """The driver has logged all events up to the one with this number."""
        with self.lock or threading.RLock():
            self._drop(last + 1 - self._first)

    def _drop(self, count: int) -> None:
        if count > 0:
            del self._events[:count]
            self._first += count


def _is_plain(value: object) -> bool:
    """Whether another process can read it without our classes."""
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)


class Recorder:
    """``Measurements`` that are kept until they are fetched, on another thread."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._lock, self._monotonic = threading.Lock(), monotonic
        self._active, self._worked = monotonic(), -math.inf
        self.reason: str | None = None  # what the run waits for, and tries again
        self.details: Details | None = None
        self._clear()

    def _clear(self) -> None:
        self._stored: list[tuple[int, float]] = []
        self._retried: Counter[Cause] = Counter()
        self._responded: Counter[tuple[str, Outcome]] = Counter()
        self._scanned = 0.0

    def fetch(self) -> Measured:
        with self._lock:
            measured = Measured(tuple(self._stored), dict(self._retried), dict(self._responded), self._scanned)
            self._clear()
        return measured

    def guarantee_reduced(self, reduced: str) -> None:
        """The driver knows it."""

    @property
    def stuck(self) -> float:
        """Seconds since the run's thread last did anything; a failed attempt that it repeats counts."""
        return self._monotonic() - self._active

    @property
    def at_work(self) -> bool:
        """Whether the target's server was found at work a few minutes ago, or later."""
        return self._monotonic() - self._worked < AT_WORK

    def waiting(self, reason: str | None) -> None:
        self.reason = reason
        self.active()

    def active(self) -> None:
        self._active = self._monotonic()

    def working(self) -> None:
        self._worked = self._monotonic()

    def detailed(self, details: Callable[[], Details]) -> None:
        self.details = details()

    def stored(self, changes: int, seconds: float) -> None:
        with self._lock:
            self._stored.append((changes, seconds))
            del self._stored[:-MOST_EVENTS]

    def retried(self, cause: Cause) -> None:
        with self._lock:
            self._retried[cause] += 1

    def responded(self, operation: str, outcome: Outcome) -> None:
        with self._lock:
            self._responded[operation, outcome] += 1

    def paged(self, reader: Reader) -> None:
        """Nothing: pipelines on Ray share no reader."""

    def scanned(self, read_units: float) -> None:
        with self._lock:
            self._scanned += read_units
