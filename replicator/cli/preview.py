"""``replicator preview``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from replicator.cli.output import aside, config_argument, json_option, put_json, say, say_lines

if TYPE_CHECKING:
    from replicator.config.settings import Config
    from replicator.hooks.time_limit import HookLimit
    from replicator.operations.preview import Preview


@click.command
@config_argument
@click.option("--limit", default=5, show_default=True, type=click.IntRange(1, 1000), help="Number of items.")
@click.option("--key", help='Only the item with this key, as JSON, e.g. \'{"pk": "order#1"}\'; binary keys in base64.')
@json_option
def preview(config: str, target: str | None, limit: int, key: str | None, as_json: bool) -> None:
    """Dry-run the transform hook on live items. Writes nothing.

    Shows each item, and the writes that would result or why it would be parked. The output contains item data.
    """
    from replicator.config import settings as configs
    from replicator.hooks.time_limit import HookLimit

    loaded = configs.load(config, target=target)
    previews = _previews(loaded, limit, key)
    while (result := _next(previews, HookLimit(loaded.hook_timeout))) is not None:
        if as_json:
            put_json(result.as_json().decode())
        else:
            _print(result)


def _next(previews: Iterator[Preview], limit: HookLimit) -> Preview | None:
    with aside(), limit:
        return next(previews, None)


def _previews(config: Config, limit: int, key: str | None) -> Iterator[Preview]:
    from functools import partial

    from replicator.aws import boto
    from replicator.engine.assembly import target_tables
    from replicator.errors import ConfigError
    from replicator.hooks import loading
    from replicator.hooks.hook import DocumentMapping
    from replicator.marks import unmarked
    from replicator.operations.preview import forecast
    from replicator.operations.preview import preview as previewed
    from replicator.source import sample
    from replicator.source.decoding import KeyReader
    from replicator.source.table import describe_table
    from replicator.target.contract import marks_of

    hook = loading.load(config.transform, config.base) if config.transform else None
    client = boto.connect(config.source)
    table = describe_table(client, config.source.table)
    mapping = DocumentMapping(hook, tuple(config.target.tables))
    target = config.target.build(config.pipeline)  # does not connect
    refusals = forecast(target, target_tables(config, table, hook))
    shown = partial(unmarked, marks_of(target))
    if key is None:
        reader = KeyReader(table.keys)
        for image in filter(None, map(shown, sample.some(client, config.source.table, limit))):
            yield previewed(reader.of(image), image, mapping, refusals)
        return
    try:
        parsed = table.keys.from_json(key)
    except ValueError as e:
        raise ConfigError(f"--key: {e}") from e
    item = sample.one(client, config.source.table, table.keys, parsed)
    item = None if item is None else shown(item)
    if item is None:
        raise ConfigError(f"--key: no item {key} in {table.name}")
    yield previewed(parsed, item, mapping, refusals)


def _print(result: Preview) -> None:
    from replicator.batch import Upsert
    from replicator.key import key_text
    from replicator.operations.preview import pretty

    say(f"item {key_text(result.key)}")
    say_lines(pretty(result.before), "    ")
    if result.problem is not None:
        say(f"  would be parked: {result.problem}")
        for write in result.refused:
            if isinstance(write, Upsert) and write.body is not result.before:
                say_lines(pretty(write.body), "    ")
    elif not result.writes:
        say("  no writes")
    for write in result.writes:
        kind = "upsert" if isinstance(write, Upsert) else "delete"
        say(f"  {kind} {key_text(write.id)} in {write.table}")
        if isinstance(write, Upsert) and write.body is not result.before:
            say_lines(pretty(write.body), "    ")
    say()
