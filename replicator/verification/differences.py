"""When a difference between an item and its documents counts. Pure functions.

A difference that is seen once proves nothing: the change that explains it may still be on its way. It is a *candidate*
until every shard's changes from before that moment are stored. Then document, item and document are read again:

gone        they are equal now
again       something changed, or the item had not been read between two equal reads of the document
confirmed   lag cannot explain it

The proof: a document has version v before and after its item is read at T. Once every change from before T is stored,
it still has version v. So v is of the item's last change before T, and the document should be what the hook makes of
the item as read at T. If the item was read before the document, v could be of a change after T, and a later one be on
its way that makes the item look the same again.

Nothing vouches for a missing document, since an item that is deleted and put back leaves no trace there. So that is
looked at several times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from typing import Any, Literal

import orjson

from replicator.batch import DocumentId
from replicator.key import Key
from replicator.pipeline import stages
from replicator.pipeline.lineage import childless, readable
from replicator.pipeline.progress import CLOCK_SKEW, HEARTBEAT_TIMEOUT
from replicator.state import Heartbeat, PipelineState, ShardState

Kind = Literal["missing", "extra", "different", "rejected"]
"""``rejected``: the hook or the target refuses the item, so it has no documents to compare."""

NO_ITEM: Key = ()
"""In place of the key of a document's item: no item can have that document, so something else has written it."""

LOOKS = {"missing": 3}  # how many reads in a row must show it before it is confirmed; one by default
MOST_CHANGES = 100  # looks that found item or document changed, after which a candidate is left unconfirmed
STALLED = 120.0  # seconds without progress of a run's positions, after which candidates count as unconfirmed
MARGIN = 1.0  # seconds that a shard must be read beyond a candidate's time: clocks differ, and streams lag
_SETS = frozenset({"SS", "NS", "BS"})


@dataclass(frozen=True, slots=True)
class Finding:
    """A document that differs from what its item requires, at one moment.

    ``item``: the item's key; None if the document only has its hash, ``NO_ITEM`` if no item can have the document.
    ``version``: of the stored document. ``fields``: names whose values differ. ``reason``: why the item or the document
    is refused.
    """

    kind: Kind
    table: str
    id: DocumentId
    item: Key | None
    version: int | None = None
    fields: tuple[str, ...] = ()
    reason: str = ""

    @property
    def place(self) -> tuple[str, DocumentId]:
        return self.table, self.id

    @property
    def state(self) -> tuple[Kind, int | None]:
        """What must be the same when it is read again."""
        return self.kind, self.version


@dataclass(frozen=True, slots=True)
class Candidate:
    """A finding that lag may still explain. ``image``: the item's ``digest``. ``at``: when the item had been read.

    ``looks``: how often the same was found, with the item read between two equal reads of the document. ``origin``: the
    segment or table that is being read. ``changes``: how many looks have found the item or the document changed.
    """

    finding: Finding
    image: bytes
    at: float
    origin: str
    looks: int = 0
    changes: int = 0

    @property
    def never_rests(self) -> bool:
        """Whether it changes more often than the copy follows: waiting for a moment without changes may never end."""
        return self.changes >= MOST_CHANGES


class Verdict(Enum):
    GONE = "gone"
    AGAIN = "again"
    CONFIRMED = "confirmed"


def verdict(before: Candidate, after: Finding | None, image: bytes) -> Verdict:
    """What a second look at a candidate means. ``after``, ``image``: what the document and its item are now."""
    if after is None:
        return Verdict.GONE
    if after.state != before.finding.state or image != before.image:
        return Verdict.AGAIN
    return Verdict.CONFIRMED if before.looks >= LOOKS.get(after.kind, 1) else Verdict.AGAIN


def looked_again(before: Candidate, after: Finding, image: bytes, at: float, *, steady: bool) -> Candidate:
    """The candidate after a look that decided nothing. ``steady``: the document had that version before, too."""
    same = after.state == before.finding.state and image == before.image
    looks = 0 if not steady else before.looks + 1 if same else 1
    return Candidate(after, image, at, before.origin, looks, before.changes + (not same))


@dataclass(frozen=True, slots=True)
class Positions:
    """How far a pipeline is stored. ``through``: every change made before that time is; None if it is unknown.

    ``blocked_by``: why no difference can be confirmed at present; empty if it can. ``ahead``: seconds by which a clock
    of the run is ahead of this one at least, as its heartbeats show. ``patience``: seconds without progress after which
    candidates count as unconfirmed.
    """

    through: float | None = None
    blocked_by: str = ""
    ahead: float = 0.0
    patience: float = STALLED


NO_RUN = "no run of this pipeline is up, so a change may simply not be copied yet"


def positions(
    state: PipelineState | None,
    epoch: int,
    shards: Mapping[str, ShardState],
    heartbeat: Heartbeat | None,
    now: float,
    workers: Iterable[Heartbeat] = (),
) -> Positions:
    """The positions in ``epoch``, from the checkpoints at ``now``. ``workers``: heartbeats of those, if there are any:
    each says by a clock of its own until when it has read.
    """
    if state is None or state.epoch != epoch:
        return Positions(blocked_by="a resync has begun; verify again when it has ended")
    if not has_scanned(state):
        return Positions(blocked_by="the backfill is still in progress")
    if heartbeat is None or heartbeat.phase == "stopped" or not -CLOCK_SKEW <= now - heartbeat.at <= HEARTBEAT_TIMEOUT:
        return Positions(blocked_by=NO_RUN)
    times = [shards[id].through for id in readable(shards)] + [shards[id].since for id in childless(shards)]
    known = [time for time in times if time is not None]
    ahead = max(0.0, *(beat.at - now for beat in (heartbeat, *workers)))
    return Positions(min(known) if known and len(known) == len(times) else None, ahead=ahead)


def has_scanned(state: PipelineState) -> bool:
    """Whether the epoch's scan, and the sweep after it, have ended."""
    return state.stage in (stages.PURGING, stages.FOLLOWING)


def is_due(candidate: Candidate, through: float | None, ahead: float = 0.0) -> bool:
    """Whether every change that may explain the item's state is stored. ``ahead``: as in ``Positions``."""
    return through is not None and candidate.at + MARGIN + ahead < through


def digest(image: bytes | None) -> bytes:
    """A hash of an item's content: independent of the order of attributes, and of elements in sets."""
    if image is None:
        return b""
    content = orjson.dumps(unordered(orjson.loads(image)), option=orjson.OPT_SORT_KEYS)
    return blake2b(content, digest_size=16).digest()


def unordered(part: Any, name: str = "") -> Any:
    """A part of an image with its sets sorted: a list under one of their names is always a set."""
    if isinstance(part, dict):
        return {inner: unordered(value, inner) for inner, value in part.items()}
    if isinstance(part, list):
        return sorted(part) if name in _SETS else [unordered(value) for value in part]
    return part


def by_item(candidates: Iterable[Candidate]) -> dict[Key, list[Candidate]]:
    """Candidates of items whose keys are known."""
    items: dict[Key, list[Candidate]] = {}
    for candidate in candidates:
        if candidate.finding.item is not None:
            items.setdefault(candidate.finding.item, []).append(candidate)
    return items


CONFIDENCE = 0.95
_QUANTILE = 1.6449  # of the normal distribution, for that confidence
_MANY = 300  # from here on, the normal approximation is exact enough


def at_most(found: int, of: int) -> float:
    """The upper bound of a share, with 95 % confidence, after ``found`` of ``of`` independent samples had it."""
    if of <= 0 or found >= of:
        return 1.0
    share = found / of
    if found > _MANY:
        return min(1.0, share + _QUANTILE * math.sqrt(share * (1 - share) / of))
    low, high = share, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _at_least_as_few(found, of, middle) > 1 - CONFIDENCE:
            low = middle
        else:
            high = middle
    return high


def _at_least_as_few(found: int, of: int, share: float) -> float:
    """The probability of at most ``found`` hits in ``of`` samples, each with probability ``share``."""
    if share >= 1.0:
        return 0.0
    term = (1 - share) ** of
    if term == 0.0:
        return 0.0
    total = term
    for k in range(1, found + 1):
        term *= (of - k + 1) / k * share / (1 - share)
        total += term
    return min(1.0, total)
