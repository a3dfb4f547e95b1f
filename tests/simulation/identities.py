"""What people do to the two ends of a copy: tables that are made anew or copied, and configs that name others."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.state import Heartbeat, decode
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.memory import MemoryCheckpoints, MemoryDatabase
from tests.simulation.plan import Act

if TYPE_CHECKING:
    from tests.simulation.world import Universe


_AGE = 10 * 365 * 86_400.0
"""By which a table elsewhere is older, in seconds: more than any world lasts."""


@dataclass(frozen=True, slots=True)
class Slip:
    """A config that names another end than the copy has: what is wrong in it, and what it leads to."""

    what: str
    source: DynamoDB
    table: str
    server: str
    tables: Mapping[str, Mapping[str, Any]]
    database: MemoryDatabase | None = None
    place: str = field(default="")


def slip(world: Universe, act: Act) -> None:
    """A run is started with a slip in its config, perhaps beside a live one: it is refused, and changes nothing."""
    from tests.simulation import runs

    if ("pipeline", "") in world.database.entries and world.depth < 2:
        runs.refused(world, slipped(world, act))


def slipped(world: Universe, act: Act) -> Slip:
    chance = random.Random(f"slip {act.luck}")
    what = chance.choice(["table", "region", "endpoint", "target table", *(["target"] if world.scenario.index else [])])
    here: dict[str, Any] = {
        "what": what,
        "source": world.source,
        "table": world.TABLE,
        "server": world.SERVER,
        "tables": world.tables,
    }
    if what == "table":
        return Slip(**here | {"source": _other(world, chance, "staging", "us-east-1"), "table": "staging"})
    if what == "region":
        return Slip(**here | {"source": _other(world, chance, world.TABLE, "eu-west-1"), "server": "eu-west-1"})
    if what == "endpoint":
        return Slip(**here | {"source": _other(world, chance, world.TABLE, "us-east-1"), "server": "elsewhere"})
    if what == "target table":
        return Slip(**here | {"tables": {f"{name}s": options for name, options in world.tables.items()}})
    return Slip(**here, database=MemoryDatabase(), place="another cluster")


def _other(world: Universe, chance: random.Random, name: str, region: str) -> DynamoDB:
    """Another account's table, with a few items that are none of the copy's."""
    found = DynamoDB(
        now=lambda: world.clock() - _AGE,  # streams that begin within one millisecond have the same name
        random=chance,
        dialect=world.scenario.dialect,
        region=region,
    )
    found.create_table(name, keys={"pk": "S"}, view=world.scenario.view)
    for n in range(chance.randrange(3)):
        found.put(name, {"pk": f"other{n}", "v": n})
    return found


def drop(world: Universe, act: Act) -> None:
    """A table of the target is dropped and made again by hand, as it was but empty."""
    world.later_between_runs(1 + act.pick(40), partial(_dropped, world, act.luck[1]))


def _dropped(world: Universe, luck: float) -> None:
    if (name := _table(world, luck)) is not None:
        tombstones = {} if world.scenario.index else world.database.tombstones[name]  # which Postgres has elsewhere
        world.remake(name, {}, tombstones, noted=False)
        world.forget_epochs()


def clone(world: Universe, act: Act) -> None:
    """A table of the target is replaced by a copy of itself, as it is or as it was; its note may be copied too."""
    chance = random.Random(f"clone {act.luck}")
    before = copy.deepcopy(world.database) if chance.random() < 0.5 else None
    cloned = partial(_cloned, world, before, act.luck[1], noted=chance.random() < 0.5)
    world.later_between_runs(1 + act.pick(40), cloned)


def _cloned(world: Universe, before: MemoryDatabase | None, luck: float, *, noted: bool) -> None:
    name, origin = _table(world, luck), before or world.database
    if name is not None and name in origin.rows:
        marked, tombstones = origin.marked.get(name, {}), dict(origin.tombstones.get(name, {}))
        world.remake(name, dict(origin.rows[name]), tombstones, noted=noted, marked=marked)
        if noted:  # by the table that was copied, perhaps one of before a backup was restored
            world.database.epochs[name] = origin.epochs.get(name, 0)


def seed(world: Universe, act: Act) -> None:
    """The pipeline begins anew, on tables that were filled from those of another copy: our versions, without a note."""

    def fill() -> None:
        world.database.entries, world.database.counts = {}, {}
        world.used.clear()
        world.late.clear()
        # Where the tables were also dropped, the new epoch may get the number of the one that is gone.
        world.expired = {key: (0, was) for key, (_, was) in world.expired.items()}
        for name in world.tables:
            if name in world.database.rows:
                tombstones = world.database.tombstones[name] if world.scenario.index else {}
                marked = world.database.marked.get(name, {})
                world.remake(name, world.database.rows[name], tombstones, noted=False, marked=marked)

    world.later_between_runs(1 + act.pick(40), fill)


def empty(world: Universe, act: Act) -> None:
    """A table is emptied by hand, after a run that ended in good order: the next one must notice.

    Not after a retry of parked changes, which may itself have removed the last document. Where tombstones are kept
    among the documents, they go too.
    """

    def delete_all() -> None:
        name = _table(world, act.luck[1])
        if name is not None and _stopped(world) and not world.late:
            world.database.rows[name] = {}
            if world.scenario.marks:
                world.database.marked[name] = {}
            world.lives.replaced(name, [])
            if world.scenario.index:
                world.database.tombstones[name] = {}
            world.database.volatile.clear()
            world.emptied = world.step

    world.later_between_runs(0, delete_all)


def _stopped(world: Universe) -> bool:
    entry = world.database.entries.get(("pulse", ""))
    heartbeat = None if entry is None else decode("pulse", "", entry[1])
    if not isinstance(heartbeat, Heartbeat) or heartbeat.phase != "stopped":
        return False
    return heartbeat.retried == CheckpointView(MemoryCheckpoints(world.database).read()).retries.all


def _table(world: Universe, luck: float) -> str | None:
    """One of the tables that are there."""
    there = [name for name in world.tables if name in world.database.rows]
    return there[int(luck * len(there))] if there else None


def remove(world: Universe, act: Act) -> None:
    """A table of the target is dropped and made again while a run writes to it, which notices as it writes."""
    world.note("a table is removed")
    _dropped(world, act.luck[1])


IDENTITY_ACTS: Mapping[str, Callable[[Universe, Act], None]] = {
    "slip": slip,
    "drop": drop,
    "clone": clone,
    "seed": seed,
    "empty": empty,
    "remove": remove,
}

__all__ = ["IDENTITY_ACTS", "Slip", "slipped"]
