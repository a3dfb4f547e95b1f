"""``replicator strip``."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from replicator.cli.output import aside, config_argument, json_option, put, say, say_aside
from replicator.errors import ConfigError

if TYPE_CHECKING:
    from replicator.state import Stripped


@click.command
@config_argument
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--unchecked", is_flag=True, help="Do not look for changes of the source that were not copied.")
@json_option
@click.pass_context
def strip(ctx: click.Context, config: str, target: str | None, yes: bool, unchecked: bool, as_json: bool) -> None:
    """Remove replicator's attributes from a DynamoDB table that has been cut over, and its tombstones.

    Applications may write to the table meanwhile: an item is changed only if replicator's attributes in it are the ones
    that were read. Afterwards the pipeline never runs again, because without versions it would overwrite what others
    write. Can be stopped and repeated at any time; keeps to target.write_units. Exits with 7 if applications keep
    writing attributes back that they read earlier.

    Refuses while a run is up, requests are in doubt, items are parked, the source has changes that are not copied yet,
    or an opposite pipeline (loops) needs the attributes.
    Asks for confirmation unless --yes is given; without a terminal, --yes is required.
    """
    from replicator.config import settings
    from replicator.operations import strip as operation

    def confirmed(tables: Sequence[str]) -> bool:
        return yes or _confirmed(tables)

    def report(note: Stripped) -> None:
        if not as_json and note.ended is None and sys.stderr.isatty():
            say_aside(f"{note.items:,} items, {note.tombstones:,} tombstones")

    with aside():
        done = operation.strip(settings.load(config, target=target), confirmed, report, time.time, unchecked=unchecked)
    if done is None:
        return
    if as_json:
        put({"items": done.items, "tombstones": done.tombstones, "left": done.left})
    else:
        say(f"removed replicator's attributes from {done.items:,} items, and {done.tombstones:,} tombstones")
        if done.left:
            say("applications write the attributes back: let them not store what they read earlier, and repeat this")
    ctx.exit(7 if done.left else 0)


def _confirmed(tables: Sequence[str]) -> bool:
    what = f"remove replicator's attributes from {', '.join(tables)}, which ends this pipeline for good"
    if not sys.stdin.isatty():
        raise ConfigError(f"this would {what}; add --yes to confirm")
    return click.confirm(f"{what[0].upper()}{what[1:]}?", err=True)
