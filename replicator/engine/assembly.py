"""Builds a run's context: target, checkpoints, hook, and the target's tables."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from replicator.aws.client import Client
from replicator.checkpoints.contract import AccessChecking, Checkpoints, Store
from replicator.config.checkpoints import KEPT_BY_TARGET, default
from replicator.config.settings import Config
from replicator.engine.context import RunContext
from replicator.engine.startup import check_expiries
from replicator.errors import ConfigError
from replicator.hooks.hook import Hook
from replicator.source.table import SourceTable
from replicator.target.contract import Mirroring, ReducedGuarantee, Table, Target, Transactional

log = logging.getLogger("replicator")


KEPT_EXPIRED = (
    "a resync or --apply-schema-changes: both require --remove-expired, because a new scan does not find expired items"
)


def assemble(
    config: Config, client: Client, target: Target, checkpoints: Checkpoints, hook: Hook | None, table: SourceTable
) -> RunContext:
    """The context of a run that replicates ``table``. ConfigError if the hook, the tables or the source do not fit."""
    check_expiries(table, config.ttl_deletes)
    tables = target_tables(config, table, hook)
    introduce(config, target, table, client)
    if (reduced := reduced_guarantee(target)) != "":
        log.warning("reduced guarantee", extra={"reduced_guarantee": reduced})
    if config.ttl_deletes == "ignore":
        log.warning("expired items kept", extra={"until": KEPT_EXPIRED})
    if isinstance(checkpoints, Store):
        log.info("checkpoints", extra={"place": checkpoints.place})
    if isinstance(checkpoints, AccessChecking):
        for warning in checkpoints.warnings():
            log.warning("checkpoints exposed", extra={"reason": warning})
    return RunContext(config, client, target, checkpoints, hook, table, tables)


def reduced_guarantee(target: Target) -> str:
    """What the target's options give up, in words; empty if its guarantee is the full one."""
    return target.reduced_guarantee if isinstance(target, ReducedGuarantee) else ""


def introduce(config: Config, target: Target, table: SourceTable, client: Client) -> None:
    """Tell the target what it replicates, if it is ``Mirroring``."""
    if isinstance(target, Mirroring):
        target.mirror(table, client, keep_expired=config.ttl_deletes == "ignore")


def target_tables(config: Config, table: SourceTable, hook: Hook | None) -> tuple[Table, ...]:
    """The target's tables, keyed by the item's key or, for hooks that return ``Document``s, by document id."""
    own_ids = hook is not None and hook.declared
    check_tables(config, own_ids=own_ids)
    return config.target.wanted(table.keys, own_ids=own_ids)


def check_tables(config: Config, *, own_ids: bool) -> None:
    """ConfigError if the hook does not say which of several tables a document goes to."""
    if len(config.target.tables) > 1 and not own_ids:
        raise ConfigError(
            "target.tables: several tables need a transform hook that says where each document goes; "
            "decorate it with @documents and return Document(id, body, table)"
        )


@contextlib.contextmanager
def ends(config: Config) -> Iterator[tuple[Target, Checkpoints]]:
    """The target and the checkpoints, not connected yet. Closes both on exit."""
    target = config.target.build(config.pipeline)
    with contextlib.closing(target):
        checkpoints = checkpoints_of(config, target)
        with contextlib.closing(checkpoints) if isinstance(checkpoints, Store) else contextlib.nullcontext():
            yield target, checkpoints


def checkpoints_of(config: Config, target: Target) -> Checkpoints:
    """A transactional target's own checkpoints, otherwise the store named in the config."""
    if isinstance(target, Transactional):
        if config.checkpoints is not None:
            raise ConfigError(f"checkpoints: {KEPT_BY_TARGET}")
        return target.checkpoints
    return (config.checkpoints or default()).build(config.pipeline, config.base)
