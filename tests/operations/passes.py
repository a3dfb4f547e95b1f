"""A copied table on a virtual clock, as a verification pass sees it beside a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from replicator.config.settings import load
from replicator.engine.context import Environment
from replicator.operations import verify as operation
from replicator.operations.pass_record import PassRecord
from replicator.operations.verify import Progress, Request, Tally, Watch, examine, opened
from replicator.pipeline.progress import passes_of
from replicator.state import FULL, SAMPLE, Heartbeat, ShardState, Verified, decode, encode
from replicator.testing.memory import MemoryCheckpoints
from replicator.verification.compared_ids import ComparedIds
from replicator.verification.differences import Finding
from replicator.verification.verifier import Result
from tests.faults.world import TABLE, OrderedScheduler, World


@dataclass
class Report:
    """What is reported. ``then``: called with each progress."""

    then: Callable[[], object] = lambda: None
    results: list[Result] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    def result(self, result: Result) -> None:
        self.results.append(result)

    def progress(self, progress: Progress) -> None:
        self.shares.append(progress.done or 0.0)
        self.then()

    def repair(self, finding: Finding, reason: str) -> None: ...
    def waiting(self, reason: str | None) -> None: ...


@dataclass
class Passes:
    """A copied table, beside which a run is up, as far as a pass sees it: heartbeats and positions every second."""

    world: World

    def __post_init__(self) -> None:
        self.world.copied()
        self._beat()

    def _beat(self) -> None:
        clock, entries = self.world.clock, self.world.database.entries
        entries["pulse", ""] = (1, encode(Heartbeat(clock(), "live")))
        for place in [place for place in entries if place[0] == "shard"]:
            revision, text = entries[place]
            state = decode(*place, text)
            assert isinstance(state, ShardState)
            entries[place] = (revision, encode(replace(state, through=clock())))
        clock.plan(1.0, self._beat)

    def make(
        self, request: Request, report: Report | None = None, seconds: float | None = None, watch: Watch | None = None
    ) -> Tally:
        """A pass that is stopped after so many seconds, or that ends."""
        world = self.world
        world.stop.until = None if seconds is None else world.clock() + seconds
        environment = Environment(
            world.stop,  # type: ignore[arg-type]
            lambda _: None,
            world.clock,
            world.random,
            lambda client: OrderedScheduler(world.clock, client),
            world.clock,
        )
        with opened(load(world.folder / "orders.yaml"), None) as both:
            record = PassRecord(both.checkpoints, FULL if request.share >= 1.0 else SAMPLE)
            return examine(both, request, report or Report(), environment, record, watch)

    @property
    def recorded(self) -> dict[str, Verified]:
        return passes_of(MemoryCheckpoints(self.world.database).read().entries)

    def requested_keys(self) -> list[str]:
        """The keys of all items that were looked up."""
        asked = [request for _, name, request in self.world.client.asked if name == "BatchGetItem"]
        return [key["id"]["S"] for request in asked for key in request["RequestItems"][TABLE]["Keys"]]


@pytest.fixture
def patched(faults: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation, "connect", lambda *_: faults.client)
    monkeypatch.setattr(operation, "ends", faults.ends)


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk looks up every item, as in a table far larger than what ``ComparedIds`` hold."""
    monkeypatch.setattr(ComparedIds, "add", lambda *_: None)


@pytest.fixture
def passes(faults: World, patched: None, forgetful: None) -> Passes:
    faults.fill(450)
    return Passes(faults)
