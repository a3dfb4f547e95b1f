"""DynamoDB Local for the tests, started when a test asks for it and ended with the test run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from tests.servers.dynamodb_local import DynamoDBLocal, ServerMissing
from tests.servers.starting import not_tested


class StartLocal(Protocol):
    def __call__(self, *, clock: bool = False, directory: Path | None = None) -> DynamoDBLocal: ...


@pytest.fixture(scope="session")
def dynamodb_local() -> Iterator[StartLocal]:
    """Starts servers: ``dynamodb_local(clock=True)``. Each call gives a new one, which ends with the session."""
    with ExitStack() as running:

        def start(*, clock: bool = False, directory: Path | None = None) -> DynamoDBLocal:
            try:
                return running.enter_context(DynamoDBLocal(clock=clock, directory=directory))
            except ServerMissing as e:
                not_tested(f"DynamoDB Local is missing: {e}")

        yield start


@pytest.fixture(scope="session")
def tables_local(dynamodb_local: StartLocal) -> DynamoDBLocal:
    """One for tables without a stream, which any test may remove once another test has begun."""
    return dynamodb_local()
