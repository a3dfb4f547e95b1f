"""A pgbouncer in front of a Postgres server, in a folder of its own, on a free port of loopback."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from replicator.testing.servers.programs import ServerMissing, await_ready, free_port, unprivileged

_CONFIG = """\
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = {mode}
default_pool_size = {size}
server_round_robin = {turns}
max_client_conn = {clients}
"""


class PgBouncer:
    """``url``: of the database behind it. ``mode``: session, transaction or statement. ``turns``: 1 if its connections
    take turns. ``clients``: how many it accepts at a time.
    """

    def __init__(self, url: str, mode: str, size: int = 20, turns: int = 0, clients: int = 100) -> None:
        program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            raise ServerMissing("there is no pgbouncer; apt-get install pgbouncer")
        self._given = conninfo_to_dict(url)
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="replicator-pgbouncer-"))
        self._folder.chmod(0o755)
        users = self._folder / "users"
        users.write_text(f'"{self._given["user"]}" "{self._given.get("password", "")}"\n')
        server = {"host": self._given["host"], "port": self._given["port"]}
        config = self._folder / "config"
        own = {"own": self.port, "users": users, "mode": mode, "size": size, "turns": turns, "clients": clients}
        config.write_text(_CONFIG.format(**server, **own))
        user = unprivileged("pgbouncer")
        self._command = [program, *([] if user is None else ["-u", user.pw_name]), str(config)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        given = self._given
        return f"postgresql://{given['user']}:{given['password']}@127.0.0.1:{self.port}/{given['dbname']}"

    def __enter__(self) -> PgBouncer:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        await_ready("pgbouncer", self._process, self._is_ready, self._log, within=30, pause=0.01)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _is_ready(self) -> bool:
        try:
            psycopg.connect(make_conninfo(self.url, connect_timeout=2)).close()
        except psycopg.OperationalError:
            return False
        return True

    def _log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")
