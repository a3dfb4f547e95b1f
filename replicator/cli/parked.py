"""``replicator parked``: list, show, retry and discard parked changes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from replicator.cli.output import aside, config_argument, json_option, put, say, say_aside, say_lines
from replicator.errors import ConfigError
from replicator.escape import escaped_paragraph

if TYPE_CHECKING:
    from replicator.checkpoints.contract import Checkpoints
    from replicator.config.settings import Config
    from replicator.hooks.hook import Hook
    from replicator.operations.parked import ListedItems, ParkedItem
    from replicator.operations.scanned import SourceItems
    from replicator.target.contract import Target


NO_LONGER = "no longer parked"
_OTHER_HOOK = (
    "the hook is not the one that the run uses: a run that is up keeps the earlier one, and the next run ends with "
    "exit code 2 until you choose: replicator run CONFIG --accept-hook-change, or replicator resync CONFIG"
)


@click.group
def parked() -> None:
    """Inspect and retry rejected changes.

    A change that the hook or the target rejects is kept with its images and the reason; other items are not held up.
    ITEM is an item as `parked list` prints it, e.g. '["order#1"]'.
    """


def _items_argument(command: Any) -> Any:
    command = click.option("--all", "every", is_flag=True, help="Every parked item.")(command)
    return click.argument("items", nargs=-1, metavar="[ITEM]...")(command)


@parked.command("list")
@config_argument
@json_option
def list_(config: str, target: str | None, as_json: bool) -> None:
    """List parked items and why they were rejected."""
    count = 0
    with _opened(config, target) as (_, _, checkpoints):
        for item in _chosen(checkpoints, (), every=True):
            count += 1
            if as_json:
                put(_line(item))
            else:
                since = _moment(item.entry.parked)
                say(f"{item.item}  {sum(item.changes.values())} change(s), since {since}: {item.entry.reason}")
    if not as_json:
        say(f"{count} item(s) parked")


@parked.command
@config_argument
@_items_argument
@click.option("--show-values", is_flag=True, help="Include images and the hook's exception messages (item data).")
@json_option
def show(config: str, target: str | None, items: Sequence[str], every: bool, show_values: bool, as_json: bool) -> None:
    """Show parked changes in full: reason, traceback and position.

    --show-values adds the images and the hook's exception messages, which may contain item data.
    """
    from replicator.key import key_text

    with _opened(config, target) as (_, _, checkpoints):
        for item in _chosen(checkpoints, items, every=every):
            fields = _fields(item, show_values)
            if as_json:
                put(fields)
            else:
                fields["parked_at"], fields["key"] = _moment(item.entry.parked), key_text(item.entry.key)
                for name, value in fields.items():
                    if value:
                        say_lines(f"{name}: {escaped_paragraph(value, '    ')}")
                say()


@parked.command
@config_argument
@_items_argument
@json_option
@click.pass_context
def retry(
    ctx: click.Context, config: str, target: str | None, items: Sequence[str], every: bool, as_json: bool
) -> None:
    """Run the hook again and store the result.

    Each change keeps its version, so a newer state in the target is not overwritten. If the hook
    chooses document ids, what a scan found is stored only if the source still has it; otherwise it is superseded. For a
    pristine DynamoDB table this holds for every item, and no run may be active. What is rejected again stays parked
    (exit code 6). What a run or another command settled meanwhile is no longer parked, and is left alone. Refuses a
    config whose tables differ from what the pipeline has copied so far, and tables that were dropped, replaced or
    emptied (exit code 3).
    """
    from replicator.hooks import loading
    from replicator.hooks.hook import DocumentMapping
    from replicator.hooks.time_limit import HookLimit
    from replicator.operations.parked import GONE, OVERTAKEN, SUPERSEDED, NoRun, is_unguarded, pipeline_of
    from replicator.operations.parked import retry as tried
    from replicator.target.contract import keeps_history

    refused = 0
    with _opened(config, target) as (loaded, destination, checkpoints):
        pipeline = pipeline_of(checkpoints)
        with aside():
            hook = loading.load(loaded.transform, loaded.base) if loaded.transform else None
        kept = frozenset(name for name, options in loaded.target.tables.items() if keeps_history(options))
        mapping = DocumentMapping(hook, tuple(loaded.target.tables), histories=kept)
        chosen = _chosen(checkpoints, items, every=every)
        source = _open_tables(loaded, destination, checkpoints, hook, pipeline.epoch)
        no_run = NoRun(checkpoints, _wait_for_heartbeat) if is_unguarded(destination) else None
        for item in chosen:
            if no_run is not None:
                no_run.check()
            with aside(), HookLimit(loaded.hook_timeout):
                reason = _unless_busy(
                    item, checkpoints, lambda i: tried(i, mapping, destination, checkpoints, source=source)
                )
            outcomes = {"": "stored", SUPERSEDED: "superseded", OVERTAKEN: "in doubt", GONE: NO_LONGER}
            outcome = outcomes.get(reason, "still parked")
            refused += outcome in ("in doubt", "still parked")
            _tell(item.item, outcome, reason, as_json)
        refused += _tell_unread(chosen, as_json)
        if (hook.fingerprint if hook is not None else "") != pipeline_of(checkpoints).hook:
            say_aside(_OTHER_HOOK)
    ctx.exit(6 if refused else 0)


def _wait_for_heartbeat(seconds: float) -> None:
    say_aside(f"the last run did not stop cleanly; waiting {seconds:.0f} s to see whether it is up")
    time.sleep(seconds)


def _open_tables(
    config: Config, target: Target, checkpoints: Checkpoints, hook: Hook | None, epoch: int
) -> SourceItems:
    """Open the target's tables. ConfigError if the config names or defines them differently from the pipeline,
    GapFound if they are not the ones that the pipeline wrote to.

    Returns the items of the source.
    """
    from replicator.aws import boto
    from replicator.engine import preexisting
    from replicator.engine.assembly import introduce, target_tables
    from replicator.engine.startup import check_tables
    from replicator.operations.parked import is_unguarded
    from replicator.operations.scanned import SourceItems
    from replicator.pipeline.checkpoint_view import CheckpointView
    from replicator.source import sample
    from replicator.source.table import describe_table

    client = boto.connect(config.source)
    source = describe_table(client, config.source.table)
    introduce(config, target, source, client)
    tables = target_tables(config, source, hook)
    check_tables(preexisting.inspect(CheckpointView(checkpoints.read()), source, target, tables, hook))
    target.open(tables, epoch)
    keeps_expired = config.ttl_deletes == "ignore" and not is_unguarded(target)  # else a removed item could come back
    return SourceItems(partial(sample.one, client, source.requested, source.keys), keeps_expired)


@parked.command
@config_argument
@_items_argument
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
@click.pass_context
def drop(
    ctx: click.Context, config: str, target: str | None, items: Sequence[str], every: bool, yes: bool, as_json: bool
) -> None:
    """Discard parked changes.

    The target keeps what it has of these items as it is, until they change again or the next resync of the whole table
    rescans them. The cleanup at the end of a resync leaves them alone, also if it is in progress.

    Asks for confirmation unless --yes is given; without a terminal, --yes is required.
    """
    from replicator.operations.parked import GONE, void_verified
    from replicator.operations.parked import drop as given_up

    kept = 0
    with _opened(config, target) as (_, _, checkpoints):
        chosen = _chosen(checkpoints, items, every=every)
        count = len(chosen)
        if count and not yes and not _confirmed(count):
            return
        if count:
            void_verified(checkpoints)
        for item in chosen:
            reason = _unless_busy(item, checkpoints, lambda i: given_up(i, checkpoints))
            outcome = {"": "dropped", GONE: NO_LONGER}.get(reason, "still parked")
            kept += outcome == "still parked"
            _tell(item.item, outcome, reason, as_json)
        kept += _tell_unread(chosen, as_json)
    ctx.exit(6 if kept else 0)


def _confirmed(count: int) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError(f"this permanently discards the parked changes of {count} item(s); add --yes to confirm")
    return click.confirm(f"Permanently discard the parked changes of {count} item(s)?", err=True)


def _unless_busy(item: ParkedItem, checkpoints: Checkpoints, act: Callable[[ParkedItem], str]) -> str:
    """Call ``act``, again if a run changed the item meanwhile. Returns why it failed, "" if it succeeded."""
    from replicator.operations.parked import CHANGED, GONE, TRIES, ListedItems

    reason = act(item)
    for _ in range(TRIES - 1):
        if reason != CHANGED:
            break
        listed = ListedItems(checkpoints, [item.item])
        now = next(iter(listed), None)
        if now is None:
            return CHANGED if listed.unread else GONE
        reason = act(now)
    return reason


@contextmanager
def _opened(path: str, name: str | None) -> Iterator[tuple[Config, Target, Checkpoints]]:
    """The config, target and checkpoints of an existing pipeline."""
    from replicator.checkpoints.presence import check_known
    from replicator.config import settings as configs
    from replicator.engine.assembly import ends
    from replicator.engine.generations import resolved

    loaded = resolved(configs.load(path, target=name))
    with ends(loaded) as (target, checkpoints):
        check_known(loaded.pipeline, checkpoints, checkpoints.read())
        yield loaded, target, checkpoints


def _chosen(checkpoints: Checkpoints, items: Sequence[str], *, every: bool) -> ListedItems:
    """The parked items named on the command line; with ``every`` all of them, a few in memory at a time.

    ConfigError for an item that is not parked.
    """
    from replicator.operations.parked import ListedItems

    if every and items:
        raise ConfigError("name items or use --all, not both")
    if every:
        return ListedItems(checkpoints)
    if not items:
        raise ConfigError("name an item as `replicator parked list` prints it, or use --all")
    if not all(item.strip() for item in items):
        raise ConfigError("an ITEM is empty; name it as `replicator parked list` prints it, or use --all")
    names = [_key_text(item) for item in items]
    listed = ListedItems(checkpoints, names)
    for name in names:
        if name not in listed:
            raise ConfigError(f"{name} is not parked; `replicator parked list` shows what is")
    return listed


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _key_text(given: str) -> str:
    """The item in its stored form, whatever whitespace its JSON was given with, and its numbers with or without quotes.

    ConfigError for a key as ``--key`` takes it: which attribute is the partition key is not known here.
    """
    import json
    from decimal import Decimal

    import orjson

    from replicator.items.attributes import canonical_number

    try:
        key = json.loads(given, parse_float=Decimal, parse_int=Decimal)
        if isinstance(key, list):
            key = [canonical_number(str(part)) if isinstance(part, Decimal) else part for part in key]
            return orjson.dumps(key).decode()
    except (ValueError, TypeError, RecursionError):
        return given  # a hashed key
    if isinstance(key, dict):
        values = json.dumps([str(value) for value in key.values()])
        raise ConfigError(
            f"name an item as `replicator parked list` prints it: its key's values, without names, such as {values}"
        )
    return given


def _line(item: ParkedItem) -> dict[str, Any]:
    changes = sum(item.changes.values())
    return {"item": item.item, "changes": changes, "reason": item.entry.reason, "parked_at": item.entry.parked}


def _fields(item: ParkedItem, show_values: bool) -> dict[str, Any]:
    change = item.entry
    fields = {
        "id": item.id,
        "changes": sum(item.changes.values()),
        "key": list(change.key),
        "version": change.version,
        "reason": change.reason,
        "parked_at": change.parked,
        "source": change.source,
        "sequence": change.sequence,
        "traceback": change.traceback,
    }
    return fields | ({"exception_message": change.words, "old": change.old, "new": change.new} if show_values else {})


def _tell(item: str, outcome: str, reason: str, as_json: bool) -> None:
    if as_json:
        put({"item": item, "outcome": outcome, "reason": reason or None})
    else:
        say(f"{item}  {outcome}{': ' if reason else ''}{reason}")


def _tell_unread(listed: ListedItems, as_json: bool) -> int:
    """Report the items that were not parked any more when they were about to be read, and those that changed each
    time; returns how many of these."""
    from replicator.operations.parked import BUSY, GONE

    for item in sorted(listed.gone):
        _tell(item, NO_LONGER, GONE, as_json)
    for item in sorted(listed.unread):
        _tell(item, "still parked", BUSY, as_json)
    return len(listed.unread)
