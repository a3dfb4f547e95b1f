"""What a destination must do: the contract that ``replicator.testing`` checks for every target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from replicator.aws.client import Client
from replicator.batch import Batch, DocumentId, Outcome, Rejection, Write
from replicator.checkpoints.contract import Checkpoints
from replicator.identity import Change, Identity, Parts
from replicator.key import KeyAttribute, KeySchema
from replicator.source.table import SourceTable
from replicator.target.in_doubt import InDoubtWindow


@dataclass(frozen=True, slots=True)
class Table:
    """One table (or index) of a target, as the pipeline wants it.

    ``keys`` are the parts of a document's id: the item's key attributes, or ``_item`` and ``_id`` (both text) for
    documents with ids of their own. ``options`` come from the config and are the connector's to understand.
    """

    name: str
    keys: KeySchema
    options: Mapping[str, Any] = field(default_factory=dict)


class Target(Protocol):
    """Where documents end up. One thread uses a target at a time.

    Built by its connector from the target's part of the config; building connects to nothing.
    """

    def check(self, tables: Sequence[Table]) -> Sequence[str]:
        """Connect, change nothing, and return every problem a person must solve, a sentence each.

        TransientError if the target cannot be reached.
        """

    def plan(self, tables: Sequence[Table]) -> Sequence[str]:
        """The statements that ``open`` would run to make absent tables, as a person would type them."""

    def epoch(self, tables: Sequence[Table]) -> int | None:
        """The highest epoch that wrote to the tables, 0 for tables without one, None if a table is absent.

        No version in the tables is of a later epoch, also where rows were copied there and nothing notes an epoch: as
        exactly as the target can tell. ConfigError if another pipeline writes to one, where the target can tell.
        """

    def open(self, tables: Sequence[Table], epoch: int) -> None:
        """Make absent tables and note ``epoch`` with them. ConfigError names every mismatch of existing ones."""

    def write(self, batch: Batch) -> Outcome:
        """Store every write, durably, before returning, each only if its version is newer.

        With ``replaces_same`` also if it is the same; a target in which a refused batch leaves nothing may ignore that.
        Document ids are distinct, so any order will do. Doing it again changes nothing. If anything is refused for
        good, nothing of the batch counts as stored. TransientError when unsure, and the same call follows.
        """

    def sweep(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
        """Remove some documents with a version lower than ``below``; return how many, 0 when none is left.

        A target that has to look for long may return before it found any, and says 1 to be asked again.

        Leaves tombstones of version ``below``. Documents whose id begins with one of ``spare`` stay. SweepRefused where
        some are left that the target refuses to delete, and all others are removed.
        """

    def purge(self, table: Table, below: int, spare: Sequence[DocumentId] = ()) -> int:
        """Forget some tombstones with a version lower than ``below``; return how many, 0 when none is left.

        Those whose ids are in ``spare`` stay: their items are parked, perhaps as a scan found them before they were
        deleted, and a retry must not bring them back. Where a removal goes by the version alone, those stay, too, whose
        ids begin with one of ``spare``: a retry may put a document in the place of a tombstone, at its very version.
        """

    def close(self) -> None:
        """Let go of everything; calling it twice, or after a failed ``check`` or ``open``, is fine."""


@runtime_checkable
class Transactional(Protocol):
    """A target whose ``write`` commits the batch's entries together with its rows, in one transaction.

    After a lost answer the same batch comes again. If its entries already are as it wants them, saved by this run, then
    it is stored: ``write`` changes and counts nothing and returns an empty Outcome. It is not Fenced.
    """

    @property
    def checkpoints(self) -> Checkpoints: ...


class Denied(str):
    """A problem that a permission would solve: ``check`` ends with the code of a run that was not permitted."""

    __slots__ = ()


@runtime_checkable
class AppliesLate(Protocol):
    """A target without transactions, whose requests may still be carried out after their answer was given up.

    It begins a ``in_doubt`` whenever an answer is lost. While there is doubt, every delete leaves a tombstone, whatever
    the batch says. The pipeline begins one where an earlier run may have been killed, and purges when it is over.

    A batch that takes long is not sent to its end: after ``TRUSTED`` seconds (``is_late``) nothing more of it is begun,
    and ``write`` (``collect``) raises Unfinished when what was begun is answered. The same batch follows. So a run that
    was replaced in the middle of it stops soon, and not when the next one has purged its tombstones.

    A ``purge`` removes only tombstones that an earlier call of it found, each as long as it is that one. Before each
    call the run asks who owns the pipeline. So it never removes one that a later run keeps in case a request of its own
    is still carried out, even if this run was stopped for hours in the middle of a call.
    """

    @property
    def in_doubt(self) -> InDoubtWindow: ...


@runtime_checkable
class ReducedGuarantee(Protocol):
    """A target that may promise less than others do, under some option."""

    @property
    def promise(self) -> str:
        """What is promised instead, a sentence or two for people; empty if nothing is missing."""


@runtime_checkable
class Unguarded(Protocol):
    """A target that may compare no versions as it writes, under some option: then the last write wins."""

    @property
    def unguarded(self) -> bool: ...


@runtime_checkable
class Forecasting(Protocol):
    """A target that can tell which documents it would refuse, for ``preview`` and ``check``."""

    def refusals(self, tables: Sequence[Table], writes: Sequence[Write]) -> Sequence[Rejection]:
        """Those of ``writes`` that cannot be stored, as far as the config and the limits of its kind tell.

        Asks no server and changes nothing; what a constraint or a trigger at the destination says is left out.
        """


@runtime_checkable
class Mirroring(Protocol):
    """A target that wants to know what it is a copy of, for instance to make its tables alike."""

    def mirror(self, source: SourceTable, client: Client, *, keep_expired: bool = False) -> None:
        """Called once, before anything else. ``client`` reads the source's account; it is not to be called yet.

        ``keep_expired``: what expires in the source must stay in the copy.
        """


@runtime_checkable
class Identifying(Protocol):
    """A target that can tell one table from another: where it is, and whether it was made anew since.

    Without it a table is known by its name alone.
    """

    def identities(self, tables: Sequence[Table]) -> Mapping[str, Identity]:
        """Each table's identity by its name; of an absent one its place alone. Changes nothing."""


@runtime_checkable
class Inspectable(Protocol):
    """A target that can tell at little cost whether a table holds anything at all.

    Without it a table that was emptied by hand between two runs is not noticed.
    """

    def empty(self, tables: Sequence[Table]) -> Sequence[str]:
        """The names of those tables that are there and hold nothing, no tombstone either if it keeps them there."""


@runtime_checkable
class Rechecking(Protocol):
    """A target whose tables others can change so that they lose or keep rows, though no write of ours fails."""

    def recheck(self, tables: Sequence[Table]) -> Sequence[str]:
        """What ``open`` would refuse by now for that reason, a sentence each. Few questions; changes nothing.

        Asked about once a minute while a run is at work, with nothing in flight.
        """


@runtime_checkable
class Defining(Protocol):
    """A target that knows which options decide what it stores, and what can be added to a table that has rows.

    Without it every change of a table's options takes a resync.
    """

    def parts(self, table: Table) -> Parts:
        """What decides which documents ``table`` holds, the same however it is written in a config. No value is empty.

        Connects to nothing.
        """

    def additions(self, tables: Sequence[Table], changes: Sequence[Change]) -> Sequence[str] | None:
        """The statements that add to the tables what ``changes`` added; None if a change cannot be made like that."""

    def extend(self, tables: Sequence[Table], changes: Sequence[Change]) -> None:
        """Run them. Doing it again is fine."""


@runtime_checkable
class Pipelined(Protocol):
    """A target that can store one batch while the next one is encoded.

    ``write(batch)`` is the same as ``send(encode(batch))`` and ``collect()``. At most one batch is under way.
    """

    def encode(self, batch: Batch) -> Any:
        """The batch in the target's own form. Refusals found here come out of ``collect``."""

    def send(self, encoded: Any) -> None:
        """Begin to store it and return without waiting for the answer."""

    def ready(self) -> bool:
        """Whether ``collect`` has little to wait for. Asked often, while something is under way."""

    def collect(self) -> Outcome:
        """Wait for the answer to what was sent."""


OWN_IDS = KeySchema((KeyAttribute("_item", "S"), KeyAttribute("_id", "S")))  # the item's key text, and the hook's id
