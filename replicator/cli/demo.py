"""``replicator demo``."""

from __future__ import annotations

import click


@click.command
@click.option("--items", default=20_000, show_default=True, type=click.IntRange(100, 1_000_000), help="Items to load.")
@click.option("--keep", is_flag=True, help="Keep both servers up afterwards, to look around, until Ctrl-C.")
@click.pass_context
def demo(ctx: click.Context, items: int, keep: bool) -> None:
    """See a table being copied while it is being written to.

    Starts a DynamoDB emulator and a Postgres of its own on this machine (no Docker, Java or account), loads a table,
    runs a pipeline, writes and deletes while the backfill runs, and counts the differences at the end with plain
    clients. Exit code 1 if there is one.
    """
    from replicator.errors import ConfigError

    try:
        from replicator.operations.demo import Demo
    except ImportError as e:
        raise ConfigError(f"the demo needs {e.name}, which is not installed: pip install 'replicator[demo]'") from e

    ctx.exit(1 if Demo(items).run(keep) else 0)
