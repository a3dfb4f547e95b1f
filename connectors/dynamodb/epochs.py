"""Which copy wrote to which table last: an item for each table, in a small table of our own.

Not in the table itself, where it would be an item among the user's. Not as a tag of it: tags are read as they were some
time ago, they take rights of their own, and DynamoDB Local has none.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from connectors.dynamodb.catalog import Described, ask, describe
from connectors.dynamodb.documents import Layout
from replicator.aws.client import Client
from replicator.aws.errors import AwsError, failure
from replicator.errors import ConfigError
from replicator.key import KeyAttribute, KeySchema
from replicator.version import FIRST_EPOCH, epoch_of, version

KEYS = KeySchema((KeyAttribute("table", "S"),))


@dataclass(frozen=True, slots=True)
class Note:
    """What is noted for a table: the ``pipeline`` that writes to it, and the last ``epoch`` that did."""

    pipeline: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Epochs:
    """The table of notes, called ``name``."""

    client: Client
    name: str

    @property
    def request(self) -> dict[str, Any]:
        """Makes it."""
        return {
            "TableName": self.name,
            "AttributeDefinitions": [{"AttributeName": "table", "AttributeType": "S"}],
            "KeySchema": [{"AttributeName": "table", "KeyType": "HASH"}],
            "BillingMode": "PAY_PER_REQUEST",
        }

    def found(self) -> Described | None:
        return describe(self.client, self.name)

    def read(self, table: Described) -> Note | None:
        """What is noted for a table, None if nothing is, or if that was about an earlier table of its name."""
        request = {"TableName": self.name, "Key": {"table": {"S": table.name}}, "ConsistentRead": True}
        item = ask(self.client, "GetItem", request, self.name).get("Item")
        if item is None or item["identity"]["S"] != table.identity:
            return None
        return Note(item["pipeline"]["S"], int(item["epoch"]["N"]))

    def write(self, table: Described, note: Note) -> None:
        """Note it, unless a later epoch is noted already for that very table.

        ConfigError if another pipeline noted one meanwhile: two may begin on one table at the same moment.
        """
        request = {
            "TableName": self.name,
            "Item": {
                "table": {"S": table.name},
                "identity": {"S": table.identity},
                "pipeline": {"S": note.pipeline},
                "epoch": {"N": str(note.epoch)},
            },
            "ConditionExpression": "attribute_not_exists(#e) OR #i <> :i OR (#p = :p AND #e < :e)",
            "ExpressionAttributeNames": {"#e": "epoch", "#i": "identity", "#p": "pipeline"},
            "ExpressionAttributeValues": {
                ":e": {"N": str(note.epoch)},
                ":i": {"S": table.identity},
                ":p": {"S": note.pipeline},
            },
        }
        try:
            self.client.call("PutItem", request)
        except AwsError as e:
            if e.code != "ConditionalCheckFailedException":
                raise failure(e, "PutItem", self.name, place="target") from e
            there = self.read(table)
            if there is not None and there.pipeline != note.pipeline:
                raise ConfigError(taken(table.name, there, self.name)) from e


def taken(table: str, note: Note, epochs_table: str) -> str:
    """Why a table must not be written to: what is noted of it says that another pipeline does."""
    return (
        f"the target's table {table} is written by the pipeline {note.pipeline} (so says the table {epochs_table}); "
        "two copies in one table would overwrite each other. If this config is that pipeline's, correct pipeline: in "
        "it; if not, name another table, or remove that item if the other pipeline is gone"
    )


log = logging.getLogger("replicator")


@dataclass(slots=True)
class Newest:
    """One scan of all items, begun once: what ends it early, as throttling does, is gone on from when asked again."""

    client: Client
    layout: Layout
    _found: int = 0
    _after: dict[str, Any] | None = field(default_factory=dict)  # where to go on; None: the end was reached

    def __call__(self) -> int:
        """0 without a version. Versions below those of the first epoch are of other tools."""
        if self._after == {}:
            log.info("reading all versions", extra={"table": self.layout.name, "reason": "no epoch is noted for it"})
        while self._after is not None:
            page = ask(self.client, "Scan", self._request(self._after), self.layout.name)
            versions = [int(Decimal(item[self.layout.version]["N"])) for item in page["Items"]]
            self._found = max([self._found, *map(epoch_of, versions)])
            self._after = page.get("LastEvaluatedKey")
        return self._found

    def _request(self, after: dict[str, Any]) -> dict[str, Any]:
        return {
            "TableName": self.layout.name,
            "ConsistentRead": True,
            "FilterExpression": "#v >= :first",
            "ProjectionExpression": "#v",
            "ExpressionAttributeNames": {"#v": self.layout.version},
            "ExpressionAttributeValues": {":first": {"N": str(version(FIRST_EPOCH, 0))}},
            **({"ExclusiveStartKey": after} if after else {}),
        }
