"""Puts together what a run works with: both ends, checkpoints, hook, tables."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from replicator.aws.client import Client
from replicator.checkpoints.contract import Cautious, Checkpoints, Store
from replicator.config.checkpoints import KEPT_BY_TARGET, default
from replicator.config.settings import Config
from replicator.engine.context import RunContext
from replicator.errors import ConfigError
from replicator.hooks.hook import Hook
from replicator.source.table import SourceTable
from replicator.target.contract import Mirroring, ReducedGuarantee, Table, Target, Transactional

log = logging.getLogger("replicator")


KEPT_EXPIRED = "a resync or --apply-schema-changes, which ask for --remove-expired, as a new scan does not find them"


def assemble(
    config: Config, client: Client, target: Target, checkpoints: Checkpoints, hook: Hook | None, table: SourceTable
) -> RunContext:
    """A copy of ``table`` as the config wants it; ConfigError where hook and tables do not go together."""
    tables = target_tables(config, table, hook)
    introduce(config, target, table, client)
    if (promise := promise_of(target)) != "":
        log.warning("a weaker promise", extra={"promise": promise})
    if config.ttl_deletes == "ignore":
        log.warning("expired items are kept", extra={"until": KEPT_EXPIRED})
    if isinstance(checkpoints, Store):
        log.info("checkpoints", extra={"place": checkpoints.place})
    if isinstance(checkpoints, Cautious):
        for warning in checkpoints.warnings():
            log.warning("checkpoints are exposed", extra={"reason": warning})
    return RunContext(config, client, target, checkpoints, hook, table, tables)


def promise_of(target: Target) -> str:
    """What the target promises instead of what others do; empty if nothing is missing."""
    return target.promise if isinstance(target, ReducedGuarantee) else ""


def introduce(config: Config, target: Target, table: SourceTable, client: Client) -> None:
    """Tell the target what it is to be a copy of, if it wants to know."""
    if isinstance(target, Mirroring):
        target.mirror(table, client, keep_expired=config.ttl_deletes == "ignore")


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
