"""``replicator history``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from replicator.cli.output import config_argument, json_option, note, put_json, say, say_lines
from replicator.errors import ConfigError

if TYPE_CHECKING:
    from replicator.config.settings import Config


@click.command
@config_argument
@click.option("--key", help='The item with this key, as JSON, e.g. \'{"pk": "order#1"}\'; binary keys in base64.')
@click.option("--at", metavar="TIME", help="The documents as of this time, e.g. 2026-01-31T12:00:00Z.")
@click.option("--since", metavar="TIME", help="With --key alone: only changes from this time on.")
@click.option("--until", metavar="TIME", help="With --key alone: only changes up to this time.")
@click.option("--limit", type=click.IntRange(1), help="With --key alone: only the newest changes, so many.")
@json_option
def history(
    config: str,
    target: str | None,
    key: str | None,
    at: str | None,
    since: str | None,
    until: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Show an item's changes, or the target's tables as of a time.

    For tables that keep every change (history: true, on Postgres). Needs no access to the source. --key shows the
    changes of one item, oldest first; --at the documents as they were then, of all items or the one with --key. The
    output contains item data.

    Refuses a time before the history begins or before what is kept (keep), and one at which changes may be unknown: in
    a gap, or before a resync had read everything (exit code 2).
    """
    from replicator.config import settings
    from replicator.engine.generations import resolved
    from replicator.operations import history as operation

    if key is None and at is None:
        raise ConfigError("give --key KEY for the changes of an item, or --at TIME for the tables as of then")
    if at is not None and (since, until, limit) != (None, None, None):
        raise ConfigError("--since, --until and --limit choose changes of an item: they do not go with --at")
    loaded = resolved(settings.load(config, target=target))
    operation.tables_of(loaded)
    shown = False
    for line in _lines(loaded, key, at, since, until, limit):
        shown = True
        if as_json:
            put_json(line.decode())
        else:
            _print(line)
    if key is not None and not shown:
        note("no change of this item is kept" if at is None else "this item had no document then")


def _lines(
    config: Config, key: str | None, at: str | None, since: str | None, until: str | None, limit: int | None
) -> Iterator[bytes]:
    from replicator.operations import history as operation
    from replicator.target.past import Period

    moment = operation.parsed("--at", at)
    if moment is None:
        assert key is not None
        period = Period(operation.parsed("--since", since), operation.parsed("--until", until), limit)
        if period.since is not None and period.until is not None and period.since > period.until:
            raise ConfigError("--since: must not be later than --until")
        yield from operation.changes(config, key, period)
        return
    through = operation.read_through(config)  # before the documents are: what is read meanwhile may be missing in them
    yield from operation.as_of(config, key, moment)
    if through is None or moment >= through:
        read = "not read yet" if through is None else f"read up to {operation.moment(through)}"
        note(f"the stream is {read}: later changes are not included")


def _print(line: bytes) -> None:
    import json

    values: dict[str, Any] = json.loads(line)
    key = json.dumps(values["key"])
    if "operation" in values:
        say(f"{values['at']}  {values['operation']}  {values['table']} {key}")
        say_lines(json.dumps({"old": values["old"], "new": values["new"]}, indent=2), "    ")
    else:
        say(f"{values['table']} {key}")
        say_lines(json.dumps(values["document"], indent=2), "    ")
    if "problem" in values:
        say(f"    not known: {values['problem']}")
