"""An in-memory DynamoDB that the tests of this connector write to, and the credentials that they use."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


@pytest.fixture
def db() -> DynamoDB:
    return DynamoDB(now=time.time, random=random.Random(7))


@pytest.fixture
def endpoint(db: DynamoDB) -> Iterator[str]:
    with served(db) as url:
        yield url
