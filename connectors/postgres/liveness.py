"""A server that says nothing: busy with what it was asked, or gone? A second connection finds out.

TCP cannot tell: what stands between may take every byte and know nothing of the server's end.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen

T = TypeVar("T")
_BUSY = ("active", "fastpath function call", "disabled", None)  # None: of somebody else, whom we may not look at
_ON_ITS_WAY = 0.1  # seconds; a server that has just done its work is idle, and its answer comes a moment later
_SHORTEST = 2  # seconds; libpq waits no shorter for a connection
# First of all: where another role may create functions, operators or types in a schema of the default path (public),
# one that fits a call better than the system's own would run with our rights.
_SEARCH_PATH = "SET search_path = pg_catalog, pg_temp"


class Watched(psycopg.Connection[Any]):
    """A connection that calls ``silent`` whenever nothing came for ``patience`` seconds; what it raises ends a wait."""

    patience: float
    silent: Callable[[], None]

    def wait(self, gen: PQGen[T], *how: Any, **named: Any) -> T:  # psycopg's versions differ in what comes behind
        return super().wait(_watched(gen, self.patience, self.silent), *how, **named)

    def await_socket(self, poll: select.poll) -> None:
        """Wait as ``wait`` does, where somebody else speaks to the server."""
        while not poll.poll(self.patience * 1000):
            try:
                self.silent()
            except psycopg.OperationalError:
                if not poll.poll(_ON_ITS_WAY * 1000):
                    raise


def _watched(gen: PQGen[T], patience: float, silent: Callable[[], None]) -> PQGen[T]:
    """The same generator, which is told of nothing but what came."""
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
    """A connection that ends with psycopg.OperationalError when the server does not work for it any more.

    ``patience``: seconds of silence after which a second connection asks; ``setting``: what the config calls them.
    """
    opened = _opened(url, settings, patience)
    backend = 0

    def silent() -> None:
        state = _state(url, settings, patience, backend)
        if state not in _BUSY:
            raise psycopg.OperationalError(f"nothing came for {patience:g} s ({setting}), and {state}")

    opened.silent = silent
    (backend,) = opened.execute("SELECT pg_catalog.pg_backend_pid()").fetchone() or (0,)
    return opened


def _opened(url: str, settings: Mapping[str, Any], patience: float) -> Watched:
    opened = Watched.connect(url, autocommit=True, client_encoding="utf8", **settings)
    opened.patience, opened.silent = patience, _unanswered
    opened.execute(_SEARCH_PATH)
    return opened


def _unanswered() -> None:
    raise psycopg.OperationalError("nothing came")


def _state(url: str, settings: Mapping[str, Any], patience: float, backend: int) -> str | None:
    """What the server's process for our connection does, or what else is the matter with it."""
    try:
        with _opened(url, settings, patience) as asking:
            query = "SELECT state FROM pg_catalog.pg_stat_activity WHERE pid = %s::integer"
            row = asking.execute(query, (backend,)).fetchone()
    except psycopg.Error as e:
        if "FATAL" in str(e):  # there it is, though it has no room for a second connection
            return None
        return "a second connection gets no answer either"
    if row is None or row[0] not in _BUSY:
        return "the server does not know of this connection, or has nothing to do for it"
    found: str | None = row[0]
    return found


def connect_timeout(patience: float) -> int:
    return max(_SHORTEST, min(10, int(patience)))
