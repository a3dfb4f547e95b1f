"""One server for all tests of this connector, emptied before each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from replicator.testing.servers.programs import ServerMissing
from tests.servers.redis import RedisServer, valkey
from tests.servers.starting import started


@pytest.fixture(scope="session")
def one_server() -> Iterator[RedisServer]:
    """It keeps all it acknowledged, also when it is killed."""
    yield from started("Redis", lambda: RedisServer("--appendonly", "yes", "--appendfsync", "always"), ServerMissing)


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[RedisServer]:
    options = ("--appendonly", "yes", "--appendfsync", "always")
    yield from started("Valkey", lambda: RedisServer(*options, program=valkey()), ServerMissing)


@pytest.fixture
def server(one_server: RedisServer) -> RedisServer:
    with one_server.client() as client:
        client.flushall()
    return one_server
