"""What DynamoDB's responses to writes mean. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from connectors.dynamodb.catalog import gone
from connectors.dynamodb.encode import Request
from replicator.aws.errors import THROTTLED, AwsError, NotConnected, failure, in_doubt
from replicator.errors import ConfigError, NotPermitted, ReplicatorError, TransientError

_LESS = THROTTLED | {"TransactionConflictException"}  # another client's transaction holds the item

Kind = Literal["stored", "conflict", "refused", "unsure", "failed"]


class _Consumed(msgspec.Struct):
    CapacityUnits: float = 0.0


class _Cost(msgspec.Struct):
    ConsumedCapacity: _Consumed | None = None


_cost = msgspec.json.Decoder(_Cost)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a write.

    stored: applied. conflict: the table has that version or a newer one; ``item`` is what it has, if requested.
    refused: for good, for the ``reason``. unsure: it may have been applied, or may still be. failed: not applied. Both
    have an ``error``, transient or permanent.
    """

    kind: Kind
    reason: str = ""
    error: ReplicatorError | None = None
    item: dict[str, Any] | None = None


STORED = Verdict("stored")


def is_throttled(answer: object) -> bool:
    """Whether the request was refused for its rate alone. It was not applied."""
    return isinstance(answer, AwsError) and answer.status in (400, 409, 429, 503) and answer.code in _LESS


def units_of(body: bytes, otherwise: float) -> float:
    """The consumed capacity that a response tells; ``otherwise`` if it tells none."""
    try:
        cost = _cost.decode(body).ConsumedCapacity
    except (msgspec.DecodeError, UnicodeDecodeError):
        return otherwise
    return otherwise if cost is None else cost.CapacityUnits


def is_stored(answer: object) -> bool:
    return type(answer) is bytes and answer.startswith(b"{")


def verdict(request: Request, server: str) -> Verdict | None:
    """What the response to one write means; None if it was not sent."""
    answer, operation, table = request.answer, request.operation, request.table
    if isinstance(answer, bytes):
        return STORED if is_stored(answer) else _invalid(operation, table)
    if isinstance(answer, AwsError):
        return None if isinstance(answer, NotConnected) else _refused(answer, operation, table, server)
    return None if answer is None else Verdict("failed", error=answer)


def _refused(error: AwsError, operation: str, table: str, server: str) -> Verdict:
    if error.code == "ConditionalCheckFailedException":
        return Verdict("conflict", item=error.details.get("Item"))
    if error.code in ("ValidationException", "ItemCollectionSizeLimitExceededException"):
        return Verdict("refused", refusal(error))
    if error.code == "ResourceNotFoundException":
        return Verdict("failed", error=ConfigError(gone(table)))
    meaning = failure(error, operation, table, place="target")
    if error.status == 0 and not isinstance(meaning, NotPermitted):
        lost = f"{server}: no response to {operation} on {table}: {error.message}"
        return Verdict("unsure", error=TransientError(lost))
    return Verdict("unsure" if in_doubt(error) else "failed", error=meaning)


def _invalid(operation: str, table: str) -> Verdict:
    text = f"the response to {operation} on {table} is not DynamoDB JSON"
    return Verdict("unsure", error=TransientError(text))


LONGEST = 2000  # characters of a message that are matched: some of the patterns take more than linear time
_REASONS: tuple[tuple[str, str], ...] = (
    ("Item size has exceeded", "the item with its version is larger than the 400 KB that DynamoDB stores"),
    ("Item size to update has exceeded", "the item with its version is larger than the 400 KB that DynamoDB stores"),
    (
        "[Ii]tem collection",
        "its item collection is full: at most 10 GB per partition key in a table with local secondary indexes",
    ),
    ("[Nn]est", "it is nested deeper than the 32 levels that DynamoDB stores"),
    ("Empty attribute name|attribute name.*empty", "it has an attribute with an empty name"),
    ("[Ii]ndex [Kk]ey", "the key attribute of an index has another type than the index declares"),
    ("Type mismatch for key", "a key attribute has another type than the table's key"),
    ("primary key values must be under|[Oo]ne or more.*[Ss]ize of (hash|range)key", "its key is too long"),
    ("key attribute cannot contain an empty", "a key attribute, of the table or an index, is empty"),
    ("significant digits", "it has a number with more than 38 digits"),
    ("Number overflow|Number underflow", "it has a number outside of DynamoDB's range"),
)


def refusal(error: AwsError) -> str:
    """Why DynamoDB refuses an item for good. In our own words, because AWS messages may quote values."""
    message = error.message[:LONGEST]
    for pattern, reason in _REASONS:
        if re.search(pattern, message):
            return reason
    return f"DynamoDB refuses it as invalid ({error.code})"
