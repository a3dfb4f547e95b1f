"""Detects dead connections: when a server stays silent, a second connection asks whether it still works on the query.

TCP alone cannot tell: a proxy in between may accept every byte though the server is gone.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen

T = TypeVar("T")
_BUSY = (
    "active",
    "fastpath function call",
    "disabled",
    None,
)  # None: another role's session, whose state we may not see
_ON_ITS_WAY = 0.1  # seconds; a server that just finished is idle, and its response arrives a moment later
_SHORTEST = 2  # seconds; libpq waits no shorter for a connection
# Sent first: if another role may create functions, operators or types in a schema of the default path (public), one
# that matches a call better than the system's own would run with our rights.
_SEARCH_PATH = "SET search_path = pg_catalog, pg_temp"


class Watched(psycopg.Connection[Any]):
    """Calls ``silent`` after each ``patience`` seconds without a byte; an error that it raises ends the wait."""

    patience: float
    silent: Callable[[], None]

    def wait(
        self, gen: PQGen[T], *how: Any, **named: Any
    ) -> T:  # further parameters differ between versions of psycopg
        return super().wait(_watched(gen, self.patience, self.silent), *how, **named)

    def await_socket(self, poll: select.poll) -> None:
        """Like ``wait``, for callers that use libpq directly."""
        while not poll.poll(self.patience * 1000):
            try:
                self.silent()
            except psycopg.OperationalError:
                if not poll.poll(_ON_ITS_WAY * 1000):
                    raise


def _watched(gen: PQGen[T], patience: float, silent: Callable[[], None]) -> PQGen[T]:
    """The generator ``gen``, resumed only when its socket is ready."""
    since = time.monotonic()
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if ready:
                since = time.monotonic()
            elif time.monotonic() - since >= patience:
                try:
                    silent()
                except psycopg.OperationalError:
                    if not (ready := (yield wanted)):
                        raise
                since = time.monotonic()
            wanted = gen.send(ready)
    except StopIteration as e:
        found: T = e.value
        return found


def connect(url: str, settings: Mapping[str, Any], patience: float, setting: str) -> Watched:
    """A connection that fails with psycopg.OperationalError when the server no longer works for it.

    ``patience``: seconds of silence before a second connection asks; ``setting``: their config key.
    """
    opened = _opened(url, settings, patience)
    backend = 0

    def silent() -> None:
        state = _state(url, settings, patience, backend)
        if state not in _BUSY:
            raise psycopg.OperationalError(f"no response for {patience:g} s ({setting}), and {state}")

    opened.silent = silent
    (backend,) = opened.execute("SELECT pg_catalog.pg_backend_pid()").fetchone() or (0,)
    return opened


def _opened(url: str, settings: Mapping[str, Any], patience: float) -> Watched:
    opened = Watched.connect(url, autocommit=True, client_encoding="utf8", **settings)
    opened.patience, opened.silent = patience, _unanswered
    opened.execute(_SEARCH_PATH)
    return opened


def _unanswered() -> None:
    raise psycopg.OperationalError("no response")


def _state(url: str, settings: Mapping[str, Any], patience: float, backend: int) -> str | None:
    """The state of our connection's server process, or why there is none."""
    try:
        with _opened(url, settings, patience) as asking:
            query = "SELECT state FROM pg_catalog.pg_stat_activity WHERE pid = %s::integer"
            row = asking.execute(query, (backend,)).fetchone()
    except psycopg.Error as e:
        if "FATAL" in str(e):  # the server is up, but accepts no second connection
            return None
        return "a second connection gets no response either"
    if row is None or row[0] not in _BUSY:
        return "the server does not know this connection, or has nothing to do for it"
    state: str | None = row[0]
    return state


def connect_timeout(patience: float) -> int:
    return max(_SHORTEST, min(10, int(patience)))
