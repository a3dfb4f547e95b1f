"""An event source mapping of a real server's stream, and what it delivers to containers."""

from __future__ import annotations

from typing import Any

import pytest

from replicator.aws.boto import connect
from replicator.config import settings
from tests.end_to_end.pipeline import _AWS, Pipeline
from tests.end_to_end.world import Source
from tests.engine.event_source import EventSource
from tests.servers.runtime_api import Container

SCHEDULED = {"source": "aws.events", "detail-type": "Scheduled Event"}


class Stream:
    """The stream of a real server, for the event source mapping."""

    def __init__(self, copy: Pipeline, monkeypatch: pytest.MonkeyPatch, target: str | None = None) -> None:
        for name, value in _AWS.items():
            monkeypatch.setenv(name, value)
        self._client = connect(settings.load(copy.path, target=target).source)
        assert isinstance(copy.source, Source)
        self._source = copy.source

    def call(self, operation: str, request: dict[str, Any]) -> bytes:
        return self._client.call(operation, request)

    def stream_arn(self, table: str) -> str:
        described = self._source.client.describe_table(TableName=table)["Table"]
        return str(described["LatestStreamArn"])


def deliver(mapping: EventSource, *containers: Container) -> int:
    """All that there is, in turns to these containers; how many batches."""
    turn, idle = 0, False
    while not idle:
        idle = True
        for shard in mapping.ready():
            while (batch := mapping.event(shard)) is not None:
                mapping.done(shard, batch, containers[turn % len(containers)].invoke(batch))
                turn, idle = turn + 1, False
    return turn


def next_batch(mapping: EventSource) -> tuple[str, dict[str, Any]]:
    return next((s, b) for s in mapping.ready() if (b := mapping.event(s)) is not None)
