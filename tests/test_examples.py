"""The examples in ``configs``: each loads, is accepted by the schema, and does what it says on real servers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import boto3
import jsonschema
import pytest
import yaml
from boto3.dynamodb.types import TypeDeserializer

from replicator.config import settings
from replicator.testing.servers.ministack import MiniStack
from tests.cli.command_line import Shell, make_table, ministack, put
from tests.servers.dynamodb_fixtures import StartLocal
from tests.servers.postgres_fixtures import Database
from tests.servers.search import SearchServer
from tests.servers.search_fixtures import Search

CONFIGS = Path(__file__).parent.parent / "configs"
EXAMPLES = sorted(CONFIGS.rglob("*.yaml"), key=lambda path: path.stem)
ENVIRON = {
    "AWS_REGION": "eu-west-1",
    "TARGET_REGION": "eu-north-1",
    "POSTGRES_URL": "postgresql://localhost/shop",
    "ELASTICSEARCH_URL": "http://localhost:9200",
    "SOURCE_ENDPOINT": "http://localhost:8000",
    "TARGET_ENDPOINT": "http://localhost:8001",
}


@pytest.fixture(scope="module")
def server() -> Iterator[MiniStack]:
    yield from ministack()


@pytest.fixture
def shell(server: MiniStack, one_postgres: Database) -> Shell:
    return Shell({**server.environ, "AWS_ENDPOINT_URL": server.url, "POSTGRES_URL": one_postgres.url})


def caught_up(shell: Shell, name: str, folder: Path = CONFIGS) -> None:
    code, _, err = shell.run("run", str(folder / f"{name}.yaml"), "--until", "caught-up")
    assert code == 0, err


def test_there_are_five() -> None:
    assert [path.stem for path in EXAMPLES] == ["events", "orders", "orders-moved", "products", "shop"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_loads_and_the_schema_accepts_it(path: Path) -> None:
    loaded = settings.load(path, ENVIRON)

    assert loaded.pipeline == path.stem
    jsonschema.validate(yaml.safe_load(path.read_text()), settings.schema())


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


@pytest.mark.search
def test_products_are_found_under_their_alias_until_they_are_discontinued(
    server: MiniStack, shell: Shell, one_search_server: SearchServer, tmp_path: Path
) -> None:
    folder = shutil.copytree(CONFIGS / "products", tmp_path / "products")  # the checkpoints are kept beside the config
    search = Search(one_search_server, "products")
    shell = Shell({**shell.environ, "ELASTICSEARCH_URL": search.url})
    client = make_table(server, "products", {"id": "S"})
    tea = {"id": "1", "title": "Green tea", "category": "tea", "price": Decimal("4.20"), "stock": 3, "tags": {"b", "a"}}
    put(client, "products", tea, tea | {"id": "2", "title": "Black tea"}, tea | {"id": "3", "discontinued": True})
    try:
        caught_up(shell, "products", folder)
        put(client, "products", tea | {"id": "2", "title": "Black tea", "discontinued": True})
        caught_up(shell, "products", folder)
        search.ask("POST", "/products-1/_refresh")
        found = search.ask("GET", "/products/_search?q=title:tea")["hits"]["hits"]
        everything = search.ask("GET", "/products/_count")["count"]
        without = search.ask("GET", "/products/_search?_source_excludes=replicator")["hits"]["hits"]
    finally:
        search.clear()

    assert everything == 1
    ((id, document),) = [(hit["_id"], hit["_source"]) for hit in found]
    assert id == "1"
    assert "replicator" in document
    assert [hit["_source"] for hit in without] == [{n: v for n, v in document.items() if n != "replicator"}]
    assert (document["price_cents"], document["in_stock"], document["tags"]) == (420, True, ["a", "b"])


@pytest.fixture
def another_server() -> Iterator[MiniStack]:
    """One where no other example has made its tables."""
    yield from ministack()


@pytest.mark.dynamodb_local
def test_a_moved_table_is_the_same_table(another_server: MiniStack, dynamodb_local: StartLocal) -> None:
    server, there = another_server, dynamodb_local()
    region = {"TARGET_REGION": "eu-north-1", "TARGET_ENDPOINT": there.endpoint, "SOURCE_ENDPOINT": server.url}
    shell = Shell({**server.environ, "AWS_REGION": "us-east-1", **region})
    client = make_table(server, "orders", {"id": "S", "line": "N"})
    order = {
        "id": "1",
        "line": 1,
        "total": Decimal("1.10"),
        "tags": {"b", "a"},
        "raw": b"\x00",
        "none": None,
        "empty": "",
    }
    put(client, "orders", order, order | {"line": 2})
    moved = CONFIGS / "moved"
    assert shell.run("check", str(moved / "orders-moved.yaml"), "--create")[0] == 0
    caught_up(shell, "orders-moved", moved)
    client.delete_item(TableName="orders", Key={"id": {"S": "1"}, "line": {"N": "2"}})
    caught_up(shell, "orders-moved", moved)
    options = {**server.options, "endpoint_url": there.endpoint, "region_name": "eu-north-1"}
    items = boto3.client("dynamodb", **options).scan(TableName="orders")["Items"]
    there.stop()

    own = ("_replicator_version", "_replicator_deleted")
    alive = [item for item in items if own[1] not in item]
    decoded = [{n: TypeDeserializer().deserialize(v) for n, v in item.items() if n not in own} for item in alive]
    assert decoded == [order]
