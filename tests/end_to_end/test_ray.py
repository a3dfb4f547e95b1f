"""Workers on real Ray, with several nodes: the same pipeline, and the same copy, as with one process."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from replicator.engine.coordinator import COORDINATOR
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from replicator.testing.servers.postgres import PostgresServer, ServerMissing
from tests.end_to_end.pipeline import _AWS, Run
from tests.end_to_end.ray_nodes import PORT, children, in_namespace, inhabitants, kill, nodes, parent, waited
from tests.end_to_end.test_lambda import HANDLER, deliver
from tests.end_to_end.world import Copy, Load, Source, eventually
from tests.engine.event_source import EventSource
from tests.security.canary import SECRET
from tests.servers.postgres_fixtures import Database
from tests.servers.runtime_api import Container
from tests.servers.starting import not_tested

TAKEN_OVER = 10.0  # seconds at most from a kill to the first change stored of a shard that the killed process read
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


def read_by(copy: Copy, slot: str) -> dict[str, str | None]:
    """How far the open shards of a slot are stored, by their sequence numbers."""
    rows = copy.query("SELECT id, value FROM {}.checkpoints WHERE kind = 'shard'", "replicator")
    mine = [row for row in rows if row["value"].get("slot") == slot and not row["value"].get("ended")]
    return {row["id"]: row["value"].get("sequence") for row in mine}


class Takeover:
    """Of one slot, from the process ``was``, which is killed right after this is made."""

    def __init__(self, copy: Copy, slot: str, was: int) -> None:
        self._copy, self._slot, self._was, self._began = copy, slot, was, time.monotonic()
        self._shards = read_by(copy, slot).keys()
        self._since: dict[str, str | None] | None = None  # how far they were stored when the slot was claimed
        self.took = self.waited = 0.0
        """Seconds until it was done, and those of them for which the new process waited for a CPU."""

    def is_done(self) -> bool:
        """Whether another process has claimed the slot, and stored a change of a shard that the earlier one read."""
        if not self.took and self._goes_on():
            self.took = time.monotonic() - self._began
            self.waited = waited(owners(self._copy)[self._slot])
        return self.took > 0

    def _goes_on(self) -> bool:
        if self._since is None:
            if owners(self._copy).get(self._slot, self._was) == self._was:
                return False
            self._since = read_by(self._copy, self._slot)
        now = read_by(self._copy, self._slot)
        return not self._shards or any(now.get(id, self._since.get(id)) != self._since.get(id) for id in self._shards)


class Story:
    """What happens to one run on the cluster, step by step."""

    def __init__(self, copy: Copy, run: Run) -> None:
        self._copy, self._run = copy, run
        self.takeovers: dict[str, list[str]] = {}

    def until_taken_over(self, what: str, fault: Callable[[], None], *slots: str) -> float:
        """Until other processes have claimed these slots after ``fault``, and go on with their shards.

        Returns the seconds that takes where a CPU is free for the new processes: other tests may use all of them.
        """
        owned = all_claimed(self._copy)
        takeovers = [Takeover(self._copy, slot, owned[slot]) for slot in slots]
        fault()
        self._run.eventually(lambda: not [one for one in takeovers if not one.is_done()], what)
        self.takeovers[what] = [f"{one.took:.1f} (waited {one.waited:.1f})" for one in takeovers]
        return max(one.took - one.waited for one in takeovers)

    def taken_over_in_time(self, seconds: float) -> None:
        assert seconds <= TAKEN_OVER, self.takeovers

    def kill_a_worker(self) -> None:
        pid = all_claimed(self._copy)["0"]
        self.taken_over_in_time(self.until_taken_over("kill -9 of a worker", lambda: kill(pid), "0"))

    def kill_a_node(self) -> None:
        node, slots = self._of_workers_only()
        self.taken_over_in_time(self.until_taken_over("kill -9 of a raylet", lambda: kill(node), *slots))

    def freeze_a_node(self) -> None:
        """Its workers are stopped until others have claimed their slots, and then go on."""
        node, slots = self._of_workers_only()
        stopped = [node, *children(node)]
        self.until_taken_over("SIGSTOP of a node", lambda: kill(*stopped, number=signal.SIGSTOP), *slots)
        kill(*stopped, number=signal.SIGCONT)

    def kill_coordinators_node(self) -> None:
        node = parent(all_claimed(self._copy)[COORDINATOR])
        slots = [slot for slot, pid in all_claimed(self._copy).items() if parent(pid) == node]
        self.taken_over_in_time(
            self.until_taken_over("kill -9 of the coordinator's raylet", lambda: kill(node), *slots)
        )

    def _of_workers_only(self) -> tuple[int, list[str]]:
        """A node without the coordinator, and the slots of its workers."""
        coordinator_at = parent(all_claimed(self._copy)[COORDINATOR])
        while not (slots := [s for s, pid in all_claimed(self._copy).items() if parent(pid) != coordinator_at]):
            self.kill_a_worker()  # Ray spreads them, so one gets to another node
        node = parent(all_claimed(self._copy)[slots[0]])
        return node, [slot for slot in slots if parent(all_claimed(self._copy)[slot]) == node]


@pytest.mark.timeout(600)  # it starts some twenty processes of Ray
def test_kills_of_workers_and_nodes_and_changes_of_the_engine_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    """kill -9 of a worker, of a node, of the coordinator's node, and of everything; a node that is frozen, and then
    goes on.
    """
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
                story.kill_a_node()
                cluster.start(1, cpus=3)
                story.freeze_a_node()
                story.kill_coordinators_node()
                load.wait(50)
                print("seconds until other processes went on:", story.takeovers)
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
    with tempfile.TemporaryDirectory(prefix="t") as folder:  # a short path, as Ray's sockets need
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
