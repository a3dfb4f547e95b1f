"""Puts a run together: both ends, the hook, the checkpoints; then the driver moves it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from replicator.aws.boto import connect
from replicator.aws.client import Wire
from replicator.checkpoints.contract import Cautious, Store
from replicator.checkpoints.presence import check_known
from replicator.config.checkpoints import KEPT_BY_TARGET, default
from replicator.config.settings import Config
from replicator.engine.binding import admit
from replicator.engine.delivery import Patience, Stopped
from replicator.engine.local import Copy, Driver, World, log_wait
from replicator.engine.preexisting import found
from replicator.engine.startup import Allowed
from replicator.errors import ConfigError, Fenced, ItemsParked, ReplicatorError
from replicator.hooks.hook import Hook, load
from replicator.hooks.time_limit import HookLimit
from replicator.pipeline.pipeline import Pipeline
from replicator.pipeline.progress import Progress
from replicator.source.table import SourceTable, describe_table
from replicator.state import Checkpoints, Owner, decode
from replicator.target.contract import Mirroring, Table, Target, Transactional, Weaker

log = logging.getLogger("replicator")

KEPT_EXPIRED = "a resync or --apply-schema-changes, which ask for --remove-expired, as a new scan does not find them"

_M_ARENA_MAX = -8  # of glibc's malloc.h


def run(
    config: Config,
    *,
    until: Literal["caught-up"] | None,
    resync: bool,
    accept_hook_change: bool,
    stop: threading.Event,
    observe: Callable[[Progress], None],
    accept_identity_change: bool = False,
    apply_schema_changes: bool = False,
    remove_expired: bool = False,
) -> None:
    """Copy until stopped (or caught up). ``resync``: begin a new epoch first. Raises ReplicatorErrors."""
    sweep = remove_expired or config.ttl_deletes == "apply"
    allowed = Allowed(resync, accept_hook_change, accept_identity_change, apply_schema_changes, sweep)
    hook = load(config.transform, config.base) if config.transform is not None else None
    wire = connect(config.source)
    world = World(stop, observe, hook_limit=HookLimit(config.hook_timeout))
    with ends(config) as (target, checkpoints), contextlib.suppress(Stopped):  # stopped before anything began
        patiently = Patience(stop, log_wait, world.now, world.random)
        table = patiently(lambda: describe_table(wire, config.source.table))
        copy = assemble(config, wire, target, checkpoints, hook, table)
        if resync:
            patiently(lambda: _check_copied(config, target, checkpoints, copy.tables))
        patiently(lambda: admit(checkpoints, lambda ledger: found(ledger, table, target, copy.tables, hook), allowed))
        calm_down()
        driver = Driver(copy, _owner(), world)
        with _naming_the_owner(checkpoints):
            driver.run(until=until, allowed=allowed)
    if until is not None and not stop.is_set():
        _check_parked(driver.pipeline)


def _check_copied(config: Config, target: Target, checkpoints: Checkpoints, tables: Sequence[Table]) -> None:
    """ConfigError if there is nothing to make anew: neither checkpoints, nor tables whose checkpoints were lost."""
    if not any(target.epoch([table]) for table in tables):
        check_known(config.pipeline, checkpoints, checkpoints.read())


@contextlib.contextmanager
def _naming_the_owner(checkpoints: Checkpoints) -> Iterator[None]:
    """A run that was replaced says by which one."""
    try:
        yield
    except Fenced as e:
        raise Fenced(f"{e}{_owner_of(checkpoints)}") from e


def _owner_of(checkpoints: Checkpoints) -> str:
    try:
        entries = [e for e in checkpoints.read().entries if e.kind == "owner"]
        owners = [decode(e.kind, e.id, e.text) for e in entries]
    except ReplicatorError:
        return ""
    return "".join(f". It belongs to {owner.who}" for owner in owners if isinstance(owner, Owner))


def _check_parked(pipeline: Pipeline) -> None:
    """ItemsParked where this run caught up without some items."""
    if (left := pipeline.still_parked) > 0:
        raise ItemsParked(
            f"caught up, except for {left:,} item(s) that this run parked because the hook or the target refused them: "
            "the copy does not equal the table. See why with: replicator parked list CONFIG; then: replicator parked "
            "retry CONFIG --all"
        )


def assemble(
    config: Config, wire: Wire, target: Target, checkpoints: Checkpoints, hook: Hook | None, table: SourceTable
) -> Copy:
    """A copy of ``table`` as the config wants it; ConfigError where hook and tables do not go together."""
    tables = target_tables(config, table, hook)
    introduce(config, target, table, wire)
    if (promise := promise_of(target)) != "":
        log.warning("a weaker promise", extra={"promise": promise})
    if config.ttl_deletes == "ignore":
        log.warning("expired items are kept", extra={"until": KEPT_EXPIRED})
    if isinstance(checkpoints, Store):
        log.info("checkpoints", extra={"place": checkpoints.place})
    if isinstance(checkpoints, Cautious):
        for warning in checkpoints.warnings():
            log.warning("checkpoints are exposed", extra={"reason": warning})
    return Copy(config, wire, target, checkpoints, hook, table, tables)


def promise_of(target: Target) -> str:
    """What the target promises instead of what others do; empty if nothing is missing."""
    return target.promise if isinstance(target, Weaker) else ""


def introduce(config: Config, target: Target, table: SourceTable, wire: Wire) -> None:
    """Tell the target what it is to be a copy of, if it wants to know."""
    if isinstance(target, Mirroring):
        target.mirror(table, wire, keep_expired=config.ttl_deletes == "ignore")


def target_tables(config: Config, table: SourceTable, hook: Hook | None) -> tuple[Table, ...]:
    """The target's tables, under the item's key or under ids of the hook's own."""
    own_ids = hook is not None and hook.declared
    if len(config.target.tables) > 1 and not own_ids:
        raise ConfigError(
            "target.tables: several tables need a hook that says where each document goes; "
            "decorate it with @documents and let it return Document(id, body, table)"
        )
    return config.target.wanted(table.keys, own_ids=own_ids)


@contextlib.contextmanager
def ends(config: Config) -> Iterator[tuple[Target, Checkpoints]]:
    """The target and where the entries are kept, connected to nothing yet; both are closed in the end."""
    target = config.target.build(config.pipeline)
    with contextlib.closing(target):
        checkpoints = checkpoints_of(config, target)
        with contextlib.closing(checkpoints) if isinstance(checkpoints, Store) else contextlib.nullcontext():
            yield target, checkpoints


def checkpoints_of(config: Config, target: Target) -> Checkpoints:
    """With the target's rows in their transactions, where it has them; else in the store that the config names."""
    if isinstance(target, Transactional):
        if config.checkpoints is not None:
            raise ConfigError(f"checkpoints: {KEPT_BY_TARGET}")
        return target.checkpoints
    return (config.checkpoints or default()).build(config.pipeline, config.base)


def _owner() -> Owner:
    return Owner(uuid.uuid4().hex, socket.gethostname(), os.getpid(), time.time())


def calm_down() -> None:
    """What was loaded never dies, so the collector need not look at it (twice as fast), and threads do not keep heaps
    of what pages were made of (where that can be said: glibc)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
