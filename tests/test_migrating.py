"""docs/migrating.md, step by step: its configs and commands, between two DynamoDB Locals, with writers as it says."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from connectors.dynamodb.documents import fields
from replicator.testing.dynamodb.http import UnsignedClient
from tests.cli.command_line import Shell
from tests.connectors.dynamodb.dynamodb_kit import plain
from tests.servers.dynamodb_fixtures import StartLocal

DOCUMENT = Path(__file__).parent.parent / "docs" / "migrating.md"
OURS = {"_replicator_version", "_replicator_mark", "_replicator_deleted"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Account:
    """A DynamoDB Local as one of the accounts, used as an application does."""

    endpoint: str

    def call(self, operation: str, request: dict[str, Any]) -> Any:
        return json.loads(UnsignedClient(self.endpoint).call(operation, request))

    def create_table(self, name: str) -> Any:
        keys = {"KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}]}
        kinds = {"AttributeDefinitions": [{"AttributeName": "id", "AttributeType": "S"}]}
        request = {"TableName": name, **keys, **kinds, "BillingMode": "PAY_PER_REQUEST"}
        return self.call("CreateTable", {**request, "StreamSpecification": STREAM})

    def enable_stream(self, table: str) -> Any:
        return self.call("UpdateTable", {"TableName": table, "StreamSpecification": STREAM})

    def put(self, table: str, item: dict[str, Any]) -> Any:
        return self.call("PutItem", {"TableName": table, "Item": fields(item)})

    def delete(self, table: str, key: dict[str, Any]) -> Any:
        return self.call("DeleteItem", {"TableName": table, "Key": fields(key)})

    def items(self, table: str) -> list[dict[str, Any]]:
        found = self.call("Scan", {"TableName": table, "ConsistentRead": True})["Items"]
        return [{name: plain(value) for name, value in item.items()} for item in found]


STREAM = {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}


@dataclass
class Move:
    """The folder with both configs, the old and the new server, and the runs that are up."""

    folder: Path
    old: Account
    new: Account
    shell: Shell = field(default_factory=lambda: Shell({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}))
    runs: list[subprocess.Popen[str]] = field(default_factory=list)
    said: list[tuple[str, int, str]] = field(default_factory=list)

    def carry_out(self, command: str) -> None:
        """A documented command, with a shorter --quiet. A run stays up once it is live."""
        _, name, *arguments = shlex.split(command)
        if name == "run":
            self.run(arguments)
            return
        quiet = ["--quiet", "1s"] if name == "cutover" else []
        code, out, err = self.shell.run(name, *arguments, *quiet, "--json", cwd=self.folder)
        self.said.append((command, code, err + out))

    def run(self, arguments: list[str]) -> None:
        process = self.shell.start("run", *arguments, "--json", cwd=self.folder)
        self.runs.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("phase") == "live":
                return
        raise AssertionError("the run ended before it was live")

    def stop(self) -> list[int]:
        for process in self.runs:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
        return [process.returncode for process in self.runs]

    def last(self) -> tuple[str, int, Any]:
        command, code, out = self.said[-1]
        return command, code, json.loads(out.splitlines()[-1]) if "cutover" in command else out

    def items(self, db: Account) -> dict[str, Any]:
        """What people see of a table."""
        found = [item for item in db.items("orders") if "_replicator_deleted" not in item]
        return {item["id"]: {n: v for n, v in item.items() if n not in OURS} for item in found}


@pytest.fixture
def move(dynamodb_local: StartLocal, tmp_path: Path) -> Iterator[Move]:
    accounts = [Account(dynamodb_local().endpoint) for _ in range(2)]
    for text in blocks("yaml"):
        config = yaml.safe_load(text)
        for section in (config["source"], config["target"]):
            section["endpoint_url"] = accounts[section["region"] != "eu-west-1"].endpoint
            section.pop("profile", None)
            section.pop("tags", None)  # DynamoDB Local has none
        (tmp_path / f"{config['pipeline']}.yaml").write_text(yaml.safe_dump(config))
    old, new = accounts
    found = Move(tmp_path, old, new)
    try:
        yield found
    finally:
        found.stop()


@pytest.mark.dynamodb_local
def test_the_runbook_leads_to_the_copy_and_back(move: Move) -> None:
    commands = [line for text in blocks("sh") for line in text.splitlines()]
    assert commands == [
        "replicator check orders.yaml",
        "replicator run orders.yaml",
        "replicator verify orders.yaml",
        "replicator run orders-back.yaml",
        "replicator cutover orders.yaml",
        "replicator cutover orders.yaml --wait",
        "replicator verify orders-back.yaml",
        "replicator cutover orders-back.yaml --wait",
        "replicator strip orders.yaml --yes",
    ]
    check, run, verify, run_back, ask, wait, verify_back, wait_back, strip = commands
    move.old.create_table("orders")
    for n in range(20):
        move.old.put("orders", {"id": f"k{n}", "n": n})
    move.carry_out(check)
    assert move.last()[1] == 0, move.last()
    move.carry_out(run)
    move.new.enable_stream("orders")
    move.carry_out(verify)
    assert move.last()[1] == 0, move.last()
    move.carry_out(run_back)

    move.old.put("orders", {"id": "late", "n": 1})
    move.carry_out(ask)
    _, code, certificate = move.last()
    assert "put-resource-policy" in certificate["freeze"]
    assert "ROLE_OF_THE_OPPOSITE_PIPELINE" in certificate["freeze"]
    assert code in (0, 7), "drained already, or not"
    move.carry_out(wait)
    _, code, certificate = move.last()
    assert (code, certificate["verdict"]) == (0, "yes"), certificate
    assert move.items(move.new) == move.items(move.old)
    assert "late" in move.items(move.new)

    update = {"TableName": "orders", "Key": {"id": {"S": "k1"}}, "UpdateExpression": "SET n = :n"}
    move.new.call("UpdateItem", update | {"ExpressionAttributeValues": {":n": {"N": "100"}}})
    move.new.put("orders", {"id": "k2", "n": 200})
    move.new.delete("orders", {"id": "k3"})
    move.carry_out(verify_back)
    move.carry_out(wait_back)
    _, code, certificate = move.last()
    assert (code, certificate["verdict"]) == (0, "yes"), certificate
    items = move.items(move.old)
    assert items == move.items(move.new)
    assert (items["k1"]["n"], items["k2"]["n"], "k3" in items) == (100, 200, False)

    move.old.put("orders", {"id": "k4", "n": 400})  # and forward again
    move.carry_out(wait)
    assert move.last()[1] == 0, move.last()
    assert move.items(move.new) == move.items(move.old)
    assert move.stop() == [0, 0]
    move.runs.clear()

    move.carry_out(strip)
    assert "an opposite pipeline needs these attributes" in move.last()[2]
    config = move.folder / "orders.yaml"
    config.write_text(config.read_text().replace("loops: true", "loops: false"))
    seen = move.items(move.new)
    move.carry_out(strip)
    assert move.last()[1] == 0, move.last()
    assert {item["id"]: item for item in move.new.items("orders")} == seen
