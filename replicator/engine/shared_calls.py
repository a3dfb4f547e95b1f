"""The calls of one pipeline, of which those that read shards are shared with the other pipelines of the process."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import msgspec
import orjson

from replicator.aws.client import Call, Calls
from replicator.aws.errors import AwsError
from replicator.engine.measurements import Measurements, Unmeasured
from replicator.errors import ReplicatorError
from replicator.source.decoding import Records
from replicator.source.shard_reader import OpenedIterator
from replicator.source.sharing import EXPIRED, Fetch, Place, SharedPages, is_shared

_AGAIN = 0.01  # seconds until a pipeline asks again for what another one is reading


@dataclass(frozen=True, slots=True)
class _Alone:
    """An iterator of this pipeline's own: where it was opened, and the last record that was returned since."""

    stream: str
    shard: str
    place: Place
    last: str | None = None


@dataclass(frozen=True, slots=True)
class _Pending:
    """A request in flight. ``iterator``: the one that was asked for. ``fetch``: made for all pipelines."""

    call: Call
    requested: float
    iterator: str = ""
    fetch: Fetch | None = None


@dataclass(slots=True, eq=False)
class SharedCalls:
    """``Calls`` that read the shards of all pipelines with ``pages``. ``now``: wall clock.

    Each response is decoded as its call says: another stream of the table may have another view.
    """

    calls: Calls
    pages: SharedPages
    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    measurements: Measurements = field(default_factory=Unmeasured)
    _alone: dict[str, _Alone] = field(default_factory=dict)
    _pending: dict[object, _Pending] = field(default_factory=dict)
    _responses: deque[tuple[object, Any]] = field(default_factory=deque)
    _later: list[tuple[float, int, object, Call]] = field(default_factory=list)
    _order: count[int] = field(default_factory=count)

    def begin(self, name: object, call: Call) -> None:
        if call.operation == "GetShardIterator":
            self._open(name, call)
        elif call.operation == "GetRecords" and is_shared(call.request["ShardIterator"]):
            self._read(name, call)
        elif call.operation == "GetRecords":
            self._read_alone(name, call)
        else:
            self.calls.begin(name, call)

    def next(self, timeout: float) -> tuple[Any, Any] | None:
        self.pages.here(self, self.monotonic())
        while self._later and self._later[0][0] <= self.monotonic():
            _, _, name, call = heapq.heappop(self._later)
            self.begin(name, call)
        if self._responses:
            return self._responses.popleft()
        until_later = self._later[0][0] - self.monotonic() if self._later else timeout
        answered = self.calls.next(max(0.0, min(timeout, until_later)))
        if answered is None:
            return None
        name, response = answered
        pending = self._pending.pop(name, None)
        if pending is None:
            return answered
        self._answered(name, pending, response)
        return self._responses.popleft() if self._responses else None

    def close(self) -> None:
        self.pages.left(self)
        self.calls.close()

    def _open(self, name: object, call: Call) -> None:
        iterator = self.pages.opened(*_where(call))
        if iterator is None:
            self._send(name, _Pending(call, self.now()), call)
        else:
            self._responses.append((name, orjson.dumps({"ShardIterator": iterator})))

    def _read(self, name: object, call: Call) -> None:
        iterator = call.request["ShardIterator"]
        try:
            found = self.pages.ask(iterator, self, self.monotonic())
        except AwsError as e:
            self._responses.append((name, e))
            return
        if isinstance(found, Fetch):
            request = {**call.request, "ShardIterator": found.iterator}
            self._send(name, _Pending(call, self.now(), iterator, found), Call(call.operation, request))
        elif found is None:
            self._ask_later(name, call)
        else:
            self.measurements.paged("shared")
            self._responses.append((name, found))

    def _read_alone(self, name: object, call: Call) -> None:
        iterator = call.request["ShardIterator"]
        alone = self._alone.get(iterator)
        if alone is not None and not self.pages.may_read_alone(alone.stream, alone.shard, self, self.monotonic()):
            self._ask_later(name, call)
            return
        self._send(name, _Pending(call, self.now(), iterator), call)

    def _ask_later(self, name: object, call: Call) -> None:
        heapq.heappush(self._later, (self.monotonic() + _AGAIN, next(self._order), name, call))

    def _send(self, name: object, pending: _Pending, call: Call) -> None:
        self._pending[name] = pending
        self.calls.begin(name, call)

    def _answered(self, name: object, pending: _Pending, response: bytes | Exception) -> None:
        if pending.call.operation == "GetShardIterator":
            self._note(pending, response)
            self._responses.append((name, response))
            return
        records = _decoded(pending.call, response)
        if pending.fetch is None:
            self.measurements.paged("own")
            self._responses.append((name, self._joined(pending, records)))
            return
        is_news = self.pages.answered(pending.iterator, pending.fetch, records, pending.requested)
        if is_news and isinstance(records, Exception):
            self._responses.append((name, records))
        else:
            self._read(name, pending.call)

    def _note(self, pending: _Pending, response: bytes | Exception) -> None:
        """Remember what an iterator was opened for. What is no iterator is for the reader to notice."""
        if isinstance(response, bytes):
            try:
                iterator = msgspec.json.decode(response, type=OpenedIterator).ShardIterator
            except (msgspec.MsgspecError, UnicodeDecodeError):
                return
            self._alone[iterator] = _Alone(*_where(pending.call))

    def _joined(self, pending: _Pending, records: Records | Exception) -> Records | Exception:
        """The response to an iterator of its own, whose next one is shared if the pages go on where it ends."""
        alone = self._alone.get(pending.iterator)
        if alone is None:
            return records
        self.pages.read_alone(alone.stream, alone.shard, self)
        if isinstance(records, Exception):
            if isinstance(records, AwsError) and records.code == EXPIRED:
                del self._alone[pending.iterator]
            return records
        del self._alone[pending.iterator]
        where = alone.stream, alone.shard, alone.place, alone.last
        if records.next is None:
            return records
        iterator = self.pages.joined(*where, records, pending.requested, self.monotonic())
        if iterator is not None:
            return replace(records, next=iterator)
        last = records.records[-1].sequence if records.records else alone.last
        self._alone[records.next] = replace(alone, last=last)
        return records


def _decoded(call: Call, response: bytes | Exception) -> Records | Exception:
    if isinstance(response, Exception):
        return response
    assert call.decode is not None, "every reader says how"
    try:
        records: Records = call.decode(response)
    except ReplicatorError as e:
        return e
    return records


def _where(call: Call) -> tuple[str, str, Place]:
    """Stream, shard and place of a request for an iterator."""
    place = {name: value for name, value in call.request.items() if name not in ("StreamArn", "ShardId")}
    return call.request["StreamArn"], call.request["ShardId"], place
