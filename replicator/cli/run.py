"""``replicator run`` and ``replicator resync``: move a pipeline until it is stopped."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, Literal

import click

from replicator import __version__
from replicator.cli.output import config_argument, json_option, say

log = logging.getLogger(__name__)

GRACE = 8.0  # seconds after SIGTERM that a batch under way has

Until = Literal["caught-up"] | None

_until = click.option(
    "--until",
    type=click.Choice(["caught-up"]),
    help="End when the backfill is stored, and every record that existed at the start too.",
)


@click.command
@config_argument
@_until
@click.option(
    "--accept-hook-change", is_flag=True, help="Go on with a hook that changed; old documents stay as they are."
)
@json_option
def run(config: str, until: Until, accept_hook_change: bool, as_json: bool) -> None:
    """Copy the table and follow its changes, until stopped.

    Goes on where the last run was. Ctrl-C or SIGTERM finishes what is under way and ends within seconds; a second one
    ends at once, and loses nothing either. A second run of the same pipeline takes over, and the first one stops.
    """
    _move(config, as_json, until=until, accept_hook_change=accept_hook_change, resync=False)


@click.command
@config_argument
@_until
@json_option
def resync(config: str, until: Until, as_json: bool) -> None:
    """Scan the table anew, repair the copy, then follow changes as run does.

    For after a gap, a changed hook, or a restored target. Documents that the scan does not confirm are removed at its
    end; until then everything that was there stays readable.
    """
    _move(config, as_json, until=until, accept_hook_change=True, resync=True)


def _move(path: str, as_json: bool, **how: Any) -> None:
    say_first(path, as_json)
    from replicator import config
    from replicator.cli import live
    from replicator.run import run as copy

    stop = stop_on_signals()
    loaded = config.load(path)
    with live.view(as_json) as observe:
        copy(loaded, stop=stop, observe=observe, **how)
        if not stop.is_set():
            log.info("caught up", extra={"pipeline": loaded.pipeline})


def say_first(path: str, as_json: bool) -> None:
    """Something to read while the libraries load."""
    from replicator import log as logs

    if as_json:
        logs.start(logs.JsonLines())
        log.info("starting", extra={"config": path, "version": __version__, "pid": os.getpid()})
    else:
        say(f"replicator {__version__}: {path}")


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set; the second signal ends the process at once.

    If what is under way is not stored within ``GRACE`` (the target hangs), the process ends without it.
    """
    stop = threading.Event()
    leave: Callable[[int], None] = (
        os._exit
    )  # nothing may run after it, not even clean-up: positions are safe as they are

    def on_signal(number: int, _frame: object) -> None:
        if stop.is_set():
            leave(128 + number)
        stop.set()
        signal.setitimer(signal.ITIMER_REAL, GRACE)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    signal.signal(signal.SIGALRM, lambda _number, _frame: leave(0))
    return stop
