"""What runs on Ray, with several nodes on this machine, are put through, into whatever target."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg

from replicator.engine.coordinator import COORDINATOR
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from replicator.testing.servers.postgres import PostgresServer, ServerMissing
from tests.end_to_end.pipeline import Pipeline, Run, eventually
from tests.end_to_end.ray_nodes import PORT, Nodes, children, inhabitants, kill, nodes, parent, waited
from tests.end_to_end.world import Load, Source
from tests.security.canary import SECRET
from tests.servers.postgres_fixtures import Database
from tests.servers.starting import not_tested

CLUSTER: Mapping[str, Any] = {"type": "ray", "address": f"127.0.0.1:{PORT}", "workers": 3}
KEYS = 300
MOST_SHARDS = 24
SERVERS = ("postgres", "java")  # the programs of source and target, which outlive every kill
NOT_FORKED = {"PYTHONUNBUFFERED": "own"}
"""Environment of commands that are no forks of a process outside the namespace."""


@dataclass(frozen=True)
class Slots:
    """What the checkpoints, in Postgres, say of the slots of a run."""

    kept: Database

    def owners(self) -> dict[str, int]:
        """The processes that have claimed slots."""
        claims = (
            "SELECT id, (value->>'pid')::int FROM replicator.checkpoints WHERE kind = 'owner' AND value->>'run' <> ''"
        )
        return {id: pid for id, pid in self._query(claims) if id}

    def all_claimed(self) -> dict[str, int]:
        eventually(lambda: len(self.owners()) == 1 + CLUSTER["workers"], "all slots are claimed")
        return self.owners()

    def read_by(self, slot: str) -> dict[str, str | None]:
        """How far the open shards of a slot are stored, by their sequence numbers."""
        shards = self._query("SELECT id, value FROM replicator.checkpoints WHERE kind = 'shard'")
        return {id: v.get("sequence") for id, v in shards if v.get("slot") == slot and not v.get("ended")}

    def _query(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.kept.url, autocommit=True) as connection:
            return connection.execute(statement).fetchall()


class Takeover:
    """Of one slot, from the process ``was``, which is killed right after this is made."""

    def __init__(self, slots: Slots, slot: str, was: int) -> None:
        self._slots, self._slot, self._was, self._began = slots, slot, was, time.monotonic()
        self._shards = slots.read_by(slot).keys()
        self._since: dict[str, str | None] | None = None  # how far they were stored when the slot was claimed
        self.took = self.waited = 0.0
        """Seconds until it was done, and those of them for which the new process waited for a CPU."""

    def is_done(self) -> bool:
        """Whether another process has claimed the slot, and stored a change of a shard that the earlier one read."""
        if not self.took and self._goes_on():
            self.took = time.monotonic() - self._began
            self.waited = waited(self._slots.owners()[self._slot])
        return self.took > 0

    def _goes_on(self) -> bool:
        if self._since is None:
            if self._slots.owners().get(self._slot, self._was) == self._was:
                return False
            self._since = self._slots.read_by(self._slot)
        now = self._slots.read_by(self._slot)
        return not self._shards or any(now.get(id, self._since.get(id)) != self._since.get(id) for id in self._shards)


class Story:
    """What happens to one run on the cluster, step by step."""

    def __init__(self, slots: Slots, run: Run) -> None:
        self._slots, self._run = slots, run
        self.takeovers: dict[str, list[str]] = {}
        self.slowest = 0.0
        """Of the takeovers after kills, in seconds, where a CPU is free for the new processes."""

    def kill_a_worker(self) -> None:
        pid = self._slots.all_claimed()["0"]
        self._killed("kill -9 of a worker", pid, "0")

    def kill_a_node(self) -> None:
        node, slots = self._of_workers_only()
        self._killed("kill -9 of a raylet", node, *slots)

    def kill_coordinators_node(self) -> None:
        node = parent(self._slots.all_claimed()[COORDINATOR])
        self._killed("kill -9 of the coordinator's raylet", node, *self._on(node))

    def freeze_a_node(self, load: Load) -> None:
        """Its workers are stopped until others have claimed their slots and go on with them. Then they wake up, while
        their raylet, which would end them, is stopped for some more changes.
        """
        node, slots = self._of_workers_only()
        workers = children(node)
        self._until_taken_over("SIGSTOP of a node", lambda: kill(node, *workers, number=signal.SIGSTOP), *slots)
        kill(*workers, number=signal.SIGCONT)
        load.wait(50)
        kill(node, number=signal.SIGCONT)

    def freeze_a_worker(self, load: Load) -> None:
        """Alone: its node is well. It is stopped until another one goes on with its slot, and then wakes up, if Ray has
        not ended it.
        """
        pid = self._slots.all_claimed()["0"]
        self._until_taken_over("SIGSTOP of a worker", lambda: kill(pid, number=signal.SIGSTOP), "0")
        kill(pid, number=signal.SIGCONT)
        load.wait(50)

    def _killed(self, what: str, pid: int, *slots: str) -> None:
        self.slowest = max(self.slowest, self._until_taken_over(what, lambda: kill(pid), *slots))

    def _until_taken_over(self, what: str, fault: Callable[[], None], *slots: str) -> float:
        """Until other processes have claimed these slots after ``fault``, and go on with their shards.

        Returns the seconds that takes where a CPU is free for the new processes: other tests may use all of them.
        """
        owned = self._slots.all_claimed()
        takeovers = [Takeover(self._slots, slot, owned[slot]) for slot in slots]
        fault()
        self._run.eventually(lambda: not [one for one in takeovers if not one.is_done()], what)
        self.takeovers[what] = [f"{one.took:.1f} (waited {one.waited:.1f})" for one in takeovers]
        return max(one.took - one.waited for one in takeovers)

    def _of_workers_only(self) -> tuple[int, list[str]]:
        """A node without the coordinator, and the slots of its workers."""
        coordinator_at = parent(self._slots.all_claimed()[COORDINATOR])
        while not (slots := [s for s, pid in self._slots.all_claimed().items() if parent(pid) != coordinator_at]):
            self.kill_a_worker()  # Ray spreads them, so one gets to another node
        node = parent(self._slots.all_claimed()[slots[0]])
        return node, self._on(node)

    def _on(self, node: int) -> list[str]:
        return [slot for slot, pid in self._slots.all_claimed().items() if parent(pid) == node]


@dataclass
class World:
    """Inside a namespace: a table with 16 shards in memory, a Postgres for checkpoints, and a cluster without nodes."""

    memory: DynamoDB
    source: Source
    postgres: Database
    cluster: Nodes
    _chance: random.Random = field(default_factory=lambda: random.Random(10))

    def reshard(self) -> None:
        """A shard is split, or ends and has one child."""
        if len(shards := self.memory.open_shards(self.source.table)) < MOST_SHARDS:
            act = self.memory.split if self._chance.random() < 0.5 else self.memory.roll
            act(self.source.table, self._chance.choice(shards))

    def start_nodes(self) -> None:
        """A head, which runs no worker, and three nodes."""
        self.cluster.start_head(cpus=0)
        self.cluster.start(3, cpus=3)


@contextlib.contextmanager
def world() -> Iterator[World]:
    memory = DynamoDB(now=time.time, random=random.Random(9), shards=16)
    with _postgres() as server, served(memory) as endpoint, nodes(but=SERVERS) as cluster:
        yield World(memory, Source(endpoint).create(), Database(server, "postgres"), cluster)


@contextlib.contextmanager
def _postgres() -> Iterator[PostgresServer]:
    with contextlib.ExitStack() as resources:
        try:
            yield resources.enter_context(PostgresServer("wheel", password=SECRET))
        except ServerMissing as e:
            not_tested(f"Postgres is missing: {e}")


def outlives_everything(world: World, pipeline: Pipeline, configure: Callable[..., object]) -> Story:
    """A backfill and live changes while shards split: kill -9 of a worker, of a node, of the coordinator's node, and of
    everything; a node that is frozen until others do its work, and then goes on; a worker that is frozen until another
    one does its work; and a run of one process in between.

    ``configure`` writes the config, with options besides the target's. The last run is on a Ray of its own, and ends
    when it has caught up.
    """
    configure(engine=CLUSTER, backfill={"segments": 3}, hook_timeout=1)
    world.source.fill(KEYS)
    begun = threading.Event()

    def reshard(done: int) -> None:
        """Not before the epoch: what is in shards that had ended by then is not read."""
        if begun.is_set() and done % 40 == 20:
            world.reshard()

    world.start_nodes()
    checked = pipeline.command("check", "--json")
    assert checked.code == 0, checked
    assert checked.out.count("has the same versions and hook, and reaches source and target") == 3
    assert "3 nodes with 9 CPUs for 3 workers" in checked.out
    with Load(world.source, seed=11, keys=KEYS, every=reshard, pause=0.03) as load:
        with pipeline.start() as run:
            run.until("snapshot started")
            begun.set()
            story = Story(Slots(world.postgres), run)
            _faults(story, run, load, world.cluster)
            load.wait(50)
            print("seconds until other processes went on:", story.takeovers)
            assert run.stop().code == 0, run.ended()
        with pipeline.start("run", "--engine", "local") as alone:
            alone.until("resuming")
            load.wait(50)
            assert alone.stop().code == 0
        with pipeline.start() as run:
            run.until("progress", phase="live")
            load.wait(50)
            kill(*inhabitants(but=SERVERS))
    configure(engine={"type": "ray", "workers": 2}, backfill={"segments": 3})
    pipeline.caught_up()
    return story


def _faults(story: Story, run: Run, load: Load, cluster: Nodes) -> None:
    story.kill_a_worker()  # during the backfill, or right behind it
    run.until("progress", phase="live")
    story.kill_a_node()
    cluster.start(1, cpus=3)
    story.freeze_a_node(load)
    story.freeze_a_worker(load)
    story.kill_coordinators_node()
