"""What the history of a target's tables says: an item's changes, and the tables as of a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from replicator.checkpoints.contract import Checkpoints
from replicator.config.settings import Config
from replicator.engine.assembly import ends
from replicator.errors import ConfigError
from replicator.pipeline import lineage
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.pipeline.past import known_through
from replicator.state import HistorySpan
from replicator.target.contract import UNKNOWN_KEYS, Table, keeps_history
from replicator.target.past import Change, Extent, KeepsHistory, Period, State
from replicator.version import LAST_EPOCH


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the source: by ``spans`` of epochs, and ``through`` a time. Seconds since 1970; None: nothing.

    ``gap``: why what came after that is not known, although the stream may be read on.
    """

    spans: Mapping[int, HistorySpan]
    through: float | None
    gap: str | None = None


def known(checkpoints: Checkpoints) -> Known:
    """What the checkpoints say of the history."""
    view = CheckpointView(checkpoints.read())
    pipeline, epoch = view.pipeline, 0 if view.pipeline is None else view.pipeline.complete
    gaps = [gap for gap in view.gaps.values() if gap.repaired is None and gap.epoch >= epoch]
    through = known_through(view.shards, lineage.childless(view.shards), gaps, pipeline)
    spans = {int(id): span for id, span in view.histories.items()}
    return Known(spans, through, gaps[0].reason if gaps else None)


def epochs(known: Known, extent: Extent, at: float) -> tuple[int, int]:
    """The epoch that had begun last at that time, and the first one since. ConfigError if the state then is unknown."""
    later = [epoch for epoch, span in known.spans.items() if epoch >= extent.created and span.began > at]
    spans = {epoch: span for epoch, span in known.spans.items() if epoch >= extent.created}
    begun = [epoch for epoch, span in spans.items() if span.began <= at]
    restarts = [span.began for epoch, span in spans.items() if span.known is None or epoch == extent.created]
    begins = max(restarts, default=None)
    if begins is None:
        raise ConfigError("the history has not begun yet: it begins with the first run's scan")
    if not begun or at < begins:
        raise ConfigError(f"--at: the history begins at {moment(begins)}")
    if extent.since is not None and at < extent.since:
        raise ConfigError(f"--at: changes before {moment(extent.since)} have been removed (history: keep)")
    for epoch in later:
        span = spans[epoch]
        if span.known is not None and at >= span.known:
            raise ConfigError(
                f"--at: changes from {moment(span.known)} to {moment(span.began)} may be unknown: a new epoch began "
                "then, with a scan, before all earlier changes were read (a gap, or a resync). Choose a time before or "
                "after that"
            )
    if known.gap is not None and (known.through is None or at >= known.through):
        since = "an unknown time" if known.through is None else moment(known.through)
        raise ConfigError(f"--at: changes since {since} are lost: {known.gap}. replicator resync repairs the copy")
    return max(begun), min(later, default=LAST_EPOCH + 1)


def moment(seconds: float) -> str:
    """A time for messages."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def parsed(option: str, text: str | None) -> float | None:
    """Seconds since 1970 of an option's time. ConfigError if it is none."""
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        time = datetime.fromisoformat(text)
        if time.utcoffset() is not None:
            return time.timestamp()
    raise ConfigError(f"{option}: must be a time with an offset, such as 2026-01-31T12:00:00Z")


def tables_of(config: Config) -> Sequence[Table]:
    """The tables with a history. ConfigError if there is none."""
    tables = config.target.wanted(UNKNOWN_KEYS, own_ids=False)
    kept = [table for table in tables if keeps_history(table.options)]
    if not kept:
        raise ConfigError(
            "target.tables: no table keeps a history. To keep every change from now on, set history: true under a "
            "table of a postgres target (docs/history.md)"
        )
    return kept


def changes(config: Config, key: str, period: Period) -> Iterator[bytes]:
    """The changes of an item, a JSON line each."""
    with ends(config) as (target, _):
        assert isinstance(target, KeepsHistory)
        for table in tables_of(config):
            _extent(target, table)
            with _key_errors():
                for change in target.history_changes(table, key, period):
                    yield _change(table, change)


def as_of(config: Config, key: str | None, at: float) -> Iterator[bytes]:
    """The documents as of a time, a JSON line each."""
    with ends(config) as (target, checkpoints):
        assert isinstance(target, KeepsHistory)
        knows = known(checkpoints)
        for table in tables_of(config):
            current = epochs(knows, _extent(target, table), at)
            with _key_errors():
                for state in target.history_as_of(table, key, at, current):
                    yield _state(table, state)


def read_through(config: Config) -> float | None:
    """The time up to which the stream is read; None if that is unknown."""
    with ends(config) as (_, checkpoints):
        return known(checkpoints).through


def _extent(target: KeepsHistory, table: Table) -> Extent:
    extent = target.history_extent(table)
    if extent is None:
        raise ConfigError(f"the history of {table.name} does not exist yet: the first run creates it")
    return extent


@contextlib.contextmanager
def _key_errors() -> Iterator[None]:
    try:
        yield
    except ValueError as e:
        raise ConfigError(f"--key: {e}") from e


def _change(table: Table, change: Change) -> bytes:
    fields: dict[str, Any] = {
        "table": table.name,
        "key": change.key,
        "version": change.version,
        "at": change.at,
        "operation": change.operation,
        "old": _document(change.old),
        "new": _document(change.new),
    }
    return orjson.dumps({**fields, **_problem(change.problem)})


def _state(table: Table, state: State) -> bytes:
    fields: dict[str, Any] = {"table": table.name, "key": state.key, "document": _document(state.document)}
    return orjson.dumps({**fields, "version": state.version, **_problem(state.problem)})


def _document(text: str | None) -> orjson.Fragment | None:
    return None if text is None else orjson.Fragment(text)


def _problem(problem: str | None) -> dict[str, str]:
    return {} if problem is None else {"problem": problem}
