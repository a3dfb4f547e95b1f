"""Concurrent calls, on threads, over a client that makes one call at a time."""

from __future__ import annotations

import threading
import time
from queue import Empty, SimpleQueue
from typing import Any

import orjson

from replicator.aws.client import AT_ONCE, Call, Calls, Client, Concurrent


def calls_of(client: Client) -> Calls:
    return client.calls() if isinstance(client, Concurrent) else Threads(client)


OBJECTS_AT_ONCE = 4  # objects that are read at the same time
_SLICE = 0.01  # seconds: how long one kind of calls is waited for while the other may have a response


class Divided:
    """``Calls`` of which some ``operations`` are made on threads, over ``client``: those that are not DynamoDB's."""

    def __init__(self, calls: Calls, client: Client, operations: frozenset[str]) -> None:
        self._calls, self._client, self._operations = calls, client, operations
        self._threads: Threads | None = None
        self._threaded = 0  # in flight

    def begin(self, name: object, call: Call) -> None:
        if call.operation not in self._operations:
            self._calls.begin(name, call)
            return
        if self._threads is None:
            self._threads = Threads(self._client, OBJECTS_AT_ONCE)
        self._threaded += 1
        self._threads.begin(name, call)

    def next(self, timeout: float) -> tuple[Any, bytes | Exception] | None:
        if self._threads is None or not self._threaded:
            return self._calls.next(timeout)
        until = time.monotonic() + timeout
        while True:
            found = self._threads.next(0.0)
            if found is not None:
                self._threaded -= 1
                return found
            left = until - time.monotonic()
            found = self._calls.next(max(0.0, min(_SLICE, left)))
            if found is not None or left <= 0:
                return found

    def close(self) -> None:
        self._calls.close()
        if self._threads is not None:
            self._threads.close()


class Threads:
    """``Calls`` over any client."""

    def __init__(self, client: Client, threads: int = AT_ONCE) -> None:
        self._client = client
        self._calls: SimpleQueue[tuple[object, Call] | None] = SimpleQueue()
        self._responses: SimpleQueue[tuple[Any, bytes | Exception]] = SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=f"calls-{n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def begin(self, name: object, call: Call) -> None:
        self._calls.put((name, call))

    def next(self, timeout: float) -> tuple[Any, bytes | Exception] | None:
        try:
            return self._responses.get(timeout=timeout) if timeout > 0 else self._responses.get_nowait()
        except Empty:
            return None

    def close(self) -> None:
        """Waits for the calls in flight."""
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            name, call = item
            try:
                request = call.request if call.body is None else orjson.loads(call.body)
                response: bytes | Exception = self._client.call(call.operation, request)
            except Exception as e:  # any error belongs to the caller
                response = e
            self._responses.put((name, response))
