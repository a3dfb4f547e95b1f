"""Elasticsearch and OpenSearch for tests: the vendors' own programs, on loopback, without containers or security.

The minimal distributions are fetched with Maven at first use. The servers refuse to run as root, so they run as an
unprivileged user there; each has a config, data and logs of its own, and the programs are only read.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from replicator.testing.servers.programs import ServerMissing, await_ready, free_port, unprivileged
from tests.servers.java import has_module, java_home
from tests.servers.programs import alone, cache, lives

__all__ = ["SearchServer", "ServerMissing", "Which"]

Which = Literal["elasticsearch-8", "elasticsearch-9", "opensearch-2", "opensearch-3"]


@dataclass(frozen=True)
class _Distribution:
    product: Literal["elasticsearch", "opensearch"]
    version: str
    majors: range
    """Of Java."""
    modules: tuple[str, ...] = ()
    """Of Java, beyond what every one has."""

    @property
    def name(self) -> str:
        return f"{self.product}-{self.version}"

    @property
    def artifact(self) -> str:
        return f"org.{self.product}.distribution.integ-test-zip:{self.product}:{self.version}:zip"


_DISTRIBUTIONS: Mapping[Which, _Distribution] = {
    "elasticsearch-8": _Distribution("elasticsearch", "8.19.21", range(17, 100), ("jdk.jdi",)),
    "elasticsearch-9": _Distribution("elasticsearch", "9.2.0", range(21, 100)),  # later: jdk.jdi
    "opensearch-2": _Distribution("opensearch", "2.19.6", range(17, 24)),  # Java 24 has no security manager
    "opensearch-3": _Distribution("opensearch", "3.6.0", range(21, 100)),
}
_SETTINGS: Mapping[str, str] = {
    "network.host": "127.0.0.1",
    "transport.port": "0",
    "discovery.type": "single-node",
    "cluster.routing.allocation.disk.threshold_enabled": "false",
    "action.auto_create_index": "false",
}
_WITH_US = ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()  # also where this process is killed
_FAST_START = "-XX:TieredStopAtLevel=1"  # Java's first compiler alone: most of a short life is starting
_VECTOR = "jdk.incubator.vector"  # asked for in jvm.options; a Java without it would not start
_STARTUP = 180.0  # seconds on a busy machine
_ENDING = 60.0


class SearchServer:
    """One node: ``with SearchServer("opensearch-3") as server: connect(server.url)``. Gone when the block, or Python,
    ends.

    ``settings``: further lines of elasticsearch.yml or opensearch.yml. ``files``: further files of its config folder,
    by name. ``heap``: of Java, in MB. ``fast_start``: it starts with half the work, and is slower under a long load.
    """

    def __init__(
        self,
        which: Which,
        settings: Mapping[str, str] | None = None,
        *,
        files: Mapping[str, str] | None = None,
        heap: int = 512,
        fast_start: bool = True,
    ) -> None:
        self.which = which
        self.port = 0
        self._distribution = _DISTRIBUTIONS[which]
        self._settings, self._files = settings or {}, files or {}
        self._heap, self._fast_start = heap, fast_start
        self._user = unprivileged(self._distribution.product)
        self._folder: Path | None = None
        self._programs = self._java = Path()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SearchServer:
        asked = self._distribution
        java = java_home(asked.name, asked.majors, asked.modules)
        programs = _programs(asked)
        self._folder = Path(tempfile.mkdtemp(prefix=f"replicator-{self.which}-"))
        atexit.register(self.__exit__, None, None, None)
        try:
            self._prepare(programs, java)
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        atexit.unregister(self.__exit__)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def group(self) -> int:
        """The process group of the running server, for ``lives``."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def log(self) -> str:
        """What the server has written so far."""
        return (self._home / "logs" / "out").read_text(errors="replace")

    @property
    def snapshots(self) -> Path:
        """The folder in which repositories for snapshots may be registered."""
        return self._home / "snapshots"

    def start(self) -> None:
        """Start it (again) on its port and its data, and return when it serves."""
        if self._process is not None:
            return
        with (self._home / "logs" / "out").open("ab") as log:
            self._process = subprocess.Popen(
                [*_WITH_US, str(self._programs / "bin" / self._distribution.product)],
                cwd=self._home / "tmp", env=self._environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, **self._as_user(),
            )  # fmt: skip
        self._await_ready()

    def stop(self) -> None:
        """Stop it as a service manager would, and return when it is gone. Stopping twice is fine."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would: no chance to write anything. ``start`` recovers from its log."""
        self._end(signal.SIGKILL)

    @property
    def _home(self) -> Path:
        assert self._folder is not None, "the server exists only inside its with block"
        return self._folder

    def _prepare(self, programs: Path, java: Path) -> None:
        for name in ("config", "data", "logs", "snapshots", "tmp"):
            (self._home / name).mkdir()
        self._own()  # so that the user can be asked what it can read
        self._programs, self._java = self._readable(programs), self._readable(java)
        self.port = free_port()
        product, config = self._distribution.product, self._home / "config"
        shutil.copy(programs / "config" / "log4j2.properties", config)
        (config / "jvm.options").write_text(_jvm_options(programs / "config" / "jvm.options", java))
        (config / f"{product}.yml").write_text("".join(f"{k}: {v}\n" for k, v in self._lines().items()))
        for name, text in self._files.items():
            (config / name).write_text(text)
        self._own()

    def _lines(self) -> dict[str, str]:
        named = {"cluster.name": f"replicator-{self.port}", "http.port": str(self.port)}
        folders = {"data": "data", "logs": "logs", "repo": "snapshots"}
        paths = {f"path.{name}": str(self._home / folder) for name, folder in folders.items()}
        open_to_all = {"xpack.security.enabled": "false"} if self._distribution.product == "elasticsearch" else {}
        return {**_SETTINGS, **named, **paths, **open_to_all, **self._settings}

    def _environment(self) -> dict[str, str]:
        prefix = "ES" if self._distribution.product == "elasticsearch" else "OPENSEARCH"
        compiler = _FAST_START if self._fast_start else ""
        own = {
            "JAVA_HOME": str(self._java),
            "JAVA_OPTS": f"-Xms{self._heap // 2}m -Xmx{self._heap}m {compiler}",
            "PATH_CONF": str(self._home / "config"),
            "TMPDIR": str(self._home / "tmp"),
        }
        base = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": str(self._home / "tmp")}
        base["CLI_JAVA_OPTS"] = compiler  # of Elasticsearch's launcher
        return base | {f"{prefix}_{name}": value for name, value in own.items()}

    def _as_user(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}

    def _own(self) -> None:
        if self._user is None:
            return
        for path in (self._home, *self._home.rglob("*")):
            os.chown(path, self._user.pw_uid, self._user.pw_gid)

    def _readable(self, folder: Path) -> Path:
        """The folder, or links to its files in our own where it is below somebody's private home."""
        looked = subprocess.run(["test", "-r", str(next(folder.glob("bin/*")))], **self._as_user())
        if looked.returncode == 0:
            return folder
        inside = self._home / "programs" / folder.name
        shutil.copytree(folder, inside, symlinks=True, copy_function=_link)
        return inside

    def _await_ready(self) -> None:
        process = self._process
        assert process is not None
        try:
            name = self._distribution.name
            await_ready(name, process, self._serves, lambda: self.log, within=_STARTUP, pause=0.1)
        except RuntimeError:
            if process.poll() is not None:
                self._process = None
            raise

    def _serves(self) -> bool:
        health = f"{self.url}/_cluster/health?wait_for_status=yellow&timeout=2s"
        try:
            with urllib.request.urlopen(health, timeout=10):
                return True
        except OSError:
            return False

    def _end(self, how: signal.Signals) -> None:
        """Elasticsearch is two processes, a launcher and the server: the signal goes to both."""
        if self._process is None:
            return
        group = self._process.pid
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, how)
        if not _gone(group, self._process):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
            self._process.wait()
        self._process = None


def _gone(group: int, leader: subprocess.Popen[bytes]) -> bool:
    """Whether the whole group ends in time."""
    deadline = time.monotonic() + _ENDING
    while time.monotonic() < deadline:
        if leader.poll() is not None and not lives(group):
            return True
        time.sleep(0.05)
    return False


def _jvm_options(of: Path, java: Path) -> str:
    """Theirs, without the heap's size, what would write beside the programs, and a module that this Java has not."""
    left_out = ["-Xms", "-Xmx", "logs/", "=data"] + ([] if has_module(java, _VECTOR) else [_VECTOR])
    lines = of.read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not any(words in line for words in left_out))


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError:  # another file system
        shutil.copy2(source, destination)


def _programs(wanted: _Distribution) -> Path:
    """The folder with the distribution, fetched at first use."""
    folder = cache() / f"{wanted.name}-minimal"
    with alone(folder, wanted.name):
        if not (folder / ".complete").exists():
            _fetch(wanted, folder)
            (folder / ".complete").touch()
    return folder / wanted.name


def _fetch(wanted: _Distribution, folder: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise ServerMissing(f"fetching {wanted.name} needs Maven (Debian: apt-get install maven)")
    with tempfile.TemporaryDirectory() as fresh:  # where it finds its own traces it unpacks nothing
        command = [maven, "-q", "-B", "dependency:unpack", f"-Dartifact={wanted.artifact}"]
        done = subprocess.run([*command, f"-DoutputDirectory={folder}"], capture_output=True, text=True, cwd=fresh)
    if done.returncode:
        raise ServerMissing(f"Maven could not fetch {wanted.name}:\n{(done.stdout + done.stderr)[-2000:]}")
    programs = folder / wanted.name
    subprocess.run(["chmod", "-R", "a+rX,u+w", str(programs)], check=True)
    subprocess.run(["chmod", "-R", "a+x", str(programs / "bin")], check=True)
