"""What a run tells its monitoring. The engine calls these methods; ``replicator.monitoring`` implements them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

from replicator.aws.client import Call, Calls
from replicator.aws.errors import THROTTLED, AwsError
from replicator.pipeline.details import Details

Cause = Literal["source", "target", "checkpoints"]
"""What had to be asked again."""

Outcome = Literal["ok", "throttled", "rejected", "server_error", "no_response"]
"""What became of a request to AWS."""


Reader = Literal["shared", "own"]
"""What a page of a shard came from, where pipelines of a process share a reader: that one, or the pipeline's own."""


class Measurements(Protocol):
    """Receives measurements on the run's thread, so every method must return within microseconds."""

    def guarantee_reduced(self, reduced: str) -> None:
        """The target's reduced guarantee; "" if it is the full one."""

    def waiting(self, reason: str | None) -> None:
        """Before the pipeline is claimed, the run waits for ``reason`` or (None) continues."""

    def active(self) -> None:
        """A long step advanced: of the startup or, with several workers, of any work."""

    def working(self) -> None:
        """The target's server is at work on a request, however long that takes."""

    def detailed(self, details: Callable[[], Details]) -> None:
        """With each heartbeat: a function that computes the details at this moment. Only to be called right now."""

    def stored(self, changes: int, seconds: float) -> None:
        """A batch of so many changes was stored, ``seconds`` after it was sent."""

    def retried(self, cause: Cause) -> None:
        """A request failed and will be repeated."""

    def responded(self, operation: str, outcome: Outcome) -> None:
        """A request of a shard reader, a scan or a listing ended."""

    def paged(self, reader: Reader) -> None:
        """A page of a shard was read, in a process whose pipelines share a reader."""

    def scanned(self, read_units: float) -> None:
        """A page of a scan consumed so much read capacity."""


class Unmeasured:
    """Ignores all measurements."""

    def guarantee_reduced(self, reduced: str) -> None: ...

    def waiting(self, reason: str | None) -> None: ...

    def active(self) -> None: ...

    def working(self) -> None: ...

    def detailed(self, details: Callable[[], Details]) -> None: ...

    def stored(self, changes: int, seconds: float) -> None: ...

    def retried(self, cause: Cause) -> None: ...

    def responded(self, operation: str, outcome: Outcome) -> None: ...

    def paged(self, reader: Reader) -> None: ...

    def scanned(self, read_units: float) -> None: ...


class MeasuredCalls:
    """``Calls`` that report the outcome of each request."""

    def __init__(self, calls: Calls, measurements: Measurements) -> None:
        self._calls, self._measurements = calls, measurements
        self._operations: dict[object, str] = {}  # of the requests in flight; a caller has one at a time

    def begin(self, name: object, call: Call) -> None:
        self._operations[name] = call.operation
        self._calls.begin(name, call)

    def next(self, timeout: float) -> tuple[Any, bytes | Exception] | None:
        answered = self._calls.next(timeout)
        if answered is not None:
            name, response = answered
            self._measurements.responded(self._operations.pop(name), outcome(response))
        return answered

    def close(self) -> None:
        self._operations.clear()
        self._calls.close()


def outcome(response: bytes | Exception) -> Outcome:
    if isinstance(response, bytes):
        return "ok"
    if not isinstance(response, AwsError) or response.status == 0:
        return "no_response"
    if response.code in THROTTLED or response.status == 429:
        return "throttled"
    return "server_error" if response.status >= 500 else "rejected"
