"""The target contract on Redis and on Valkey, read with a plain client."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest

from replicator.batch import Outcome
from replicator.target.contract import Table, Target
from replicator.testing.contract import TargetContract, table
from replicator.testing.contract.kit import batch, built, put
from replicator.testing.contract.late_writes import Proxied
from replicator.testing.contract.moves import Remade
from replicator.testing.proxy import Proxy
from replicator.version import FIRST_EPOCH
from tests.connectors.redis import redis_kit as kit
from tests.servers.redis import RedisCluster, RedisServer


class OnAServer(TargetContract):
    """Common to both."""

    many = 6000

    @pytest.fixture
    def config(self, server: RedisServer) -> Mapping[str, Any]:
        return kit.options(server)

    @pytest.fixture
    def unreachable(self) -> Mapping[str, Any]:
        return {"type": "redis", "url": "redis://127.0.0.1:1"}

    @pytest.fixture
    def stored(self, server: RedisServer) -> Callable[[Table], Any]:
        return partial(kit.documents, server)

    @pytest.fixture
    def sever(self, server: RedisServer) -> Callable[[], None]:
        def cut() -> None:
            with server.client() as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "normal")

        return cut

    def test_recovers_from_a_cut_connection(self, opened: Target, sever: Callable[[], None], stored: Any) -> None:
        """A connection that broke while idle is reopened before anything is sent, so nothing is in doubt."""
        opened.write(batch(put({"pk": "a"}, 1)))
        sever()
        assert opened.write(batch(put({"pk": "b"}, 2))) == Outcome()
        assert set(stored(table())) == {("a",), ("b",)}

    @pytest.fixture
    def restart(self, server: RedisServer) -> Callable[[], None]:
        return server.restart

    @pytest.fixture
    def proxied(self, server: RedisServer) -> Iterator[Proxied]:
        with Proxy("127.0.0.1", server.port) as proxy:
            yield {"type": "redis", "url": f"redis://127.0.0.1:{proxy.port}", "timeout": 5}, proxy

    @pytest.fixture
    def otherwise(self, server: RedisServer) -> Mapping[str, Any]:
        return {"type": "redis", "url": f"unix://{server.socket}"}

    @pytest.fixture
    def dropped(self, server: RedisServer) -> Callable[[Table], None]:
        def drop(_: Table) -> None:
            with server.client() as client:
                client.flushall()

        return drop

    @pytest.fixture
    def remade(self, dropped: Callable[[Table], None]) -> Remade:
        return dropped

    @pytest.fixture
    def recreated(self, server: RedisServer, dropped: Callable[[Table], None]) -> Remade:
        def recreate(of: Table) -> None:
            dropped(of)
            other = built(kit.options(server))
            other.open([table()], FIRST_EPOCH)
            other.close()

        return recreate


class TestOnRedis(OnAServer):
    pass


class TestOnValkey(OnAServer):
    races = 10
    seeds = 5

    @pytest.fixture
    def server(self, valkey_server: RedisServer) -> RedisServer:
        with valkey_server.client() as client:
            client.flushall()
        return valkey_server


class TestOnACluster(TargetContract):
    """Three primaries. ``proxied``: a node that has all slots, and says that it is where the proxy is."""

    many = 6000
    races = 10
    seeds = 5

    @pytest.fixture
    def config(self, cluster: RedisCluster) -> Mapping[str, Any]:
        return kit.options(cluster)

    @pytest.fixture
    def unreachable(self) -> Mapping[str, Any]:
        return {"type": "redis", "url": "redis+cluster://127.0.0.1:1"}

    alone: RedisCluster | None = None

    @pytest.fixture
    def stored(self, cluster: RedisCluster) -> Callable[[Table], Any]:
        return lambda table: kit.documents(self.alone or cluster, table)

    @pytest.fixture
    def sever(self, cluster: RedisCluster) -> Callable[[], None]:
        return cluster.cut

    def test_recovers_from_a_cut_connection(self, opened: Target, sever: Callable[[], None], stored: Any) -> None:
        """As on one server: it is reopened before anything is sent."""
        opened.write(batch(put({"pk": "a"}, 1)))
        sever()
        assert opened.write(batch(put({"pk": "b"}, 2))) == Outcome()
        assert set(stored(table())) == {("a",), ("b",)}

    @pytest.fixture
    def restart(self, cluster: RedisCluster) -> Callable[[], None]:
        return cluster.restart

    @pytest.fixture
    def proxied(self) -> Iterator[Proxied]:
        with RedisCluster(primaries=1, replicas=0) as alone, Proxy("127.0.0.1", alone.nodes[0].port) as proxy:
            with alone.nodes[0].client() as client:
                client.config_set("cluster-announce-port", proxy.port)
            self.alone = alone
            yield {"type": "redis", "url": f"redis+cluster://127.0.0.1:{proxy.port}", "timeout": 5}, proxy

    @pytest.fixture
    def otherwise(self, cluster: RedisCluster) -> Mapping[str, Any]:
        return {"type": "redis", "url": f"redis+cluster://localhost:{cluster.nodes[2].port}"}

    @pytest.fixture
    def dropped(self, cluster: RedisCluster) -> Callable[[Table], None]:
        return lambda _: cluster.empty()

    @pytest.fixture
    def remade(self, dropped: Callable[[Table], None]) -> Remade:
        return dropped

    @pytest.fixture
    def recreated(self, cluster: RedisCluster, dropped: Callable[[Table], None]) -> Remade:
        def recreate(of: Table) -> None:
            dropped(of)
            other = built(kit.options(cluster))
            other.open([table()], FIRST_EPOCH)
            other.close()

        return recreate
