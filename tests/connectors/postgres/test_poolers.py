"""Behind a real pgbouncer: a pool for sessions works, and one for transactions is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psycopg
import pytest

from connectors.postgres import Postgres, PostgresOptions
from replicator.errors import ConfigError, TransientError
from replicator.testing.contract import batch, put
from replicator.testing.servers.programs import ServerMissing
from replicator.version import FIRST_EPOCH
from tests.connectors.postgres.postgres_kit import rows, typed
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres_fixtures import Database
from tests.servers.starting import not_tested

TABLE = typed(n="bigint")
Pool = Callable[..., PgBouncer]


@pytest.fixture
def pool(one_postgres: Database) -> Iterator[Pool]:
    with ExitStack() as running:

        def start(mode: str, size: int = 20, turns: int = 0, clients: int = 100) -> PgBouncer:
            try:
                return running.enter_context(PgBouncer(one_postgres.url, mode, size, turns, clients))
            except ServerMissing as e:
                not_tested(str(e))

        yield start


def behind(pooler: PgBouncer, **options: object) -> Postgres:
    return Postgres(PostgresOptions.model_validate({"url": pooler.url, **options}), "contract")


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_a_pool_for_transactions_is_refused_by_check_and_run_alike(pool: Pool, mode: str) -> None:
    pooler = pool(mode)
    with psycopg.connect(pooler.url, autocommit=True) as client:
        before = settings(client)
        target = behind(pooler)
        (problem,) = target.check([TABLE])
        assert problem.startswith("target.url: ")
        assert "pgbouncer with pool_mode = transaction" in problem
        assert "Connect to Postgres directly, or to a pool with pool_mode = session" in problem
        with pytest.raises(ConfigError) as refused:
            target.open([TABLE], FIRST_EPOCH)
        assert refused.value.problems == (problem,)
        target.close()
        assert settings(client) == before, "clients that share its connections keep their settings"


def settings(client: psycopg.Connection) -> object:
    """Those that are not the server's own. pgbouncer itself looks after the application's name."""
    changed = "SELECT name, setting FROM pg_settings WHERE setting <> reset_val AND name <> 'application_name'"
    return client.execute(changed).fetchall()


def test_a_busy_pool_for_transactions_is_refused_too(pool: Pool) -> None:
    pooler = pool("transaction")
    with psycopg.connect(pooler.url) as busy, busy.transaction():
        busy.execute("SELECT 1")  # has a server connection for itself
        target = behind(pooler)
        assert "pgbouncer" in target.check([TABLE])[0]
        target.close()


def test_a_pool_for_transactions_whose_two_connections_take_turns_is_refused_too(pool: Pool) -> None:
    """Every second transaction of a client meets the same one."""
    pooler = pool("transaction", size=2, turns=1)
    with psycopg.connect(pooler.url) as one, psycopg.connect(pooler.url) as other:
        assert {c.execute("SELECT pg_backend_pid() > 0").fetchone() for c in (one, other)} == {(True,)}
    target = behind(pooler)
    assert "pgbouncer" in target.check([TABLE])[0]
    target.close()


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_a_pooler_that_accepts_no_second_connection_is_not_taken_for_one_for_sessions(pool: Pool, mode: str) -> None:
    """Nothing shows which it is; it may accept one later."""
    pooler = pool(mode, clients=1)
    target = behind(pooler)
    with pytest.raises(TransientError, match=r"a pooler is in between, and a second connection.*max_client_conn"):
        target.open([TABLE], FIRST_EPOCH)
    target.close()


@pytest.mark.parametrize("size", [20, 1])
def test_a_pool_for_sessions_works_even_if_it_has_one_connection_only(
    pool: Pool, one_postgres: Database, size: int
) -> None:
    target = behind(pool("session", size), timeout=1)
    target.open([TABLE], FIRST_EPOCH)
    for n in range(2):
        target.write(batch(put({"pk": str(n), "n": n}, n + 1)))
    assert [row["n"] for row in rows(one_postgres)] == [0, 1]
    target.close()
