"""Targets addressed by host name: it may fail to resolve for a while, and then resolve to another machine."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from replicator.batch import Outcome
from replicator.errors import TransientError
from replicator.target.contract import Target
from replicator.testing.contract import batch, put, table
from replicator.testing.contract.kit import built
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from replicator.testing.proxy import Proxy
from replicator.testing.servers.postgres import PostgresServer
from replicator.version import FIRST_EPOCH
from tests.connectors.dynamodb import dynamodb_kit
from tests.servers.postgres_fixtures import database
from tests.servers.search import SearchServer
from tests.servers.search_fixtures import indices

NAME = "target.example.invalid"
Options = Mapping[str, Any]


class Resolver:
    """The system's resolver, except for one name, which has one address or none."""

    def __init__(self) -> None:
        self.address: str | None = None
        self._real = socket.getaddrinfo

    def __call__(self, host: Any, *more: Any, **named: Any) -> Any:
        if host not in (NAME, NAME.encode()):
            return self._real(host, *more, **named)
        if self.address is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self._real(self.address, *more, **named)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    found = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", found)
    return found


def moves(names: Resolver, port: int, options: Options, keys: Callable[[], set[str]], name: str = "contract") -> None:
    """The name resolves to one address, then to none, then to another."""
    target = built(options)
    with Proxy("127.0.0.1", port, listen=("127.0.0.2", port)) as before:
        names.address = "127.0.0.2"
        target.open([table(name)], FIRST_EPOCH)
        assert target.write(batch(put({"pk": "a"}, 1, table=name))) == Outcome()
        assert before.connections > 0
        names.address = None
        before.refuse()
        said = _failing(target, name)
        assert NAME in said
        assert "cannot be reached" in said
        assert "ame or service not known" in said or "resolve" in said, said
        names.address = "127.0.0.1"
        assert _retrying(target, name) == Outcome()
    target.close()
    assert keys() == {"a", "b"}


def _failing(target: Target, name: str) -> str:
    """The error of the third attempt: the first may still concern the old connection."""
    for _ in range(3):
        with pytest.raises(TransientError) as e:
            target.write(batch(put({"pk": "b"}, 2, table=name)))
    return str(e.value)


def _retrying(target: Target, name: str) -> Outcome:
    try:
        return target.write(batch(put({"pk": "b"}, 2, table=name)))
    except TransientError:
        return target.write(batch(put({"pk": "b"}, 2, table=name)))


@pytest.mark.postgres
@pytest.mark.parametrize("postgres_server", ["wheel"], indirect=True)
def test_postgres_is_found_again_under_another_address(names: Resolver, postgres_server: PostgresServer) -> None:
    with contextmanager(database)(postgres_server) as empty:
        url = empty.url.replace("127.0.0.1", NAME)

        def keys() -> set[str]:
            with empty.connect() as client:
                return {pk for (pk,) in client.execute("SELECT pk FROM contract")}

        moves(names, postgres_server.port, {"type": "postgres", "url": url, "insecure": True}, keys)


@pytest.mark.search
@pytest.mark.parametrize("search_server", ["elasticsearch-9", "opensearch-3"], indirect=True)
def test_an_engine_is_found_again_under_another_address(names: Resolver, search_server: SearchServer) -> None:
    with contextmanager(indices)(search_server) as empty:
        name = f"{empty.prefix}contract"
        url = empty.url.replace("127.0.0.1", NAME)
        options = {"type": search_server.which.partition("-")[0], "url": url, "insecure": True}

        def keys() -> set[str]:
            empty.ask("POST", f"/{name}/_refresh")
            return {hit["_id"] for hit in empty.ask("POST", f"/{name}/_search")["hits"]["hits"]}

        moves(names, search_server.port, options, keys, name)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with served(DynamoDB(now=time.time, random=random.Random(1))) as found:
        yield found


def test_a_table_is_found_again_under_another_address(names: Resolver, endpoint: str) -> None:
    port = dynamodb_kit.port(endpoint)
    options = dynamodb_kit.options(f"http://{NAME}:{port}", insecure=True)

    def keys() -> set[str]:
        return {id[0] for id in dynamodb_kit.documents(endpoint, table())}

    moves(names, port, options, keys)
