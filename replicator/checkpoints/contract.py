"""The checkpoint contract, and that of separate stores for targets without transactions.

A store is a class registered by name in the entry point group ``replicator.checkpoints``: ``Store(options, pipeline,
base)``. ``options`` is an instance of its pydantic model ``Options``, parsed from the config's section ``checkpoints``;
``base`` is the folder that paths are relative to. The constructor does not connect.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from replicator.state import Counts, Entry, Owner, Parked, PipelineState, Save


@dataclass(frozen=True, slots=True)
class Claimed:
    """All entries of a pipeline. ``counts``: by source, see ``Part.source``.

    ``revision``: of the owner entry that was claimed; where nothing was, of the run's.
    """

    revision: int
    entries: Sequence[Entry] = ()
    counts: Mapping[str, Counts] = field(default_factory=dict)


NO_COUNTS: Mapping[str, Counts] = MappingProxyType({})


class Checkpoints(Protocol):
    """The entries of one pipeline. Used by one thread at a time."""

    def claim(self, owner: Owner) -> Claimed:
        """Make ``owner`` the only run that may save from now on. Returns all entries."""

    def save(self, saves: Sequence[Save], counts: Mapping[str, Counts] = NO_COUNTS) -> None:
        """Apply all saves and add ``counts`` to those of each source, atomically and durably.

        When a shard's entry is removed, its counts are added to FORGOTTEN; so are counts of that shard that a command
        saves later. Fenced if another run owns the pipeline or a revision differs. After a lost response
        (TransientError) the same saves come again: if this run has already made all of them, nothing changes. Without
        saves, this only checks that the run still owns the pipeline.
        """

    def read(self) -> Claimed:
        """All entries, without claiming the pipeline.

        Beside workers, positions may be of different saves. Whose position is read, what it had parked before is, too.
        """

    def pipeline(self) -> PipelineState | None:
        """The pipeline's own entry as it is, without a look at the others; None if no run has begun it."""

    def request(self) -> Entry | None:
        """The entry of the requested resync, likewise; None if there is none. A run reads it every few seconds."""

    def parked(self, prefix: str = "", ids: Collection[str] | None = None) -> Iterator[tuple[str, Parked]]:
        """Parked changes with their images, ordered by id: those whose id begins with ``prefix`` and is in ``ids``.

        Streams them, a few in memory at a time, because all of them may be gigabytes. The store may be used between
        two results. A change made during iteration may or may not be reflected in the results.
        """


@runtime_checkable
class Slotted(Checkpoints, Protocol):
    """Checkpoints that several workers of one run may write, each the entries of its slots."""

    def claim_slot(self, owner: Owner, slot: str, run: int) -> Claimed:
        """Make ``owner`` the only one that may save for ``slot``. Returns all entries.

        ``run``: the revision of the run's claim, which started this worker. Fenced if another run has claimed the
        pipeline since. From now on saves fail if either was claimed again, or if a save has changed the slot's owner
        entry: that takes the slot away from its worker.
        """


@runtime_checkable
class Store(Checkpoints, Protocol):
    """Checkpoints in a store separate from the target."""

    @property
    def place(self) -> str:
        """The location, for messages: a file, or a table and its region. Contains no secrets."""

    def check(self) -> Sequence[str]:
        """Every problem that the user must solve, one sentence each. Changes nothing."""

    def plan(self) -> Sequence[str]:
        """What the first run (or ``create``) would create, as commands or in words; empty if it exists."""

    def create(self) -> None:
        """Create what ``plan`` lists, if it does not exist."""

    def close(self) -> None:
        """Release all resources. May be called twice."""


@runtime_checkable
class Listed(Protocol):
    """A store that can cheaply list the pipelines in it, without additional permissions."""

    def pipelines(self) -> Sequence[str]:
        """The names, sorted."""


@runtime_checkable
class Migrating(Protocol):
    """Checkpoints that a run brings to a newer format as it starts."""

    def migration(self) -> str:
        """What the next run migrates, and who cannot read it then; empty if nothing. Changes nothing."""


@runtime_checkable
class AccessChecking(Protocol):
    """A store that can tell who else may access it."""

    def warnings(self) -> Sequence[str]:
        """Problems that do not prevent a run, one sentence each."""


@runtime_checkable
class Noting(Protocol):
    """A store with limits that its place has, and others of its kind have not. Only ``check`` asks for them."""

    def notes(self) -> Sequence[str]:
        """What users should know about an existing place, one sentence each."""
