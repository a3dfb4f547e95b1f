"""``replicator resync``: request a rescan of the table, or of some of its items."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

import click

from replicator.cli.output import config_argument, json_option, put, say, say_aside
from replicator.cli.run import remove_expired_option, run_until_stopped, schema_changes_option, until_option
from replicator.errors import ConfigError

if TYPE_CHECKING:
    from replicator.operations.resync import Noted


@click.command
@config_argument
@click.option("--key", "keys", multiple=True, metavar="JSON", help="Only the item with this key; may be repeated.")
@click.option(
    "--keys", "file", type=click.File(encoding="utf-8"), help="Only the items with the keys in this file, one per line."
)
@click.option(
    "--where",
    multiple=True,
    metavar="CONDITION",
    help="Only items that match, e.g. \"status = 'open' AND total > 9\".",
)
@click.option("--cancel", is_flag=True, help="Withdraw a request that no run has started yet.")
@click.option("--now", is_flag=True, help="Rescan in this process, which replaces the run, then follow changes.")
@until_option
@click.option(
    "--accept-identity-change",
    is_flag=True,
    help="The source or target table was changed on purpose: make the target a copy of this source.",
)
@schema_changes_option
@remove_expired_option
@json_option
def resync(config: str, target: str | None, as_json: bool, **given: Any) -> None:
    """Request a rescan of the table, which repairs the copy; the pipeline's run carries it out.

    Use it after a gap, a changed hook or a restored target. The request is stored in the checkpoints: a run that is up
    starts within seconds, or else the next one does, and `status` shows the request until then. A run with another
    hook, definition or table leaves it to a run with this config, so restart it after a change. The copy stays
    readable; documents that the scan does not confirm are removed when it ends.

    With --key, --keys or --where, only those items are read and written, or removed if they no longer exist; changes
    continue to arrive in the meantime. Keys are JSON objects, e.g. '{"id": "order#1"}', with binary values in base64.
    --where reads the whole table to find its items, and removes none.

    Refuses a pipeline that has never run and, unless --accept-identity-change is given, a config whose source or target
    tables differ from what the pipeline has copied so far. With ttl_deletes: ignore the target has expired items that a
    scan cannot confirm: --remove-expired allows their removal.
    """
    now, until, cancel = given.pop("now"), given.pop("until"), given.pop("cancel")
    keys, file, where = given.pop("keys"), given.pop("file"), given.pop("where")
    if not now and until is not None:
        raise ConfigError("--until: the pipeline's run carries out the request; to rescan in this process, add --now")
    if (now or cancel) and (keys or file or where):
        raise ConfigError(f"--key, --keys and --where cannot be combined with --{'now' if now else 'cancel'}")
    if now and cancel:
        raise ConfigError("--cancel cannot be combined with --now")
    if now:
        run_until_stopped(config, as_json, target=target, resync=True, accept_hook_change=True, until=until, **given)
    elif cancel:
        _cancel(config, target, as_json)
    else:
        _request(config, target, as_json, [*((f"--key {key}", key) for key in keys), *_lines(file)], where, **given)


def _lines(file: IO[str] | None) -> Iterator[tuple[str, str]]:
    """The keys in a file: where each one is, and its JSON."""
    for number, line in enumerate(file or (), 1):
        if line.strip():
            yield f"--keys {getattr(file, 'name', 'file')}, line {number}", line


def _request(
    path: str,
    name: str | None,
    as_json: bool,
    keys: list[tuple[str, str]],
    where: tuple[str, ...],
    **allowed: bool,
) -> None:
    import time

    from replicator.cli.output import aside
    from replicator.config import settings
    from replicator.engine.generations import resolved
    from replicator.operations.resync import Wanted, note

    wanted = Wanted(
        keys,
        where,
        identity_change=allowed["accept_identity_change"],
        schema_changes=allowed["apply_schema_changes"],
        remove_expired=allowed["remove_expired"],
    )
    with aside():
        noted = note(resolved(settings.load(path, target=name)), wanted, time.time)
    _tell(noted, as_json)


def _tell(noted: Noted, as_json: bool) -> None:
    request = noted.request
    if noted.caution:
        say_aside(f"{noted.caution}. To withdraw the request: replicator resync CONFIG --cancel")
    if as_json:
        what = {"whole_table": request.whole, "keys": len(request.keys), "conditions": len(request.where)}
        restart = noted.run is not None and noted.changed
        put({"requested_at": request.requested, **what, "run": noted.run, "restart_needed": restart})
        return
    from replicator.cli.render import scope

    if noted.run is None:
        who = f"no run is up: it starts with: {noted.command}"
    elif noted.changed:
        who = f"{noted.run} has another hook or definition, so restart it: the next run starts it"
    else:
        who = f"{noted.run} starts it soon"
    say(f"resync requested for {scope(request)}; {who}")


def _cancel(path: str, name: str | None, as_json: bool) -> None:
    from replicator.config import settings
    from replicator.engine.generations import resolved
    from replicator.operations.resync import cancel

    withdrawn = cancel(resolved(settings.load(path, target=name)))
    if as_json:
        put({"withdrawn": withdrawn})
    else:
        say("the request is withdrawn" if withdrawn else "no resync is requested, or a run has started it")
