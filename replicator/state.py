"""Everything durable about a pipeline, as entries that change by compare-and-set only.

An entry is found under (kind, id) and has a revision that rises by one with each save. The whole state of a pipeline is
its entries: there is no second place. A store keeps them beside the rows where the target has transactions (then rows
and positions commit together), otherwise in a place of its own.

    kind       id              value
    owner      ""              Owner: which run may write
    pipeline   ""              PipelineState: epoch, stream, hook, stage
    shard      shard id        ShardState
    segment    number          SegmentState
    gap        when it was     Gap
    parked     key@version     Parked: the newest change of an item that was refused, with its image (the key as text)
    dropped    key@version     Dropped: what an item may have left in the target when its parked changes were dropped
    spared     item            Spared: an item that was parked while a sweep passed, and has to be swept once it is not
    retried    epoch           Retried: what of it a command last retried and removed, or sent without a transaction
    definition ""              Definition: which tables the copy is bound to, and what decides its documents
    pulse      ""              Pulse: the run's sign of life, and what `status` shows beside the positions
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from replicator.errors import ReplicatorError
from replicator.identity import Definition
from replicator.version import Position


class Counts(msgspec.Struct, frozen=True):
    """What became of the changes of one source: read = applied + superseded + filtered + parked, always.

    ``superseded``: the target had a newer version. ``filtered``: the change left nothing to store (the hook returned
    None, an ignored expiry, a discarded parked change). A change that a later one of its item in the same batch
    overrides counts as that one does. Checkpoint stores keep the order of the fields, under the older names "stale" and
    "dropped".
    """

    read: int = 0
    applied: int = 0
    superseded: int = 0
    filtered: int = 0
    parked: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.read + other.read,
            self.applied + other.applied,
            self.superseded + other.superseded,
            self.filtered + other.filtered,
            self.parked + other.parked,
        )


LONGEST_IN_DOUBT = 300.0  # seconds after which a request that was given up has been carried out, or never will be

Place = tuple[str, str]
"""A document of an item, with an id of its own: its table, and that id."""

FORMAT = 1  # of the entries' values; a newer one is refused, an older one is read


@dataclass(frozen=True, slots=True)
class Owner:
    """The run that may write. A later run overwrites this entry; the earlier one's next save is then refused."""

    run: str
    host: str
    pid: int
    started: float

    @property
    def who(self) -> str:
        """For people."""
        since = datetime.fromtimestamp(self.started, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"process {self.pid} on {self.host}, since {since}"


@dataclass(frozen=True, slots=True)
class PipelineState:
    """What the copy is made of.

    ``lingers``: for how many seconds of running time a request that an earlier run sent may still be carried out as the
    next run begins; 0 where only tombstones are left of that time, None where nothing is. While a run is at work it is
    the longest there can be, so that a run that is killed leaves that behind. ``lingers_earlier``: the same of requests
    of earlier epochs, as the last run found it that did not stop in good order; 0 where only a sweep is left to do,
    None where that is done. ``retried``: how many notes of retries this takes into account; ``retried_earlier``: how
    many of them are of earlier epochs (see ``Retries``).
    ``stage``: scanning, sweeping, purging, following (see backfill). ``hook``: fingerprint of the hook's source, empty
    without one; ``mixed``: documents of an earlier hook were kept in this epoch. ``table_id`` tells a table from a
    later one of the same name. Times in seconds since 1970.
    """

    epoch: int
    stream_arn: str
    table_arn: str
    table_id: str
    stage: str
    hook: str = ""
    resync: bool = False
    started: float = 0.0
    scan_started: float | None = None
    scan_ended: float | None = None
    items: int | None = None
    mixed: bool = False
    lingers: float | None = LONGEST_IN_DOUBT
    lingers_earlier: float | None = LONGEST_IN_DOUBT
    retried: int = 0
    retried_earlier: int = 0
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class ShardState:
    """How far a shard is stored.

    ``first``: the StartingSequenceNumber it was listed with. ``whole``: the shard appeared later, so all its records
    are needed; else it was open when the epoch began and is read from ``since`` on (or from its first record where the
    endpoint has no AT_TIMESTAMP). ``since``: nothing that is needed in it, and not stored, is older than this time; a
    first record may be older than the epoch, and those after it are needed then.
    ``anchor``: the sequence of its first record, stored before any write that uses its ordinal. ``sequence`` and
    ``ordinal``: the position, ``created`` the time of its record. ``through``: every record created before that time
    is stored, as far as a few empty pages can tell; None when unknown. ``leaf``: it ended, and has no children.
    """

    parent: str | None
    first: str | None
    whole: bool
    since: float
    anchor: str | None = None
    sequence: str | None = None
    ordinal: int = 0
    created: float | None = None
    ended: bool = False
    through: float | None = None
    leaf: bool = False

    @property
    def position(self) -> Position:
        return Position(self.sequence, self.ordinal)


@dataclass(frozen=True, slots=True)
class SegmentState:
    """How far a scan segment is stored: ``cursor`` is DynamoDB's LastEvaluatedKey, typed JSON as text."""

    total: int
    cursor: str | None = None
    ended: bool = False
    items: int = 0


@dataclass(frozen=True, slots=True)
class Gap:
    """Records that can no longer be read: where, after which position, since when, and why."""

    reason: str
    found: float
    epoch: int
    shard: str | None = None
    sequence: str | None = None
    repaired: float | None = None


@dataclass(frozen=True, slots=True)
class Parked:
    """An item's newest change that a hook or the target refused. ``new`` and ``old`` are images in typed JSON.

    ``reason`` and ``traceback`` quote no value. ``words`` is what the hook's error said, which may. ``changes``: how
    many changes it stands for, by source; empty for one of its own ``source``. For documents of their own ids,
    ``leaves``: those that the item may have in the target, by table and id (None: the item has one document); ``base``:
    an image that the target may have documents of, though the hook fails on it by now.
    """

    key: tuple[str, ...]
    version: int
    reason: str
    parked: float
    new: str | None = None
    old: str | None = None
    traceback: str = ""
    source: str = ""
    sequence: str | None = None
    words: str = ""
    changes: Mapping[str, int] = field(default_factory=dict)
    leaves: tuple[Place, ...] | None = None
    base: str | None = None


@dataclass(frozen=True, slots=True)
class Retried:
    """A command beside the runs wrote a parked change to the target: removed a document, or sent it where it may arrive
    late, for want of transactions.

    One entry for each epoch of such changes; its revision rises with every note, so that runs know what was sent since.
    """

    version: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """What an item may have left in the target when a person gave its parked changes up; see ``Parked``.

    A retry with another hook than the pipeline's leaves one, too: the pipeline's hook may not know those documents.
    """

    leaves: tuple[Place, ...]
    base: str | None = None


@dataclass(frozen=True, slots=True)
class Spared:
    """A sweep of this epoch left the documents of the item alone."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The run's last sign of life and the rates it saw. ``phase`` as `status` shows it.

    ``who``: whose it is (``Owner.who``).
    ``listed``: when the last complete listing of shards was stored; shards that it did not show are younger.
    ``filled``: of a run that stopped, the target's tables that held something then, after the first ``retried`` notes
    of retries; what a later one tells of may have emptied them.
    """

    at: float
    phase: str
    rate: float | None = None
    backfill_rate: float | None = None
    waiting_for: str | None = None
    listed: float | None = None
    who: str = ""
    filled: tuple[str, ...] = ()
    retried: int = 0


VALUES: Mapping[str, type] = {
    "owner": Owner,
    "pipeline": PipelineState,
    "shard": ShardState,
    "segment": SegmentState,
    "gap": Gap,
    "parked": Parked,
    "definition": Definition,
    "dropped": Dropped,
    "retried": Retried,
    "spared": Spared,
    "pulse": Heartbeat,
}

T = TypeVar("T")


class DamagedCheckpoint(ReplicatorError):
    """A stored entry cannot be read; nothing was started afresh in its place."""

    exit_code = 3


def encode(value: object) -> str:
    return msgspec.json.encode(value).decode()


def decode(kind: str, id: str, text: str) -> object:
    """The value of an entry; DamagedCheckpoint says which one if it is not what this version can read."""
    try:
        value: object = msgspec.json.decode(text, type=VALUES[kind])
    except (msgspec.DecodeError, KeyError) as e:
        raise DamagedCheckpoint(
            f"the checkpoint entry {kind} {id!r} is damaged or of a newer replicator: {e}. Nothing was changed. "
            "Restore the checkpoints, or start the copy over with: replicator resync"
        ) from e
    if isinstance(value, PipelineState) and value.format > FORMAT:
        raise DamagedCheckpoint(
            f"the checkpoints are of format {value.format}, this replicator reads up to {FORMAT}: use the newer one"
        )
    return value


def decode_parked(id: str, text: str) -> Parked:
    """The value of a parked entry; DamagedCheckpoint as for any other."""
    value = decode("parked", id, text)
    assert isinstance(value, Parked)
    return value


def decode_pipeline(text: str) -> PipelineState:
    """The same of the pipeline's own entry."""
    value = decode("pipeline", "", text)
    assert isinstance(value, PipelineState)
    return value


def decode_dropped(id: str, text: str) -> Dropped:
    """The same of an entry that dropping left."""
    value = decode("dropped", id, text)
    assert isinstance(value, Dropped)
    return value


class Entry(msgspec.Struct, frozen=True):
    """A stored entry. ``text`` is its encoded value; parked entries are listed without it (empty)."""

    kind: str
    id: str
    revision: int
    text: str


class Save(msgspec.Struct, frozen=True):
    """One entry's change: put ``text`` (None: remove it) if its revision is ``expected``.

    ``expected`` 0: there must be no such entry. None: whatever is there (signs of life, parked changes).
    """

    kind: str
    id: str
    expected: int | None
    text: str | None


FORGOTTEN = "shard:"
"""The source under which the counts of all shards are kept whose entries were removed, so that the sums stay."""


def shard_of(source: str) -> str | None:
    """The shard that a source of counts is; None for what is none, or no single one."""
    return source.removeprefix(FORGOTTEN) or None if source.startswith(FORGOTTEN) else None


def forgotten(saves: Sequence[Save]) -> list[str]:
    """The sources whose shards a save forgets."""
    return [FORGOTTEN + save.id for save in saves if save.kind == "shard" and save.text is None and save.id]


def counted(counts: Mapping[str, Counts], known: Callable[[str], bool]) -> Mapping[str, Counts]:
    """``counts`` of a command with those of shards that are not ``known`` any more where the shards' own have gone."""
    found: dict[str, Counts] = {}
    for source, more in counts.items():
        shard = shard_of(source)
        kept = source if shard is None or known(shard) else FORGOTTEN
        found[kept] = found[kept] + more if kept in found else more
    return found
