"""What ``Scheduler`` on a virtual clock have in common: generators that are advanced in the thread that asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from replicator.aws.client import Client, answered
from replicator.engine.scheduler import Scheduler, StepResult


class VirtualSteps(Scheduler):
    """``Scheduler`` that make each call at once. Who extends it says when a step is due, and which one comes first."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._generators: dict[str, Iterator[Any]] = {}

    def add(self, name: str, generator: Iterator[Any], rest: float = 0.0) -> None:
        super().add(name, answered(self._client, generator), rest)

    def begin(self) -> None:
        """Nothing is under way while somebody does something else."""

    def clear(self) -> None:
        self._generators.clear()

    def close(self) -> None:
        self.clear()

    def _step(self, name: str) -> StepResult:
        """What the next step gives; a process that is killed in it is no Exception, and comes out."""
        try:
            return StepResult(name, next(self._generators[name]))
        except StopIteration:
            found = StepResult(name, ended=True)
        except Exception as e:
            found = StepResult(name, error=e)
        del self._generators[name]
        return found
