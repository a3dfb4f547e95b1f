"""A pipeline that lives through many kills: what is written before each, and what has to hold after it."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from replicator.checkpoints.contract import Claimed
from replicator.config.settings import load
from replicator.engine.assembly import ends
from replicator.engine.delivery import CONFIRMED
from replicator.state import PipelineState, SegmentState, ShardState, decode
from tests.cli.command_line import words
from tests.end_to_end import kills
from tests.end_to_end.kills import PAGE, TRUSTED
from tests.end_to_end.pipeline import _AWS, PATIENCE, Ended, Pipeline, Run, eventually
from tests.end_to_end.targets import HOOK, Mirror, through_the_hook
from tests.end_to_end.world import Copy, Source
from tests.servers.dynamodb_local import DynamoDBLocal

KEYS = 60
ASKS = "after GetRecords"  # the step after which a run asks whether it was replaced
OLD = {ASKS: CONFIRMED, "between requests of a batch": TRUSTED}  # seconds
CLOCKS = 1.0  # seconds by which the clocks may be set meanwhile: runs go by the wall clock
CARRIED_OUT = 1.0  # seconds; requests are believed to linger for less, and a busy machine takes its time
RESUMED = 10.0  # seconds from a run's start, in which it has to go on where the killed one was
RESYNCING: tuple[str, ...] = ("after positions", "mid scan batch", "scan stored, cursor not", "during the epoch's rise")
RESYNCING += ("during sweep", "during purge")
PASSAGES: Mapping[str, int] = {
    "mid scan batch": 2,
    "scan stored, cursor not": 2,
    "after GetRecords": 3,
    "inside a hook": 20,
    "at a shard's end": 3,
    "between requests of a batch": 3,
    "stored, checkpoint not": 3,
    "during the checkpoint": 3,
}
"""How often a run comes by, at least, where that is more than once."""
ANY = "at any moment"
BATCH = 2 * PAGE - 1  # records that a batch may have: a page, and one more where the first one lacks a record


@dataclass(frozen=True)
class Durable:
    """What is stored of a pipeline: its epoch, positions, and counts of its shards and of its segments."""

    epoch: int
    shards: Mapping[str, ShardState]
    segments: Mapping[str, SegmentState]
    read: Mapping[str, int]
    stale: Mapping[str, int]

    @classmethod
    def of(cls, claimed: Claimed) -> Durable:
        values = [(e.kind, e.id, decode(e.kind, e.id, e.text)) for e in claimed.entries if e.kind != "parked"]
        counts = claimed.counts.items()
        return cls(
            next((v.epoch for _, _, v in values if isinstance(v, PipelineState)), 0),
            {id: v for _, id, v in values if isinstance(v, ShardState)},
            {id: v for _, id, v in values if isinstance(v, SegmentState)},
            {k: sum(c.read for s, c in counts if s.startswith(k)) for k in ("shard", "segment")},
            {k: sum(c.superseded for s, c in counts if s.startswith(k)) for k in ("shard", "segment")},
        )

    def assert_not_behind(self, earlier: Durable) -> None:
        """No position that was stored ``earlier`` is lost."""
        assert self.epoch >= earlier.epoch
        if self.epoch > earlier.epoch:
            return
        for id, was in earlier.shards.items():
            now = self.shards[id]
            assert (int(now.sequence or 0), now.ordinal, now.ended) >= (int(was.sequence or 0), was.ordinal, was.ended)
        for id, done in earlier.segments.items():
            assert (self.segments[id].items, self.segments[id].ended) >= (done.items, done.ended)


def since() -> Callable[[], float]:
    """Returns a function that tells the seconds since now, by the clock that says less."""
    monotonic, wall = time.monotonic(), time.time()
    return lambda: min(time.monotonic() - monotonic, time.time() - wall)


_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload([*kills.IMPORTED, kills.__name__])


class Forked(Run):
    """A run in a process of its own that imported everything before: it starts at once. ``how``: see ``prepared``."""

    def __init__(self, arguments: Sequence[str], log: Path, how: Sequence[str] = ()) -> None:
        self._log, self._errors, self._arguments = log, log.with_suffix(".err"), arguments
        told = (how, arguments, str(self._log), str(self._errors), _AWS)
        self.forked = _FORKING.Process(target=kills.forked, args=told)
        self.forked.start()

    def wait(self, within: float = PATIENCE) -> Ended:
        self.forked.join(within)
        return self.ended()

    def ended(self) -> Ended:
        code = self.forked.exitcode
        return Ended(-1000 if code is None else code, self._log.read_text(), words(self._errors.read_text()))

    def send(self, number: signal.Signals) -> None:
        assert self.forked.pid is not None
        os.kill(self.forked.pid, number)

    def __enter__(self) -> Forked:
        return self

    def kill(self) -> None:
        self.forked.kill()
        self.forked.join()


@dataclass
class Story:
    """``kind``, ``store``: see ``steps``. ``settings``: more of the config."""

    pipeline: Pipeline
    source: Source
    local: DynamoDBLocal
    kind: str
    store: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    chance: random.Random = field(default_factory=lambda: random.Random(55))
    rolled: int = 0
    changes: int = 0

    def begin(self) -> Story:
        """A finished backfill."""
        configure = self.pipeline.configured if isinstance(self.pipeline, Mirror) else self.pipeline.configure
        configure(HOOK, backfill={"segments": 2}, **self.settings)
        self.source.fill(KEYS)
        self.pipeline.caught_up()
        return self

    @property
    def exact(self) -> bool:
        """Whether nothing is applied again: rows and positions commit together."""
        return self.kind == "postgres"

    @property
    def durable(self) -> Durable:
        with ends(load(self.pipeline.path)) as (_, checkpoints):
            return Durable.of(checkpoints.read())

    def change(self, count: int) -> None:
        """Puts and deletes. What the hook drops is among them."""
        for _ in range(count):
            pk = f"k{self.chance.randrange(KEYS)}"
            if pk in self.source.alive and self.chance.random() < 0.3:
                self.source.delete(pk)
            else:
                self.put(pk)

    def put(self, pk: str) -> None:
        self.changes += 1
        self.source.put(pk, n=1000 + self.changes)

    def roll(self) -> None:
        self.local.roll()
        self.rolled = self.source.records

    def leave_rows_to_sweep(self) -> None:
        """Deletes that a new epoch does not read, because their shard is closed by then."""
        missing = [pk for pk in map("k{}".format, range(KEYS)) if pk not in self.source.alive]
        for pk in sorted(self.source.alive)[: KEYS // 3]:
            self.source.delete(pk)
        self.roll()
        for pk in missing:
            self.put(pk)

    def killed(self, step: str, count: int) -> None:
        """A run that ends at a step."""
        resyncs = step in RESYNCING
        if resyncs:
            self.leave_rows_to_sweep()
        else:
            for _ in range(3):
                self.change(25)
                if step == "at a shard's end":
                    self.roll()
        if step == ANY:
            self.ended_at_any_moment()
        else:
            self.ended_at(step, count, "resync" if resyncs else "run")

    def doomed(self, step: str, count: int, command: str, number: str = "SIGKILL") -> Forked:
        self.marker.unlink(missing_ok=True)
        return self.run(command, how=(self.kind, self.store, step, str(count), number, str(self.marker)))

    def run(self, command: str, *options: str, how: Sequence[str] = ()) -> Forked:
        self.pipeline.runs += 1
        log = self.pipeline.folder / f"{self.pipeline.name}-{self.pipeline.runs}.log"
        now = ("--now",) if command == "resync" else ()
        return Forked([command, str(self.pipeline.path), "--json", *now, *options], log, how)

    @property
    def marker(self) -> Path:
        return self.pipeline.folder / "passed"

    def ended_at(self, step: str, count: int, command: str) -> None:
        with self.doomed(step, count, command) as run:
            ended = run.wait()
        assert self.marker.exists(), f"{step} was not passed {count} times: {ended}"
        assert ended.code == -9, ended

    def ended_at_any_moment(self) -> None:
        with self.run("run") as run:
            run.forked.join(self.chance.uniform(0.0, 1.5))
            assert run.forked.is_alive()
            run.kill()

    def goes_on(self, before: Durable, records: int, step: str) -> None:
        """What has to hold after a kill, ``before`` and that many ``records`` before it."""
        left = self.durable
        self.change(3)
        recovered, seconds = self._resumed()
        after = self.durable
        assert recovered.code == 0, recovered
        assert seconds < RESUMED
        assert self.pipeline.documents() == through_the_hook(self.source.items().values())
        left.assert_not_behind(before)
        after.assert_not_behind(left)
        self._assert_counted(before, after, records, step)
        if isinstance(self.pipeline, Copy):
            self.pipeline.assert_history()

    def _resumed(self) -> tuple[Ended, float]:
        """The next run until it has caught up, and how long that took."""
        started = time.monotonic()
        with self.run("run", "--until", "caught-up") as run:
            ended = run.wait()
        return ended, time.monotonic() - started

    def _assert_counted(self, before: Durable, after: Durable, records: int, step: str) -> None:
        """Each record was read once, and applied once: all of it in Postgres, all but a batch elsewhere."""
        read = {kind: after.read[kind] - before.read[kind] for kind in before.read}
        stale = {kind: after.stale[kind] - before.stale[kind] for kind in before.stale}
        again = 0 if self.exact else BATCH
        if after.epoch == before.epoch:
            assert step not in RESYNCING or step == "during the epoch's rise"
            assert read == {"shard": self.source.records - records, "segment": 0}
        else:
            assert after.epoch == before.epoch + 1
            fresh = self.source.records - self.rolled
            assert read == {"shard": fresh, "segment": sum(s.items for s in after.segments.values())}
            assert stale["segment"] <= fresh + again, "a scanned item is stale where a record came first"
        assert stale["shard"] <= again

    def overslept(self, step: str) -> None:
        """A run stops at a step, as by SIGSTOP; another one takes over and catches up; then the first one wakes up."""
        self.put("k0")
        self.change(25)
        with self.doomed(step, 1, "run", "SIGSTOP") as sleeper:
            eventually(self.marker.exists, f"{step} is passed")
            asleep = since()
            eventually(lambda: asleep() > CARRIED_OUT, "what it had sent is carried out")
            second = self._taken_over(forgets=step == ASKS)
            assert second.code == 0, second
            assert self.pipeline.documents() == through_the_hook(self.source.items().values())
            eventually(lambda: asleep() > OLD.get(step, 0.0) + CLOCKS, "what it knew of its ownership is old")
            before = self.durable, self._documents()
            sleeper.send(signal.SIGCONT)
            first = sleeper.wait(15.0)
        assert first.code == 5, first
        assert "another run owns this pipeline" in first.err
        assert (self.durable, self._documents()) == before
        assert self.pipeline.documents() == through_the_hook(self.source.items().values())

    def _taken_over(self, *, forgets: bool) -> Ended:
        """Another run that catches up. ``forgets``: it leaves no tombstone of a delete, as after five minutes.

        So what the first run writes without asking would be there again.
        """
        self.change(25)
        if "k0" in self.source.alive:
            self.source.delete("k0")
        never = (self.kind, self.store, ASKS, "1000000", "SIGKILL", f"{self.marker}-never")
        with self.run("run", "--until", "caught-up", how=never if forgets else ()) as second:
            return second.wait()

    def _documents(self) -> object:
        """Everything that is stored, with versions or what changes with any write."""
        if isinstance(self.pipeline, Mirror):
            return self.pipeline.writes(), self.pipeline.tombstones(), self.pipeline.documents()
        assert isinstance(self.pipeline, Copy)
        return self.pipeline.query("SELECT *, xmin::text FROM {} ORDER BY pk", self.pipeline.name)
