"""The production driver, pipeline and readers on a virtual clock; everything outside is in memory and unreliable.

One seed decides everything: what is written and when shards split, which step comes next, what fails, when the process
dies and when a second run starts. What the target holds at the end is compared with what the hook gives for each item.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from replicator.attributes import Item, image
from replicator.batch import Counts, DocumentId, Upsert
from replicator.change import key_text
from replicator.checkpoints import Owner, PipelineState, ShardState, decode
from replicator.compaction import Filing
from replicator.config import Backfill, Config, Source
from replicator.config_target import OWN_IDS, Destination
from replicator.doubt import LINGER
from replicator.driver import Copy, Driver, World
from replicator.errors import Fenced, GapFound
from replicator.position import FIRST_EPOCH
from replicator.progress import Progress
from replicator.source import describe_table
from replicator.steps import Stepped, Steps
from replicator.target import Table
from replicator.testing.dynamodb import (
    AWS,
    LOCAL,
    DynamoDB,
    children_first,
    duplicated,
    parentless,
    reopened,
    stale,
    unordered,
)
from replicator.testing.memory import MemoryCheckpoints, MemoryDatabase, body
from replicator.transform import Hook, Poison
from tests.simulation.targets import (
    Killed,
    Late,
    Unreliable,
    UnreliableIndex,
    UnreliableOverlapping,
    UnreliableOverlappingIndex,
    UnreliableStore,
)

TABLE = "orders"
HOUR = 3600.0


class NeverSettled(AssertionError):
    """Faults stopped, and still the run did not catch up."""


@dataclass(slots=True)
class Clock:
    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class VirtualStop:
    """``threading.Event`` on the virtual clock: waiting moves time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def is_set(self) -> bool:
        return False

    def wait(self, timeout: float | None = None) -> bool:
        self._clock.now += timeout or 0.0
        return False


class VirtualSteps(Steps):
    """``Steps`` without threads: the seed picks which due generator moves; between steps the world does its worst."""

    def __init__(self, universe: Universe) -> None:
        self._universe = universe
        self._generators: dict[str, Iterator[Any]] = {}
        self._when: dict[str, float] = {}
        self._made: list[tuple[int, Stepped]] = []
        self._turn = 0

    def again(self, name: str, rest: float = 0.0) -> None:
        self._when[name] = self._universe.clock() + rest

    def clear(self) -> None:
        self._generators.clear()
        self._when.clear()
        self._made.clear()

    def close(self) -> None:
        self.clear()

    def get(self, timeout: float) -> Stepped | None:
        universe = self._universe
        if timeout == 0.0 and universe.random.random() < 0.5:
            return None
        universe.happen()
        self._turn += 1
        due = [name for name, at in self._when.items() if at <= universe.clock()]
        if due:
            name = universe.random.choice(due)
            del self._when[name]
            late = universe.random.randrange(80) if universe.random.random() < 0.12 else 0
            self._made.append((self._turn + late, self._step(name)))  # some answers are long on their way
        arrived = [made for made in self._made if made[0] <= self._turn]
        if arrived:
            made = universe.random.choice(arrived)
            self._made.remove(made)
            return made[1]
        if not due:
            universe.clock.now += max(timeout, 0.05)
        return None

    def _step(self, name: str) -> Stepped:
        generator = self._generators[name]
        try:
            return Stepped(name, next(generator))
        except StopIteration:
            del self._generators[name]
            return Stepped(name, ended=True)
        except Exception as e:
            del self._generators[name]
            return Stepped(name, error=e)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What kind of pipeline, and how hard the world tries. ``rates``: chance of each misfortune a step.

    ``index``: the target is without transactions, like a search engine or DynamoDB. ``refuses``: it does not take
    every document.
    """

    hook: Callable[..., object] | None = None
    steps: int = 250
    keys: int = 6
    trims: bool = False
    index: bool = False
    refuses: bool = False
    view: str = "NEW_AND_OLD_IMAGES"
    rates: Mapping[str, float] = field(
        default_factory=lambda: {
            "write": 0.6,
            "split": 0.03,
            "roll": 0.03,
            "expire": 0.03,
            "throttle": 0.02,
            "lie": 0.03,
            "blank": 0.02,
            "pause": 0.02,
            "jump": 0.01,
            "die": 0.012,
            "takeover": 0.004,
            "lost": 0.02,
            "unanswered": 0.02,
            "restart": 0.02,
            "resync": 0.1,
        }
    )


class Universe:
    """One seed's world and the runs in it."""

    def __init__(self, seed: int, scenario: Scenario) -> None:
        self.random = random.Random(seed)
        self.scenario = scenario
        self.clock = Clock()
        self.budget = scenario.steps
        swing = {name: 10 ** self.random.uniform(-1, 0.5) for name in scenario.rates}
        self.rates = {name: rate * swing[name] for name, rate in scenario.rates.items()}
        self.database = MemoryDatabase()
        dialect = self.random.choice([AWS, LOCAL])
        self.source = DynamoDB(now=self.clock, random=self.random, dialect=dialect)
        self.source.create_table(TABLE, keys={"pk": "S"}, view=scenario.view, shards=self.random.randrange(1, 4))
        self.source.lag_reads(TABLE)
        self.source.page_sizes(shards=3, records=self.random.choice([1, 3, 7]), items=self.random.choice([1, 2, 5]))
        self.value = 0
        self.expired: set[str] = set()
        for _ in range(self.random.randrange(0, 2 * scenario.keys)):
            self._write()
        self.hook = None
        self.depth = self.runs = 0
        self.remembers = self.random.random() < 0.5  # whether the engine keeps deletes in mind, until it is restarted
        self.late: list[Late] = []
        kinds = (UnreliableIndex, UnreliableOverlappingIndex) if scenario.index else (Unreliable, UnreliableOverlapping)
        self.target: type[Unreliable | UnreliableIndex] = self.random.choice(kinds)

    # What may happen between two steps

    def chance(self, what: str) -> bool:
        return self.budget > 0 and self.random.random() < self.rates.get(what, 0.0)

    def may_die(self) -> None:
        if self.chance("die"):
            raise Killed

    def happen(self) -> None:
        """The world moves on."""
        self.clock.now += self.random.uniform(0.0, 0.3)
        if self.budget <= 0:
            self.arrive()
            return
        self.budget -= 1
        if self.budget == 0:
            self.source.heal()
        for what, act in self._misfortunes().items():
            if self.chance(what):
                act()
        self.arrive()
        self.may_die()

    def arrive(self) -> None:
        """Requests that were given up, and are carried out all the same."""
        due = [late for late in self.late if late.at <= self.clock()]
        self.late = [late for late in self.late if late.at > self.clock()]
        for late in sorted(due, key=lambda late: late.at):
            late.carry_out()

    def _misfortunes(self) -> dict[str, Callable[[], None]]:
        return {
            "write": self._write,
            "split": lambda: self._reshard(self.source.split),
            "roll": lambda: self._reshard(self.source.roll),
            "expire": self._expire,
            "throttle": self._throttle,
            "lie": self._lie,
            "blank": lambda: self.source.blank(times=self.random.randrange(1, 4)),
            "pause": lambda: self._pass(self.random.uniform(1, 16 * 60)),
            "jump": lambda: self._pass(25 * HOUR) if self.scenario.trims else None,
            "takeover": self._takeover,
            "restart": self.database.volatile.clear,
        }

    def _pass(self, seconds: float) -> None:
        self.clock.now += seconds

    def _write(self) -> None:
        key = f"k{self.random.randrange(self.scenario.keys)}"
        if self.random.random() < 0.35:
            self.source.delete(TABLE, {"pk": key})
        else:
            self.value += 1
            self.source.put(TABLE, {"pk": key, "v": self.value})

    def _expire(self) -> None:
        items = self.source.items(TABLE)
        if items:
            self.source.expire(TABLE, {"pk": self.random.choice(items)["pk"]})

    def _reshard(self, how: Callable[[str, str], object]) -> None:
        shards = self.source.open_shards(TABLE)
        if len(shards) < 8:
            how(TABLE, self.random.choice(shards))

    def _throttle(self) -> None:
        operation = self.random.choice(["GetRecords", "Scan", "DescribeStream", "GetShardIterator"])
        self.source.fail(operation, times=self.random.randrange(1, 5))

    def _lie(self) -> None:
        how = self.random.sample([duplicated, unordered, children_first, stale, reopened, parentless], 2)
        self.source.misreport(*how, times=self.random.randrange(1, 4))

    def _takeover(self) -> None:
        """Another run of the pipeline starts while this one lives; then this one goes on, and must notice."""
        if self.depth < 2:
            self.go(self.random.randrange(1, 40))

    def refuse(self, write: Upsert) -> str | None:
        poor = self.scenario.refuses and int(str(write.body["v"])) % 5 == 1
        return "the target does not like this value" if poor else None

    # Runs

    def tables(self) -> Mapping[str, Mapping[str, Any]]:
        declared = self.scenario.hook is not None and getattr(self.scenario.hook, "__replicator_documents__", False)
        return {"even": {}, "odd": {}} if declared else {TABLE: {}}

    def driver(self) -> Driver:
        hook, function = None, self.scenario.hook
        if function is not None:
            declared = getattr(function, "__replicator_documents__", False)
            hook = Hook(function.__name__, function, function.__name__, declared)
        config = Config(
            "simulated",
            Source(table=TABLE),
            Destination("memory", None, None, self.tables()),  # type: ignore[arg-type]
            backfill=Backfill(segments=self.random.choice([1, 2, 3])),
            on_gap="resync",
        )
        target = self.target(self)
        store = target.checkpoints if isinstance(target, Unreliable) else UnreliableStore(self)
        table = describe_table(self.source, TABLE)
        keys = OWN_IDS if hook is not None and hook.declared else table.keys
        tables = tuple(Table(name, keys) for name in self.tables())
        copy = Copy(config, self.source, target, store, hook, table, tables)
        world = World(VirtualStop(self.clock), _ignore, self.clock, self.random, lambda: VirtualSteps(self))  # type: ignore[arg-type]
        return Driver(copy, Owner(f"run{self.random.random()}", "here", 1, self.clock()), world)

    def go(self, turns: int) -> None:
        """One run, for so many turns at most; it may be killed, or fenced off by another one."""
        self.depth += 1
        self.runs += 1
        run = self.runs
        try:
            driver = self.driver()
            left = [turns]
            inner = driver._turn

            def turn() -> None:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                inner()

            driver._turn = turn  # type: ignore[method-assign]
            driver.run(until="caught-up", resync=self.chance("resync"), accept_hook_change=False)
            self.caught_up = True
        except Fenced:
            assert run < self.runs, "a run was fenced off that no other run had replaced"
        except (Killed, GapFound):  # dead, or ended with exit code 3; somebody starts it again
            pass
        finally:
            self.depth -= 1

    def settle(self) -> None:
        """Runs one after the other until the world has done its worst; then one that must catch up."""
        while self.budget > 0:
            self.go(10_000)
        self.source.heal()
        self.caught_up = False
        self.go(5_000)
        if not self.caught_up:
            raise NeverSettled("the last run did not catch up within 5,000 turns")
        if self.scenario.index:
            self._outlive_doubt()

    def _outlive_doubt(self) -> None:
        """A run that goes on until nothing can be carried out late any more, and has cleared up after that."""
        driver = self.driver()
        turns = iter(range(200))
        inner = driver._turn

        def turn() -> None:
            at = next(turns, None)
            if at is None:
                raise Killed
            if at == 50:
                self.clock.now += LINGER
                self.arrive()
            inner()

        driver._turn = turn  # type: ignore[method-assign]
        with contextlib.suppress(Killed):
            driver.run(until=None, resync=False, accept_hook_change=False)
        assert not self.late
        assert not any(self.database.tombstones.values()), "tombstones are left after the doubt"

    # What must hold always, and in the end

    def watch(self, before: Mapping[tuple[str, str], tuple[int, str]]) -> None:
        """Inside an epoch no position ever goes back, and what has ended stays ended."""
        entries = self.database.entries
        if before.get(("pipeline", "")) is None or _epoch(before) != _epoch(entries):
            return
        for (kind, id), (_, text) in before.items():
            if kind == "shard" and (kind, id) in entries:
                was, now = decode(kind, id, text), decode(kind, id, entries[kind, id][1])
                assert isinstance(was, ShardState)
                assert isinstance(now, ShardState)
                assert now.ordinal >= was.ordinal, f"shard {id} went back from {was} to {now}"
                assert now.ended >= was.ended, f"shard {id} began again"

    def check(self) -> None:
        """The target is what the hook gives for each item; parked items are excepted."""
        parked = {p.key for _, p in MemoryCheckpoints(self.database).parked()}
        want: dict[str, dict[DocumentId, bytes]] = {name: {} for name in self.tables()}
        for item in self.source.items(TABLE):
            key = (str(item["pk"]),)
            if key not in parked:
                for table, id, document in self._documents(key, item):
                    want[table][id] = document
        for table in self.tables():
            got = {
                id: stored
                for id, (_, stored) in self.database.rows.get(table, {}).items()
                if not self._of_parked(id, parked)
            }
            assert want[table] == got, f"{table} differs"
        for source, c in self.database.counts.items():
            assert c.read == c.applied + c.stale + c.dropped + c.parked, f"counts of {source}: {c}"
            assert min(c.read, c.applied, c.stale, c.dropped, c.parked) >= 0
        if _epoch(self.database.entries) == FIRST_EPOCH:
            self._check_read()

    def _check_read(self) -> None:
        """Each record of an epoch is read once: stored again after no crash, counted whatever became of it."""
        shards = {id: decode(k, id, t) for (k, id), (_, t) in self.database.entries.items() if k == "shard"}
        for id, state in shards.items():
            assert isinstance(state, ShardState)
            parent = shards.get(state.parent or "")
            base = parent.ordinal if isinstance(parent, ShardState) else 0
            passed = state.ordinal - base if state.sequence is not None else 0
            counted = self.database.counts.get(f"shard:{id}", Counts()).read
            assert counted == passed, f"shard {id}: {counted} records counted, {passed} passed"

    def _of_parked(self, id: DocumentId, parked: set[tuple[str, ...]]) -> bool:
        return id in parked or any(id[0] == key_text(key) for key in parked)

    def _documents(self, key: tuple[str, ...], item: Mapping[str, object]) -> Iterator[tuple[str, DocumentId, bytes]]:
        function = self.scenario.hook
        encoded = Item(image(item))
        if function is None:
            yield TABLE, key, body(encoded)
            return
        hook = Hook("", function, "", getattr(function, "__replicator_documents__", False))
        try:
            if not hook.declared:
                found = hook.one(encoded)
                if found is not None:
                    yield TABLE, key, body(found)
                return
            for (table, id), document in hook.many(encoded, tuple(self.tables())).items():
                yield table, (key_text(key), id), body(document)
        except Poison:
            raise AssertionError(f"the item {key} is poison, and is not parked") from None


def _epoch(entries: Mapping[tuple[str, str], tuple[int, str]]) -> int:
    state = decode("pipeline", "", entries["pipeline", ""][1])
    assert isinstance(state, PipelineState)
    return state.epoch


def _ignore(_: Progress) -> None:
    pass


def simulate(seed: int, scenario: Scenario) -> Universe:
    """One seed, to its end. AssertionError says what did not hold."""
    universe = Universe(seed, scenario)
    universe.settle()
    universe.check()
    return universe


__all__: Sequence[str] = ["Scenario", "Universe", "simulate", "Filing"]
