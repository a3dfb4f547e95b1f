"""What DynamoDB's responses to single writes mean."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import pytest

from connectors.dynamodb.encode import Request
from connectors.dynamodb.options import DynamoDBOptions
from connectors.dynamodb.responses import Kind, is_throttled, verdict
from connectors.dynamodb.writer import Writer
from replicator.aws.errors import THROTTLED, UNNAMED, AwsError, NotConnected
from replicator.errors import ConfigError, NotAuthenticated, NotPermitted, ReplicatorError, TransientError
from replicator.target.in_doubt import InDoubtWindow


def meaning(answer: bytes | AwsError) -> tuple[Kind | None, type[ReplicatorError] | None]:
    result = verdict(Request("PutItem", "copies", b"{}", answer=answer), "dynamodb.example")
    return (None, None) if result is None else (result.kind, None if result.error is None else type(result.error))


@pytest.mark.parametrize(
    ("answer", "kind", "error"),
    [
        (b"{}", "stored", None),
        (b"<html>", "unsure", TransientError),
        (b"", "unsure", TransientError),
        (AwsError("ReadTimeoutError", "", 0), "unsure", TransientError),
        (AwsError("InternalServerError", "", 500), "unsure", TransientError),
        (AwsError("ServiceUnavailable", "", 503), "unsure", TransientError),
        (AwsError("Whatever", "", 408), "unsure", TransientError),
        (AwsError("RequestTimeout", "", 400), "unsure", TransientError),
        (AwsError("RequestTimeoutException", "", 400), "unsure", TransientError),
        (AwsError(UNNAMED, "", 403), "unsure", TransientError),
        (AwsError(UNNAMED, "", 499), "unsure", TransientError),
        (AwsError("TooManyRequestsException", "", 429), "failed", TransientError),
        (AwsError("LimitExceededException", "", 400), "failed", TransientError),
        (AwsError("AccessDeniedException", "", 400), "failed", NotPermitted),
        (AwsError("NoCredentials", "", 0), "failed", NotAuthenticated),
        (AwsError("Whatever", "", 400), "failed", ReplicatorError),
        (AwsError("Whatever", "", 499), "failed", ReplicatorError),
        (NotConnected("EndpointConnectionError", "", 0), None, None),
    ],
    ids=str,
)
def test_a_write_is_in_doubt_unless_a_response_rules_it_out(
    answer: bytes | AwsError, kind: Kind | None, error: type[ReplicatorError] | None
) -> None:
    assert meaning(answer) == (kind, error)


@pytest.mark.parametrize("code", sorted(THROTTLED | {"TransactionConflictException"}))
def test_throttled_writes_are_sent_again_more_slowly(code: str) -> None:
    assert is_throttled(AwsError(code, "", 400))
    assert not is_throttled(AwsError(code, "", 500)), "in doubt"
    assert not is_throttled(AwsError("RequestTimeout", "", 400)), "in doubt"


class Refusing:
    """A sender to a table that refuses one of the requests."""

    server = "DynamoDB at home"

    def start(self, requests: Sequence[Request]) -> Future[str]:
        for request in requests:
            request.answer = b"{}"
        requests[0].answer = AwsError("ValidationException", "One or more parameter values: Type mismatch for key", 400)
        done: Future[str] = Future()
        done.set_result("")
        return done


def test_a_tombstone_that_the_table_refuses_ends_the_sweep() -> None:
    """The pass would continue without it, and end as if the older document were removed."""
    writing = Writer(Refusing(), InDoubtWindow(), DynamoDBOptions.model_validate({"region": "us-east-1"}))  # type: ignore[arg-type]
    words = r"DynamoDB at home: copies takes no tombstones \(a key attribute has another type than the table's key\)"
    with pytest.raises(ConfigError, match=words):
        writing.write_all([Request("PutItem", "copies", b"{}"), Request("PutItem", "copies", b"{}")])
