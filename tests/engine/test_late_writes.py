"""Runs whose target has no transactions: heartbeats during waits, ownership checks, reduced guarantees."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from threading import Event

import pytest
from click.testing import CliRunner

from replicator.batch import Batch, Outcome
from replicator.cli import main
from replicator.engine.assembly import reduced_guarantee
from replicator.engine.delivery import CONFIRMED, Delivery
from replicator.engine.retry import RetryPolicy
from replicator.errors import Fenced, TransientError, Unfinished
from replicator.hooks.hook import DocumentMapping
from replicator.operations import status
from replicator.pipeline.pipeline import Pipeline
from replicator.state import Heartbeat, Owner, decode
from replicator.testing.contract.kit import batch, owner, put, table
from replicator.testing.memory import MemoryCheckpoints, MemoryDatabase
from replicator.testing.memory_index import MemoryIndex
from replicator.version import FIRST_EPOCH
from tests.simulation import runs
from tests.simulation.scenario import Scenario
from tests.simulation.targets import UnreliableIndex
from tests.simulation.world import Universe

REDUCED = "Only one run may write."


class Modest(MemoryIndex):
    reduced_guarantee = REDUCED


def test_a_run_waiting_for_its_target_saves_heartbeats_ahead_of_the_batch() -> None:
    universe = Universe(0, Scenario(index=True, rates={}, steps=1_000_000))
    began, signs = universe.clock(), []

    class Down(UnreliableIndex):
        def write(self, batch: Batch) -> Outcome:
            if not batch.parts or universe.clock() > began + 120:
                return super().write(batch)
            signs.append((universe.clock(), sign(universe.database)))
            raise TransientError("the engine is silent")

    universe.target = Down
    runs.go(universe, 5000)

    waited = [(at, found) for at, found in signs if found is not None and found.waiting_for is not None]
    assert len(waited) >= 5
    for at, found in waited:
        assert at - found.at <= 15
        assert found.waiting_for is not None
        assert "the engine is silent" in found.waiting_for
    assert universe.caught_up, "the run goes on, and is not fenced off by its own signs of life"


@pytest.mark.parametrize("passed", [CONFIRMED + 1, -1.0], ids=["after a while", "when its clock was set back"])
def test_a_run_confirms_that_it_was_not_replaced(passed: float) -> None:
    database, time = MemoryDatabase(), [1_000_000.0]
    mine, another = MemoryCheckpoints(database), MemoryCheckpoints(database)
    pipeline = Pipeline(DocumentMapping(None, ("t",)), mine.claim(owner("mine")))
    policy = RetryPolicy(Event(), lambda _: None, lambda: time[0], Random(1))
    delivery = Delivery(MemoryIndex(database), mine, pipeline, policy, lambda: time[0])
    delivery.confirm()
    another.claim(owner("another"))

    delivery.confirm()  # a moment ago no other run had
    time[0] += passed
    with pytest.raises(Fenced):
        delivery.confirm()


class Slow(MemoryIndex):
    """Stores one write of a batch, then raises Unfinished."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def write(self, batch: Batch) -> Outcome:
        left = self.requests(batch)
        for request in left[:1]:
            self.answered(request, applied=self.carry_out(request))
        if left[1:]:
            self.meanwhile()
            raise Unfinished("the rest follows")
        return self.outcome(batch)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_run_replaced_during_a_long_batch_sends_no_more_of_it(replaced: bool) -> None:
    database, time, signs = MemoryDatabase(), [1_000_000.0], []
    mine, another = MemoryCheckpoints(database), MemoryCheckpoints(database)
    pipeline = Pipeline(DocumentMapping(None, ("contract",)), mine.claim(owner("mine")))
    policy = RetryPolicy(Event(), lambda _: None, lambda: time[0], Random(1))
    target = Slow(database)
    target.open([table()], FIRST_EPOCH)
    delivery = Delivery(target, mine, pipeline, policy, lambda: time[0], still_at_it=lambda: signs.append(time[0]))

    def meanwhile() -> None:
        time[0] += 10.0
        if replaced and len(database.documents("contract")) == 2:
            another.claim(owner("another"))

    target.meanwhile = meanwhile
    whole = batch(*(put({"pk": f"{n}"}, 1) for n in range(5)))
    if replaced:
        with pytest.raises(Fenced):
            delivery._written_out(whole)
    else:
        assert delivery._written_out(whole) == Outcome()
    assert len(database.documents("contract")) == (2 if replaced else 5)
    assert len(signs) == (2 if replaced else 4), "the run is seen to be at work"


def sign(database: MemoryDatabase) -> Heartbeat | None:
    found = database.entries.get(("pulse", ""))
    value = None if found is None else decode("pulse", "", found[1])
    assert value is None or isinstance(value, Heartbeat)
    return value


@pytest.fixture
def modest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A config whose target has a reduced guarantee."""

    @contextlib.contextmanager
    def ends(_: object) -> Iterator[object]:
        database = MemoryDatabase()
        MemoryCheckpoints(database).claim(Owner("a run", "host", 1, 0.0))
        yield Modest(database), MemoryCheckpoints(database)

    monkeypatch.setattr(status, "ends", ends)
    path = tmp_path / "modest.yaml"
    url = "postgresql://localhost/shop"
    path.write_text(f"pipeline: p\nsource: {{table: orders}}\ntarget: {{type: postgres, url: {url}, table: t}}\n")
    return path


def test_status_shows_the_reduced_guarantee(modest: Path) -> None:
    for_people = CliRunner().invoke(main, ["status", str(modest), "--human"], catch_exceptions=False)
    for_machines = CliRunner().invoke(main, ["status", str(modest), "--json"], catch_exceptions=False)

    assert f"reduced guarantee: {REDUCED}" in for_people.output
    assert json.loads(for_machines.output)["reduced_guarantee"] == REDUCED


def test_targets_with_the_full_guarantee_report_none() -> None:
    assert reduced_guarantee(MemoryIndex(MemoryDatabase())) == ""
    assert reduced_guarantee(Modest(MemoryDatabase())) == REDUCED
