"""The latest epoch among the versions of a table's items, where no note tells."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from connectors.dynamodb.catalog import ask
from connectors.dynamodb.layout import Layout
from replicator.aws.client import Client
from replicator.version import FIRST_EPOCH, epoch_of, version

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
