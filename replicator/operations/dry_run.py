"""Tells how a run would start now, by the run's own decisions and from the same facts, without changing anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from replicator.checkpoints.contract import Checkpoints
from replicator.config.engine import Lambda, Ray
from replicator.config.settings import Config
from replicator.engine import preexisting
from replicator.engine.fetcher import end_of_stream
from replicator.engine.gap_repair import explained, obstacle
from replicator.engine.parked_limits import check_parked
from replicator.engine.startup import Allowed, StartMode, check_single_process, new_epoch, start_mode, with_request
from replicator.errors import GapFound
from replicator.hooks.hook import Hook
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.pipeline.parked import ParkedItems, known
from replicator.pipeline.stages import SCANNING
from replicator.source.table import SourceTable
from replicator.state import PipelineState
from replicator.target.contract import Table, Target


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a run would do first, in one sentence.

    ``reads``: whether it would read the export that ``backfill.export`` names, of a new epoch or of the one it resumes.
    ``last_gap``: when the last gap was found that a new epoch must repair; ``finds_gap``: one is found now.
    """

    text: str
    begins: bool = False
    reads: bool = True
    last_gap: float | None = None
    finds_gap: bool = False


def outlook(
    config: Config,
    target: Target,
    checkpoints: Checkpoints,
    source: SourceTable,
    tables: Sequence[Table],
    hook: Hook | None,
) -> Outlook:
    """What a run would do first. Raises the ConfigError or GapFound that would end it."""
    view = CheckpointView(checkpoints.read())
    existing = preexisting.inspect(view, source, target, tables, hook)
    parked = known(checkpoints)
    try:
        how = start_mode(existing, with_request(Allowed(sweep=config.ttl_deletes == "apply"), view.request, existing))
        if how is StartMode.RESUME and not source.streaming:
            raise end_of_stream(source, source)
    except GapFound as e:
        if config.on_gap == "stop" or e.by_hand:
            raise
        if config.on_gap == "export":
            if why := obstacle(existing):
                raise explained(e, why) from e
            preexisting.check_new_epoch(target, tables)
            text = f"run will repair a gap from exports, if point-in-time recovery goes back far enough: {e.reason}"
            return Outlook(text, reads=False)
        preexisting.check_new_epoch(target, tables)
        text = f"run will rescan the table (on_gap: resync): {e.reason}"
        return Outlook(text, begins=True, last_gap=view.last_gap, finds_gap=not view.has_gap(e))
    if how is StartMode.RESUME:
        assert existing.state is not None
        _check_resuming(config, parked, existing.state)
        text = f"run will resume where the last one stopped (epoch {existing.state.epoch})"
        return Outlook(text, reads=existing.state.stage == SCANNING and existing.state.export is not None)
    if existing.has_documents and not existing.additions:
        preexisting.check_new_epoch(target, tables, view.request)
    if source.stream_arn is not None:
        new_epoch(existing, enabled=config.backfill.enabled, now=0.0)  # raises if no epoch is left
    if existing.has_documents:
        return Outlook("run will rescan the table: a resync is requested", begins=True, last_gap=view.last_gap)
    text = f"run will start with {'a backfill' if config.backfill.enabled else 'changes from now on'}"
    return Outlook(text, begins=True, last_gap=view.last_gap)


def _check_resuming(config: Config, parked: ParkedItems, state: PipelineState) -> None:
    """ConfigError if a run would not resume: too much is parked, or its engine could not go on."""
    check_parked(parked, config.parked_limit, state)
    if isinstance(config.engine, Ray | Lambda):
        check_single_process(state)
