"""Servers with little memory: oversized requests, oversized documents, too many requests at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from connectors.search.conflicts import STRIKES
from connectors.search.target import SearchTarget
from replicator.batch import Batch, Outcome
from replicator.errors import TransientError
from replicator.testing.contract.kit import batch, put
from tests.connectors.search.search_kit import ids, opened, table
from tests.servers.search import SearchServer
from tests.servers.search_fixtures import Search, indices, started

pytestmark = pytest.mark.search

LITTLE = {"http.max_content_length": "300kb", "indexing_pressure.memory.limit": "200kb"}


@pytest.fixture(scope="module", params=["elasticsearch-9", "opensearch-3"])
def small_server(request: pytest.FixtureRequest) -> Iterator[SearchServer]:
    yield from started(request.param, LITTLE)


@pytest.fixture
def small(small_server: SearchServer) -> Iterator[Search]:
    yield from indices(small_server)


def tries(target: SearchTarget, written: Batch, most: int = 50) -> tuple[Outcome, int]:
    """Retry a batch until it has an outcome; return the outcome and the number of retries."""
    for waits in range(most):
        try:
            return target.write(written), waits
        except TransientError:
            continue
    raise AssertionError(f"no outcome after {most} attempts")


def test_requests_that_are_too_large_are_split(small: Search) -> None:
    of = table(small)
    target = opened(small, of)
    page = batch(*(put({"pk": str(n), "note": "x" * 2000}, 1, table=of.name) for n in range(500)))
    outcome, waits = tries(target, page)
    assert outcome == Outcome()
    assert waits > 0
    assert len(ids(small, of)) == 500


@pytest.mark.parametrize(
    ("size", "said"), [(250_000, "it is too large for the memory"), (400_000, "more than the server")]
)
def test_a_document_that_never_fits_is_refused_and_others_are_stored(small: Search, size: int, said: str) -> None:
    of = table(small)
    target = opened(small, of, bulk_bytes=100_000)
    large, fine = put({"pk": "large", "note": "x" * size}, 1, table=of.name), put({"pk": "a"}, 1, table=of.name)
    outcome, waits = tries(target, batch(large, fine))
    assert [r.write for r in outcome.rejections] == [large]
    assert said in outcome.rejections[0].reason
    assert waits in (0, STRIKES - 1)
    assert target.write(batch(fine)) == Outcome()
    assert ids(small, of) == {"a"}


def test_under_overload_no_small_document_is_refused(small: Search) -> None:
    of = table(small)
    target = opened(small, of, bulk_documents=20, in_flight=16)
    page = batch(*(put({"pk": str(n), "note": "x" * 3000}, 1, table=of.name) for n in range(800)))
    outcome, _ = tries(target, page, most=200)
    assert outcome == Outcome()
    assert len(ids(small, of)) == 800
