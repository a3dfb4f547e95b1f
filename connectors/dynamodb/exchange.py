"""One connection to the endpoint: a request out, its answer in, then the next. asyncio connects, llhttp reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httptools

from connectors.dynamodb.request import Request


class Unreadable(OSError):
    """What came is no HTTP; the request may have been carried out."""


class Exchange(asyncio.Protocol):
    """A connection that carries one request at a time.

    ``answered(exchange)`` is called with ``status`` and ``body`` set; ``ended(exchange, request, error)`` when the
    connection is gone, with the request that was under way on it, if any.
    """

    def __init__(
        self,
        answered: Callable[[Exchange], None],
        ended: Callable[[Exchange, Request | None, Exception | None], None],
    ) -> None:
        self._answered = answered
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        self._parser: Any = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._fault: Exception | None = None
        self._whole = self._lasts = False
        self.request: Request | None = None
        self.since = 0.0
        self.status = 0
        self.body = b""

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, request: Request, message: bytes, now: float) -> None:
        """Begin the exchange. ``message``: the whole request; ``now``: the loop's time."""
        assert self._transport is not None
        self.request, self.since = request, now
        self._transport.write(message)

    def abort(self, fault: Exception | None = None) -> None:
        """End the connection at once, whatever is under way on it."""
        self._fault = self._fault or fault
        if self._transport is not None:
            self._transport.abort()

    # asyncio's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as e:
            self.abort(Unreadable(f"the answer is no HTTP: {e}"))
        if self._whole:  # not inside the parser's call, which swallows errors
            self._whole = False
            self._complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        request, self.request = self.request, None
        self._ended(self, request, self._fault or exc)

    # llhttp's calls

    def on_body(self, part: bytes) -> None:
        self._parts.append(part)

    def on_message_complete(self) -> None:
        self._whole, self._lasts = True, bool(self._parser.should_keep_alive())  # afterwards it says no

    def _complete(self) -> None:
        self.body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self.status = self._parser.get_status_code()
        if self.request is None:
            self.abort(Unreadable("an answer came that nobody asked for"))
            return
        if not self._lasts:
            assert self._transport is not None
            self._transport.close()
        self.since = 0.0
        self._answered(self)
