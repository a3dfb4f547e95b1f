"""A run with several workers and a coordinator, in the world of ``world``: each dies, sleeps or is cut off by itself.

Coordinator, workers, readers and pipelines are the production code, each in a thread that moves from one of its
requests to the next when the seed says so. Workers are partitioned away, killed in a batch, and replaced while they
live; transactions and requests are applied after a takeover; there are two coordinators, and runs that replace others;
children open on another worker, and stages move, meanwhile.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from msgspec import structs

from replicator.batch import Batch
from replicator.checkpoints.contract import Claimed, Slotted
from replicator.checkpoints.dynamodb import layout
from replicator.engine.context import Environment, RunContext
from replicator.engine.coordinator import Coordinator
from replicator.engine.startup import Allowed
from replicator.engine.worker import CLAIM_INTERVAL, Post, Worker
from replicator.errors import ConfigError, Fenced, GapFound, TransientError
from replicator.items.item import Item
from replicator.pipeline import stages
from replicator.pipeline.progress import Progress
from replicator.state import Entry, Gap, Owner, ShardState, decode_pipeline
from replicator.target.in_doubt import WINDOW
from replicator.testing.dynamodb import AWS, LOCAL
from tests.simulation import acts, deciding, plan, repairing, requests, runs, transactions, truth
from tests.simulation.clock import TOLERATED, VirtualStop
from tests.simulation.hooks import HOOKS
from tests.simulation.plan import Act, Plan
from tests.simulation.process import Process
from tests.simulation.retention import RETENTION, SKEWED
from tests.simulation.scenario import Scenario
from tests.simulation.schedule import SeededSteps
from tests.simulation.simulate import sizes
from tests.simulation.targets import LATEST, Killed, Late
from tests.simulation.world import Universe

MOST_SLOTS = 4
MOST_ACTORS = 9  # with those that were replaced and do not know it yet
LONGEST_ABSENCE = 60  # steps
CLAIMS_IN_PAGES = 0.5  # of the seeds with checkpoints apart from the target
MUSING = 0.25  # of the seeds: the hook takes seconds now and then
PATIENCE = 30_000  # steps within which a run that nothing disturbs has caught up
REFUSES_WHEN_CUT_OFF = ("write", "save", "chore", "repair", "read", "claim")

SOURCE = ("write", "burst", "expire", "split", "roll", "wither", "throttle", "outage", "lie", "blank", "trim")
PARKED = ("retry", "retry again", "give up", "list", "relent")
REQUESTS = ("lost", "unanswered", "late", "straggle", "cut short", "restart", "pause")

RATES: Mapping[str, float] = {
    "write": 0.15,
    "burst": 0.004,
    "expire": 0.004,
    "split": 0.004,
    "roll": 0.005,
    "wither": 0.001,
    "throttle": 0.003,
    "outage": 0.0005,
    "lie": 0.002,
    "blank": 0.004,
    "trim": 0.0005,
    "lost": 0.01,
    "unanswered": 0.01,
    "late": 0.01,
    "leak": 0.005,
    "straggle": 0.004,
    "cut short": 0.002,
    "restart": 0.004,
    "pause": 0.003,
    "race": 0.002,
    "page": 0.002,
    "usurp": 0.001,
    "outlive": 0.001,
    "vanish": 0.001,
    "blank closed": 0.002,
    "regret": 0.003,
    "doze": 0.004,
    "request a resync": 0.0008,
    "request items": 0.0008,
    "damage": 0.002,
    "repair": 0.004,
    "stop repair": 0.0005,
    "suspend repair": 0.002,
    "kill repair": 0.0005,
    "retry": 0.004,
    "retry again": 0.002,
    "retry slowly": 0.004,
    "give up": 0.001,
    "list": 0.001,
    "relent": 0.0005,
    "kill worker": 0.004,
    "kill coordinator": 0.003,
    "cut off": 0.008,
    "suspend": 0.006,
    "set clock": 0.002,
    "second worker": 0.004,
    "second coordinator": 0.003,
    "new run": 0.001,
    "one process": 0.0007,
}
"""The chance of each act, a step: a step is one request of one process."""


@dataclass
class Actor:
    """A process of a run. ``away``, ``asleep``: until which step it reaches nothing, or does nothing."""

    name: str
    run: int | None  # the revision of the run's claim; None until it is known
    slots: tuple[str, ...]  # of the run
    slot: str | None = None  # of a worker
    process: Process | None = None
    away: int = 0
    asleep: int = 0
    told: list[Sequence[Entry]] = field(default_factory=list)
    outcome: str = ""
    skew: float = 0.0  # seconds by which the clock of its node is wrong
    uptime: float = 0.0  # of its node, which is where monotonic time comes from, as the simulation began
    coordinator: Coordinator | None = None

    @property
    def lives(self) -> bool:
        return self.process is not None and not self.process.ended


class Stop(VirtualStop):
    """Waiting lets others move."""

    def __init__(self, world: Swarm) -> None:
        super().__init__(world.clock)
        self._world = world

    def wait(self, timeout: float | None = None) -> bool:
        self._world.effect("wait")
        return super().wait(timeout)


class Swarm(Universe):
    """One seed's world, with a run of several processes."""

    def __init__(self, seed: int, scenario: Scenario, acts: Plan = (), trace: list[str] | None = None) -> None:
        self.current: Actor | None = None
        self.actors: list[Actor] = []
        self.started: dict[tuple[int | None, str | None], set[str]] = defaultdict(set)  # by run and slot
        self.claimed: int | None = None  # the run's revision, as the engine that starts processes knows it
        self._plan: dict[int, list[Act]] = {}
        self.transactions = transactions.Lock()
        self.command: Process | None = None  # that a person has given
        self.held: list[tuple[Late, str]] = []  # lost requests of scanned pages, with their items
        super().__init__(seed, scenario, (), trace)
        self.target = transactions.target_of(scenario)
        self.chance = random.Random(f"workers {seed}")
        self.slots = self._new_slots()
        self.claims_in_pages = random.Random(f"claims {seed}").random() < CLAIMS_IN_PAGES
        self.skewed = self.chance.choice([0.0, 0.0, 2.0, TOLERATED])
        self.musing = random.Random(f"slow hooks {seed}")
        self.muses = self.musing.random() < MUSING
        self.gaps: dict[tuple[str, str], float] = {}  # that are stored, and since when
        for act in acts:
            self._plan.setdefault(act.at, []).append(act)
        self.calmed = False
        self.vanished: set[str] = set()  # shards of which the endpoint knows nothing any more

    def _new_slots(self) -> tuple[str, ...]:
        return tuple(str(n) for n in range(1 + int(self.chance.random() * MOST_SLOTS)))

    # What happens between two requests

    def happen(self) -> None:
        """Called by a scheduler of a process: others move. Of the world: it moves on."""
        if self.current is not None:
            self.effect("step")
            return
        self.step += 1
        self.clock.now += self.random.random() * self.pace
        for act in self._plan.pop(self.step, ()):
            self.note("act", act.what, act.luck)
            ACTS[act.what](self, act)
        if self.held:
            self.let_go()
        if self.late:
            self.arrive()
        repairing.advance(self)
        self.advance_command()

    def advance_command(self) -> None:
        """The command that a person has given makes its next request, some time."""
        if self.command is not None and self.answers.random() < 0.1:
            self.command.advance()
            if self.command.ended:
                self.command = None

    def end_command(self) -> None:
        if self.command is not None:
            self.command.kill()
            self.command = None

    def soon(self, steps: int, what: str, luck: tuple[float, float] = (0.0, 0.0)) -> None:
        self._plan.setdefault(self.step + steps, []).append(Act(self.step + steps, what, luck))

    def effect(self, name: str) -> None:
        actor = self.current
        if actor is None or actor.process is None:
            return
        actor.process.pause()
        if name in REFUSES_WHEN_CUT_OFF and self.step < actor.away:
            raise TransientError("there is no way to it")

    def dies_here(self, name: str) -> bool:
        """Before a request of a batch: whether the process is gone, and the rest may still be applied."""
        try:
            self.effect("request")
        except Killed:
            return True
        return False

    def overtake(self) -> None:
        self.effect("piece")

    def doze(self) -> None:
        """A coordinator that is about to purge may be stopped, while a worker is killed and leaves tombstones."""
        if self.current is not None and self.take("doze"):
            self.current.asleep = self.step + int(self.random.random() * LONGEST_ABSENCE)
            regret(self, Act(self.step, "regret", (self.random.random(), 1.0)))
        self.effect("before a purge")

    def perish(self) -> None:
        self.note("killed", "as it sends", *sorted(self.fatal_items))
        self.fatal_items.clear()
        self.perishing()

    def dawdle(self) -> None: ...

    def begun_to_write(self, batch: Batch) -> None:
        """A transaction has begun. One with a scanned page may take long, and its items be deleted meanwhile."""
        if self.current is not None and self._races(batch, "segment:"):
            self.current.asleep = self.step + int(self.random.random() * LONGEST_ABSENCE)

    def sees(self, batch: Batch) -> None:
        """What is about to be sent. Without transactions, responses to a scanned page may be lost, and its items be
        deleted meanwhile."""
        super().sees(batch)
        if self.scenario.index and self._races(batch, "segment:"):
            self.armed["leak"] = self.armed.get("leak", 0) + 1 + int(3 * self.random.random())

    def holds(self, item: str, carry_out: Callable[[], object]) -> None:
        """The response to a request of a scanned page is lost, and the request applied late: after the scan."""
        self.held.append((Late(self.clock.now + LATEST, "target", carry_out), item))

    def let_go(self) -> None:
        """The stream alone is followed: the items are deleted, and the requests about them arrive after that.

        Where the scan takes so long that they cannot wait for its end, they arrive before it.
        """
        self.late += [late for late, _ in self.held if late.at <= self.clock.now]
        self.held = [(late, item) for late, item in self.held if late.at > self.clock.now]
        state = self.database.entries.get(("pipeline", ""))
        if state is None or decode_pipeline(state[1]).stage != stages.FOLLOWING:
            return
        held, self.held = self.held, []
        self._calm_since, self.settled = self.clock.now, False  # what is deleted now must be stored, too
        present = {str(item["pk"]) for item in self.source.items(self.TABLE)}
        for late, item in held:
            if item in present:
                self.write(item, removes=True)
            self.late.append(replace(late, at=min(late.at, self.clock.now + LATEST * self.random.random())))

    def inserts(self, batch: Batch) -> None:
        """The command may be stopped before that, and the items be deleted meanwhile."""
        if self.repairer is not None and self._races(batch, "verify"):
            self.repairer.idle_until = self.step + int(self.random.random() * LONGEST_ABSENCE)

    def _races(self, batch: Batch, source: str) -> bool:
        """Whether something comes between: the items that a page of this source has are deleted then."""
        items = {w.item for part in batch.parts if part.source.startswith(source) for w in part.writes}
        if not items or not self.take("race"):
            return False
        for key in sorted(str(item["pk"]) for item in self.source.items(self.TABLE)):
            if (key,) in items:
                self.write(key, removes=True)
        return True

    # Processes

    def living(self, slot: str | None) -> list[Actor]:
        """The processes of the current run: workers of a slot, or coordinators."""
        return [a for a in self.actors if a.lives and a.slot == slot and a.run == self.claimed is not None]

    def start(self, actor: Actor, work: Callable[[Actor], None]) -> Actor:
        def live(pause: Callable[[], None]) -> None:
            self._work(actor, work)

        actor.process = Process(live)
        actor.skew, actor.uptime = self.chance.uniform(-self.skewed, self.skewed), self.chance.uniform(1.0, 1e7)
        self.actors = [a for a in self.actors if a.lives] + [actor]
        self.started[actor.run, actor.slot].add(actor.name)
        self.note(actor.name, "starts")
        return actor

    def _work(self, actor: Actor, work: Callable[[Actor], None]) -> None:
        try:
            work(actor)
        except Fenced:
            actor.outcome = "fenced"
            replaced = len(self.started[actor.run, actor.slot]) > 1
            assert replaced or actor.run != self.claimed, f"{actor.name} was fenced off and nothing replaced it"
        except GapFound:
            actor.outcome = "gap"
        except ConfigError as e:
            if self.streaming:
                raise AssertionError(f"{actor.name} was refused though nothing is wrong") from e
            actor.outcome = "refused"

    def new_run(self) -> None:
        """The run is started again, perhaps with another number of workers. The earlier processes may live."""
        self.claimed = None
        self.slots = self._new_slots()
        self.note("a new run with", len(self.slots))

    def hold(self) -> None:
        """Start what does not live, as Ray does."""
        if not self.streaming:
            return
        living = [a for a in self.actors if a.lives]
        if self.claimed is None:
            if not any(a.slot is None and a.run is None for a in living):
                self.start_coordinator()
            return
        held = {a.slot for a in living if a.run == self.claimed}
        if None not in held:
            self.start_coordinator()
        for slot in self.slots:
            if slot not in held:
                self.start_worker(slot)

    def start_coordinator(self) -> Actor:
        self.runs += 1
        return self.start(Actor(f"coordinator {self.runs}", self.claimed, self.slots), self._coordinate)

    def start_worker(self, slot: str) -> Actor:
        self.runs += 1
        return self.start(Actor(f"worker {self.runs} of {slot}", self.claimed, self.slots, slot), self._read)

    def owner(self, actor: Actor) -> Owner:
        return Owner(actor.name, "here", 1, self.clock() + actor.skew)

    def context(self) -> RunContext:
        """What a process works with; it may stop before each request to the checkpoints."""
        context = runs.copy_in(self)
        if self.muses and context.hook is not None:
            context = replace(context, hook=replace(context.hook, function=partial(self._muse, context.hook.function)))
        checkpoints = context.checkpoints
        assert isinstance(checkpoints, Slotted)
        if self.scenario.index:
            checkpoints.read = partial(self._read_in_pages, checkpoints.read)  # type: ignore[method-assign]
        if self.scenario.index and self.claims_in_pages:
            claim = partial(self._claim_in_pages, checkpoints, checkpoints.claim_slot)
            checkpoints.claim_slot = claim  # type: ignore[method-assign]
        for name in ("claim", "claim_slot", "read", "pipeline"):
            kind = "claim" if name.startswith("claim") else "read"
            setattr(context.checkpoints, name, partial(self._touched, kind, getattr(context.checkpoints, name)))
        return context

    def _muse(self, right: Callable[[Item], object], item: Item) -> object:
        """Now and then the hook takes seconds, and others move meanwhile."""
        if self.current is not None and not self.calmed and self.musing.random() < 0.4:
            self.clock.now += 4.0 * self.musing.random()
            self.effect("hook")
        return right(item)

    def _read_in_pages(self, right: Callable[[], Claimed]) -> Claimed:
        """As the store on DynamoDB reads without a claim: page by page, while others save."""
        if self.calmed:
            return right()
        parks = self._pages(lambda kind: kind == "item")
        parked = [structs.replace(entry, text="") for entry in self._pages(lambda kind: kind == "parked")]
        counts = dict(self.database.counts)
        found = self._pages(lambda kind: kind not in ("item", "parked"))
        revision = next((e.revision for e in found if (e.kind, e.id) == ("owner", "")), 0)
        return Claimed(revision, [*parks, *parked, *found], counts)

    def _claim_in_pages(
        self,
        checkpoints: Slotted,
        right: Callable[[Owner, str, int], Claimed],
        owner: Owner,
        slot: str,
        run: int,
    ) -> Claimed:
        """As the store on DynamoDB claims a slot: what other slots have, it then reads while their workers save."""
        claimed = right(owner, slot, run)
        if self.calmed:
            return claimed
        while True:
            before = self._guarded(slot)
            found = self._read_in_pages(checkpoints.read)
            if self._guarded(slot) == before:
                return replace(found, revision=claimed.revision)

    def _guarded(self, slot: str) -> Mapping[tuple[str, str], tuple[int, str]]:
        """What the head of the slot guards."""
        entries = self.database.entries.items()
        return {at: of for at, of in entries if layout.slot_in(at[0], of[1]) == slot or at in _own(slot)}

    def _pages(self, wanted: Callable[[str], bool]) -> Sequence[Entry]:
        found, size, after = list[Entry](), 1 + int(self.answers.random() * 8), ("", "")
        while True:
            page = sorted(at for at in self.database.entries if at > after and wanted(at[0]))[:size]
            found += [Entry(*place, *self.database.entries[place]) for place in page]
            self.effect("read")
            if len(page) < size:
                return found
            after = page[-1]

    def _touched(self, kind: str, request: Callable[..., Any], *given: Any) -> Any:
        self.effect(kind)
        return request(*given)

    def environment(self, actor: Actor, observe: Callable[[Progress], None] = lambda progress: None) -> Environment:
        return Environment(
            Stop(self),  # type: ignore[arg-type]
            observe,
            lambda: self.clock.wall() + actor.skew,
            self.random,
            lambda client: SeededSteps(self, client),
            lambda: self.clock() - self.began + actor.uptime,
        )

    def _coordinate(self, actor: Actor) -> None:
        environment = self.environment(actor, partial(self._observed, actor))
        coordinator = Coordinator(self.context(), self.owner(actor), environment, actor.slots, actor.run)
        actor.coordinator = coordinator
        if actor.run is None:
            actor.run = coordinator.revision
            self.started[actor.run, None].add(actor.name)
            if actor.run > (self.claimed or 0):
                self.claimed, self.slots = actor.run, actor.slots
        coordinator.start(Allowed(hook_change=self.fixed))
        while True:
            coordinator.step()
            for slot, entries in coordinator.news().items():
                self._tell(slot, entries)
            self.settled = self._is_settled(actor, coordinator)

    def _tell(self, slot: str, entries: Sequence[Entry]) -> None:
        """A message arrives, or is lost, or arrives late."""
        for actor in self.living(slot):
            if self.calmed or self.answers.random() < 0.5:
                actor.told.append(entries)

    def _read(self, actor: Actor) -> None:
        assert actor.run is not None
        assert actor.slot is not None
        post = Post(actor.slot, actor.run, len(actor.slots))
        worker = Worker(post, self.owner(actor), self._connected, self.environment(actor))
        while True:
            while actor.told and (self.calmed or self.answers.random() < 0.2):
                worker.learn(actor.told.pop(0))
            if not worker.step():
                self.environment(actor).stop.wait(CLAIM_INTERVAL)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[RunContext]:
        yield self.context()

    def _observed(self, actor: Actor, progress: Progress) -> None:
        latest = [a for a in self.actors if a.slot is None][-1]
        if actor is latest and actor.run == self.claimed:
            truth.check_told(self.database, progress, self._unread_gaps(actor))

    def _unread_gaps(self, coordinator: Actor) -> set[tuple[str, str]]:
        """Those that workers have stored since the coordinator last read, which it does once a second."""
        if coordinator.coordinator is None:
            return set()
        read_at = coordinator.coordinator.read_at + self.began - coordinator.uptime
        return {
            place for place in self.database.entries if place[0] == "gap" and self.gaps.get(place, math.inf) >= read_at
        }

    # The course of a seed

    settled = False

    def move(self) -> None:
        """One request of one process."""
        self.happen()
        self.hold()
        ready = [a for a in self.actors if a.lives and a.asleep <= self.step]
        if not ready:
            return
        actor = ready[int(self.random.random() * len(ready))]
        self.current = actor
        try:
            assert actor.process is not None
            actor.process.advance()
        finally:
            self.current = None
        self._judge_gaps()
        if actor.lives:
            return
        self.note(actor.name, "ends", actor.outcome)
        if actor.outcome in ("gap", "refused") and actor.run == self.claimed:
            self.end_all()
            self.new_run()

    def _judge_gaps(self) -> None:
        """A gap is stored only where records went before they were read, or could have gone by their age."""
        gaps = {place for place in self.database.entries if place[0] == "gap"}
        lost = self.trimmed_early or self.clock.now - self.began > RETENTION - SKEWED
        for place in gaps - self.gaps.keys():
            text = self.database.entries[place][1]
            told = lost or "mistaken" in text or self._is_of_unknown_parent(text)
            assert told, f"a gap though nothing is lost: {text}"
        self.gaps = {place: self.gaps.get(place, self.clock()) for place in gaps}

    def _is_of_unknown_parent(self, text: str) -> bool:
        """Whether the gap's shard has a parent that the epoch never knew, and the endpoint does not know any more."""
        gap = truth.decoded("gap", text)
        assert isinstance(gap, Gap)
        parents = {one.id: one.parent for one in self.source.shards(self.TABLE)}
        parent = parents.get(gap.shard or "")
        return parent in self.vanished and ("shard", str(parent)) not in self.database.entries

    def is_stored(self, shard: str) -> bool:
        """Whether a worker has stored all records that the shard has had, trimmed ones included."""
        entry = self.database.entries.get(("shard", shard))
        state = None if entry is None else truth.decoded("shard", entry[1])
        if not isinstance(state, ShardState):
            return False
        found = next(one for one in self.source.shards(self.TABLE) if one.id == shard)
        return found.last <= found.start or (state.sequence is not None and int(state.sequence) >= found.last)

    def forget(self, shards: Iterable[str]) -> None:
        """The endpoint does not know the shards, and lists no vanished ones."""
        self.source.misreport(lambda listed: [one for one in listed if one.id not in self.vanished])
        for shard in sorted(shards):
            for call in ("GetRecords", "GetShardIterator"):
                self.source.fail(call, "ResourceNotFoundException", times=None, shard=shard)

    def end_all(self) -> None:
        for actor in self.actors:
            self.kill(actor)

    def kill(self, actor: Actor) -> None:
        if actor.lives and actor.process is not None:
            self.note(actor.name, "is killed")
            before, self.current = self.current, actor
            actor.process.kill()
            self.current = before

    def _is_settled(self, actor: Actor, coordinator: Coordinator) -> bool:
        """Whether the run has caught up with all that was written, with nothing left to clean up."""
        pipeline, window = coordinator.pipeline, coordinator._in_doubt
        if not self.calmed or actor.run != self.claimed or pipeline.state is None:
            return False
        if pipeline.view.request is not None or not pipeline.caught_up(self._calm_since + self.skewed):
            return False
        doubts = [slot.in_doubt for id, slot in pipeline.view.slots.items() if id in self.slots]
        if self.repairer is not None or ("repair", "") in self.database.entries:
            return False
        return window is None or not (window.left is not None or any(doubts) or coordinator._cleanup.overdue)

    _calm_since = 0.0

    def calm(self) -> None:
        self._plan.clear()
        self.armed.clear()
        self.fatal_items.clear()
        self.end_command()
        if self.repairs.random() < 0.5:
            repairing.end(self)
        self.source.heal()
        self.forget(self.vanished)
        self.source.page_sizes(shards=20, records=50, items=50)  # what is left to read may be much
        self.pace, self.slow = min(0.1, self.pace), 0.0
        self.calmed, self.settled = True, False
        for actor in self.actors:
            actor.away = actor.asleep = 0
        acts.enable(self, Act(self.step, "enable", (0.0, 0.0)))
        requests.renew(self)
        self._calm_since = self.clock.now

    def live(self) -> None:
        """The whole seed."""
        try:
            while self.step < self.scenario.steps:
                self.move()
            self.calm()
            for n in range(PATIENCE):
                if self.settled and not self.late and not self.held:
                    return
                self.move()
                if n % (150 if n < 3000 else 1500) == 149:  # a piece of a purge of many documents takes more than 150
                    self.clock.now += WINDOW
            raise runs.NeverSettled(f"not settled within {PATIENCE} steps")
        finally:
            repairing.end(self)
            self.end_command()
            self.end_all()


def _own(slot: str) -> Sequence[tuple[str, str]]:
    return [("owner", slot), ("slot", slot), ("pulse", slot)]


def kill_worker(world: Swarm, act: Act) -> None:
    workers = [a for a in world.actors if a.lives and a.slot is not None]
    if workers:
        world.kill(workers[act.pick(len(workers))])


def kill_coordinator(world: Swarm, act: Act) -> None:
    for actor in [a for a in world.actors if a.lives and a.slot is None][-1:]:
        world.kill(actor)


def cut_off(world: Swarm, act: Act) -> None:
    """A process reaches neither the checkpoints nor the target; perhaps another one takes its place meanwhile."""
    if (actor := _one(world, act)) is not None:
        actor.away = world.step + int(act.between(1, LONGEST_ABSENCE))
        _replace_perhaps(world, actor, act)


def suspend(world: Swarm, act: Act) -> None:
    """A process is stopped (SIGSTOP) and goes on later, perhaps minutes later."""
    if (actor := _one(world, act)) is not None:
        actor.asleep = world.step + int(act.between(1, 3 * LONGEST_ABSENCE))
        _replace_perhaps(world, actor, act)
        if act.luck[1] > 0.8:
            world.clock.now += 1000 * (act.luck[1] - 0.8)


def set_clock(world: Swarm, act: Act) -> None:
    """The clock of a process' node, which was slow or fast, is set, and is fast or slow then."""
    if (actor := _one(world, act)) is not None:
        world.skewed = TOLERATED
        actor.skew = math.copysign(TOLERATED, -actor.skew if actor.skew else act.luck[1] - 0.5)


def _replace_perhaps(world: Swarm, actor: Actor, act: Act) -> None:
    if act.luck[1] < 0.5 or actor.run != world.claimed or len(world.actors) >= MOST_ACTORS:
        return
    if actor.slot is None:
        world.start_coordinator()
    else:
        world.start_worker(actor.slot)


def _one(world: Swarm, act: Act) -> Actor | None:
    living = [a for a in world.actors if a.lives and a.run is not None]
    return living[act.pick(len(living))] if living else None


def retry_slowly(world: Swarm, act: Act) -> None:
    """A person's command, which the processes of the run outrun; perhaps it is killed."""
    decision = deciding.retried if act.luck[1] < 0.8 else deciding.dropped

    def command(pause: Callable[[], None]) -> None:
        deciding.decide(world, act, decision, pause)

    if world.command is None:
        world.command = Process(command)


def regret(world: Swarm, act: Act) -> None:
    """A worker is killed as it sends new items, which may be carried out late; they are removed at once.

    Perhaps a resync is requested then. Their shards are closed, so that its epoch does not read that they were removed.
    """
    if world.fatal_items:
        return
    keys = [f"new {world.step} {n}" for n in range(1 + act.pick(3))]
    for key in keys:
        world.write(key, removes=False)
    world.fatal_items |= {(key,) for key in keys}

    def remove() -> None:
        for key in keys:
            world.write(key, removes=True)
        if act.luck[1] < 0.4 and world.streaming:
            requests.request_all(world, act)
            for shard in world.source.open_shards(world.TABLE):
                world.source.roll(world.TABLE, shard)

    world.perishing = remove


def usurp(world: Swarm, act: Act) -> None:
    """A worker is stopped and replaced; the replacement is killed as it sends something, and its slot taken away."""
    workers = [a for a in world.actors if a.lives and a.run == world.claimed is not None and a.slot is not None]
    if not workers or world.fatal_items or len(world.actors) >= MOST_ACTORS:
        return
    first = workers[act.pick(len(workers))]
    assert first.slot is not None
    first.asleep = world.step + 2 * LONGEST_ABSENCE
    world.start_worker(first.slot)
    regret(world, act)
    remove = world.perishing

    def take_away() -> None:
        remove()
        requests.request_items(world, act)

    world.perishing = take_away


def vanish(world: Swarm, act: Act) -> None:
    """A shard that is stored to its last record rolls over, and the endpoint knows nothing of it any more."""
    stored = [id for id in world.source.open_shards(world.TABLE) if world.is_stored(id)]
    if stored:
        gone = stored[act.pick(len(stored))]
        world.source.roll(world.TABLE, gone)
        world.vanished.add(gone)
        world.forget([gone])


def blank_closed(world: Swarm, act: Act) -> None:
    """Pages of a shard are empty although it has records. It was known to be closed before any worker got it."""
    states = {
        id: truth.decoded("shard", text) for (kind, id), (_, text) in world.database.entries.items() if kind == "shard"
    }
    known = {id: state for id, state in states.items() if isinstance(state, ShardState)}
    parents = {state.parent for state in known.values()}
    waiting = sorted(id for id, state in known.items() if id in parents and not state.slot and not state.ended)
    if waiting:
        world.source.blank(times=int(act.between(3, 20)), shard=waiting[act.pick(len(waiting))])


def outlive(world: Swarm, act: Act) -> None:
    """No request that was sent before now can be applied any more."""
    world.clock.now += act.between(WINDOW, 1.1 * WINDOW)


def second_worker(world: Swarm, act: Act) -> None:
    """Another worker claims a slot whose worker lives, perhaps in the middle of a batch."""
    if world.claimed is not None and len(world.actors) < MOST_ACTORS:
        world.start_worker(world.slots[act.pick(len(world.slots))])


def second_coordinator(world: Swarm, act: Act) -> None:
    if world.claimed is not None and len(world.actors) < MOST_ACTORS:
        world.start_coordinator()


def new_run(world: Swarm, act: Act) -> None:
    if len(world.actors) < MOST_ACTORS:
        world.new_run()


def one_process(world: Swarm, act: Act) -> None:
    """The engine is changed for a while: a run in one process follows, and is killed."""
    if not world.streaming:
        return

    def drive(actor: Actor) -> None:
        context = world.context()
        driver = runs.driver_in(world, context)
        runs.limit_turns(driver, 5 + act.pick(60))
        driver.run(until=None, allowed=Allowed(hook_change=world.fixed))

    world.end_all()
    world.new_run()
    world.runs += 1
    world.start(Actor(f"one process {world.runs}", None, ()), drive)


ACTS: Mapping[str, Callable[[Swarm, Act], None]] = {
    **{what: acts.ACTS[what] for what in (*SOURCE, *REQUESTS)},
    **requests.ACTS,
    **repairing.ACTS,
    **{what: deciding.ACTS[what] for what in PARKED},
    "retry slowly": retry_slowly,
    **dict.fromkeys(("leak", "race", "page", "doze"), acts.arm),
    "regret": regret,
    "usurp": usurp,
    "outlive": outlive,
    "vanish": vanish,
    "blank closed": blank_closed,
    "disable": acts.disable,
    "enable": acts.enable,
    "kill worker": kill_worker,
    "kill coordinator": kill_coordinator,
    "cut off": cut_off,
    "suspend": suspend,
    "set clock": set_clock,
    "second worker": second_worker,
    "second coordinator": second_coordinator,
    "new run": new_run,
    "one process": one_process,
}


def draw(seed: int) -> Scenario:
    """The scenario of a seed: some acts never happen in it, others often."""
    chance = random.Random(f"workers' scenario {seed}")
    hook = chance.choice([None, None, *HOOKS])
    own_ids = hook is not None and HOOKS[hook].own_ids
    view = "NEW_AND_OLD_IMAGES" if own_ids or chance.random() < 0.8 else chance.choice(["NEW_IMAGE", "KEYS_ONLY"])
    return Scenario(
        hook=hook,
        view=view,
        index=chance.random() < 0.6,
        overlaps=chance.random() < 0.4,
        refuses=chance.random() < 0.2,
        forgetful=chance.random() < 0.5,
        keys=int(2 * 10 ** chance.random()),
        steps=int(150 * 8 ** chance.random()),
        shards=chance.randrange(1, 4),
        segments=chance.randrange(1, 5),
        records_a_page=chance.choice([1, 3, 7]),
        items_a_page=chance.choice([1, 2, 5]),
        batch_rows=chance.choice([1, 4, 2000]),
        looked_up_bytes=chance.choice([1, 100, 1 << 20]),
        piece=chance.choice([1, 3, 2000]),
        dialect=chance.choice([AWS, LOCAL]),
        pace=chance.choice([0.01, 0.05, 0.2, 1.0]),
        slow=chance.choice([0.0, 0.1, 0.3]),
        rates=drawn_rates(seed),
    )


def drawn_rates(seed: int) -> dict[str, float]:
    """How often each act happens, if it does; independent of what other acts there are."""
    rates = {}
    for what, rate in RATES.items():
        chance = random.Random(f"workers' {what} {seed}")
        if chance.random() < 0.7:
            rates[what] = rate * 10 ** chance.uniform(-1, 0.6)
    if "repair" in rates:  # three empty pages count as all there was: `verify` could take what they hide for lost
        rates.pop("blank", None)
    return rates


def simulate(seed: int, found: Scenario | None = None, trace: list[str] | None = None) -> Swarm:
    """One seed, to its end. AssertionError, or an error of a process, says what did not hold."""
    found = found or draw(seed)
    with sizes(found):
        world = Swarm(seed, found, plan.draw(seed, found), trace)
        world.live()
        truth.check_end(world)
    return world
