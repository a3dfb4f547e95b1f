"""What an answer means: something to repeat, a permission to grant, a bug, or a body."""

from __future__ import annotations

import msgspec
import pytest

from replicator.errors import NotPermitted, ReplicatorError, TransientError
from replicator.wire import UNNAMED, WireError, decoded, failure


class Answer(msgspec.Struct):
    Count: int
    Items: list[msgspec.Raw] = []


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("ProvisionedThroughputExceededException", 400),
        ("LimitExceededException", 400),
        ("ThrottlingException", 400),
        ("RequestLimitExceeded", 400),
        ("InternalServerError", 500),
        ("ServiceUnavailable", 503),
        ("EndpointConnectionError", 0),
        ("ReadTimeoutError", 0),
        (UNNAMED, 403),
    ],
)
def test_what_time_mends_is_transient(code: str, status: int) -> None:
    found = failure(WireError(code, "later", status), "Scan", "orders")
    assert type(found) is TransientError
    assert str(found) == f"Scan on orders: {code}: later"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("AccessDeniedException", 400),
        ("UnrecognizedClientException", 400),
        ("InvalidSignatureException", 400),
        ("MissingAuthenticationTokenException", 400),
        ("ExpiredTokenException", 400),
        ("NoCredentials", 0),
    ],
)
def test_what_a_person_has_to_permit_is_not_permitted(code: str, status: int) -> None:
    found = failure(WireError(code, "no", status), "GetRecords", "arn:stream")
    assert isinstance(found, NotPermitted)
    assert (found.action, found.resource, found.exit_code) == ("dynamodb:GetRecords", "arn:stream", 4)


def test_the_sentence_says_what_is_not_permitted_and_what_to_do() -> None:
    found = failure(WireError("AccessDeniedException", "User x is not authorized", 400), "Scan", "orders")
    assert str(found) == (
        "dynamodb:Scan on orders is not permitted (AccessDeniedException: User x is not authorized). "
        "Allow it in the policy of the role or user that replicator runs as, or give other credentials "
        "(AWS_PROFILE, source.profile, source.role_arn)"
    )


@pytest.mark.parametrize("how", ["expired", "not yet current"])
def test_a_wrong_clock_is_named_and_waited_for(how: str) -> None:
    said = f"Signature {how}: 20261125T000000Z is now earlier than 20261125T001500Z (20261125T002000Z - 5 min.)"
    found = failure(WireError("InvalidSignatureException", said, 400), "Scan", "orders")
    assert type(found) is TransientError
    assert str(found) == (
        f"Scan on orders: AWS refuses what this machine signs, because its clock is wrong ({said}). "
        "Set it, and keep it set (NTP)"
    )


@pytest.mark.parametrize("code", ["ValidationException", "ResourceNotFoundException", "SerializationException"])
def test_any_other_refusal_is_neither_repeated_nor_a_permission(code: str) -> None:
    found = failure(WireError(code, "no such thing", 400), "Scan", "orders")
    assert type(found) is ReplicatorError
    assert str(found) == f"Scan on orders was refused: {code}: no such thing"


def test_an_error_shows_its_code_and_message() -> None:
    assert str(WireError("ValidationException", "no", 400)) == "ValidationException: no"


def test_a_body_becomes_the_shape_and_its_items_stay_raw() -> None:
    found = decoded(b'{"Count":1,"Items":[{"id":{"S":"a"}}],"New":1}', Answer, "Scan")
    assert (found.Count, [bytes(i) for i in found.Items]) == (1, [b'{"id":{"S":"a"}}'])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b'{"Count":1',
        b"[]",
        b'{"Count":"1"}',
        b"{}",
        b'{"Count":1,"Items":{}}',
        b'{"Count":1,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=["empty", "HTML", "cut", "a list", "text", "no count", "items", "deep"],
)
def test_what_is_no_such_body_is_transient(body: bytes) -> None:
    with pytest.raises(TransientError, match="Scan was answered with something that is not DynamoDB's JSON"):
        decoded(body, Answer, "Scan")
