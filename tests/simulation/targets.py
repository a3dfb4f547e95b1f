"""The simulation's targets and its store: they fail before or after the fact, and the process may die in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from replicator.batch import Batch, Counts, DocumentId, Outcome, Write
from replicator.checkpoints import NO_COUNTS, Save
from replicator.doubt import LINGER
from replicator.errors import Fenced, TransientError
from replicator.target import Table
from replicator.testing.memory import MemoryCheckpoints, MemoryDatabase, MemoryIndex, MemoryRows, MemoryTarget, Request
from tests.simulation import truth

if TYPE_CHECKING:
    from tests.simulation.scenario import Scenario
    from tests.simulation.world import Universe

LATEST = LINGER - 60  # seconds after which a lost request is carried out at the latest


class Killed(BaseException):
    """The process is gone: nothing after this point happened."""


@dataclass(frozen=True)
class Late:
    """A request that nobody waits for any more, and when it will be carried out."""

    at: float
    to: str  # target or store
    carry_out: Callable[[], object]


class Watched(MemoryRows):
    """Rows whose versions never go back. A run is told only once that a write is refused."""

    _told: set[tuple[str, DocumentId, int]]

    def tells(self, outcome: Outcome) -> Outcome:
        refused = {(r.write.table, r.write.id, r.write.version) for r in outcome.rejections}
        assert not (again := refused & self._told), f"refused before, and sent again: {again}"
        self._told |= refused
        return outcome

    def _apply(self, write: Write, *, keep: bool) -> bool:
        before = self._known(write)
        applied = super()._apply(write, keep=keep)
        truth.check_version(write, before, applied=applied)
        return applied


class Unreliable(Watched, MemoryTarget):
    """A target with transactions: one may be lost, be stored without an answer, or be stored minutes later."""

    _universe: Universe

    def __init__(self, universe: Universe) -> None:
        super().__init__(universe.database, universe.refuse, at_commit=universe.scenario.at_commit)
        self._told = set()
        self._universe = universe

    def write(self, batch: Batch) -> Outcome:
        universe = self._universe
        universe.sees(batch)
        universe.effect("write")
        if universe.take("lost"):
            raise TransientError("the target did not answer; nothing was stored")
        if universe.take("late"):
            universe.later("target", lambda: self._late(batch))
            raise TransientError("the target did not answer; it stores it all the same")
        outcome = self.tells(self._transaction(batch))
        universe.effect("stored")
        if batch.saves and not outcome.rejections and universe.take("unanswered"):
            raise TransientError("the target stored it, but the answer was lost")
        return outcome

    def _transaction(self, batch: Batch) -> Outcome:
        entries = self._universe.database.entries
        before = truth.places(entries, batch.saves)
        outcome = MemoryTarget.write(self, batch)
        truth.check_saved(before, entries)
        assert not outcome.rejections or before == truth.places(entries, batch.saves)
        return outcome

    def _late(self, batch: Batch) -> None:
        with suppress(Fenced):
            MemoryTarget.write(self, batch)


class Overlaps:
    """Makes a target one that stores a batch while the next is encoded: what was sent is carried out when collected."""

    _universe: Universe
    _sent: Batch | None = None
    _at: float = 0.0

    def encode(self, batch: Batch) -> Batch:
        return batch

    def send(self, encoded: Batch) -> None:
        assert self._sent is None, "at most one batch is under way"
        if self._universe.take("lost"):
            raise TransientError("the connection broke; nothing was sent")
        self._sent, self._at = encoded, self._universe.clock()

    def ready(self) -> bool:
        return self._universe.answers.random() < 0.5

    def collect(self) -> Outcome:
        """A request that was sent so long ago that no server has it any more comes to nothing."""
        sent, self._sent = self._sent, None
        assert sent is not None, "nothing was sent"
        if self._universe.clock() > self._at + LATEST:
            raise TransientError("the connection timed out long ago; nothing was stored")
        return self.write(sent)

    def write(self, batch: Batch) -> Outcome:
        raise NotImplementedError


class UnreliableIndex(Watched, MemoryIndex):
    """A target without transactions: requests may fail, each for itself, or be carried out minutes later."""

    _universe: Universe

    def __init__(self, universe: Universe) -> None:
        super().__init__(universe.database, universe.refuse, universe.clock)
        self._told = set()
        self._universe = universe

    def lead(self, database: MemoryDatabase, place: str) -> None:
        """Be the target of another cluster."""
        self._database, self._place = database, f" in {place}"

    def carry_out(self, request: Request) -> bool:
        if self._universe.scenario.forgetful:
            self._universe.database.volatile.clear()
        return super().carry_out(request)

    def write(self, batch: Batch) -> Outcome:
        universe = self._universe
        universe.sees(batch)
        sent = [r for r in self.requests(batch) if not self._reason(r)]
        universe.random.shuffle(sent)
        applied: dict[tuple[str, DocumentId], bool] = {}
        lost = False
        for n, request in enumerate(sent):
            if universe.dies_here("request"):
                self._float(sent[n:])
                raise Killed
            if universe.take("lost") or universe.take("late"):
                lost = True
                self._float([request])
            else:
                applied[request.write.table, request.write.id] = self.carry_out(request)
        outcome = self.answered(batch, applied)
        universe.effect("stored")
        if lost:
            self.doubt.begin()
            raise TransientError("some answers were lost")
        return self.tells(outcome)

    def _float(self, requests: Sequence[Request]) -> None:
        """What becomes of requests without an answer: nothing, or they are carried out, now or later."""
        for request in requests:
            fate = self._universe.random.choice(["never", "now", "late", "late"])
            if fate == "now":
                self.carry_out(request)
            elif fate == "late":
                self._universe.later("target", partial(self.carry_out, request))

    def sweep(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
        return self._unreliably(super().sweep(table, below, spare))

    def purge(self, table: Table, below: int) -> int:
        return self._unreliably(super().purge(table, below))

    def _unreliably(self, done: int) -> int:
        self._universe.effect("chore")
        if self._universe.take("unanswered"):
            self.doubt.begin()
            raise TransientError("the answer was lost")
        return done


class UnreliableOverlapping(Overlaps, Unreliable):
    def write(self, batch: Batch) -> Outcome:
        return Unreliable.write(self, batch)


class UnreliableOverlappingIndex(Overlaps, UnreliableIndex):
    def write(self, batch: Batch) -> Outcome:
        return UnreliableIndex.write(self, batch)


class UnreliableStore(MemoryCheckpoints):
    """Checkpoints in a place of their own: a save may be lost, or only its answer, or be made minutes later."""

    def __init__(self, universe: Universe) -> None:
        super().__init__(universe.database)
        self._universe = universe

    def save(self, saves: Sequence[Save], counts: Mapping[str, Counts] = NO_COUNTS) -> None:
        universe = self._universe
        universe.effect("save")
        if universe.take("lost"):
            raise TransientError("the store did not answer; nothing was stored")
        if saves and universe.take("late"):
            universe.later("store", lambda: self._late(saves, counts))
            raise TransientError("the store did not answer; it stores it all the same")
        before = truth.places(universe.database.entries, saves)
        super().save(saves, counts)
        truth.check_saved(before, universe.database.entries)
        universe.effect("saved")
        if universe.take("unanswered"):
            raise TransientError("the store has it, but the answer was lost")

    def _late(self, saves: Sequence[Save], counts: Mapping[str, Counts]) -> None:
        with suppress(Fenced):
            super().save(saves, counts)


def target_of(scenario: Scenario) -> type[Unreliable | UnreliableIndex]:
    if scenario.index:
        return UnreliableOverlappingIndex if scenario.overlaps else UnreliableIndex
    return UnreliableOverlapping if scenario.overlaps else Unreliable
