"""One connection, used in pipeline mode: opened when needed, closed after any error."""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import error_from_result

from connectors.postgres.encode import Statement
from connectors.postgres.errors import translated, unreachable
from connectors.postgres.liveness import NoSession, Watched, connect, connect_timeout
from connectors.postgres.options import Server, address
from replicator.errors import ConfigError, TransientError

Rows = list[tuple[bytes | None, ...]]

BEGIN = Statement(b"BEGIN ISOLATION LEVEL READ COMMITTED")  # after a lock wait, see what its holder committed
COMMIT = Statement(b"COMMIT")

_CONNECT: dict[str, Any] = {
    "application_name": "replicator",
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
# The server must notice a vanished client too: its batch holds the lock that a new run waits for. The planner is
# limited to what stays right when a table grows under a cached plan: index lookups, in the order of keys. Time limits
# of a role or a database do not apply, as with pg_dump: a piece of a sweep that takes longer would be repeated for
# ever. A second connection sees whether the server is still at work.
_SETTINGS = """
SET statement_timeout = 0;
SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'transaction_timeout';
SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3;
SET idle_in_transaction_session_timeout = '60s'; SET lock_timeout = '30s';
SET jit = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_seqscan = off;
SET plan_cache_mode = force_generic_plan;
"""


_POOLED = (
    "{server} is a connection pooler that gives each transaction another server connection (pgbouncer with pool_mode = "
    "transaction or statement), but settings and prepared statements need a session. Connect to Postgres directly, or "
    "to a pool with pool_mode = session, which pgbouncer can have for one database or user"
)


@dataclass(frozen=True, slots=True)
class _Received:
    """The results of a transaction that was in flight, or why it failed."""

    rows: list[Rows]
    error: psycopg.Error | None = None


class Session:
    """A lazily opened connection to one database. ``section``: the part of the config that describes it."""

    def __init__(self, options: Server, section: str = "target") -> None:
        self._url = options.url.get_secret_value()
        self._password_file = options.password_file
        self._patience = options.timeout
        self._section = section
        self._server = address(self._url)
        self.heard: Callable[[], None] = lambda: None  # called while the server works, however long a statement takes
        self._connection: Watched | None = None
        self._user = ""  # of the last login
        self._prepared: dict[bytes, bytes] = {}
        self._sent: list[bool] | None = None  # for each pending result: whether ``collect`` returns it
        self._received: _Received | None = None  # ahead of ``collect``

    @property
    def in_flight(self) -> bool:
        return self._sent is not None or self._received is not None

    @contextlib.contextmanager
    def connection(self) -> Iterator[Watched]:
        """The connection for ordinary queries. An error closes it, and is raised as one of ours."""
        assert not self.in_flight, "a batch is in flight: collect it first"
        try:
            yield self._open()
        except psycopg.Error as e:
            self.close()
            raise self.translated(e) from e
        except BaseException:  # a KeyboardInterrupt, too: it may have come in the middle of a message
            self.close()
            raise

    def send(self, statements: Sequence[Statement]) -> None:
        """Send all statements as one transaction, without waiting for results."""
        with self.connection() as opened:
            opened.pgconn.enter_pipeline_mode()
            self._sent = []
            for statement in (BEGIN, *statements, COMMIT):
                self._queue(opened.pgconn, statement)
            opened.pgconn.pipeline_sync()
            _flush(opened)

    def ready(self) -> bool:
        """Whether ``collect`` has something to read: results, or the end of the connection."""
        connection = self._connection
        if connection is None or connection.closed or not connection.pgconn.is_busy():
            return True
        poll = select.poll()
        poll.register(connection.pgconn.socket, select.POLLIN)
        return bool(poll.poll(0))

    def collect(self) -> list[Rows]:
        """Wait for the commit; each statement's rows. psycopg.Error if it failed."""
        received, self._received = self._received or self._receive(), None
        if received.error is not None:
            raise received.error
        return received.rows

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """For another transaction while one is in flight: the results of that one are kept until they are collected."""
        kept = self._receive() if self._sent is not None else self._received
        self._received = None
        try:
            yield
        finally:
            self._received = kept

    def _receive(self) -> _Received:
        wanted, self._sent = self._sent, None
        assert wanted is not None, "nothing was sent"
        try:
            connection = self._open_still()
            answers = list(_answers(connection))
            connection.pgconn.exit_pipeline_mode()
        except psycopg.Error as e:
            self.close()
            return _Received([], e)
        except BaseException:
            self.close()
            raise
        found = [rows for rows, keep in zip(answers, wanted, strict=True) if keep]
        return _Received(found[1:-1])

    def translated(self, error: psycopg.Error) -> Exception:
        return translated(error, self._server, f"{self._section}.url", self._user)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        self._prepared = {}
        self._sent = self._received = None
        if connection is not None:
            connection.close()

    def _password(self, path: str) -> str:
        """What the file contains now, without a line end. A file that is being replaced may be missing or empty."""
        problem = "is empty"
        try:
            if password := Path(path).read_text().rstrip("\r\n"):
                return password
        except OSError as e:
            problem = f"cannot be read: {e.strerror}"
        except UnicodeDecodeError:
            problem = "is not text"
        text = f"{self._section}.password_file: {path} {problem}"
        raise TransientError(text) if self._user else ConfigError(text)

    def _queue(self, connection: pq.abc.PGconn, statement: Statement) -> None:
        assert self._sent is not None
        if not statement.planned_once:
            connection.send_query_params(statement.sql, statement.parameters)
        else:
            name = self._prepared.get(statement.sql)
            if name is None:
                name = self._prepared[statement.sql] = b"r%d" % len(self._prepared)
                connection.send_prepare(name, statement.sql)
                self._sent.append(False)
            connection.send_query_prepared(name, statement.parameters)
        self._sent.append(True)

    def _open_still(self) -> Watched:
        if self._connection is None or self._connection.closed:
            raise psycopg.OperationalError("the connection was closed while a batch was in flight")
        return self._connection

    def _open(self) -> Watched:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        self.close()
        given = conninfo_to_dict(self._url)
        wanted = _CONNECT | {"connect_timeout": connect_timeout(self._patience)}
        settings = {name: value for name, value in wanted.items() if name not in given}
        if self._password_file is not None:
            settings["password"] = self._password(self._password_file)
        try:
            connection = connect(self._url, settings, self._patience, f"{self._section}.timeout")
        except NoSession:
            raise ConfigError(f"{self._section}.url: {_POOLED.format(server=self._server)}") from None
        except psycopg.OperationalError as e:
            password = "" if self._password_file is None else f"{self._section}.password_file"
            raise unreachable(
                e, self._server, f"{self._section}.url", password=password, logged_in=bool(self._user)
            ) from e
        self._connection, self._user = connection, connection.info.user
        connection.heard = lambda: self.heard()
        connection.prepare_threshold = (
            None  # else psycopg deallocates our prepared statements with its own, after an ALTER
        )
        connection.execute(_SETTINGS)
        return connection


def _flush(connection: Watched) -> None:
    """Send the queued bytes, reading input at the same time so that neither side blocks the other."""
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN | select.POLLOUT)
    while connection.pgconn.flush():
        connection.await_socket(poll)
        connection.pgconn.consume_input()


def _answers(connection: Watched) -> Iterator[Rows]:
    """One list of rows per statement. Raises the first error after everything is read."""
    failure: psycopg.Error | None = None
    while (result := _next(connection)) is None or result.status != pq.ExecStatus.PIPELINE_SYNC:
        if result is None:  # between two statements
            continue
        if result.status == pq.ExecStatus.FATAL_ERROR and failure is None:
            failure = error_from_result(result)
        yield _rows(result)
    if failure is not None:
        raise failure


def _next(connection: Watched) -> pq.abc.PGresult | None:
    """libpq's next result. Waits in Python, so that signals are handled."""
    pgconn = connection.pgconn
    poll = select.poll()
    poll.register(pgconn.socket, select.POLLIN)
    if pgconn.is_busy():
        _flush(connection)
    while pgconn.is_busy():
        connection.await_socket(poll)
        pgconn.consume_input()
    return pgconn.get_result()


def _rows(result: pq.abc.PGresult) -> Rows:
    return [tuple(result.get_value(r, c) for c in range(result.nfields)) for r in range(result.ntuples)]
