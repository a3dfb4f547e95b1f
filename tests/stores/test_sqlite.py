"""The SQLite file keeps the contract, and no damage to it goes unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator.stores.sqlite import SqliteCheckpoints, SqliteOptions
from replicator.testing.checkpoints_contract import Build, CheckpointsContract


class TestSqlite(CheckpointsContract):
    takes_over = False

    @pytest.fixture
    def store(self, tmp_path: Path) -> Build:
        return lambda pipeline: SqliteCheckpoints(SqliteOptions(), pipeline, tmp_path)
