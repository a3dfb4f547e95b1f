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
    "--exit-code/--no-exit-code",
    "report_health",
    default=True,
    help="Whether the exit code reports the pipeline's health.",
)
@json_option
@click.pass_context
def status(ctx: click.Context, config: str, report_health: bool, as_json: bool) -> None:
    """Show a pipeline's progress, read from its checkpoints.

    Works whether or not the pipeline is running. The phase is backfill, catching-up, live, gap or stopped. Unknown
    values are shown as "unknown" (null in JSON), never as 0. Exits with 0 if the pipeline is live or catching up, 3
    after a gap, 7 if it is stopped or blocked by a failure, 6 if items are parked.
    """
    from replicator.checkpoints.presence import check_known
    from replicator.cli.render import as_table
    from replicator.config import settings as configs
    from replicator.engine.assembly import ends, reduced_guarantee
    from replicator.escape import escaped
    from replicator.pipeline.progress import as_values, progress

    loaded = configs.load(config)
    with ends(loaded) as (target, checkpoints):
        claimed, reduced = checkpoints.read(), reduced_guarantee(target)
        check_known(loaded.pipeline, checkpoints, claimed)
    current = progress(claimed.entries, claimed.counts, time.time())
    if as_json:
        put({"pipeline": loaded.pipeline, **as_values(current), "reduced_guarantee": reduced or None})
    else:
        from rich.console import Console

        Console().print(as_table(current, loaded.pipeline))
        if reduced:
            Console().print(escaped(f"reduced guarantee: {reduced}"), style="yellow", markup=False)
    ctx.exit(exit_code(current) if report_health else 0)


def exit_code(progress: Progress) -> int:
    """The pipeline's health for monitors; the most severe condition decides."""
    if progress.phase == "gap":
        return 3
    if progress.phase == "stopped" or progress.waiting_for is not None:
        return 7
    return 6 if progress.parked else 0
