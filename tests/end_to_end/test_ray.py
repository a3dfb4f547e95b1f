"""Workers on real Ray, with several nodes: the same pipeline, and the same copy, as with one process."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from replicator.testing.servers.postgres import PostgresServer, ServerMissing
from tests.end_to_end.pipeline import _AWS, Run
from tests.end_to_end.ray_nodes import PORT, children, in_namespace, inhabitants, kill, nodes, parent
from tests.end_to_end.test_lambda import HANDLER, deliver
from tests.end_to_end.world import Copy, Load, Source, eventually
from tests.engine.event_source import EventSource
from tests.security.canary import SECRET
from tests.servers.postgres_fixtures import Database
from tests.servers.runtime_api import Container
from tests.servers.starting import not_tested

CLUSTER: Mapping[str, Any] = {"type": "ray", "address": f"127.0.0.1:{PORT}", "workers": 3}


def owners(copy: Copy) -> dict[str, int]:
    """The processes that have claimed slots."""
    rows = copy.query(
        "SELECT id, value->>'pid' AS pid, value->>'run' AS run FROM {}.checkpoints WHERE kind = 'owner'", "replicator"
    )
    return {row["id"]: int(row["pid"]) for row in rows if row["id"] and row["run"]}


def all_claimed(copy: Copy) -> dict[str, int]:
    eventually(lambda: len(owners(copy)) == 1 + CLUSTER["workers"], "all slots are claimed")
    return owners(copy)


class Story:
    """What happens to one run on the cluster, step by step."""

    def __init__(self, copy: Copy, run: Run) -> None:
        self._copy, self._run = copy, run
        self.takeovers: dict[str, float] = {}

    def until_taken_over(self, what: str, fault: Callable[[], None], *slots: str) -> None:
        """Until other processes have claimed these slots, after ``fault``."""
        before, began = all_claimed(self._copy), time.monotonic()
        fault()
        self._run.eventually(
            lambda: all((now := owners(self._copy)).get(slot, before[slot]) != before[slot] for slot in slots), what
        )
        self.takeovers[what] = round(time.monotonic() - began, 1)

    def kill_a_worker(self) -> None:
        pid = all_claimed(self._copy)["0"]
        self.until_taken_over("kill -9 of a worker", lambda: kill(pid), "0")

    def freeze_a_node(self) -> None:
        """Not the coordinator's. Its worker is stopped until another one has claimed its slot, and then goes on."""
        coordinator_at = parent(all_claimed(self._copy)["coordinator"])
        while not (slots := [s for s, pid in all_claimed(self._copy).items() if parent(pid) != coordinator_at]):
            self.kill_a_worker()  # Ray spreads them, so one gets to another node
        node = parent(all_claimed(self._copy)[slots[0]])
        slots = [slot for slot in slots if parent(all_claimed(self._copy)[slot]) == node]
        stopped = [node, *children(node)]
        self.until_taken_over("SIGSTOP of a node", lambda: kill(*stopped, number=signal.SIGSTOP), *slots)
        kill(*stopped, number=signal.SIGCONT)

    def kill_coordinators_node(self) -> None:
        node = parent(all_claimed(self._copy)["coordinator"])
        slots = [slot for slot, pid in all_claimed(self._copy).items() if parent(pid) == node]
        self.until_taken_over("kill -9 of the coordinator's raylet", lambda: kill(node), *slots)


@pytest.mark.timeout(600)  # it starts some twenty processes of Ray
def test_kills_of_workers_and_nodes_and_changes_of_the_engine_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    """kill -9 of a worker, of the coordinator's node, and of everything; a node that is frozen, and then goes on."""
    in_namespace(lambda: _kills(tmp_path))


def _kills(folder: Path) -> None:
    memory = DynamoDB(now=time.time, random=random.Random(9), shards=16)
    with postgres() as server, served(memory) as endpoint, nodes() as cluster:
        source, chance = Source(endpoint).create(), random.Random(10)
        own = {"PYTHONUNBUFFERED": "own"}  # so that commands are not forked from a process outside the namespace
        copy = Copy(folder, source, Database(server, "postgres"), clock=own)
        copy.configure(engine=CLUSTER, backfill={"segments": 3}, hook_timeout=1)
        source.fill(300)

        begun = threading.Event()

        def reshard(done: int) -> None:
            """Not before the epoch: what is in shards that had ended by then is not read."""
            if begun.is_set() and done % 40 == 20 and len(shards := memory.open_shards(source.table)) < 24:
                (memory.split if chance.random() < 0.5 else memory.roll)(source.table, chance.choice(shards))

        cluster.start_head(cpus=0)
        cluster.start(3, cpus=3)
        checked = copy.command("check", "--json")
        assert checked.code == 0, checked
        assert checked.out.count("has the same versions and hook, and reaches source and target") == 3
        assert "3 nodes with 9 CPUs for 3 workers" in checked.out
        with Load(source, seed=11, keys=300, every=reshard, pause=0.03) as load:
            with copy.start() as run:
                run.until("snapshot started")
                begun.set()
                story = Story(copy, run)
                story.kill_a_worker()  # during the backfill, or right behind it
                run.until("progress", phase="live")
                story.freeze_a_node()
                story.kill_coordinators_node()
                load.wait(50)
                print("seconds until another process had claimed the slots:", story.takeovers)
                assert run.stop().code == 0, run.ended()
            with copy.start("run", "--engine", "local") as alone:
                alone.until("resuming")
                load.wait(50)
                assert alone.stop().code == 0
            with copy.start() as run:
                run.until("progress", phase="live")
                load.wait(50)
                kill(*inhabitants(but="postgres"))
        copy.configure(backfill={"segments": 3}, engine={"type": "ray", "workers": 2})
        copy.caught_up()  # on a Ray of its own
        status = copy.status()
        _lambda_then_local(copy, memory)

        copy.assert_equal()
        assert status["shards"]["ended"] >= 4
        assert copy.counts()["read"] == status["backfill"]["items"] + source.records, "nothing twice, nothing lost"


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


@contextlib.contextmanager
def postgres() -> Iterator[PostgresServer]:
    with contextlib.ExitStack() as resources:
        try:
            yield resources.enter_context(PostgresServer("wheel", password=SECRET))
        except ServerMissing as e:
            not_tested(f"Postgres is missing: {e}")
