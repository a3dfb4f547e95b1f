"""The write operations: single items, batches and transactions, with conditions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from replicator.aws.errors import AwsError
from replicator.items.attributes import Typeds
from replicator.key import Key
from replicator.testing.dynamodb.catalog import Catalog
from replicator.testing.dynamodb.expressions import Terms, Test, parsed
from replicator.testing.dynamodb.refusals import invalid, refusal
from replicator.testing.dynamodb.rows import Row, Table, typeds_of

_UNIT = 1024  # bytes that one write unit covers
_TRANSACTION_BYTES = 4 << 20
_REMEMBERED = 600.0  # seconds that a transaction's token stays valid
_FAILED = "ConditionalCheckFailed"
_SENTENCE = "The conditional request failed"


@dataclass(frozen=True, slots=True)
class _Write:
    """A parsed write, not yet applied. ``item`` None: a delete; ``checks``: only checks its condition."""

    table: Table
    key: Key
    item: Mapping[str, Any] | None
    condition: Test
    shows: bool
    checks: bool = False

    @property
    def old(self) -> Row | None:
        return self.table.get(self.key)

    @property
    def holds(self) -> bool:
        return self.condition({} if self.old is None else typeds_of(self.old))

    @property
    def shown(self) -> dict[str, Any]:
        """The item that a failed condition's error includes."""
        return {"Item": typeds_of(self.old)} if self.shows and self.old is not None else {}

    def apply(self) -> int:
        """Apply it; returns the bytes it is charged for."""
        old = self.old
        if self.checks:
            new = old
        elif self.item is None:
            self.table.remove(self.key)
            new = None
        else:
            self.table.put(self.item)
            new = self.old
        return max(row.size if row is not None else 0 for row in (old, new))


class Writes:
    """The operations that write."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._tokens: dict[str, tuple[float, bytes]] = {}

    def put_item(self, request: Mapping[str, Any]) -> bytes:
        return _done(self._put(request), request)

    def delete_item(self, request: Mapping[str, Any]) -> bytes:
        return _done(self._delete(request), request)

    def update_item(self, request: Mapping[str, Any]) -> bytes:
        """SET and REMOVE of top-level attributes; an absent item is created."""
        return _done(self._update(request), request)

    def batch_write_item(self, request: Mapping[str, Any]) -> bytes:
        wanted = [(self._catalog.table(name), w) for name, writes in request["RequestItems"].items() for w in writes]
        if not 1 <= len(wanted) <= 25:
            raise invalid("Too many items requested for the BatchWriteItem call, or none")
        keys = [(table.name, _written_key(table, write)) for table, write in wanted]
        if len(set(keys)) < len(keys):
            raise invalid("Provided list of item keys contains duplicates")
        for (table, write), (_, key) in zip(wanted, keys, strict=True):
            if "PutRequest" in write:
                table.put(write["PutRequest"]["Item"])
            else:
                table.remove(key)
        return b'{"UnprocessedItems":{}}'

    def transact_write_items(self, request: Mapping[str, Any]) -> bytes:
        """All or nothing. Repeating a token within ten minutes changes nothing."""
        token, body = request.get("ClientRequestToken"), orjson.dumps(request["TransactItems"])
        if token is not None and self._known(token, body):
            return b"{}"
        writes = [self._action(action) for action in request["TransactItems"]]
        places = [(write.table.name, write.key) for write in writes]
        if not 1 <= len(writes) <= 100:
            raise invalid("Member must have length less than or equal to 100, and at least 1")
        if len(set(places)) < len(places):
            raise invalid("Transaction request cannot include multiple operations on one item")
        if len(body) > 2 * _TRANSACTION_BYTES:
            raise invalid("Transaction request size exceeded: 4194304")
        failed = [not write.holds for write in writes]
        if any(failed):
            raise _cancelled(writes, failed)
        units = [2 * _units(write.apply()) for write in writes]
        if token is not None:
            self._tokens[token] = (self._catalog.now(), body)
        return orjson.dumps(_transaction_capacity(writes, units, request))

    def _known(self, token: str, body: bytes) -> bool:
        at, earlier = self._tokens.get(token, (-math.inf, body))
        if self._catalog.now() - at > _REMEMBERED:
            return False
        if earlier != body:
            raise refusal("IdempotentParameterMismatchException", "the token was used for another transaction")
        return True

    def _action(self, action: Mapping[str, Any]) -> _Write:
        ((kind, given),) = action.items()
        match kind:
            case "Put":
                return self._put(given)
            case "Delete":
                return self._delete(given)
            case "Update":
                return self._update(given)
            case "ConditionCheck" if "ConditionExpression" in given:
                table = self._catalog.table(given["TableName"])
                key = table.key(given["Key"])
                return _Write(table, key, None, _condition(given), _shows(given), checks=True)
        raise invalid(f"the in-memory DynamoDB does not support {kind} in transactions, or it lacks a condition")

    def _put(self, request: Mapping[str, Any]) -> _Write:
        table = self._catalog.table(request["TableName"])
        item = request["Item"]
        return _Write(table, table.key_of(item), item, _condition(request), _shows(request))

    def _delete(self, request: Mapping[str, Any]) -> _Write:
        table = self._catalog.table(request["TableName"])
        return _Write(table, table.key(request["Key"]), None, _condition(request), _shows(request))

    def _update(self, request: Mapping[str, Any]) -> _Write:
        table = self._catalog.table(request["TableName"])
        key = table.key(request["Key"])
        old = table.get(key)
        item = table.typed(key) if old is None else typeds_of(old)
        terms = Terms(request)
        condition = parsed(request.get("ConditionExpression"), terms)
        item |= _settings(request, terms)
        for name in _removals(request, terms):
            item.pop(name, None)
        terms.check_used()
        return _Write(table, key, item | table.typed(key), condition, _shows(request))


def _condition(request: Mapping[str, Any]) -> Test:
    terms = Terms(request)
    found = parsed(request.get("ConditionExpression"), terms)
    terms.check_used()
    return found


def _shows(request: Mapping[str, Any]) -> bool:
    return bool(request.get("ReturnValuesOnConditionCheckFailure", "NONE") == "ALL_OLD")


def _done(write: _Write, request: Mapping[str, Any]) -> bytes:
    if not write.holds:
        raise refusal("ConditionalCheckFailedException", _SENTENCE, write.shown)
    found: dict[str, Any] = {}
    if request.get("ReturnValues", "NONE") == "ALL_OLD" and write.old is not None:
        found["Attributes"] = typeds_of(write.old)
    units = _units(write.apply())
    if request.get("ReturnConsumedCapacity", "NONE") != "NONE":
        found["ConsumedCapacity"] = {"CapacityUnits": units, "TableName": write.table.name}
    return orjson.dumps(found)


def _units(size: int) -> float:
    return float(max(1, math.ceil(size / _UNIT)))


def _cancelled(writes: Sequence[_Write], failed: Sequence[bool]) -> AwsError:
    codes = [_FAILED if wrong else "None" for wrong in failed]
    reasons = [
        {"Code": _FAILED, "Message": _SENTENCE} | write.shown if wrong else {"Code": "None"}
        for write, wrong in zip(writes, failed, strict=True)
    ]
    message = f"Transaction cancelled, please refer cancellation reasons for specific reasons [{', '.join(codes)}]"
    return refusal("TransactionCanceledException", message, {"CancellationReasons": reasons})


def _transaction_capacity(
    writes: Sequence[_Write], units: Sequence[float], request: Mapping[str, Any]
) -> dict[str, Any]:
    if request.get("ReturnConsumedCapacity", "NONE") == "NONE":
        return {}
    total: dict[str, float] = {}
    for write, used in zip(writes, units, strict=True):
        total[write.table.name] = total.get(write.table.name, 0.0) + used
    return {
        "ConsumedCapacity": [
            {"CapacityUnits": used, "TableName": name, "WriteCapacityUnits": used} for name, used in total.items()
        ]
    }


def _written_key(table: Table, write: Mapping[str, Any]) -> Key:
    if "PutRequest" in write:
        return table.key_of(write["PutRequest"]["Item"])
    return table.key(write["DeleteRequest"]["Key"])


_CLAUSES = re.compile(r"\b(SET|REMOVE|ADD|DELETE)\b", re.IGNORECASE)
_TOP_LEVEL = re.compile(r"#?\w+")


def _clauses(request: Mapping[str, Any]) -> dict[str, str]:
    words = _CLAUSES.split(request.get("UpdateExpression", ""))[1:]
    found = {verb.upper(): text for verb, text in zip(words[::2], words[1::2], strict=True)}
    if found.keys() - {"SET", "REMOVE"}:
        raise invalid("the in-memory DynamoDB knows only SET and REMOVE of top-level attributes")
    return found


def _name(terms: Terms, token: str) -> str:
    if _TOP_LEVEL.fullmatch(token.strip()) is None:
        raise invalid(f"the in-memory DynamoDB knows only SET and REMOVE of top-level attributes, not {token!r}")
    return terms.name(token.strip())


def _settings(request: Mapping[str, Any], terms: Terms) -> Typeds:
    pairs = [part.partition("=") for part in _clauses(request).get("SET", "").split(",") if part.strip()]
    return {_name(terms, name): terms.value(value.strip()) for name, _, value in pairs}


def _removals(request: Mapping[str, Any], terms: Terms) -> list[str]:
    return [_name(terms, name) for name in _clauses(request).get("REMOVE", "").split(",") if name.strip()]
