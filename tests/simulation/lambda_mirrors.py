"""AWS Lambda before a target without transactions, from a seed: requests are lost, or applied minutes later.

So are those of a container that is killed in the middle of a batch. The clocks of containers differ. Responses of the
checkpoint store are lost, too, and backfills are killed or stopped at any time, and run again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from replicator.batch import Batch, DocumentId, Outcome
from replicator.engine.context import Environment, RunContext
from replicator.engine.function import Function
from replicator.engine.function_cleanup import PURGE_PAUSE
from replicator.engine.handover import Backfill
from replicator.engine.startup import RESUMING, Allowed
from replicator.errors import GapFound, TransientError, Unfinished
from replicator.pipeline.lanes import CLOCKS
from replicator.state import APPLIED_WITHIN, LONGEST_IN_DOUBT
from replicator.target.acks import place
from replicator.target.contract import Table
from replicator.target.in_doubt import is_late
from replicator.testing.memory import MemoryDatabase
from replicator.testing.memory_index import MemoryIndex
from tests.engine.cluster import TABLE
from tests.engine.function_stack import TIME, Stack, Timer
from tests.simulation.lambda_world import Killed, World

MOST_STEPS = 20_000  # of a backfill


class LateIndex(MemoryIndex):
    """Each request may be lost. One without a response is never applied, at once, or within five minutes."""

    def __init__(self, database: MemoryDatabase, now: Callable[[], float], world: MirrorWorld) -> None:
        super().__init__(database, now=now)
        self._world = world

    def write(self, batch: Batch) -> Outcome:
        world, lost = self._world, False
        sent = list(self.requests(batch))
        world.fate.shuffle(sent)
        began = world.clock.now
        for n, request in enumerate(sent):
            try:
                world.interrupt()
            except Killed:
                world.drift([partial(self.carry_out, each) for each in sent[n:]])
                raise
            if is_late(began, world.clock.now):
                raise Unfinished("the batch takes long")
            world.catch_up()
            if world.loses():
                lost = True
                self.acknowledged.lost.add(place(request.write))
                world.drift([partial(self.carry_out, request)])
            else:
                self.answered(request, applied=self.carry_out(request))
        if lost:
            self.in_doubt.begin()
            raise TransientError("some responses were lost")
        return self.outcome(batch)

    def purge(self, table: Table, below: int, spare: Sequence[DocumentId] = ()) -> int:
        """As in the contract: what an earlier call has listed is removed, and may be later."""
        self._world.catch_up()
        listed = self._doomed.get((table.name, below), ())
        if listed and self._world.loses():
            del self._doomed[table.name, below]
            self._world.drift([partial(self.remove_buried, table, id, version) for id, version in listed])
            self.in_doubt.begin()
            raise TransientError("some responses were lost")
        return super().purge(table, below, spare)

    def sweep(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
        self._world.catch_up()
        return super().sweep(table, below, spare)


class MirrorWorld(World):
    """``fate``: of requests, and of what comes between them. ``slips``: of checkpoints and of backfills."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.index, self.fate = True, random.Random(seed + 4)
        self.index_type = partial(LateIndex, world=self)  # type: ignore[assignment]
        self.lossy = self.fate.choice((0.0, 0.02, 0.1))
        self.slips = random.Random(f"answers {seed}")
        self.forgetful = 0.02 if self.slips.random() < 0.3 else 0.0
        self.impatient = 0.02 if self.slips.random() < 0.2 else 0.0
        self.awaited: list[tuple[float, Callable[[], Any]]] = []  # requests to be applied, and when

    # The target

    def context(self) -> RunContext:
        context = Stack.context(self)
        for name in ("save", "claim_slot", "read"):
            setattr(context.checkpoints, name, partial(self._asked, getattr(context.checkpoints, name)))
        return context

    def _asked(self, call: Callable[..., Any], *given: Any) -> Any:
        """What the store of checkpoints answers, if it does; perhaps not before an invocation's time is over."""
        if not self.live or self.slips.random() >= self.forgetful:
            return call(*given)
        if self.slips.random() < 0.6:
            call(*given)
        self.clock.now += self.slips.choice((0.0, 1.0, TIME + 1.0))
        raise TransientError("the store did not answer")

    def interrupt(self) -> None:
        self._interrupt()

    def loses(self) -> bool:
        return self.fate.random() < self.lossy

    def drift(self, requests: Sequence[Callable[[], Any]]) -> None:
        """What becomes of requests without a response."""
        for request in requests:
            fate = self.fate.choice(("never", "now", "late", "late"))
            if fate == "now":
                request()
            elif fate == "late":
                self.awaited.append((self.clock.now + self.fate.uniform(0.0, APPLIED_WITHIN), request))

    def catch_up(self) -> None:
        """Requests are applied whose time has come."""
        due = sorted((a for a in self.awaited if a[0] <= self.clock.now), key=lambda a: a[0])
        self.awaited = [a for a in self.awaited if a[0] > self.clock.now]
        for _, request in due:
            request()

    # Containers

    def container(self) -> Function:
        """Its clock differs from that of others."""
        environment, ahead = self.environment(), self.fate.uniform(0.0, CLOCKS)
        environment = replace(environment, now=lambda: self.clock.wall() + ahead)
        self.containers.append(Function(self.context(), self.owner("container"), environment))
        return self.containers[-1]

    def freeze_in_the_middle(self) -> None:
        """For moments or for hours: a container that wakes up late sends nothing more of what it had begun."""

        def others() -> None:
            frozen, self.live = self.live, []
            self.clock.now += self.fate.choice((0.0, 3.0, 30.0, LONGEST_IN_DOUBT, PURGE_PAUSE))
            for _ in range(self.chance.randint(1, 3)):
                self.change()
                self.deliver_one()
            if self.chance.random() < 0.3:
                self.keep_up()
            self.live = frozen + self.live
            self.until_over()

        self.before_write = others
        self.deliver_one()
        self.before_write = None

    # Backfills

    def backfill(self, allowed: Allowed = RESUMING) -> Backfill:
        """Invocations may come while it scans, sweeps and waits."""
        environment: Environment = replace(self.environment(), stop=Timer(self.clock))  # type: ignore[arg-type]
        run = Backfill(self.context(), self.owner("backfill"), environment, self._connected)
        run.start(allowed)
        busy = self.fate.choice((0.02, 0.5))
        for _ in range(MOST_STEPS):
            if run.coordinator.is_backfilled:
                break
            run.step()
            self.clock.now += self.fate.choice((0.0, 0.5, 5.0))
            self.catch_up()
            if self.fate.random() < busy:
                self.change()
                self.deliver_one()
        else:
            raise AssertionError("the backfill does not come to its end")
        run.end()
        run.close()
        return run

    def leave_backfill(self) -> None:
        """A backfill is killed or stopped at any time; after a while, it is run again."""
        environment: Environment = replace(self.environment(), stop=Timer(self.clock))  # type: ignore[arg-type]
        run = Backfill(self.context(), self.owner("backfill"), environment, self._connected)
        self.gapped = True
        try:
            run.start(Allowed(resync=self.slips.random() < 0.7))
            for _ in range(self.slips.choice((1, 5, 30, 100, 300))):
                run.step()
                self.clock.now += self.slips.choice((0.0, 0.5, 5.0))
                self.catch_up()
                if self.slips.random() < 0.2:
                    self.change()
                    self.deliver_one()
            if self.slips.random() < 0.5:
                run.end()
            run.close()
            for _ in range(self.slips.choice((0, 3))):
                self.change()
                self.deliver_one()
                self.keep_up()
            self.backfill()
        except GapFound:
            self.repair()

    # What happens

    def act(self) -> None:
        self.catch_up()
        if self.slips.random() < self.impatient:
            self.leave_backfill()
        if self.fate.random() < 0.15:
            self.short_life()
        if self.fate.random() < 0.05:  # long enough that nothing is in doubt any more
            self.clock.now += self.fate.choice((2 * LONGEST_IN_DOUBT, PURGE_PAUSE))
            self.catch_up()
            self.keep_up()

    def short_life(self) -> None:
        """An item is written, and deleted. What is sent meanwhile may be applied after the delete."""
        key = f"k{self.fate.randrange(12)}"
        self.records, self.written = self.records + 1, self.written + 1
        self.write(key, self.written)
        getattr(self, self.fate.choice(("deliver_one", "deliver_one", "kill_in_the_middle", "freeze_in_the_middle")))()
        between = self.fate.choice((None, None, "reshard", "resync"))
        if between == "reshard":
            self.reshard()
        self.records += (key,) in self.wanted
        self.delete(key)
        if between == "resync" and self.fate.random() < 0.3:
            self.repair()
        self.deliver_one()
        if self.fate.random() < 0.3:
            self.keep_up()

    def finish(self) -> None:
        self.forgetful = 0.0
        super().finish()
        self.clock.now += APPLIED_WITHIN
        self.catch_up()
        assert self.stored == self.wanted, f"a late request changed the copy: {self.stored}, and {self.wanted} wanted"
        self.lossy = 0.0
        for _ in range(6):
            self.clock.now += PURGE_PAUSE
            self.until_over()
            self.container().invoke({})
        left = self.database.tombstones.get(TABLE, {})
        assert not left, f"tombstones are never purged: {left}"
        assert self.stored == self.wanted


class ForgetfulWorld(MirrorWorld):
    """The store of checkpoints loses a response in twenty."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.forgetful = 0.05
