"""What the history of a target's tables says: an item's changes, and the tables as of a time."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import orjson

from replicator.checkpoints.contract import Claimed
from replicator.config.settings import Config
from replicator.engine.assembly import ends
from replicator.errors import ConfigError
from replicator.pipeline import lineage
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.pipeline.past import Reign, known_before, known_through, reigns, unsettled_from
from replicator.state import HistorySpan
from replicator.target.contract import UNKNOWN_KEYS, Continued, Table, keeps_history
from replicator.target.past import Change, Extent, KeepsHistory, Period, State

MARGIN = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the source: by ``spans`` of epochs, and ``through`` a time. Seconds since 1970; None: nothing.

    ``gap``: why what came after that is not known, although the stream may be read on. ``unsettled``: the time from
    which the last epoch does not tell the state yet, because of its scan (``pipeline.past.unsettled_from``).
    """

    spans: Mapping[int, HistorySpan]
    through: float | None
    gap: str | None = None
    unsettled: float | None = None


def known(stored: Claimed) -> Known:
    """What the checkpoints say of the history."""
    view = CheckpointView(stored)
    pipeline, epoch = view.pipeline, 0 if view.pipeline is None else view.pipeline.repairing
    gaps = [gap for gap in view.gaps.values() if gap.repaired is None and gap.epoch >= epoch]
    childless = lineage.childless(view.shards)
    through = known_through(view.shards, childless, gaps, pipeline)
    unsettled = unsettled_from(pipeline, view.shards, childless)
    return Known(view.histories_by_epoch, through, gaps[0].reason if gaps else None, unsettled)


def continued(old: Claimed, new: Claimed, tables: Mapping[str, int]) -> Continued | None:
    """How the history of a rebuilt copy continues that of the old one; None if there is none.

    ``tables``: for each with a history, the epoch from which on that of the new copy is whole. From a minute after it
    tells the state, only its own changes count; up to a minute before, the old copy tells it, as far as it was read. By
    the clocks of DynamoDB and of the run, the scan may have begun somewhat earlier or later.
    """
    before, after = known(old), CheckpointView(new)
    last_of_old = max(before.spans, default=0)
    firsts = [
        min(found, key=lambda reign: (reign.epoch <= last_of_old, reign.epoch))
        for table, whole in sorted(tables.items())
        if (found := reigns(after.histories_by_epoch, table, whole))
    ]
    if not firsts:
        return None
    first = max(firsts, key=lambda reign: reign.epoch)
    since, began = first.start - MARGIN, first.start + (MARGIN if before.spans else 0.0)
    earlier = before.spans.get(last_of_old)
    last = None if earlier is None else known_before(earlier, before.through, before.unsettled)
    spans = [
        after.put("history", str(epoch), _following(span, began if epoch == first.epoch else span.began, last, since))[
            0
        ]
        for epoch, span in after.histories_by_epoch.items()
        if epoch == first.epoch or (epoch > first.epoch and span.known is None)
    ]
    rescanned = first.epoch > min(after.histories_by_epoch)
    return Continued(first.epoch, rescanned, began, since, spans)


def _following(span: HistorySpan, began: float, last: float | None, since: float) -> HistorySpan:
    return replace(span, began=began, known=None if last is None else min(last, since))


def whole_since(target: object, tables: Sequence[Table]) -> dict[str, int]:
    """For each table with a history, the epoch from which on no change is missing from it."""
    if not isinstance(target, KeepsHistory):
        return {}
    kept = [(table, target.history_extent(table)) for table in tables if keeps_history(table.options)]
    return {table.name: 0 if extent is None else extent.created for table, extent in kept}


def epochs(known: Known, table: str, extent: Extent, at: float) -> tuple[int, int]:
    """The epoch that tells the state at that time, and the next one. ConfigError if the state then is unknown."""
    found = reigns(known.spans, table, extent.created)
    if not found:
        raise ConfigError("the history has not begun yet: it begins with the first run's scan")
    if at < found[0].start:
        raise ConfigError(f"--at: the history begins at {first(found[0].start)}")
    if extent.since is not None and at < extent.since:
        raise ConfigError(f"--at: changes before {first(extent.since)} have been removed (history: keep)")
    reign = next((one for one in reversed(found) if one.start <= at < one.stop), None)
    if reign is None:
        before, after = next(pair for pair in itertools.pairwise(found) if pair[0].stop <= at < pair[1].start)
        raise ConfigError(
            f"--at: changes from {moment(before.stop)} to {first(after.start)} may be unknown: a new epoch began "
            "then, with a scan, before all earlier changes were read (a gap, or a resync). Choose a time before or "
            "after that"
        )
    if reign is found[-1]:
        _check_read(known, reign, at)
    return reign.epoch, reign.end


def _check_read(known: Known, last: Reign, at: float) -> None:
    """ConfigError if the last epoch does not tell the state at that time, or not yet."""
    if known.unsettled is not None and at >= known.unsettled:
        since = moment(max(last.start, known.unsettled))
        raise ConfigError(
            f"--at: times from {since} on are not known yet: the scan that began then is not done, or the stream is "
            "not read up to its end. Choose an earlier time, or wait until the run has caught up"
        )
    if known.gap is not None and (known.through is None or at >= known.through):
        since = "an unknown time" if known.through is None else moment(known.through)
        raise ConfigError(
            f"--at: changes since {since} are lost: {known.gap}. To repair the copy: replicator resync CONFIG"
        )


def moment(seconds: float) -> str:
    """A time for messages."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def first(seconds: float) -> str:
    """The first time of whole seconds that is not before this one, for messages: who asks for it is not refused."""
    return moment(math.ceil(seconds))


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
        knows, tables = known(checkpoints.read()), tables_of(config)
        if lost := target.history_losses(tables, max(knows.spans, default=0), scanned=False):
            raise ConfigError(*lost)
        for table in tables:
            current = epochs(knows, table.name, _extent(target, table), at)
            with _key_errors():
                for state in target.history_as_of(table, key, at, current):
                    yield _state(table, state)


def read_through(config: Config) -> float | None:
    """The time up to which the stream is read; None if that is unknown."""
    with ends(config) as (_, checkpoints):
        return known(checkpoints.read()).through


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
        "sequence": change.sequence or None,
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
