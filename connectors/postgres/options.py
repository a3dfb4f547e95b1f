"""Config of a Postgres target and its tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    SecretStr,
    field_validator,
    model_validator,
)

from replicator.options import ColumnOptions, Options, host_name, is_loopback

ColumnType = Literal["text", "numeric", "bigint", "boolean", "timestamptz", "bytea", "jsonb", "text[]", "numeric[]"]
Nul = Literal["reject", "replace"]
Extra = Literal["reject", "ignore"]
Deletes = Literal["apply", "mark"]

HISTORY = "_history"  # of the name of a table with the history of another one
BASE = "_base"  # of the name of the table with the states from before the retained time

_PORTS = re.compile(r"[0-9,]*")
_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile")
_DECISIVE = ("host", "hostaddr", "sslmode", "channel_binding", "service")
_VERIFIED = ("verify-ca", "verify-full")


def _conninfo(url: SecretStr) -> SecretStr:
    try:
        given = conninfo_to_dict(url.get_secret_value())
    except psycopg.Error:  # whose message may quote the password
        raise ValueError("is not a Postgres address; it must look like postgresql://user@host:5432/database") from None
    if _is_split(url.get_secret_value()) or not _PORTS.fullmatch(str(given.get("port", ""))):
        raise ValueError("is ambiguous: in the user and the password, write / @ : ? # % as %2F %40 %3A %3F %23 %25")
    return url


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError("must be an absolute path")
    return path


def _is_split(url: str) -> bool:
    """Whether part of the password would be parsed as host or database, and shown as such."""
    _, found, rest = url.partition("://")
    if not found:
        return False
    if "/" not in rest.partition("@")[0]:  # else libpq sees no user before the first slash
        rest = rest.partition("@")[2] or rest
    return "@" in rest.partition("?")[0]


class Column(ColumnOptions):
    """One column: its type, the attribute it is made ``from`` (by default its own name), and whether it may be null."""

    type: ColumnType = Field(description="Postgres type")


def _days(given: object) -> object:
    """Days of a duration such as 90d."""
    text = given.strip() if isinstance(given, str) else ""
    number = text.removesuffix("d").strip()
    if not text.endswith("d") or not number.isascii() or not number.isdigit() or len(number) > 5:
        raise ValueError("must be a number of days such as 90d")
    return int(number)


class History(Options):
    """How the history of a table is kept."""

    keep: (
        Annotated[
            int,
            BeforeValidator(_days, json_schema_input_type=str),
            Field(ge=2, le=36_500),
            PlainSerializer(lambda days: f"{days}d"),
        ]
        | None
    ) = Field(
        default=None, description="for how many days changes are kept, e.g. 90d, at least 2d; by default permanently"
    )


def _history(given: object) -> object:
    return {True: {}, False: None}[given] if isinstance(given, bool) else given


Kept = Annotated[History | None, BeforeValidator(_history, json_schema_input_type=bool | History)]


Columns = dict[str, Column | ColumnType]


class PostgresTable(Options):
    """Options of one table. Without ``columns`` the whole document goes into one jsonb column, ``document``."""

    columns: Columns | None = Field(
        default=None, min_length=1, description="columns in addition to the key's, e.g. total: numeric"
    )
    extra: Extra = Field(
        default="reject", description="fields a hook returns that no column is made from: park the item, or ignore them"
    )
    deletes: Deletes = Field(
        default="apply",
        description="apply: remove rows whose item is gone; mark: keep them, with the time in the column deleted_at",
    )
    history: Kept = Field(
        default=None,
        description="keep every change in the table NAME_history: true, or {keep: 90d} (docs/history.md)",
    )
    adopt: bool = Field(
        default=False,
        description="take over a table that something else filled: replace its rows, and remove those that no item has",
    )

    @field_validator("columns")
    @classmethod
    def _dots_are_explained(cls, columns: Columns | None) -> Columns | None:
        for name, column in (columns or {}).items():
            if "." in name and (isinstance(column, str) or column.attribute is None):
                raise ValueError(
                    f"the column {name} has a dot in its name, so it needs its origin: from: {name} (inside a "
                    f'map), or from: ["{name}"] (an attribute of that name)'
                )
        return columns


class Server(Options):
    """Where the database is. Requires TLS with a verified certificate, except for local connections."""

    url: Annotated[SecretStr, AfterValidator(_conninfo)] = Field(
        description="postgresql://user:password@host:5432/database"
    )
    password_file: Annotated[str, AfterValidator(_absolute)] | None = Field(
        default=None,
        description="absolute path of a file with the password alone; read at each login, so that a changed password "
        "needs no restart",
    )
    insecure: bool = Field(default=False, description="allow remote hosts without verified TLS")
    timeout: float = Field(
        default=20.0,
        ge=1,
        le=240,
        description="seconds of silence before a second connection checks whether the server is still working",
    )

    @model_validator(mode="after")
    def _one_password(self) -> Self:
        if self.password_file is not None and conninfo_to_dict(self.url.get_secret_value()).get("password"):
            raise ValueError("password_file: url has a password, too; remove one of them")
        return self

    @model_validator(mode="after")
    def _encrypted(self) -> Self:
        if not self.insecure and not _is_private(self.url.get_secret_value()):
            raise ValueError(
                "url: the remote host is not authenticated, so an impostor could obtain the password and the data "
                "(sslmode=require only encrypts); add ?sslmode=verify-full (with &sslrootcert=system or a CA file) or "
                "?channel_binding=require, or set insecure: true"
            )
        return self

    def files(self) -> Sequence[tuple[str, str]]:
        """As ``NamesFiles`` says: of the password, and those that libpq reads."""
        given = conninfo_to_dict(self.url.get_secret_value())
        named = [(f"url: {name}", str(given[name])) for name in _FILES if given.get(name) not in (None, "system")]
        return named if self.password_file is None else [("password_file", self.password_file), *named]


@dataclass(frozen=True, slots=True)
class TablePlace:
    """Where a table is: the server's database, the schema and the name. ``history``: whether it has a history there."""

    server: object
    schema: str
    name: str
    history: bool = field(default=False, compare=False)

    def overlap(self, other: object) -> str:
        """Which name the tables of one's history take from the other; empty if none."""
        if not isinstance(other, TablePlace) or (self.server, self.schema) != (other.server, other.schema):
            return ""
        common = sorted(self._names & other._names)
        if not common:
            return ""
        return f"{common[0]} has the name of a table of a history; rename one of the two tables"

    @property
    def _names(self) -> frozenset[str]:
        history = (f"{self.name}{HISTORY}", f"{self.name}{HISTORY}{BASE}") if self.history else ()
        return frozenset((self.name, *history))


class PostgresOptions(Server):
    """Options of the target: the database, the schema of its tables, and the policy for NUL characters."""

    schema_: str = Field(default="public", alias="schema", min_length=1, description="schema of the tables")
    nul: Nul = Field(default="reject", description="text with NUL characters: park the item, or replace them by U+FFFD")

    def places(self, table: str, options: Mapping[str, Any]) -> Sequence[object]:
        """By server, database and schema."""
        history = options.get("history") is not None
        found = servers(self.url.get_secret_value())
        return [TablePlace(("postgres", server), self.schema_, table, history) for server in found]


def servers(url: str) -> Sequence[object]:
    """Each host with its port, and the database, in one spelling."""
    given = _given(url)
    database = given.get("dbname") or given.get("user", "")
    hosts = f"{given.get('hostaddr') or given.get('host') or ''}".split(",")
    ports = given.get("port", "5432").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    return [(given.get("service"), host_name(h), p or "5432", database) for h, p in zip(hosts, ports, strict=False)]


def _is_private(url: str) -> bool:
    """Whether the connection is safe from impersonation and eavesdropping on the network.

    With channel binding, authentication depends on the server's certificate, no matter who signed it.
    """
    given = {**_defaults(), **conninfo_to_dict(url)}
    if given.get("sslmode") in _VERIFIED or given.get("channel_binding") == "require":
        return True
    if given.get("service"):  # a service file, which we do not read, may set anything
        return False
    hosts = f"{given.get('hostaddr') or given.get('host') or ''}".split(",")
    return all(not host or host.startswith(("/", "@")) or is_loopback(host) for host in hosts)


def _defaults() -> Mapping[str, Any]:
    """The settings that libpq takes from the environment (PGHOST, PGSSLMODE, ...)."""
    values = {o.keyword.decode(): o.val.decode() for o in Conninfo.get_defaults() if o.val is not None}
    return {name: value for name, value in values.items() if name in _DECISIVE}


def _given(url: str) -> dict[str, str]:
    """The settings of a connection: of its address, and else of the environment or libpq itself."""
    defaults = {o.keyword.decode(): o.val.decode() for o in Conninfo.get_defaults() if o.val is not None}
    return defaults | {name: str(value) for name, value in conninfo_to_dict(url).items()}


def address(url: str) -> str:
    """``host:port/database`` for messages, never the password."""
    given = _given(url)
    host = given.get("host") or given.get("hostaddr") or "the local socket"
    port = given.get("port", "5432")
    return f"{_plain(host)}:{port}/{_plain(given.get('dbname') or given.get('user', ''))}"


def _plain(name: str) -> str:
    """A host or database; hidden if it may contain a password."""
    return "…" if "@" in name[1:] or "=" in name else name
