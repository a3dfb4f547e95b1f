"""Errors from AWS and the network, and what they mean for a run."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from replicator.errors import NotAuthenticated, NotPermitted, ReplicatorError, TransientError
from replicator.items.attributes import DECODE_ERRORS

Shape = TypeVar("Shape")


class AwsError(Exception):
    """A failed call. ``code`` is AWS's, or botocore's for network errors; HTTP ``status`` 0 means no response.

    ``details``: other members of the error response, unchanged (CancellationReasons, Item).
    """

    def __init__(self, code: str, message: str, status: int, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status
        self.details: Mapping[str, Any] = details or {}


class NotConnected(AwsError):
    """No connection could be made, so the request was not sent."""


def without_login(text: str) -> str:
    """``text`` without the login in a URL: proxy and endpoint addresses in the environment may contain one.

    A password may contain anything, even spaces, quotes and slashes, so everything up to the last @ is removed.
    """
    head, address, rest = text.partition("://")
    _, at, tail = rest.rpartition("@")
    return f"{head}{address}…@{tail}" if at else text


UNNAMED = "Unknown"  # the code of an error response that names no error: it is not DynamoDB's, but a proxy's

THROTTLED = frozenset(  # a test compares this with botocore's lists
    {
        "BandwidthLimitExceeded",
        "EC2ThrottledException",
        "LimitExceededException",
        "PriorRequestNotComplete",
        "ProvisionedThroughputExceededException",
        "ReplicatedWriteConflictException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        "TransactionInProgressException",
    }
)
"""Codes of requests that were not applied and can be retried later."""

_TIMED_OUT = frozenset({"RequestTimeout", "RequestTimeoutException"})
_TRANSIENT = THROTTLED | _TIMED_OUT | {UNNAMED, "RequestTimeTooSkewed"}
_DENYING = frozenset({"AccessDeniedException", "AccessDenied"})
_EXPIRED = frozenset({"ExpiredTokenException", "ExpiredToken"})
_NOT_AUTHENTICATED = _EXPIRED | {
    "IncompleteSignatureException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "MissingAuthenticationTokenException",
    "NoCredentials",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
_REFUSED = _DENYING | _NOT_AUTHENTICATED

# Operations whose requests contain items or keys, and the codes whose messages may quote them.
_WITH_ITEMS = frozenset(
    {"PutItem", "UpdateItem", "DeleteItem", "GetItem", "BatchGetItem", "TransactWriteItems", "ConditionCheckItem"}
)
_QUOTING = frozenset({"ValidationException", "SerializationException"})


def failure(error: AwsError, operation: str, resource: str, *, place: str = "source") -> ReplicatorError:
    """The error that a failed call means for a run: TransientError, NotPermitted, NotAuthenticated, or else a bug.

    ``place``: the section of the config that the credentials come from.
    """
    message = _first_line(error)
    reason = f"{error.code}: {message}"
    if error.code == "InvalidSignatureException" and _CLOCK_SKEW.match(message):
        return TransientError(
            f"{operation} on {resource}: AWS rejects this machine's signatures because its clock is wrong ({message}). "
            "Set the clock and keep it synchronized (NTP)"
        )
    if error.code in _NOT_AUTHENTICATED:
        return _not_authenticated(error, operation, resource, place)
    if error.code in _DENYING:
        return _not_permitted(error, operation, resource, place)
    if error.code in _TRANSIENT or error.status in (0, 408, 429) or error.status >= 500:
        return TransientError(f"{operation} on {resource}: {reason}")
    if operation in _WITH_ITEMS and error.code in _QUOTING:
        reason = f"{error.code} (message hidden: it may contain item data)"
    return ReplicatorError(f"{operation} on {resource} was refused: {reason}")


def _first_line(error: AwsError) -> str:
    """Further lines of a message may repeat the request, with its session token."""
    first, *_ = error.message.splitlines() or [""]
    return first


def _not_authenticated(error: AwsError, operation: str, resource: str, place: str) -> NotAuthenticated:
    action = _action(operation)
    if error.code == "NoCredentials":
        return NotAuthenticated(
            f"no AWS credentials for {operation} on {resource} ({_first_line(error)})",
            action,
            resource,
            f"Provide them (AWS_PROFILE, {place}.profile or an instance role)",
        )
    advice = "The credentials have expired: renew them" if error.code in _EXPIRED else "Fix the credentials"
    return NotAuthenticated(
        f"AWS does not accept the credentials for {action} on {resource} ({error.code}: {_first_line(error)})",
        action,
        resource,
        f"{advice}, or use others (AWS_PROFILE, {place}.profile, {place}.role_arn)",
    )


def _action(operation: str) -> str:
    return operation if ":" in operation else f"dynamodb:{operation}"


def _not_permitted(error: AwsError, operation: str, resource: str, place: str) -> NotPermitted:
    action = _action(operation)
    named = _DENIED.search(error.message)  # AWS names both exactly: the account's ARN, an action implied by another
    action, resource = (action, resource) if named is None else (named["action"], named["resource"])
    return NotPermitted(
        f"{action} on {resource} is not permitted ({error.code}: {_first_line(error)})",
        action,
        resource,
        "Allow it in the policy of the role or user that replicator runs as, or use other credentials "
        f"(AWS_PROFILE, {place}.profile, {place}.role_arn)",
    )


def in_doubt(error: AwsError) -> bool:
    """Whether the request may have been applied, or may still be applied.

    That holds if there was no response, or one from a server that failed or timed out, or from a proxy.
    """
    if isinstance(error, NotConnected) or error.code in _REFUSED:
        return False
    return error.status in (0, 408) or error.status >= 500 or error.code in _TIMED_OUT or error.code == UNNAMED


_CLOCK_SKEW = re.compile(r"Signature (expired|not yet current)")  # by more than five minutes
_DENIED = re.compile(r"is not authorized to perform: (?P<action>\S+) on resource: (?P<resource>\S+)")


class _Cancelled(msgspec.Struct):
    Code: str | None = None


class _Refusal(msgspec.Struct):
    """A DynamoDB error response. Details are only validated here: they are passed on as they are."""

    type: str = msgspec.field(name="__type")
    message: str | None = None
    Message: str | None = None
    CancellationReasons: list[_Cancelled] | None = None
    Item: dict[str, dict[str, Any]] | None = None


_DETAILS = ("CancellationReasons", "Item")


def refusal(body: bytes, status: int) -> AwsError:
    """The error in a response whose status is not 200; ``UNNAMED`` if the response is not DynamoDB's."""
    try:
        response = _decoder(_Refusal).decode(body)
        code = response.type.partition(":")[0].rpartition("#")[2]
    except DECODE_ERRORS:
        code = ""
    if not code:
        return AwsError(UNNAMED, f"HTTP status {status}; the response is not from DynamoDB", status)
    whole = msgspec.json.decode(body)
    details = {name: whole[name] for name in _DETAILS if whole.get(name) is not None}
    return AwsError(code, response.message or response.Message or "", status, details)


_DECODERS: dict[Any, msgspec.json.Decoder[Any]] = {}
_BUILDING = threading.Lock()


def _decoder(shape: type[Shape]) -> msgspec.json.Decoder[Shape]:
    """Built once, under a lock: msgspec crashes if two threads decode a type for the first time at once."""
    with _BUILDING:
        if shape not in _DECODERS:
            _DECODERS[shape] = msgspec.json.Decoder(shape)
        return _DECODERS[shape]


def decoded(body: bytes, shape: type[Shape], operation: str) -> Shape:
    """A response body as a struct; TransientError if it is not DynamoDB's (a proxy's page, a truncated body)."""
    try:
        return _decoder(shape).decode(body)
    except DECODE_ERRORS as e:
        raise TransientError(f"the response to {operation} is not DynamoDB JSON: {e}") from e
