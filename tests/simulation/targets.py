"""The simulation's targets and its store: they fail before or after the fact, and the process may die in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replicator.batch import Batch, Counts, DocumentId, Outcome
from replicator.checkpoints import NO_COUNTS, Save
from replicator.doubt import LINGER
from replicator.errors import Fenced, TransientError
from replicator.target import Table
from replicator.testing.memory import MemoryCheckpoints, MemoryIndex, MemoryTarget, Request

if TYPE_CHECKING:
    from tests.simulation.world import Universe


class Killed(BaseException):
    """The process is gone: nothing after this point happened."""


class Unreliable(MemoryTarget):
    """A target with transactions: it may fail before or after it stored a batch."""

    def __init__(self, universe: Universe) -> None:
        super().__init__(universe.database, universe.refuse)
        self._universe = universe

    def write(self, batch: Batch) -> Outcome:
        self._universe.may_die()
        if self._universe.chance("lost"):
            raise TransientError("the target did not answer; nothing was stored")
        before = dict(self._universe.database.entries)
        try:
            outcome = super().write(batch)
            self._universe.watch(before)
        except Fenced:
            if self.checkpoints.saved_already(batch.saves):  # the answer to the same batch was lost
                return Outcome()
            raise
        self._universe.may_die()
        if outcome.rejections:
            assert before == self._universe.database.entries
        elif batch.saves and self._universe.chance("unanswered"):
            raise TransientError("the target stored it, but the answer was lost")
        return outcome


class Overlaps:
    """Makes a target one that stores a batch while the next is encoded: what was sent is carried out when collected."""

    _universe: Universe
    _sent: Batch | None = None
    _at: float = 0.0

    def encode(self, batch: Batch) -> Batch:
        return batch

    def send(self, encoded: Batch) -> None:
        assert self._sent is None, "at most one batch is under way"
        if self._universe.chance("lost"):
            raise TransientError("the connection broke; nothing was sent")
        self._sent, self._at = encoded, self._universe.clock()

    def collect(self) -> Outcome:
        """A request that was sent so long ago that no server has it any more comes to nothing."""
        sent, self._sent = self._sent, None
        assert sent is not None, "nothing was sent"
        if self._universe.clock() > self._at + LINGER - 60:
            raise TransientError("the connection timed out long ago; nothing was stored")
        return self.write(sent)

    def write(self, batch: Batch) -> Outcome:
        raise NotImplementedError


@dataclass(frozen=True)
class Late:
    """A request that nobody waits for any more, and when it will be carried out."""

    at: float
    carry_out: Callable[[], object]


class UnreliableIndex(MemoryIndex):
    """A target without transactions: requests may fail, each for itself, or be carried out minutes later."""

    def __init__(self, universe: Universe) -> None:
        super().__init__(universe.database, universe.refuse, universe.clock)
        self._universe = universe

    def carry_out(self, request: Request) -> bool:
        if not self._universe.remembers:
            self._universe.database.volatile.clear()
        return super().carry_out(request)

    def write(self, batch: Batch) -> Outcome:
        sent = [r for r in self.requests(batch) if not self._reason(r)]
        self._universe.random.shuffle(sent)
        applied: dict[tuple[str, DocumentId], bool] = {}
        lost = False
        for n, request in enumerate(sent):
            if self._universe.chance("die"):
                self._float(sent[n:])
                raise Killed
            if self._universe.chance("lost"):
                lost = True
                self._float([request])
            else:
                applied[request.write.table, request.write.id] = self.carry_out(request)
        outcome = self.answered(batch, applied)
        self._universe.may_die()
        if lost:
            self.doubt.begin()
            raise TransientError("some answers were lost")
        return outcome

    def _float(self, requests: Sequence[Request]) -> None:
        """What becomes of requests without an answer: nothing, or they are carried out, now or later."""
        chance = self._universe.random
        for request in requests:
            fate = chance.choice(["never", "now", "late", "late"])
            if fate == "now":
                self.carry_out(request)
            elif fate == "late":
                at = self._universe.clock() + chance.uniform(0.0, LINGER - 60)
                self._universe.late.append(Late(at, lambda r=request: self.carry_out(r)))  # type: ignore[misc]

    def sweep(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
        return self._unreliably(super().sweep(table, below, spare))

    def purge(self, table: Table, below: int) -> int:
        return self._unreliably(super().purge(table, below))

    def _unreliably(self, done: int) -> int:
        self._universe.may_die()
        if self._universe.chance("unanswered"):
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
    """Checkpoints in a place of their own: a save may be lost, or only its answer."""

    def __init__(self, universe: Universe) -> None:
        super().__init__(universe.database)
        self._universe = universe

    def save(self, saves: Sequence[Save], counts: Mapping[str, Counts] = NO_COUNTS) -> None:
        self._universe.may_die()
        if self._universe.chance("lost"):
            raise TransientError("the store did not answer; nothing was stored")
        before = dict(self._universe.database.entries)
        super().save(saves, counts)
        self._universe.watch(before)
        self._universe.may_die()
        if self._universe.chance("unanswered"):
            raise TransientError("the store has it, but the answer was lost")
