"""DynamoDB's errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from replicator.aws.errors import AwsError

_STATUS = {"InternalServerError": 500, "InternalFailure": 500, "ServiceUnavailable": 503}


def refusal(code: str, message: str = "", details: Mapping[str, Any] | None = None) -> AwsError:
    """Any error; the HTTP status follows from the code, as in AWS."""
    return AwsError(code, message or code, _STATUS.get(code, 400), details)


def invalid(message: str) -> AwsError:
    return refusal("ValidationException", message)


def unknown_table(name: str) -> AwsError:
    return refusal("ResourceNotFoundException", f"Requested resource not found: Table: {name} not found")


def unknown_stream(arn: str) -> AwsError:
    return refusal("ResourceNotFoundException", f"Requested resource not found: Stream: {arn} not found")


def unknown_shard(shard: str) -> AwsError:
    return refusal("ResourceNotFoundException", f"Requested resource not found: Shard: {shard} does not exist")


def in_use(message: str) -> AwsError:
    return refusal("ResourceInUseException", message)


def trimmed() -> AwsError:
    return refusal("TrimmedDataAccessException", "The operation attempted to read past the oldest stream record")


def expired() -> AwsError:
    return refusal("ExpiredIteratorException", "Iterator expired. The iterator was issued more than 15 minutes ago")
