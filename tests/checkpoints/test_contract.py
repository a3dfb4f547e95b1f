"""The contract of stores, kept by the one in memory, against which the others are compared too."""

from __future__ import annotations

import pytest

from replicator.testing.checkpoints_contract import Build, CheckpointsContract, SlottedContract
from replicator.testing.memory import MemoryCheckpoints, MemoryDatabase


class TestMemory(CheckpointsContract, SlottedContract):
    @pytest.fixture
    def store(self) -> Build:
        databases: dict[str, MemoryDatabase] = {}
        return lambda pipeline: MemoryCheckpoints(databases.setdefault(pipeline, MemoryDatabase()))
