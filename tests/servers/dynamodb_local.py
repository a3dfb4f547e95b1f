"""DynamoDB Local for tests: AWS's own program, on loopback, with shards that roll and a clock that jumps on demand.

Its licence forbids passing it on, so Maven fetches it at first use; it needs Java 17 and Maven, and ``faketime`` for
the clock.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from types import TracebackType

from replicator.aws.errors import AwsError
from replicator.testing.dynamodb.http import UnsignedClient
from replicator.testing.servers.programs import ServerMissing
from tests.servers.programs import alone, cache

__all__ = ["DynamoDBLocal", "ServerMissing"]

VERSION = "2.6.1"  # 3.x never rolls a shard by itself and has no event name for what time to live deletes
SDK = "2.54.15"  # pinned because not every release of it resolves completely
_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>replicator</groupId><artifactId>dynamodb-local</artifactId><version>1</version><packaging>pom</packaging>
  <dependencyManagement><dependencies><dependency>
    <groupId>software.amazon.awssdk</groupId><artifactId>bom</artifactId><version>{SDK}</version>
    <type>pom</type><scope>import</scope>
  </dependency></dependencies></dependencyManagement>
  <dependencies><dependency>
    <groupId>com.amazonaws</groupId><artifactId>DynamoDBLocal</artifactId><version>{VERSION}</version>
  </dependency></dependencies>
</project>
"""
_LAUNCHER = Path(__file__).with_name("Loopback.java")
_CLOCKS = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib*/faketime/libfaketimeMT.so.1")
_ATTEMPTS = 3  # another program may take a free port before the server does


class DynamoDBLocal:
    """One server: ``with DynamoDBLocal() as server: UnsignedClient(server.endpoint)``. Stops with the block or Python.

    ``clock``: its clock can be moved. ``directory``: keep tables there instead of in memory, beyond ``stop``.
    At most one table with a stream per server: a second one makes it slow, and breaks the iterators of idle shards.
    """

    def __init__(self, *, clock: bool = False, directory: Path | None = None, patience: float = 60.0) -> None:
        self.endpoint = ""
        self._faketime = _faketime() if clock else None
        self._directory = directory
        self._patience = patience
        self._ahead = 0.0
        self._port = self._control = 0
        self._home: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> DynamoDBLocal:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server (again, on its port) and wait until it answers; ServerMissing says what to install."""
        if self._process is not None:
            return
        java, jars = _java(), _jars()
        self._home = Path(tempfile.mkdtemp(prefix="dynamodb-local-"))
        self._set_clock()
        for left in reversed(range(_ATTEMPTS)):
            port, self._control = _free_ports()
            self._launch(java, jars, self._port or port)
            if self._answers():
                self._port = self._port or port
                return
            log = (self._home / "log").read_text(errors="replace")[-2000:]
            self._kill()
            if not left:
                self.stop()
                raise RuntimeError(f"DynamoDB Local did not start:\n{log}")

    def stop(self) -> None:
        """Kill the server; calling it twice is fine."""
        self._kill()
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None

    def now(self) -> float:
        """The server's time."""
        return time.time() + self._ahead

    def roll(self) -> None:
        """Close every open shard and open its child."""
        request = urllib.request.Request(f"http://127.0.0.1:{self._control}/roll", data=b"", method="POST")
        with urllib.request.urlopen(request, timeout=60):
            pass

    def advance(self, *, hours: float = 0.0, minutes: float = 0.0) -> None:
        """Move the server's clock on; it holds from the next call on."""
        if self._faketime is None:
            raise ValueError("only DynamoDBLocal(clock=True) can move its clock")
        self._ahead += hours * 3600 + minutes * 60
        self._set_clock()

    def _launch(self, java: str, jars: Path, port: int) -> None:
        assert self._home is not None
        self.endpoint = f"http://127.0.0.1:{port}"
        store = ["-inMemory"] if self._directory is None else ["-dbPath", str(self._directory)]
        command = [java, "-Xmx1g", f"-Djava.library.path={jars}", "-cp", f"{jars}/*", str(_LAUNCHER)]
        command += [str(self._control), *store, "-sharedDb", "-disableTelemetry", "-port", str(port)]
        with (self._home / "log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self._home,
                env=self._environment(),
                stdin=subprocess.PIPE,  # the server ends when this closes: with this process, however that ends
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _environment(self) -> dict[str, str]:
        environment = os.environ | {"DDB_LOCAL_TELEMETRY": "0"}
        if self._faketime is not None:
            environment["LD_PRELOAD"] = self._faketime
            environment |= {"FAKETIME_TIMESTAMP_FILE": f"{self._home}/clock", "FAKETIME_NO_CACHE": "1"}
        return environment

    def _set_clock(self) -> None:
        """Write the clock's offset where libfaketime looks at each call; renamed, so that it never sees half of it."""
        assert self._home is not None
        new = self._home / "clock.new"
        new.write_text(f"+{self._ahead:.0f}\n")
        new.rename(self._home / "clock")

    def _answers(self) -> bool:
        assert self._process is not None
        client = UnsignedClient(self.endpoint, timeout=5.0)
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            try:
                client.call("ListTables", {})  # the first call makes the database
                return True
            except AwsError:
                if self._process.poll() is not None:
                    return False
                time.sleep(0.1)
        return False

    def _kill(self) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process = None


def _java() -> str:
    """Java with its compiler: the launcher is started from its source."""
    found = shutil.which("java")
    if found is None or not (shutil.which("javac") or Path(found).resolve().with_name("javac").exists()):
        raise ServerMissing("DynamoDB Local needs a JDK, 17 or later (Debian: apt-get install openjdk-17-jdk-headless)")
    return found


def _faketime() -> str:
    for pattern in _CLOCKS:
        for found in Path("/").glob(pattern.lstrip("/")):
            return str(found)
    raise ServerMissing("moving DynamoDB Local's clock needs libfaketime (Debian: apt-get install faketime)")


def _jars() -> Path:
    """The folder with DynamoDB Local and what it needs, fetched at first use."""
    folder = cache() / f"dynamodb-local-{VERSION}-{SDK}"
    with alone(folder, "DynamoDB Local"):
        if not (folder / ".complete").exists():
            _fetch(folder)
            (folder / ".complete").touch()
    return folder / "lib"


def _fetch(folder: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise ServerMissing("fetching DynamoDB Local needs Maven (Debian: apt-get install maven)")
    (folder / "pom.xml").write_text(_POM)
    command = [maven, "-q", "-B", "-f", str(folder / "pom.xml"), "dependency:copy-dependencies"]
    command += [f"-DoutputDirectory={folder}/lib", "-DincludeScope=runtime"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerMissing(f"Maven could not fetch DynamoDB Local {VERSION}:\n{(done.stdout + done.stderr)[-2000:]}")


def _free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]
