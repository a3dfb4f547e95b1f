"""``replicator preview``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from replicator.cli.output import aside, config_argument, json_option, put_json, say, say_lines
from replicator.hooks import loading

if TYPE_CHECKING:
    from replicator.config.settings import Config
    from replicator.hooks.time_limit import HookLimit
    from replicator.operations.preview import Preview


@click.command
@config_argument
@click.option("--limit", default=5, show_default=True, type=click.IntRange(1, 1000), help="How many items to try.")
@click.option("--key", help='One item instead, by its key as JSON, e.g. \'{"pk": "order#1"}\'; binary keys in base64.')
@json_option
def preview(config: str, limit: int, key: str | None, as_json: bool) -> None:
    """Show what the hook makes of live items. Writes nothing.

    For each item: how it is in the table, and the writes that would follow, or why it would be parked. Prints items'
    values.
    """
    from replicator.config import settings as configs
    from replicator.hooks.time_limit import HookLimit

    loaded = configs.load(config)
    previews = _previews(loaded, limit, key)
    while (found := _next(previews, HookLimit(loaded.hook_timeout))) is not None:
        if as_json:
            put_json(found.as_json().decode())
        else:
            _tell(found)


def _next(previews: Iterator[Preview], limit: HookLimit) -> Preview | None:
    with aside(), limit:
        return next(previews, None)


def _previews(config: Config, limit: int, key: str | None) -> Iterator[Preview]:
    from replicator.aws import boto
    from replicator.engine.assembly import target_tables
    from replicator.errors import ConfigError
    from replicator.hooks.hook import DocumentMapping
    from replicator.operations.preview import forecast
    from replicator.operations.preview import preview as previewed
    from replicator.source import sample
    from replicator.source.decoding import KeyReader
    from replicator.source.table import describe_table

    hook = loading.load(config.transform, config.base) if config.transform else None
    client = boto.connect(config.source)
    table = describe_table(client, config.source.table)
    mapping = DocumentMapping(hook, tuple(config.target.tables))
    target = config.target.build(config.pipeline)  # connected to nothing
    refusals = forecast(target, target_tables(config, table, hook))
    if key is None:
        reader = KeyReader(table.keys)
        for image in sample.some(client, config.source.table, limit):
            yield previewed(reader.of(image), image, mapping, refusals)
        return
    wanted = _key(table.keys, key)
    found = sample.one(client, config.source.table, table.keys, wanted)
    if found is None:
        raise ConfigError(f"--key: there is no item {key} in {table.name}")
    yield previewed(wanted, found, mapping, refusals)


def _key(keys: Any, text: str) -> Any:
    """The key that somebody typed as JSON."""
    import base64
    import json
    from decimal import Decimal

    from replicator.errors import ConfigError

    try:
        given = json.loads(text, parse_float=Decimal)
        if not isinstance(given, dict):
            raise ValueError("a key is a JSON object, like " + json.dumps(dict.fromkeys(keys.names, "...")))
        binary = {a.name for a in keys.attributes if a.kind == "B"}
        return keys.parse({n: base64.b64decode(v, validate=True) if n in binary else v for n, v in given.items()})
    except (ValueError, TypeError) as e:
        raise ConfigError(f"--key: {e}") from e


def _tell(found: Preview) -> None:
    from replicator.batch import Upsert
    from replicator.key import key_text
    from replicator.operations.preview import pretty

    say(f"item {key_text(found.key)}")
    say_lines(pretty(found.before), "    ")
    if found.problem is not None:
        say(f"  would be parked: {found.problem}")
        for write in found.refused:
            if isinstance(write, Upsert) and write.body is not found.before:
                say_lines(pretty(write.body), "    ")
    elif not found.writes:
        say("  nothing would be stored")
    for write in found.writes:
        kind = "upsert" if isinstance(write, Upsert) else "delete"
        say(f"  {kind} {key_text(write.id)} in {write.table}")
        if isinstance(write, Upsert) and write.body is not found.before:
            say_lines(pretty(write.body), "    ")
    say()
