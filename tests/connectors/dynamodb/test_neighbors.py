"""No command writes or deletes anything in an account that replicator did not create."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from tests.cli.command_line import Shell
from tests.connectors.dynamodb.dynamodb_kit import DELETED, EPOCHS, VERSION, client, emptied, items
from tests.connectors.neighbors_kit import COMMANDS, GROUPS, HOOK, IDS, change, fill
from tests.servers.dynamodb_local import DynamoDBLocal

NAMES = ("my-orders", "orders2", "orders-copy")  # DynamoDB Local takes names for the same whose case differs
KEPT = "kept"
SHELL = Shell({"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"})


@pytest.fixture(scope="module")
def account(tables_local: DynamoDBLocal) -> str:
    """The endpoint of a DynamoDB Local."""
    return tables_local.endpoint


@dataclass(frozen=True)
class Neighbors:
    """A pipeline into the table ``orders`` of an account with other applications' tables and another pipeline."""

    account: str
    config: str

    def everything(self) -> dict[str, Any]:
        """What each table of others is, the items in it, and the other pipeline's items in the tables of replicator."""
        api = client(self.account)
        names = api.list_tables()["TableNames"]
        found: dict[str, Any] = {"tables": names}
        for name in (*NAMES, "others"):
            table = api.describe_table(TableName=name)["Table"]
            found[name] = table, sorted(items(self.account, name), key=repr)
        kept = (item for item in items(self.account, KEPT) if item["pipeline"]["S"] == "other")
        found["kept"] = sorted(kept, key=repr)
        noted = (item for item in items(self.account, EPOCHS) if item["table"]["S"] != "orders")
        found["noted"] = sorted(noted, key=repr)
        return found


@pytest.fixture
def neighbors(account: str, tmp_path: Path) -> Iterator[Neighbors]:
    emptied(account)
    api = client(account)
    for name in NAMES:
        api.create_table(
            TableName=name,
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        for id in IDS:
            api.put_item(TableName=name, Item={"id": {"S": id}, VERSION: {"N": "1"}, DELETED: {"BOOL": True}})
    db = DynamoDB(now=time.time, random=random.Random(1))
    fill(db)
    (tmp_path / "hooks.py").write_text(HOOK)
    with served(db) as endpoint:
        for pipeline, table in (("other", "others"), ("orders", "orders")):
            config = tmp_path / f"{pipeline}.yaml"
            reached = {"region": "us-east-1", "endpoint_url": account}
            wanted = {
                "pipeline": pipeline,
                "source": {"table": "orders", "region": "us-east-1", "endpoint_url": endpoint},
                "transform": "hooks.py:hook",
                "target": {"type": "dynamodb", "create": True, "table": table, **reached},
                "checkpoints": {"type": "dynamodb", "table": KEPT, **reached},
            }
            config.write_text(json.dumps(wanted))
            code, out, err = SHELL.run("check", str(config), "--create")
            assert code == 0, out + err
            code, out, err = SHELL.run("run", str(config), "--until", "caught-up")
            assert code == 6, out + err  # an item is parked
        api.put_item(TableName="others", Item={"id": {"S": "gone"}, VERSION: {"N": "1"}, DELETED: {"BOOL": True}})
        change(db)
        yield Neighbors(account, str(tmp_path / "orders.yaml"))


@pytest.mark.parametrize("commands", GROUPS)
def test_a_command_leaves_the_tables_of_others_and_another_pipeline_as_they_are(
    neighbors: Neighbors, commands: str
) -> None:
    before = neighbors.everything()
    assert [len(before[name][1]) for name in (*NAMES, "others")] == [4, 4, 4, 3]
    assert before["kept"]
    assert [item["pipeline"]["S"] for item in before["noted"]] == ["other"]
    for command in GROUPS[commands]:
        if command == "infer":
            continue  # there is nothing to propose for this target
        output = COMMANDS[command].run(SHELL, neighbors.config).replace("other run", "")
        assert neighbors.everything() == before, command
        assert not re.search(r"my-orders|orders2|orders-copy|others?\b", output), output  # none is named
