"""Many requests under way at once, carried by a thread of its own while the run goes on."""

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
from connectors.dynamodb.responses import units_of, wants_less
from replicator.aws.client import Call, Calls
from replicator.aws.errors import AwsError, NotConnected
from replicator.errors import ReplicatorError
from replicator.target.in_doubt import TOO_LATE, is_late

_PATIENCE = 10.0  # seconds that a table may throttle everything before the batch is given up for now
_THROTTLED = "the table throttles every write (its capacity, or the account's, is used up)"
_LOOK = 0.2  # seconds after which the thread notices, at the latest, that it is to end


@dataclass(slots=True, eq=False)
class Work:
    """Requests that were handed over together.

    ``blocked_by``: why no more of them is sent, or empty. ``began``: seconds of the clock. ``done`` ends with
    ``blocked_by`` when nothing is in flight any more.
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
    """Sends requests and collects their answers. One thread uses it at a time.

    ``server``: for messages. The thread and its connections, which ``calls`` makes, are made at first use.
    """

    def __init__(self, server: str, calls: Callable[[], Calls], pace: Pace) -> None:
        self.server = server
        self._calls = calls
        self._pace = pace
        self._handed: SimpleQueue[Work | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def start(self, requests: Sequence[Request]) -> Future[str]:
        """Begin to send them all, in any order. The future is done when nothing of them is under way any more.

        Its result is empty if each has its answer, else the reason why some were not sent, or are lost.
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
                except Exception as e:  # a bug here ends the run in the thread that waits, with its traceback
                    work.done.set_exception(e)

    def _carry(self, work: Work, calls: Calls) -> None:
        """Send it all, as fast as the table takes it, and give each request its answer."""
        self._pace.since_throttled = None
        calls.next(0)  # connections that ended meanwhile: a write on one of them would be in doubt
        while not self._closed:
            wait = self._fill(work, calls)
            if not work.queue and not work.in_flight:
                break
            if (answered := calls.next(min(wait, _LOOK))) is not None:
                self._take(work, *answered)
        work.done.set_result(work.blocked_by or ("closed" if work.in_flight else ""))

    def _fill(self, work: Work, calls: Calls) -> float:
        """Send as much as may be sent now; seconds until more may be."""
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
        if wants_less(answer):
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
            self._answered(request, answer)

    def _answered(self, request: Request, answer: bytes | AwsError) -> None:
        self._pace.answered()
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
_CALM = 0.1  # seconds in which several throttled requests are one event


@dataclass(slots=True)
class Pace:
    """``most``: requests at once; ``write_units``: capacity units a second, None without limit. Times: the loop's."""

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
        """Seconds until another request may be sent; None if one of those under way has to end first."""
        if in_flight >= int(self.at_once):
            return None
        return max(self._resume - now, self._paid - now, 0.0)

    def sent(self, units: float, now: float) -> None:
        if self.write_units is not None:
            self._paid = max(self._paid, now) + units / self.write_units

    def consumed(self, more: float) -> None:
        """A request cost so many units more than it was taken for."""
        if self.write_units is not None:
            self._paid += more / self.write_units

    def answered(self) -> None:
        """A request was carried out: slowly more of them."""
        if self.at_once < self.most:
            self.at_once = min(self.most, self.at_once + 1 / self.at_once)
            self._pause = SHORTEST_PAUSE
        self.since_throttled = None

    def throttled(self, now: float) -> None:
        """The table refused a request because it has too many: fewer, after a pause that grows while nothing passes."""
        if self.since_throttled is None:
            self.since_throttled = now
        if now - self._slowed < _CALM:
            return
        self._slowed = now
        self.at_once = max(1.0, self.at_once * 0.7)
        self._resume = now + self._pause
        self._pause = min(LONGEST_PAUSE, self._pause * 2)
