"""A response to BatchGetItem says what does not exist only of the table that the request named."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import pytest

from replicator.aws.batch_get import BatchReader
from replicator.aws.client import Call, Client
from replicator.change import ScanPage
from replicator.errors import TransientError
from replicator.key import KeyAttribute, KeySchema
from replicator.source import chosen
from replicator.source.decoding import RecordsDecoder
from replicator.source.keys_only import looked_up
from replicator.source.scan import Scanned
from replicator.source.stream import Stream
from replicator.state import SegmentState
from tests.source.test_keys_only import records

KEYS = KeySchema((KeyAttribute("id", "S"), KeyAttribute("n", "N")))
ARN = "arn:aws:dynamodb:us-east-1:210987654321:table/orders"
WORDS = f"BatchGetItem on {ARN}: the response names 'orders' instead"
OTHERS: Mapping[str, Mapping[str, Any]] = {
    "its items": {"Responses": {"orders": []}, "UnprocessedKeys": {}},
    "its unprocessed keys": {
        "Responses": {},
        "UnprocessedKeys": {"orders": {"Keys": [{"id": {"S": "a"}, "n": {"N": "1"}}]}},
    },
}


class Answering:
    """A client with one response."""

    server = "here"

    def __init__(self, body: bytes) -> None:
        self._body = body

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        assert (operation, list(request["RequestItems"])) == ("BatchGetItem", [ARN])
        return self._body


def by_resync(body: bytes) -> str:
    steps = chosen.read(
        Scanned(ARN, KEYS, random.Random(1), lambda: 0.0), 0, SegmentState(1, keys=(("a", "1"),)), keeps_expired=False
    )
    assert isinstance(next(steps), Call)
    page = steps.send(body)
    assert isinstance(page, ScanPage)
    assert not page.items
    return str(page.waiting_for)


def by_look_up(body: bytes) -> str:
    stream = Stream("arn", ARN, KEYS, RecordsDecoder(KEYS), lambda: 0.0, random.Random(2), keys_only=True)
    steps = looked_up(stream, records("a"), set(), lambda reason, _: reason)
    assert isinstance(next(steps), Call)
    return str(steps.send(body))


def by_verify(body: bytes) -> str:
    client: Client = Answering(body)
    reader = BatchReader(client, ARN)
    with pytest.raises(TransientError) as raised:
        reader.read([KEYS.typed(("a", "1"))])
    reader.close()
    return str(raised.value)


@pytest.mark.parametrize("answer", OTHERS)
@pytest.mark.parametrize("read", [by_resync, by_look_up, by_verify])
def test_a_response_about_another_table_says_nothing_of_what_was_asked_for(
    read: Callable[[bytes], str], answer: str
) -> None:
    assert read(orjson.dumps(OTHERS[answer])) == WORDS
