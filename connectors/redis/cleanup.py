"""Sweep and purge: passes through the guards by SCAN, one piece per call."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from connectors.redis.errors import ResponseLost
from connectors.redis.layout import Layout, document_of
from connectors.redis.scripts import FORGET, READ, SWEEP
from connectors.redis.store import Store, Tallying
from replicator.batch import DocumentId
from replicator.errors import TransientError
from replicator.target.in_doubt import InDoubtWindow

_COUNT = b"1000"  # keys that SCAN looks at in one call
_LONGEST = 1.0  # seconds of scanning in one piece
_CALL = 250  # documents in one call of a script
_VERSION = re.compile(rb"([0-9]+)(?:([de])[0-9]*)?")

Guards = Sequence[bytes]
Pass = tuple[str, str, int]
"""One pass through a table: ``sweep`` or ``purge``, the table's name, and the version that is the limit."""


def pages(store: Store, pattern: bytes, cursor: bytes = b"0") -> Iterator[tuple[Guards, bytes]]:
    """Keys that match, and the cursor behind them; b"0" at the end. Each key that stays is found, maybe repeatedly."""
    while True:
        keys, cursor = store.scan(pattern, cursor, _COUNT)
        yield keys, cursor
        if cursor == b"0":
            return


def with_documents(guards: Guards) -> list[bytes]:
    return [key for guard in guards for key in (document_of(guard), guard)]


def read(store: Store, guards: Guards, how: bytes) -> Iterator[tuple[bytes, bytes | None, Any]]:
    """Each guard, its value, and what ``how`` reads of its document."""
    divided = list(store.divided(guards))
    responses = store.run_all(READ, [(with_documents(some), [how]) for some in divided])
    for some, response in zip(divided, responses, strict=True):
        for guard, (value, document) in zip(some, response, strict=True):
            yield guard, value, document


def chunks(guards: Guards) -> Iterator[Guards]:
    for start in range(0, len(guards), _CALL):
        yield guards[start : start + _CALL]


@dataclass(slots=True)
class _Progress:
    """``opened``: the connection on which the cursor is valid: a server that restarted starts another order."""

    opened: int
    window: int
    cursor: bytes | None = b"0"
    doomed: Mapping[bytes, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class Cleanup:
    """Passes through tables. A pass finds every guard that exists during all of it, so one pass is enough.

    A pass starts over when the connection was lost, or an in-doubt window that concerns it has begun or ended.
    """

    store: Store
    in_doubt: InDoubtWindow
    tally: Tallying
    now: Callable[[], float] = time.monotonic
    _passes: dict[Pass, _Progress] = field(default_factory=dict)

    def sweep(self, layout: Layout, below: int, spare: Sequence[DocumentId]) -> int:
        """Replace documents of lower versions by tombstones of version ``below``."""
        of, spared = ("sweep", layout.name, below), frozenset(spare)
        progress = self._progress(of, self.in_doubt.sweep_round)
        limit, until = b"%d" % below, self.now() + _LONGEST
        for guards, cursor in self._pages(of, progress, layout):
            wanted = [guard for guard in guards if _is_removable(layout, guard, spared)]
            count = sum(self._swept(some, limit) for some in chunks(wanted))
            progress.cursor = cursor if cursor != b"0" else None
            if count or self.now() > until:
                return max(count, 1)
        del self._passes[of]
        return 0

    def purge(self, layout: Layout, below: int, spare: Sequence[DocumentId]) -> int:
        """Remove the tombstones that the last call found, if unchanged, and find those for the next call.

        Guards of documents that expire, and that were kept as tombstones are, expire with them from then on.
        """
        of, spared = ("purge", layout.name, below), frozenset(spare)
        progress = self._progress(of, self.in_doubt.begun)
        doomed, progress.doomed = progress.doomed, {}
        for some in chunks([guard for guard in doomed if _is_removable(layout, guard, spared)]):
            self._forget(some, doomed)
        until = self.now() + _LONGEST
        for guards, cursor in self._pages(of, progress, layout):
            progress.doomed = self._tombstones([g for g in guards if _is_removable(layout, g, spared)], below)
            progress.cursor = cursor if cursor != b"0" else None
            if progress.doomed or self.now() > until:
                return max(len(progress.doomed), 1)
        del self._passes[of]
        return 0

    def _tombstones(self, guards: Guards, below: int) -> dict[bytes, bytes]:
        """The guards of lower versions whose document is gone: tombstones, and those of documents that expired; and
        those that stay though their document will expire.
        """
        found: dict[bytes, bytes] = {}
        for some in chunks(guards):
            for guard, value, document in read(self.store, some, b"EXISTS"):
                known = _VERSION.fullmatch(value or b"")
                if value is None or known is None or int(known[1]) >= below:
                    continue
                if document is None or (document == b"stays" and known[2] == b"e"):
                    found[guard] = value
        return found

    def _pages(self, of: Pass, progress: _Progress, layout: Layout) -> Iterator[tuple[Guards, bytes]]:
        if progress.cursor is not None:
            for page in pages(self.store, layout.guards(), progress.cursor):
                if self.store.opened != progress.opened:
                    raise TransientError(f"{self.store} was reconnected while its keys were scanned; starting again")
                yield page

    def _progress(self, of: Pass, window: int) -> _Progress:
        self.store.settle()
        found = self._passes.get(of)
        if found is None or (found.opened, found.window) != (self.store.opened, window):
            found = self._passes[of] = _Progress(self.store.opened, window)
        return found

    def _swept(self, guards: Guards, limit: bytes) -> int:
        """Counted as a batch is: what a sweep removed comes back if the server loses it."""
        with self._noted():
            calls = [(with_documents(some), [limit]) for some in self.store.divided(guards)]
            counts: list[int] = self.tally.run_all(self.store, SWEEP, calls)
        return sum(counts)

    def _forget(self, guards: Guards, doomed: Mapping[bytes, bytes]) -> None:
        with self._noted():
            divided = self.store.divided(guards)
            self.store.run_all(FORGET, [(with_documents(some), [doomed[guard] for guard in some]) for some in divided])

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Begin an in-doubt window if a response is lost."""
        try:
            yield
        except ResponseLost:
            self.in_doubt.begin()
            raise


def _is_removable(layout: Layout, guard: bytes, spared: frozenset[DocumentId]) -> bool:
    id = layout.id(guard)
    return id is not None and not any(id[:length] in spared for length in range(1, len(id) + 1))
