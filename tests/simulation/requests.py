"""People request a resync, of everything or of items whose documents others have changed by hand."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from replicator.batch import DocumentId
from replicator.engine import preexisting, startup
from replicator.engine.startup import Allowed, StartupState
from replicator.errors import ConfigError, GapFound
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.state import ResyncRequest, Save, encode
from replicator.testing.memory import MemoryCheckpoints
from replicator.version import version
from tests.simulation import runs
from tests.simulation.plan import Act

if TYPE_CHECKING:
    from tests.simulation.world import Universe


def request_all(world: Universe, act: Act) -> None:
    """A resync of the whole table."""
    if (found := _startup(world, Allowed(resync=True, hook_change=True))) is not None:
        _note(world, ResyncRequest(world.clock.now, startup.digest(found)))


def request_items(world: Universe, act: Act) -> None:
    """Others change, remove and add documents, and a resync is requested of their items."""
    hook = world.hook()
    if hook is not None and hook.declared:
        return
    found = _startup(world, Allowed())
    if found is None or found.state is None:
        return
    chance = random.Random(f"items {act.luck}")
    keys = sorted(
        {(f"k{chance.randrange(world.scenario.keys)}",) for _ in range(1 + act.pick(2 * world.scenario.keys))}
    )
    noted = _note(world, ResyncRequest(world.clock.now, startup.digest(found), keys=tuple(keys)))
    if noted is not None:
        for key in keys:
            world.left.pop(key, None)  # its rescan stores what a person gave up
    if noted is not None and not world.scenario.keeps_expired:
        swept = noted.whole  # by an epoch that may have begun already
        for key in keys:
            _change_by_hand(world, key, chance.random(), version(found.state.complete, 0) - swept)


def _change_by_hand(world: Universe, id: DocumentId, luck: float, oldest: int) -> None:
    rows, tombstones = world.database.rows.get(world.TABLE), world.database.tombstones.get(world.TABLE, {})
    if rows is None or id in tombstones or id in world.database.marked.get(world.TABLE, {}):
        return
    world.damage.ever.add((world.TABLE, id))
    if id not in rows:
        rows[id] = oldest, b'{"by": "hand"}'
    elif luck < 0.5:
        rows[id] = rows[id][0], b'{"by": "hand"}'
    else:
        del rows[id]
        world.lives.held.discard((world.TABLE, id))


def renew(world: Universe) -> None:
    """Request again what is still pending for another config: `status` shows that no run has started it."""
    entry = world.database.entries.get(("request", ""))
    if entry is None or (found := _startup(world, Allowed(resync=True, hook_change=True))) is None:
        return
    request = CheckpointView(MemoryCheckpoints(world.database).read()).request
    assert request is not None
    if request.config != startup.digest(found):
        _save(world, replace(request, config=startup.digest(found)))


def _startup(world: Universe, allowed: Allowed) -> StartupState | None:
    """What the command finds; None if it would refuse."""
    copy = runs.copy_in(world)
    view = CheckpointView(MemoryCheckpoints(world.database).read())
    if view.pipeline is None:
        return None
    with suppress(ConfigError, GapFound):
        found = preexisting.inspect(view, copy.table, copy.target, copy.tables, copy.hook)
        startup.start_mode(found, allowed)
        return found
    return None


def _note(world: Universe, request: ResyncRequest) -> ResyncRequest | None:
    """What is requested then; None if the command refuses it, as it does while one for another config is pending."""
    earlier = CheckpointView(MemoryCheckpoints(world.database).read()).request
    with suppress(ConfigError):
        joined = request.joined(earlier)
        _save(world, joined)
        return joined
    return None


def _save(world: Universe, request: ResyncRequest) -> None:
    MemoryCheckpoints(world.database).save([Save("request", "", None, encode(request))])


ACTS: Mapping[str, Callable[[Universe, Act], None]] = {"request a resync": request_all, "request items": request_items}
