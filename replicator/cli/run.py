"""``replicator run`` and ``replicator resync``: run a pipeline until stopped."""

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
from replicator.hooks.time_limit import EXIT_DEADLINE

if TYPE_CHECKING:
    from replicator.config.settings import Config

log = logging.getLogger(__name__)

GRACE = 8.0  # seconds that writes in flight get to finish after SIGTERM

_until = click.option(
    "--until",
    type=click.Choice(["caught-up"]),
    help="Exit once the backfill and all records that existed at the start are stored.",
)

_schema_changes = click.option(
    "--apply-schema-changes",
    is_flag=True,
    help="Add columns (or fields) that are new in the config, and rescan the table to fill them.",
)


_remove_expired = click.option(
    "--remove-expired",
    is_flag=True,
    help="With ttl_deletes: ignore: allow a rescan to remove expired items that the target has kept.",
)


@click.command
@config_argument
@_until
@click.option(
    "--accept-hook-change", is_flag=True, help="Continue with a changed hook; existing documents stay as they are."
)
@_schema_changes
@_remove_expired
@json_option
def run(config: str, as_json: bool, **how: Any) -> None:
    """Copy the table and follow its changes until stopped.

    Resumes where the last run stopped. Ctrl-C or SIGTERM finishes the writes in flight and exits within seconds; a
    second signal exits at once and loses nothing either. A second run of the same pipeline takes over, and the first
    one stops.
    """
    _run(config, as_json, resync=False, **how)


@click.command
@config_argument
@_until
@click.option(
    "--accept-identity-change",
    is_flag=True,
    help="The source or target table was changed on purpose: make the target a copy of this source.",
)
@_schema_changes
@_remove_expired
@json_option
def resync(config: str, as_json: bool, **how: Any) -> None:
    """Rescan the table to repair the copy, then follow changes as run does.

    Use it after a gap, a changed hook or a restored target. The copy stays readable; documents that the scan does not
    confirm are removed when it ends. Refuses a pipeline that has never run and, unless --accept-identity-change is
    given, a config whose source or target tables differ from what the pipeline has copied so far. With ttl_deletes:
    ignore the target has expired items that a scan cannot confirm: --remove-expired allows their removal.
    """
    _run(config, as_json, resync=True, accept_hook_change=True, **how)


def _run(path: str, as_json: bool, **how: Any) -> None:
    say_first(path, as_json)
    from replicator.cli import live_view
    from replicator.config import settings
    from replicator.engine.run import run as run_pipeline

    stop = stop_on_signals()
    loaded = settings.load(path)
    with live_view.view(as_json, _title(loaded)) as observe:
        run_pipeline(loaded, stop=stop, observe=observe, **how)
        if not stop.is_set():
            log.info("caught up", extra={"pipeline": loaded.pipeline})


def _title(config: Config) -> str:
    tables = ", ".join(config.target.tables)
    return f"{config.pipeline}: DynamoDB {config.source.table} -> {config.target.type} {tables}"


def say_first(path: str, as_json: bool) -> None:
    """Print something while the libraries load."""
    from replicator import log as logs

    if as_json:
        logs.start(logs.JsonLines())
        log.info("starting", extra={"config": path, "version": __version__, "pid": os.getpid()})
    else:
        say(f"replicator {__version__}: {path}")


def stop_on_signals() -> Stop:
    """An event that SIGTERM and SIGINT set; the second signal exits at once.

    If the writes in flight are not stored within ``GRACE`` (the target hangs), the process exits without them.
    """
    stop = Stop()
    leave: Callable[[int], None] = os._exit  # without any cleanup: the stored positions are valid at all times
    signaled = False

    def on_signal(number: int, _frame: object) -> None:
        nonlocal signaled
        if signaled:
            leave(128 + number)
        signaled = True  # first: the next signal can arrive anywhere below
        EXIT_DEADLINE.set(GRACE, lambda: leave(0))
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    return stop
