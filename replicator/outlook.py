"""How a run would begin now: decided as the run itself decides it, from the same facts, and nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence

from replicator import existing
from replicator.checkpoints import Checkpoints
from replicator.config import Config
from replicator.errors import GapFound
from replicator.fetching import end_of_stream
from replicator.ledger import Ledger
from replicator.parked_watch import check_parked
from replicator.parking import known
from replicator.source import SourceTable
from replicator.start import Allowed, Course, course, fresh
from replicator.target import Table, Target
from replicator.transform import Hook


def outlook(
    config: Config,
    target: Target,
    checkpoints: Checkpoints,
    source: SourceTable,
    tables: Sequence[Table],
    hook: Hook | None,
) -> str:
    """What a run would do first, in a sentence. ConfigError or GapFound where it would end instead."""
    found = existing.found(Ledger(checkpoints.read()), source, target, tables, hook)
    parked = known(checkpoints)
    try:
        how = course(found, Allowed())
        if how is Course.RESUME and not source.streaming:
            raise end_of_stream(source, source)
    except GapFound as e:
        if config.on_gap != "resync":
            raise
        return f"run will rescan the table, as on_gap says: {e.reason}"
    check_parked(parked, config.parked_limit)
    if how is Course.RESUME:
        assert found.state is not None
        return f"run will resume where the last one stopped (epoch {found.state.epoch})"
    if source.stream_arn is not None:
        fresh(found, enabled=config.backfill.enabled, now=0.0)  # epochs may have run out
    return f"run will begin {'with a backfill' if config.backfill.enabled else 'with the changes from now on'}"
