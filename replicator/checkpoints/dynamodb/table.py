"""Access to the table: consistent reads, conditional writes, blobs, and translation of AWS errors."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from replicator.aws.client import Client
from replicator.aws.errors import AwsError, decoded, failure
from replicator.checkpoints.dynamodb.layout import Action, Blob, Item
from replicator.errors import ConfigError, ReplicatorError, TransientError

ITEMS = 100  # per transaction
ACTIONS = 80  # of these, at most, besides the heads
BYTES = 2_500_000  # per transaction; DynamoDB allows 4 MB
_PIECE = 90_000  # characters per piece of a blob, at most four bytes each: below the 400 KB limit of an item
_CONFLICTS = ("ConditionalCheckFailed", "TransactionConflict", "DuplicateItem")
_TRANSIENT = ("ThrottlingError", "ProvisionedThroughputExceeded", "RequestLimitExceeded")


class Changed(Exception):
    """A condition failed because another process wrote first. Nothing was written."""


class CheckpointTable:
    """The items of one pipeline in a table with the string keys ``pipeline`` and ``entry``."""

    def __init__(self, client: Client, table: str, resource: str, pipeline: str) -> None:
        self._client, self._table, self._resource, self._pipeline = client, table, resource, pipeline

    def get(self, key: str) -> Item | None:
        request = {"TableName": self._table, "Key": self._key(key), "ConsistentRead": True}
        item: Item | None = self.call("GetItem", request).get("Item")
        return item

    def query(self, prefix: str, attributes: Sequence[str] = ()) -> Iterator[tuple[str, Item]]:
        """Items whose sort key begins with ``prefix``, in order; only the given ``attributes``, if any."""
        for page in self.pages(prefix, attributes):
            yield from page

    def pages(self, prefix: str, attributes: Sequence[str] = ()) -> Iterator[list[tuple[str, Item]]]:
        """The same, a page at a time."""
        after: str | None = None
        while True:
            page, after = self.page(prefix, attributes, after)
            yield page
            if after is None:
                return

    def page(
        self, prefix: str, attributes: Sequence[str] = (), after: str | None = None
    ) -> tuple[list[tuple[str, Item]], str | None]:
        """One page (at most 1 MB) of ``query``, behind the key ``after``; and the ``after`` of the next (None: end)."""
        request: dict[str, Any] = {
            "TableName": self._table,
            "KeyConditionExpression": "#p = :p AND begins_with(#e, :e)",
            "ExpressionAttributeNames": {"#p": "pipeline", "#e": "entry"},
            "ExpressionAttributeValues": {":p": {"S": self._pipeline}, ":e": {"S": prefix}},
            "ConsistentRead": True,
        }
        if attributes:
            names = {f"#a{n}": name for n, name in enumerate(attributes)}
            request["ProjectionExpression"] = ", ".join(["#e", *names])
            request["ExpressionAttributeNames"] |= names
        if after is not None:
            request["ExclusiveStartKey"] = self._key(after)
        response = self.call("Query", request)
        last = response.get("LastEvaluatedKey")
        return [(item["entry"]["S"], item) for item in response["Items"]], None if last is None else last["entry"]["S"]

    def put(self, key: str, item: Item, condition: Mapping[str, Any]) -> None:
        """Put one item if ``condition`` (from ``is_`` or ``absent``) holds; Changed if it does not."""
        self.call("PutItem", {"TableName": self._table, "Item": self._whole(key, item), **condition})

    def transact(self, first: Sequence[Mapping[str, Any]], actions: Sequence[Action] = ()) -> None:
        """Execute ``first`` and all ``actions`` atomically; Changed if a condition does not hold."""
        self.call("TransactWriteItems", {"TransactItems": [*first, *(self._action(a) for a in actions)]})

    def putting(self, key: str, item: Item, condition: Mapping[str, Any]) -> dict[str, Any]:
        return {"Put": {"TableName": self._table, "Item": self._whole(key, item), **condition}}

    def checking(self, key: str, condition: Mapping[str, Any]) -> dict[str, Any]:
        return {"ConditionCheck": {"TableName": self._table, "Key": self._key(key), **condition}}

    def write_blob(self, token: str, text: str) -> Blob:
        pieces = [text[at : at + _PIECE] for at in range(0, len(text), _PIECE)]
        blob = Blob(token, len(pieces))
        for key, piece in zip(blob.keys, pieces, strict=True):
            self.call("PutItem", {"TableName": self._table, "Item": self._whole(key, {"piece": {"S": piece}})})
        return blob

    def read_blob(self, blob: Blob) -> str | None:
        """The text; None if it was removed in the meantime."""
        pieces = [self.get(key) for key in blob.keys]
        return "".join(p["piece"]["S"] for p in pieces if p is not None) if None not in pieces else None

    def forget(self, keys: Sequence[str]) -> None:
        """Remove pieces that nothing refers to. After an error, the next claim removes the rest."""
        with contextlib.suppress(TransientError):
            for key in keys:
                self.call("DeleteItem", {"TableName": self._table, "Key": self._key(key)})

    def call(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return decoded(self._client.call(operation, request), dict[str, Any], f"{operation} on {self._resource}")
        except AwsError as e:
            raise self._error(e, operation) from e

    def _error(self, error: AwsError, operation: str) -> Exception:
        codes = {reason.get("Code") for reason in error.details.get("CancellationReasons", ())} - {None, "None"}
        if error.code in ("ConditionalCheckFailedException", "TransactionConflictException") or (
            codes and codes <= set(_CONFLICTS)
        ):
            return Changed(str(error))
        if codes & set(_TRANSIENT):
            return TransientError(f"{operation} on {self._resource}: {error.message}")
        if error.code == "ResourceNotFoundException":
            return ConfigError(
                f"checkpoints.table: there is no {self._resource}; create it with: replicator check --create CONFIG"
            )
        if error.code == "ValidationException" and "does not match the schema" in error.message:
            return ConfigError(
                f"checkpoints.table: the keys of {self._table} are not pipeline (HASH, S) and entry (RANGE, S). "
                "Use another table"
            )
        translated: ReplicatorError = failure(error, _action_of(operation, error), self._resource, place="checkpoints")
        return translated

    def _action(self, action: Action) -> dict[str, Any]:
        condition = {} if action.revision is None else is_("revision", action.revision) if action.revision else absent()
        if action.item is not None:
            return self.putting(action.key, action.item, condition)
        return {"Delete": {"TableName": self._table, "Key": self._key(action.key), **condition}}

    def _key(self, key: str) -> Item:
        return {"pipeline": {"S": self._pipeline}, "entry": {"S": key}}

    def _whole(self, key: str, item: Item) -> Item:
        return {**self._key(key), **{n: v for n, v in item.items() if n not in ("pipeline", "entry")}}


def _action_of(operation: str, error: AwsError) -> str:
    """The IAM action: transactions are authorized by the actions in them."""
    if operation != "TransactWriteItems":
        return operation
    named = re.search(r"dynamodb:(\w+)", error.message)
    return named[1] if named else "ConditionCheckItem"


def is_(name: str, value: int | str, *, without: str | None = None) -> dict[str, Any]:
    """The condition that an attribute has a value (and that the attribute ``without`` does not exist)."""
    typed = {"N": str(value)} if isinstance(value, int) else {"S": value}
    more = {} if without is None else {"#w": without}
    return {
        "ConditionExpression": "#n = :v" + (" AND attribute_not_exists(#w)" if more else ""),
        "ExpressionAttributeNames": {"#n": name, **more},
        "ExpressionAttributeValues": {":v": typed},
    }


def absent() -> dict[str, Any]:
    """The condition that the item does not exist."""
    return {"ConditionExpression": "attribute_not_exists(#n)", "ExpressionAttributeNames": {"#n": "entry"}}


def portions(actions: Sequence[Action], heads: int = 1) -> Iterator[list[Action]]:
    """``actions``, split into transactions within DynamoDB's limits, each with so many ``heads``."""
    most = min(ACTIONS, ITEMS - heads)
    portion: list[Action] = []
    size = 0
    for action in actions:
        length = len(orjson.dumps(action.item)) + 200
        if portion and (len(portion) >= most or size + length > BYTES):
            yield portion
            portion, size = [], 0
        portion.append(action)
        size += length
    yield portion
