"""Real servers at both ends: one DynamoDB Local for all of these tests, and one whose clock can be moved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.end_to_end.world import Copy, Source
from tests.servers.dynamodb_fixtures import StartLocal
from tests.servers.dynamodb_local import DynamoDBLocal
from tests.servers.postgres_fixtures import Database

NewSource = Callable[..., Source]
_CLOCK = ("LD_PRELOAD", "FAKETIME_TIMESTAMP_FILE")
_LOOK = {"FAKETIME_CACHE_DURATION": "1"}  # seconds; looked up at each call, libfaketime crashes programs with threads


@pytest.fixture(scope="session")
def local(dynamodb_local: StartLocal) -> DynamoDBLocal:
    return dynamodb_local()


@pytest.fixture(scope="session")
def clocked(dynamodb_local: StartLocal) -> DynamoDBLocal:
    """A server whose clock is moved forward by tests, and never back."""
    return dynamodb_local(clock=True)


@contextmanager
def table(endpoint: str, view: str) -> Iterator[Source]:
    """A table that is gone afterwards: a server with a second stream is slow."""
    source = Source(endpoint, view=view).create()
    try:
        yield source
    finally:
        source.client.delete_table(TableName=source.table)


@pytest.fixture
def new_source(local: DynamoDBLocal) -> Iterator[NewSource]:
    """Makes the test's table: ``new_source("KEYS_ONLY")``."""
    with ExitStack() as tables:
        yield lambda view: tables.enter_context(table(local.endpoint, view))


@pytest.fixture
def source(new_source: NewSource) -> Source:
    return new_source("NEW_AND_OLD_IMAGES")


@pytest.fixture
def copy(tmp_path: Path, source: Source, one_postgres: Database) -> Copy:
    """A pipeline without a hook into one table, on the newest Postgres."""
    return Copy(tmp_path, source, one_postgres).configure()


@pytest.fixture
def clocked_copy(tmp_path: Path, clocked: DynamoDBLocal, one_postgres: Database) -> Iterator[Copy]:
    """The same, where commands share the clock of the source."""
    with table(clocked.endpoint, "NEW_AND_OLD_IMAGES") as source:
        environment = {name: clocked._environment()[name] for name in _CLOCK} | _LOOK
        clock = environment | {"FAKETIME_DONT_FAKE_MONOTONIC": "1"}  # waits go on as ever
        yield Copy(tmp_path, source, one_postgres, clock=clock).configure()
