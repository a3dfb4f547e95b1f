"""A real Redis Cluster: slots that move, primaries that are replaced and lose writes, and what is refused."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import pytest
from redis.exceptions import ConnectionError, MovedError, RedisError

from connectors.redis import Redis, routing
from connectors.redis.cluster import SLOTS, Seeds, View, latest, seeds_of, slot_of, tags, view
from connectors.redis.connection import Sent, Server
from connectors.redis.errors import redirected, unanswered
from connectors.redis.slots import SlotTally, tallies
from replicator.batch import Batch, Outcome
from replicator.config.target import destination
from replicator.errors import (
    ConfigError,
    GapFound,
    NotAuthenticated,
    NotPermitted,
    Postponed,
    TransientError,
    Unfinished,
)
from replicator.identity import other_tables, recreated_tables
from replicator.target.contract import Table
from replicator.target.in_doubt import TRUSTED
from replicator.target.verification import Comparison, CursorExpired
from replicator.testing.contract import at, batch, put, remove, table
from replicator.testing.contract.kit import PK, built, exhaust
from replicator.testing.servers.programs import ServerMissing, free_port
from replicator.version import FIRST_EPOCH
from tests.connectors.redis import redis_kit as kit
from tests.end_to_end.pipeline import eventually
from tests.servers.redis import RedisCluster, RedisServer, valkey
from tests.servers.starting import not_tested, started

Build = Callable[..., Redis]


@pytest.fixture
def build() -> Iterator[Build]:
    """Of a cluster or a server, and further options."""
    with ExitStack() as resources:

        def make(of: RedisCluster | RedisServer, **options: Any) -> Redis:
            target = built({**kit.options(of), **options})
            assert isinstance(target, Redis)
            resources.callback(target.close)
            return target

        yield make


@pytest.fixture
def replicated() -> Iterator[RedisCluster]:
    """Three primaries, each with a replica, however old what it has received is."""
    with ExitStack() as resources:
        try:
            options = ("--cluster-replica-validity-factor", "0")
            yield resources.enter_context(RedisCluster(*options))
        except ServerMissing as e:
            not_tested(f"Redis is missing: {e}")


@pytest.fixture
def alone() -> Iterator[RedisCluster]:
    """One primary that has all slots."""
    with ExitStack() as resources:
        try:
            yield resources.enter_context(RedisCluster(primaries=1, replicas=0))
        except ServerMissing as e:
            not_tested(f"Redis is missing: {e}")


def opened(target: Redis, epoch: int = FIRST_EPOCH) -> Redis:
    target.open([table()], epoch)
    return target


def ids_of(cluster: RedisCluster, primary: RedisServer, number: int, without: Sequence[str] = ()) -> list[str]:
    """Keys of items whose documents are on this primary."""
    held = {slot for first, last in cluster.slots(primary) for slot in range(first, last + 1)}
    names = (str(n) for n in count())
    return [next(n for n in names if slot_of(b"contract:%b" % n.encode()) in held) for _ in range(number)]


def slot(pk: str) -> int:
    return slot_of(f"contract:{pk}".encode())


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


def lost(target: Redis) -> str:
    with pytest.raises(GapFound) as gap:
        target.recheck([table()])
    return gap.value.reason


def received(primary: RedisServer) -> None:
    """Until its replica has everything that it has now."""
    with primary.client() as client:
        wanted = client.info("replication")["master_repl_offset"]

        def has_all() -> bool:
            replicas = [one for name, one in client.info("replication").items() if re.fullmatch(r"slave\d+", name)]
            return any(one["state"] == "online" and one["offset"] >= wanted for one in replicas)

        assert eventually(lambda: has_all() or None, "the replica has everything")


# failovers


def test_what_a_new_primary_has_received_is_complete_and_the_run_goes_on_there(
    replicated: RedisCluster, build: Build
) -> None:
    target = opened(build(replicated))
    target.write(batch(*(put({"pk": f"{n}"}, 1) for n in range(100))))
    for primary in replicated.primaries():
        received(primary)
    replicated.fail_over(replicated.primaries()[0])
    given = batch(*(put({"pk": f"{n}"}, 2) for n in range(50, 150)))
    assert until_written(target, given) == Outcome()
    assert len(kit.documents(replicated, table())) == 150
    before = build(replicated).identities([table()])
    assert target.recheck([table()]) == []
    after = build(replicated).identities([table()])
    assert list(recreated_tables(before, after)), "until the run has compared, a replaced primary may lack writes"
    assert after == target.identities([table()])


def test_what_one_new_primary_had_not_received_is_a_gap_although_the_others_have_theirs(
    replicated: RedisCluster, build: Build
) -> None:
    """For this run and for the next; the primary had acknowledged it."""
    target = opened(build(replicated))
    first, second, third = replicated.primaries()
    here, there = ids_of(replicated, first, 2), ids_of(replicated, second, 2)
    target.write(batch(put({"pk": here[0]}, 1), put({"pk": there[0]}, 1)))
    received(first)
    before = target.identities([table()])
    replica = replicated.replica_of(first)
    replica.pause()
    with first.client() as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "replica")
    assert target.write(batch(put({"pk": here[1]}, 2), put({"pk": there[1]}, 2))) == Outcome()
    first.kill()
    replica.resume()
    replicated.until("the replica takes over", lambda: replica in replicated.primaries(third))
    assert until_written(target, batch(put({"pk": here[0]}, 3))) == Outcome()
    assert set(kit.documents(replicated, table())) == {(pk,) for pk in (here[0], *there)}
    assert "a replica without them took over" in lost(target)
    later = build(replicated, trust_restarts=True)
    assert list(recreated_tables(before, later.identities([table()])))


def test_a_primary_that_was_replaced_between_two_runs_is_another_one_unless_it_is_trusted(
    replicated: RedisCluster, build: Build
) -> None:
    first = opened(build(replicated))
    first.write(batch(put({"pk": "a"}, 1)))
    before = first.identities([table()])
    for primary in replicated.primaries():
        received(primary)
    replicated.fail_over(replicated.primaries()[2])
    trusting = build(replicated, trust_restarts=True)
    assert trusting.identities([table()]) == before
    assert list(recreated_tables(before, build(replicated).identities([table()])))
    opened(trusting)
    assert build(replicated).identities([table()]) == before, "the run has noted the new primary"


def test_a_slot_that_moved_to_a_primary_whose_replica_had_not_received_it_is_a_gap(
    replicated: RedisCluster, build: Build
) -> None:
    """Its writes were counted while another primary had it: the count moves with the slot, and is lost with it."""
    target = opened(build(replicated))
    source, destination, witness = replicated.primaries()
    (pk,) = ids_of(replicated, source, 1)
    target.write(batch(put({"pk": pk}, 1)))
    assert target.recheck([table()]) == []
    received(destination)
    replica = replicated.replica_of(destination)
    replica.pause()
    with destination.client() as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "replica")
    replicated.move([slot(pk)], source, destination)
    destination.kill()
    replica.resume()
    replicated.until("the replica takes over", lambda: replica in replicated.primaries(witness))
    given = batch(*(put({"pk": f"{n}"}, 2) for n in range(20) if f"{n}" != pk))
    until_settled(replicated, slot(pk), replica)
    assert until_written(target, given) == Outcome()
    assert (pk,) not in kit.documents(replicated, table())
    assert "a replica without them took over" in lost(target)


@pytest.mark.parametrize("when", ["at once", "after the run has looked", "after the next run has begun"])
def test_a_slot_whose_count_reached_a_replica_and_whose_documents_did_not_is_a_gap(
    replicated: RedisCluster, build: Build, when: str
) -> None:
    """Keys move one by one, and the primary that received them dies."""
    target = opened(build(replicated))
    source, destination, witness = replicated.primaries()
    (pk,) = ids_of(replicated, source, 1)
    target.write(batch(put({"pk": pk}, 1)))
    assert target.recheck([table()]) == []
    assert isinstance(target._on.tally, SlotTally)
    key, before = tallies(target._on.tally.pipeline)[slot(pk)], target.identities([table()])
    replicated.open_slot(slot(pk), source, destination)
    with source.client() as client:
        client.execute_command("MIGRATE", "127.0.0.1", destination.port, "", 0, 10_000, "KEYS", key)
    received(destination)
    replica = replicated.replica_of(destination)
    replica.pause()
    with destination.client() as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "replica")
    replicated.move_keys(slot(pk), source, destination)
    replicated.close_slot(slot(pk), source, destination)
    if when == "after the run has looked":
        assert target.recheck([table()]) == []
    elif when == "after the next run has begun":
        target.close()
        target = opened(build(replicated))
    destination.kill()
    replica.resume()
    replicated.until("the replica takes over", lambda: replica in replicated.primaries(witness))
    until_settled(replicated, slot(pk), replica)
    assert until_written(target, batch(*(put({"pk": f"{n}"}, 2) for n in range(20) if f"{n}" != pk))) == Outcome()
    assert (pk,) not in kit.documents(replicated, table())
    was_counted = "a replica without them took over"
    was_not = f"may have lost documents: a node that gave or received slots ({slot(pk)}) restarted, or was replaced"
    assert (was_not if when == "at once" else was_counted) in lost(target)
    later = build(replicated, trust_restarts=True)
    assert list(recreated_tables(before, later.identities([table()])))


def until_settled(cluster: RedisCluster, number: int, owner: RedisServer) -> None:
    """All primaries name this owner of a slot, as after redis-cli --cluster fix."""

    def settled() -> bool:
        try:
            for node in cluster.primaries(owner):
                with node.client() as client:
                    client.execute_command("CLUSTER", "SETSLOT", number, "NODE", cluster.ids[owner])
        except RedisError:  # one has yet to hear that the owner is a primary
            return False
        return True

    cluster.until("all primaries name the owner", settled)


def test_a_replica_of_the_former_primary_that_takes_over_from_the_one_that_received_the_slot_is_no_proof(
    replicated: RedisCluster, build: Build
) -> None:
    """It followed the slot, has its count, and lacks its documents; the former primary lives on."""
    target = opened(build(replicated))
    source, destination, witness = replicated.primaries()
    (pk,) = ids_of(replicated, source, 1)
    target.write(batch(put({"pk": pk}, 1)))
    assert target.recheck([table()]) == []
    assert isinstance(target._on.tally, SlotTally)
    key = tallies(target._on.tally.pipeline)[slot(pk)]
    other, replica = replicated.replica_of(destination), replicated.replica_of(source)
    other.kill()
    replicated.replicate(replica, destination)
    replicated.until("it follows", replicated.is_up)
    replicated.open_slot(slot(pk), source, destination)
    with source.client() as client:
        client.execute_command("MIGRATE", "127.0.0.1", destination.port, "", 0, 10_000, "KEYS", key)
    received(destination)
    replica.pause()
    with destination.client() as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "replica")
    replicated.move_keys(slot(pk), source, destination)
    replicated.close_slot(slot(pk), source, destination)
    destination.kill()
    replica.resume()
    replicated.until("the replica takes over", lambda: replica in replicated.primaries(witness))
    until_settled(replicated, slot(pk), replica)
    assert until_written(target, batch(*(put({"pk": f"{n}"}, 2) for n in range(20) if f"{n}" != pk))) == Outcome()
    assert (pk,) not in kit.documents(replicated, table())
    assert f"a node that gave or received slots ({slot(pk)}) restarted, or was replaced by a replica" in lost(target)


@pytest.mark.parametrize("which", ["source", "destination"])
@pytest.mark.parametrize("has_looked", [True, False])
def test_a_node_that_hands_over_to_its_replica_while_its_slot_moves_loses_nothing(
    replicated: RedisCluster, build: Build, which: str, has_looked: bool
) -> None:
    """As operators replace nodes (CLUSTER FAILOVER): the new primary has everything, and the old one says so."""
    target = opened(build(replicated))
    source, destination, _ = replicated.primaries()
    names = ids_of(replicated, source, 3)
    target.write(batch(*(put({"pk": pk}, 1) for pk in names)))
    assert target.recheck([table()]) == []
    replicated.open_slot(slot(names[0]), source, destination)
    if has_looked:
        assert target.recheck([table()]) == []
    replicated.move_keys(slot(names[0]), source, destination)
    replicated.close_slot(slot(names[0]), source, destination)
    replicated.hand_over(source if which == "source" else destination)
    assert until_written(target, batch(*(put({"pk": pk}, 2) for pk in names))) == Outcome()
    assert eventually(lambda: _rechecks(target), "it goes on")
    assert set(kit.documents(replicated, table())) == {(pk,) for pk in names}


def test_a_replica_that_joined_and_took_over_within_a_minute_has_all_counts_and_is_no_gap(
    replicated: RedisCluster, build: Build
) -> None:
    """A node is replaced by another machine; no slot moves."""
    target = opened(build(replicated))
    target.write(batch(*(put({"pk": f"{n}"}, 1) for n in range(100))))
    assert target.recheck([table()]) == []
    first, new = replicated.primaries()[0], replicated.add()
    replicated.replicate(new, first)
    replicated.until("it has everything", replicated.is_up)
    replicated.hand_over(first, new)
    assert until_written(target, batch(*(put({"pk": f"{n}"}, 2) for n in range(100)))) == Outcome()
    assert eventually(lambda: _rechecks(target), "it goes on")


def test_a_node_that_cannot_be_asked_when_it_begins_to_receive_a_slot_is_no_gap_once_it_can(build: Build) -> None:
    """It joined without the user, say, whom only its operator can create there."""
    with RedisCluster(primaries=1, replicas=0) as cluster:
        target = opened(build(cluster))
        target.write(batch(put({"pk": "a"}, 1)))
        assert target.recheck([table()]) == []
        (source,), new = cluster.primaries(), cluster.add()
        with new.client() as client:
            client.execute_command("ACL", "SETUSER", "default", "-info")
            cluster.open_slot(slot("a"), source, new)
            assert target.recheck([table()]) == []
            client.execute_command("ACL", "SETUSER", "default", "+info")
        cluster.move_keys(slot("a"), source, new)
        assert eventually(lambda: _rechecks(target), "it goes on")
        cluster.close_slot(slot("a"), source, new)
        assert until_written(target, batch(put({"pk": "a"}, 2))) == Outcome()
        assert eventually(lambda: _rechecks(target), "it goes on")


# slots that move


def test_writes_follow_slots_that_have_moved_and_nothing_is_missing(cluster: RedisCluster, build: Build) -> None:
    target = opened(build(cluster))
    source, destination, _ = cluster.primaries()
    names = ids_of(cluster, source, 5)
    target.write(batch(*(put({"pk": pk}, 1) for pk in names)))
    before = target.identities([table()])
    moved = [slot(pk) for pk in names[:3]]
    cluster.move(moved, source, destination)
    try:
        assert target.write(batch(*(put({"pk": pk, "n": 2}, 2) for pk in names))) == Outcome()
        assert target.recheck([table()]) == []
        assert set(kit.documents(cluster, table())) == {(pk,) for pk in names}
        assert build(cluster).identities([table()]) == before
        assert exhaust(lambda: target.sweep(table(), at(3), [])) == 5
    finally:
        cluster.move(moved, destination, source)


def test_the_same_holds_on_valkey(build: Build) -> None:
    for cluster in started("Valkey", lambda: RedisCluster(replicas=0, program=valkey()), ServerMissing):
        target = opened(build(cluster))
        source, destination, _ = cluster.primaries()
        names = ids_of(cluster, source, 5)
        target.write(batch(*(put({"pk": pk}, 1) for pk in names)))
        cluster.move([slot(pk) for pk in names[:3]], source, destination)
        assert target.write(batch(*(put({"pk": pk, "n": 2}, 2) for pk in names))) == Outcome()
        assert target.recheck([table()]) == []
        assert sorted(target.walk(table(), None).ids) == sorted((pk,) for pk in set(names))
        assert exhaust(partial(swept, target)) == len(set(names))
        assert kit.documents(cluster, table()) == {}


def test_while_the_keys_of_a_slot_are_on_two_nodes_its_writes_wait_and_others_do_not(
    cluster: RedisCluster, build: Build
) -> None:
    target = opened(build(cluster))
    source, destination, _ = cluster.primaries()
    moving, stays = ids_of(cluster, source, 2)
    target.write(batch(put({"pk": moving}, 1), put({"pk": stays}, 1)))
    cluster.open_slot(slot(moving), source, destination)
    try:
        assert target.write(batch(put({"pk": moving}, 2))) == Outcome(), "all its keys are where they were"
        cluster.move_keys(slot(moving), source, destination, count=1)
        with pytest.raises(TransientError, match=r"is moving keys to another node; waiting .*redis-cli --cluster fix"):
            target.write(batch(put({"pk": moving}, 3), put({"pk": stays}, 3)))
        assert target.compare(table(), [put({"pk": stays}, 3)]) == [Comparison(at(3))]
        cluster.move_keys(slot(moving), source, destination)
        given = batch(put({"pk": moving, "n": 3}, 3), put({"pk": stays}, 3))
        assert target.write(given) == Outcome(), "all of them are at the other node, which is asked"
        assert target.compare(table(), [put({"pk": moving, "n": 3}, 3)]) == [Comparison(at(3))]
    finally:
        cluster.move_keys(slot(moving), source, destination)
        cluster.close_slot(slot(moving), source, destination)
    assert target.recheck([table()]) == []
    assert target.write(batch(put({"pk": moving}, 4))) == Outcome()
    cluster.move([slot(moving)], destination, source)


def test_what_goes_through_all_keys_waits_while_slots_move(cluster: RedisCluster, build: Build) -> None:
    target = opened(build(cluster))
    source, destination, _ = cluster.primaries()
    target.write(batch(put({"pk": "a"}, 1)))
    cluster.open_slot(77, source, destination)
    try:
        for walk in (lambda: target.sweep(table(), at(2), []), lambda: target.walk(table(), None)):
            with pytest.raises(Postponed, match=r"is moving slots \(now 77\): what goes through all keys waits"):
                walk()
        assert target.recheck([table()]) == []
    finally:
        for node in (source, destination):
            with node.client() as client:
                client.execute_command("CLUSTER", "SETSLOT", 77, "STABLE")
    assert exhaust(lambda: target.sweep(table(), at(2), [])) == 1


def test_a_sweep_misses_nothing_that_moves_to_a_node_where_it_has_been(
    cluster: RedisCluster, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slot moves when the sweep is done with the first node, and is at the second."""
    target = opened(build(cluster))
    first, *others = sorted(cluster.primaries(), key=lambda node: node.port)
    (pk,) = ids_of(cluster, others[1], 1)
    target.write(batch(put({"pk": pk}, 1)))
    scans: list[bytes] = []
    store = target._on.store
    plain = store.scan

    def moving(pattern: bytes, cursor: bytes, number: bytes) -> Any:
        if cursor.startswith(b"1:") and not scans:
            scans.append(cursor)
            cluster.move([slot(pk)], others[1], first)
        return plain(pattern, cursor, number)

    monkeypatch.setattr(store, "scan", moving)
    try:
        assert exhaust(lambda: swept(target)) == 1
        assert scans
        assert kit.documents(cluster, table()) == {}
    finally:
        cluster.move([slot(pk)], first, others[1])


def swept(target: Redis) -> int:
    try:
        return target.sweep(table(), at(9), [])
    except TransientError:
        return swept(target)


def test_a_cursor_of_before_slots_moved_has_expired(
    cluster: RedisCluster, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.redis.verification._PIECE", 1)
    target = opened(build(cluster))
    target.write(batch(*(put({"pk": f"{n}"}, 1) for n in range(50))))
    walked = target.walk(table(), None)
    assert walked.cursor is not None
    assert target.walk(table(), walked.cursor).ids
    source, destination, _ = cluster.primaries()
    cluster.move([9], source, destination)
    try:
        with pytest.raises(CursorExpired):
            target.walk(table(), walked.cursor)
    finally:
        cluster.move([9], destination, source)


def test_a_node_that_joins_during_a_run_gets_slots_and_writes(alone: RedisCluster, build: Build) -> None:
    target = opened(build(alone))
    target.write(batch(put({"pk": "a"}, 1)))
    before = target.identities([table()])
    (first,) = alone.primaries()
    second = alone.add()
    alone.move([slot("a"), slot("b")], first, second)
    assert target.write(batch(put({"pk": "a", "n": 2}, 2), put({"pk": "b"}, 2), put({"pk": "c"}, 2))) == Outcome()
    assert target.recheck([table()]) == []
    assert not list(recreated_tables(before, build(alone).identities([table()])))
    with second.client() as client:
        assert sorted(client.keys("contract:*")) == [b"contract:a", b"contract:b"]


def test_an_address_that_was_given_to_a_node_of_another_cluster_is_not_written_to(build: Build) -> None:
    """The other one has a higher epoch, and all slots."""
    with RedisCluster(primaries=2, replicas=0) as cluster:
        target = opened(build(cluster))
        target.write(batch(put({"pk": "a"}, 1)))
        assert target.recheck([table()]) == []
        gone = cluster.nodes[1]
        gone.kill()
        other = RedisServer("--cluster-enabled", "yes", "--cluster-port", str(free_port()), port=gone.port)
        with other, other.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", 50)
            eventually(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"), "it is up")
            client.set("contract:a", "of another application")
            for n in range(4):
                with pytest.raises(TransientError):
                    target.write(batch(put({"pk": f"{n}"}, 2), put({"pk": "a"}, 2)))
                with pytest.raises(TransientError, match=r"belongs to another cluster now|is down"):
                    target.recheck([table()])
            assert client.keys("*") == [b"contract:a"]
            assert client.get("contract:a") == b"of another application"


def test_a_url_of_nodes_of_different_clusters_is_refused(
    cluster: RedisCluster, alone: RedisCluster, build: Build
) -> None:
    ports = f"127.0.0.1:{cluster.nodes[0].port},127.0.0.1:{alone.nodes[0].port}"
    with pytest.raises(ConfigError, match="names nodes of different clusters"):
        build(cluster, url=f"redis+cluster://{ports}").check([table()])


def test_a_slot_that_only_a_node_without_slots_reports_holds_up_a_sweep(build: Build) -> None:
    """Its source was replaced meanwhile, by a replica that does not know that the slot was moving."""
    with RedisCluster("--cluster-replica-validity-factor", "0", primaries=1, replicas=1) as cluster:
        target = opened(build(cluster))
        target.write(batch(put({"pk": "a"}, 1)))
        source = cluster.primaries()[0]
        new = cluster.add()
        cluster.open_slot(slot("a"), source, new)
        assert target.recheck([table()]) == []
        with source.client() as client:
            client.execute_command("CLUSTER", "SETSLOT", slot("a"), "STABLE")
        with pytest.raises(Postponed, match=r"is moving slots \(now "):
            target.sweep(table(), at(9), [])
        new.pause()
        try:
            with pytest.raises(TransientError):
                build(cluster, timeout=1).walk(table(), None)
        finally:
            new.resume()
        with new.client() as client:
            client.execute_command("CLUSTER", "SETSLOT", slot("a"), "STABLE")
        assert exhaust(lambda: swept(target)) == 1


def test_a_sweep_waits_until_all_primaries_agree_which_of_them_has_which_slots(
    cluster: RedisCluster, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them has not heard yet that a slot has moved; its epoch is that of the others."""
    target = opened(build(cluster))
    target.write(batch(put({"pk": "a"}, 1)))
    store, seen = target._on.store, routing._view_of
    assert isinstance(store, routing.Cluster)
    store.refresh()
    first = store.view.primaries[0]

    def late(responses: Sequence[Any], place: Any) -> View:
        one = seen(responses, place)
        if place != first:
            return one
        nodes = {id: replace(node, slots=((9, 9), *node.slots)) for id, node in one.nodes.items() if not node.of}
        return replace(one, nodes=nodes)

    with monkeypatch.context() as patched:
        patched.setattr(routing, "_view_of", late)
        with pytest.raises(Postponed, match="do not agree yet which of them has which slots"):
            target.sweep(table(), at(9), [])
    assert exhaust(lambda: swept(target)) == 1


# a cluster that is down


def test_a_cluster_that_is_down_is_waited_for_and_nothing_is_lost(cluster: RedisCluster, build: Build) -> None:
    target = opened(build(cluster))
    gone, other, _ = cluster.primaries()
    (pk,) = ids_of(cluster, other, 1)
    target.write(batch(put({"pk": pk}, 1)))
    gone.kill()

    def is_down() -> bool:
        with other.client() as client:
            info: Any = client.execute_command("CLUSTER", "INFO")
        return b"cluster_state:fail" in info

    try:
        cluster.until("the cluster is down", is_down)
        with pytest.raises(TransientError, match="cannot be reached"):
            target.write(batch(put({"pk": pk}, 2)))
    finally:
        gone.start()
    cluster.until("the cluster is up", cluster.is_up)
    assert until_written(target, batch(put({"pk": pk}, 3))) == Outcome()
    assert target.recheck([table()]) == []


def test_slots_without_a_primary_are_named_by_check_and_waited_for_by_a_run(alone: RedisCluster, build: Build) -> None:
    target = opened(build(alone))
    with alone.nodes[0].client() as client:
        client.execute_command("CLUSTER", "DELSLOTS", slot("a"))
        assert "has no primary for 1 of its slots" in str(build(alone).check([table()]))
        with pytest.raises(TransientError, match="belongs to a cluster that is down: slots have no primary"):
            target.write(batch(put({"pk": "a"}, 1)))
        client.execute_command("CLUSTER", "ADDSLOTS", slot("a"))
    assert until_written(target, batch(put({"pk": "a"}, 1))) == Outcome()


# what primaries lose


@pytest.mark.parametrize("during", [True, False])
def test_one_primary_that_is_emptied_is_a_gap_also_between_two_runs(
    cluster: RedisCluster, build: Build, during: bool
) -> None:
    target = opened(build(cluster))
    target.write(batch(put({"pk": "a"}, 1)))
    assert target.recheck([table()]) == []
    before = target.identities([table()])
    emptied = next(n for n in cluster.primaries() if not holds(n, layout_note()))
    with emptied.client() as client:
        client.flushall()
    if during:
        assert "it was emptied" in lost(target)
    later = build(cluster)
    assert list(recreated_tables(before, later.identities([table()])))
    opened(later, FIRST_EPOCH + 1)
    assert later.recheck([table()]) == []
    assert later.identities([table()]) == build(cluster).identities([table()])


def test_an_open_that_is_cut_off_and_repeated_finds_no_loss_of_its_own(
    cluster: RedisCluster, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = build(cluster)
    with monkeypatch.context() as patched:
        cut_behind_tallies(patched)
        with pytest.raises(TransientError):
            target.open([table()], FIRST_EPOCH)
        target.open([table()], FIRST_EPOCH)
    assert target.recheck([table()]) == []


@pytest.mark.parametrize("note", [True, False])
def test_a_primary_that_is_emptied_while_a_run_resumes_is_a_gap_also_if_its_open_is_repeated(
    cluster: RedisCluster, build: Build, monkeypatch: pytest.MonkeyPatch, note: bool
) -> None:
    """``note``: whether it has the table's note."""
    opened(build(cluster)).write(batch(put({"pk": "a"}, 1)))
    target = build(cluster)
    target.identities([table()])
    emptied = next(node for node in cluster.primaries() if holds(node, layout_note()) == note)
    with emptied.client() as client:
        client.flushall()
    with monkeypatch.context() as patched:
        cut_behind_tallies(patched)
        with pytest.raises(TransientError):
            target.open([table()], FIRST_EPOCH)
        target.open([table()], FIRST_EPOCH)
    bound = target.identities([table()])
    assert list(recreated_tables(bound, build(cluster).identities([table()]))), "also if the run is killed here"
    assert "it was emptied" in lost(target)
    later = opened(build(cluster), FIRST_EPOCH + 1)
    assert later.recheck([table()]) == []
    assert later.identities([table()]) == build(cluster).identities([table()])


def cut_behind_tallies(patched: pytest.MonkeyPatch) -> None:
    """The first response to commands that make them is lost."""
    plain, cut = routing.Cluster.keyed, count()

    def keyed(self: routing.Cluster, *commands: Sequence[bytes]) -> list[Any]:
        responses = plain(self, *commands)
        if commands and commands[0][0] == b"HSETNX" and next(cut) == 0:
            raise TransientError("closed the connection")
        return responses

    patched.setattr(routing.Cluster, "keyed", keyed)


def test_a_copy_in_another_cluster_is_another_table_and_is_not_taken_for_a_recreated_one(
    cluster: RedisCluster, alone: RedisCluster, build: Build
) -> None:
    here, there = (opened(build(one)).identities([table()]) for one in (cluster, alone))
    assert other_tables(here, there) is not None
    assert (
        other_tables(
            here, build(cluster, url=f"redis+cluster://127.0.0.1:{cluster.nodes[2].port}").identities([table()])
        )
        is None
    )


@pytest.mark.parametrize("begins", [False, True])
def test_a_cluster_that_was_emptied_and_lost_the_node_that_it_was_called_by_is_the_same_one(
    build: Build, begins: bool
) -> None:
    """Also if the url named that node. ``begins``: the note is made again, and the run is killed before it says so."""
    with RedisCluster(replicas=0) as cluster:
        before = opened(build(cluster)).identities([table()])
        gone = min(cluster.nodes, key=lambda node: cluster.ids[node])
        others = [node for node in cluster.nodes if node is not gone]
        cluster.empty()
        cluster.move([n for first, last in cluster.slots(gone) for n in range(first, last + 1)], gone, others[0])
        gone.kill()
        for node in others:
            with node.client() as client:
                client.execute_command("CLUSTER", "FORGET", cluster.ids[gone])
        later = build(cluster, url=f"redis+cluster://127.0.0.1:{others[0].port}")
        if begins:
            opened(later)
        now = later.identities([table()])
        assert other_tables(before, now) is None
        assert bool(list(recreated_tables(before, now))) == begins, "or it is gone"
        elsewhere = later.identities([Table("contract", PK, {"prefix": "other:"})])
        assert other_tables(before, elsewhere) is not None


def test_the_plan_names_the_hashes_that_hold_the_counts_of_slots_until_they_are_there(
    cluster: RedisCluster, build: Build
) -> None:
    note, command, comment = build(cluster).plan([table()])
    assert note == "HSET replicator:table:contract: pipeline contract"
    assert comment == "# … and the same for 16,383 other slots, of 16,384: a hash with the count of each"
    key = command.split()[1]
    opened(build(cluster))
    assert build(cluster).plan([table()]) == []
    assert build(cluster).plan([table("second")]) == ["HSET replicator:table:second: pipeline contract"]
    with cluster.client() as client:
        assert client.hexists(key, "id")
        client.delete(key)
    assert build(cluster).plan([table("second")])[1].startswith(f"HSETNX {key} id ")


def layout_note() -> bytes:
    return b"replicator:table:contract:"


def holds(node: RedisServer, key: bytes) -> bool:
    with node.client() as client:
        return key in client.keys("replicator:table:*")


def test_a_primary_that_lost_a_tables_note_is_a_gap_and_the_note_is_made_again(
    cluster: RedisCluster, build: Build
) -> None:
    target = opened(build(cluster))
    target.write(batch(put({"pk": "a"}, 1)))
    before = target.identities([table()])
    with cluster.client() as client:
        client.delete(layout_note())
    assert "it was emptied" in lost(target)
    later = build(cluster)
    assert later.check([table()]) == []
    assert later.epoch([table()]) == FIRST_EPOCH
    assert list(recreated_tables(before, later.identities([table()])))


@pytest.mark.parametrize("quiet", [False, True])
def test_a_primary_that_lost_its_last_writes_is_a_gap_for_this_run_and_the_next(
    alone: RedisCluster, build: Build, quiet: bool
) -> None:
    target, node = opened(build(alone)), alone.nodes[0]
    target.write(batch(put({"pk": "a"}, 1)))
    assert target.recheck([table()]) == []
    before, earlier = target.identities([table()]), kit.kept(node)
    target.write(batch(put({"pk": "b"}, 2)))
    kit.go_back(node, earlier)
    if not quiet:
        assert until_written(target, batch(put({"pk": "b", "n": 3}, 3))) == Outcome()
    assert "a replica without them took over" in lost(target)
    assert list(recreated_tables(before, build(alone).identities([table()])))


def test_a_loss_is_a_gap_also_if_another_process_has_written_to_the_slot_since(
    alone: RedisCluster, build: Build
) -> None:
    run, repair, node = opened(build(alone)), build(alone), alone.nodes[0]
    run.write(batch(put({"pk": "a"}, 1)))
    earlier = kit.kept(node)
    run.write(batch(put({"pk": "a", "n": 2}, 2)))
    kit.go_back(node, earlier)
    opened(repair)
    for n in range(3, 6):
        repair.write(batch(put({"pk": "a", "n": n}, n)))
    assert "a replica without them took over" in lost(run)


def test_a_loss_is_a_gap_for_a_run_that_has_stored_nothing_although_a_command_has_written_since(
    alone: RedisCluster, build: Build
) -> None:
    """The command does not know whether the primary, which restarted, has everything: it hides nothing from the run."""
    first, node = opened(build(alone)), alone.nodes[0]
    earlier = kit.kept(node)
    first.write(batch(put({"pk": "a"}, 1)))
    run = opened(build(alone, trust_restarts=True))
    alone.restart()
    kit.go_back(node, earlier)
    command = opened(build(alone))
    for version in range(2, 5):
        command.write(batch(put({"pk": "a", "n": version}, version)))
    assert "a replica without them took over" in lost(run)


def test_a_run_that_is_killed_before_it_has_noted_its_tables_is_no_gap(alone: RedisCluster, build: Build) -> None:
    killed = build(alone)
    killed._on.prepare("contract", FIRST_EPOCH, begins=True)
    target = opened(build(alone))
    assert target.recheck([table()]) == []


def test_a_password_that_is_changed_during_a_run_is_waited_for(known: RedisCluster, build: Build) -> None:
    target = opened(build(known, username="replicator", password="secret"))
    target.write(batch(put({"pk": "a"}, 1)))
    for node in known.nodes:
        with node.client() as client:
            client.execute_command("ACL", "SETUSER", "replicator", "resetpass", ">other")
    known.cut()
    for _ in range(2):
        with pytest.raises(TransientError, match="It was accepted before, so the password was probably changed"):
            target.write(batch(put({"pk": "a"}, 2)))


def test_what_the_run_before_had_stored_and_a_primary_lost_since_is_a_gap(alone: RedisCluster, build: Build) -> None:
    """Before the new run has stored anything."""
    first, node = opened(build(alone)), alone.nodes[0]
    earlier = kit.kept(node)
    first.write(batch(put({"pk": "a"}, 1)))
    second = opened(build(alone))
    kit.go_back(node, earlier)
    until_written(second, batch(put({"pk": "b"}, 2)))
    assert "a replica without them took over" in lost(second)


def test_what_a_primary_acknowledged_of_a_batch_is_sent_again_if_it_may_have_lost_it(
    alone: RedisCluster, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is cut behind the first half of the responses. Nothing is a gap: the batch was not stored yet."""
    target, node = opened(build(alone)), alone.nodes[0]
    earlier, receive, responses = kit.kept(node), Server.receive, count(1)

    def cut_off(self: Server) -> object:
        if next(responses) > 50:
            self.close()
        return receive(self)

    writes = batch(*(put({"pk": f"{n}"}, 1) for n in range(100)))
    with monkeypatch.context() as patched:
        patched.setattr(Server, "receive", cut_off)
        with pytest.raises(TransientError, match="closed the connection"):
            target.write(writes)
    kit.go_back(node, earlier)
    assert until_written(target, writes) == Outcome()
    assert len(kit.documents(alone, table())) == 100
    assert target.recheck([table()]) == []


def test_what_is_acknowledged_of_a_batch_is_not_sent_again_on_the_same_connections(
    alone: RedisCluster, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that takes long goes on where it was, once this run is known to own the pipeline."""
    target = opened(build(alone))
    writes = batch(*(put({"pk": pk, "text": "x" * 100_000}, 1) for pk in "abc"))
    times = iter([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2 * TRUSTED])
    with monkeypatch.context() as patched:
        patched.setattr("connectors.redis.connection.time.time", lambda: next(times, 2 * TRUSTED))
        with pytest.raises(Unfinished):
            target.write(writes)
    stored = len(kit.documents(alone, table()))
    assert 0 < stored < 3
    assert target.write(writes) == Outcome()
    assert len(kit.documents(alone, table())) == 3
    assert isinstance(target._on.tally, SlotTally)
    assert sum(target._on.tally.own) == 3


def test_a_primary_that_is_replaced_between_two_calls_for_a_slot_keeps_no_part_of_the_batch(
    replicated: RedisCluster, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lives on, and names the new primary, which counts the second call as the one that it lacks."""
    target = opened(build(replicated))
    first = replicated.primaries()[0]
    (one,) = ids_of(replicated, first, 1)
    other = next(f"k{n}" for n in count() if slot(f"k{n}") == slot(one))
    target.write(batch(put({"pk": one}, 1)))
    received(first)
    replica, start = replicated.replica_of(first), Server.start
    replica.pause()
    with first.client() as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "replica")
    replaced: list[bytes] = []

    def is_demoted() -> bool:
        with first.client() as client:
            return bool(client.info("replication")["role"] == "slave")

    def between(self: Server, commands: Sequence[bytes], is_late: Callable[[], bool] = lambda: False) -> Sent:
        if replaced or len(commands) != 3:
            return start(self, commands, is_late)
        begun = start(self, commands[:2], is_late)
        eventually(self.is_ready, "the first call is answered")
        with socket.create_connection(("127.0.0.1", replica.port)) as connection:
            connection.sendall(b"CLUSTER FAILOVER TAKEOVER\r\n")
            replica.resume()
            replaced.append(connection.recv(100))
        replicated.until("it knows that it was replaced", is_demoted)
        rest = start(self, commands[2:], is_late)
        return Sent(begun.left + rest.left, begun.unsent or rest.unsent)

    monkeypatch.setattr(Server, "start", between)
    given = batch(*(put({"pk": pk, "text": "x" * 100_000}, 2) for pk in (one, other)))
    with pytest.raises(TransientError, match="replaced the primary of slot"):
        target.write(given)
    assert replaced == [b"+OK\r\n"]
    assert until_written(target, given) == Outcome()
    assert {id: "text" in document for id, document in kit.documents(replicated, table()).items()} == {
        (one,): True,
        (other,): True,
    }
    replicated.until("the cluster is up", replicated.is_up)
    assert eventually(lambda: _rechecks(target), "it goes on")


def _rechecks(target: Redis) -> bool:
    try:
        return list(target.recheck([table()])) == []
    except TransientError:
        return False


@pytest.mark.parametrize("removal", ["sweep", "repair"])
def test_documents_that_come_back_because_their_removal_was_lost_are_a_gap(
    alone: RedisCluster, build: Build, removal: str
) -> None:
    target, node = opened(build(alone)), alone.nodes[0]
    target.write(batch(put({"pk": "a"}, 1)))
    earlier = kit.kept(node)
    if removal == "sweep":
        assert exhaust(lambda: target.sweep(table(), at(2), [])) == 1
    else:
        assert target.remove(table(), [remove("a", 1)]) == [""]
    kit.go_back(node, earlier)
    assert set(kit.documents(alone, table())) == {("a",)}
    eventually(lambda: _rechecked(target), "the loss is noticed")


def _rechecked(target: Redis) -> bool:
    try:
        target.recheck([table()])
    except TransientError:
        return False
    except GapFound:
        return True
    return False


def test_the_counts_of_processes_that_have_long_ended_are_removed(alone: RedisCluster, build: Build) -> None:
    first = opened(build(alone))
    first.write(batch(put({"pk": "a"}, 1)))
    assert isinstance(first._on.tally, SlotTally)
    key = tallies(first._on.tally.pipeline)[slot("a")]
    with alone.nodes[0].client() as client:
        (own,) = (name for name in client.hkeys(key) if name.startswith(b"of:"))
        client.hset(key, own, "1 1000")
        opened(build(alone)).write(batch(put({"pk": "a"}, 2)))
        assert own not in client.hkeys(key)


# what is refused


def test_a_node_of_a_cluster_without_the_form_for_one_is_refused_by_name(cluster: RedisCluster, build: Build) -> None:
    target = build(cluster.nodes[0])
    problem = r"is a node of a Redis Cluster: write url: rediss\+cluster://HOST:PORT,HOST:PORT"
    with pytest.raises(ConfigError, match=problem):
        target.open([table()], FIRST_EPOCH)


def test_a_server_without_cluster_mode_is_refused_as_a_cluster(server: RedisServer, build: Build) -> None:
    target = build(server, url=f"redis+cluster://127.0.0.1:{server.port}")
    with pytest.raises(ConfigError, match="is not a node of a cluster; write url: redis://"):
        target.check([table()])


def test_nodes_that_do_not_respond_are_told_from_those_that_do(cluster: RedisCluster, build: Build) -> None:
    ports = f"127.0.0.1:{free_port()},127.0.0.1:{cluster.nodes[1].port}"
    assert build(cluster, url=f"redis+cluster://{ports}").check([table()]) == []
    with pytest.raises(TransientError, match="cannot be reached"):
        build(cluster, url=f"redis+cluster://127.0.0.1:{free_port()}").check([table()])


def test_check_and_run_ask_every_node_whether_it_removes_keys(replicated: RedisCluster, build: Build) -> None:
    """A replica, too: it may become the primary."""
    target = opened(build(replicated))
    for node in (replicated.primaries()[1], replicated.replica_of(replicated.primaries()[0])):
        with node.client() as client:
            client.config_set("maxmemory", "1gb")
            client.config_set("maxmemory-policy", "allkeys-lru")
            (problem,) = build(replicated).check([table()])
            assert problem.startswith(f"Redis at 127.0.0.1:{node.port} removes keys when its memory is full")
            assert list(target.recheck([table()])) == [problem]
            client.config_set("maxmemory-policy", "noeviction")
    assert target.recheck([table()]) == []


@pytest.fixture
def known(cluster: RedisCluster) -> Iterator[RedisCluster]:
    """A user on every node."""
    rules = kit.granted_in_cluster()
    for node in cluster.nodes:
        with node.client() as client:
            client.execute_command("ACL", "SETUSER", "replicator", "on", ">secret", *rules)
    yield cluster
    for node in cluster.nodes:
        with node.client() as client:
            client.execute_command("ACL", "DELUSER", "replicator")


def test_the_permissions_of_the_page_are_enough(known: RedisCluster, build: Build) -> None:
    expiring = Table("contract", PK, {"expires": "until"})
    target = build(known, username="replicator", password="secret")
    assert target.check([expiring]) == []
    target.open([expiring], FIRST_EPOCH)
    target.write(batch(put({"pk": "a", "until": 4_000_000_000}, 2), put({"pk": "b"}, 1), tombstones=True))
    target.write(batch(put({"pk": "a"}, 1), remove("b", 2), tombstones=True))
    assert target.recheck([expiring]) == []
    source, destination, _ = known.primaries()
    (pk,) = ids_of(known, source, 1)
    known.open_slot(slot(pk), source, destination)
    known.move_keys(slot(pk), source, destination)
    try:
        with pytest.raises(TransientError, match="is moving keys"):
            target.write(batch(put({"pk": pk}, 3)))
    finally:
        known.close_slot(slot(pk), source, destination)
    assert until_written(target, batch(put({"pk": pk}, 3))) == Outcome()
    known.move([slot(pk)], destination, source)
    assert exhaust(lambda: swept(target)) > 0
    assert target.walk(expiring, None).ids == []


@pytest.mark.parametrize("missing", ["-time", "-evalsha", "-cluster|nodes", "-asking"])
def test_a_permission_that_one_node_does_not_grant_is_found_by_check(
    known: RedisCluster, build: Build, missing: str
) -> None:
    with known.nodes[2].client() as client:
        client.execute_command("ACL", "SETUSER", "replicator", missing)
    with pytest.raises(NotPermitted, match=f"127.0.0.1:{known.nodes[2].port} does not permit what replicator does"):
        build(known, username="replicator", password="secret").check([table()])


def test_a_replica_that_refuses_the_login_ends_no_run_and_is_waited_for_once_it_is_the_primary(build: Build) -> None:
    with RedisCluster("--cluster-replica-validity-factor", "0", primaries=1, replicas=1) as cluster:
        for node in cluster.nodes:
            with node.client() as client:
                rules = kit.granted_in_cluster()
                client.execute_command("ACL", "SETUSER", "replicator", "on", ">secret", *rules)
        target = opened(build(cluster, username="replicator", password="secret"))
        target.write(batch(put({"pk": "a"}, 1)))
        (primary,) = cluster.primaries()
        replica = cluster.replica_of(primary)
        with replica.client() as client:
            client.execute_command("ACL", "SETUSER", "replicator", "resetpass", ">new")
        assert target.recheck([table()]) == []
        with pytest.raises(NotAuthenticated, match=f"127.0.0.1:{replica.port} refuses the login"):
            build(cluster, username="replicator", password="secret").check([table()])
        received(primary)
        with replica.client() as client:
            client.execute_command("CLUSTER", "FAILOVER", "TAKEOVER")
            eventually(lambda: client.info("replication")["role"] == "master", "it takes over")
        for _ in range(3):
            with pytest.raises(TransientError):
                target.write(batch(put({"pk": "a"}, 2)))
        with replica.client() as client:
            client.execute_command("ACL", "SETUSER", "replicator", "resetpass", ">secret")
        assert until_written(target, batch(put({"pk": "a"}, 2))) == Outcome()


def test_replicas_that_do_not_respond_are_asked_at_once_and_not_for_long(
    replicated: RedisCluster, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.redis.notes._ASKING", 0.5)
    target = opened(build(replicated, timeout=30))
    target.recheck([table()])
    silent = [node for node in replicated.nodes if node not in replicated.primaries()]
    for node in silent:
        node.pause()
    try:
        started_at = time.monotonic()
        assert target.recheck([table()]) == []
        assert time.monotonic() - started_at < 5
    finally:
        for node in silent:
            node.resume()


def test_a_user_that_one_node_does_not_know_is_found_by_check(known: RedisCluster, build: Build) -> None:
    with known.nodes[2].client() as client:
        client.execute_command("ACL", "DELUSER", "replicator")
    with pytest.raises(NotAuthenticated, match=f"127.0.0.1:{known.nodes[2].port} refuses the login"):
        build(known, username="replicator", password="secret").check([table()])


def test_a_node_on_another_host_gets_nothing_unencrypted(alone: RedisCluster, build: Build) -> None:
    with alone.nodes[0].client() as client:
        client.config_set("cluster-announce-ip", "192.0.2.1")
    with pytest.raises(ConfigError, match=r"has a node at 192\.0\.2\.1, and without TLS items would be sent there"):
        build(alone).check([table()])


# pure


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("redis+cluster://a:1,B", Seeds((("a", 1), ("b", 6379)), encrypted=False)),
        ("rediss+cluster://[::1]:6379/", Seeds((("::1", 6379),), encrypted=True)),
        ("redis://a:1", None),
        ("redis+cluster://a:x", None),
        ("redis+cluster://a,", None),
        ("redis+cluster:///", None),
        ("redis+cluster://a/2", None),
    ],
)
def test_a_url_names_nodes(url: str, found: Seeds | None) -> None:
    assert seeds_of(url) == found


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"url": "redis+cluster://127.0.0.1/2"}, "must have the form rediss+cluster://host:6379,host:6379"),
        ({"url": "redis+cluster://me:secret@127.0.0.1"}, "contains a login"),
        ({"url": "redis+cluster://127.0.0.1,example.com"}, "is redis:// to another host"),
        ({"url": "redis+cluster://127.0.0.1", "sentinel_password": "x"}, "url names no Sentinel"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: Mapping[str, Any], problem: str) -> None:
    found, problems = destination({"type": "redis", "table": "contract", **options})
    assert found is None
    assert problem in str(problems)


def test_every_slot_has_a_key() -> None:
    assert [slot_of(b"replicator:slot:{%b}:x" % tag) for tag in tags()] == list(range(SLOTS))


NODES = """
a1 10.0.0.1:6379@16379 myself,master - 0 0 4 connected 0-5460 [77->-b2] [78-<-b2]
b2 10.0.0.2:6379@16379,two.example.com master - 0 1 9 connected 5461-16383
c3 10.0.0.3:6379@16379 slave b2 0 1 9 connected
"""


def test_a_view_is_what_a_node_says_and_an_unknown_host_is_the_nodes_own() -> None:
    slots = [
        [5461, 16383, [b"two.example.com", 6379, b"b2"], [b"10.0.0.3", 6379, b"c3", []]],
        [0, 5460, [b"", 6379, b"a1"]],
    ]
    ranges = ((0, 5460, ("one", 6379)), (5461, 16383, ("two.example.com", 6379)))
    seen = view(slots, NODES, "one")
    assert seen == View(ranges, (("10.0.0.3", 6379),), 9, frozenset({77, 78}))
    assert seen.unserved() == 0


def test_a_node_without_the_hostname_that_it_should_be_named_by_is_reached_by_its_address() -> None:
    slots = [[0, 5460, [b"?", 6379, b"a1"]], [5461, 16383, [b"?", 6380, b"b2"]]]
    seen = view(slots, NODES, "one")
    assert seen.ranges == ((0, 5460, ("10.0.0.1", 6379)), (5461, 16383, ("10.0.0.2", 6380)))
    moved = redirected(MovedError("77 ?:6379"), "Redis at 10.0.0.1:6379")
    assert moved is not None
    assert moved.place is None, "the nodes are asked for it"


def test_a_certificate_for_another_name_is_told_from_an_authority_that_is_not_known() -> None:
    text = "certificate verify failed: IP address mismatch, certificate is not valid for '10.0.0.1'"
    error = unanswered(ConnectionError(text), "Redis at 10.0.0.1:6379", sent=False)
    assert "has a certificate for another name" in str(error)
    assert "ca_certs" not in str(error)


def test_a_view_names_the_nodes_of_a_slot_that_moves_and_primaries_without_slots() -> None:
    text = NODES + "d4 10.0.0.4:6379@16379 master - 0 1 0 connected [9-<-a1]\n"
    text += "e5 10.0.0.5:6379@16379 master,fail - 0 1 0 disconnected\n"
    seen = view([[0, 5460, [b"", 6379, b"a1"]]], text, "one")
    assert seen.without_slots() == [("10.0.0.4", 6379)]
    assert seen.parties[77] == {"a1", "b2"}
    assert seen.owner_ids()[0] == "a1"
    assert seen.nodes["c3"].of == "b2"


def test_the_latest_view_counts_and_every_node_says_which_of_its_slots_move() -> None:
    here, there = ("a", 1), ("b", 1)
    old = View(((0, 16383, here),), (), 3, frozenset({5}))
    new = View(((0, 16383, there),), (here,), 4)
    assert latest([old, new]) == latest([new, old]) == View(((0, 16383, there),), (here,), 4, frozenset({5}))
