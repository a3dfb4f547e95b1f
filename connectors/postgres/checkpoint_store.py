"""A database that holds the checkpoints of another target's pipeline, in the schema ``replicator``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from connectors.postgres.checkpoints import PostgresCheckpoints
from connectors.postgres.migrations import exists, install
from connectors.postgres.options import Server, address
from connectors.postgres.privileges import missing_privileges
from connectors.postgres.session import Session


class PostgresStore(PostgresCheckpoints):
    """``Checkpoints`` of one pipeline with a connection of their own."""

    Options = Server

    def __init__(self, options: Server, pipeline: str, base: Path) -> None:
        super().__init__(Session(options, "checkpoints"), pipeline)
        self._address = address(options.url.get_secret_value())

    @property
    def place(self) -> str:
        return f"the schema replicator of Postgres at {self._address}"

    def check(self) -> Sequence[str]:
        with self._session.connection() as connection:
            return [type(text)(f"checkpoints: {text}") for text in missing_privileges(connection, ())]

    def plan(self) -> Sequence[str]:
        with self._session.connection() as connection:
            return [] if exists(connection) else [f"CREATE SCHEMA replicator, at {self._address}"]

    def create(self) -> None:
        with self._session.connection() as connection:
            install(connection)

    def close(self) -> None:
        self._session.close()
