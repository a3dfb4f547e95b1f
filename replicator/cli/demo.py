"""``replicator demo``."""

from __future__ import annotations

import click


@click.command
@click.option(
    "--items", default=20_000, show_default=True, type=click.IntRange(100, 1_000_000), help="Number of items to load."
)
@click.option("--keep", is_flag=True, help="Keep both servers running afterwards, until Ctrl-C.")
@click.pass_context
def demo(ctx: click.Context, items: int, keep: bool) -> None:
    """Replicate a table on this machine while it is written to, then verify the copy.

    Starts a DynamoDB emulator and a Postgres server (no Docker, Java or AWS account needed), loads a table, runs a
    pipeline, writes and deletes items during the backfill, and finally compares both sides using boto3 and psycopg.
    Exits with 1 if they differ.
    """
    from replicator.errors import ConfigError, install

    try:
        from replicator.operations.demo import Demo
    except ImportError as e:
        raise ConfigError(f"the demo needs {e.name}, which is not installed: {install('demo')}") from e

    ctx.exit(1 if Demo(items).run(keep) else 0)
