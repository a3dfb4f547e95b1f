"""The in-memory DynamoDB behind IAM policies, with AWS's own messages for denied requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

from replicator.aws.errors import AwsError
from replicator.testing.dynamodb import DynamoDB
from tests.security.policy import RESOURCES, Permission
from tests.security.process.aws_calls import actions, kind_of

REGION, ACCOUNT = "us-east-1", "123456789012"
_KINDS = {
    "source": {"orders": "table", "replicator-epochs": "epochs"},
    "target": {"copies": "table", "replicator-epochs": "epochs"},
    "checkpoints": {"kept": "table"},
}
_NAMES = {
    "REGION": REGION,
    "ACCOUNT": ACCOUNT,
    "TABLE": "orders",
    "TARGET": "copies",
    "EPOCHS_OF_SOURCE": "replicator-epochs",
    "EPOCHS": "replicator-epochs",
    "CHECKPOINTS": "kept",
}


class Account:
    """A ``Client`` for one place of a config (source, target, checkpoints), and ``used``: what it was asked for.

    ``denied``: permissions of the documents that are missing. What is in no document is refused as well.
    """

    def __init__(self, place: str, db: DynamoDB, allowed: set[Permission]) -> None:
        self.db, self.allowed = db, allowed
        self.used: set[Permission] = set()
        self.denied: set[Permission] = set()
        self._place = place
        self._lock = threading.Lock()

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        for wanted in self._wanted(operation, request):
            with self._lock:
                self.used.add(wanted)
            if wanted not in self.allowed or wanted in self.denied:
                raise AwsError("AccessDeniedException", _refusal(wanted, self._stream_arn()), 400)
        return self.db.call(operation, request)

    def _wanted(self, operation: str, request: Mapping[str, Any]) -> Iterator[Permission]:
        kind = self._kind(operation, request)
        for action in actions(operation, request):
            yield Permission(RESOURCES.get((self._place, kind), kind), action)

    def _kind(self, operation: str, request: Mapping[str, Any]) -> str:
        if (kind := kind_of(operation)) is not None:
            return kind
        (table,) = set(_tables(request))
        return _KINDS[self._place].get(table, table)

    def _stream_arn(self) -> str:
        return self.db.stream_arn("orders") if self._place == "source" else ""


def _tables(request: Mapping[str, Any]) -> Iterator[str]:
    if "TableName" in request:
        yield request["TableName"]
    for name in ("ResourceArn", "TableArn"):
        if name in request:
            yield request[name].rpartition("/")[2]
    yield from request.get("RequestItems", ())
    for action in request.get("TransactItems", ()):
        yield from (given["TableName"] for given in action.values())


def arn(resource: str, stream: str = "") -> str:
    """A documented resource with the names used in the tests."""
    if resource.endswith("/stream/*"):
        return stream
    for word, name in _NAMES.items():
        resource = resource.replace(word, name)
    return resource


def _refusal(wanted: Permission, stream: str) -> str:
    return (
        f"User: arn:aws:sts::{ACCOUNT}:assumed-role/replicator/me is not authorized to perform: {wanted.action} on "
        f"resource: {arn(wanted.resource, stream)} because no identity-based policy allows the {wanted.action} action"
    )
