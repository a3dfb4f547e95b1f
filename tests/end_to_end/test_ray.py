"""Workers on real Ray, with several nodes: the same pipeline, and the same copy, as with one process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from replicator.testing.dynamodb import DynamoDB
from tests.end_to_end.deliveries import deliver
from tests.end_to_end.pipeline import _AWS, eventually
from tests.end_to_end.ray_nodes import in_namespace, inhabitants, kill
from tests.end_to_end.ray_story import NOT_FORKED, outlives_everything, world
from tests.end_to_end.targets import Index, through_the_hook
from tests.end_to_end.test_lambda import HANDLER
from tests.end_to_end.world import Copy
from tests.engine.event_source import EventSource
from tests.servers.runtime_api import Container
from tests.servers.search_fixtures import Search, started

TAKEN_OVER = 10.0  # seconds at most from a kill to the first change stored of a shard that the killed process read


@pytest.mark.timeout(600)  # it starts some twenty processes of Ray
def test_kills_of_workers_and_nodes_and_changes_of_the_engine_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    """kill -9 of a worker, of a node, of the coordinator's node, and of everything; a worker that is frozen, and
    a node that is frozen, and then goes on.
    """
    in_namespace(lambda: _into_postgres(tmp_path))


def _into_postgres(folder: Path) -> None:
    with world() as found:
        copy = Copy(folder, found.source, found.postgres, clock=NOT_FORKED)
        story = outlives_everything(found, copy, copy.configure)
        assert story.slowest <= TAKEN_OVER, story.takeovers
        status = copy.status()
        _lambda_then_local(copy, found.memory)

        copy.assert_equal()
        assert status["shards"]["ended"] >= 4
        assert copy.counts()["read"] == status["backfill"]["items"] + found.source.records, (
            "nothing twice, nothing lost"
        )


def _lambda_then_local(copy: Copy, memory: DynamoDB) -> None:
    """AWS Lambda goes on where Ray ended, and one process where Lambda ended."""
    source = copy.configure(engine={"type": "lambda"}).source
    source.fill(20, by="no one yet")
    assert copy.command("run", "--until", "backfilled").code == 0
    source.fill(20, by="Lambda")
    source.delete("k7")
    mapping = EventSource(memory, source.table, batch=1000)
    environment = {**_AWS, "LAMBDA_TASK_ROOT": str(copy.folder), "REPLICATOR_CONFIG": copy.path.name}
    with Container(HANDLER, environment, copy.folder / "function.log") as container:
        assert deliver(mapping, container) > 0
    copy.assert_equal()
    source.fill(20, by="one process")
    copy.caught_up("run", "--engine", "local")


@pytest.mark.search
@pytest.mark.timeout(600)
def test_the_same_kills_leave_an_equal_index_in_which_no_deleted_item_is_back(tmp_path: Path) -> None:
    """In Elasticsearch, which may still carry out what a killed worker had sent, and with a hook that filters."""
    in_namespace(lambda: _into_elasticsearch(tmp_path))


def _into_elasticsearch(folder: Path) -> None:
    with contextmanager(started)("elasticsearch-9") as server, world() as found:
        index = Index(folder, found.source, Search(server, "t-"), clock=NOT_FORKED)
        kept = {"type": "postgres", "url": found.postgres.url}
        outlives_everything(found, index, partial(index.configured, checkpoints=kept))
        status, tombstones = index.status(), index.tombstones()
        found.source.fill(20, by="one process")
        index.caught_up("run", "--engine", "local")

        assert index.documents() == through_the_hook(found.source.items().values())
        assert tombstones > 0, "what a killed worker had sent may arrive after the delete"
        assert status["shards"]["ended"] >= 4
        assert index.counts()["read"] == status["backfill"]["items"] + found.source.records, "nothing lost"


OWN_RAY = """
import sys, time
from replicator.config.engine import Ray
from replicator.engine.ray.cluster import cluster
with cluster(Ray(workers=1)):
    print("up", flush=True)
    time.sleep(300 if "killed" in sys.argv else 0)
"""


@pytest.mark.timeout(180)
def test_the_folder_of_a_killed_runs_own_ray_is_its_users_alone_and_the_next_one_removes_it() -> None:
    in_namespace(_killed_with_its_own_ray)


def _killed_with_its_own_ray() -> None:
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:  # a short path, as Ray's sockets need
        command, environment = [sys.executable, "-c", OWN_RAY], {**os.environ, "TMPDIR": folder}
        with subprocess.Popen([*command, "killed"], env=environment, stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout is not None
            eventually(lambda: run.stdout.readline() == "up\n", "Ray is up")  # type: ignore[union-attr]
            (own,) = Path(folder).glob("ray-*")
            assert own.stat().st_mode & 0o077 == 0
            assert any(own.rglob("raylet.out"))
            kill(*inhabitants())
        assert own.exists()
        subprocess.run(command, env=environment, check=True, capture_output=True)
        assert list(Path(folder).iterdir()) == []
