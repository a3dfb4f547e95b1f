"""Where checkpoints are kept for targets without transactions.

A store is a class found by its name in the entry point group ``replicator.checkpoints``: ``Store(options, pipeline,
base)``, where ``options`` is what its pydantic model ``Options`` made of the config's section ``checkpoints``, and
``base`` the folder that paths are relative to. Building it connects to nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from replicator.state import Counts, Entry, Owner, Parked, PipelineState, Save


@dataclass(frozen=True, slots=True)
class Claimed:
    """A pipeline's state as its new owner found it. ``counts`` by source, see ``Part.source``."""

    revision: int
    entries: Sequence[Entry] = ()
    counts: Mapping[str, Counts] = field(default_factory=dict)


NO_COUNTS: Mapping[str, Counts] = MappingProxyType({})


class Checkpoints(Protocol):
    """A store of entries for one pipeline. One thread uses it at a time."""

    def claim(self, owner: Owner) -> Claimed:
        """Make ``owner`` the only run that may save from now on, and return all entries as they are then."""

    def save(self, saves: Sequence[Save], counts: Mapping[str, Counts] = NO_COUNTS) -> None:
        """Change all entries, and add ``counts`` to each source's, or do nothing, durably.

        With the entry of a shard its counts go to FORGOTTEN, as what a command counts of such a shard later.
        Fenced if another run owns the pipeline or a revision differs. After a lost answer (TransientError) the same
        saves come again: where all are already as they are to be, saved by this run, nothing changes. Without saves it
        only asks whether this run still owns the pipeline.
        """

    def read(self) -> Claimed:
        """All entries as they are, for `status`; owns nothing."""

    def pipeline(self) -> PipelineState | None:
        """The pipeline's own entry as it is, without a look at the others; None if no run has begun it."""

    def parked(self, prefix: str = "", ids: Collection[str] | None = None) -> Iterator[tuple[str, Parked]]:
        """Parked changes whose id begins with ``prefix``, with their images, in order of id; only of ``ids`` if given.

        A few are in memory at a time: all of them may be gigabytes. Between two, anything else may be done with the
        store; what changes meanwhile comes as it was, or as it is, and what is removed meanwhile as it was, or not.
        """


@runtime_checkable
class Store(Checkpoints, Protocol):
    """Checkpoints in a place of their own."""

    @property
    def place(self) -> str:
        """Where they are, for people: a file, a table and its region. No secrets."""

    def check(self) -> Sequence[str]:
        """Look without changing anything; every problem that a person must solve, a sentence each."""

    def plan(self) -> Sequence[str]:
        """What the first run (or ``create``) would make, as a person would type or say it; nothing if it is there."""

    def create(self) -> None:
        """Make what ``plan`` names; nothing if it is there."""

    def close(self) -> None:
        """Let go of everything; calling it twice is fine."""


@runtime_checkable
class Listed(Protocol):
    """A store that can name the pipelines in its place, at little cost and without further permissions."""

    def pipelines(self) -> Sequence[str]:
        """Their names, in order."""


@runtime_checkable
class Cautious(Protocol):
    """A store that sees who else may reach it."""

    def warnings(self) -> Sequence[str]:
        """What a person should look at, though a run works: a sentence each."""
