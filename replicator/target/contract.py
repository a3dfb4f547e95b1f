"""The target contract, which the tests in ``replicator.testing`` check for every target."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from replicator.aws.client import Client
from replicator.aws.permissions import Needed
from replicator.batch import Batch, BatchSize, DocumentId, Outcome, Rejection, Write
from replicator.checkpoints.contract import Checkpoints
from replicator.errors import TransientError
from replicator.identity import Change, Identity, Parts
from replicator.key import KeyAttribute, KeySchema
from replicator.marks import Marks
from replicator.source.table import SourceTable
from replicator.state import Save
from replicator.target.in_doubt import InDoubtWindow
from replicator.target.observed import Field, Proposal

NO_STATEMENT = "nothing, but note"  # begins what a plan says about a table that exists


class Generation(Enum):
    """Which of the two copies that a rebuild keeps; ``ONLY`` if there is one. For messages: each has other remedies."""

    ONLY, OLD, NEW = "only", "old", "new"


@dataclass(frozen=True, slots=True)
class Table:
    """One table (or index) of a target.

    ``keys``: the parts of a document's id: the item's key attributes, or ``_item`` and ``_id`` (both text) if the hook
    chooses document ids. ``options``: from the config; interpreted by the connector. ``stored_as``: its name in the
    destination, if that differs, as it does during a rebuild; only for targets that are ``Rebuilding``. ``beside``: the
    same table of the other generation, during a rebuild of targets that are ``Aliased``. ``generation``: which one this
    is.
    """

    name: str
    keys: KeySchema
    options: Mapping[str, Any] = field(default_factory=dict)
    stored_as: str = ""
    beside: Table | None = None
    generation: Generation = Generation.ONLY


def marking(tables: Sequence[Table]) -> frozenset[str]:
    """The tables that mark documents instead of removing them."""
    return frozenset(table.name for table in tables if table.options.get("deletes") == "mark")


def with_history(tables: Sequence[Table]) -> frozenset[str]:
    """The tables that keep every change."""
    return frozenset(table.name for table in tables if keeps_history(table.options))


def keeps_history(options: Mapping[str, Any]) -> bool:
    """Whether a table with these options keeps every change."""
    return options.get("history") is not None


def history_days(options: Mapping[str, Any]) -> int | None:
    """For how many days a table that keeps every change keeps it; None: for good."""
    keep = (options.get("history") or {}).get("keep")
    return None if keep is None else int(str(keep).removesuffix("d"))


class Target(Protocol):
    """A destination for documents. Used by one thread at a time.

    Its connector builds it from the config's target section, without connecting.
    """

    def check(self, tables: Sequence[Table]) -> Sequence[str]:
        """Connect and return every problem the user must solve, one sentence each. Changes nothing.

        TransientError if the target cannot be reached.
        """

    def plan(self, tables: Sequence[Table]) -> Sequence[str]:
        """The statements that ``open`` would execute to create missing tables, ready to be pasted.

        What begins with ``NO_STATEMENT`` is a note about a table that exists.
        """

    def epoch(self, tables: Sequence[Table]) -> int | None:
        """The highest epoch that wrote to the tables, 0 if none did, None if a table does not exist.

        No version in the tables may be of a later epoch, even if rows were copied there without an epoch note, as far
        as the target can tell. ConfigError if another pipeline writes to one of them, if the target can tell.
        """

    def open(self, tables: Sequence[Table], epoch: int) -> None:
        """Create missing tables and note ``epoch`` with all. ConfigError lists every mismatch of existing tables."""

    def write(self, batch: Batch) -> Outcome:
        """Store every write whose version is newer than the target's; durable on return. Idempotent.

        With ``replaces_same``, also store writes of the same version; a target in which a refused batch leaves nothing
        may ignore this. Document ids are distinct, so any order will do. If a write is refused permanently, nothing of
        the batch counts as stored. TransientError if the result is unknown; the same call follows. GapFound if the
        target has lost what was stored before: nothing more is written until a rescan has opened it again.
        """

    def sweep(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
        """Remove some documents with a version lower than ``below``; return how many, 0 if none is left.

        A target whose search takes long may return 1 before it has found any, to be called again.

        Leaves tombstones of version ``below``. Keeps documents whose id begins with one of ``spare``. SweepRefused if
        the target refuses to delete the remaining documents; all others are removed then.
        """

    def purge(self, table: Table, below: int, spare: Sequence[DocumentId] = ()) -> int:
        """Remove some tombstones with a version lower than ``below``; return how many, 0 if none is left.

        Keeps those with an id in ``spare``: their items are parked, possibly as scanned before they were deleted, and a
        retry must not restore them. If tombstones are removed by version alone, also keeps those whose id begins with
        one of ``spare``: a retry may replace a tombstone by a document of the same version.
        """

    def close(self) -> None:
        """Release all resources. May be called twice, and after a failed ``check`` or ``open``."""


@runtime_checkable
class Transactional(Protocol):
    """A target whose ``write`` commits the batch's checkpoint entries and rows in one transaction.

    After a lost response the same batch comes again. If this run already saved exactly its entries, the batch is
    stored: ``write`` changes and counts nothing and returns an empty Outcome, rather than raising Fenced.

    If it is ``Pipelined``, heartbeats (entries of the kind ``pulse`` without an expected revision) may be saved between
    ``send`` and ``collect``, once ``ready`` is true: a slow hook may be at work on the next batch then.
    """

    @property
    def checkpoints(self) -> Checkpoints: ...


@runtime_checkable
class LongWaiting(Protocol):
    """A target that waits for one request as long as its server works on that, which may be hours."""

    def while_waiting(self, working: Callable[[], None]) -> None:
        """From now on, call ``working`` whenever the server is known to be at work: at least every four minutes of it.

        Otherwise a worker or coordinator of several counts as hanging after five minutes, and is replaced.
        """


class Denied(str):
    """A problem that a permission would solve; ``check`` then exits with the code of NotPermitted."""

    __slots__ = ()


@runtime_checkable
class AppliesLate(Protocol):
    """A target without transactions, which may still apply a request after its response was given up.

    It opens the ``in_doubt`` window whenever a response is lost. While the window is open, every delete leaves a
    tombstone, regardless of the batch. The engine opens it if an earlier run may have been killed, and purges once it
    has closed.

    A batch that takes long is not sent to its end: after ``TRUSTED`` seconds (``is_late``) no more requests are
    started, and ``write`` (``collect``) raises Unfinished when those in flight are answered. The same batch follows. So
    a run that was replaced during a batch stops soon, before the next run has purged its tombstones.

    A ``purge`` removes only tombstones that an earlier call found, each only if it is unchanged. The run confirms its
    ownership before each call. So it never removes a tombstone that a later run needs for its own in-doubt writes,
    even if this run was suspended for hours during a call.
    """

    @property
    def in_doubt(self) -> InDoubtWindow: ...


@runtime_checkable
class ReducedGuarantee(Protocol):
    """A target whose guarantee may be reduced, depending on its options."""

    @property
    def reduced_guarantee(self) -> str:
        """What an option gives up, in a sentence or two for users; empty if the guarantee is the full one."""


@runtime_checkable
class Unguarded(Protocol):
    """A target that may compare no versions as it writes, under some option: then the last write wins."""

    @property
    def unguarded(self) -> bool: ...


@runtime_checkable
class EpochBlind(Protocol):
    """A target that may be unable to say which epochs wrote to its tables, under some option.

    Then ``epoch`` returns 0, and a run goes by the checkpoints alone.
    """

    @property
    def knows_epochs(self) -> bool: ...


@runtime_checkable
class Looping(Protocol):
    """A target that may be the source of an opposite pipeline, which writes to the source of this one."""

    @property
    def marks(self) -> Marks | None:
        """The attributes that both pipelines add to items; None if there is no opposite pipeline."""


@runtime_checkable
class ComparingSettings(Protocol):
    """A target whose tables have settings like the source's, which should be equal before a table moves there."""

    def differing_settings(self, tables: Sequence[Table]) -> Sequence[str]:
        """A line for each setting that differs from the source's, or cannot be compared. Called after ``mirror``."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a table that was stripped: where the next one starts (None: nowhere), and what was changed in it."""

    after: str | None
    items: int
    tombstones: int


@runtime_checkable
class Strippable(Protocol):
    """A target that can remove what replicator added to a table's documents, once other writers own the table."""

    @property
    def unstrippable(self) -> str:
        """Why not, in a sentence; empty if it can."""

    @property
    def attributes(self) -> Marks:
        """The names of what it removes, also without an opposite pipeline at present."""

    def strip(self, table: Table, after: str) -> Page:
        """Strip the page of ``table`` behind ``after`` (empty: the first): each document whose version is unchanged.

        If that takes long, the page ends where it began: the same call follows, once ownership is confirmed.
        """


_CAUTION = (
    "With loops: true a resync overwrites what applications wrote to the target and the opposite pipeline has not "
    "copied back, and leaves items that only applications wrote there (verify names them, resync --key removes them). "
    "Stop writers in the target first, and let the opposite pipeline catch up"
)


def caution_of(target: object) -> str:
    """What to mind before a resync of this target; empty if nothing."""
    return "" if marks_of(target) is None else _CAUTION


def marks_of(target: object) -> Marks | None:
    """The marks of a target that loops."""
    return target.marks if isinstance(target, Looping) else None


@runtime_checkable
class Forecasting(Protocol):
    """A target that can predict which documents it would refuse, for ``preview`` and ``check``."""

    def refusals(self, tables: Sequence[Table], writes: Sequence[Write]) -> Sequence[Rejection]:
        """The ``writes`` that the config and the limits of the target's type rule out.

        Contacts no server, so constraints and triggers at the destination are not considered. ConfigError lists what
        is wrong with the tables themselves, as far as that can be told; their keys may be ``UNKNOWN_KEYS``.
        """


@runtime_checkable
class Inferring(Protocol):
    """A target that can propose the options of a table from sampled documents, for ``replicator infer``."""

    @staticmethod
    def infer(table: Table, fields: Sequence[Field]) -> Proposal:
        """Options under which documents like the sampled ones are stored. ``fields``: what those contain."""


@runtime_checkable
class Mirroring(Protocol):
    """A target that needs to know its source, for instance to create tables like it."""

    def mirror(self, source: SourceTable, client: Client, *, keep_expired: bool = False) -> None:
        """Called once, before anything else. ``client`` reads the source's account; do not use it yet.

        ``keep_expired``: items that expire in the source must be kept in the target.
        """


@runtime_checkable
class CallsAws(Protocol):
    """A target that calls AWS, for ``replicator policy``."""

    @staticmethod
    def permissions(options: Any, tables: Sequence[Table], *, keep_expired: bool) -> Sequence[Needed]:
        """What a target with these ``Options`` needs to keep ``tables``, in its own account and (place ``source``) in
        that of the source.

        ``keep_expired``: see ``Mirroring``. The tables' keys may be ``UNKNOWN_KEYS``. The access of a need in the
        source's account is ignored.
        """


@runtime_checkable
class Identifying(Protocol):
    """A target that can identify its tables: where they are, and whether they were recreated.

    Tables of other targets are identified by name alone.
    """

    def identities(self, tables: Sequence[Table]) -> Mapping[str, Identity]:
        """Each table's identity, by name; only the place for a missing table. Changes nothing."""


@runtime_checkable
class Adopting(Protocol):
    """A target that can turn a table which something else filled into a copy, under some option."""

    def adopted(self, tables: Sequence[Table]) -> Sequence[str]:
        """The names of tables whose rows no pipeline wrote, and that the config says to take over.

        Their versions are below those of every epoch: the first scan replaces them, and a sweep removes the others.
        """


@runtime_checkable
class Inspectable(Protocol):
    """A target that can cheaply tell whether a table is empty.

    For other targets, a table that was emptied by hand between two runs goes unnoticed.
    """

    def empty(self, tables: Sequence[Table]) -> Sequence[str]:
        """The names of existing tables that are empty, including of tombstones stored in them."""


@runtime_checkable
class EpochChecking(Protocol):
    """A target that refuses a new epoch in tables in which it would continue the current one."""

    def epoch_problems(self, tables: Sequence[Table]) -> Sequence[str]:
        """What ``open`` would refuse for a new epoch, one sentence each. Changes nothing."""


@runtime_checkable
class Rechecking(Protocol):
    """A target whose tables others can alter so that rows are lost or kept although our writes succeed."""

    def recheck(self, tables: Sequence[Table]) -> Sequence[str]:
        """What ``open`` would now refuse for that reason, one sentence each. Must be cheap; changes nothing.

        Called about once a minute during a run, with no batch in flight.
        """


@runtime_checkable
class Gathering(Protocol):
    """A target for which a batch costs much, however small: it gets fewer and larger ones."""

    @property
    def batch_size(self) -> BatchSize: ...


def batch_size_of(target: object) -> BatchSize | None:
    """How large its batches should be; None: the usual size, and as soon as there is anything."""
    return target.batch_size if isinstance(target, Gathering) else None


@runtime_checkable
class Defining(Protocol):
    """A target that knows which options determine its documents, and what can be added to a table with rows.

    For other targets, every change of a table's options requires a resync.
    """

    def parts(self, table: Table) -> Parts:
        """What determines the documents of ``table``, independent of the config's notation. No value is empty.

        Does not connect.
        """

    def additions(self, tables: Sequence[Table], changes: Sequence[Change]) -> Sequence[str] | None:
        """The statements that add what ``changes`` added to the tables; None if a change requires a resync."""

    def extend(self, tables: Sequence[Table], changes: Sequence[Change]) -> None:
        """Execute the additions. Idempotent."""


@runtime_checkable
class RefusingChanges(Protocol):
    """A Defining target that finds what it stored by its own options: some changes would hide earlier documents."""

    def refused_changes(self, tables: Sequence[Table], changes: Sequence[Change]) -> Sequence[str]:
        """Why the tables' documents cannot be brought to the changed definition, even by a resync; a sentence each."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """What exchanges two generations of tables.

    ``live``: the tables under their own names, as they are before. ``away``: what is appended to their names then;
    ``here``: what is appended to the names of the tables that take their place. ``pipelines``: of both generations,
    whose runs must stop. ``save``: the entry, of the first of them, that notes it.
    """

    live: Sequence[Table]
    away: str
    here: str
    pipelines: tuple[str, str]
    save: Save


@dataclass(frozen=True, slots=True)
class Continued:
    """How the history of a rebuilt copy continues that of the old one.

    ``epoch``: the first one whose scan tells the state and that is later than those of the old copy. ``rescanned``: the
    new copy had epochs before it. ``began``: shortly after its scan began: from then on, only what the new copy has
    counts. ``since``: shortly before; between the two, either copy may have changes that the other lacks. Both in
    seconds since 1970. ``spans``: entries of the new pipeline to change.
    """

    epoch: int
    rescanned: bool
    began: float
    since: float
    spans: Sequence[Save]


class TablesBusy(TransientError):
    """Readers hold the tables, so they were not exchanged or removed. Trying again may help."""


SECOND = "@new"
"""Appended to a pipeline's name: the pipeline of its second generation, which ends with the rebuild."""


@runtime_checkable
class Rebuilding(Protocol):
    """A target that can keep two generations of its tables and exchange them in one step, unnoticed by readers.

    It is built for the first pipeline, whose tables are live when the rebuild starts. Each method is one transaction,
    with the entry ``save`` of that pipeline; Fenced if that entry is not as expected.
    """

    def rebuild_problems(
        self, live: Sequence[Table], new: Sequence[Table], retired: Sequence[Table] = ()
    ) -> Sequence[str]:
        """Why ``new`` cannot be built beside ``live``, or could not take its place. Changes nothing. ``retired``: the
        live tables under the names that they will get in the exchange.
        """

    def prepare(self, live: Sequence[Table], new: Sequence[Table], pipeline: str, save: Save) -> Sequence[str]:
        """Create the tables ``new`` for ``pipeline``; returns what of the live ones they lack, a sentence each."""

    def exchange(self, exchange: Exchange) -> None:
        """Give the live tables' names to the other generation, and fence off both runs.

        ConfigError if something that depends on the live tables would not survive; TablesBusy while readers hold them.
        """

    def discard(self, tables: Sequence[Table], pipeline: str, save: Save) -> None:
        """Remove tables that ``pipeline`` wrote, and all that is stored of it. ConfigError if they are not its own;
        TablesBusy while readers hold them.
        """

    def succeed(
        self,
        retired: Sequence[Table],
        live: Sequence[Table],
        pipeline: str,
        save: Save,
        continued: Continued | None = None,
    ) -> None:
        """Remove the ``retired`` tables of the first pipeline and all that is stored of it; ``pipeline``, which wrote
        the ``live`` ones, takes its name. ``continued``: how their history continues that of the first, if they keep
        one. TablesBusy while readers hold what is removed.
        """


@runtime_checkable
class Aliased(Protocol):
    """A target whose readers use a name that one request moves from one generation of tables to another: an alias.

    Both generations are written all the time, each by a pipeline of its own, and neither is disturbed by the move. What
    the alias points to is the only record of which one is live. ``pipelines``: of the two sequences of tables.
    """

    def seen(self, tables: Sequence[Table]) -> Collection[str]:
        """The names of those ``tables`` that readers see, and nothing else with them."""

    def rebuild_problems(
        self, live: Sequence[Table], new: Sequence[Table], pipelines: tuple[str, str]
    ) -> Sequence[str]:
        """Why ``new`` cannot be built beside ``live``, or the aliases could not be moved to it. Changes nothing."""

    def carried(self, live: Sequence[Table]) -> Sequence[str]:
        """Aliases of others over the ``live`` tables, which move, too."""

    def point(self, away: Sequence[Table], here: Sequence[Table], pipelines: tuple[str, str]) -> bool:
        """Move all aliases from the tables ``away`` to those ``here``, in one step. False if they were there already.

        ConfigError names what cannot be moved; nothing is changed then. TransientError if the result is unknown.
        """

    def drop_problems(self, tables: Sequence[Table], pipeline: str) -> Sequence[str]:
        """Why the tables cannot be removed: another pipeline wrote them, they were replaced, or they are in use."""

    def drop(self, tables: Sequence[Table], pipeline: str) -> None:
        """Remove those of the tables that exist. ConfigError with ``drop_problems``, and nothing is removed then."""


def can_rebuild(connector: object) -> bool:
    """Whether the targets of a connector can keep two copies, as far as that can be told before one is made."""
    return not isinstance(connector, type) or issubclass(connector, (Rebuilding, Aliased))


def without_rebuild(kind: str, tables: Sequence[str]) -> str:
    """Why there is no rebuild for a type of target, and what to do instead."""
    names = ", ".join(f"{name} and {name}-2" for name in tables)
    if kind == "dynamodb":
        return (
            f"a DynamoDB table cannot be renamed, so applications must change the name that they read ({names}). Use a "
            "second config with another pipeline: and the new tables, run both, and verify the new one; when no "
            "application reads the old table any more, stop its run"
        )
    other = "another prefix for each table" if kind == "redis" else "other tables"
    return (
        f"there is no rebuild for the target type {kind}. Use a second config with another pipeline: and "
        f"{other} ({names}), run both, verify the new one, and let readers change to it; or rebuild in place: "
        "replicator resync CONFIG"
    )


@runtime_checkable
class LimitsSweeps(Protocol):
    """A target whose server goes on with a piece of cleanup though the client is gone, unless it is told.

    That is a sweep, a purge, or the removal of the oldest part of a history.
    """

    def limit_sweeps(self, left: Callable[[], float]) -> None:
        """From now on each piece fails with TransientError after ``left()`` seconds, as asked when it begins."""


@runtime_checkable
class Unnoted(Protocol):
    """A target whose documents' versions may be all that it finds of a pipeline."""

    def unnoted(self, tables: Sequence[Table]) -> bool:
        """Whether a table exists of which no note says that this pipeline wrote to it. Only a person may sweep it."""


@runtime_checkable
class Pipelined(Protocol):
    """A target that can store one batch while the next one is encoded.

    ``write(batch)`` is equivalent to ``send(encode(batch))`` and ``collect()``. At most one batch is in flight.
    """

    def encode(self, batch: Batch) -> Any:
        """Encode the batch. Refusals found here are reported by ``collect``."""

    def send(self, encoded: Any) -> None:
        """Start storing an encoded batch, without waiting for the response."""

    def ready(self) -> bool:
        """Whether ``collect`` would return soon. Called often while a batch is in flight."""

    def collect(self) -> Outcome:
        """Wait for the response to the batch sent."""


OWN_IDS = KeySchema((KeyAttribute("_item", "S"), KeyAttribute("_id", "S")))  # the item's key text, the document's id

UNKNOWN_KEYS = KeySchema((KeyAttribute("(unknown)", "S"),))
"""The keys of a table whose source has not been asked (``check --offline``): nothing is wrong because of them."""
