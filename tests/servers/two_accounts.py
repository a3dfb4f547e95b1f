"""Two AWS accounts behind one endpoint, of which the caller has one; the other lets it in by resource policies."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from replicator.testing.dynamodb import DynamoDB

OWN, OTHER = "111111111111", "222222222222"
_NAMED_BY = ("TableName", "TableArn", "ResourceArn", "StreamArn", "ShardIterator", "ExportArn")


def arn(table: str) -> str:
    """The name by which the caller can request a table of the other account."""
    return f"arn:aws:dynamodb:us-east-1:{OTHER}:table/{table}"


def account(number: str) -> DynamoDB:
    return DynamoDB(now=time.time, random=random.Random(int(number)), account=number)


@dataclass
class TwoAccounts:
    """A ``Client``. As in AWS, a bare name is a table of the caller's ``own`` account, whichever others have that name.

    ``requested``: what was requested in each account, an operation and a table's name or ARN.
    """

    own: DynamoDB = field(default_factory=lambda: account(OWN))
    other: DynamoDB = field(default_factory=lambda: account(OTHER))
    requested: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: {OWN: [], OTHER: []})

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        names = list(_named(request))
        (of,) = {OTHER if f":{OTHER}:" in name else OWN for name in names}  # no request is about both
        self.requested[of] += ((operation, name.partition("|")[0]) for name in names)
        return (self.other if of == OTHER else self.own).call(operation, request)

    def forget(self) -> None:
        for requests in self.requested.values():
            requests.clear()


def _named(request: Mapping[str, Any]) -> Iterator[str]:
    """The tables of a request, each by what names it."""
    yield from (str(request[name]) for name in _NAMED_BY if name in request)
    yield from request.get("RequestItems", ())
    for part in request.get("TransactItems", ()):
        yield from (str(one["TableName"]) for one in part.values())
