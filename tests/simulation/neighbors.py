"""In some seeds another pipeline of the process reads the same stream, and both share the pages.

The run's requests then go through ``SharedCalls``. The neighbor reads one step at a time, from any place, and starts
over now and then; what it gets is judged in ``tests/engine/test_shared_calls.py``, what the run gets is judged here.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from replicator.aws.client import Call, Client, answered
from replicator.change import Page
from replicator.engine.shared_calls import SharedCalls
from replicator.errors import ReplicatorError
from replicator.key import KeyAttribute, KeySchema
from replicator.source.decoding import RecordsDecoder
from replicator.source.shard_reader import read
from replicator.source.sharing import SharedPages
from replicator.source.stream import Stream
from replicator.state import ShardState

if TYPE_CHECKING:
    from tests.simulation.world import Universe

KEYS = KeySchema((KeyAttribute("pk", "S"),))


class _Calls:
    """``Calls`` that are made at once."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._response: tuple[object, Any] | None = None

    def begin(self, name: object, call: Call) -> None:
        try:
            self._response = name, self._client.call(call.operation, call.request)
        except Exception as e:  # any error belongs to the caller
            self._response = name, e

    def next(self, timeout: float) -> tuple[object, Any] | None:
        response, self._response = self._response, None
        return response

    def close(self) -> None: ...


class SharedClient:
    """A client whose calls share pages with the neighbor's."""

    def __init__(self, universe: Universe, pages: SharedPages, client: Client) -> None:
        clock = universe.clock
        self._decode = RecordsDecoder(KEYS, images=universe.scenario.view != "KEYS_ONLY")
        self._universe = universe
        self._calls = SharedCalls(_Calls(client), pages, clock.wall, clock)

    def call(self, operation: str, request: Mapping[str, Any]) -> Any:
        self._calls.begin("", Call(operation, request, decode=self._decode))
        while (found := self._calls.next(0.0)) is None:
            self._universe.clock.now += 0.05  # another one was killed in the middle of the same request
        if isinstance(found[1], Exception):
            raise found[1]
        return found[1]


class Neighbor:
    """Another pipeline of the process."""

    def __init__(self, universe: Universe, seed: int) -> None:
        self._universe, self._chance = universe, random.Random(f"neighbor {seed}")
        self.pages = SharedPages(self._chance.choice([1, 3_000, 20_000, 1 << 20]))
        self._client = SharedClient(universe, self.pages, universe.source)
        self._pages: dict[str, Any] = {}

    def advance(self) -> None:
        """Perhaps make a step in one of the shards."""
        universe, chance = self._universe, self._chance
        if chance.random() < 0.5 or not universe.streaming:
            return
        shards = universe.source.shards(universe.TABLE)
        if not shards:
            return  # the stream is being enabled
        shard = chance.choice(shards).id
        if shard not in self._pages or chance.random() < 0.05:
            self._pages[shard] = answered(self._client, read(self._stream(), shard, self._state()))
        try:
            page: Page | None = next(self._pages[shard], None)
        except ReplicatorError:  # it is late, or the stream misbehaves
            page = None
        if page is None:
            del self._pages[shard]

    def _stream(self) -> Stream:
        universe = self._universe
        decode = RecordsDecoder(KEYS, images=universe.scenario.view != "KEYS_ONLY")
        arn = universe.source.stream_arn(universe.TABLE)
        return Stream(arn, universe.TABLE, KEYS, decode, universe.clock.wall, self._chance)

    def _state(self) -> ShardState:
        since = self._universe.clock.wall() - self._chance.choice([0.0, 100.0, 10_000.0])
        return ShardState(None, None, self._chance.random() < 0.5, since)


def client_of(universe: Universe, client: Client) -> Client:
    """What a run's requests go through."""
    if universe.neighbor is None:
        return client
    shared: Client = SharedClient(universe, universe.neighbor.pages, client)
    return shared
