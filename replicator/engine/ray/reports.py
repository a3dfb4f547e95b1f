"""What the processes of a run on Ray tell each other. Everything here is pickled."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from replicator import log as logs
from replicator.config.settings import Config
from replicator.engine.measurements import Cause, Measurements, Outcome
from replicator.engine.startup import Allowed
from replicator.errors import ReplicatorError
from replicator.pipeline.details import Details
from replicator.pipeline.progress import Progress
from replicator.state import Entry

MOST_EVENTS = 1000  # log events that a process keeps until they are fetched; the oldest are dropped


@dataclass(frozen=True, slots=True)
class Plan:
    """What every process of a run is given. ``run``: the revision of its claim of the pipeline."""

    config: Config
    run: int
    slots: tuple[str, ...]
    until: Literal["caught-up"] | None
    allowed: Allowed


@dataclass(frozen=True, slots=True)
class Event:
    """A log event, to be logged again by the driver."""

    level: int
    text: str
    fields: Mapping[str, Any]

    def log(self, **more: Any) -> None:
        logging.getLogger(logs.ROOT).log(self.level, self.text, extra={**self.fields, **more})


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
    """How a process' work ended. ``bug``: the redacted traceback of an unexpected exception."""

    failure: ReplicatorError | None = None
    bug: str = ""


@dataclass(frozen=True, slots=True)
class Where:
    """A process: ``id`` distinguishes it from any earlier one of the same worker."""

    id: str
    host: str
    pid: int


@dataclass(frozen=True, slots=True)
class FromWorker:
    """What a worker tells the coordinator, again and again."""

    where: Where
    events: tuple[Event, ...] = ()
    measured: Measured = Measured()


@dataclass(frozen=True, slots=True)
class ToWorker:
    """The coordinator's response. ``stop``: store what is in flight, and end."""

    stop: bool = False
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True)
class FromCoordinator:
    """What the coordinator tells the driver.

    ``silent``: seconds since each worker was last heard. ``ended``: the coordinator's own work has. ``caught_up``: it
    is time to end, as ``until`` says. ``parked``: items.
    """

    where: Where
    workers: Mapping[str, Where] = field(default_factory=dict)
    silent: Mapping[str, float] = field(default_factory=dict)
    progress: Progress | None = None
    details: Details | None = None
    waiting_for: str | None = None
    events: tuple[tuple[str, Event], ...] = ()  # with the slot of the worker that logged it, "" for the coordinator
    measured: tuple[Measured, ...] = ()
    parked: int = 0
    caught_up: bool = False
    ended: Ended | None = None


class EventBuffer(logging.Handler):
    """Keeps log events of at least a level until they are fetched."""

    def __init__(self, level: int = logging.INFO) -> None:
        super().__init__(level)
        self._events: list[Event] = []

    def emit(self, record: logging.LogRecord) -> None:
        fields = {name: value for name, value in logs.fields(record).items() if _is_plain(value)}
        self._events.append(Event(record.levelno, record.getMessage(), fields))  # under the handler's lock
        del self._events[:-MOST_EVENTS]

    def fetch(self) -> tuple[Event, ...]:
        with self.lock or threading.RLock():
            events, self._events = tuple(self._events), []
        return events


def _is_plain(value: object) -> bool:
    """Whether another process can read it without our classes."""
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)


class Recorder:
    """``Measurements`` that are kept until they are fetched, on another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reason: str | None = None  # what the startup waits for
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

    def waiting(self, reason: str | None) -> None:
        self.reason = reason

    def active(self) -> None: ...

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

    def scanned(self, read_units: float) -> None:
        with self._lock:
            self._scanned += read_units
