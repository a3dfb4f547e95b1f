"""Looks now and then whether an index is still the one that was opened, under the settings and aliases it had."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from connectors.search import catalog
from connectors.search.connection import Connection
from connectors.search.layout import Layout
from replicator.errors import ConfigError

EVERY = 5.0  # seconds


@dataclass(slots=True)
class Watch:
    """The opened layouts by table, each with its index's id.

    A look after the fact is enough: an index that was replaced or restored is told by its id, also by the next run, and
    where a write arrived is said by each answer.
    """

    connection: Connection
    now: Callable[[], float] = time.monotonic
    _opened: Mapping[str, tuple[Layout, str]] = field(default_factory=dict)
    _looked: float = 0.0

    def begin(self, opened: Mapping[str, tuple[Layout, str]]) -> None:
        """They were looked at just now."""
        self._opened, self._looked = opened, self.now()

    def look(self) -> None:
        """ConfigError, with everything that changed, if a copy cannot go on with it. Asks at most every 5 s."""
        if not self._opened or self.now() - self._looked < EVERY:
            return
        layouts = [layout for layout, _ in self._opened.values()]
        found = zip(self._opened.values(), catalog.states(self.connection, layouts), strict=True)
        if problems := [text for (layout, id), state in found for text in catalog.changed(layout, state, id)]:
            raise ConfigError(*(f"{self.connection.server}: {text}" for text in problems))
        self._looked = self.now()
