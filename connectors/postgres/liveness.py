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


# Makes RDS Proxy keep one server connection for ours, as other settings would; it is the default, so that clients that
# share the connection of another pooler notice nothing.
_SESSION = "SET client_min_messages = 'notice'"
_PROBES = 3  # attempts to meet the server process of a connection on another one: other clients may come in between


_SILENT = "no response"
_NONE_LEFT = ("query_wait_timeout", "in session mode")  # said by pgbouncer, and by Supavisor of that mode alone


class NoSession(Exception):
    """The connection is one to a pooler that gives each transaction another server connection."""


class Watched(psycopg.Connection[Any]):
    """Calls ``silent`` after each ``patience`` seconds without a byte; an error that it raises ends the wait.

    Calls ``heard`` with each byte, and when ``silent`` has found the server at work.
    """

    patience: float
    silent: Callable[[], None]
    heard: Callable[[], None]

    def wait(
        self, gen: PQGen[T], *how: Any, **named: Any
    ) -> T:  # further parameters differ between versions of psycopg
        return super().wait(_watched(gen, self.patience, self.silent, self.heard), *how, **named)

    def await_socket(self, poll: select.poll) -> None:
        """Like ``wait``, for callers that use libpq directly."""
        while not poll.poll(self.patience * 1000):
            try:
                self.silent()
            except psycopg.OperationalError:
                if not poll.poll(_ON_ITS_WAY * 1000):
                    raise
            self.heard()
        self.heard()


def _watched(gen: PQGen[T], patience: float, silent: Callable[[], None], heard: Callable[[], None]) -> PQGen[T]:
    """The generator ``gen``, resumed only when its socket is ready."""
    since = time.monotonic()
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if ready:
                since = time.monotonic()
                heard()
            elif time.monotonic() - since >= patience:
                try:
                    silent()
                except psycopg.OperationalError:
                    if not (ready := (yield wanted)):
                        raise
                since = time.monotonic()
                heard()
            wanted = gen.send(ready)
    except StopIteration as e:
        found: T = e.value
        return found


def connect(url: str, settings: Mapping[str, Any], patience: float, setting: str) -> Watched:
    """A connection that fails with psycopg.OperationalError when the server no longer works for it.

    NoSession if it shares its server process with other connections. ``patience``: seconds of silence before a second
    connection asks; ``setting``: their config key.
    """
    opened = _opened(url, settings, patience)
    try:
        backend = _backend(opened)

        def silent() -> None:
            state = _state(url, settings, patience, backend)
            if state not in _BUSY:
                raise psycopg.OperationalError(f"no response for {patience:g} s ({setting}), and {state}")

        opened.silent = silent
        if backend != opened.info.backend_pid:
            if _is_shared(opened, url, settings, patience):
                raise NoSession
            backend = _backend(opened)
        opened.execute(_SEARCH_PATH)
    except BaseException:
        opened.close()
        raise
    return opened


def _opened(url: str, settings: Mapping[str, Any], patience: float) -> Watched:
    opened = Watched.connect(url, autocommit=True, client_encoding="utf8", **settings)
    opened.patience, opened.silent, opened.heard = patience, _unanswered, _unwatched
    return opened


def _backend(opened: Watched) -> int:
    """The server process that works for the connection. Behind a pooler, it is not the one that the login named."""
    asked = opened.execute("SELECT pg_catalog.pg_backend_pid()", prepare=False)  # others may get the server connection
    (backend,) = asked.fetchone() or (0,)
    return int(backend)


def _is_shared(opened: Watched, url: str, settings: Mapping[str, Any], patience: float) -> bool:
    """Whether a pooler lets a second connection use the server process of this one, or gives this one another.

    A pooler that leaves the second one waiting, while this one gets responses, is one in session mode: it has no other
    server connection to give. OperationalError if the second one fails otherwise, which says nothing.
    """
    opened.execute(_SESSION)
    for _ in range(_PROBES):
        before = _backend(opened)
        try:
            with _opened(url, settings, min(patience, _SHORTEST)) as second:
                other = _backend(second)
        except psycopg.Error as e:
            if _waits(e):
                continue
            raise psycopg.OperationalError(
                "a pooler is in between, and a second connection, which would show whether it gives each transaction "
                f"another server connection, failed: {e}"
            ) from e
        # asked twice: a pooler whose two server connections take turns gives this one its own every second time
        if other == before or {_backend(opened), _backend(opened)} != {before}:
            return True
    return False


def _unwatched() -> None: ...


def _unanswered() -> None:
    raise psycopg.OperationalError(_SILENT)


def _waits(error: psycopg.Error) -> bool:
    """Whether a pooler accepted the connection, and had no server connection for it."""
    return any(said in str(error).lower() for said in (_SILENT, *_NONE_LEFT))


def _state(url: str, settings: Mapping[str, Any], patience: float, backend: int) -> str | None:
    """The state of our connection's server process, or why there is none."""
    try:
        with _opened(url, settings, patience) as asking:
            asking.execute(_SEARCH_PATH)
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
