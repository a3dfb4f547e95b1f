"""Notes in the checkpoints that a resync is wanted: of the whole table, or of chosen items. A run carries it out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from replicator.aws import boto
from replicator.aws.client import Client
from replicator.aws.errors import AwsError, failure
from replicator.checkpoints.contract import Checkpoints
from replicator.checkpoints.presence import check_known
from replicator.config.engine import Lambda
from replicator.config.settings import Config
from replicator.engine import preexisting
from replicator.engine.assembly import ends, introduce, target_tables
from replicator.engine.startup import START_OVER, Allowed, StartupState, check_source, digest, start_mode
from replicator.errors import ConfigError, Fenced, GapFound
from replicator.hooks import loading
from replicator.hooks.hook import Hook
from replicator.key import Key, KeySchema
from replicator.options import aws_options
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.pipeline.progress import progress
from replicator.source import condition
from replicator.source.chosen import check_permitted
from replicator.source.table import SourceTable, describe_table
from replicator.state import ResyncRequest, Save, decode_request, encode
from replicator.target.contract import Target, Unguarded, caution_of, marks_of, with_history
from replicator.version import LAST_EPOCH

TRIES = 5  # to note a request while others note theirs
MOST_KEYS = 10_000  # in a pending request, which is one entry of the checkpoints
RESERVED_EPOCHS = 1000  # left for gaps and resyncs of the whole table


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a command asks for: the items with these keys (as JSON objects) and those that match a condition of
    ``where``; the whole table if there are neither. ``keys``: where each comes from, for messages, and its JSON."""

    keys: Sequence[tuple[str, str]] = ()
    where: Sequence[str] = ()
    identity_change: bool = False
    schema_changes: bool = False
    remove_expired: bool = False

    @property
    def whole(self) -> bool:
        return not self.keys and not self.where


@dataclass(frozen=True, slots=True)
class Noted:
    """The request as it is stored now, and the run that will carry it out; None if no run is up. ``caution``: see
    ``caution_of``. ``changed``: the last run had another hook or definition, so one that is up leaves it to the next.
    ``command``: what carries the request out if no run is up.
    """

    request: ResyncRequest
    run: str | None
    caution: str = ""
    changed: bool = False
    command: str = "replicator run CONFIG"


def note(config: Config, wanted: Wanted, now: Callable[[], float]) -> Noted:
    """Note the request, joined with one that is still pending. ConfigError or GapFound if no run could carry it out."""
    hook = loading.load(config.transform, config.base) if config.transform is not None else None
    client = boto.connect(config.source)
    with ends(config) as (target, checkpoints):
        table = describe_table(client, config.source.table)
        introduce(config, target, table, client)
        tables = target_tables(config, table, hook)
        view = _known(config, checkpoints, lambda: any(target.epoch([one]) for one in tables))
        start = preexisting.inspect(view, table, target, tables, hook)
        if wanted.whole:
            loops, kept = marks_of(target) is not None, bool(with_history(tables))
            options = aws_options(config.source, table.arn)
            own_ids = hook is not None and hook.declared
            check_source(table, own_ids=own_ids, loops=loops, history=kept, options=options)
        _check(start, config, wanted, target, hook)
        if wanted.whole and not start.additions:
            preexisting.check_new_epoch(target, tables)
        keys = _keys(table.keys, wanted.keys)
        if keys:
            check_permitted(client, table, keys[0])
        for text in wanted.where:
            _try(client, table, condition.parse(text))
        request = ResyncRequest(
            requested=now(),
            config=digest(start),
            keys=keys,
            where=tuple(dict.fromkeys(wanted.where)),
            identity_change=wanted.identity_change,
            schema_changes=wanted.schema_changes,
            remove_expired=wanted.remove_expired,
        )
        changed = start.state is not None and (start.state.hook != start.hook or bool(start.changes))
        joined, caution = _joined(checkpoints, request), caution_of(target)
        if isinstance(config.engine, Lambda):
            return Noted(joined, None, caution, changed, "replicator run CONFIG --until backfilled")
        return Noted(joined, _run(checkpoints, now()), caution, changed)


def cancel(config: Config) -> bool:
    """Withdraw the pending request. False if there is none, or a run has started it."""
    with ends(config) as (_, checkpoints):
        _known(config, checkpoints, lambda: False)
        for _attempt in range(TRIES):
            entry = checkpoints.request()
            if entry is None:
                return False
            try:
                checkpoints.save([Save(entry.kind, entry.id, entry.revision, None)])
            except Fenced:
                continue
            return True
    raise _busy()


def _known(config: Config, checkpoints: Checkpoints, is_written: Callable[[], bool]) -> CheckpointView:
    """The checkpoints of a pipeline that has begun; ConfigError if it has not.

    ``is_written``: whether the target has tables of the pipeline, whose checkpoints are lost then.
    """
    stored = checkpoints.read()
    view = CheckpointView(stored)
    if view.pipeline is None and is_written():
        raise ConfigError(
            "the target has tables of this pipeline, but its checkpoints are lost or stored elsewhere, so a request "
            "cannot be stored in them. Correct checkpoints: or pipeline: in the config; if they are lost, start over "
            f"with: {START_OVER}"
        )
    check_known(config.pipeline, checkpoints, stored)
    if view.pipeline is None:
        raise ConfigError(
            "this pipeline has not started yet, so there is nothing to resync; start it with: replicator run CONFIG"
        )
    return view


def _check(start: StartupState, config: Config, wanted: Wanted, target: Target, hook: Hook | None) -> None:
    """ConfigError if a run with this config would refuse the resync. GapFound: only the whole table repairs it."""
    if wanted.whole:
        sweep = wanted.remove_expired or config.ttl_deletes == "apply"
        start_mode(start, Allowed(True, True, wanted.identity_change, wanted.schema_changes, sweep))
        return
    try:
        start_mode(start, Allowed())
    except GapFound as e:
        raise ConfigError(
            f"records were lost, so a partial resync cannot repair the copy: {e.reason}. Request a resync of the whole "
            "table: replicator resync CONFIG"
        ) from e
    if hook is not None and hook.declared:
        raise ConfigError(
            "--key, --keys and --where: the hook chooses document ids (@documents), and documents that it no longer "
            "gives an item are found by a resync of the whole table only: replicator resync CONFIG"
        )
    if isinstance(target, Unguarded) and target.unguarded:
        raise ConfigError(
            "--key, --keys and --where: this target compares no versions (pristine), so a partial resync could replace "
            "newer items. Request a resync of the whole table: replicator resync CONFIG"
        )
    assert start.state is not None
    if start.state.epoch > LAST_EPOCH - RESERVED_EPOCHS:
        raise ConfigError(
            f"each partial resync takes an epoch, and {LAST_EPOCH} is the highest: too few are left. Request a resync "
            "of the whole table: replicator resync CONFIG"
        )


def _keys(schema: KeySchema, given: Iterable[tuple[str, str]]) -> tuple[Key, ...]:
    keys = []
    for where, text in given:
        try:
            keys.append(schema.from_json(text))
        except ValueError as e:
            raise ConfigError(f"{where}: {e}") from e
    return tuple(dict.fromkeys(keys))


def _try(client: Client, table: SourceTable, parsed: condition.Condition) -> None:
    """ConfigError if DynamoDB does not accept the condition."""
    request = {"TableName": table.requested, "Limit": 1, **parsed.filter}
    try:
        client.call("Scan", request)
    except AwsError as e:
        if e.code == "ValidationException":
            raise ConfigError(f"--where: DynamoDB does not accept the condition: {e.message}") from e
        raise failure(e, "Scan", table.requested) from e


def _joined(checkpoints: Checkpoints, request: ResyncRequest) -> ResyncRequest:
    for _attempt in range(TRIES):
        entry = checkpoints.request()
        joined = request.joined(decode_request(entry.text) if entry is not None else None)
        if len(joined.keys) > MOST_KEYS:
            raise ConfigError(
                f"--keys: a request names at most {MOST_KEYS:,} items, and this would be {len(joined.keys):,} with "
                "those still pending. Request the rest later, or use --where, or resync the whole table"
            )
        try:
            checkpoints.save([Save("request", "", entry.revision if entry is not None else 0, encode(joined))])
        except Fenced:
            continue
        return joined
    raise _busy()


def _busy() -> ConfigError:
    return ConfigError("other processes keep changing the request; try again")


def _run(checkpoints: Checkpoints, now: float) -> str | None:
    claimed = checkpoints.read()
    current = progress(claimed.entries, claimed.counts, now)
    return current.owner.who if current.phase not in ("stopped", "gap") and current.owner is not None else None
