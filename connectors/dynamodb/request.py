"""A request to DynamoDB, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass

from replicator.aws.errors import AwsError
from replicator.errors import ReplicatorError


@dataclass(slots=True, eq=False)
class Request:
    """``operation`` on ``table`` with its JSON ``body``. ``units``: about what it costs, in write capacity units.

    ``answer``: the body, the error that came instead, or what kept it from being sent; None if it was not tried.
    """

    operation: str
    table: str
    body: bytes
    units: float = 1.0
    answer: bytes | AwsError | ReplicatorError | None = None
