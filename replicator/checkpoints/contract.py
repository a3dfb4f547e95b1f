"""Where checkpoints are kept for targets without transactions.

A store is a class found by its name in the entry point group ``replicator.checkpoints``: ``Store(options, pipeline,
base)``, where ``options`` is what its pydantic model ``Options`` made of the config's section ``checkpoints``, and
``base`` the folder that paths are relative to. Building it connects to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from replicator.state import Checkpoints


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
