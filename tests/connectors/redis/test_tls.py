"""TLS, against a server that presents its certificate and requires one of its clients."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from replicator.errors import ConfigError, TransientError
from replicator.target.contract import Target
from replicator.testing.contract import batch, put, table
from replicator.testing.contract.kit import built
from replicator.testing.servers.programs import ServerMissing, free_port
from replicator.version import FIRST_EPOCH
from tests.certificates import Pair, certificate_in, pair_in
from tests.servers.redis import RedisCluster, RedisServer
from tests.servers.starting import started


@dataclass(frozen=True)
class Secure:
    """``authority``: of the server's certificate; ``known``, ``unknown``: certificates of clients."""

    server: RedisServer
    port: int
    authority: Path
    known: Pair
    unknown: Pair

    def target(self, **options: Any) -> Target:
        return built({"type": "redis", "url": f"rediss://127.0.0.1:{self.port}", **options})


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    folder, port = tmp_path_factory.mktemp("tls"), free_port()
    certificate, known, unknown = certificate_in(folder), pair_in(folder), pair_in(folder, "unknown")
    authority = shutil.copy(known.certificate, folder / "clients.crt")
    files = ("--tls-cert-file", certificate, "--tls-key-file", certificate, "--tls-ca-cert-file", authority)
    options = ("--tls-port", str(port), *map(str, files))
    for server in started("Redis", lambda: RedisServer(*options), ServerMissing):
        yield Secure(server, port, certificate, known, unknown)


def test_a_trusted_server_that_knows_the_client_is_written_to(secure: Secure) -> None:
    target = secure.target(ca_certs=str(secure.authority), **secure.known.options)
    try:
        target.open([table()], FIRST_EPOCH)
        target.write(batch(put({"pk": "a"}, 1)))
    finally:
        target.close()
    with secure.server.client() as client:
        assert client.get("contract:a") == b'{"pk":"a"}'


def test_a_certificate_that_is_not_trusted_ends_the_run(secure: Secure) -> None:
    target = secure.target(**secure.known.options)
    with pytest.raises(ConfigError, match=r"has a certificate that is not trusted: .*Set target.ca_certs"):
        target.check([table()])
    target.close()


def test_a_cluster_is_reached_with_tls(tmp_path: Path) -> None:
    """Its nodes name the ports for TLS to clients that ask with TLS."""
    port, certificate = free_port(), certificate_in(tmp_path)
    files = ("--tls-cert-file", certificate, "--tls-key-file", certificate, "--tls-ca-cert-file", certificate)
    options = ("--tls-port", str(port), "--tls-auth-clients", "no", "--tls-cluster", "yes", *map(str, files))
    for cluster in started("Redis", lambda: RedisCluster(*options, primaries=1, replicas=0), ServerMissing):
        url = {"type": "redis", "url": f"rediss+cluster://127.0.0.1:{port}"}
        target, untrusting = built({**url, "ca_certs": str(certificate)}), built(url)
        try:
            target.open([table()], FIRST_EPOCH)
            target.write(batch(put({"pk": "a"}, 1)))
            with pytest.raises(ConfigError, match=r"has a certificate that is not trusted: .*Set target.ca_certs"):
                untrusting.check([table()])
        finally:
            target.close()
            untrusting.close()
        with cluster.nodes[0].client() as client:
            assert client.get("contract:a") == b'{"pk":"a"}'


@pytest.mark.parametrize("with_one", [False, True])
def test_a_client_without_a_certificate_that_the_server_knows_gets_nowhere(secure: Secure, with_one: bool) -> None:
    target = secure.target(ca_certs=str(secure.authority), **(secure.unknown.options if with_one else {}))
    with pytest.raises((ConfigError, TransientError)):
        target.check([table()])
    target.close()
