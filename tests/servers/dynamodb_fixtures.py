"""DynamoDB Local for the tests, started when a test asks for it and ended with the test run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn, Protocol

import pytest

from tests.servers.dynamodb_local import DynamoDBLocal, ServerMissing


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
                _missing(str(e))

        yield start


@pytest.fixture(scope="session")
def tables_local(dynamodb_local: StartLocal) -> DynamoDBLocal:
    """One for tables without a stream, which any test may remove once another test has begun."""
    return dynamodb_local()


def _missing(reason: str) -> NoReturn:
    """In CI a server that cannot start is a failure: a skipped test proves nothing."""
    if os.environ.get("CI"):
        pytest.fail(f"DynamoDB Local is missing: {reason}")
    pytest.skip(f"NOT TESTED, DynamoDB Local is missing: {reason}")
