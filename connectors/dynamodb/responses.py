"""What DynamoDB's answers mean. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from connectors.dynamodb.encode import Request
from replicator.aws.errors import THROTTLED, AwsError, NotConnected, failure, in_doubt
from replicator.errors import ConfigError, NotPermitted, ReplicatorError, TransientError

_LESS = THROTTLED | {"TransactionConflictException"}  # another client's transaction holds the item just now

Kind = Literal["stored", "conflict", "refused", "unsure", "failed"]


class _Consumed(msgspec.Struct):
    CapacityUnits: float = 0.0


class _Cost(msgspec.Struct):
    ConsumedCapacity: _Consumed | None = None


_cost = msgspec.json.Decoder(_Cost)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a write.

    stored: done. conflict: the table has that version or a newer one; ``found`` is that item, where it was asked for.
    refused: never, for the ``reason``. unsure: it may have been done, or may still be. failed: ``error`` says what it
    waits for, or what a person has to change.
    """

    kind: Kind
    reason: str = ""
    error: ReplicatorError | None = None
    found: dict[str, Any] | None = None


STORED = Verdict("stored")


def wants_less(answer: object) -> bool:
    """Whether the request was refused only because there are too many: it was not carried out."""
    return isinstance(answer, AwsError) and answer.status in (400, 409, 429, 503) and answer.code in _LESS


def units_of(body: bytes, otherwise: float) -> float:
    """What a write cost, where its answer says so."""
    try:
        cost = _cost.decode(body).ConsumedCapacity
    except (msgspec.DecodeError, UnicodeDecodeError):
        return otherwise
    return otherwise if cost is None else cost.CapacityUnits


def is_stored(answer: object) -> bool:
    return type(answer) is bytes and answer.startswith(b"{")


def verdict(request: Request, server: str) -> Verdict | None:
    """What the answer to one write means; None for what was not sent."""
    answer, operation, table = request.answer, request.operation, request.table
    if isinstance(answer, bytes):
        return STORED if is_stored(answer) else _nonsense(operation, table)
    if isinstance(answer, AwsError):
        return None if isinstance(answer, NotConnected) else _refused(answer, operation, table, server)
    return None if answer is None else Verdict("failed", error=answer)


def _refused(error: AwsError, operation: str, table: str, server: str) -> Verdict:
    if error.code == "ConditionalCheckFailedException":
        return Verdict("conflict", found=error.details.get("Item"))
    if error.code in ("ValidationException", "ItemCollectionSizeLimitExceededException"):
        return Verdict("refused", refusal(error))
    if error.code == "ResourceNotFoundException":
        gone = f"the target's table {table} is gone: it was there when the run began"
        return Verdict("failed", error=ConfigError(gone))
    meaning = failure(error, operation, table, place="target")
    if error.status == 0 and not isinstance(meaning, NotPermitted):
        lost = f"{server}: {operation} on {table} was not answered: {error.message}"
        return Verdict("unsure", error=TransientError(lost))
    return Verdict("unsure" if in_doubt(error) else "failed", error=meaning)


def _nonsense(operation: str, table: str) -> Verdict:
    text = f"the response to {operation} on {table} is not DynamoDB JSON"
    return Verdict("unsure", error=TransientError(text))


LONGEST = 2000  # characters of a message that are read: some of the patterns try again from many places
_REASONS: tuple[tuple[str, str], ...] = (
    ("Item size has exceeded", "the item with its version is larger than the 400 KB that DynamoDB stores"),
    ("Item size to update has exceeded", "the item with its version is larger than the 400 KB that DynamoDB stores"),
    ("[Ii]tem collection", "its partition is full: 10 GB is the most in a table with local indexes"),
    ("[Nn]est", "it is nested more than the 32 levels that DynamoDB stores"),
    ("Empty attribute name|attribute name.*empty", "it has an attribute with an empty name"),
    ("[Ii]ndex [Kk]ey", "an attribute that is an index's key has another type than the index declares"),
    ("Type mismatch for key", "a key attribute has another type than the table's key"),
    ("primary key values must be under|[Oo]ne or more.*[Ss]ize of (hash|range)key", "its key is too long"),
    ("key attribute cannot contain an empty", "a key, the table's or an index's, is empty"),
    ("significant digits", "it has a number with more than 38 digits"),
    ("Number overflow|Number underflow", "it has a number beyond what DynamoDB can hold"),
)


def refusal(error: AwsError) -> str:
    """Why DynamoDB refuses an item for good, without a value in it: messages of AWS may quote some."""
    message = error.message[:LONGEST]
    for pattern, reason in _REASONS:
        if re.search(pattern, message):
            return reason
    return f"DynamoDB refuses it as invalid ({error.code})"
