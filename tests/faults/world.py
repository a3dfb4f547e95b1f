"""Runs ``replicator run`` in this process on a virtual clock: days pass in milliseconds, faults are scheduled by tests.

The command line, the config, the driver and the readers are the production code. In memory are the source, the target
and its checkpoints; ``run`` gives what a person sees: exit code, events, and what was printed as an error.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from replicator.aws.client import Client
from replicator.cli import main
from replicator.engine import assembly, context
from replicator.engine import run as running
from replicator.engine.scheduler import StepResult
from replicator.pipeline.progress import Progress
from replicator.state import Counts, Gap, ShardState, decode
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.memory import MemoryCheckpoints, MemoryDatabase, MemoryTarget
from tests.cli.command_line import words
from tests.engine.virtual_scheduler import VirtualSteps

TABLE = "orders"
HOUR = 3600.0
LATENCY = 0.002  # seconds that each step takes
TURNS = 300_000  # looks for a step after which a run has failed to end

_CONFIG = """\
pipeline: orders
source: {table: orders, region: us-east-1}
target: {type: postgres, url: "postgresql://localhost/shop", table: orders}
"""


@dataclass(frozen=True)
class Ended:
    """How a run ended. ``events`` are its JSON lines."""

    code: int
    err: str
    events: list[dict[str, Any]]

    def event(self, name: str) -> dict[str, Any]:
        return next(e for e in self.events if e["event"] == name)


@dataclass
class Clock:
    """Seconds since 1970, and planned events. ``skew``: how far this machine's clock is ahead of AWS's."""

    now: float = 1_700_000_000.0
    skew: float = 0.0
    planned: list[tuple[float, int, Callable[[], object]]] = field(default_factory=list)
    order: Iterator[int] = field(default_factory=itertools.count)

    def __call__(self) -> float:
        return self.now

    def plan(self, after: float, act: Callable[[], object]) -> None:
        heapq.heappush(self.planned, (self.now + after, next(self.order), act))

    def move(self, to: float) -> None:
        """Advance the clock, running the events that become due."""
        while self.planned and self.planned[0][0] <= to:
            at, _, act = heapq.heappop(self.planned)
            self.now = max(self.now, at)
            act()
        self.now = max(self.now, to)

    def machine(self) -> float:
        return self.now + self.skew


class Stop:
    """``threading.Event`` on the virtual clock; set once ``until`` is reached."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.until: float | None = None

    def is_set(self) -> bool:
        return self.until is not None and self.clock() >= self.until

    def wait(self, timeout: float | None = None) -> bool:
        self.clock.move(self.clock() + (timeout or 0.0))
        return self.is_set()


class OrderedScheduler(VirtualSteps):
    """A ``Scheduler`` that makes each call at once: what is due first comes next, and waiting moves the clock.

    Like the real one it measures rests by a clock that nobody sets.
    """

    def __init__(self, clock: Clock, client: Client) -> None:
        super().__init__(client)
        self._clock = clock
        self._passed = 0.0  # as ``time.monotonic`` would say
        self._turns = 0
        self._queue: list[tuple[float, int, str]] = []
        self._order = itertools.count()

    def again(self, name: str, rest: float = 0.0) -> None:
        heapq.heappush(self._queue, (self._passed + rest, next(self._order), name))

    def clear(self) -> None:
        super().clear()
        self._queue.clear()

    def get(self, timeout: float) -> StepResult | None:
        self._turns += 1
        assert self._turns < TURNS, "the run does not end"
        due = self._queue[0][0] if self._queue else self._passed + timeout
        if due > self._passed:
            self._pass(min(due - self._passed, timeout))
        if not self._queue or self._queue[0][0] > self._passed:
            return None
        _, _, name = heapq.heappop(self._queue)
        self._pass(LATENCY)
        return self._step(name)

    def _pass(self, seconds: float) -> None:
        self._passed += seconds
        self._clock.move(self._clock() + seconds)


class Recorded:
    """A client that records its calls with their times."""

    def __init__(self, db: DynamoDB, clock: Clock) -> None:
        self.db, self._clock = db, clock
        self.asked: list[tuple[float, str, Mapping[str, Any]]] = []

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        self.asked.append((self._clock(), operation, request))
        return self.db.call(operation, request)

    def times(self, operation: str) -> list[float]:
        return [at for at, asked, _ in self.asked if asked == operation]


class World:
    """A table ``orders`` with key ``id``, a pipeline from it, and everything that survives a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = Clock()
        self.random = random.Random(1)
        self.db = DynamoDB(now=self.clock, random=self.random)
        self.client: Any = Recorded(self.db, self.clock)
        self.database = MemoryDatabase()
        self.target: Callable[[], Any] = lambda: MemoryTarget(self.database)
        self.store: Callable[[], Any] = lambda: MemoryCheckpoints(self.database)
        self.stop = Stop(self.clock)
        (folder / "orders.yaml").write_text(_CONFIG)

    @contextlib.contextmanager
    def ends(self, _: object) -> Iterator[tuple[Any, Any]]:
        """The target and its checkpoints, as ``engine.assembly`` opens them."""
        target = self.target()
        yield target, getattr(target, "checkpoints", None) or self.store()

    # What a test changes

    def configure(self, **options: Any) -> None:
        text = "".join(f"{name}: {orjson.dumps(value).decode()}\n" for name, value in options.items())
        (self.folder / "orders.yaml").write_text(_CONFIG + text)

    def hook(self, source: str) -> None:
        (self.folder / "hooks.py").write_text(source)
        self.configure(transform="hooks.py:hook")

    def put(self, *ids: str, **values: object) -> None:
        for id in ids:
            self.db.put(TABLE, {"id": id, **values})

    def fill(self, items: int = 6, shards: int = 1) -> None:
        self.db.create_table(TABLE, shards=shards)
        self.put(*(f"k{n}" for n in range(items)))

    # Runs

    def run(self, *arguments: str, seconds: float | None = None, name: str = "run") -> Ended:
        """A run that is stopped after so many seconds, or that ends when it has caught up."""
        self.stop.until = None if seconds is None else self.clock() + seconds
        now = ("--now",) if name == "resync" else ()
        until = now if seconds is not None else (*now, "--until", "caught-up")
        done = CliRunner().invoke(main, [name, str(self.folder / "orders.yaml"), *until, *arguments])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Ended(done.exit_code, words(done.stderr), [orjson.loads(line) for line in done.stdout.splitlines()])

    def printed(self, name: str, *arguments: str) -> tuple[str, str]:
        """Run a command that must succeed: standard output, standard error."""
        self.stop.until = None
        done = CliRunner().invoke(main, [name, str(self.folder / "orders.yaml"), *arguments])
        assert done.exit_code == 0, done.stderr
        return done.stdout, done.stderr

    def copied(self) -> Ended:
        """A run that must catch up and leave an equal copy."""
        ended = self.run()
        assert ended.code == 0, ended
        self.assert_equal()
        return ended

    # What a run left

    @property
    def documents(self) -> dict[str, Any]:
        return {id[0]: document for id, document in self.database.documents(TABLE).items()}

    def assert_equal(self) -> None:
        """The copy equals the table, and every change was counted once."""
        assert self.documents == {i["id"]: {k: _plain(v) for k, v in i.items()} for i in self.db.items(TABLE)}
        total = self.counts
        assert total.read == total.applied + total.superseded + total.filtered + total.parked

    @property
    def counts(self) -> Counts:
        return sum(self.database.counts.values(), Counts())

    def states(self, kind: str) -> dict[str, Any]:
        return {id: decode(k, id, text) for (k, id), (_, text) in self.database.entries.items() if k == kind}

    @property
    def shards(self) -> dict[str, ShardState]:
        return self.states("shard")

    @property
    def gaps(self) -> list[Gap]:
        return [g for g in self.states("gap").values() if g.repaired is None]


def _plain(value: object) -> object:
    return value if isinstance(value, str) else int(str(value))


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(tmp_path)

    def outside(stop: Any, observe: Callable[[Progress], None], hook_limit: Any, **more: Any) -> context.Environment:
        clock = world.clock
        return context.Environment(
            stop, observe, clock.machine, world.random, partial(OrderedScheduler, clock), clock, hook_limit, **more
        )

    monkeypatch.setattr(running, "connect", lambda *_: world.client)
    monkeypatch.setattr(assembly, "ends", world.ends)
    monkeypatch.setattr(running, "ends", world.ends)
    monkeypatch.setattr(running, "Environment", outside)
    monkeypatch.setattr(running, "tune_allocator", lambda: None)
    monkeypatch.setattr(sys.modules["replicator.cli.run"], "stop_on_signals", lambda *_: world.stop)
    logger = logging.getLogger("replicator")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield world
    logger.handlers[:], logger.level, logger.propagate = before
