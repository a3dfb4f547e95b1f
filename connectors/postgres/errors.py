"""Translates psycopg's errors to ours, by what to do about them. Messages name tables and grants, never values.

The server's message is shown only for known SQLSTATEs of our own statements. Others, and those raised by users'
triggers and functions, may quote a row.
"""

from __future__ import annotations

import re

import psycopg
from psycopg import errors, sql

from replicator.errors import ConfigError, Fenced, NotAuthenticated, NotPermitted, ReplicatorError, TransientError

FENCED = "RP001"
STORED_ALREADY = "RP002"
SKIPPED = "RP003"

_UNKNOWN_LOGIN = ("authentication failed", "no password supplied", "authentication method requirement")
_LOGIN_DENIED = {  # with the fix
    "no pg_hba.conf entry": "Let it in there (pg_hba.conf), or correct {setting}",
    "is not permitted to log in": "ALTER ROLE … LOGIN, or correct {setting}",
    "permission denied for database": "GRANT CONNECT ON DATABASE … TO the user of {setting}",
}
_WRONG = ("does not exist", "SSL was required", "certificate verify failed", "server certificate for")
_WAIT = {
    "40001": "a serialization failure",
    "40P01": "a deadlock",
    "55P03": "another session holds a lock",
    "57014": "a statement was cancelled (pg_cancel_backend?)",
    "25006": "the server is read-only (a standby, or failing over)",
    "25P03": "the transaction was idle for too long",
    "25P04": "the transaction took too long (transaction_timeout?)",
    "57P01": "the server is shutting down",
    "57P02": "the server crashed and restarts",
    "57P03": "the server is starting up or shutting down",
    "57P05": "the session was idle for too long",
    "53300": "too many connections",
    "53100": "its disk is full",
    "53200": "it is out of memory",
}
_WAIT_CLASSES = ("08", "40", "53", "57", "58")
_CHANGED_CLASSES = ("42", "3F", "3D")  # a name in our statements no longer exists, or has changed
_OURS = "PL/pgSQL function replicator."
_DATA_CLASSES = ("22", "23", "27", "54", "P0")  # 27, P0: raised by a user's trigger or function
_RELATIONS = ("23503", "23505", "23P01")  # a foreign key, a unique constraint, an exclusion constraint


class StoredAlready(Exception):
    """The batch was committed before; only the response was lost."""


def is_data_error(error: psycopg.Error) -> bool:
    """Whether some of the rows caused it."""
    return error.sqlstate == SKIPPED or (error.sqlstate or "")[:2] in _DATA_CLASSES


def depends_on_others(error: psycopg.Error) -> bool:
    """Whether a row was refused because of other rows, or may have been: a key, an exclusion, a user's trigger."""
    return (error.sqlstate or "") in (*_RELATIONS, SKIPPED) or (error.sqlstate or "")[:2] == "P0"


def translated(error: psycopg.Error, server: str, setting: str, user: str = "") -> Exception:
    """Our error for a failed statement. ``setting``: the config key that names the server. ``user``: of the login."""
    state = error.sqlstate
    if state == FENCED:
        return Fenced("another run owns this pipeline now, or its checkpoints were changed: this run must stop")
    if state == STORED_ALREADY:
        return StoredAlready()
    if state is None or state in _WAIT or state[:2] in _WAIT_CLASSES:
        return TransientError(f"Postgres at {server}: {_WAIT.get(state or '') or _words(error)}")
    if state == "42501":
        return _not_permitted(error, server, setting, user)
    if state[:2] in _CHANGED_CLASSES:
        return ConfigError(f"Postgres at {server}: {_words(error)}; {_changed(error)}")
    return ReplicatorError(f"Postgres at {server} refuses a statement: {_name(error)}. Its own log says more")


def unreachable(
    error: psycopg.Error, server: str, setting: str, *, password: str = "", logged_in: bool = False
) -> ReplicatorError:
    """Our error for a failed connection attempt. libpq has no SQLSTATE for those, only a message.

    ``password``: the setting that it comes from, if that is another one. ``logged_in``: the same login worked before,
    so its password is being rotated.
    """
    text = _first_line(error)
    refused = f"Postgres at {server} refuses the login: {text.rpartition('FATAL:')[2].strip()}"
    if any(words in text for words in _WRONG):
        return ConfigError(f"{refused}; correct {setting}")
    if any(words in text for words in _UNKNOWN_LOGIN):
        if logged_in:
            return TransientError(
                f"{refused}. It was accepted before, so the password was probably changed: a password file "
                f"(password_file, or passfile= in {setting}) is read at each attempt; after a change of {setting} "
                "itself restart the run"
            )
        whose = f"the user of {setting}, and the password in {password}" if password else ""
        return NotAuthenticated(
            refused, "login", server, f"Correct {whose or f'the user and the password of {setting}'}"
        )
    for words, advice in _LOGIN_DENIED.items():
        if words in text:
            return NotPermitted(refused, "login", server, advice.format(setting=setting))
    return TransientError(f"Postgres at {server} cannot be reached: {text}")


def _changed(error: psycopg.Error) -> str:
    if _is_ours(error):
        return "it was dropped or changed: run check"
    return (
        "replicator's sessions have search_path = pg_catalog, pg_temp, so a function that needs another one must say "
        "so: ALTER FUNCTION … SET search_path = …"
    )


def _is_ours(error: psycopg.Error) -> bool:
    """Whether our own statement failed, not one in a user's trigger or function."""
    context = error.diag.context or ""
    return _OURS in context or not context


def _not_permitted(error: psycopg.Error, server: str, setting: str, user: str) -> NotPermitted:
    text = _words(error)
    to = _quoted(user) if user else f"the user of {setting}"
    return NotPermitted(f"Postgres at {server}: {text}", text, server, _grant(text, to))


def _grant(text: str, to: str) -> str:
    """What allows it: the words of ``check``, as far as the server's message tells the object."""
    if "must be owner" in text or "must be member" in text:
        return f"ALTER TABLE … OWNER TO {to}"
    kind, name = denied.groups() if (denied := _DENIED.search(text)) else ("table", "")
    object = _quoted(name) if name else "…"
    if kind == "database":
        return f"GRANT CREATE ON DATABASE {object} TO {to} (for the schema replicator)"
    if kind == "schema":
        return f"GRANT USAGE, CREATE ON SCHEMA {object} TO {to}"
    return f"GRANT SELECT, INSERT, UPDATE, DELETE ON {object} TO {to}"


_DENIED = re.compile(r"permission denied for (database|schema|table) (.+)")


def _quoted(name: str) -> str:
    return sql.Identifier(name).as_string(None)


def _words(error: psycopg.Error) -> str:
    """The server's message about our own statement; of users' code only the error's name: a message may quote a row."""
    return _first_line(error) if _is_ours(error) else f"a trigger or function raised {_name(error)}"


def _name(error: psycopg.Error) -> str:
    return f"{type(error).__name__} (SQLSTATE {error.sqlstate})"


def _first_line(error: psycopg.Error) -> str:
    primary = error.diag.message_primary
    return primary if primary else str(error).strip().partition("\n")[0].removeprefix("consuming input failed: ")


def refusal(error: psycopg.Error, table: str) -> str:
    """Why the server refuses a row, without values. The server's own message would quote them."""
    diag = error.diag
    if error.sqlstate == SKIPPED:
        return f"a trigger of {table} skipped it, by returning NULL"
    match error:
        case errors.NotNullViolation():
            return f"column {diag.column_name} of {table} must not be null"
        case errors.UniqueViolation():
            return f"another row of {table} has the same value under the unique constraint {diag.constraint_name}"
        case errors.CheckViolation():
            return f"the check constraint {diag.constraint_name} of {table} refuses it"
        case errors.ForeignKeyViolation():
            return f"the foreign key {diag.constraint_name} of {diag.table_name or table} refuses it"
        case errors.ExclusionViolation():
            return f"another row of {table} excludes it, by the exclusion constraint {diag.constraint_name}"
        case errors.RaiseException():
            return f"a trigger of {table} refuses it"
    return f"Postgres refuses it for {table}: {_name(error)}"
