"""Base of schedulers on a virtual clock: generators advance synchronously."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from replicator.aws.client import Client, answered
from replicator.engine.scheduler import Scheduler, StepResult


class VirtualSteps(Scheduler):
    """A ``Scheduler`` that makes each call at once. Subclasses decide which step comes next, and when."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._generators: dict[str, Iterator[Any]] = {}

    def add(self, name: str, generator: Iterator[Any], rest: float = 0.0) -> None:
        super().add(name, answered(self._client, generator), rest)

    def begin(self) -> None:
        """Does nothing: no request is in flight outside of ``get``."""

    def clear(self) -> None:
        self._generators.clear()

    def close(self) -> None:
        self.clear()

    def _step(self, name: str) -> StepResult:
        """The result of the next step. A simulated kill is no ``Exception`` and propagates."""
        try:
            return StepResult(name, next(self._generators[name]))
        except StopIteration:
            result = StepResult(name, ended=True)
        except Exception as e:
            result = StepResult(name, error=e)
        del self._generators[name]
        return result
