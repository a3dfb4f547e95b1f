"""What every change did to every document, for tables that keep a history: nothing is compacted. Pure.

A batch has one write per document, so the changes in between are handed over beside the writes. An image on which the
hook fails, or whose document the target refuses, has no document: the history keeps the change and the reason.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from replicator.batch import DocumentId, Past
from replicator.change import Change
from replicator.hooks.hook import DocumentMapping
from replicator.key import Key, key_text
from replicator.pipeline.compaction import Documents, Refused, documents_at
from replicator.pipeline.stages import FOLLOWING, PURGING
from replicator.state import Gap, HistorySpan, PipelineState, Place, ShardState
from replicator.version import LAST_EPOCH

SCAN = "scan"


def history(
    run: Sequence[Change], mapping: DocumentMapping, began: float, refused: Mapping[Refused, str] | None = None
) -> Iterator[Past]:
    """The history of an item's changes, which are in order.

    ``began``: the time for scanned images, which have none. ``refused``: changes that the target refuses, with reasons.
    """
    known: tuple[object, tuple[Documents, str | None]] | None = None
    for change in run:
        same = known is not None and change.old is not None and bytes(known[0]) == bytes(change.old)  # type: ignore[call-overload]
        before = known[1] if same and known is not None else _documents(change.old, mapping)
        after = _documents(change.new, mapping)
        known = None if change.new is None else (change.new, after)
        reason = (refused or {}).get((change.key, change.version))
        if reason is not None:
            after = {}, reason
        yield from _past(change, mapping, before, after, began)


def _documents(image: object, mapping: DocumentMapping) -> tuple[Documents, str | None]:
    there, failed = documents_at(image, mapping)  # type: ignore[arg-type]
    return there, None if failed is None else str(failed)


def _past(
    change: Change,
    mapping: DocumentMapping,
    before: tuple[Documents, str | None],
    after: tuple[Documents, str | None],
    began: float,
) -> Iterator[Past]:
    """One entry for each document that an item has before or after the change."""
    (there, before_problem), (now, problem) = before, after
    places = _places(change, mapping, there, now, problem or before_problem)
    time = began if change.created is None else change.created
    for place in places:
        if place[0] in mapping.histories:
            old, new = there.get(place), now.get(place)
            operation = _operation(change, old, new, problem or before_problem)
            yield Past(
                place[0],
                _id(change.key, place, mapping),
                change.version,
                time,
                change.sequence or "",
                operation,
                old,
                new,
                problem,
            )


def _places(
    change: Change, mapping: DocumentMapping, before: Documents, now: Documents, problem: str | None
) -> list[Place]:
    """The documents concerned. A scan, and a failure, concern an item's only document even if it has none."""
    only = (mapping.tables[0], "")
    if not mapping.own_ids and (change.sequence is None or problem is not None):
        return [only]
    return sorted({*before, *now})


def _id(key: Key, place: Place, mapping: DocumentMapping) -> DocumentId:
    return (key_text(key), place[1]) if mapping.own_ids else key


def _operation(change: Change, old: object, new: object, problem: str | None) -> str:
    if change.sequence is None:
        return SCAN
    if change.new is None:
        return "remove"
    if problem is not None:
        return "insert" if change.old is None else "modify"
    return "insert" if old is None else "remove" if new is None else "modify"


def known_through(
    shards: Mapping[str, ShardState], childless: Collection[str], gaps: Iterable[Gap], pipeline: PipelineState | None
) -> float | None:
    """The time before which every change of the stream is stored, in seconds since 1970; None if there is none.

    ``childless``: ended shards whose children are not known yet. Where the stream went on behind a gap, the shard's
    position no longer tells where that is.
    """
    epoch = pipeline.repairing if pipeline is not None else 0
    passed = (gap for gap in gaps if gap.repaired is None and gap.epoch >= epoch and gap.shard in shards)
    if any(shards[gap.shard].sequence != gap.sequence for gap in passed if gap.shard is not None):
        return None
    times = [max(s.since, s.through or 0.0) for s in shards.values() if not s.ended]
    times += [max(shards[id].since, shards[id].created or 0.0) for id in childless]
    return min(times, default=None)


def unsettled_from(
    pipeline: PipelineState | None, shards: Mapping[str, ShardState], childless: Collection[str]
) -> float | None:
    """The time from which states are not known yet, because of the current epoch's scan; None: all that are read are.

    -inf: none of this epoch are. A scanned image is of some time during the scan: until the stream is read up to its
    end, a document may show changes that came later than others that it does not show.
    """
    if pipeline is None:
        return None
    read = _read_through(shards, childless)
    started, ended = pipeline.scan_started, pipeline.scan_ended
    scanned = pipeline.stage in (PURGING, FOLLOWING) and not pipeline.opening and started is not None
    if scanned and read >= (ended or 0.0):
        return None
    return started if pipeline.partial and started is not None and read >= started else -math.inf


def _read_through(shards: Mapping[str, ShardState], childless: Collection[str]) -> float:
    """The time before which every record is stored, of this epoch or before; inf if there is no shard to read."""
    times = [s.through or 0.0 for s in shards.values() if not s.ended]
    times += [max(shards[id].since, shards[id].created or 0.0) for id in childless]
    return min(times, default=math.inf)


def known_before(earlier: HistorySpan, through: float | None, unsettled: float | None) -> float | None:
    """The time before which all changes are known when an epoch ends; None: none are. ``earlier``: that epoch's.

    ``through``: ``known_through``. What an epoch was when it ended says nothing if its scan was not done.
    """
    if through is None or unsettled == -math.inf:
        return earlier.known
    return through if unsettled is None else min(through, unsettled)


@dataclass(frozen=True, slots=True)
class Reign:
    """The times, from ``start`` to before ``stop``, whose states an epoch tells. ``end``: the epoch that follows it."""

    epoch: int
    start: float
    stop: float = math.inf
    end: int = LAST_EPOCH + 1


def reigns(spans: Mapping[int, HistorySpan], table: str, created: int) -> list[Reign]:
    """The epochs since the history of ``table`` began, oldest first. ``created``: the epoch that created its table.

    Between two of them changes may be unknown. An epoch whose scan was never done has no time.
    """
    found: list[Reign] = []
    for epoch, span in sorted(spans.items()):
        if epoch < created or (span.tables is not None and table not in span.tables):
            found = []
        elif not found or span.known is None:
            found = [Reign(epoch, span.began)]
        else:
            found[-1] = replace(found[-1], stop=span.known, end=epoch)
            found.append(Reign(epoch, max(span.began, span.known)))
    return found


def told(
    spans: Mapping[int, HistorySpan], table: str, created: int, removed: float | None
) -> tuple[float | None, float]:
    """The oldest time whose state a history tells (None: none), and the seconds since then whose states it does not.

    ``created``: as of ``reigns``. ``removed``: the time before which changes are removed; None: none are.
    """
    found = reigns(spans, table, created)
    if not found:
        return None, 0.0
    since = max(found[0].start, removed or 0.0)
    pairs = itertools.pairwise(found)
    return since, sum(max(0.0, after.start - max(before.stop, since)) for before, after in pairs)
