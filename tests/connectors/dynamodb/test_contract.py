"""The target contract on DynamoDB Local and on the in-memory one, read with plain boto3."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from functools import partial
from typing import Any, ClassVar

import pytest

from replicator.batch import Outcome
from replicator.errors import TransientError
from replicator.target.contract import Table, Target
from replicator.testing.contract import TargetContract, batch, put, table
from replicator.testing.contract.kit import EVERY_TYPE, Document, Stored
from replicator.testing.contract.late_writes import Proxied
from replicator.testing.contract.moves import Remade
from replicator.testing.proxy import Proxy
from replicator.version import FIRST_EPOCH
from tests.connectors.dynamodb import dynamodb_kit as kit
from tests.servers.dynamodb_local import DynamoDBLocal


class OnDynamoDB(TargetContract):
    """Common to both; ``endpoint`` is their address."""

    # DynamoDB itself takes no empty name.
    many = 300
    every_type: ClassVar[Document] = {**EVERY_TYPE, "map": {"null": None, "deep": {"er": {"est": [Decimal("1.5")]}}}}

    @pytest.fixture(autouse=True)
    def _credentials(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")

    @pytest.fixture
    def proxy(self, endpoint: str) -> Iterator[Proxy]:
        with Proxy("127.0.0.1", kit.port(endpoint)) as found:
            yield found

    @pytest.fixture
    def config(self, endpoint: str) -> Mapping[str, Any]:
        return kit.options(endpoint)

    @pytest.fixture
    def unreachable(self) -> Mapping[str, Any]:
        return kit.options("http://127.0.0.1:1")

    @pytest.fixture
    def stored(self, endpoint: str) -> Callable[[Table], Any]:
        return partial(kit.documents, endpoint)

    @pytest.fixture
    def proxied(self, proxy: Proxy) -> Proxied:
        return kit.options(f"http://127.0.0.1:{proxy.port}", timeout=5), proxy

    @pytest.fixture
    def otherwise(self, endpoint: str) -> Mapping[str, Any]:
        return kit.options(f"http://localhost:{kit.port(endpoint)}")

    @pytest.fixture
    def recreated(self, endpoint: str) -> Remade:
        return partial(kit.made_anew, endpoint)

    def test_recovers_from_a_cut_connection(  # type: ignore[override]
        self, proxied: Proxied, build: Callable[[Mapping[str, Any]], Target], stored: Stored
    ) -> None:
        """If the broken connection is noticed in time, no error is raised; otherwise the write is sent again."""
        config, proxy = proxied
        target = build(config)
        target.open([table()], FIRST_EPOCH)
        target.write(batch(put({"pk": "a"}, 1)))
        proxy.cut()
        assert _written(target, put({"pk": "b"}, 2)) == Outcome()
        assert set(stored(table())) == {("a",), ("b",)}


def _written(target: Target, write: Any) -> Outcome:
    try:
        return target.write(batch(write))
    except TransientError:
        return target.write(batch(write))


@pytest.fixture(scope="module")
def in_memory() -> Iterator[str]:
    """In a separate process, because the suite counts the threads and sockets of this one."""
    command = [sys.executable, "-m", "replicator.testing.dynamodb.http"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


@pytest.fixture(scope="module")
def local(tables_local: DynamoDBLocal) -> str:
    return tables_local.endpoint


class TestInMemory(OnDynamoDB):
    @pytest.fixture
    def endpoint(self, in_memory: str) -> Iterator[str]:
        yield in_memory
        kit.emptied(in_memory)


@pytest.mark.dynamodb_local
class TestLocal(OnDynamoDB):
    races = 150
    seeds = 5

    @pytest.fixture
    def endpoint(self, local: str) -> Iterator[str]:
        yield local
        kit.emptied(local)
