"""Calls under way at the same time over a wire that only makes one after the other: on threads."""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue
from typing import Any

import orjson

from replicator.aws.client import AT_ONCE, Call, Calls, Client, Concurrent


def calls_of(client: Client) -> Calls:
    return client.calls() if isinstance(client, Concurrent) else Threads(client)


class Threads:
    """``Calls`` over any wire."""

    def __init__(self, client: Client, threads: int = AT_ONCE) -> None:
        self._client = client
        self._asked: SimpleQueue[tuple[object, Call] | None] = SimpleQueue()
        self._answers: SimpleQueue[tuple[Any, bytes | Exception]] = SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=f"calls-{n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def begin(self, name: object, call: Call) -> None:
        self._asked.put((name, call))

    def next(self, timeout: float) -> tuple[Any, bytes | Exception] | None:
        try:
            return self._answers.get(timeout=timeout) if timeout > 0 else self._answers.get_nowait()
        except Empty:
            return None

    def close(self) -> None:
        """Waits for the calls that are being made."""
        for _ in self._threads:
            self._asked.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            name, call = asked
            try:
                request = call.request if call.body is None else orjson.loads(call.body)
                answer: bytes | Exception = self._client.call(call.operation, request)
            except Exception as e:  # whatever it is, it is for who asked
                answer = e
            self._answers.put((name, answer))
