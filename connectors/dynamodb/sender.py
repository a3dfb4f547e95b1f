"""Many requests in flight on one event loop, in a thread of its own."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any
from urllib.parse import urlsplit

from connectors.dynamodb.answers import units_of, wants_less
from connectors.dynamodb.exchange import Exchange
from connectors.dynamodb.pace import Pace
from connectors.dynamodb.request import Request
from replicator import __version__
from replicator.connecting import Endpoint
from replicator.sigv4 import Keys, Signer

CONTENT = "application/x-amz-json-1.0"
_CONNECT = 5.0  # seconds
_STALE = 20.0  # seconds after which an idle connection is not trusted any more
_PATIENCE = 10.0  # seconds that a table may throttle everything before the batch is given up for now


class Sender:
    """Sends requests and collects their answers. One thread uses it at a time.

    ``timeout``: seconds for one answer. The thread and its connections are made at first use.
    """

    def __init__(self, endpoint: Endpoint, pace: Pace, timeout: float) -> None:
        self._endpoint = endpoint
        self._pace = pace
        self._timeout = timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lines: Lines | None = None

    @property
    def server(self) -> str:
        return f"DynamoDB at {urlsplit(self._endpoint.url).netloc.rpartition('@')[2]}"

    def start(self, requests: Sequence[Request], keys: Keys) -> Future[str]:
        """Begin to send them all, in any order. The future is done when nothing of them is under way any more.

        Its result is empty if each has its answer, else the reason why some were not sent, or are lost.
        """
        work = Work(deque(requests), keys)
        if not requests:
            work.done.set_result("")
            return work.done
        lines = self._running()
        assert self._loop is not None
        self._loop.call_soon_threadsafe(lines.begin, work)
        return work.done

    def close(self) -> None:
        loop, thread, lines = self._loop, self._thread, self._lines
        self._loop = self._thread = self._lines = None
        if loop is None or thread is None or lines is None:
            return
        asyncio.run_coroutine_threadsafe(lines.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    def _running(self) -> Lines:
        if self._lines is None:
            self._loop = asyncio.new_event_loop()
            self._lines = Lines(self._loop, self._endpoint, self._pace, self._timeout)
            self._loop.set_exception_handler(self._lines.broken)
            self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="dynamodb-target")
            self._thread.start()
        return self._lines


class Work:
    """Requests that were handed over together."""

    def __init__(self, queue: deque[Request], keys: Keys) -> None:
        self.queue = queue
        self.keys = keys
        self.under_way = 0
        self.trouble = ""
        self.done: Future[str] = Future()

    def stop(self, trouble: str) -> None:
        """Send no more of it."""
        self.trouble = self.trouble or trouble
        self.queue.clear()

    def settle(self) -> bool:
        """Whether nothing is left of it, so that it is done."""
        if self.queue or self.under_way:
            return False
        if not self.done.done():
            self.done.set_result(self.trouble)
        return True


class Lines:
    """The connections. Lives in the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, endpoint: Endpoint, pace: Pace, timeout: float) -> None:
        parts = urlsplit(endpoint.url)
        self._loop = loop
        self._pace = pace
        self._timeout = timeout
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context(cafile=endpoint.authorities) if parts.scheme == "https" else None
        self._signer = Signer(parts.netloc, endpoint.region, "dynamodb", CONTENT)
        self._idle: list[Exchange] = []
        self._all: set[Exchange] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._work: Work | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None

    def begin(self, work: Work) -> None:
        assert self._work is None, "a batch is under way"
        self._work = work
        now = self._loop.time()
        self._pace.since_throttled = None
        for exchange in [e for e in self._idle if now - e.since > _STALE]:
            self._idle.remove(exchange)
            exchange.abort()
        self._watch = self._loop.call_later(1.0, self._look)
        self._fill()

    def broken(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A bug in this thread ends the run in the one that waits, with its traceback."""
        if self._work is not None and not self._work.done.done():
            self._work.done.set_exception(context.get("exception") or RuntimeError(context["message"]))

    async def close(self) -> None:
        for task in list(self._connecting):
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        for exchange in list(self._all):
            exchange.abort(ConnectionAbortedError("closed"))
        while self._all:
            await asyncio.sleep(0)
        for timer in (self._timer, self._watch):
            if timer is not None:
                timer.cancel()

    def _fill(self) -> None:
        """Send as much as may be sent now."""
        work = self._work
        while work is not None and work.queue:
            now = self._loop.time()
            wait = self._pace.wait(work.under_way, now)
            if wait is None:
                return
            if wait > 0:
                self._later(wait)
                return
            if not self._idle:
                self._connect(work)
                return
            self._send(self._idle.pop(), work, now)
        self._settle()

    def _send(self, exchange: Exchange, work: Work, now: float) -> None:
        if not exchange.open:
            return
        request = work.queue.popleft()
        work.under_way += 1
        self._pace.sent(request.units, now)
        target = f"DynamoDB_20120810.{request.operation}"
        head = self._signer.headers(target, request.body, work.keys, time.time())
        length = b"content-length: %d\r\n\r\n" % len(request.body)
        exchange.send(request, b"".join((_START, head, length, request.body)), now)

    def _answered(self, exchange: Exchange) -> None:
        request, exchange.request = exchange.request, None
        work = self._work
        assert request is not None
        assert work is not None
        work.under_way -= 1
        now = exchange.since = self._loop.time()
        if exchange.open:
            self._idle.append(exchange)
        if exchange.status != 200 and wants_less(exchange.status, exchange.body):
            self._throttled(work, request, now)
        else:
            request.status, request.answer = exchange.status, exchange.body
            self._pace.answered()
            if self._pace.write_units is not None:
                self._pace.consumed(units_of(exchange.body, request.units) - request.units)
        self._fill()

    def _throttled(self, work: Work, request: Request, now: float) -> None:
        self._pace.throttled(now)
        if work.trouble:
            return
        work.queue.append(request)
        if now - (self._pace.since_throttled or now) > _PATIENCE:
            work.stop("the table throttles every write (its capacity, or the account's, is used up)")

    def _ended(self, exchange: Exchange, request: Request | None, error: Exception | None) -> None:
        self._all.discard(exchange)
        if exchange in self._idle:
            self._idle.remove(exchange)
        work = self._work
        if request is not None and work is not None:
            work.under_way -= 1
            request.lost = _reason(error)
            work.stop(request.lost)
            self._settle()
        else:
            self._fill()

    def _settle(self) -> None:
        if self._work is not None and self._work.settle():
            self._work = None
            if self._watch is not None:
                self._watch.cancel()

    def _connect(self, work: Work) -> None:
        """One more connection at a time for each that is missing; those that are made go on with the queue."""
        wanted = min(int(self._pace.at_once), len(work.queue) + work.under_way)
        for _ in range(wanted - len(self._all) - len(self._connecting)):
            task = self._loop.create_task(self._connected())
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connected(self) -> None:
        exchange = Exchange(self._answered, self._ended)
        connecting = self._loop.create_connection(lambda: exchange, self._host, self._port, ssl=self._tls)
        try:
            await asyncio.wait_for(connecting, _CONNECT)
        except (TimeoutError, OSError) as e:
            self._unreachable(_reason(e))
            return
        if not exchange.open:  # reset before this task's turn came: nobody calls for it any more
            self._unreachable("the connection was closed as soon as it was made")
            return
        self._all.add(exchange)
        exchange.since = self._loop.time()
        self._idle.append(exchange)
        self._fill()

    def _unreachable(self, reason: str) -> None:
        if self._work is not None:
            self._work.stop(f"cannot be reached: {reason}")
            self._settle()

    def _later(self, wait: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(wait, self._fill)

    def _look(self) -> None:
        """Give up what waits too long."""
        if self._work is None:
            return
        limit = self._loop.time() - self._timeout
        for exchange in list(self._all):
            if exchange.request is not None and exchange.since < limit:
                exchange.abort(TimeoutError(f"no answer within {self._timeout:g} s (target.timeout)"))
        self._watch = self._loop.call_later(min(1.0, self._timeout / 5), self._look)


_START = (f"POST / HTTP/1.1\r\nuser-agent: replicator/{__version__}\r\naccept-encoding: identity\r\n").encode()


def _reason(error: BaseException | None) -> str:
    if error is None:
        return "the connection was closed"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    return str(error) or type(error).__name__
