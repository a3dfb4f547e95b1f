"""Looks now and then whether an index is still the one that was opened, under the settings and aliases it had."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from connectors.search import catalog
from connectors.search.connection import Connection
from connectors.search.layout import Layout
from replicator.errors import ConfigError

EVERY = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Opened:
    """An index as it was opened: its id, and what was noted in it."""

    layout: Layout
    id: str
    notes: Mapping[str, Any]


@dataclass(slots=True)
class Watch:
    """The indices that were opened.

    A look after the fact is enough: an index that was replaced or restored is told by its id, also by the next run, and
    where a write arrived is said by each answer.
    """

    connection: Connection
    now: Callable[[], float] = time.monotonic
    _opened: Sequence[Opened] = ()
    _looked: float = 0.0

    def begin(self, opened: Sequence[Opened]) -> None:
        """They were looked at just now."""
        self._opened, self._looked = opened, self.now()

    def look(self) -> None:
        """ConfigError, with everything that changed, if a copy cannot go on with it. Asks at most every 5 s.

        A run that was stopped while it opened the index, and replaced, may have noted its own epoch over a later one:
        engines compare nothing there. That is put right, or the next start would take the index for an older one.
        """
        if not self._opened or self.now() - self._looked < EVERY:
            return
        states = catalog.states(self.connection, [opened.layout for opened in self._opened])
        found = list(zip(self._opened, states, strict=True))
        changed = [text for o, state in found for text in catalog.changed(o.layout, state, o.id)]
        if problems := changed or [text for o, state in found for text in catalog.taken_over(o.layout, state, o.notes)]:
            raise ConfigError(*(f"{self.connection.server}: {text}" for text in problems))
        for opened, state in found:
            if state.index is not None and state.index.epoch < opened.notes["epoch"]:
                self._note_again(opened)
        self._looked = self.now()

    def _note_again(self, opened: Opened) -> None:
        """As it is now, with all that others noted."""
        now = catalog.state(self.connection, opened.layout).index
        if now is not None and now.id == opened.id and now.epoch < opened.notes["epoch"]:
            catalog.note(self.connection, opened.layout, now, opened.notes)
