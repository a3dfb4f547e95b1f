"""A run that was suspended in the middle of a batch checks whether it was replaced before it sends the rest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from connectors.dynamodb.encode import Request
from connectors.dynamodb.sender import Pace, Sender
from connectors.search.bulk import Bulk, Size
from connectors.search.errors import Response
from connectors.search.layout import layouts
from replicator.aws import http_client
from replicator.aws.client import Call
from replicator.engine import delivery
from replicator.errors import Unfinished
from replicator.target import in_doubt
from replicator.target.contract import Table
from replicator.target.in_doubt import TOO_LATE
from replicator.testing.contract.kit import PK

SLEEPS = pytest.mark.parametrize("slept", [61.0, 86_400.0, -5.0], ids=["a minute", "a day", "its clock was set back"])


class Clock:
    """Replaces ``time.time``; ``slept`` seconds pass with the first response."""

    def __init__(self, slept: float) -> None:
        self.now, self._slept = 1e9, slept

    def sleep(self) -> None:
        self.now, self._slept = self.now + self._slept, 0.0


@pytest.fixture
def clock(slept: float, monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock(slept)
    monkeypatch.setattr(time, "time", lambda: found.now)
    return found


class AnsweringTable:
    """Responds to each request at once."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.begun = 0
        self._unanswered: list[object] = []

    def begin(self, name: object, call: Call) -> None:
        self.begun += 1
        self._unanswered.append(name)

    def next(self, timeout: float) -> tuple[Any, bytes | Exception] | None:
        if not self._unanswered:
            return None
        self._clock.sleep()
        return self._unanswered.pop(0), b"{}"

    def close(self) -> None:
        pass


class Cluster:
    """Rejects requests as too large, so that they are halved."""

    server = "Elasticsearch at localhost"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.requests = 0

    def request(self, method: str, path: str, body: bytes, form: str) -> Response:
        self.requests += 1
        self._clock.sleep()
        return Response(413, b"")


@SLEEPS
def test_the_rest_of_a_late_batch_is_not_written_to_a_table(clock: Clock) -> None:
    table = AnsweringTable(clock)
    sender = Sender("DynamoDB", lambda: table, Pace(2))
    try:
        said = sender.start([Request("PutItem", "t", b"{}") for _ in range(5)]).result(20)
    finally:
        sender.close()
    assert (said, table.begun) == (TOO_LATE, 2)


@pytest.fixture
def bulk(clock: Clock) -> Iterator[tuple[Bulk, Cluster]]:
    cluster = Cluster(clock)
    found = Bulk(cluster, Size(1 << 20, 100), 1)  # type: ignore[arg-type]
    yield found, cluster
    found.close()


@SLEEPS
def test_the_rest_of_a_late_batch_is_not_written_to_an_index(bulk: tuple[Bulk, Cluster]) -> None:
    sending, cluster = bulk
    layout = layouts([Table("contract", PK)])["contract"]
    verdicts = sending.store(layout, [b"{}\n{}\n"] * 4)
    assert cluster.requests == 1
    assert [type(verdict.error) for verdict in verdicts] == [Unfinished] * 4
    assert all(TOO_LATE in str(verdict.error) for verdict in verdicts)


def test_a_batch_is_sent_for_less_time_than_the_in_doubt_window_of_the_next_run() -> None:
    """It starts within ``CONFIRMED`` seconds of a confirmation; once it is late, the run checks again."""
    assert (delivery.CONFIRMED, http_client.WAITED, in_doubt.TRUSTED, in_doubt.WINDOW) == (5.0, 30.0, 10.0, 360.0)
    assert in_doubt.WINDOW > 300.0 + delivery.CONFIRMED + in_doubt.TRUSTED + http_client.WAITED
