"""``replicator status``."""

from __future__ import annotations

import time

import click

from replicator.cli.output import config_argument, json_option, put


@click.command
@config_argument
@json_option
def status(config: str, as_json: bool) -> None:
    """Show how a pipeline is doing, from what it has stored.

    Needs the place where the checkpoints are kept, not the run. Phase is one of backfill, catching-up, live, gap,
    stopped. What is not known is "unknown" (null in JSON), never 0.
    """
    from replicator import config as configs
    from replicator.cli.show import as_table, as_values
    from replicator.escape import escaped
    from replicator.progress import progress
    from replicator.run import ends, promise_of

    loaded = configs.load(config)
    with ends(loaded) as (target, checkpoints):
        claimed, promise = checkpoints.read(), promise_of(target)
    found = progress(claimed.entries, claimed.counts, time.time())
    if as_json:
        put({"pipeline": loaded.pipeline, **as_values(found), "promise": promise or None})
        return
    from rich.console import Console

    Console().print(as_table(found, loaded.pipeline))
    if promise:
        Console().print(escaped(f"a weaker promise: {promise}"), style="yellow", markup=False)
