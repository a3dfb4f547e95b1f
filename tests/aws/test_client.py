"""What a response means: a retry, a missing permission, a bug, or a body."""

from __future__ import annotations

import msgspec
import pytest
from botocore.loaders import Loader
from botocore.retries import standard

from replicator.aws.errors import THROTTLED, UNNAMED, AwsError, NotConnected, decoded, failure, in_doubt, refusal
from replicator.errors import NotAuthenticated, NotPermitted, ReplicatorError, TransientError


class Response(msgspec.Struct):
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
def test_a_transient_failure_can_be_retried(code: str, status: int) -> None:
    error = failure(AwsError(code, "later", status), "Scan", "orders")
    assert type(error) is TransientError
    assert str(error) == f"Scan on orders: {code}: later"


def botocores_codes() -> set[str]:
    """What botocore retries, by all of its lists: of the standard mode, and of the legacy mode for DynamoDB."""
    throttled = standard.ThrottledRetryableChecker._THROTTLED_ERROR_CODES
    transient = standard.TransientRetryableChecker._TRANSIENT_ERROR_CODES
    legacy = Loader().load_data("_retry")
    rules = [*legacy["definitions"].values(), *(legacy["retry"].get("dynamodb", {}).get("policies", {})).values()]
    rules += legacy["retry"]["__default__"]["policies"].values()
    named = [rule.get("applies_when", {}).get("response", {}).get("service_error_code") for rule in rules]
    return {*throttled, *transient, *filter(None, named)}


@pytest.mark.parametrize("code", sorted(botocores_codes()))
def test_every_code_that_botocore_retries_is_transient(code: str) -> None:
    assert type(failure(AwsError(code, "later", 400), "PutItem", "orders")) is TransientError


def test_every_code_that_botocore_counts_as_throttling_means_that_nothing_was_applied() -> None:
    assert set(standard.ThrottledRetryableChecker._THROTTLED_ERROR_CODES) <= THROTTLED


@pytest.mark.parametrize("status", [408, 429, *standard.TransientRetryableChecker._TRANSIENT_STATUS_CODES, 509])
def test_every_status_that_botocore_retries_is_transient(status: int) -> None:
    assert type(failure(AwsError("Whatever", "later", status), "PutItem", "orders")) is TransientError


@pytest.mark.parametrize(
    ("error", "is_in_doubt"),
    [
        (AwsError("ReadTimeoutError", "", 0), True),
        (AwsError("RequestTimeout", "", 400), True),
        (AwsError("RequestTimeoutException", "", 400), True),
        (AwsError("Whatever", "", 408), True),
        (AwsError(UNNAMED, "", 403), True),
        (AwsError("InternalServerError", "", 500), True),
        (AwsError("Whatever", "", 499), False),
        (AwsError("PriorRequestNotComplete", "", 400), False),
        (AwsError("ThrottlingException", "", 429), False),
        (NotConnected("ConnectTimeoutError", "", 0), False),
    ],
    ids=lambda given: f"{given.code}-{given.status}" if isinstance(given, AwsError) else "",
)
def test_a_request_is_in_doubt_unless_a_response_says_that_it_was_not_applied(
    error: AwsError, is_in_doubt: bool
) -> None:
    assert in_doubt(error) is is_in_doubt


@pytest.mark.parametrize(
    "body",
    [
        b'{"__type":"X#InternalThing","message":5}',
        b'{"__type":5,"message":"no"}',
        b'{"__type":"X#","message":"no"}',
        b'{"message":"no"}',
        b'{"__type":"X#TransactionCanceledException","CancellationReasons":[5]}',
        b'{"__type":"X#TransactionCanceledException","CancellationReasons":[{"Code":5}]}',
        b'{"__type":"X#ConditionalCheckFailedException","Item":{"id":"a"}}',
        b'{"__type":"X#ConditionalCheckFailedException","Item":[]}',
        b"[1]",
        b"null",
        b"",
        b"\xff",
        b"[" * 5000,
    ],
)
def test_an_invalid_error_body_is_not_dynamodbs_and_is_transient(body: bytes) -> None:
    error = refusal(body, 400)
    assert (error.code, error.details) == (UNNAMED, {})
    assert type(failure(error, "Scan", "orders")) is TransientError


def test_null_is_an_absent_value_in_an_error() -> None:
    error = refusal(b'{"__type":"X#Refused","message":null,"Item":null,"CancellationReasons":null}', 400)
    assert (error.code, error.message, error.details) == ("Refused", "", {})
    reasons = refusal(b'{"__type":"T","Message":"m","CancellationReasons":[{"Code":null},{"Code":"None"}]}', 400)
    assert reasons.details == {"CancellationReasons": [{"Code": None}, {"Code": "None"}]}


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("AccessDenied", 403),
        ("AccessDeniedException", 400),
    ],
)
def test_denied_access_is_not_permitted(code: str, status: int) -> None:
    error = failure(AwsError(code, "no", status), "GetRecords", "arn:stream")
    assert type(error) is NotPermitted
    assert (error.action, error.resource, error.exit_code) == ("dynamodb:GetRecords", "arn:stream", 4)


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("UnrecognizedClientException", 400, "Fix the credentials, or use others"),
        ("InvalidClientTokenId", 403, "Fix the credentials, or use others"),
        ("InvalidSignatureException", 400, "Fix the credentials, or use others"),
        ("SignatureDoesNotMatch", 403, "Fix the credentials, or use others"),
        ("MissingAuthenticationTokenException", 400, "Fix the credentials, or use others"),
        ("IncompleteSignatureException", 400, "Fix the credentials, or use others"),
        ("ExpiredTokenException", 400, "The credentials have expired: renew them, or use others"),
        ("ExpiredToken", 403, "The credentials have expired: renew them, or use others"),
        ("NoCredentials", 0, "no AWS credentials for GetRecords on arn:stream (no). Provide them (AWS_PROFILE"),
    ],
)
def test_credentials_that_aws_does_not_accept_are_not_blamed_on_policies(code: str, status: int, expected: str) -> None:
    error = AwsError(code, "no", status)
    translated = failure(error, "GetRecords", "arn:stream")
    assert isinstance(translated, NotAuthenticated)
    assert (translated.action, translated.resource, translated.exit_code) == ("dynamodb:GetRecords", "arn:stream", 4)
    assert expected in str(translated)
    assert "policy" not in str(translated)
    assert not in_doubt(error)


def test_credential_errors_name_the_config_section() -> None:
    error = failure(AwsError("UnrecognizedClientException", "bad token", 400), "Scan", "orders", place="target")
    assert str(error) == (
        "AWS does not accept the credentials for dynamodb:Scan on orders (UnrecognizedClientException: bad token). "
        "Fix the credentials, or use others (AWS_PROFILE, target.profile, target.role_arn)"
    )


def test_the_message_says_what_is_not_permitted_and_what_to_do() -> None:
    error = failure(AwsError("AccessDeniedException", "User x is not authorized", 400), "Scan", "orders")
    assert str(error) == (
        "dynamodb:Scan on orders is not permitted (AccessDeniedException: User x is not authorized). "
        "Allow it in the policy of the role or user that replicator runs as, or use other credentials "
        "(AWS_PROFILE, source.profile, source.role_arn)"
    )


@pytest.mark.parametrize("how", ["expired", "not yet current"])
def test_a_wrong_clock_is_named_and_transient(how: str) -> None:
    message = f"Signature {how}: 20261125T000000Z is now earlier than 20261125T001500Z (20261125T002000Z - 5 min.)"
    error = failure(AwsError("InvalidSignatureException", message, 400), "Scan", "orders")
    assert type(error) is TransientError
    assert str(error) == (
        f"Scan on orders: AWS rejects this machine's signatures because its clock is wrong ({message}). "
        "Set the clock and keep it synchronized (NTP)"
    )


@pytest.mark.parametrize("code", ["ValidationException", "ResourceNotFoundException", "SerializationException"])
def test_any_other_refusal_is_neither_retried_nor_a_permission_error(code: str) -> None:
    error = failure(AwsError(code, "no such thing", 400), "Scan", "orders")
    assert type(error) is ReplicatorError
    assert str(error) == f"Scan on orders was refused: {code}: no such thing"


def test_an_error_shows_its_code_and_message() -> None:
    assert str(AwsError("ValidationException", "no", 400)) == "ValidationException: no"


def test_a_body_is_decoded_and_its_items_stay_raw() -> None:
    found = decoded(b'{"Count":1,"Items":[{"id":{"S":"a"}}],"New":1}', Response, "Scan")
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
def test_any_other_body_is_transient(body: bytes) -> None:
    with pytest.raises(TransientError, match="the response to Scan is not DynamoDB JSON"):
        decoded(body, Response, "Scan")
