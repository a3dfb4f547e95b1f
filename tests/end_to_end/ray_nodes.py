"""Ray with several nodes on this machine, in a network namespace that has nothing but loopback.

Outside of one, Ray binds the machine's own address. Everything that a namespace's block starts is ended with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.end_to_end.pipeline import _AWS, eventually
from tests.servers.starting import not_tested

PORT = 6399
_PORTS = (
    "node-manager",
    "object-manager",
    "dashboard-agent-grpc",
    "dashboard-agent-listen",
    "runtime-env-agent",
    "metrics-export",
)
_CLONE_NEWNET, _SIOCSIFFLAGS, _IFF_UP = 0x40000000, 0x8914, 1
_HEALTH = {  # as docs/scaling.md says: a process that is gone is noticed within two seconds, a frozen one within five
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_worker_niceness": "0",  # by default workers give way to all other processes of the machine
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # a process for each CPU, which nothing here needs
}


def in_namespace(work: Callable[[], None]) -> None:
    """Do ``work`` on a thread that is alone in a network namespace, with all processes and threads that it starts."""
    failures: list[BaseException] = []

    def entered() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
            failures.append(PermissionError())
            return
        try:
            _loopback_up()
            work()
        except BaseException as e:
            failures.append(e)
        finally:
            kill(*inhabitants())

    thread = threading.Thread(target=entered)
    thread.start()
    thread.join()
    if failures and isinstance(failures[0], PermissionError):
        not_tested("a network namespace: only root may make one")
    if failures:
        raise failures[0]


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))


def inhabitants(*, but: Collection[str] = ()) -> list[int]:
    """The processes in this thread's namespace, except those of some programs."""
    here = os.readlink(f"/proc/self/task/{threading.get_native_id()}/ns/net")
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/ns/net") == here and Path(f"/proc/{pid}/comm").read_text().strip() not in but:
                found.append(int(pid))
    return [pid for pid in found if pid != os.getpid()]


def kill(*pids: int, number: signal.Signals = signal.SIGKILL) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def waited(pid: int) -> float:
    """Seconds for which a process' main thread has waited for a CPU so far; 0 where the kernel does not tell."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def children(pid: int) -> list[int]:
    found = []
    for other in inhabitants():
        with contextlib.suppress(OSError):
            if parent(other) == pid:
                found.append(other)
    return found


@dataclass
class Nodes:
    """The nodes of a cluster. The first one is the head. A node is known by the process of its raylet.

    ``but``: programs that outlive the cluster.
    """

    folder: Path
    but: Collection[str]
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, count: int, cpus: int) -> None:
        """As many further nodes, at once."""
        nodes = []
        for _ in range(count):
            before = self._sockets()  # nodes that are at this point at once would choose the same one
            nodes.append(self._node(["--address", f"127.0.0.1:{PORT}"], cpus))
            eventually(lambda before=before: self._sockets() - before, "the raylet's socket")  # type: ignore[misc]
        for node in nodes:
            self._await(*node)

    def _sockets(self) -> set[Path]:
        return set(self.folder.glob("session_latest/sockets/raylet*"))

    def start_head(self, cpus: int) -> None:
        head = ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={self.folder}"]
        self._await(*self._node(head, cpus))

    def _node(self, options: list[str], cpus: int) -> tuple[subprocess.Popen[bytes], Path]:
        log = self.folder / f"node-{len(self._started)}.log"
        common = ["--node-ip-address=127.0.0.1", f"--num-cpus={cpus}", "--disable-usage-stats", "--block"]
        common += ["--include-log-monitor=false"]
        first = 20_000 + 100 * len(self._started)  # nodes that start at once would choose the same free ports
        common += [f"--{name}-port={first + n}" for n, name in enumerate(_PORTS)]
        common += [f"--min-worker-port={first + 20}", f"--max-worker-port={first + 99}"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options, *common]
        with log.open("wb") as out:
            self._started.append(
                subprocess.Popen(
                    [*command, "--object-store-memory=80000000"],
                    env={**os.environ, **_AWS, **_HEALTH},
                    stdout=out,
                    stderr=subprocess.STDOUT,
                )
            )
        return self._started[-1], log

    def _await(self, process: subprocess.Popen[bytes], log: Path) -> None:
        def started() -> bool:
            assert process.poll() is None, log.read_text(errors="replace")
            return "Ray runtime started" in log.read_text(errors="replace")

        eventually(started, log.name)

    def end(self) -> None:
        kill(*inhabitants(but=self.but))
        for process in self._started:
            process.wait()


@contextlib.contextmanager
def nodes(*, but: Collection[str]) -> Iterator[Nodes]:
    """No node yet."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # a short path: Ray's sockets are in it
    cluster = Nodes(folder, but)
    try:
        yield cluster
    finally:
        cluster.end()
        shutil.rmtree(folder, ignore_errors=True)
