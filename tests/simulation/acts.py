"""What can happen to a run and to the world around it: each act of a plan, by name."""

from __future__ import annotations

import copy
import gzip
import random
import sys
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING

from replicator.pipeline.lineage import ancestors
from replicator.state import ShardState
from replicator.testing.dynamodb import (
    children_first,
    duplicated,
    imageless,
    lingering,
    nulls,
    parentless,
    reopened,
    stale,
    unordered,
)
from tests.simulation import runs, truth
from tests.simulation.clock import TOLERATED
from tests.simulation.copies import misleads
from tests.simulation.identities import IDENTITY_ACTS
from tests.simulation.plan import Act
from tests.simulation.retention import RETENTION, SKEWED
from tests.simulation.targets import Killed

if TYPE_CHECKING:
    from tests.simulation.world import Universe

HOUR = 3600.0
CALLS = ("GetRecords", "Scan", "DescribeStream", "GetShardIterator", "BatchGetItem")
LIES = (duplicated, unordered, children_first, stale, reopened, parentless)
DISTORTIONS = (lingering, nulls, imageless)
REFUSALS = (
    "ValidationException",
    "SerializationException",
    "UnknownOperationException",
    "ResourceNotFoundException",
)
MANY_SHARDS = 8


# What the application does


def write(world: Universe, act: Act) -> None:
    world.write(f"k{act.pick(world.scenario.keys)}", removes=act.luck[1] < 0.35)


def burst(world: Universe, act: Act) -> None:
    """Many changes at once, of several items: pages of several shards wait, and are cut into batches."""
    chance = random.Random(f"burst {act.luck}")
    for _ in range(int(act.between(5, 40))):
        world.write(f"k{chance.randrange(world.scenario.keys)}", removes=chance.random() < 0.35)


def expire(world: Universe, act: Act) -> None:
    items = world.source.items(world.TABLE)
    if items:
        item = items[act.pick(len(items))]
        if world.scenario.keeps_expired:
            world.expired[str(item["pk"]),] = truth.kept(world, item)
        world.damage.changed((str(item["pk"]),))
        world.source.expire(world.TABLE, {"pk": item["pk"]})
        world.lives.changed((str(item["pk"]),), world.clock.now, None)
        world.records.note(world)


# What DynamoDB does


def split(world: Universe, act: Act) -> None:
    if (shard := _shard(world, act)) is not None:
        world.source.split(world.TABLE, shard)


def roll(world: Universe, act: Act) -> None:
    if (shard := _shard(world, act)) is not None:
        world.source.roll(world.TABLE, shard)


def wither(world: Universe, act: Act) -> None:
    """A shard rolls over, and has a second child that closes at once and never gets children."""
    if (shard := _shard(world, act)) is not None:
        world.source.wither(world.TABLE, shard)


def storm(world: Universe, act: Act) -> None:
    """Every shard splits, and splits again, until there are 32."""
    for _ in range(1 + act.pick(5) if world.streaming else 0):
        shards = world.source.open_shards(world.TABLE)
        for shard in shards[: max(0, 32 - len(shards))]:
            world.source.split(world.TABLE, shard)


def throttle(world: Universe, act: Act) -> None:
    world.source.fail(CALLS[act.pick(len(CALLS))], times=int(act.between(1, 5)))


def outage(world: Universe, act: Act) -> None:
    for call in CALLS:
        world.source.fail(call, "InternalServerError", times=int(act.between(5, 30)))


def lie(world: Universe, act: Act) -> None:
    first, second = LIES[act.pick(len(LIES))], LIES[int(act.luck[1] * len(LIES))]
    world.source.misreport(first, second, times=1 + act.pick(3))


def blank(world: Universe, act: Act) -> None:
    often = act.luck[1] > 0.98
    world.source.blank(times=300 if often else 1 + act.pick(3), when=partial(world.blanks.may_be_empty, world))


def distort(world: Universe, act: Act) -> None:
    """Records that say the same in another way, or lack what they must have."""
    world.source.distort(DISTORTIONS[act.pick(len(DISTORTIONS))], times=int(act.between(1, 6)))


def spoil(world: Universe, act: Act) -> None:
    """A file of the last export is overwritten with other values, or it is restored."""
    objects, files = world.source.exports.objects, world.source.exports.files
    if world.spoiled:
        world.restore_files()
        return
    data = [place for place in objects if "/data/" in place[1]][-files:]
    if data:
        place = data[act.pick(len(data))]
        world.spoiled[place] = objects[place]
        world.spoils += 1
        objects[place] = gzip.compress(gzip.decompress(objects[place]).replace(b'"N":"', b'"N":"9'), mtime=0)


def refuse_filter(world: Universe, act: Act) -> None:
    """The endpoint refuses requests for the children of one shard."""
    code = REFUSALS[act.pick(len(REFUSALS))]
    world.source.fail("DescribeStream", code, times=int(act.between(1, 9)), when=lambda call: "ShardFilter" in call)


def trim(world: Universe, act: Act) -> None:
    """Records go before their time, of a shard that a run has begun to read; of an item, the oldest first.

    Not behind a position whose record is a day old: it may go in its time, and then nothing shows what went with it.
    """
    parents = {shard.id: shard.parent for shard in world.source.shards(world.TABLE)}
    begun = [id for id in parents if world.begun(id) and not _due(world, {id, *ancestors([id], parents)})]
    if begun:
        chosen = begun[act.pick(len(begun))]
        world.trimmed_early = True
        world.source.trim(world.TABLE, chosen, int(act.between(1, 9)))
        for older in ancestors([chosen], parents) & parents.keys():
            world.source.trim(world.TABLE, older, sys.maxsize)


def _due(world: Universe, shards: Collection[str]) -> bool:
    """Whether the last record that is stored of one of these shards, which are not read to their end, is a day old."""
    states = [world.database.entries.get(("shard", id)) for id in shards]
    stored = [truth.decoded("shard", entry[1]) for entry in states if entry is not None]
    read = [one for one in stored if isinstance(one, ShardState) and not one.ended]
    times = [one.created for one in read if one.created is not None]
    return any(world.clock.now - time >= RETENTION - SKEWED for time in times)


def disable(world: Universe, act: Act) -> None:
    """The stream is disabled, and enabled again some steps later: another stream, with shards of its own."""
    if world.streaming:
        world.source.disable_stream(world.TABLE)
        world.soon(1 + act.pick(40), "enable", act.luck)


def enable(world: Universe, act: Act) -> None:
    """AWS takes up to two minutes for it, of which it does not tell the changes; or it is done at once.

    At once for existing exports: one that was made meanwhile would be too early, see ``simulate.sizes``.
    """
    if not world.streaming:
        enabling = 0.0 if world.scenario.existing else max(0.0, act.between(-60.0, 120.0))
        world.source.enable_stream(world.TABLE, world.scenario.view, enabling)


def recreate(world: Universe, act: Act) -> None:
    """The table is deleted, and one of the same name created."""
    world.source.call("DeleteTable", {"TableName": world.TABLE})
    world.create()


# What time does


def pause(world: Universe, act: Act) -> None:
    world.clock.now += act.between(1.0, 16 * 60.0)


def jump(world: Universe, act: Act) -> None:
    world.clock.now += act.between(HOUR, 26 * HOUR)


def absence(world: Universe, act: Act) -> None:
    """The run ends, and the next one begins hours later, or nearly a day later; seldom after more than a day."""
    if act.luck[0] < 0.5:
        hours = act.between(0.2, 12.0)
    else:
        hours = act.between(12.0, 23.9) if act.luck[0] < 0.9 else act.between(24.0, 72.0)
    world.later_between_runs(0, lambda: world.lapse(hours * HOUR))
    raise Killed


def brink(world: Universe, act: Act) -> None:
    """The run is away for nearly as long as a copy may be that only caught up."""
    world.later_between_runs(0, lambda: world.lapse(act.between(18.5, 20.0) * HOUR))
    raise Killed


def skew(world: Universe, act: Act) -> None:
    """The clock of the machine is set, forwards or back; often so far that AWS refuses what it signs."""
    world.clock.skew = act.between(-HOUR, HOUR) if act.luck[0] < 0.3 else act.between(-TOLERATED, TOLERATED)


# What becomes of requests and of the process


def arm(world: Universe, act: Act) -> None:
    """The next request to the target, or to the store, has this fate."""
    world.armed[act.what] = world.armed.get(act.what, 0) + 1 + act.pick(3)


def leak(world: Universe, act: Act) -> None:
    """From now on every run loses a response of the target soon after it began; or none does."""
    world.leaks = act.luck[0] < 0.8


def abandon(world: Universe, act: Act) -> None:
    """The run is killed as it sends new items, which may be carried out late; they are removed, a resync is ordered.

    Their shard is closed by then, so that the next epoch does not read that they were removed.
    """
    keys = [f"new {world.value + n}" for n in range(1 + act.pick(4))]
    for key in keys:
        world.write(key, removes=False)
    world.fatal_items |= {(key,) for key in keys}

    def regret() -> None:
        world.order_resync()
        for key in keys:
            world.write(key, removes=True)
        for shard in world.source.open_shards(world.TABLE) if world.streaming else ():
            world.source.roll(world.TABLE, shard)

    world.perishing = regret


def overtake(world: Universe, act: Act) -> None:
    """Another run takes over in the middle of the next piece of a sweep or purge."""
    world.during_cleanup = partial(runs.go, world, int(act.between(5, 60)))


def doze(world: Universe, act: Act) -> None:
    """The next run that is about to purge is stopped: another one takes over and ends, minutes or hours pass."""

    def asleep() -> None:
        runs.go(world, int(act.between(5, 60)))
        world.clock.now += act.luck[0] ** 4 * HOUR

    world.before_purge = asleep


def die(world: Universe, act: Act) -> None:
    """The process is killed, now or a few effects later."""
    world.effects_left = 1 + act.pick(8)


def takeover(world: Universe, act: Act) -> None:
    """Another run of the pipeline starts while this one lives; then this one goes on, and must notice."""
    if world.depth < 2:
        runs.go(world, int(act.between(1, 40)))


def dawdle(world: Universe, act: Act) -> None:
    """The target takes its time for each request, or does no longer; another run takes over in the midst of a batch."""
    world.request_delay = act.between(1.0, 40.0) if act.luck[0] < 0.8 else 0.0
    if act.luck[0] < 0.5:
        world.during_batch = partial(runs.go, world, int(act.between(5, 60)))


def ponder(world: Universe, act: Act) -> None:
    """The hook takes its time for each item, or does no longer; another run takes over while a batch is made."""
    world.hook_delay = act.between(0.02, 3.0) if act.luck[0] < 0.8 else 0.0
    if act.luck[0] < 0.1:
        world.during_hook = partial(runs.go, world, int(act.between(5, 60)))


def strain(world: Universe, act: Act) -> None:
    """The hook takes too long for some images, which it has handled before and will handle again."""
    world.armed["strain"] = world.armed.get("strain", 0) + 1 + act.pick(4)


def restart(world: Universe, act: Act) -> None:
    """The engine is restarted: it forgets what it had only in memory."""
    world.database.volatile.clear()


# What a person does: the run is ended, and started again by somebody who knows


def resync(world: Universe, act: Act) -> None:
    world.order_resync()
    raise Killed


def rehook(world: Universe, act: Act) -> None:
    """The hook is changed, and a resync is requested."""
    world.hook_version += 1
    world.order_resync()
    raise Killed


def widen(world: Universe, act: Act) -> None:
    """The config names a column more from now on, and the run is started again."""
    world.fields = min(world.fields + 1, 3)
    raise Killed


def restore(world: Universe, act: Act) -> None:
    """The target comes back from a backup; a store that is apart knows nothing of that.

    A transaction that was under way ends with the database.
    """
    backup = copy.deepcopy(world.database)

    def put_back() -> None:
        if world.trimmed_early:  # a backup from before such a shard was begun would be read as if it was young
            return
        world.left.clear()
        known = truth.complete_of(backup.entries)  # a later epoch may get the number of one that is gone
        world.expired = {key: (epoch if epoch <= known else 0, was) for key, (epoch, was) in world.expired.items()}
        for part in ("rows", "tombstones", "marked", "epochs") if world.scenario.index else backup.__slots__:
            setattr(world.database, part, getattr(backup, part))
        for table, rows in world.database.rows.items():
            world.lives.replaced(table, [*rows, *world.database.marked.get(table, {})])
        world.used.clear()
        world.database.volatile.clear()
        if not world.scenario.index:
            world.late.clear()
        if world.scenario.index or world.hook_version:  # the backup may be from before the hook was changed
            world.order_resync()

    world.later_between_runs(1 + act.pick(60), put_back)


def roll_back(world: Universe, act: Act) -> None:
    """The store comes back from an older copy of itself, when nothing is under way any more, as people are told.

    They are told to order a resync, too. Here one is ordered only where a run would not notice what it needs: the copy
    does not know what a later run knew, that a table held documents when it stopped; or which documents a retry with
    another hook made; or what was requested of a store that is empty by now.
    """
    backup, taken, retried = copy.deepcopy(world.database), world.step, len(world.retried_with_another_hook)

    def put_back() -> None:
        needed = world.awaits_resync() or bool(world.hook_version) or ("request", "") in world.database.entries
        if world.scenario.index and not world.trimmed_early:
            needed = needed or misleads(world, taken, backup.entries) or world.emptied == world.step
            needed = needed or len(world.retried_with_another_hook) > retried or not world.database.entries
            world.database.entries, world.database.counts = backup.entries, backup.counts
            world.used.clear()
            world.late.clear()
            world.put_back.append((taken, world.step))
            world.left.clear()
        if needed:
            world.order_resync()

    world.later_between_runs(1 + act.pick(60), put_back)


def forget(world: Universe, act: Act) -> None:
    """The store is lost, and with it what was on its way there."""

    def lose() -> None:
        if world.scenario.index:
            world.database.entries, world.database.counts = {}, {}
            world.used.clear()
            world.late = [late for late in world.late if late.to == "target"]
            world.forget_epochs()

    world.later_between_runs(0, lose)
    raise Killed


def _shard(world: Universe, act: Act) -> str | None:
    shards = world.source.open_shards(world.TABLE) if world.streaming else []
    return shards[act.pick(len(shards))] if 0 < len(shards) < MANY_SHARDS else None


ACTS: Mapping[str, Callable[[Universe, Act], None]] = {
    "write": write,
    "burst": burst,
    "expire": expire,
    "split": split,
    "roll": roll,
    "wither": wither,
    "storm": storm,
    "throttle": throttle,
    "outage": outage,
    "lie": lie,
    "blank": blank,
    "distort": distort,
    "spoil": spoil,
    "refuse filter": refuse_filter,
    "trim": trim,
    "disable": disable,
    "enable": enable,
    "recreate": recreate,
    "pause": pause,
    "jump": jump,
    "absence": absence,
    "brink": brink,
    "skew": skew,
    "lost": arm,
    "unanswered": arm,
    "late": arm,
    "straggle": arm,
    "cut short": arm,
    "leak": leak,
    "abandon": abandon,
    "overtake": overtake,
    "doze": doze,
    "die": die,
    "takeover": takeover,
    "dawdle": dawdle,
    "ponder": ponder,
    "strain": strain,
    "restart": restart,
    "resync": resync,
    "rehook": rehook,
    "widen": widen,
    "restore": restore,
    "roll back": roll_back,
    "forget": forget,
    **IDENTITY_ACTS,
}
