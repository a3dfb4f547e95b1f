"""``replicator status``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from replicator.cli.output import configs_argument, json_option, note, put
from replicator.log import TARGET, with_target

if TYPE_CHECKING:
    from replicator.operations.status import Reading

_UNLIMITED = 10_000  # characters of a line, where no terminal cuts it off


@click.command
@configs_argument
@click.option(
    "--exit-code/--no-exit-code",
    "report_health",
    default=True,
    help="Whether the exit code reports the pipeline's health.",
)
@json_option
@click.pass_context
def status(ctx: click.Context, configs: Sequence[str], target: str | None, report_health: bool, as_json: bool) -> None:
    """Show the progress of pipelines, read from their checkpoints.

    Works whether or not a pipeline is running. The phase is backfill, catching-up, live, gap or stopped. Unknown
    values are shown as "unknown" (null in JSON), never as 0. Exits with 0 if the pipeline is live or catching up, 3
    after a gap, 7 if it is stopped or blocked by a failure, 6 if items are parked. With several configs, prints one
    line for each, and exits with the most severe code; during a rebuild likewise one for each copy.
    """
    from replicator.engine.several import worst
    from replicator.operations.status import read_each

    readings = [reading for config in configs for reading in read_each(config, time.time(), target)]
    if len(readings) > 1:
        _put_each(readings) if as_json else _print_each(readings)
        codes = [reading.exit_code for reading in readings]
        unread = [reading.exit_code for reading in readings if reading.values is None]
        ctx.exit(worst(codes if report_health else unread))
    (reading,) = readings
    if reading.values is None:
        assert reading.error is not None
        raise reading.error
    _put_one(reading) if as_json else _print_one(reading)
    ctx.exit(reading.exit_code if report_health else 0)


def _put_one(reading: Reading) -> None:
    put(reading.values)
    _note_source(reading)


def _put_each(readings: Sequence[Reading]) -> None:
    """One object for each config; without a phase if nothing is known."""
    for reading in readings:
        TARGET.set(reading.target)
        values = reading.values or {"pipeline": reading.pipeline, "phase": None}
        which: dict[str, object] = {} if reading.target is None else {"target": reading.target}
        which |= {} if reading.live is None else {"live_copy": reading.live}
        put(
            {
                "config": reading.config,
                **which,
                **values,
                "problems": with_target([*reading.problems]),
                "exit_code": reading.exit_code,
            }
        )


def _print_one(reading: Reading) -> None:
    from rich.console import Console

    from replicator.cli.render import as_table, overview
    from replicator.escape import escaped

    console = Console()
    if reading.progress is not None:
        console.print(as_table(reading.progress, reading.pipeline or ""))
    else:
        console.print(overview([reading]))
    if reading.reduced_guarantee:
        console.print(escaped(f"reduced guarantee: {reading.reduced_guarantee}"), style="yellow", markup=False)
    _note_source(reading)


def _print_each(readings: Sequence[Reading]) -> None:
    from rich.console import Console

    from replicator.cli.render import overview

    console = Console()
    if console.is_terminal:
        console.print(overview(readings))
    else:
        Console(width=_UNLIMITED).print(overview(readings, whole=True))


def _note_source(reading: Reading) -> None:
    """Say if these are not the stored values."""
    if reading.error is not None:
        note(f"the checkpoints cannot be read ({reading.problems[0]}); this is what the run itself reports")
