"""Sends many requests at once, from a thread, at the rate the table allows."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue

from connectors.dynamodb.encode import Request
from connectors.dynamodb.responses import is_stored, is_throttled, units_of
from replicator.aws.client import Call, Calls
from replicator.aws.errors import AwsError, NotConnected
from replicator.errors import ReplicatorError
from replicator.target.in_doubt import TOO_LATE, is_late

_PATIENCE = 10.0  # seconds of nothing but throttling after which a batch fails for now
_THROTTLED = "the table throttles every write (its capacity, or the account's, is used up)"
_LOOK = 0.2  # seconds until the thread notices that it must end


@dataclass(slots=True, eq=False)
class Work:
    """The requests of one call. ``began``: wall clock, seconds.

    ``blocked_by``: why no more of them are sent, or empty. It is the result of ``done``, which is set once no request
    is in flight.
    """

    queue: deque[Request]
    began: float
    in_flight: int = 0
    blocked_by: str = ""
    done: Future[str] = field(default_factory=Future)

    def stop(self, blocked_by: str) -> None:
        self.blocked_by = self.blocked_by or blocked_by
        self.queue.clear()


class Sender:
    """Sends requests and sets their ``answer``. For use from one thread at a time.

    ``server``: for messages. Its own thread, with the connections that ``calls`` opens, starts at first use.
    """

    def __init__(self, server: str, calls: Callable[[], Calls], pace: Pace) -> None:
        self.server = server
        self._calls = calls
        self._pace = pace
        self._handed: SimpleQueue[Work | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def start(self, requests: Sequence[Request]) -> Future[str]:
        """Send requests in any order, without waiting. The future is done once none of them is in flight.

        Its result is empty if each has an answer, else the reason why some were not sent, or were lost.
        """
        work = Work(deque(requests), time.time())
        if self._thread is None:
            calls = self._calls()
            self._thread = threading.Thread(target=self._run, args=(calls,), daemon=True, name="dynamodb-target")
            self._thread.start()
        self._handed.put(work)
        return work.done

    def close(self) -> None:
        self._closed = True
        self._handed.put(None)
        if self._thread is not None:
            self._thread.join()
        self._thread = None

    def _run(self, calls: Calls) -> None:
        with contextlib.closing(calls):
            while (work := self._handed.get()) is not None:
                try:
                    self._carry(work, calls)
                except Exception as e:  # a bug: raised in the thread that waits, with its traceback
                    work.done.set_exception(e)

    def _carry(self, work: Work, calls: Calls) -> None:
        """Send all requests as fast as the table allows, and set their answers."""
        self._pace.since_throttled = None
        calls.next(0)  # drop connections that were closed: a write on one of them would be in doubt
        while not self._closed:
            wait = self._fill(work, calls)
            if not work.queue and not work.in_flight:
                break
            if (answered := calls.next(min(wait, _LOOK))) is not None:
                self._take(work, *answered)
        work.done.set_result(work.blocked_by or ("closed" if work.in_flight else ""))

    def _fill(self, work: Work, calls: Calls) -> float:
        """Send as many requests as allowed now; the seconds until more are."""
        while work.queue:
            if is_late(work.began, time.time()):
                work.stop(self._why_late())
                break
            now = time.monotonic()
            wait = self._pace.wait(work.in_flight, now)
            if wait is None:
                return _LOOK
            if wait > 0:
                return wait
            request = work.queue.popleft()
            work.in_flight += 1
            self._pace.sent(request.units, now)
            calls.begin(request, Call(request.operation, {"TableName": request.table}, request.body))
        return _LOOK

    def _why_late(self) -> str:
        since = self._pace.since_throttled
        return _THROTTLED if since is not None and time.monotonic() - since > _PATIENCE / 2 else TOO_LATE

    def _take(self, work: Work, request: Request, answer: bytes | Exception) -> None:
        work.in_flight -= 1
        if is_throttled(answer):
            self._throttled(work, request)
            return
        if not isinstance(answer, bytes | AwsError | ReplicatorError):
            raise answer
        request.answer = answer
        if isinstance(answer, NotConnected):
            work.stop(f"cannot be reached: {answer.message}")
        elif isinstance(answer, ReplicatorError):
            work.stop(str(answer))
        elif isinstance(answer, AwsError) and answer.status == 0:
            work.stop(answer.message)
        else:
            self._answered(work, request, answer)

    def _answered(self, work: Work, request: Request, answer: bytes | AwsError) -> None:
        self._pace.answered()
        if request.then is not None and is_stored(answer) and not work.blocked_by:
            work.queue.append(request.then)
        if self._pace.write_units is not None and isinstance(answer, bytes):
            self._pace.consumed(units_of(answer, request.units) - request.units)

    def _throttled(self, work: Work, request: Request) -> None:
        now = time.monotonic()
        self._pace.throttled(now)
        if work.blocked_by:
            return
        work.queue.append(request)
        if now - (self._pace.since_throttled or now) > _PATIENCE:
            work.stop(_THROTTLED)


SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 2.0  # seconds
_CALM = 0.1  # seconds within which throttled requests count once


@dataclass(slots=True)
class Pace:
    """How many requests may be sent: adapts to throttling, and keeps to a budget.

    ``most``: requests in flight; ``write_units``: write capacity units per second, None without a limit. ``now`` is the
    monotonic clock, in seconds.
    """

    most: int
    write_units: float | None = None
    at_once: float = 0.0
    since_throttled: float | None = None
    _slowed: float = 0.0
    _pause: float = SHORTEST_PAUSE
    _resume: float = 0.0
    _paid: float = 0.0

    def __post_init__(self) -> None:
        self.at_once = float(self.most)

    def wait(self, in_flight: int, now: float) -> float | None:
        """Seconds until another request may be sent; None while too many are in flight."""
        if in_flight >= int(self.at_once):
            return None
        return max(self._resume - now, self._paid - now, 0.0)

    def sent(self, units: float, now: float) -> None:
        if self.write_units is not None:
            self._paid = max(self._paid, now) + units / self.write_units

    def consumed(self, more: float) -> None:
        """A request cost so many units more than estimated."""
        if self.write_units is not None:
            self._paid += more / self.write_units

    def answered(self) -> None:
        """A request was not throttled: slowly raise the limit."""
        if self.at_once < self.most:
            self.at_once = min(self.most, self.at_once + 1 / self.at_once)
            self._pause = SHORTEST_PAUSE
        self.since_throttled = None

    def throttled(self, now: float) -> None:
        """A request was throttled: lower the limit, and pause longer each time while nothing gets through."""
        if self.since_throttled is None:
            self.since_throttled = now
        if now - self._slowed < _CALM:
            return
        self._slowed = now
        self.at_once = max(1.0, self.at_once * 0.7)
        self._resume = now + self._pause
        self._pause = min(LONGEST_PAUSE, self._pause * 2)
