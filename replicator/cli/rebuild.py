"""``replicator rebuild``: build a second copy beside the live one, and switch to it at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from replicator.cli.cutover import Duration
from replicator.cli.output import aside, config_argument, json_option, note, put, say
from replicator.log import with_target

if TYPE_CHECKING:
    from replicator.operations.rebuild_checks import Outcome


_ENDED = "no rebuild is in progress"


@click.group
def rebuild() -> None:
    """Build a second copy beside the live one after a change of the hook, the columns or the mapping, and switch to it
    at once.

    CONFIG is the new config; its replaces: names the one that the pipeline has run with. A run with CONFIG keeps both
    copies up to date. Readers see the old copy until the switch, and the complete new one from then on.
    """


@rebuild.command
@config_argument
@click.option("--wait", is_flag=True, help="Wait until a run has built the new copy.")
@json_option
def start(config: str, target: str | None, wait: bool, as_json: bool) -> None:
    """Note the new copy. A run with CONFIG builds it: restart the run with this config."""
    from replicator.config import settings
    from replicator.operations import rebuild as operation

    loaded = settings.load(config, target=target)
    with aside():
        outcome = operation.start(loaded)
    what = "already started" if outcome.already else "started"
    if as_json:
        put({"rebuild": what, "notes": list(outcome.notes)})
    else:
        for text in outcome.notes:
            say(f"note: {text}")
        say(f"rebuild {what}; a run with this config builds the new copy: replicator run CONFIG")
    if wait:
        operation.await_built(loaded, note)


@rebuild.command
@config_argument
@click.option(
    "--verified-within", default="24h", show_default=True, type=Duration(), help="Maximum age of the verify pass."
)
@click.option("--unverified", is_flag=True, help="Switch without a verify pass of the new copy.")
@json_option
@click.pass_context
def switch(
    ctx: click.Context, config: str, target: str | None, verified_within: float, unverified: bool, as_json: bool
) -> None:
    """Show readers the new copy, in one step. Both are kept up to date, for a rollback.

    Postgres: the new tables get the names, in one transaction. Search engines: the aliases move, in one request.

    Refuses unless a run is up and live, nothing is lost or parked, and a verify pass of the new copy found no
    difference. Exits with 0, or by the first reason: 3 gap, 6 the copy is not equal, 7 not live or not verified.
    """
    from replicator.config import settings
    from replicator.operations import rebuild as operation

    outcome = operation.switch(
        settings.load(config, target=target), verified_within=verified_within, unverified=unverified
    )
    _report(ctx, outcome, "switched: readers see the new copy", as_json)


@rebuild.command
@config_argument
@click.option("--unchecked", is_flag=True, help="Even if the old copy is behind, or no run is up.")
@json_option
@click.pass_context
def rollback(ctx: click.Context, config: str, target: str | None, unchecked: bool, as_json: bool) -> None:
    """Show readers the old copy again, which was kept up to date, in one step."""
    from replicator.config import settings
    from replicator.operations import rebuild as operation

    outcome = operation.rollback(settings.load(config, target=target), unchecked=unchecked)
    _report(ctx, outcome, "rolled back: readers see the old copy", as_json)


@rebuild.command
@config_argument
@json_option
@click.pass_context
def finish(ctx: click.Context, config: str, target: str | None, as_json: bool) -> None:
    """Remove the old copy after the switch. After that, there is no rollback."""
    from replicator.config import settings
    from replicator.operations import rebuild as operation

    outcome = operation.finish(settings.load(config, target=target))
    _report(ctx, outcome, "finished: the old copy is removed", as_json, already=_ENDED)


@rebuild.command
@config_argument
@json_option
@click.pass_context
def cancel(ctx: click.Context, config: str, target: str | None, as_json: bool) -> None:
    """Abandon the rebuild: remove the new copy, which is not live."""
    from replicator.config import settings
    from replicator.operations import rebuild as operation

    outcome = operation.cancel(settings.load(config, target=target))
    _report(ctx, outcome, "canceled: the new copy is removed", as_json, already=_ENDED)


def _report(
    ctx: click.Context, outcome: Outcome, done: str, as_json: bool, *, already: str = "that is the case already"
) -> None:
    reasons = [reason.text for reason in outcome.reasons]
    if as_json:
        said = {"done": not reasons, "already": outcome.already, "reasons": reasons, "notes": list(outcome.notes)}
        put(with_target(said))
    elif reasons:
        say("no:")
        for text in reasons:
            say(f"  {text}")
    else:
        say(f"nothing to do: {already}" if outcome.already else done)
    for text in outcome.notes if not as_json else ():
        say(f"note: {text}")
    ctx.exit(outcome.reasons[0].code if outcome.reasons else 0)
