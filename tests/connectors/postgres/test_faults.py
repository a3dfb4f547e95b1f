"""A network or a server that says nothing: who is busy is waited for, who is gone is not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from connectors.postgres import Postgres
from replicator.batch import Outcome
from replicator.errors import TransientError
from replicator.state import Save
from replicator.target.contract import Table
from replicator.testing.contract import batch, put
from replicator.testing.proxy import Proxy
from tests.connectors.postgres.postgres_kit import PK, opened, owner, rows
from tests.end_to_end.pipeline import eventually
from tests.servers.postgres_fixtures import Database

pytestmark = pytest.mark.postgres

CONTRACT = Table("contract", PK)
ONE = batch(put({"pk": "a"}, 1), saves=[Save("shard", "s", 0, "1")])


@pytest.fixture
def proxy(one_postgres: Database) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", one_postgres.server.port) as found:
        yield found


@pytest.fixture
def one(one_postgres: Database, proxy: Proxy) -> Postgres:
    """Through the proxy, with little patience."""
    target = opened(one_postgres, CONTRACT, url=through(one_postgres, proxy), timeout=1)
    target.checkpoints.claim(owner())
    return target


def through(database: Database, proxy: Proxy) -> str:
    return database.url.replace(f":{database.server.port}", f":{proxy.port}")


def test_a_server_that_does_not_respond_is_given_up(one: Postgres, proxy: Proxy, one_postgres: Database) -> None:
    proxy.swallow()
    words = r"no response for 1 s \(target.timeout\), and a second connection gets no response either"
    with pytest.raises(TransientError, match=rf"Postgres at 127.0.0.1:{proxy.port}/.*: {words}"):
        one.write(ONE)
    with pytest.raises(TransientError, match=r"cannot be reached: connection timeout expired"):
        one.write(ONE)
    proxy.heal()
    assert one.write(ONE) == Outcome()
    assert len(rows(one_postgres)) == 1


def test_a_half_open_connection_is_given_up_and_replaced(one: Postgres, proxy: Proxy, one_postgres: Database) -> None:
    proxy.forget()
    with pytest.raises(TransientError, match="the server does not know this connection"):
        one.write(ONE)
    assert one.write(ONE) == Outcome()
    assert len(rows(one_postgres)) == 1


def test_a_commit_whose_response_never_comes_is_applied_once(
    one: Postgres, proxy: Proxy, one_postgres: Database
) -> None:
    proxy.deafen()
    with pytest.raises(TransientError, match="no response for 1 s"):
        one.write(ONE)
    proxy.heal()
    assert one.write(ONE) == Outcome()
    (counts,) = one.checkpoints.read().counts.values()
    assert (counts.read, counts.applied, counts.superseded) == (1, 1, 0)
    assert len(rows(one_postgres)) == 1


def test_a_server_that_is_still_working_on_our_statement_is_waited_for(
    one: Postgres, proxy: Proxy, one_postgres: Database
) -> None:
    """Three times as long as a silent one is."""
    begun = proxy.connections
    with one_postgres.connect() as session:
        session.execute("BEGIN; LOCK TABLE contract IN SHARE MODE")
        one.send(one.encode(ONE))
        with ThreadPoolExecutor(1) as threads:
            outcome = threads.submit(one.collect)
            eventually(lambda: proxy.connections >= begun + 3, "a second connection asks again and again")
            assert not outcome.done()
            session.execute("COMMIT")
            assert outcome.result(30) == Outcome()
    assert len(rows(one_postgres)) == 1


def test_long_statements_are_told_of_as_long_as_the_server_is_at_work(
    one: Postgres, proxy: Proxy, one_postgres: Database
) -> None:
    """A coordinator that sweeps a large table waits for hours, and is not replaced meanwhile."""
    told: list[float] = []
    one.while_waiting(lambda: told.append(time.monotonic()))
    for lock, wait in (("SHARE", lambda: one.write(ONE)), ("ACCESS EXCLUSIVE", lambda: one.sweep(CONTRACT, 1, ()))):
        begun = proxy.connections
        with one_postgres.connect() as session, ThreadPoolExecutor(1) as threads:
            session.execute(f"BEGIN; LOCK TABLE contract IN {lock} MODE".encode())
            waiting = threads.submit(wait)
            eventually(lambda begun=begun: proxy.connections > begun, "a second connection asks")  # type: ignore[misc]
            told.clear()
            eventually(lambda: len(told) >= 2, "it is told again and again")
            assert not waiting.done()
            session.execute("COMMIT")
            waiting.result(30)


def test_a_server_that_does_not_respond_is_not_at_work(one: Postgres, proxy: Proxy) -> None:
    told: list[float] = []
    one.while_waiting(lambda: told.append(time.monotonic()))
    assert one.write(ONE) == Outcome()
    assert told
    proxy.swallow()
    told.clear()
    with pytest.raises(TransientError, match="no response for 1 s"):
        one.write(ONE)
    assert told == []
