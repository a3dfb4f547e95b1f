"""Sentinels, a primary and its replica on real servers: writes go to the primary, also to a new one."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from connectors.redis import Redis
from connectors.redis.connection import Address
from connectors.redis.deployment import OneServer
from connectors.redis.options import RedisOptions
from connectors.redis.sentinel import Sentinels, sentinels_of
from replicator.batch import Batch, Outcome
from replicator.config.target import destination
from replicator.errors import ConfigError, GapFound, NotAuthenticated, ReplicatorError, TransientError
from replicator.testing.contract import batch, put, table
from replicator.testing.contract.kit import built
from replicator.testing.servers.programs import ServerMissing, free_port
from replicator.version import FIRST_EPOCH
from tests.connectors.redis import redis_kit as kit
from tests.end_to_end.pipeline import eventually
from tests.servers.redis import RedisServer, Sentinel
from tests.servers.starting import not_tested


@dataclass
class Watched:
    """A primary and a replica that a Sentinel watches."""

    primary: RedisServer
    replica: RedisServer
    sentinel: Sentinel
    resources: ExitStack

    def url(self, name: str = "Orders") -> str:
        return f"redis+sentinel://127.0.0.1:{self.sentinel.port}/{name}"

    def target(self, **options: Any) -> Redis:
        target = built({"type": "redis", "url": self.url(), **options})
        assert isinstance(target, Redis)
        self.resources.callback(target.close)
        return target

    def opened(self, **options: Any) -> Redis:
        target = self.target(**options)
        target.open([table()], FIRST_EPOCH)
        return target

    def replicated(self) -> None:
        """Until the replica has everything."""
        with self.primary.client() as client:
            assert client.wait(1, 30_000) == 1

    def fail_over(self) -> None:
        """The primary is gone, and the Sentinel makes the replica the primary."""
        self.primary.kill()
        with self.sentinel.client() as client:
            names: Any = client.sentinel_get_master_addr_by_name
            eventually(lambda: int(names("Orders")[1]) == self.replica.port, "the replica is made the primary")

    def replace_unnoticed(self) -> None:
        """Make the replica the primary for the Sentinel; the old one stays what it was."""
        with self.replica.client() as client:
            client.replicaof("NO", "ONE")
        with self.sentinel.client() as client:
            client.execute_command("SENTINEL", "REMOVE", "Orders")
            client.execute_command("SENTINEL", "MONITOR", "Orders", "127.0.0.1", f"{self.replica.port}", "1")


@pytest.fixture
def watched() -> Iterator[Watched]:
    with ExitStack() as resources:
        try:
            primary = resources.enter_context(RedisServer())
        except ServerMissing as e:
            not_tested(f"Redis is missing: {e}")
        following = ("--replicaof", "127.0.0.1 " + str(primary.port), "--repl-diskless-sync-delay", "0")
        replica = resources.enter_context(RedisServer(*following))
        with primary.client() as client:
            eventually(lambda: client.info("replication")["connected_slaves"] == 1, "the replica follows")
        sentinel = resources.enter_context(Sentinel(primary, "Orders"))
        with sentinel.client() as client:
            eventually(lambda: client.sentinel_slaves("Orders"), "the Sentinel knows the replica")
        yield Watched(primary, replica, sentinel, resources)


def until_written(target: Redis, given: Batch) -> Outcome:
    """As the engine does it: transient errors are retried."""

    def attempt() -> Outcome | None:
        try:
            return target.write(given)
        except TransientError:
            return None

    outcome = eventually(attempt, "the batch is written")
    assert outcome is not None
    return outcome


def test_what_a_new_primary_has_received_is_complete_and_the_run_goes_on_there(watched: Watched) -> None:
    target = watched.opened()
    target.write(batch(put({"pk": "a"}, 1)))
    watched.replicated()
    watched.fail_over()
    assert until_written(target, batch(put({"pk": "b"}, 2))) == Outcome()
    assert set(kit.documents(watched.replica, table())) == {("a",), ("b",)}
    assert target.recheck([table()]) == []


def test_what_a_new_primary_had_not_received_is_a_gap(watched: Watched) -> None:
    """The primary has acknowledged it."""
    target = watched.opened()
    target.write(batch(put({"pk": "a"}, 1)))
    watched.replicated()
    watched.replica.pause()
    with watched.primary.client() as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "replica")
    assert target.write(batch(put({"pk": "b"}, 2))) == Outcome()
    watched.primary.kill()
    watched.replica.resume()
    watched.fail_over()
    assert until_written(target, batch(put({"pk": "c"}, 3))) == Outcome()
    assert set(kit.documents(watched.replica, table())) == {("a",), ("c",)}
    with pytest.raises(GapFound, match="a replica without them took over"):
        target.recheck([table()])


@pytest.mark.parametrize("received", [True, False])
def test_a_primary_that_does_not_know_that_it_was_replaced_is_left_within_a_minute(
    watched: Watched, received: bool
) -> None:
    """It is cut off from the Sentinels and accepts writes; what the new primary lacks of them is a gap."""
    target = watched.opened()
    target.write(batch(put({"pk": "a"}, 1)))
    watched.replicated()
    watched.replace_unnoticed()
    if not received:
        assert target.write(batch(put({"pk": "b"}, 2))) == Outcome()
    with pytest.raises(TransientError, match="has another primary now; connecting to it"):
        target.recheck([table()])
    if received:
        assert target.recheck([table()]) == []
    else:
        with pytest.raises(GapFound, match="a replica without them took over"):
            target.recheck([table()])
    target.write(batch(put({"pk": "c"}, 3)))
    assert set(kit.documents(watched.replica, table())) == {("a",), ("c",)}


def test_a_sentinel_that_is_cut_off_beside_the_old_primary_does_not_keep_a_run_there(watched: Watched) -> None:
    """It comes first in the url, and responds; the others have replaced the primary."""
    target = watched.opened()
    target.write(batch(put({"pk": "a"}, 1)))
    watched.replicated()
    watched.replace_unnoticed()
    with watched.sentinel.client() as client:
        client.execute_command("SENTINEL", "REMOVE", "Orders")
        client.execute_command("SENTINEL", "MONITOR", "Orders", "127.0.0.1", f"{watched.primary.port}", "1")
    others = watched.resources.enter_context(Sentinel(watched.replica, "Orders", "sentinel config-epoch Orders 7"))
    url = watched.url().replace("/Orders", f",127.0.0.1:{others.port}/Orders")
    assert isinstance(target._on, OneServer)
    for server in (target._on.batches, target._on.store):
        server.address = Address(RedisOptions(url=url))
    with pytest.raises(TransientError, match="has another primary now; connecting to it"):
        target.recheck([table()])
    assert target.write(batch(put({"pk": "b"}, 2))) == Outcome()
    assert set(kit.documents(watched.replica, table())) == {("a",), ("b",)}
    assert set(kit.documents(watched.primary, table())) == {("a",)}


def test_sentinels_that_never_respond_hold_a_run_that_has_its_primary_for_a_second(watched: Watched) -> None:
    """As where packets to them are dropped; each recheck asks them all at once, and once."""
    target = watched.opened()
    silent = [watched.resources.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
    hosts = ",".join(f"127.0.0.1:{one.getsockname()[1]}" for one in silent)
    assert isinstance(target._on, OneServer)
    for server in (target._on.batches, target._on.store):
        server.address = Address(RedisOptions(url=f"redis+sentinel://{hosts}/Orders"))
    began = time.monotonic()
    assert target.recheck([table()]) == []
    assert time.monotonic() - began < 3


def test_a_run_does_not_stay_with_an_old_primary_because_the_new_one_may_not_be_written_to(watched: Watched) -> None:
    target = watched.opened()
    with watched.sentinel.client() as client:
        client.execute_command("SENTINEL", "REMOVE", "Orders")
        client.execute_command("SENTINEL", "MONITOR", "Orders", "192.0.2.1", "6379", "1")
    error = refused(lambda: target.recheck([table()]))
    assert isinstance(error, ConfigError)
    assert "without TLS items would be sent there unencrypted" in str(error)


def test_sentinels_that_do_not_respond_do_not_disturb_a_run_that_has_its_primary(watched: Watched) -> None:
    target = watched.opened()
    target.write(batch(put({"pk": "a"}, 1)))
    watched.sentinel.kill()
    assert target.recheck([table()]) == []
    assert target.write(batch(put({"pk": "b"}, 2))) == Outcome()


def test_a_primary_that_was_replaced_between_two_runs_is_another_one_unless_it_is_trusted(watched: Watched) -> None:
    first = watched.opened()
    first.write(batch(put({"pk": "a"}, 1)))
    before = first.identities([table()])
    watched.replicated()
    watched.fail_over()
    assert watched.target(trust_restarts=True).identities([table()]) == before
    assert watched.target().identities([table()]) != before


def test_a_server_that_the_sentinel_still_calls_the_primary_is_not_written_to_as_a_replica(watched: Watched) -> None:
    target = watched.opened()
    with watched.primary.client() as client:
        client.replicaof("127.0.0.1", "1")
        client.config_set("replica-read-only", "no")  # it would accept writes, and drop them when it synchronizes
        client.execute_command("CLIENT", "KILL", "TYPE", "normal")
    with pytest.raises(TransientError, match="read-only replica now; waiting"):
        target.write(batch(put({"pk": "a"}, 1)))
    assert kit.documents(watched.primary, table()) == {}


def refused(call: Callable[[], object]) -> ReplicatorError:
    with pytest.raises(ReplicatorError) as error:
        call()
    return error.value


def test_another_sentinel_is_asked_if_one_does_not_respond(watched: Watched) -> None:
    url = watched.url().replace("//", f"//127.0.0.1:{free_port()},")
    target = watched.opened(url=url)
    assert target.write(batch(put({"pk": "a"}, 1))) == Outcome()


def test_sentinels_that_do_not_respond_are_waited_for(watched: Watched) -> None:
    port = free_port()
    error = refused(lambda: watched.opened(url=f"redis+sentinel://127.0.0.1:{port}/Orders"))
    assert isinstance(error, TransientError)
    assert str(error).startswith(f"the Sentinel at 127.0.0.1:{port} cannot be reached")


def test_a_name_that_no_sentinel_knows_is_refused(watched: Watched) -> None:
    target = watched.target(url=watched.url("orders"))
    problem = f"the Sentinels at 127.0.0.1:{watched.sentinel.port} know no primary named orders; correct the name"
    error = refused(lambda: target.check([table()]))
    assert isinstance(error, ConfigError)
    assert str(error).startswith(problem)


def test_a_login_of_the_sentinels_is_theirs(watched: Watched) -> None:
    with watched.sentinel.client() as client:
        client.execute_command("ACL", "SETUSER", "default", "on", ">watcher")
    error = refused(watched.opened)
    assert isinstance(error, NotAuthenticated)
    assert "Correct target.sentinel_username and target.sentinel_password" in str(error)
    target = watched.opened(sentinel_password="watcher")
    assert target.write(batch(put({"pk": "a"}, 1))) == Outcome()


def test_a_primary_on_another_host_gets_nothing_unencrypted(watched: Watched) -> None:
    with watched.sentinel.client() as client:
        client.execute_command("SENTINEL", "MONITOR", "remote", "192.0.2.1", "6379", "1")
    url = watched.url("remote")
    error = refused(lambda: watched.target(url=url).check([table()]))
    assert isinstance(error, ConfigError)
    assert "without TLS items would be sent there unencrypted; use rediss+sentinel://" in str(error)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("redis+sentinel://a:1,B/Main/2", Sentinels((("a", 1), ("b", 26379)), "Main", 2, encrypted=False)),
        ("rediss+sentinel://[::1]:26379/main", Sentinels((("::1", 26379),), "main", 0, encrypted=True)),
        ("redis://a:1/0", None),
        ("redis+sentinel://a:1", None),
        ("redis+sentinel://a:x/main", None),
        ("redis+sentinel://a:0/main", None),
        ("redis+sentinel://a,/main", None),
        ("redis+sentinel:///main", None),
        ("redis+sentinel://a/main/x", None),
        ("redis+sentinel://a/main?x=1", None),
    ],
)
def test_a_url_names_sentinels_and_the_primary(url: str, found: Sentinels | None) -> None:
    assert sentinels_of(url) == found


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"url": "redis+sentinel://127.0.0.1"}, "must have the form rediss+sentinel://host:26379,host:26379/primary"),
        ({"url": "redis+sentinel://me:secret@127.0.0.1/main"}, "contains a login"),
        ({"url": "redis+sentinel://127.0.0.1,me:secret@127.0.0.1/main"}, "contains a login"),
        ({"url": "unix://me:secret@/run/redis.sock"}, "contains a login"),
        ({"url": "redis+sentinel://127.0.0.1,example.com/main"}, "is redis:// to another host"),
        ({"url": "redis://127.0.0.1", "sentinel_password": "x"}, "url names no Sentinel"),
        ({"url": "redis+sentinel://127.0.0.1/main", "sentinel_username": "x"}, "needs sentinel_password"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], problem: str) -> None:
    found, problems = destination({"type": "redis", "table": "contract", **options})
    assert found is None
    assert problem in str(problems)


def test_the_path_of_a_socket_may_contain_an_at_sign() -> None:
    url = "unix:///run/redis@main/redis.sock"
    assert destination({"type": "redis", "table": "orders", "url": url})[1] == []
