"""How a run handles DynamoDB tables that changed since the last one, on the command line."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from tests.cli.command_line import Shell
from tests.connectors.dynamodb.dynamodb_kit import DELETED, EPOCHS

HOOK = """
from replicator import Document, documents

@documents
def hook(item):
    yield Document("1", {"n": item["n"]}, "first")
    yield Document("1", {"n": item["n"]}, "second")
"""
ITEMS = 4


@dataclass
class Copy:
    """A pipeline from an in-memory table into two others, each in its own account."""

    source: DynamoDB
    there: DynamoDB
    config: Path

    def request(self, *keys: str) -> tuple[int, str]:
        """Request a resync of these items."""
        shell = Shell({"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"})
        options = [part for key in keys for part in ("--key", json.dumps({"id": key}))]
        code, _, err = shell.run("resync", str(self.config), *options)
        return code, err

    def run(self, command: str = "run") -> tuple[int, str]:
        shell = Shell({"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"})
        now = ("--now",) if command == "resync" else ()
        code, _, err = shell.run(command, str(self.config), *now, "--until", "caught-up")
        return code, err

    def ask(self, operation: str, **request: Any) -> Any:
        return orjson.loads(self.there.call(operation, request))

    def items(self, name: str) -> list[Any]:
        """All of a small table, as DynamoDB writes them."""
        return list(self.ask("Scan", TableName=name)["Items"])

    def live(self, name: str) -> list[Any]:
        """The items that are not marked as deleted."""
        return [item for item in self.items(name) if DELETED not in item]

    def make_anew(self, name: str) -> None:
        was = self.ask("DescribeTable", TableName=name)["Table"]
        self.ask("DeleteTable", TableName=name)
        self.ask("CreateTable", **{key: was[key] for key in ("TableName", "KeySchema", "AttributeDefinitions")})

    def counts(self) -> list[int]:
        return [len(self.there.items(name)) for name in ("first", "second")]


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Copy]:
    """A copy that has caught up."""
    source, there = (DynamoDB(now=time.time, random=random.Random(seed)) for seed in (1, 2))
    source.create_table("orders")
    for n in range(ITEMS):
        source.put("orders", {"id": f"k{n}", "n": n})
    with served(source) as at, served(there) as to:
        reached = {"region": "us-east-1"}
        config = {
            "pipeline": "orders",
            "source": {"table": "orders", "endpoint_url": at, **reached},
            "transform": "hooks.py:hook",
            "target": {"type": "dynamodb", "endpoint_url": to, "create": True, "tables": {"first": {}, "second": {}}}
            | reached,
        }
        (tmp_path / "hooks.py").write_text(HOOK)
        (tmp_path / "orders.yaml").write_text(json.dumps(config))
        pipeline = Copy(source, there, tmp_path / "orders.yaml")
        assert pipeline.run()[0] == 0
        yield pipeline


@pytest.mark.parametrize("how", ["empty", "restored", "with its note"])
def test_of_several_tables_the_recreated_one_is_named(copy: Copy, how: str) -> None:
    items = copy.items("second")
    copy.make_anew("second")
    for item in items if how != "empty" else ():
        copy.ask("PutItem", TableName="second", Item=item)
    if how == "with its note":
        note = copy.ask("GetItem", TableName=EPOCHS, Key={"table": {"S": "second"}})["Item"]
        identity = copy.ask("DescribeTable", TableName="second")["Table"]["TableId"]
        copy.ask("PutItem", TableName=EPOCHS, Item={**note, "identity": {"S": identity}})
    code, output = copy.run()
    assert code == 3, output
    assert "table/second is not the table that the last run wrote to" in output
    assert "table/first" not in output
    if how == "restored":
        copy.ask("PutItem", TableName="second", Item={**items[0], "_id": {"S": "of before"}})
    assert copy.run("resync")[0] == 0
    assert [len(copy.live(name)) for name in ("first", "second")] == [ITEMS, ITEMS]


@pytest.mark.parametrize("lost", ["an item of the epochs table", "the epochs table"])
def test_a_pipeline_whose_notes_are_lost_goes_on(copy: Copy, lost: str) -> None:
    if lost == "the epochs table":
        copy.ask("DeleteTable", TableName=EPOCHS)
    else:
        copy.ask("DeleteItem", TableName=EPOCHS, Key={"table": {"S": "first"}})
    copy.source.put("orders", {"id": "late", "n": 1})
    code, output = copy.run()
    assert code == 0, output
    assert copy.counts() == [ITEMS + 1, ITEMS + 1]
    assert {item["table"]["S"] for item in copy.items(EPOCHS)} == {"first", "second"}


def test_a_table_without_a_note_is_not_taken_over_by_another_pipeline(copy: Copy) -> None:
    """Its items have versions: of which pipeline, only its note and the checkpoints could tell."""
    copy.ask("DeleteTable", TableName=EPOCHS)
    copy.config.write_text(copy.config.read_text().replace('"pipeline": "orders"', '"pipeline": "other"'))
    code, output = copy.run()
    assert code == 3, output
    assert "of a pipeline whose checkpoints are lost or stored elsewhere" in output
    assert copy.counts() == [ITEMS, ITEMS]


def test_a_restored_table_of_another_pipeline_is_refused(copy: Copy) -> None:
    items = copy.items("second")
    copy.make_anew("second")
    for item in items:
        copy.ask("PutItem", TableName="second", Item=item)
    config = json.loads(copy.config.read_text())
    config |= {"pipeline": "other", "target": config["target"] | {"tables": {"second": {}}}}
    copy.config.write_text(json.dumps(config))
    assert copy.run()[0] == 3
    code, output = copy.run("resync")
    assert code == 2, output
    assert "already has items, and no record that this pipeline wrote them" in output
    assert copy.items("second") == items


def test_a_table_that_was_emptied_by_hand_is_a_gap(copy: Copy) -> None:
    for item in copy.items("first"):
        copy.ask("DeleteItem", TableName="first", Key={name: item[name] for name in ("_item", "_id")})
    code, output = copy.run()
    assert code == 3, output
    assert "table/first is empty, but held documents when the last run stopped" in output
    assert copy.run("resync")[0] == 0
    assert copy.counts() == [ITEMS, ITEMS]


def test_tables_emptied_by_the_stream_are_not_a_gap(copy: Copy) -> None:
    for n in range(ITEMS):
        copy.source.delete("orders", {"id": f"k{n}"})
    assert copy.run()[0] == 0
    assert copy.counts() == [0, 0]
    assert copy.run()[0] == 0


def test_items_that_others_changed_are_repaired_by_a_resync_of_them(copy: Copy) -> None:
    config = json.loads(copy.config.read_text())
    del config["transform"]
    copy.config.write_text(
        json.dumps(config | {"pipeline": "plain", "target": config["target"] | {"tables": {"third": {}}}})
    )
    assert copy.run()[0] == 0
    (one, *_) = copy.items("third")
    copy.ask("PutItem", TableName="third", Item={**one, "id": {"S": "ghost"}})
    copy.ask("PutItem", TableName="third", Item={**one, "id": {"S": "k0"}, "n": {"N": "99"}})
    copy.ask("PutItem", TableName="third", Item={**one, "id": {"S": "k2"}, "n": {"N": "99"}})
    copy.ask("DeleteItem", TableName="third", Key={"id": {"S": "k1"}})
    assert copy.request("k0", "k1", "ghost") == (0, "")
    code, output = copy.run()
    assert code == 0, output
    stored = {item["id"]["S"]: item["n"]["N"] for item in copy.items("third")}
    assert stored == {"k0": "0", "k1": "1", "k2": "99", "k3": "3"}  # k2 was not asked for
