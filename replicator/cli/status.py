"""``replicator status``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from replicator.cli.output import config_argument, json_option, put

if TYPE_CHECKING:
    from replicator.pipeline.progress import Progress


@click.command
@config_argument
@click.option(
    "--exit-code/--no-exit-code", "telling", default=True, help="Whether the exit code says how the pipeline is doing."
)
@json_option
@click.pass_context
def status(ctx: click.Context, config: str, telling: bool, as_json: bool) -> None:
    """Show how a pipeline is doing, from what it has stored.

    Needs the place where the checkpoints are kept, not the run. Phase is one of backfill, catching-up, live, gap,
    stopped. What is not known is "unknown" (null in JSON), never 0. The exit code is 0 for a run that is live or on its
    way there, 3 for a gap, 7 where no run is up or the run is waiting for something that fails, 6 if items are parked.
    """
    from replicator.checkpoints.presence import check_known
    from replicator.cli.render import as_table
    from replicator.config import settings as configs
    from replicator.engine.assembly import ends, promise_of
    from replicator.escape import escaped
    from replicator.pipeline.progress import as_values, progress

    loaded = configs.load(config)
    with ends(loaded) as (target, checkpoints):
        claimed, promise = checkpoints.read(), promise_of(target)
        check_known(loaded.pipeline, checkpoints, claimed)
    found = progress(claimed.entries, claimed.counts, time.time())
    if as_json:
        put({"pipeline": loaded.pipeline, **as_values(found), "reduced_guarantee": promise or None})
    else:
        from rich.console import Console

        Console().print(as_table(found, loaded.pipeline))
        if promise:
            Console().print(escaped(f"reduced guarantee: {promise}"), style="yellow", markup=False)
    ctx.exit(exit_code(found) if telling else 0)


def exit_code(found: Progress) -> int:
    """What a monitor learns from the exit code alone; the gravest first."""
    if found.phase == "gap":
        return 3
    if found.phase == "stopped" or found.waiting_for is not None:
        return 7
    return 6 if found.parked else 0
