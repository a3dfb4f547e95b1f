"""Processes that share checkpoints in DynamoDB: runs, coordinators, workers, commands, and what was replaced by them.

The store is the production code, over the in-memory DynamoDB. Each process is a thread that moves from one of its
requests to the next when the seed says so. Requests are lost, applied without a response, or applied later, behind
whatever was stored since; processes are killed in the middle of a save, and replaced while they live.

Each save leaves its name in a list, an entry that it compares. So the lists say which saves were stored, and with them
what the counts, and the revisions of all entries, have to be.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from replicator.aws.errors import AwsError
from replicator.checkpoints.contract import Claimed
from replicator.checkpoints.dynamodb import layout, snapshot, table
from replicator.checkpoints.dynamodb.store import DynamodbCheckpoints, DynamodbOptions
from replicator.errors import Fenced, TransientError
from replicator.state import Counts, Owner, Save, encode
from replicator.testing.dynamodb import DynamoDB
from tests.simulation.process import Process

T = TypeVar("T")
List = tuple[str, str]
"""The entry in which a process leaves the names of its saves."""

RUN, COMMANDS, COORDINATOR = ("pipeline", ""), ("request", ""), "coordinator"
IN_A_SLOT = ("shard", "of commands")  # another list of theirs, with what the slot 0 has
SLOTS = ("0", "1")
MOST_ACTORS = 7
STEPS = 2500
FATES = ("fine", "lost", "unheard", "late", "conflict")


def is_list(place: tuple[str, str]) -> bool:
    return place[0] in ("pipeline", "request", "slot") or place == IN_A_SLOT


class Wrong(AssertionError):
    """What was stored contradicts what processes were told."""


@dataclass(frozen=True)
class Fence:
    """From a moment on ``barred`` processes may not store anything: ``stored`` is all that they may have, by list."""

    why: str
    stored: Mapping[List, Sequence[str]]
    barred: frozenset[str]


@dataclass
class Actor:
    """A process. ``run``: the revision of its run's claim. ``claimed``: whether it was told so."""

    name: str
    run: int = 0
    slot: str | None = None
    claimed: bool = False
    process: Process | None = None
    saves: int = 0
    expected: dict[tuple[str, str], int] = field(default_factory=dict)  # revisions
    texts: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def lives(self) -> bool:
        return self.process is not None and not self.process.ended


class Wire:
    """A client of one process, which may stop before each of its requests."""

    def __init__(self, world: World, pause: Callable[[], None]) -> None:
        self._world, self._pause = world, pause

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        self._pause()
        world = self._world
        fate = world.fate()
        if operation == "Query":
            request = {**request, "Limit": 1 + int(world.random.random() * world.page)}
        if fate == "conflict" and operation in ("TransactWriteItems", "PutItem"):
            raise _conflict(operation)
        if fate == "late":
            world.late.append((operation, request))
        if fate in ("lost", "late"):
            raise AwsError("ReadTimeout", "nothing came", 0)
        response = world.db.call(operation, request)
        if fate == "unheard":
            raise AwsError("ReadTimeout", "nothing came", 0)
        return response


def _conflict(operation: str) -> AwsError:
    if operation == "PutItem":
        return AwsError("TransactionConflictException", "others are at it", 400)
    reasons = {"CancellationReasons": [{"Code": "TransactionConflict"}]}
    return AwsError("TransactionCanceledException", "others are at it", 400, reasons)


class World:
    """One seed's processes and table."""

    def __init__(self, seed: int, trace: list[str] | None = None) -> None:
        self.random = random.Random(f"heads {seed}")
        self.db = DynamoDB(now=lambda: 1e9, random=random.Random(seed))
        self.trace = trace
        self.late: list[tuple[str, Mapping[str, Any]]] = []
        self.weights = [20.0, *(self.random.choice([0.0, 0.3, 1.0]) for _ in FATES[1:])]
        self.page = self.random.choice([3, 10, 50])
        self.actors: list[Actor] = []
        self.run, self.slotted = 0, False  # the last run that was told that it has claimed, and whether it has workers
        self.counts: dict[str, dict[str, Counts]] = {}  # of each save that was tried, by source
        self.touched: dict[str, list[tuple[str, str]]] = {}
        self.acknowledged: set[str] = set()
        self.fences: list[Fence] = []
        self.calm = True
        self.store(lambda: None).create()
        self.calm = False

    def note(self, *words: object) -> None:
        if self.trace is not None:
            self.trace.append(" ".join(map(str, words)))

    def fate(self) -> str:
        return "fine" if self.calm else self.random.choices(FATES, self.weights)[0]

    def store(self, pause: Callable[[], None]) -> DynamodbCheckpoints:
        one = DynamodbCheckpoints(DynamodbOptions(table="checkpoints", region="us-east-1"), "heads", Path("/"))
        one._client = Wire(self, pause)
        return one

    # What is stored, without a look at heads

    def lists(self) -> dict[List, list[str]]:
        found = {}
        for item in self.db.items("checkpoints"):
            kind, _, rest = str(item["entry"]).partition("#")
            if kind == "e" and is_list(place := layout.place_of(f"e#{rest}")):
                found[place] = list(json.loads(str(item["text"]))["ids"])
        return found

    def fence(self, why: str, barred: Iterable[Actor], stored: Mapping[List, Sequence[str]]) -> None:
        self.fences.append(Fence(why, stored, frozenset(actor.name for actor in barred)))

    # Processes

    def start(self, actor: Actor, work: Callable[[Actor, DynamodbCheckpoints], None]) -> None:
        def live(pause: Callable[[], None]) -> None:
            try:
                work(actor, self.store(pause))
            except Fenced as e:
                self.note(actor.name, "is fenced:", e)
                self.check_fenced(actor)

        actor.process = Process(live)
        self.actors = [one for one in self.actors if one.lives] + [actor]
        self.note(actor.name, "starts")

    def check_fenced(self, actor: Actor) -> None:
        """Only if what it has claimed is another's by now, or may be: the owner is stored in the heads and entries."""
        items = {str(item["entry"]): item for item in self.db.items("checkpoints")}
        run = int(str(items["h"]["claim"]))
        owner = items.get(f"e#owner#{actor.slot}", {"text": '{"run":""}'})
        if actor.claimed and run == actor.run and actor.slot and json.loads(str(owner["text"]))["run"] == actor.name:
            raise Wrong(f"{actor.name} was fenced off, and nothing replaced it")

    def name(self, what: str) -> str:
        self._names = getattr(self, "_names", 0) + 1
        return f"{what} {self._names}"

    def new_run(self) -> None:
        with_workers = self.random.random() < 0.8
        self.start(Actor(self.name("run")), lambda actor, one: self.lead(actor, one, with_workers))

    def owner(self, actor: Actor) -> Owner:
        return Owner(actor.name, "here", 1, 1e9)

    def lead(self, actor: Actor, one: DynamodbCheckpoints, with_workers: bool) -> None:
        acknowledged = frozenset(self.acknowledged)
        claimed = again(lambda: one.claim(self.owner(actor)))
        self.check_claimed(claimed, acknowledged)
        actor.run, actor.claimed, self.run, self.slotted = claimed.revision, True, claimed.revision, with_workers
        barred = [other for other in self.actors if 0 < other.run < actor.run]
        self.fence(f"{actor.name} has claimed the pipeline", barred, self.lists())
        self.note(actor.name, "has run", actor.run)
        self.learn(actor, claimed)
        if with_workers:
            actor.slot = COORDINATOR
            self.take(actor, one, COORDINATOR)
        while True:
            if with_workers:
                self.coordinate(actor, one)
            else:
                self.follow(actor, one, RUN, self.shards(actor))

    def coordinate_again(self, actor: Actor, one: DynamodbCheckpoints) -> None:
        self.take(actor, one, COORDINATOR)
        while True:
            self.coordinate(actor, one)

    def work(self, actor: Actor, one: DynamodbCheckpoints) -> None:
        assert actor.slot is not None
        while True:
            self.take(actor, one, actor.slot)
            mine = [p for p in self.shards(actor) if json.loads(actor.texts[p])["slot"] == actor.slot]
            while True:
                self.follow(actor, one, ("slot", actor.slot), mine)

    def take(self, actor: Actor, one: DynamodbCheckpoints, slot: str) -> None:
        """Claim a slot."""
        barred = [other for other in self.actors if other.slot == slot and other.claimed and other is not actor]
        actor.claimed = False
        claimed = again(lambda: one.claim_slot(self.owner(actor), slot, actor.run))
        actor.claimed = True
        self.fence(f"{actor.name} has claimed its slot", barred, self.lists())
        self.learn(actor, claimed)

    def shards(self, actor: Actor) -> list[tuple[str, str]]:
        return sorted(place for place in actor.texts if place[0] == "shard" and place != IN_A_SLOT)

    def learn(self, actor: Actor, claimed: Claimed) -> None:
        actor.expected = {(e.kind, e.id): e.revision for e in claimed.entries}
        actor.texts = {(e.kind, e.id): e.text for e in claimed.entries}

    # Saves

    def save(
        self, actor: Actor, one: DynamodbCheckpoints, to: List, changes: Mapping[tuple[str, str], str | None]
    ) -> bool:
        """Save ``changes`` and the name of the save; False if an entry had changed, or a process lost what it had."""
        actor.saves += 1
        name = f"{actor.name}.{actor.saves}"
        listed = json.loads(actor.texts.get(to, '{"ids":[]}'))["ids"]
        content = {"ids": [*listed, name], **({"slot": "0"} if to == IN_A_SLOT else {})}
        texts = {**changes, to: json.dumps(content, separators=(",", ":"))}
        saves = [Save(*place, self.expects(actor, place), text) for place, text in texts.items()]
        sources = [f"{kind}:{id}" for kind, id in changes if kind == "shard"][:3]
        known = sorted(id for kind, id in actor.texts if (kind, id) != IN_A_SLOT and kind == "shard")
        if known and self.random.random() < 0.2:
            sources.append(f"shard:{self.random.choice(known)}")  # a parked change of perhaps another slot's is healed
        self.counts[name] = {source: Counts(read=1, applied=1) for source in sources}
        self.touched[name] = list(texts)
        again(lambda: one.save(saves, self.counts[name]))
        self.acknowledged.add(name)
        for place, text in texts.items():
            actor.expected[place] = actor.expected.get(place, 0) + 1
            actor.texts[place] = text or ""
        return True

    def read(self, one: DynamodbCheckpoints) -> Claimed:
        """Beside others that save. Whose position is read, what it has parked until then is, too."""
        found = again(one.read)
        places = {(e.kind, e.id) for e in found.entries}
        lists = [json.loads(e.text)["ids"] for e in found.entries if is_list((e.kind, e.id))]
        parked = {p for names in lists for name in names for p in self.touched[name] if p[0] == "parked"}
        if missing := parked - places:
            raise Wrong(f"a read lacks what was parked: {missing}")
        return found

    def expects(self, actor: Actor, place: tuple[str, str]) -> int | None:
        return None if place[0] in ("owner", "parked") else actor.expected.get(place, 0)

    def follow(self, actor: Actor, one: DynamodbCheckpoints, to: List, shards: Sequence[tuple[str, str]]) -> None:
        """A batch: the positions of some shards move."""
        some = self.random.sample(list(shards), min(len(shards), 1 + int(self.random.random() * 8)))
        changes: dict[tuple[str, str], str | None] = {
            place: json.dumps({"slot": json.loads(actor.texts[place])["slot"], "n": actor.saves}, separators=(",", ":"))
            for place in some
        }
        if self.random.random() < 0.1:
            changes["parked", self.random.choice("xyz")] = json.dumps(actor.name)
        self.save(actor, one, to, changes)
        if self.random.random() < 0.1:
            again(lambda: one.save([]))

    def coordinate(self, actor: Actor, one: DynamodbCheckpoints) -> None:
        """Give a shard, or take slots away with what else changes; reads first, as what workers stored has changed."""
        self.learn(actor, self.read(one))
        slots = self.random.sample(SLOTS, self.random.choice([0, 1, 1, len(SLOTS)]))
        shards = [("shard", id) for id in self.random.sample("abcdefghijkl", self.random.choice([1, 2, 12]))]
        text = json.dumps({"slot": self.random.choice(SLOTS), "n": 0}, separators=(",", ":"))
        places = [p for p in shards if p not in actor.texts or json.loads(actor.texts[p])["slot"] in slots]
        changes: dict[tuple[str, str], str | None] = dict.fromkeys(places, text)
        changes |= {("owner", slot): encode(Owner("", actor.name, 1, 1e9)) for slot in slots}
        barred = [o for slot in slots for o in self.actors if o.slot == slot and o.claimed]
        if self._saved(actor, one, changes):
            self.fence(f"{actor.name} has taken {slots} away", barred, self.lists())

    def _saved(self, actor: Actor, one: DynamodbCheckpoints, changes: Mapping[tuple[str, str], str | None]) -> bool:
        try:
            return self.save(actor, one, ("slot", COORDINATOR), changes)
        except Fenced:
            again(lambda: one.save([]))  # a worker has changed an entry meanwhile; unless this one was replaced
            return False

    def command(self) -> None:
        """It changes parked entries and their counts, beside the run."""

        def decide(actor: Actor, one: DynamodbCheckpoints) -> None:
            for _ in range(3):
                self.learn(actor, self.read(one))
                try:
                    if self.random.random() < 0.5:
                        self.save(actor, one, IN_A_SLOT, {})
                    else:
                        parked = ("parked", self.random.choice("xyz"))
                        self.save(actor, one, COMMANDS, {parked: json.dumps(actor.name)})
                except Fenced:
                    self.note(actor.name, "was too late")

        self.start(Actor(self.name("command")), decide)

    # The course of a seed

    def live(self) -> None:
        self.new_run()
        try:
            for _ in range(STEPS):
                self.move()
            self.end()
        finally:
            for actor in self.actors:
                self.kill(actor)

    def move(self) -> None:
        """One request of one process, and perhaps something happens to others."""
        self.actors = [actor for actor in self.actors if actor.lives]
        chance = self.random.random()
        if len(self.actors) < MOST_ACTORS:
            self.begin_another(chance)
        if self.actors and 0.9 < chance < 0.904:
            self.kill(self.random.choice(self.actors))
        if self.late and self.random.random() < 0.05:
            self.arrive(self.late.pop(int(self.random.random() * len(self.late))))
        actor = self.random.choice(self.actors)
        if actor.process is not None:
            actor.process.advance()

    def begin_another(self, chance: float) -> None:
        """What does not live is started again, sometimes beside one that does."""
        living = {actor.slot for actor in self.actors if actor.run == self.run and self.slotted}
        slot = self.random.choice([*SLOTS, COORDINATOR])
        if not self.actors or chance < 0.002:
            self.new_run()
        elif self.slotted and (chance < 0.005 or (chance < 0.1 and slot not in living)):
            work = self.coordinate_again if slot == COORDINATOR else self.work
            self.start(Actor(self.name(f"worker of {slot}"), self.run, slot), work)
        elif 0.2 < chance < 0.203:
            self.command()

    def kill(self, actor: Actor) -> None:
        if actor.lives and actor.process is not None:
            self.note(actor.name, "is killed")
            actor.process.kill()

    def arrive(self, request: tuple[str, Mapping[str, Any]]) -> None:
        try:
            self.db.call(*request)
            self.note("late:", request[0])
        except AwsError as e:
            if e.code not in ("ConditionalCheckFailedException", "TransactionCanceledException"):
                raise

    def end(self) -> None:
        """Kill all; what is late arrives; then a run claims the pipeline, and all has to be as processes were told."""
        for actor in self.actors:
            self.kill(actor)
        for late in self.late:
            self.arrive(late)
        self.calm = True
        last = self.store(lambda: None)
        claimed = last.claim(Owner("last", "here", 1, 1e9))
        self.check_claimed(claimed, self.acknowledged)
        pieces = [i for i in self.db.items("checkpoints") if str(i["entry"]).startswith("b#")]
        if pieces:
            raise Wrong("pieces that nothing refers to are left")

    def check_claimed(self, claimed: Claimed, acknowledged: Set[str]) -> None:
        """What a run finds: the whole of each save in the lists, and nothing of others.

        ``acknowledged``: the saves that were when it began to claim the pipeline.
        """
        texts = {(e.kind, e.id): e.text for e in claimed.entries}
        lists = {p: json.loads(t)["ids"] for p, t in texts.items() if is_list(p)}
        stored = [name for names in lists.values() for name in names]
        if len(set(stored)) < len(stored):
            raise Wrong("a save is listed twice")
        if lost := acknowledged - set(stored):
            raise Wrong(f"acknowledged and lost: {sorted(lost)}")
        for fence in self.fences:
            for place, names in lists.items():
                since = names[len(fence.stored.get(place, ())) :]
                if late := [name for name in since if name.rpartition(".")[0] in fence.barred]:
                    raise Wrong(f"{late} were stored after {fence.why}")
        self._check_sums(claimed, stored)

    def _check_sums(self, claimed: Claimed, stored: Sequence[str]) -> None:
        totals: dict[str, Counts] = {}
        for name in stored:
            for source, more in self.counts[name].items():
                totals[source] = totals.get(source, Counts()) + more
        found = {source: counts for source, counts in claimed.counts.items() if counts != Counts()}
        if found != totals:
            raise Wrong(f"counts are {found} instead of {totals}")
        revisions = Counter(place for name in stored for place in self.touched[name] if place[0] != "owner")
        entries = {(e.kind, e.id): e.revision for e in claimed.entries if e.kind != "owner"}
        if entries != revisions:
            raise Wrong(f"revisions are {entries} instead of {dict(revisions)}")


def again(act: Callable[[], T]) -> T:
    """Until a response comes. The act may do something before each request, so this ends with its process."""
    while True:
        try:
            return act()
        except TransientError:
            continue


def simulate(seed: int, trace: list[str] | None = None) -> World:
    """One seed, to its end. AssertionError, or an error of a process, says what did not hold."""
    chance = random.Random(f"sizes of heads {seed}")
    sizes = {
        (table, "ACTIONS"): chance.choice([2, 5, 80]),
        (snapshot, "FEW"): chance.choice([0, 3, 50]),
        (snapshot, "MOST_HEADS"): chance.choice([2, 90, 90]),
    }
    before = {place: getattr(*place) for place in sizes}
    for place, size in sizes.items():
        setattr(*place, size)
    try:
        world = World(seed, trace)
        world.live()
        return world
    finally:
        for place, size in before.items():
            setattr(*place, size)
