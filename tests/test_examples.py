"""The examples in ``configs``: each loads, is accepted by the schema, and does what it says on real servers."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import jsonschema
import pytest
import yaml

from replicator import config
from replicator.testing.ministack import MiniStack
from tests.cli import Shell, make_table, ministack, put
from tests.servers_postgres import Database

CONFIGS = Path(__file__).parent.parent / "configs"
EXAMPLES = sorted(CONFIGS.glob("*.yaml"))


@pytest.fixture(scope="module")
def server() -> Iterator[MiniStack]:
    yield from ministack()


@pytest.fixture
def shell(server: MiniStack, one_postgres: Database) -> Shell:
    return Shell({**server.environ, "AWS_ENDPOINT_URL": server.url, "POSTGRES_URL": one_postgres.url})


def caught_up(shell: Shell, name: str) -> None:
    code, _, err = shell.run("run", str(CONFIGS / f"{name}.yaml"), "--until", "caught-up")
    assert code == 0, err


def test_there_are_three() -> None:
    assert [path.stem for path in EXAMPLES] == ["events", "orders", "shop"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_loads_and_the_schema_accepts_it(path: Path) -> None:
    loaded = config.load(path, {"AWS_REGION": "eu-west-1", "POSTGRES_URL": "postgresql://localhost/shop"})

    assert loaded.pipeline == path.stem
    jsonschema.validate(yaml.safe_load(path.read_text()), config.schema())


def test_orders_become_typed_rows_and_drafts_none(server: MiniStack, shell: Shell, one_postgres: Database) -> None:
    client = make_table(server, "orders", {"id": "S"})
    lines = [{"price": Decimal("1.10"), "count": 3}, {"price": Decimal("0.70"), "count": 1}]
    order = {"id": "1", "status": "new", "customer": "ann", "lines": lines, "placed_at": "2026-01-31T12:00:00Z"}
    put(client, "orders", order, order | {"id": "2", "status": "draft"}, order | {"id": "3", "tags": {"b", "a"}})
    put(client, "orders", order | {"id": "1", "paid_at": 5})
    caught_up(shell, "orders")
    put(client, "orders", order | {"id": "3", "status": "draft"})  # what leaves the filter is removed
    caught_up(shell, "orders")

    with one_postgres.connect() as connection:
        rows = connection.execute("SELECT id, customer, total, paid, extract(day FROM placed_at), tags FROM orders")
        assert rows.fetchall() == [("1", "ann", Decimal("4.00"), True, Decimal(31), None)]


def test_events_are_stored_as_they_are(server: MiniStack, shell: Shell, one_postgres: Database) -> None:
    client = make_table(server, "events", {"device": "S", "at": "N"})
    event = {"device": "d1", "at": 17, "reading": Decimal("0.10"), "flags": {"b", "a"}, "note": "x\0y", "raw": b"\x01"}
    put(client, "events", event, {"device": "d2", "at": 18})
    caught_up(shell, "events")
    client.delete_item(TableName="events", Key={"device": {"S": "d2"}, "at": {"N": "18"}})
    caught_up(shell, "events")

    with one_postgres.connect() as connection:
        ((device, at, document),) = connection.execute("SELECT device, at, document FROM events").fetchall()
    assert (device, at) == ("d1", Decimal(17))
    assert document == {
        "device": "d1",
        "at": 17,
        "reading": 0.1,
        "flags": ["a", "b"],
        "note": "x\ufffdy",
        "raw": "AQ==",
    }


def test_one_shop_table_becomes_three(server: MiniStack, shell: Shell, one_postgres: Database) -> None:
    client = make_table(server, "shop", {"pk": "S", "sk": "S"})
    lines = [{"sku": "tea", "price": 2, "count": 3}, {"sku": "cup", "price": 5, "count": 1}]
    put(
        client,
        "shop",
        {"pk": "C#1", "sk": "PROFILE", "name": "Ann", "email": "ann@example.org"},
        {"pk": "C#1", "sk": "ORDER#7", "status": "new", "lines": lines},
        {"pk": "C#1", "sk": "BASKET"},
    )
    caught_up(shell, "shop")
    put(client, "shop", {"pk": "C#1", "sk": "ORDER#7", "status": "sent", "lines": lines[1:]})
    caught_up(shell, "shop")

    with one_postgres.connect() as connection:
        assert connection.execute("SELECT name, email FROM customers").fetchall() == [("Ann", "ann@example.org")]
        assert connection.execute("SELECT customer, status, total FROM orders").fetchall() == [("C#1", "sent", 5)]
        left = connection.execute('SELECT "order", sku, count, price FROM order_lines').fetchall()
        assert left == [("ORDER#7", "cup", 1, Decimal(5))]
