"""A target in memory that stores a batch while the next one is made, over one connection as in Postgres."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from replicator.batch import Batch, Outcome
from replicator.errors import ReplicatorError
from replicator.state import Owner, Save
from replicator.testing.memory import MemoryCheckpoints, MemoryDatabase, MemoryTarget


class OverlappingTarget(MemoryTarget):
    """What was sent is stored at once or when it is collected, as ``chance`` decides; by then it has the connection."""

    def __init__(self, database: MemoryDatabase, chance: random.Random) -> None:
        super().__init__(database)
        self.checkpoints = CheckpointsOfConnection(database, self)
        self._chance = chance
        self._sent: Batch | None = None
        self._response: Outcome | ReplicatorError | None = None

    @property
    def in_flight(self) -> bool:
        return self._sent is not None

    def encode(self, batch: Batch) -> Batch:
        return batch

    def send(self, encoded: Batch) -> None:
        assert not self.in_flight, "a batch is in flight"
        if self._chance.random() < 0.5:
            self._response = self._written(encoded)
        self._sent = encoded

    def ready(self) -> bool:
        return not self.in_flight or self._chance.random() < 0.8

    def collect(self) -> Outcome:
        assert self._sent is not None, "nothing was sent"
        (sent, response), self._sent, self._response = (self._sent, self._response), None, None
        response = response or self._written(sent)
        if isinstance(response, ReplicatorError):
            raise response
        return response

    def _written(self, batch: Batch) -> Outcome | ReplicatorError:
        try:
            return self.write(batch)
        except ReplicatorError as e:
            return e


class CheckpointsOfConnection(MemoryCheckpoints):
    """They cannot be read nor saved while a batch is in flight, but for heartbeats."""

    def __init__(self, database: MemoryDatabase, target: OverlappingTarget) -> None:
        super().__init__(database)
        self._target = target

    def _check_free(self) -> None:
        assert not self._target.in_flight, "a batch is in flight: collect it first"

    def _claim(self, owner: Owner, slot: str) -> int:
        self._check_free()
        return super()._claim(owner, slot)

    def read(self) -> Any:
        self._check_free()
        return super().read()

    def pipeline(self) -> Any:
        self._check_free()
        return super().pipeline()

    def request(self) -> Any:
        self._check_free()
        return super().request()

    def save(self, saves: Sequence[Save], *counts: Any) -> None:
        if any(save.kind != "pulse" for save in saves) or not saves:
            self._check_free()
        super().save(saves, *counts)
