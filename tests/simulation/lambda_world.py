"""AWS Lambda from a seed: a table with writes, an event source mapping with its hazards, and containers.

What the mapping does is what AWS documents: batches of a shard in order, a child after its parent; a batch that failed
comes again from its first failed record on, perhaps in halves, perhaps to another container; it may be given up; it may
be delivered twice; a container may be frozen while another one works, or end at any time. Records may be filtered out,
and a shard's items may be divided among several invocations at a time (ParallelizationFactor).
"""

from __future__ import annotations

import contextlib
import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from replicator.batch import Batch, Outcome
from replicator.engine.context import RunContext
from replicator.engine.function import IDLE, Function
from replicator.engine.local import Driver
from replicator.engine.startup import RESUMING, Allowed
from replicator.errors import GapFound, ReplicatorError
from replicator.hooks.hook import Hook
from replicator.pipeline.discovery import ORPHAN_TIME
from replicator.retention import SAFE_SILENCE
from replicator.state import ShardState, decode
from tests.engine.cluster import TABLE
from tests.engine.event_source import EventSource
from tests.engine.function_stack import TIME, Stack
from tests.engine.overlapping import OverlappingTarget

ACTS = 60
RETENTION = 25 * 3600.0  # seconds after which the stream has no record any more
FILTERED = 0.1  # of the batches have records left out
THROTTLED = ("GetRecords", "GetShardIterator", "DescribeStream", "BatchGetItem")


class Killed(BaseException):
    """The container ended, as after a timeout."""


class World(Stack):
    """``records``: of the stream, all in all."""

    def __init__(self, seed: int, hook: Hook | None = None) -> None:
        self.chance = random.Random(seed)
        view = "KEYS_ONLY" if self.chance.random() < 0.2 else "NEW_AND_OLD_IMAGES"
        super().__init__(shards=self.chance.randint(1, 3), view=view, hook=hook)
        overlapping = random.Random(seed + 3)
        if overlapping.random() < 0.5:
            self.target_type = partial(OverlappingTarget, chance=overlapping)  # type: ignore[assignment]
        self.records, self.written = 0, 0
        self.live: list[Function] = []
        self.late: list[dict[str, Any]] = []
        self.before_write: Callable[[], None] | None = None
        self.gapped = self.trimmed = False
        self.begun = self.clock.now

    # What containers work with

    def context(self) -> RunContext:
        context = super().context()
        store: Callable[[Batch], Outcome] = context.target.write

        def write(batch: Batch) -> Outcome:
            self._interrupt()
            rows = copy.deepcopy(self.database.rows)
            try:
                outcome = store(batch)
            except ReplicatorError:
                self.database.rows.clear()
                self.database.rows.update(rows)  # a transaction
                raise
            self._interrupt()
            return outcome

        context.target.write = write  # type: ignore[method-assign]
        return context

    def _interrupt(self) -> None:
        """Once, at a moment that was chosen."""
        act, self.before_write = self.before_write, None
        if act is not None:
            act()

    def _container(self) -> Function:
        if not self.live or (len(self.live) < 4 and self.chance.random() < 0.2):
            self.live.append(self.container())
        return self.chance.choice(self.live)

    # Writes

    def change(self) -> None:
        key = f"k{self.chance.randrange(12)}"
        self.written += 1
        if self.chance.random() < 0.25:
            self.records += (key,) in self.wanted
            self.delete(key)
        else:
            self.records += 1
            self.write(key, self.written)
        self.clock.now += self.chance.choice((0.0, 1.0, 30.0))

    def reshard(self) -> None:
        shards = self.source.open_shards(TABLE)
        if len(shards) < 5 and self.chance.random() < 0.5:
            self.source.split(TABLE, self.chance.choice(shards))
        elif self.chance.random() < 0.2:
            self.source.wither(TABLE, self.chance.choice(shards))
        else:
            self.source.roll(TABLE, self.chance.choice(shards))

    # What the mapping does

    def invocation(self, bisect: float = 0.3, shard: str | None = None) -> tuple[str, dict[str, Any]] | None:
        ready = self.mapping.ready() if shard is None else [shard]
        self.chance.shuffle(ready)
        for shard in ready:
            batch = self.mapping.event(shard)
            if batch is not None:
                if self.chance.random() < bisect:
                    batch = {**batch, "Records": batch["Records"][: self.chance.randint(1, len(batch["Records"]))]}
                if self.chance.random() < FILTERED:
                    kept = [r for r in batch["Records"] if self.chance.random() < 0.5]
                    batch = {**batch, "Records": kept or batch["Records"]}
                return shard, batch
        return None

    def deliver_one(self, shard: str | None = None) -> None:
        found = self.invocation(shard=shard)
        if found is None:
            return
        shard, batch = found
        self.until_over()
        function = self._container()
        try:
            response = function.invoke(batch)
        except Killed:
            self.live.remove(function)
        except ReplicatorError:
            pass  # comes again
        else:
            self.mapping.done(shard, batch, response)
            self.late.append(batch)
            self._check_done(shard)

    def _check_done(self, shard: str) -> None:
        """What the mapping never delivers again is stored, unless nothing of the shard is needed."""
        _, text = self.database.entries.get(("shard", shard), (0, ""))
        state = decode("shard", shard, text) if text else None
        if isinstance(state, ShardState) and not state.ended and state.sequence is not None:
            done = self.mapping.shards[shard].after
            assert int(state.sequence) >= done, "a response says that records are stored that are not"

    def deliver_divided(self) -> None:
        """A batch whose items are divided among two invocations, which end in any order."""
        found = self.invocation(0.0)
        if found is None:
            return
        shard, batch = found
        split = self.chance.randrange(1, 12)
        first = [int(r["dynamodb"]["Keys"]["pk"]["S"][1:]) < split for r in batch["Records"]]
        parts = [[r for r, f in zip(batch["Records"], first, strict=True) if f is half] for half in (True, False)]
        self.chance.shuffle(parts)
        failures: list[Any] = []
        for records in filter(None, parts):
            self.until_over()
            try:
                failures += self._container().invoke({**batch, "Records": records})["batchItemFailures"]
            except ReplicatorError:
                failures += [{"itemIdentifier": records[0]["dynamodb"]["SequenceNumber"]}]
        self.mapping.done(shard, batch, {"batchItemFailures": failures})

    def time_out(self) -> None:
        self._until = self.clock.now  # the next invocation is over before it begins
        found = self.invocation()
        if found is not None:
            with contextlib.suppress(ReplicatorError):
                self.mapping.done(*found, self._container().invoke(found[1]))

    def kill_in_the_middle(self) -> None:
        def killed() -> None:
            raise Killed

        self.before_write = killed
        self.deliver_one()
        self.before_write = None

    def freeze_in_the_middle(self) -> None:
        """Others work while the container that has begun a batch is frozen; then it goes on."""

        def others() -> None:
            frozen, self.live = self.live, []
            for _ in range(self.chance.randint(1, 3)):
                self.deliver_one()
            if self.chance.random() < 0.3:
                self.keep_up()
            self.live = frozen + self.live
            self.until_over()

        self.before_write = others
        self.deliver_one()
        self.before_write = None

    def deliver_again(self) -> None:
        """A duplicate of something that was delivered before."""
        if self.late:
            self.until_over()
            with contextlib.suppress(ReplicatorError):
                self._container().invoke(self.chance.choice(self.late))

    def give_up(self) -> None:
        found = self.invocation(0.0)
        if found is not None:
            self.mapping.drop(*found)

    def disabled_for_long(self) -> None:
        """The mapping is disabled, and enabled when the stream has lost what it did not deliver: a gap.

        It is of no matter if that is from before the epoch.
        """
        for _ in range(self.chance.randint(0, 4)):
            self.change()
        self.clock.now += RETENTION
        self.trimmed = True
        self.trim_all()

    def new_mapping(self) -> None:
        self.mapping = EventSource(self.source, TABLE, batch=self.chance.choice((1, 7, 100)))

    def throttle(self) -> None:
        self.source.fail(self.chance.choice(THROTTLED), times=self.chance.randint(1, 3))

    def keep_up(self) -> None:
        self.until_over()
        with contextlib.suppress(ReplicatorError):
            self._container().invoke({"source": "aws.events"})

    def disabled(self) -> None:
        """The mapping is disabled for some hours, and enabled while the stream still has everything."""
        for _ in range(self.chance.randint(1, 8)):
            self.change()
        self.clock.now += self.chance.choice((60.0, 3600.0, 5 * 3600.0))

    def other_engine(self) -> None:
        try:
            driver = Driver(self.context(), self.owner("local"), self.environment())
            self.until_over()
            driver.run(until="caught-up", allowed=RESUMING)
            self.backfill()
        except GapFound:
            self.repair()

    def repair(self) -> None:
        self.gapped = True
        self.backfill(Allowed(resync=True))

    def act(self) -> None:
        """What happens besides."""

    # The end

    def finish(self) -> None:
        self.live, self.before_write = [], None
        lost = self.trimmed or self.clock.now - self.begun >= SAFE_SILENCE
        assert lost or not self.gaps, f"nothing was lost, but there are gaps: {self.gaps}"
        for _ in range(3):
            self.clock.now += IDLE + 1.0  # what was given up last is read by the schedule
            self.until_over()
            try:
                self.container().invoke({})
                self.deliver(self.container(), self.container())
            except ReplicatorError as e:
                raise AssertionError(f"no invocation succeeds any more: {e}") from e
            if any(gap.repaired is None for gap in self.gaps):
                self.repair()
        assert self.stored == self.wanted, f"the copy differs: {self.stored} is stored, and {self.wanted} wanted"
        if not self.gapped and not self.trimmed:
            read = sum(c.read for source, c in self.database.counts.items() if source.startswith("shard:"))
            assert read == self.records, f"{read} changes were counted, and {self.records} made"


class SlowWorld(World):
    """Listings take seconds, invocations have little time, and listings omit parents for minutes, or for good.

    While one lists, another invocation may claim the listing, too, which is as slow.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.slow = random.Random(seed)
        self.listing_time = self.slow.choice((0.1, 1.0, 2.6, 3.5))
        self.rivals = self.slow.choice((0.0, 0.3, 1.0))
        self.twice = random.Random(seed + 1)
        self.omits_twice = self.twice.random() > 0.5
        call = self.source.call

        def slowly(operation: str, request: dict[str, Any]) -> Any:
            if operation == "DescribeStream":
                self.clock.now += self.listing_time
                if self.slow.random() < self.rivals:
                    self._claim_too()
            return call(operation, request)

        self.source.call = slowly  # type: ignore[method-assign, assignment]
        self.omitted: dict[str, float] = {}  # shards, and until when listings omit them
        self.source.misreport(lambda shards: [s for s in shards if self.omitted.get(s.id, 0.0) <= self.clock.now])

    def _claim_too(self) -> None:
        rival = self.container()
        with contextlib.suppress(ReplicatorError):
            rival._claim_listing(rival._read().revision)

    def until_over(self) -> None:
        self._until = self.clock.now + self.slow.choice((27.0, TIME))

    def omit(self, seconds: float, *, every: bool = False) -> None:
        """Listings omit a shard between others, or every one that is open now, for so long."""
        self.source.roll_all(TABLE)
        parents = self.source.open_shards(TABLE)
        for parent in parents if every else [self.slow.choice(parents)]:
            self.source.roll(TABLE, parent)
            self.omitted[parent] = self.clock.now + seconds
        self.change()

    def omit_twice(self) -> None:
        """Listings omit a shard for a minute, list it for some minutes in which no invocation looks, and omit it again.

        Of the two times only the second counts: the parent may have been listed between them.
        """
        self.omit(60.0)
        again = {shard for shard, until in self.omitted.items() if until > self.clock.now}
        for _ in range(3):
            self.retry()
        self.clock.now += ORPHAN_TIME + 60.0
        self.omitted |= dict.fromkeys(again, self.clock.now + 30.0)
        self.retry()

    def retry(self) -> None:
        """Lambda repeats what failed."""
        self.clock.now += self.slow.choice((1.0, 10.0, 60.0))
        began, ended = self.clock.now, self.clock.now
        for shard in self.mapping.ready():
            self.clock.now = began  # invocations of several shards run at the same time
            self.deliver_one(shard)
            ended = max(ended, self.clock.now)
        self.clock.now = ended

    def act(self) -> None:
        if self.slow.random() < 0.1:
            self.omit(self.slow.choice((5.0, 60.0, ORPHAN_TIME - 10.0)))
        if self.slow.random() < 0.3:
            self.retry()
        if self.omits_twice and self.twice.random() < 0.03:
            self.omit_twice()

    def finish(self) -> None:
        if self.slow.random() < 0.3 and not any(gap.repaired is None for gap in self.gaps):
            self.lose_parent()
        super().finish()

    def lose_parent(self) -> None:
        """It is a gap within some minutes, whatever time each invocation has."""
        begun, known = self.clock.now, len(self.gaps)
        self.trimmed = True
        self.omit(math.inf, every=True)
        while len(self.gaps) == known:
            self.change()
            assert self.clock.now - begun < 4 * ORPHAN_TIME, "a parent that is missing for good is no gap"
            self.retry()
        self.omitted.clear()
        self.repair()


class SlowHookWorld(World):
    """The hook takes from milliseconds to the longest that an invocation's time allows, for each item."""

    def __init__(self, seed: int) -> None:
        self.hooks = random.Random(seed + 2)
        self.slowest, self.time = self.hooks.choice((0.02, 0.3, 2.0, 10.0)), self.hooks.choice((27.0, TIME))
        self.shares = self.hooks.choice(((1.0,), (0.1, 1.0)))
        self.is_slow = False
        super().__init__(seed, Hook("slow", self._slowly, "f", declared=False))

    def _slowly(self, item: Mapping[str, Any]) -> dict[str, Any]:
        if self.is_slow:
            self.clock.now += self.slowest * self.hooks.choice(self.shares)
        return {**item, "v": int(item["v"])}

    def until_over(self) -> None:
        self._until = self.clock.now + self.time

    def act(self) -> None:
        """Now and then many items change at once."""
        if self.hooks.random() < 0.03:
            for n in range(12, 36):
                self.records, self.written = self.records + 1, self.written + 1
                self.write(f"k{n}", self.written)

    @contextlib.contextmanager
    def slowly(self) -> Iterator[None]:
        """The hook of invocations is slow: that of a backfill would take its time."""
        before, self.is_slow = self.is_slow, True
        try:
            yield
        finally:
            self.is_slow = before

    def deliver_one(self, shard: str | None = None) -> None:
        with self.slowly():
            super().deliver_one(shard)

    def deliver_divided(self) -> None:
        with self.slowly():
            super().deliver_divided()

    def keep_up(self) -> None:
        with self.slowly():
            super().keep_up()

    def finish(self) -> None:
        """However slow the hook is, the invocations of all that is left store it."""
        self.before_write = None
        for n in range(5 * self.records + 20):
            for shard in self.mapping.ready():
                self.deliver_one(shard)
            if n % 20 == 19:
                self.clock.now += IDLE + 1.0
                self.keep_up()
            if any(gap.repaired is None for gap in self.gaps):
                self.repair()
            if self.stored == self.wanted:
                break
        else:
            raise AssertionError(f"invocations store no more: {self.stored} is stored, and {self.wanted} wanted")
        super().finish()


ACTIONS: tuple[tuple[int, str], ...] = (
    (12, "change"),
    (2, "reshard"),
    (10, "deliver_one"),
    (2, "deliver_divided"),
    (2, "time_out"),
    (3, "kill_in_the_middle"),
    (3, "freeze_in_the_middle"),
    (3, "deliver_again"),
    (1, "give_up"),
    (1, "new_mapping"),
    (1, "throttle"),
    (2, "keep_up"),
    (1, "disabled"),
)
RARE = ("disabled_for_long", "other_engine")


def simulate(seed: int, kind: type[World] = World) -> World:
    """Everything that the seed decides; AssertionError if the copy differs in the end, or something counted twice."""
    world = kind(seed)
    for _ in range(world.chance.randint(0, 15)):
        world.change()
    world.backfill()
    weights, names = zip(*ACTIONS, strict=True)
    rare = world.chance.random() < 0.4
    for _ in range(ACTS):
        name = world.chance.choices(names, weights)[0]
        if rare and world.chance.random() < 0.02:
            name = world.chance.choice(RARE)
        getattr(world, name)()
        world.act()
    world.finish()
    return world
