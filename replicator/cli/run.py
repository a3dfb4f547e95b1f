"""``replicator run`` and ``replicator resync``: move a pipeline until it is stopped."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from replicator import __version__
from replicator.cli.output import config_argument, json_option, say
from replicator.engine.stop_event import Stop
from replicator.hooks.time_limit import LEAVING

if TYPE_CHECKING:
    from replicator.config.settings import Config

log = logging.getLogger(__name__)

GRACE = 8.0  # seconds after SIGTERM that a batch under way has

_until = click.option(
    "--until",
    type=click.Choice(["caught-up"]),
    help="End when the backfill is stored, and every record that existed at the start too.",
)

_schema_changes = click.option(
    "--apply-schema-changes",
    is_flag=True,
    help="Add the columns (or fields) that the config added, and fill them by a new scan of the source.",
)


_remove_expired = click.option(
    "--remove-expired",
    is_flag=True,
    help="With ttl_deletes: ignore: a new scan of the source may remove the expired items that the target keeps.",
)


@click.command
@config_argument
@_until
@click.option(
    "--accept-hook-change", is_flag=True, help="Go on with a hook that changed; old documents stay as they are."
)
@_schema_changes
@_remove_expired
@json_option
def run(config: str, as_json: bool, **how: Any) -> None:
    """Copy the table and follow its changes, until stopped.

    Goes on where the last run was. Ctrl-C or SIGTERM finishes what is under way and ends within seconds; a second one
    ends at once, and loses nothing either. A second run of the same pipeline takes over, and the first one stops.
    """
    _move(config, as_json, resync=False, **how)


@click.command
@config_argument
@_until
@click.option(
    "--accept-identity-change",
    is_flag=True,
    help="The config names another source or target table on purpose: make the target a copy of that source.",
)
@_schema_changes
@_remove_expired
@json_option
def resync(config: str, as_json: bool, **how: Any) -> None:
    """Scan the table anew, repair the copy, then follow changes as run does.

    For after a gap, a changed hook, or a restored target. Documents that the scan does not confirm are removed at its
    end; until then everything that was there stays readable. A config that names another source table, or other tables
    of the target, than the pipeline has copied so far is refused, unless --accept-identity-change says it is meant; so
    is a pipeline that never ran. Where ttl_deletes: ignore keeps expired items, the new scan does not confirm them:
    --remove-expired says that they may go.
    """
    _move(config, as_json, resync=True, accept_hook_change=True, **how)


def _move(path: str, as_json: bool, **how: Any) -> None:
    say_first(path, as_json)
    from replicator.cli import live_view
    from replicator.config import settings
    from replicator.engine.run import run as copy

    stop = stop_on_signals()
    loaded = settings.load(path)
    with live_view.view(as_json, _title(loaded)) as observe:
        copy(loaded, stop=stop, observe=observe, **how)
        if not stop.is_set():
            log.info("caught up", extra={"pipeline": loaded.pipeline})


def _title(config: Config) -> str:
    tables = ", ".join(config.target.tables)
    return f"{config.pipeline}: DynamoDB {config.source.table} -> {config.target.type} {tables}"


def say_first(path: str, as_json: bool) -> None:
    """Something to read while the libraries load."""
    from replicator import log as logs

    if as_json:
        logs.start(logs.JsonLines())
        log.info("starting", extra={"config": path, "version": __version__, "pid": os.getpid()})
    else:
        say(f"replicator {__version__}: {path}")


def stop_on_signals() -> Stop:
    """An event that SIGTERM and SIGINT set; the second signal ends the process at once.

    If what is under way is not stored within ``GRACE`` (the target hangs), the process ends without it.
    """
    stop = Stop()
    leave: Callable[[int], None] = (
        os._exit
    )  # nothing may run after it, not even clean-up: positions are safe as they are

    asked = False

    def on_signal(number: int, _frame: object) -> None:
        nonlocal asked
        if asked:
            leave(128 + number)
        asked = True  # before anything that the next signal can interrupt
        LEAVING.after(GRACE, lambda: leave(0))
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    return stop
