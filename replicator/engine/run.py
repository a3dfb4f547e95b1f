"""Assembles source, target, hook and checkpoints, and runs the pipeline."""

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
from pathlib import Path
from typing import Literal

from replicator.aws.boto import connect
from replicator.checkpoints.contract import Checkpoints
from replicator.checkpoints.presence import check_known
from replicator.config.engine import Lambda, Ray
from replicator.config.settings import Config
from replicator.engine import imports, preexisting
from replicator.engine.assembly import assemble, ends, reduced_guarantee
from replicator.engine.binding import check_start
from replicator.engine.context import Environment, RunContext
from replicator.engine.local import Driver
from replicator.engine.measurements import Measurements, Unmeasured
from replicator.engine.retry import RetryPolicy, Stopped
from replicator.engine.startup import Allowed
from replicator.errors import Fenced, ItemsParked, ReplicatorError
from replicator.hooks.hook import Hook
from replicator.hooks.loading import load
from replicator.hooks.time_limit import HookLimit
from replicator.pipeline.progress import Progress
from replicator.source.sharing import SharedPages
from replicator.source.table import describe_table
from replicator.state import Owner, decode
from replicator.target.contract import Table, Target

log = logging.getLogger("replicator")


Until = Literal["caught-up", "backfilled"] | None
Beside = Callable[[Hook | None], contextlib.AbstractContextManager[object]]
Follow = Callable[[RunContext, Owner, Environment, Until, Allowed, Beside], int]
"""An engine: claims the pipeline and replicates until it is time to end. Returns how many items are parked."""

_M_ARENA_MAX = -8  # of glibc's malloc.h
_RUNS: set[str] = set()  # of this process


def run(
    config: Config,
    *,
    until: Until,
    resync: bool,
    accept_hook_change: bool,
    stop: threading.Event,
    observe: Callable[[Progress], None],
    accept_identity_change: bool = False,
    apply_schema_changes: bool = False,
    remove_expired: bool = False,
    measurements: Measurements | None = None,
    confirm: Callable[[], None] = lambda: None,
    beside: Beside = contextlib.nullcontext,
    follow: Follow | None = None,
    pages: SharedPages | None = None,
    load: Callable[[str, Path], Hook] = load,
) -> None:
    """Replicate until ``stop`` is set, or until caught up. ``resync``: start a new epoch first. ``confirm`` is called
    once the run owns the pipeline, and may raise to end it before it has looked at the target. ``beside``: the context
    in which the run works, for what it does besides; it gets the hook. ``follow``: the engine; this process by default.
    ``pages``: of the stream, where other pipelines of this process read it too. ``load``: loads the hook.

    Raises a ReplicatorError if the run cannot start or continue.
    """
    sweep = remove_expired or config.ttl_deletes == "apply"
    allowed = Allowed(resync, accept_hook_change, accept_identity_change, apply_schema_changes, sweep)
    with imports.reporting(config.pipeline, imports.IMPORT_TIMEOUT):
        hook = load(config.transform, config.base) if config.transform is not None else None
    client = connect(config.source)
    environment = Environment(
        stop,
        observe,
        hook_limit=HookLimit(config.hook_timeout),
        measurements=measurements or Unmeasured(),
        confirm=confirm,
        pages=pages,
        earlier=frozenset(_RUNS),
    )
    owner = _owner()
    _RUNS.add(owner.who)
    with ends(config) as (target, checkpoints), contextlib.suppress(Stopped):  # stopped during startup
        retrying = RetryPolicy(
            stop, environment.waiting, environment.now, environment.random, environment.measurements.retried
        )
        table = retrying(lambda: describe_table(client, config.source.table), asks="source")
        context = assemble(config, client, target, checkpoints, hook, table)
        environment.measurements.guarantee_reduced(reduced_guarantee(target))
        if resync:
            retrying(lambda: _check_copied(config, target, checkpoints, context.tables))
        retrying(
            lambda: check_start(
                checkpoints,
                lambda view: preexisting.inspect(view, table, target, context.tables, hook),
                allowed,
                lambda request: preexisting.check_new_epoch(target, context.tables, request),
                several=isinstance(config.engine, Ray | Lambda),
            )
        )
        tune_allocator()
        parked = (follow or follow_here)(context, owner, environment, until, allowed, beside)
    if until is not None and not stop.is_set():
        _check_parked(parked, until)


def follow_here(
    context: RunContext, owner: Owner, environment: Environment, until: Until, allowed: Allowed, beside: Beside
) -> int:
    """Replicate in this process."""
    driver = Driver(context, owner, environment)
    with naming_the_owner(context.checkpoints), beside(context.hook):
        driver.run(until=until, allowed=allowed)
    return len(driver.pipeline.parked)


def _check_copied(config: Config, target: Target, checkpoints: Checkpoints, tables: Sequence[Table]) -> None:
    """ConfigError if there is nothing to resync: no checkpoints, and no tables left from lost checkpoints."""
    if not any(target.epoch([table]) for table in tables):
        check_known(config.pipeline, checkpoints, checkpoints.read())


@contextlib.contextmanager
def naming_the_owner(checkpoints: Checkpoints) -> Iterator[None]:
    """Add the name of the new owner to a Fenced error."""
    try:
        yield
    except Fenced as e:
        raise Fenced(f"{e}{_owner_of(checkpoints)}") from e


def _owner_of(checkpoints: Checkpoints) -> str:
    try:
        entries = [e for e in checkpoints.read().entries if (e.kind, e.id) == ("owner", "")]
        owners = [decode(e.kind, e.id, e.text) for e in entries]
    except ReplicatorError:
        return ""
    return "".join(f". It is owned by {owner.who}" for owner in owners if isinstance(owner, Owner))


def _check_parked(left: int, until: Until) -> None:
    """ItemsParked if any item is parked, by this run or an earlier one: the caller may go on to use the copy."""
    if left:
        so_far = "caught up" if until == "caught-up" else until
        raise ItemsParked(
            f"{so_far}, except for {left:,} item(s) that are parked because the hook or the target refused them: "
            "the target does not equal the table. See why with: replicator parked list CONFIG; "
            "then run: replicator parked retry CONFIG --all"
        )


def _owner() -> Owner:
    return Owner(uuid.uuid4().hex, socket.gethostname(), os.getpid(), time.time())


def tune_allocator() -> None:
    """Freeze loaded objects out of the garbage collector (twice as fast), and limit malloc arenas (glibc only).

    Without the limit, each thread keeps an arena as large as the pages it once held.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
