"""A run on a Ray of its own when parts of that Ray are killed, or the run is stopped while Ray starts.

Workers that are killed: test_ray.py, test_ray_mirrors.py.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from tests.end_to_end.pipeline import Run
from tests.end_to_end.ray_nodes import children, kill
from tests.end_to_end.world import Copy, Source
from tests.servers.postgres_fixtures import Database

RAY = ("--engine", "ray")
LEFT = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}  # seconds after which Ray gives its control process up: 60


@pytest.fixture
def copy(tmp_path: Path, one_postgres: Database) -> Iterator[Copy]:
    """Of ten items."""
    with served(DynamoDB(now=time.time, random=random.Random(9), shards=2)) as endpoint:
        source = Source(endpoint).create()
        copy = Copy(tmp_path, source, one_postgres, clock=LEFT).configure()
        source.fill(10)
        yield copy


def of_ray(run: Run, name: str) -> int:
    """The process of a run's Ray with this name, once it is there."""

    def found() -> list[int]:
        return [pid for pid in children(run.process.pid) if Path(f"/proc/{pid}/comm").read_text().strip() == name]

    return run.eventually(found, name)[0]


def test_a_run_whose_raylet_is_killed_ends_with_an_exit_code_that_supervisors_restart(copy: Copy) -> None:
    with copy.start("run", *RAY) as run:
        run.until("progress", phase="live")
        kill(of_ray(run, "raylet"))
        ended = run.wait()
    assert ended.code == 8, ended
    assert "engine: Ray has lost worker " in ended.err
    copy.source.fill(20, by="the next run")
    copy.caught_up("run", *RAY)
    copy.assert_equal()


def test_a_run_whose_ray_has_lost_its_control_process_ends_with_exit_code_1(copy: Copy) -> None:
    """Ray itself ends the process, without an event of replicator's."""
    with copy.start("run", *RAY) as run:
        run.until("progress", phase="live")
        kill(of_ray(run, "gcs_server"))
        ended = run.wait()
    assert ended.code == 1, ended
    assert run.events("failed") == []
    copy.source.fill(20, by="the next run")
    copy.caught_up()
    copy.assert_equal()


def test_a_run_that_is_stopped_while_ray_starts_leaves_the_pipeline_to_the_one_that_has_it(copy: Copy) -> None:
    with copy.start() as live:
        live.until("progress", phase="live")
        with copy.start("run", *RAY) as second:
            of_ray(second, "raylet")
            second.process.send_signal(signal.SIGINT)
            assert second.wait().code == 0
        copy.source.fill(20, by="the first run")
        live.eventually(copy.equal, "it goes on")
        assert live.stop().code == 0
