"""Errors of AWS and of the network, translated into replicator's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from replicator.errors import NotAuthenticated, NotPermitted, ReplicatorError, TransientError
from replicator.items.attributes import DECODE_ERRORS

Shape = TypeVar("Shape")


class AwsError(Exception):
    """An answer that is an error: ``code`` as AWS names it, the HTTP ``status``, 0 where no answer came.

    ``details``: what else the answer says, as it stands there (CancellationReasons, Item).
    """

    def __init__(self, code: str, message: str, status: int, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status
        self.details: Mapping[str, Any] = details or {}


class NotConnected(AwsError):
    """There was no connection, so the call was not made."""


def without_login(text: str) -> str:
    """``text`` with the logins taken out of the addresses in it: the environment may name proxies and endpoints so.

    A password may hold anything, spaces, quotes and slashes too, so everything up to the last @ goes.
    """
    head, address, rest = text.partition("://")
    _, at, tail = rest.rpartition("@")
    return f"{head}{address}…@{tail}" if at else text


UNNAMED = "Unknown"  # the code of an error answer that names no error: not DynamoDB, but a proxy between


THROTTLED = frozenset(  # a test compares them with botocore's lists
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
"""Codes of requests that were not carried out, and may be repeated after a while."""


_TIMED_OUT = frozenset({"RequestTimeout", "RequestTimeoutException"})


_TRANSIENT = THROTTLED | _TIMED_OUT | {UNNAMED, "RequestTimeTooSkewed"}


_DENYING = frozenset({"AccessDeniedException", "AccessDenied"})


_EXPIRED = frozenset({"ExpiredTokenException", "ExpiredToken"})


_UNKNOWN_CALLER = _EXPIRED | {
    "IncompleteSignatureException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "MissingAuthenticationTokenException",
    "NoCredentials",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}


_REFUSED = _DENYING | _UNKNOWN_CALLER


# What is asked with items or keys in it, and the codes whose words may quote some of that.
_CARRYING = frozenset({"PutItem", "DeleteItem", "GetItem", "BatchGetItem", "TransactWriteItems", "ConditionCheckItem"})


_QUOTING = frozenset({"ValidationException", "SerializationException"})


def failure(error: AwsError, operation: str, resource: str, *, place: str = "source") -> ReplicatorError:
    """What an error answer means for a run: something to repeat, a permission to grant, or a bug.

    ``place``: the part of the config that says with which credentials.
    """
    words, *_ = error.message.splitlines() or [""]  # further lines may repeat the request with its session token
    said = f"{error.code}: {words}"
    if error.code == "InvalidSignatureException" and _WRONG_TIME.match(words):
        return TransientError(
            f"{operation} on {resource}: AWS rejects this machine's signatures because its clock is wrong ({words}). "
            "Set the clock and keep it synchronized (NTP)"
        )
    if error.code in _UNKNOWN_CALLER:
        return _not_authenticated(error, operation, resource, place)
    if error.code in _DENYING:
        return _not_permitted(error, operation, resource, place)
    if error.code in _TRANSIENT or error.status in (0, 408, 429) or error.status >= 500:
        return TransientError(f"{operation} on {resource}: {said}")
    if operation in _CARRYING and error.code in _QUOTING:
        said = f"{error.code} (message hidden: it may contain item data)"
    return ReplicatorError(f"{operation} on {resource} was refused: {said}")


def _not_authenticated(error: AwsError, operation: str, resource: str, place: str) -> NotAuthenticated:
    words, *_ = error.message.splitlines() or [""]
    action = _action(operation)
    if error.code == "NoCredentials":
        return NotAuthenticated(
            f"no AWS credentials for {operation} on {resource} ({words})",
            action,
            resource,
            f"Provide them (AWS_PROFILE, {place}.profile or an instance role)",
        )
    wrong = "The credentials have expired: renew them" if error.code in _EXPIRED else "Fix the credentials"
    return NotAuthenticated(
        f"AWS does not accept the credentials for {action} on {resource} ({error.code}: {words})",
        action,
        resource,
        f"{wrong}, or use others (AWS_PROFILE, {place}.profile, {place}.role_arn)",
    )


def _action(operation: str) -> str:
    return operation if ":" in operation else f"dynamodb:{operation}"


def _not_permitted(error: AwsError, operation: str, resource: str, place: str) -> NotPermitted:
    words, *_ = error.message.splitlines() or [""]
    action = _action(operation)
    named = _DENIED.search(error.message)  # AWS knows both best: the ARN with its account, an action within another
    action, resource = (action, resource) if named is None else (named["action"], named["resource"])
    return NotPermitted(
        f"{action} on {resource} is not permitted ({error.code}: {words})",
        action,
        resource,
        "Allow it in the policy of the role or user that replicator runs as, or use other credentials "
        f"(AWS_PROFILE, {place}.profile, {place}.role_arn)",
    )


def in_doubt(error: AwsError) -> bool:
    """Whether the request may have been applied, or may still be.

    So it is without a response, and with one of a server that failed or gave up, or of a proxy between.
    """
    if isinstance(error, NotConnected) or error.code in _REFUSED:
        return False
    return error.status in (0, 408) or error.status >= 500 or error.code in _TIMED_OUT or error.code == UNNAMED


_WRONG_TIME = re.compile(r"Signature (expired|not yet current)")  # more than five minutes off


_DENIED = re.compile(r"is not authorized to perform: (?P<action>\S+) on resource: (?P<resource>\S+)")


class _Cancelled(msgspec.Struct):
    Code: str | None = None


class _Refusal(msgspec.Struct):
    """An error of DynamoDB's. What it says besides is checked here, and given on as it stands."""

    type: str = msgspec.field(name="__type")
    message: str | None = None
    Message: str | None = None
    CancellationReasons: list[_Cancelled] | None = None
    Item: dict[str, dict[str, Any]] | None = None


_DETAILS = ("CancellationReasons", "Item")


def refusal(body: bytes, status: int) -> AwsError:
    """What an answer with another status than 200 says: DynamoDB's error, or that something else answered."""
    try:
        found = msgspec.json.decode(body, type=_Refusal)
        code = found.type.partition(":")[0].rpartition("#")[2]
    except DECODE_ERRORS:
        code = ""
    if not code:
        return AwsError(UNNAMED, f"HTTP status {status}; the response is not from DynamoDB", status)
    whole = msgspec.json.decode(body)
    details = {name: whole[name] for name in _DETAILS if whole.get(name) is not None}
    return AwsError(code, found.message or found.Message or "", status, details)


def decoded(body: bytes, shape: type[Shape], operation: str) -> Shape:
    """A body as the given struct; TransientError for what is no DynamoDB answer (a proxy's page, a cut body)."""
    try:
        return msgspec.json.decode(body, type=shape)
    except DECODE_ERRORS as e:
        raise TransientError(f"the response to {operation} is not DynamoDB JSON: {e}") from e
