"""Everything outside of a run: the table, its stream, the target, time; in memory, and unreliable.

One seed decides everything: what is written and when shards split, which step comes next, what fails, when the process
dies and when a second run starts. ``runs`` has the runs in it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import orjson

from replicator.batch import Batch, DocumentId, Upsert
from replicator.hooks.hook import Hook
from replicator.state import ShardState
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.memory import Marked, MemoryDatabase
from replicator.version import epoch_of
from tests.simulation import hooks, repairing, truth
from tests.simulation.acts import ACTS as EVENTS
from tests.simulation.clock import Clock
from tests.simulation.deciding import ACTS as DECISIONS
from tests.simulation.neighbors import Neighbor
from tests.simulation.plan import Act, Plan
from tests.simulation.repairing import ACTS as REPAIRS
from tests.simulation.repairing import Damage, Repairer
from tests.simulation.requests import ACTS as REQUESTS
from tests.simulation.retention import Blanks, Records
from tests.simulation.scans import Scans
from tests.simulation.scenario import Scenario
from tests.simulation.targets import LATEST, Killed, Late, Unreliable, UnreliableIndex, target_of
from tests.simulation.vanished import Lives

ACTS = {**EVENTS, **DECISIONS, **REQUESTS, **REPAIRS}


HOUR = 3600.0
SHARING = 0.1  # chance that the run shares its reader with another pipeline
MOST_EFFECTS = 2_000  # of one turn; what ends has a hundred at most
NONE: Mapping[DocumentId, Marked] = {}
FIELDS = ("hook_version", "v", "pk")  # of documents, in the order in which a table gets columns for them


class Universe:
    """One seed's world."""

    TABLE: ClassVar[str] = "orders"
    SERVER: ClassVar[str] = "here"  # where the source's endpoint is

    def __init__(self, seed: int, scenario: Scenario, plan: Plan = (), trace: list[str] | None = None) -> None:
        self.random, self.answers = random.Random(f"schedule {seed}"), random.Random(f"answers {seed}")
        self.scenario, self.trace = scenario, trace
        self.clock, self.step = Clock(), 0
        self.began = self.clock.now
        self.pace, self.slow = scenario.pace, scenario.slow
        self.database = MemoryDatabase()
        self.source = DynamoDB(
            now=self.clock,
            random=random.Random(f"source {seed}"),
            dialect=scenario.dialect,
            numbering=scenario.numbering,
            shards=scenario.shards,
            lingering=scenario.lingering,
        )
        self.target: type[Unreliable | UnreliableIndex] = target_of(scenario)
        self.hook_version = self.depth = self.runs = self.effects_left = self.effects = self.value = 0
        self.armed: dict[str, int] = {}
        self.late: list[Late] = []
        self.request_delay = 0.0  # seconds that each request of a batch takes at most
        self.hook_delay = 0.0  # the same for each call of the hook
        self.during_hook: Callable[[], object] | None = None  # called once while a batch is made
        self.during_batch: Callable[[], object] | None = None  # called once in the middle of a batch
        self.during_start: Callable[[], object] | None = None  # called once between two requests of a run that starts,
        self.during_start_after = 0  # after so many requests
        self.expired: dict[tuple[str, ...], truth.Kept] = {}  # items that expired last, where that is ignored
        self.returned: list[tuple[tuple[str, ...], Mapping[str, object]]] = []  # all that did, under ids of their own
        self.during_cleanup: Callable[[], object] | None = None  # called once in the middle of a sweep or purge
        self.before_purge: Callable[[], object] | None = None  # called once between an ownership check and a purge
        self.lenient = self.fixed = False  # the target rejects nothing any more; the hook raises nothing any more
        self.retried_with_another_hook: list[tuple[tuple[str, ...], int, str | None]] = []  # of such a retry
        self.dropped: list[tuple[tuple[str, ...], int, str | None]] = []  # key, epoch, and the image given up
        self.left: dict[tuple[str, ...], truth.Left] = {}  # what the target had of items when they were given up
        self.repairer: Repairer | None = None  # a command that repairs documents beside the runs
        self.repairs, self.damage = random.Random(f"repairs {seed}"), Damage()
        self.lives, self.scans = Lives(), Scans()
        self.caught_up = self.trimmed_early = False  # records were trimmed before their 24 hours
        self._between: list[tuple[int, Callable[[], None]]] = []
        self.fatal_items: set[tuple[str, ...]] = set()  # items; a run that sends one is killed, and this happens:
        self.perishing: Callable[[], None] = lambda: None
        self.fields = 1 if scenario.columns else 0  # how many columns the config names, 0 where it names none
        self.columns: dict[str, int] = {}  # how many a table has
        self.leaks = False  # every run loses a response from now on
        self.spared = truth.Spared()
        self.late_tombstones: set[tuple[str, DocumentId]] = set()  # of repairs that came after their command
        self.undisturbed = 0, 0.0  # an epoch, and for how long runs followed it that ended in good order
        self.records, self.blanks = Records(), Blanks()
        self.used: set[tuple[int, str]] = set()  # epoch, shard
        self.put_back: list[tuple[int, int]] = []  # copies of the store: the steps when taken, and when put back
        self.emptied: int | None = None  # the step when a table was last emptied by hand
        self.spoiled: dict[tuple[str, str], bytes] = {}  # files of exports that have other contents now
        self.spoils = 0
        self.rescans = 0  # resyncs that were ordered because nothing less helped
        self.existing = ""  # the ARN of an export that people made; "-" once one was refused
        self._ordered: int | None = None  # the epoch (0 before the first) when a resync was ordered
        self._acts: dict[int, list[Act]] = {}
        for act in plan:
            self._acts.setdefault(act.at, []).append(act)
        self.neighbor = Neighbor(self, seed) if random.Random(f"shares {seed}").random() < SHARING else None
        self.create()
        for _ in range(self.random.randrange(0, 2 * scenario.keys)):
            self.write(f"k{self.random.randrange(scenario.keys)}", removes=False)

    # The source

    def exported(self) -> str:
        """An export that people made before this run, or an earlier one; "-" once one was refused."""
        if not self.existing and self.streaming:
            request = {"TableArn": f"table/{self.TABLE}", "S3Bucket": "exports"}
            described = orjson.loads(self.source.call("ExportTableToPointInTime", request))["ExportDescription"]
            self.existing = described["ExportArn"]
            for _ in range(self.source.exports.polls + 1):
                self.source.call("DescribeExport", {"ExportArn": self.existing})
        return self.existing

    def restore_files(self) -> None:
        """Files of exports are again what was written."""
        self.source.exports.objects.update(self.spoiled)
        self.spoiled.clear()

    def create(self) -> None:
        """The table, empty, with a stream."""
        scenario = self.scenario
        self.source.create_table(self.TABLE, keys={"pk": "S"}, view=scenario.view, shards=scenario.shards)
        self.source.lag_reads(self.TABLE)
        if scenario.exports or scenario.repairs_gaps:
            self.source.exports.enable(self.TABLE, since=self.clock.now - 48 * HOUR)
            self.source.exports.files, self.source.exports.polls = 1 + scenario.items_a_page, scenario.segments
        self.source.page_sizes(
            shards=20 if scenario.months else 3, records=scenario.records_a_page, items=scenario.items_a_page
        )

    def write(self, key: str, *, removes: bool) -> None:
        if not removes or any(item["pk"] == key for item in self.source.items(self.TABLE)):
            self.damage.changed((key,))
        if removes:
            self.source.delete(self.TABLE, {"pk": key})
            self.lives.changed((key,), self.clock.now, None)
        else:
            self.value += 1
            self.lives.changed((key,), self.clock.now, self.value)
            self.expired.pop((key,), None)
            self.source.put(self.TABLE, {"pk": key, "v": self.value})
        self.records.note(self)

    @property
    def streaming(self) -> bool:
        return self.source.streaming(self.TABLE)

    def begun(self, shard: str) -> bool:
        """Whether something of the shard was stored, or on its way to the target: a run must notice what is gone."""
        entry = self.database.entries.get(("shard", shard))
        state = None if entry is None else truth.decoded("shard", entry[1])
        used = (truth.epoch_of(self.database.entries), shard) in self.used
        return isinstance(state, ShardState) and (used or state.anchor is not None)

    def sees(self, batch: Batch) -> None:
        """Remember of which shards there are ordinals in what a run is about to write."""
        for part in batch.parts:
            self.used |= {(epoch_of(write.version), part.source.removeprefix("shard:")) for write in part.writes}

    def holds(self, item: str, carry_out: Callable[[], object]) -> None:
        """The response to a request of a scanned page is lost, and the request applied late."""

    def inserts(self, batch: Batch) -> None:
        """A command is about to insert what it found missing."""

    def refuse(self, write: Upsert) -> str | None:
        poor = self.scenario.refuses and not self.lenient and int(str(write.body.get("v", 0))) % 5 == 1
        return "the target does not like this value" if poor else None

    def remake(
        self,
        table: str,
        rows: dict[DocumentId, tuple[int, bytes]],
        tombstones: dict[DocumentId, int],
        *,
        noted: bool,
        marked: Mapping[DocumentId, Marked] = NONE,
    ) -> None:
        """Put another table in a target table's place, with this in it; ``noted``: the note of its epoch was copied."""
        database = self.database
        database.rows[table], database.tombstones[table] = rows, tombstones
        if self.scenario.marks:
            database.marked[table] = dict(marked)
        self.lives.replaced(table, [*rows, *marked])
        database.made[table] = database.made.get(table, 1) + 1
        if not noted:
            database.epochs[table] = 0
        for place in [place for place in database.volatile if place[0] == table]:
            del database.volatile[place]

    def roll_old(self) -> None:
        """Shards roll over about every four hours, as at AWS."""
        now, shards = self.clock.now, self.source.shards(self.TABLE) if self.streaming else []
        for shard in shards:
            if shard.open and now - shard.opened >= (4 + self.answers.random()) * HOUR:
                self.source.roll(self.TABLE, shard.id)

    def lapse(self, seconds: float) -> None:
        """Time passes without a run: shards roll over, and now and then an item is written."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + HOUR * self.answers.random())
            self.roll_old()
            if self.answers.random() < self.scenario.rates.get("write", 0.0):
                self.write(f"k{self.answers.randrange(self.scenario.keys)}", removes=self.answers.random() < 0.35)

    # What happens between two steps

    @property
    def over(self) -> bool:
        """Whether the world has done its worst."""
        return self.step > self.scenario.steps

    def happen(self) -> None:
        """The world moves on."""
        self.step += 1
        self.effects = 0
        self.clock.now += self.random.random() * self.pace
        for act in self._acts.get(self.step, ()):
            self.note("act", act.what, act.luck)
            ACTS[act.what](self, act)
        if self.step == self.scenario.steps + 1:
            self.calm()
            if self.depth:
                raise Killed  # the last run is one that nothing disturbs
        if self.scenario.months and not self.over:
            self.roll_old()
        if self.late:
            self.arrive()
        self.scans.check(self)
        repairing.advance(self)
        if self.neighbor is not None:
            self.neighbor.advance()
        self.effect("step")

    def calm(self) -> None:
        """From now on nothing goes wrong any more."""
        self._acts.clear()
        self.armed.clear()
        self.fatal_items.clear()
        self.leaks = False
        if self.repairs.random() < 0.5:
            repairing.end(self)
        self.source.heal()
        self.effects_left, self.clock.skew = 0, 0.0
        self.pace, self.slow, self.request_delay, self.hook_delay = min(0.1, self.pace), 0.0, 0.0, 0.0
        self.during_hook = self.during_batch = self.during_cleanup = self.before_purge = self.during_start = None
        ACTS["enable"](self, Act(self.step, "enable", (0.0, 0.0)))

    def soon(self, steps: int, what: str, luck: tuple[float, float] = (0.0, 0.0)) -> None:
        """Let an act follow."""
        self._acts.setdefault(self.step + steps, []).append(Act(self.step + steps, what, luck))

    def later(self, to: str, carry_out: Callable[[], object]) -> None:
        """A request that was given up is applied nevertheless, within minutes."""
        self.late.append(Late(self.clock.now + LATEST * self.random.random(), to, carry_out))

    def forget_epochs(self) -> None:
        """Requests of an epoch do not arrive once neither checkpoints nor the target say that there was one.

        Nothing can tell a run of that epoch, which begins the first one again: see docs/guarantees.md.
        """
        database = self.database
        left = [*database.epochs.values(), *database.rows.values(), *database.tombstones.values()]
        if self.scenario.index and not any([("pipeline", "") in database.entries, *left, *database.marked.values()]):
            self.late = [late for late in self.late if late.to != "target"]

    def arrive(self) -> None:
        now = self.clock.now
        due = [late for late in self.late if late.at <= now]
        if due:
            self.late = [late for late in self.late if late.at > now]
            for late in sorted(due, key=lambda late: late.at):
                self.note("late", "is carried out")
                late.carry_out()

    def take(self, fate: str) -> bool:
        """Whether the next request has this fate."""
        if not self.armed.get(fate):
            return False
        self.armed[fate] -= 1
        self.note("fate", fate)
        return True

    def dawdle(self) -> None:
        """Time passes between two requests of a batch, and perhaps another run takes over."""
        if self.request_delay:
            self.clock.now += self.request_delay * self.answers.random()
        if self.during_batch is not None and self.depth < 2:
            interrupt, self.during_batch = self.during_batch, None
            interrupt()

    def ponder(self) -> None:
        """Time passes in the hook, while a batch is made, and perhaps another run takes over."""
        if self.hook_delay:
            self.clock.now += self.hook_delay * self.answers.random()
        if self.during_hook is not None and self.depth < 2:
            interrupt, self.during_hook = self.during_hook, None
            interrupt()

    def overtake(self) -> None:
        """In the middle of a piece of a sweep or purge another run may take over."""
        if self.during_cleanup is not None and self.depth < 2:
            interrupt, self.during_cleanup = self.during_cleanup, None
            interrupt()

    def doze(self) -> None:
        """A run that is about to purge may be stopped, and wake up when others have written for long."""
        if self.before_purge is not None and self.depth < 2:
            interrupt, self.before_purge = self.before_purge, None
            interrupt()

    def perish(self) -> None:
        """A run is killed as it sends what it must not survive."""
        self.note("killed", "as it sends", *sorted(self.fatal_items))
        self.fatal_items.clear()
        self.later_between_runs(0, self.perishing)

    def effect(self, name: str) -> None:
        """Between two effects the process may die. AssertionError if a turn has so many that it seems endless."""
        self.effects += 1
        assert self.effects <= MOST_EFFECTS, f"a turn does not end: {MOST_EFFECTS} effects, the last one {name}"
        if self.dies_here(name):
            raise Killed

    def dies_here(self, name: str) -> bool:
        if not self.effects_left:
            return False
        self.effects_left -= 1
        if self.effects_left == 0:
            self.note("killed", "at", name)
        return self.effects_left == 0

    def note(self, *what: object) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.step:4d} {self.clock.now - 1_700_000_000:10.2f} {' '.join(map(str, what))}")

    # What a person does

    @property
    def resync_ordered(self) -> bool:
        """Whether a resync was ordered in this epoch."""
        return self._ordered == truth.complete_of(self.database.entries)

    def order_resync(self) -> None:
        self._ordered = truth.complete_of(self.database.entries)

    def awaits_resync(self) -> bool:
        """Whether a resync was ordered that has not come as far as the target: it still has to be done."""
        return self._ordered is not None and (
            self.resync_ordered or self._ordered >= max(self.database.epochs.values(), default=0)
        )

    def later_between_runs(self, steps: int, do: Callable[[], None]) -> None:
        """Do something when no run lives, at that many steps from now at the earliest."""
        self._between.append((self.step + steps, do))

    def between_runs(self) -> None:
        due = [do for at, do in self._between if at <= self.step or self.over]
        self._between = [(at, do) for at, do in self._between if at > self.step and not self.over]
        for do in due:
            self.note("between runs", getattr(do, "__qualname__", "") or getattr(do, "func", do).__qualname__)
            do()

    # The pipeline

    @property
    def tables(self) -> Mapping[str, Mapping[str, Any]]:
        hook = self.hook()
        options: dict[str, Any] = {"fields": list(FIELDS[: self.fields])} if self.scenario.columns else {}
        if self.scenario.marks:
            options["deletes"] = "mark"
        names = ("even", "odd") if hook is not None and hook.declared else (self.TABLE,)
        return dict.fromkeys(names, options)

    def hook(self) -> Hook | None:
        return (
            None if self.scenario.hook is None else hooks.load(self.scenario.hook, self.hook_version, fixed=self.fixed)
        )
