"""The target contract through the documented receiver, read back with a plain client of its database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from connectors.webhook.client import Client
from connectors.webhook.messages import Encoder, Frame, timestamp
from connectors.webhook.options import WebhookOptions
from replicator.batch import Outcome
from replicator.config.target import destination
from replicator.errors import ConfigError
from replicator.target.contract import Target
from replicator.testing.contract import TargetContract, at, batch, put, remove, table
from replicator.testing.contract.kit import Stored
from replicator.testing.contract.late_writes import Proxied
from replicator.testing.proxy import Proxy
from replicator.version import FIRST_EPOCH
from tests.connectors.webhook.receiver_kit import Receiver, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with running(tmp_path_factory.mktemp("receiver")) as receiver:
        yield receiver


class TestWebhook(TargetContract):
    races = 10
    seeds = 3

    @pytest.fixture
    def receiver(self, server: Receiver) -> Receiver:
        server.empty()
        return server

    @pytest.fixture
    def config(self, receiver: Receiver) -> Mapping[str, Any]:
        return receiver.config

    @pytest.fixture
    def unreachable(self, receiver: Receiver) -> Mapping[str, Any]:
        return {**receiver.config, "url": "http://127.0.0.1:1/in"}

    @pytest.fixture
    def stored(self, receiver: Receiver) -> Stored:
        return lambda table: receiver.documents(table.name)

    @pytest.fixture
    def restart(self, receiver: Receiver) -> Callable[[], None]:
        def again() -> None:
            receiver.kill()
            receiver.start()

        return again

    @pytest.fixture
    def proxied(self, receiver: Receiver) -> Iterator[Proxied]:
        with Proxy("127.0.0.1", receiver.port) as proxy:
            yield {**receiver.config, "url": f"http://127.0.0.1:{proxy.port}/in", "timeout": 1}, proxy

    @pytest.fixture
    def otherwise(self, receiver: Receiver) -> Mapping[str, Any]:
        pytest.skip("another address is another receiver, as far as replicator can tell")

    def test_recovers_from_a_cut_connection(  # type: ignore[override]
        self, proxied: Proxied, build: Callable[[Mapping[str, Any]], Target], stored: Stored
    ) -> None:
        """A connection that broke while idle is reopened without an error."""
        config, proxy = proxied
        target = build(config)
        target.open([table()], FIRST_EPOCH)
        target.write(batch(put({"pk": "a"}, 1)))
        proxy.cut()
        assert target.write(batch(put({"pk": "b"}, 2))) == Outcome()
        assert set(stored(table())) == {("a",), ("b",)}

    def test_a_receiver_of_another_pipeline_refuses_this_one(self, opened: Target, config: Mapping[str, Any]) -> None:
        found, _ = destination({**config, "table": "contract"})
        assert found is not None
        other = found.build("other")
        (problem,) = other.check([table()])
        assert "refuses a replicator.state message (status 409)" in problem
        with pytest.raises(ConfigError, match="belong to another pipeline"):
            other.open([table()], FIRST_EPOCH)
        other.close()

    def test_a_sweep_of_the_receiver_finds_what_lies_behind_many_spared_documents(
        self, opened: Target, receiver: Receiver
    ) -> None:
        receiver.query(
            "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 12009) INSERT INTO documents "
            "SELECT 'contract', json_array(printf('%05d', i)), 1, '{}', '' FROM n"
        )
        spare = [(f"{n:05}",) for n in range(12_000)]
        assert opened.sweep(table(), at(0), spare) == 10
        assert opened.sweep(table(), at(0), spare) == 0
        assert len(receiver.documents("contract")) == 12_000

    def test_an_answered_message_that_comes_again_changes_nothing(self, opened: Target, receiver: Receiver) -> None:
        """What a request that was given up and applied late does, behind newer events of its item."""
        client = Client(WebhookOptions(**{n: v for n, v in receiver.config.items() if n != "type"}))
        encoder = Encoder([table()], 1 << 20)
        events, _ = encoder.encode(batch(put({"pk": "a"}, 1)))
        message = Frame("contract", timestamp(0.0)).message("msg_1", events)
        first = client.send(message)
        opened.write(batch(remove("a", 2)))
        assert client.send(message).json == first.json == {"superseded": []}
        assert receiver.documents("contract") == {}
        client.close()
