"""Puts a run together: both ends, the hook, the checkpoints; then the driver moves it."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Literal

from replicator.aws import connect
from replicator.checkpoints import Checkpoints, Owner
from replicator.config import Config
from replicator.delivery import Patience, Stopped
from replicator.driver import Copy, Driver, World, log_wait
from replicator.errors import ConfigError
from replicator.progress import Progress
from replicator.source import SourceTable, describe_table
from replicator.target import Table, Target, Transactional
from replicator.transform import Hook, load
from replicator.wire import Wire


def run(
    config: Config,
    *,
    until: Literal["caught-up"] | None,
    resync: bool,
    accept_hook_change: bool,
    stop: threading.Event,
    observe: Callable[[Progress], None],
) -> None:
    """Copy until stopped (or caught up). ``resync``: begin a new epoch first. Raises ReplicatorErrors."""
    hook = load(config.transform, config.base) if config.transform is not None else None
    wire = connect(config.source)
    world = World(stop, observe)
    target = config.target.build(config.pipeline)
    try:
        patiently = Patience(stop, log_wait, world.now, world.random)
        table = patiently(lambda: describe_table(wire, config.source.table))
        copy = assemble(config, wire, target, hook, table)
        calm_down()
        Driver(copy, _owner(), world).run(until=until, resync=resync, accept_hook_change=accept_hook_change)
    except Stopped:
        return  # before anything began
    finally:
        target.close()


def assemble(config: Config, wire: Wire, target: Target, hook: Hook | None, table: SourceTable) -> Copy:
    """A copy of ``table`` as the config wants it; ConfigError where hook and tables do not go together."""
    tables = target_tables(config, table, hook)
    return Copy(config, wire, target, checkpoints_of(target), hook, table, tables)


def target_tables(config: Config, table: SourceTable, hook: Hook | None) -> tuple[Table, ...]:
    """The target's tables, under the item's key or under ids of the hook's own."""
    own_ids = hook is not None and hook.declared
    if len(config.target.tables) > 1 and not own_ids:
        raise ConfigError(
            "target.tables: several tables need a hook that says where each document goes; "
            "decorate it with @documents and let it return Document(id, body, table)"
        )
    return config.target.wanted(table.keys, own_ids=own_ids)


def checkpoints_of(target: Target) -> Checkpoints:
    """Where the entries are kept: with the target's rows, in their transactions."""
    if isinstance(target, Transactional):
        return target.checkpoints
    raise ConfigError("target.type: this target keeps no checkpoints, and there is no other store for them yet")


def _owner() -> Owner:
    return Owner(uuid.uuid4().hex, socket.gethostname(), os.getpid(), time.time())


def calm_down() -> None:
    """What was loaded at start never dies: the collector need not look at it for every page (twice as fast)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)
