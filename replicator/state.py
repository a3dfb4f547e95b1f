"""The durable state of a pipeline: checkpoint entries that change by compare-and-set only.

An entry is identified by (kind, id) and has a revision that increases by one with each save. The entries are the whole
state of a pipeline. For transactional targets they are stored with the rows, so that rows and positions commit
together; otherwise in a separate store.

    kind       id              value
    owner      ""              Owner: the run that may write
    owner      slot            Owner: the worker of that run that may write the slot's entries
    slot       slot            Slot: the fence of a slot, saved with every batch of its worker
    pipeline   ""              PipelineState: epoch, stream, hook, stage
    shard      shard id        ShardState
    segment    number          SegmentState
    gap        time            Gap
    parked     key@version     Parked: an item's newest refused change, with its images
    item       item            ParkedItem: which parked entry workers have for the item, so that two cannot add one each
    dropped    key@version     Dropped: documents an item may have in the target, after its parked change was discarded
    spared     item            Spared: an item that was parked during a sweep and must be swept once it no longer is
    retried    epoch           Retried: the last retry that removed a document or wrote without transactions
    request    ""              ResyncRequest: a rescan that a command requested, until a run starts it
    definition ""              Definition: the tables the pipeline is bound to, and what determines their documents
    verified   see below       Verified: passes that compared the source with the copy
    repair     ""              Repair: a command repairs documents, so deletes must leave tombstones
    rebuild    ""              Rebuild: a second generation of the tables is kept beside the first
    stripped   ""              Stripped: `strip` removes versions from the target, so no run may write to it any more
    history    epoch           HistorySpan: what the history of the target's tables knows, if they keep one
    pulse      ""              Heartbeat: the run's last heartbeat, and what `status` shows besides the positions
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from replicator.errors import ConfigError, ReplicatorError
from replicator.identity import Definition
from replicator.key import Key
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


APPLIED_WITHIN = 300.0  # seconds after which a request that was sent has been applied or never will be
SENT_WITHIN = 60.0  # seconds after which a run that was replaced, or a command behind its note, sends nothing more
LONGEST_IN_DOUBT = APPLIED_WITHIN + SENT_WITHIN  # seconds from a takeover or a note

Place = tuple[str, str]
"""A document with an id chosen by the hook: its table, and that id."""

FORMAT = 1  # of the entries' values; newer formats are refused

FENCES = ("owner", "pipeline", "slot")
"""The kinds of entries that are never removed: each batch compares one, so a late batch finds that it has moved.

An entry that is removed and created again has its first revisions again, which a batch from before may expect.
"""


@dataclass(frozen=True, slots=True)
class Owner:
    """The run that may write. A later run overwrites this entry; the earlier run's next save then fails (Fenced)."""

    run: str
    host: str
    pid: int
    started: float

    @property
    def who(self) -> str:
        """The owner, for messages."""
        since = datetime.fromtimestamp(self.started, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"process {self.pid} on {self.host}, since {since}"


@dataclass(frozen=True, slots=True)
class ExportState:
    """The export whose items an epoch copies instead of scanning. ``arn``: "" until DynamoDB has named it.

    ``at``: the time of an export that was made before the epoch, whose positions are of that time; None: the epoch
    requests one after its positions are stored. ``window``: from and until when an incremental export has changes, in
    whole minutes; None: a full one.
    """

    arn: str = ""
    at: float | None = None
    window: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Floor:
    """Documents of this ``version``, and of lower ones, show nothing that was written to the source after ``at``."""

    at: float
    version: int


@dataclass(frozen=True, slots=True)
class GapRepair:
    """An epoch that repairs a gap from incremental exports, instead of rescanning the table.

    ``since``: what was written to the source before is in the copy. ``above``: the ``Floor.version`` of that time.
    ``windows``: of the exports that come after the one that is read, newest first. ``arns``: theirs, "" for one that is
    not requested yet; none before any is. ``looking_up``: all exports are stored, and the documents with versions above
    ``above`` that no export has are looked up; ``table`` (the number of one) and ``cursor``: how far the target was
    walked for them. ``done``: nothing is left to look up.
    """

    since: float
    above: int
    windows: tuple[tuple[float, float], ...] = ()
    looking_up: bool = False
    table: int = 0
    cursor: str | None = None
    done: bool = False
    arns: tuple[str, ...] = ()

    @property
    def following(self) -> tuple[tuple[tuple[float, float], str], ...]:
        """The windows with the ARNs of their exports."""
        return tuple(zip(self.windows, self.arns or [""] * len(self.windows), strict=True))


@dataclass(frozen=True, slots=True)
class PipelineState:
    """The pipeline's epoch and what it is bound to. Times are in seconds since 1970.

    ``table_id`` distinguishes the source table from a later one of the same name. ``stage``: see ``pipeline.stages``.
    ``hook``: fingerprint of the hook's source, "" without a hook. ``mixed``: documents of an earlier hook were kept in
    this epoch. ``resync``: the target had documents when the epoch started, so a sweep follows the scan. ``items``:
    DynamoDB's item count.

    ``lingers``: how many seconds the next run's in-doubt window must stay open, in running time; 0 if only tombstones
    are left to purge, None if nothing is. During a run it is the maximum, which is what a killed run leaves.
    ``lingers_earlier``: the same for writes of earlier epochs; 0 if only a sweep is left to do. ``retried``: the
    number of notes of retries included in these two; ``retried_earlier``: how many of them are of earlier epochs
    (``pipeline.parked.Retries``).

    ``full``: if this epoch rescans chosen items only, the last one that scanned the whole table; otherwise 0.
    ``opening``: the tables may not have noted this epoch yet. ``export``: what the segments of the last complete epoch
    read; None: the table.
    ``repair``: how far this epoch has repaired a gap, if it does that. ``floors``: some, newest first, for repairs.
    ``inserted``: when a command last inserted documents at a scan's version, which no floor covers.

    ``invocations``: how many of AWS Lambda have saved this entry, with what they listed or a gap. It differs after
    each, so a run whose batch has this entry does not take that save for its own.
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
    full: int = 0
    opening: bool = False
    export: ExportState | None = None
    repair: GapRepair | None = None
    floors: tuple[Floor, ...] = ()
    inserted: float | None = None
    invocations: int = 0

    @property
    def began(self) -> float:
        """The time of the positions of this epoch: all changes since then are read."""
        at = None if self.read_export is None else self.read_export.at
        return at if at is not None else self.scan_started or self.started

    @property
    def complete(self) -> int:
        """The last epoch that scanned the whole table. What is older was not confirmed: sweeps remove it."""
        return self.full or self.epoch

    @property
    def partial(self) -> bool:
        """Whether this epoch rescans chosen items only."""
        return self.full != 0

    @property
    def read_export(self) -> ExportState | None:
        """What the segments of this epoch read; None: the table. A partial resync always reads that."""
        if self.repair is not None:
            return None if self.repair.looking_up else self.export
        return None if self.partial else self.export

    @property
    def repairing(self) -> int:
        """Gaps of earlier epochs than this one are repaired, or will be once the epoch's backfill is stored."""
        return self.complete if self.repair is None else self.epoch


@dataclass(frozen=True, slots=True)
class Slot:
    """The fence of a slot: a part of the shards and segments that one worker writes at a time.

    ``epoch``, ``stage``: of the pipeline, as the worker knows them: it has no batch of an earlier one any more.
    ``in_doubt``: seconds for which requests of the worker may still be applied, stored before any delete relies on a
    tombstone because of them. ``begun``: how often the worker's in-doubt window was opened or extended, by its own
    count. ``lingers``: as in PipelineState, of the slot's worker. ``retried``: the number of notes of retries included
    in these. ``worker``: ``Owner.run`` of the worker that stored this, before it wrote anything under its claim.

    ``until``: of a slot that rests, as one does between two invocations of AWS Lambda: when the last request that its
    workers have sent can no longer be applied, in seconds since 1970 by that worker's clock. 0.0: all have
    been answered. None: the slot has a worker, or the last one was killed, or is not one that rests.

    That of a coordinator only notes a run: ``begun`` is its revision, and ``worker`` says who follows the stream.
    """

    epoch: int
    stage: str
    in_doubt: float = 0.0
    lingers: float | None = LONGEST_IN_DOUBT
    begun: int = 0
    retried: int = 0
    worker: str = ""
    until: float | None = None

    @property
    def is_left(self) -> bool:
        """Whether requests of its workers may be in doubt, or tombstones be left because some were."""
        return self.lingers is not None or bool(self.until)


@dataclass(frozen=True, slots=True)
class ShardState:
    """How far a shard is stored. Times are in seconds since 1970.

    ``first``: its StartingSequenceNumber in the listing. ``whole``: the shard appeared during the epoch, so all its
    records are needed. Otherwise it was open when the epoch started, and is read from ``since`` on (from its first
    record if the endpoint has no AT_TIMESTAMP). ``since``: no record that is needed but not stored is older; the first
    record may predate the epoch, and those after it are needed then. ``anchor``: sequence number of the first record,
    stored before any write that uses its ordinal. ``sequence``, ``ordinal``: the position; ``created``: the time of its
    record. ``through``: every record created before that time is stored, as far as a few empty pages can tell; None if
    unknown. ``leaf``: ended, without children. ``slot``: whose worker writes the entry, "" if none does.
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
    slot: str = ""

    @property
    def position(self) -> Position:
        return Position(self.sequence, self.ordinal)


@dataclass(frozen=True, slots=True)
class SegmentState:
    """How far a scan segment is stored. ``cursor``: DynamoDB's LastEvaluatedKey as typed JSON. ``total``: segments.
    Of an export: the file that is next, and the items in the segment's files before it.

    In a partial resync: ``keys``: the items to read, instead of a segment of the table; the cursor counts them.
    ``where``: the condition on the segment's items (``source.condition``). ``slot``: as in ShardState.
    """

    total: int
    cursor: str | None = None
    ended: bool = False
    items: int = 0
    keys: tuple[Key, ...] = ()
    where: str = ""
    number: int | None = None  # of the segment, if that is not the entry's id
    slot: str = ""


@dataclass(frozen=True, slots=True)
class Gap:
    """Records that can no longer be read: why, found when, in which shard, after which position.

    ``since``: what was written to the source before is in the copy; None: unknown, or the target has lost something.
    ``by_hand``: see ``GapFound``.
    """

    reason: str
    found: float
    epoch: int
    shard: str | None = None
    sequence: str | None = None
    repaired: float | None = None
    since: float | None = None
    by_hand: bool = False


@dataclass(frozen=True, slots=True)
class Parked:
    """An item's newest change that the hook or the target refused. ``new`` and ``old`` are images in typed JSON.

    ``reason`` and ``traceback`` contain no item values. ``words``: the message of the hook's exception, which may.
    ``changes``: number of changes it stands for, by source; empty means one, from ``source``. If the hook chooses
    document ids: ``leaves``: the documents that the item may have in the target (None with one document per item);
    ``base``: an image that the target may have documents of although the current hook fails on it. ``created``: the
    time of the change in the target's history; None if it keeps none.
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
    created: float | None = None


@dataclass(frozen=True, slots=True)
class ParkedItem:
    """Which parked entry a worker has stored of the item (``id``), while there is one.

    Workers change it with the parked entry. An item's scanned image and its changes may be in two slots, and entries of
    different versions have different ids, so that neither save would find the other.
    """

    id: str


@dataclass(frozen=True, slots=True)
class Retried:
    """A command retried a parked change in a way that runs must know of: it removed a document, or wrote to a target
    without transactions, where the write may be applied late.

    One entry for each epoch of such changes; its revision increases with every note.
    """

    version: int


@dataclass(frozen=True, slots=True)
class ResyncRequest:
    """A command requested a rescan: of the items with these ``keys`` and of those that match a condition of ``where``,
    or of the whole table if there are neither.

    ``config``: digest of what it is requested for (``engine.startup.digest``); a run with another hook, definition or
    table does not carry it out. The rest is what the command's options allow, see ``engine.startup.Allowed``.
    """

    requested: float
    config: str
    keys: tuple[Key, ...] = ()
    where: tuple[str, ...] = ()
    identity_change: bool = False
    schema_changes: bool = False
    remove_expired: bool = False

    @property
    def whole(self) -> bool:
        return not self.keys and not self.where

    def joined(self, earlier: ResyncRequest | None) -> ResyncRequest:
        """This request and one that is still pending: what both ask for. One of the whole table covers all others.

        ConfigError if the pending one is meant for another config: no run would carry out both.
        """
        if earlier is None or (self.whole and not (earlier.whole and earlier.config == self.config)):
            return self
        if earlier.config != self.config:
            raise ConfigError(
                "a resync is pending that was requested with another config (another hook, definition or table): no "
                "run carries out both. Let a run with that config carry it out, or withdraw it with: "
                "replicator resync CONFIG --cancel"
            )
        if earlier.whole and not self.whole:
            return earlier
        keys, where = (*earlier.keys, *self.keys), (*earlier.where, *self.where)
        return replace(
            self,
            requested=earlier.requested,
            keys=tuple(dict.fromkeys(keys)),
            where=tuple(dict.fromkeys(where)),
            identity_change=earlier.identity_change or self.identity_change,
            schema_changes=earlier.schema_changes or self.schema_changes,
            remove_expired=earlier.remove_expired or self.remove_expired,
        )


@dataclass(frozen=True, slots=True)
class Dropped:
    """Documents that an item may have in the target after its parked change was discarded; see ``Parked``.

    A retry with a different hook also leaves one, because the pipeline's hook may not produce the same documents.
    ``discarded``: the item's key if a person discarded the change, so that sweeps leave its documents as they are.
    """

    leaves: tuple[Place, ...]
    base: str | None = None
    discarded: Key = ()


@dataclass(frozen=True, slots=True)
class Spared:
    """A sweep of this epoch spared the item's documents."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Orphan:
    """A shard that listings show without its parent. ``since``, ``last``: times of the first and the last of them.

    ``listings``: how many; 0 where the parent is listed, and an ancestor of it is not.
    """

    since: float
    last: float
    listings: int


@dataclass(frozen=True, slots=True)
class HistoryReport:
    """What the run has last seen of a table's history. ``since``: the oldest time whose state it tells; None: it tells
    none yet. ``unknown``: seconds since then whose states it does not tell. ``removed``: the time before which changes
    are removed, because they are not kept for longer; None: none are. ``bytes``: with indexes. ``lost``: which part of
    it is gone, "" if none is. Times are in seconds since 1970.
    """

    table: str
    since: float | None
    unknown: float
    removed: float | None
    bytes: int
    partitions: int
    lost: str = ""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The run's last heartbeat, with the rates it measured. ``phase``: as in `status`.

    ``who``: the run (``Owner.who``). ``listed``: time of the last stored complete listing; shards not in it are
    younger. ``filled``: after a clean stop, the target's nonempty tables. ``retried``: the number of notes of retries
    at that time; a later retry may have emptied tables. ``in_doubt``: seconds for which requests without a response
    may still be applied; None or 0 if none can be. ``repair``: the token of the ``Repair`` for which every delete
    leaves a tombstone, "" if there is none. ``restarts``: of a run's workers, by slot, and of its coordinator.
    ``unknown``: of a worker, shards that the endpoint does not know, without any loss. ``orphaned``: behind AWS Lambda,
    shards that listings show without their parent. ``orphans``: of any run, how many the last listing showed so.
    ``histories``: of the tables that keep one, as last looked at.
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
    in_doubt: float | None = None
    repair: str = ""
    restarts: Mapping[str, int] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    orphaned: Mapping[str, Orphan] = field(default_factory=dict)
    orphans: int = 0
    histories: tuple[HistoryReport, ...] = ()


FULL, SAMPLE, BY_RUN = "", "sample", "run"
"""Ids of the last passes that ended: of `verify` over the whole table and over a sample of it, and of a run's own."""

UNFINISHED: Mapping[str, str] = {FULL: "pass", SAMPLE: "sample pass", BY_RUN: "run pass"}
"""The id of such a pass while it is in progress: its end replaces the last one, and not its beginning."""


FULL_SCOPE = "full"  # the scope of a pass over the whole table


@dataclass(frozen=True, slots=True)
class Verified:
    """A pass that compared items with their documents; in progress, or interrupted, while ``ended`` is None.

    ``scope``: "full", or the share of a sample ("1 %"). ``total``: number of the scan's segments; ``segments``: those
    that are done; ``tables``: those of the target that are. ``cursors``: of those that are in progress, by
    ``segment:NUMBER`` or ``table:NAME``: what is before them is done. ``done``: share of the work. ``found``: when the
    last difference was confirmed. ``hashed``: there were documents whose ids only have a hash of their item's key.
    ``hook``: the fingerprint of the hook that said what the documents should be. ``ttl_deletes``: the config's.
    ``left``: it was interrupted, and has recorded what was done.

    ``earlier``: differences that passes had found whose entries this one replaced, the last of them at ``found`` unless
    this pass found others. Only the end of a pass over the whole table forgets them. ``seen``: ``found`` of each pass
    that was known when this one began, which tells without comparing clocks what was found before; None if unknown.
    """

    started: float
    updated: float
    epoch: int
    scope: str
    total: int
    segments: tuple[int, ...] = ()
    tables: tuple[str, ...] = ()
    items: int = 0
    documents: int = 0
    differences: int = 0
    repaired: int = 0
    parked: int = 0
    unconfirmed: int = 0
    ended: float | None = None
    hashed: bool = False
    hook: str = ""
    cursors: Mapping[str, str] = field(default_factory=dict)
    done: float = 0.0
    found: float | None = None
    ttl_deletes: str = "apply"
    left: bool = False
    earlier: int = 0
    seen: tuple[float, ...] | None = None

    @property
    def known(self) -> int:
        """The differences that it has found, and those of the passes that it replaced."""
        return self.differences + self.earlier

    @property
    def unrepaired(self) -> int:
        return self.known - self.repaired

    @property
    def last_found(self) -> float | None:
        """When the last of the known differences was confirmed, by the clock of that pass."""
        if not self.known:
            return None
        return self.updated if self.found is None else self.found

    def found_since(self, other: Verified) -> bool:
        """Whether a difference was confirmed after the ``other`` pass began."""
        found = self.last_found
        if found is None:
            return False
        return found > other.started if other.seen is None else found not in other.seen


@dataclass(frozen=True, slots=True)
class Repair:
    """A command that repairs documents. ``token`` identifies it; ``ended``: it sends nothing any more."""

    token: str
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Rebuild:
    """A rebuild is in progress: a second generation of the tables is built, by a pipeline of its own.

    ``switched``: it has the tables' names, and the first generation is kept beside it. The others are for targets whose
    alias tells that (``Aliased``). ``finishing``: the first generation is removed. ``canceled``: the second one is.
    ``config``: in the first pipeline's checkpoints, the file of the config that replaces its own, relative to that.
    """

    started: float
    switched: bool = False
    finishing: bool = False
    canceled: bool = False
    config: str = ""


@dataclass(frozen=True, slots=True)
class Stripped:
    """A command removes what replicator added to the target's items, for good. ``ended``: it found nothing more.

    ``table``: the one that it is at, behind ``cursor`` (empty: at its beginning); tables before it, by name, are done.
    ``items``, ``tombstones``: how many it has changed and removed.
    """

    started: float
    table: str = ""
    cursor: str = ""
    items: int = 0
    tombstones: int = 0
    ended: float | None = None


@dataclass(frozen=True, slots=True)
class HistorySpan:
    """An epoch of a pipeline whose tables keep a history: every change since ``began`` is in it, as far as it is read.

    ``known``: every change before that time is in it too, from earlier epochs; between the two, changes may be unknown.
    None: the history begins with this epoch. Seconds since 1970. ``tables``: those that keep one in this epoch; None:
    all.
    """

    began: float
    known: float | None = None
    tables: tuple[str, ...] | None = None


VALUES: Mapping[str, type] = {
    "stripped": Stripped,
    "rebuild": Rebuild,
    "verified": Verified,
    "repair": Repair,
    "owner": Owner,
    "pipeline": PipelineState,
    "slot": Slot,
    "shard": ShardState,
    "segment": SegmentState,
    "gap": Gap,
    "parked": Parked,
    "item": ParkedItem,
    "definition": Definition,
    "dropped": Dropped,
    "retried": Retried,
    "spared": Spared,
    "request": ResyncRequest,
    "pulse": Heartbeat,
    "history": HistorySpan,
}

T = TypeVar("T")


class DamagedCheckpoint(ReplicatorError):
    """A stored entry cannot be read. Nothing was changed or started over."""

    exit_code = 3


_DECODERS: Mapping[str, msgspec.json.Decoder[object]] = {
    kind: msgspec.json.Decoder(type) for kind, type in VALUES.items()
}
"""Built at import: msgspec crashes the process if two threads decode a type for the first time at once."""


def encode(value: object) -> str:
    return msgspec.json.encode(value).decode()


def decode(kind: str, id: str, text: str) -> object:
    """The value of an entry. DamagedCheckpoint, which names the entry, if this version cannot read it."""
    try:
        value: object = _DECODERS[kind].decode(text)
    except (msgspec.DecodeError, KeyError) as e:
        raise DamagedCheckpoint(
            f"the checkpoint entry {kind} {id!r} is damaged or from a newer replicator: {e}. Nothing was changed. "
            "Restore the checkpoints, or remove this pipeline's and start over with: replicator resync CONFIG --now"
        ) from e
    if isinstance(value, PipelineState) and value.format > FORMAT:
        raise DamagedCheckpoint(
            f"the checkpoints have format {value.format}, but this replicator reads up to {FORMAT}: use a newer one"
        )
    return value


def decode_parked(id: str, text: str) -> Parked:
    """The value of a parked entry. DamagedCheckpoint as in ``decode``."""
    value = decode("parked", id, text)
    assert isinstance(value, Parked)
    return value


def decode_pipeline(text: str) -> PipelineState:
    """The same of the pipeline's own entry."""
    value = decode("pipeline", "", text)
    assert isinstance(value, PipelineState)
    return value


def decode_request(text: str) -> ResyncRequest:
    """The value of the request entry. DamagedCheckpoint as in ``decode``."""
    value = decode("request", "", text)
    assert isinstance(value, ResyncRequest)
    return value


def decode_dropped(id: str, text: str) -> Dropped:
    """The value of a dropped entry. DamagedCheckpoint as in ``decode``."""
    value = decode("dropped", id, text)
    assert isinstance(value, Dropped)
    return value


def decode_definition(text: str) -> Definition:
    """The value of the entry of a pipeline's definition. DamagedCheckpoint as in ``decode``."""
    value = decode("definition", "", text)
    assert isinstance(value, Definition)
    return value


def decode_history(text: str) -> HistorySpan:
    """The value of an entry of an epoch's history. DamagedCheckpoint as in ``decode``."""
    value = decode("history", "", text)
    assert isinstance(value, HistorySpan)
    return value


def decode_repair(text: str) -> Repair:
    """The value of the entry of repairs. DamagedCheckpoint as in ``decode``."""
    value = decode("repair", "", text)
    assert isinstance(value, Repair)
    return value


class Entry(msgspec.Struct, frozen=True):
    """A stored entry. ``text``: its encoded value; empty for parked entries, which are read separately."""

    kind: str
    id: str
    revision: int
    text: str


class Save(msgspec.Struct, frozen=True):
    """A change of one entry: set it to ``text`` (None: remove it) if its revision is ``expected``.

    ``expected`` 0: the entry must not exist. None: unconditional (heartbeats, parked changes).
    """

    kind: str
    id: str
    expected: int | None
    text: str | None

    def __post_init__(self) -> None:
        assert self.text is not None or self.kind not in FENCES, f"{self.kind} entries are never removed"


FORGOTTEN = "shard:"
"""The source that accumulates the counts of all shards whose entries were removed, so that totals stay the same."""


def shard_of(source: str) -> str | None:
    """The shard id of a source; None if it is not a single shard."""
    return source.removeprefix(FORGOTTEN) or None if source.startswith(FORGOTTEN) else None


def forgotten(saves: Sequence[Save]) -> list[str]:
    """The sources of shards whose entries ``saves`` removes."""
    return [FORGOTTEN + save.id for save in saves if save.kind == "shard" and save.text is None and save.id]


def counted(counts: Mapping[str, Counts], known: Callable[[str], bool]) -> Mapping[str, Counts]:
    """``counts`` of a command, with those of shards that are no longer ``known`` moved to FORGOTTEN."""
    found: dict[str, Counts] = {}
    for source, more in counts.items():
        shard = shard_of(source)
        kept = source if shard is None or known(shard) else FORGOTTEN
        found[kept] = found[kept] + more if kept in found else more
    return found
