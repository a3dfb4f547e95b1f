"""Real Postgres servers for the tests: the oldest and the newest that are supported, one cluster each a session."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest

from replicator.testing.servers.postgres import PostgresServer, ServerMissing, Which
from tests.security.canary import SECRET
from tests.servers import starting

SERVERS: tuple[Which, ...] = ("debian", "wheel")


@dataclass(frozen=True)
class Database:
    """A fresh, empty database on a running server."""

    server: PostgresServer
    name: str

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    def connect(self) -> psycopg.Connection:
        """A plain autocommitting client, which sees what other sessions see."""
        return psycopg.connect(self.url, autocommit=True)


def started(which: Which) -> Iterator[PostgresServer]:
    return starting.started(
        f"Postgres ({which})",
        lambda: PostgresServer(which, password=SECRET + secrets.token_hex(8), trusting=True),
        ServerMissing,
    )


def database(server: PostgresServer) -> Iterator[Database]:
    name = f"t_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
    yield Database(server, name)
    server.start()  # a test may have stopped it
    with psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(scope="session", params=SERVERS)
def postgres_server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    yield from started(request.param)


@pytest.fixture(scope="session")
def one_postgres_server() -> Iterator[PostgresServer]:
    """The newest one, for tests where the server's age does not matter."""
    yield from started("wheel")


@pytest.fixture(scope="session")
def old_postgres_server() -> Iterator[PostgresServer]:
    """The oldest one, for what the newest is built without (ICU)."""
    yield from started("debian")


@pytest.fixture
def old_postgres(old_postgres_server: PostgresServer) -> Iterator[Database]:
    """A fresh database on the oldest server."""
    yield from database(old_postgres_server)


@pytest.fixture
def postgres(postgres_server: PostgresServer) -> Iterator[Database]:
    """A fresh database on each server."""
    yield from database(postgres_server)


@pytest.fixture
def one_postgres(one_postgres_server: PostgresServer) -> Iterator[Database]:
    """A fresh database on the newest server."""
    yield from database(one_postgres_server)
