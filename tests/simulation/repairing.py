"""`verify --repair` beside the runs, and the damage that it repairs: a process that is stopped and killed like them."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from replicator.batch import Batch, DocumentId, Outcome
from replicator.engine import preexisting
from replicator.engine.binding import check_start
from replicator.engine.startup import RESUMING
from replicator.errors import ConfigError, Fenced, GapFound, TransientError
from replicator.hooks.hook import DocumentMapping
from replicator.items.attributes import image
from replicator.key import Key, key_text
from replicator.operations.repair import Repairs
from replicator.operations.verify import Ends, Unconfirmed, parked_items, positions_of, scanned_state
from replicator.verification.differences import NO_RUN, Finding, has_scanned
from replicator.verification.examiner import Examiner, Floor, Place
from replicator.verification.verifier import Result, Verifier
from replicator.version import FIRST_EPOCH, version
from tests.simulation import runs, truth
from tests.simulation.plan import Act
from tests.simulation.process import Process

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.simulation.world import Universe

PATIENCE = 300  # looks without a run that is up
REQUESTS = ("compare", "versions", "walk", "replace", "remove", "write")


class Damage:
    """Documents that others changed behind replicator's back. ``left``: what neither a change nor a repair has healed.

    ``extra``: those that are no item's, so that no change of an item heals them.
    """

    def __init__(self) -> None:
        self.ever: set[Place] = set()
        self.left: dict[Place, Key] = {}
        self.extra: set[Place] = set()

    def done(self, place: Place, key: Key, *, extra: bool) -> None:
        self.ever.add(place)
        self.left[place] = key
        if extra:
            self.extra.add(place)

    def repaired(self, place: Place) -> None:
        self.left.pop(place, None)
        self.extra.discard(place)

    def changed(self, key: Key) -> None:
        """The item changes: what it has, or had, is written anew."""
        self.left = {place: of for place, of in self.left.items() if of != key or place in self.extra}

    @property
    def keys(self) -> set[Key]:
        return set(self.left.values())


class Repairer:
    """A command that compares and repairs. What it reports is what a person sees."""

    def __init__(self, world: Universe) -> None:
        self._world = world
        self._token = f"repair at step {world.step}"
        self.stopping, self.idle_until = False, 0
        self.process = Process(self._work)

    def _work(self, pause: Callable[[], None]) -> None:
        world = self._world
        with suppress(TransientError, ConfigError, Fenced, GapFound, Unconfirmed):  # it says so, and ends
            both = self._opened(pause)
            with Repairs(both, self, wanted=True, monotonic=world.clock, token=self._token) as repairs:
                self._pass(both, repairs, pause)

    def _opened(self, pause: Callable[[], None]) -> Ends:
        copy = runs.copy_in(self._world)
        for end, names in ((copy.target, REQUESTS), (copy.checkpoints, ("read", "save"))):
            for name in names:
                setattr(end, name, partial(_paused, pause, getattr(end, name)))
        setattr(copy.target, "write", partial(_announced, self._world, copy.target.write))  # noqa: B010
        check_start(
            copy.checkpoints,
            lambda view: preexisting.inspect(view, copy.table, copy.target, copy.tables, copy.hook),
            RESUMING,
            lambda _: None,
        )
        tables, state = {table.name: table for table in copy.tables}, scanned_state(copy.checkpoints)
        mapping = DocumentMapping(copy.hook, tuple(tables))
        target = copy.target
        return Ends(copy.config, copy.client, copy.table, target, target, copy.checkpoints, tables, mapping, state)  # type: ignore[arg-type]

    def _pass(self, both: Ends, repairs: Repairs, pause: Callable[[], None]) -> None:
        world, floor = self._world, Floor(version(both.state.complete, 0), both.state.epoch)

        def read(keys: Collection[Key]) -> Mapping[Key, bytes]:
            pause()
            return {key: new for key, new in _items(world) if key in keys}

        examiner = Examiner(both.mapping, both.tables, both.comparing, floor)
        verifier = Verifier(examiner, read, read, world.clock, world.clock)
        at = world.clock()
        pause()
        self._take(verifier.scanned(_items(world), at, "segment:0"), repairs)
        for name, table in both.tables.items():
            self._take(verifier.walked(name, both.comparing.walk(table, None).ids, f"table:{name}"), repairs)
        patience = PATIENCE
        while (verifier.pending or repairs.pending) and not self.stopping:
            entries = both.checkpoints.read().entries
            verifier.parked, current = parked_items(entries), positions_of(entries, both.state.epoch, world.clock())
            if current.blocked_by == NO_RUN and (patience := patience - 1) > 0:
                continue  # as if a person had started it again once a run is up
            if not repairs.waits or current.blocked_by:
                self._take(verifier.settle(current), repairs)
            repairs.flush(verifier)

    def _take(self, results: Iterable[Result], repairs: Repairs) -> None:
        for result in results:
            self._world.note("verify", result.outcome, result.finding, result.reason)
            if result.outcome == "difference":
                self._check(result.finding)
                repairs.offer(result)

    def _check(self, finding: Finding) -> None:
        """Nothing else explains a difference; but for writes of an earlier epoch that were applied late."""
        entries, damage = self._world.database.entries, self._world.damage
        if truth.epoch_of(entries) == FIRST_EPOCH:
            assert finding.place in damage.ever, f"a false alarm: {finding}"

    def repair(self, finding: Finding, reason: str) -> None:
        self._world.note("repair", finding.place, reason or "done")
        if not reason:
            self._world.damage.repaired(finding.place)

    def waiting(self, reason: str | None) -> None:
        pass


def _paused(pause: Callable[[], None], request: Callable[..., object], *given: object, **named: object) -> object:
    pause()
    return request(*given, **named)


def _announced(world: Universe, write: Callable[[Batch], Outcome], batch: Batch) -> Outcome:
    world.inserts(batch)
    return write(batch)


def _items(world: Universe) -> list[tuple[Key, bytes]]:
    return [((str(item["pk"]),), image(item)) for item in world.source.items(world.TABLE)]


def damage(world: Universe, act: Act) -> None:
    """Others change, remove and add documents, while nothing is on its way that was decided before."""
    state = truth.pipeline_of(world.database.entries)
    if state is None or not has_scanned(state) or world.late or world.repairer is not None:
        return
    chance = random.Random(f"damage {act.luck}")
    for _ in range(1 + act.pick(8)):
        table = chance.choice(sorted(world.tables))
        key = (f"k{chance.randrange(world.scenario.keys)}",)
        _damaged(world, table, key, chance, version(state.complete, 0))


def _damaged(world: Universe, table: str, key: Key, chance: random.Random, oldest: int) -> None:
    rows, how = world.database.rows[table], chance.random()
    mapping = DocumentMapping(world.hook(), tuple(world.tables))
    there = [id for id in rows if id == key or id[0] == key_text(key)]
    if not there:
        id: DocumentId = key if not mapping.own_ids else (key_text(key), "9")
        marked = world.database.marked.get(table, {})
        if (
            id not in world.database.tombstones[table]
            and (table, id) not in world.database.volatile
            and id not in marked
        ):
            rows[id] = oldest, b'{"by": "hand"}'
            world.damage.done((table, id), key, extra=mapping.own_ids)
        return
    id = chance.choice(there)
    if how < 0.5:
        rows[id] = rows[id][0], b'{"by": "hand"}'
    else:
        del rows[id]
        world.lives.held.discard((table, id))
    if (table, id) not in world.damage.extra:
        world.damage.done((table, id), key, extra=False)
    elif id not in rows:
        world.damage.repaired((table, id))


def repair(world: Universe, act: Act) -> None:
    if world.repairer is None and (world.damage.left or act.luck[0] < 0.1):
        world.repairer = Repairer(world)


def stop_repair(world: Universe, act: Act) -> None:
    """The command is stopped, and cleans up."""
    if world.repairer is not None:
        world.repairer.stopping = True


def suspend_repair(world: Universe, act: Act) -> None:
    """The command is suspended for a while."""
    if world.repairer is not None:
        world.repairer.idle_until = world.step + act.pick(60)


def kill_repair(world: Universe, act: Act) -> None:
    end(world)


def end(world: Universe) -> None:
    """The command is killed."""
    if world.repairer is not None:
        world.repairer.process.kill()
        world.repairer = None


def advance(world: Universe) -> None:
    """The command makes none of its requests, or some."""
    if (repairer := world.repairer) is not None and (world.step >= repairer.idle_until or world.over):
        for _ in range(world.repairs.choice((0, 1, 2, 5))):
            repairer.process.advance()
        if repairer.process.ended and world.repairer is repairer:
            world.repairer = None


ACTS: Mapping[str, Callable[[Universe, Act], None]] = {
    "damage": damage,
    "repair": repair,
    "stop repair": stop_repair,
    "suspend repair": suspend_repair,
    "kill repair": kill_repair,
}
