"""One server for all tests of this connector, emptied before each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from replicator.testing.servers.programs import ServerMissing
from tests.servers.redis import RedisCluster, RedisServer, valkey
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


@pytest.fixture(scope="session")
def one_cluster() -> Iterator[RedisCluster]:
    """Three primaries that keep all they acknowledged, also when they are killed."""
    options = ("--appendonly", "yes", "--appendfsync", "always")
    yield from started("Redis", lambda: RedisCluster(*options, replicas=0), ServerMissing)


@pytest.fixture
def cluster(one_cluster: RedisCluster) -> RedisCluster:
    one_cluster.empty()
    return one_cluster
