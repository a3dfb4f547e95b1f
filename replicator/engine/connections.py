"""Opens the source, target and checkpoints of a process that works on its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from replicator.aws.boto import connect
from replicator.config.settings import Config
from replicator.engine.assembly import assemble, ends
from replicator.engine.context import Environment, RunContext
from replicator.engine.retry import RetryPolicy
from replicator.hooks.hook import Hook
from replicator.source.table import describe_table
from replicator.target.contract import LongWaiting


def connected(
    config: Config, hook: Hook | None, environment: Environment
) -> contextlib.AbstractContextManager[RunContext]:
    """The source, target and checkpoints, until the block ends."""
    client = connect(config.source)

    @contextlib.contextmanager
    def context() -> Iterator[RunContext]:
        retrying = RetryPolicy(environment.stop, environment.waiting, environment.now, environment.random)
        table = retrying(lambda: describe_table(client, config.source.table), asks="source")
        with ends(config) as (target, checkpoints):
            if isinstance(target, LongWaiting):
                target.while_waiting(environment.measurements.working)
            yield assemble(config, client, target, checkpoints, hook, table)

    return context()
