"""Closes the targets that a test made, however it ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.connectors.postgres import postgres_kit
from tests.connectors.search import search_kit


@pytest.fixture(autouse=True)
def _closed_targets(request: pytest.FixtureRequest) -> Iterator[None]:
    if "one_postgres" in request.fixturenames:  # so that they close before their database is dropped
        request.getfixturevalue("one_postgres")
    yield
    while postgres_kit.made:
        postgres_kit.made.pop().close()
    while search_kit.made:
        search_kit.made.pop().close()
