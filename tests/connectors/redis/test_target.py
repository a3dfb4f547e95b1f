"""What only this target does: keys, hashes, expiry, what the server may lose, and what it is refused for."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import pytest
from redis.crc import key_slot

from connectors.redis.connection import Sent, Server, is_still
from connectors.redis.deployment import OneServer
from connectors.redis.errors import code_in, failure
from connectors.redis.layout import layout
from connectors.redis.tally import Tally
from connectors.redis.target import Redis
from replicator.batch import Batch, Outcome, Part, Upsert
from replicator.config.target import destination
from replicator.errors import ConfigError, GapFound, NotAuthenticated, NotPermitted, TransientError, Unfinished
from replicator.identity import other_tables, recreated_tables
from replicator.key import KeyAttribute, KeySchema
from replicator.target.contract import Table
from replicator.target.in_doubt import TRUSTED
from replicator.target.verification import CHANGED, UNVERSIONED, Comparison
from replicator.testing.contract import at, batch, put, remove, table
from replicator.testing.contract.kit import PAIR, PK, built, exhaust
from replicator.version import FIRST_EPOCH
from tests.connectors.redis import redis_kit as kit
from tests.end_to_end.pipeline import eventually
from tests.servers.redis import RedisServer

Build = Callable[..., Redis]
LATER = 4_000_000_000


@pytest.fixture
def build(server: RedisServer) -> Iterator[Build]:
    made: list[Redis] = []

    def make(**options: Any) -> Redis:
        target = built({**kit.options(server), **options})
        assert isinstance(target, Redis)
        made.append(target)
        return target

    yield make
    for target in made:
        target.close()


@pytest.fixture
def opened(build: Build) -> Redis:
    target = build()
    target.open([table()], FIRST_EPOCH)
    return target


def _tally(target: Redis) -> Tally:
    assert isinstance(target._on, OneServer)
    return target._on.tally


def of(**options: Any) -> Table:
    return Table("contract", PK, options)


# keys


def test_keys_are_the_prefix_and_the_id_and_only_what_must_be_is_escaped(server: RedisServer, build: Build) -> None:
    target, one, pair = build(), table(), table("pair", PAIR)
    target.open([one, pair], FIRST_EPOCH)
    target.write(batch(*(put({"pk": pk}, 1) for pk in ("user:1", "50%", "a{b}c"))))
    target.write(batch(put({"pk": "user:1", "sk": 7}, 1, id=("user:1", "7"), table="pair")))
    documents = [key for key in kit.keys(server) if not key.startswith("replicator:")]
    assert documents == ["contract:50%25", "contract:a%7Bb%7Dc", "contract:user:1", "pair:user%3A1:7"]


def test_a_document_and_its_guard_are_in_one_slot_of_a_cluster(server: RedisServer, opened: Redis) -> None:
    names = ["1", "a}b", "{", "}", "{}", "a{b}c", "%7B"]
    opened.write(batch(*(put({"pk": pk}, 1) for pk in names)))
    with server.client() as client:
        keys = client.keys("contract:*")
    assert len(keys) == len(names)
    assert all(key_slot(key) == key_slot(b"replicator:{%b}" % key) for key in keys)


# hashes


def test_a_hash_has_text_as_it_is_and_everything_else_as_json(server: RedisServer, build: Build) -> None:
    target = build()
    target.open([of(store="hash")], FIRST_EPOCH)
    item = {"pk": "a", "name": 'Ann "é"', "n": 12, "yes": True, "none": None, "tags": ["x", 1], "raw": b"\xff", "": ""}
    target.write(batch(put(item, 1)))
    with server.client(decode_responses=True) as client:
        stored = client.hgetall("contract:a")
    wanted = {"pk": "a", "name": 'Ann "é"', "n": "12", "yes": "true", "none": "null", "tags": '["x",1]', "raw": "/w=="}
    assert stored == {**wanted, "": ""}
    assert target.compare(of(store="hash"), [put(item, 1)]) == [Comparison(at(1))]


def test_a_hash_of_ten_thousand_fields_is_replaced_as_a_whole(server: RedisServer, build: Build) -> None:
    target = build()
    target.open([of(store="hash")], FIRST_EPOCH)
    target.write(batch(put({"pk": "a", **{f"f{n}": n for n in range(10_000)}}, 1)))
    with server.client() as client:
        assert client.hlen("contract:a") == 10_001
        target.write(batch(put({"pk": "a", "only": "this"}, 2)))
        assert client.hgetall("contract:a") == {b"pk": b"a", b"only": b"this"}
        target.write(batch(remove("a", 3)))
        assert client.exists("contract:a") == 0


def test_a_document_without_fields_is_no_hash_and_is_refused(build: Build) -> None:
    target = build()
    target.open([of(store="hash")], FIRST_EPOCH)
    (rejection,) = target.write(batch(Upsert("contract", ("a",), {}, at(1), ("a",)))).rejections
    assert rejection.reason == "the document has no fields, and Redis keeps no empty hashes; use store: json"


def test_verify_names_the_fields_of_a_hash_that_differ_and_repairs_them(server: RedisServer, build: Build) -> None:
    target, hashes = build(), of(store="hash")
    target.open([hashes], FIRST_EPOCH)
    item = {"pk": "a", "n": 1, "text": "1.0", "map": {"x": 1}}
    target.write(batch(put(item, 1)))
    with server.client() as client:
        client.hset("contract:a", mapping={"n": "1.0", "text": "1", "map": '{"x": 1.00}', "more": "x"})
    assert target.compare(hashes, [put(item, 1)]) == [Comparison(at(1), ("more", "text"))]
    assert list(target.replace(hashes, [put(item, 1)])) == [""]
    assert target.compare(hashes, [put(item, 1)]) == [Comparison(at(1))]


def test_a_key_of_another_type_is_a_difference_and_is_replaced(server: RedisServer, opened: Redis) -> None:
    opened.write(batch(put({"pk": "a"}, 1)))
    with server.client() as client:
        client.delete("contract:a")
        client.rpush("contract:a", "x")
    assert opened.compare(table(), [put({"pk": "a"}, 1)]) == [Comparison(at(1), ("(type)",))]
    assert opened.write(batch(put({"pk": "a", "n": 2}, 2))) == Outcome()
    assert kit.documents(server, table()) == {("a",): {"pk": "a", "n": 2}}


# what others delete


def test_a_document_that_was_deleted_by_hand_is_missing_and_is_stored_again(server: RedisServer, opened: Redis) -> None:
    opened.write(batch(put({"pk": "a"}, 5)))
    with server.client() as client:
        client.delete("contract:a")
    assert opened.compare(table(), [put({"pk": "a"}, 5)]) == [Comparison(None)]
    assert opened.walk(table(), None).ids == []
    assert opened.replace(table(), [put({"pk": "a"}, 5)]) == [CHANGED]
    assert opened.write(batch(put({"pk": "a"}, 0))) == Outcome()
    assert set(kit.documents(server, table())) == {("a",)}


# expiry


@pytest.mark.parametrize("store", ["json", "hash"])
def test_a_document_expires_when_its_field_says(server: RedisServer, build: Build, store: str) -> None:
    target, expiring = build(), of(store=store, expires="until")
    target.open([expiring], FIRST_EPOCH)
    items: list[dict[str, object]] = [
        {"pk": "a", "until": LATER},
        {"pk": "b", "until": "never"},
        {"pk": "c"},
        {"pk": "d", "until": 1_000_000},
    ]
    target.write(batch(*(put(item, 1) for item in items)))
    with server.client() as client:
        assert {pk: client.expiretime(f"contract:{pk}") for pk in "abcd"} == {"a": LATER, "b": -1, "c": -1, "d": -1}
        assert client.expiretime("replicator:{contract:a}") == LATER
        target.write(batch(put({"pk": "a"}, 2)))
        assert (client.expiretime("contract:a"), client.expiretime("replicator:{contract:a}")) == (-1, -1)


def test_a_document_whose_time_has_passed_is_not_stored_and_no_difference(
    server: RedisServer, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, expiring = build(), of(expires="until")
    target.open([expiring], FIRST_EPOCH)
    with server.client() as client:
        now = client.time()[0]
    past = put({"pk": "a", "until": now - 100}, 5)
    assert target.write(batch(past)) == Outcome()
    assert kit.documents(server, expiring) == {}
    assert target.compare(expiring, [past]) == [Comparison(UNVERSIONED)]


def test_while_tombstones_are_needed_an_expired_document_holds_back_older_ones(
    server: RedisServer, build: Build
) -> None:
    """Its version has no expiry: neither the server's clock nor its own time to live drops it before a purge does."""
    target, expiring = build(), of(expires="until")
    target.open([expiring], FIRST_EPOCH)
    with server.client() as client:
        now = client.time()[0]
        target.write(batch(put({"pk": "a", "until": now - 100}, 5), tombstones=True))
        assert client.ttl("replicator:{contract:a}") == -1
    assert target.write(batch(put({"pk": "a"}, 0), tombstones=True)).superseded == {"shard:contract": 1}
    assert exhaust(lambda: target.purge(expiring, at(0, FIRST_EPOCH + 1))) == 1
    assert target.write(batch(put({"pk": "a"}, 0))) == Outcome()


@pytest.mark.parametrize("store", ["json", "hash"])
def test_after_a_purge_the_guards_of_documents_that_expire_go_with_them(
    server: RedisServer, build: Build, store: str
) -> None:
    """Else those of a backfill would stay for good."""
    target, expiring = build(), of(store=store, expires="until")
    target.open([expiring], FIRST_EPOCH)
    writes = [put({"pk": "a", "until": LATER}, 1), put({"pk": "b"}, 1), put({"pk": "later", "until": LATER}, 9)]
    target.write(batch(*writes, put({"pk": "kept", "until": LATER}, 1), tombstones=True))
    guards = [f"replicator:{{contract:{pk}}}" for pk in ("a", "b", "later", "kept")]
    with server.client() as client:
        client.persist("contract:kept")
        assert exhaust(lambda: target.purge(expiring, at(5))) == 2
        assert [client.expiretime(guard) for guard in guards] == [LATER, -1, -1, -1]
        assert exhaust(lambda: target.purge(expiring, at(5))) == 1, "the one that others let stay"
    assert target.write(batch(put({"pk": "a"}, 0))).superseded == {"shard:contract": 1}


@pytest.mark.parametrize("store", ["json", "hash"])
def test_a_time_to_live_that_others_change_is_a_difference_and_is_repaired(
    server: RedisServer, build: Build, store: str
) -> None:
    target, expiring = build(), of(store=store, expires="until")
    target.open([expiring], FIRST_EPOCH)
    writes = [put({"pk": pk, "until": LATER}, 1) for pk in ("same", "stays", "early")] + [put({"pk": "none"}, 1)]
    target.write(batch(*writes))
    assert {one.fields for one in target.compare(expiring, writes)} == {()}
    with server.client() as client:
        client.persist("contract:stays")
        client.expire("contract:early", 30)
        client.expire("contract:none", 30)
        found = target.compare(expiring, writes)
        assert [one.fields for one in found] == [(), ("until",), ("until",), ("until",)]
        assert {one.version for one in found} == {at(1)}
        assert target.replace(expiring, writes) == ["", "", "", ""]
        keys = [f"contract:{pk}" for pk in ("same", "stays", "early", "none")]
        assert [client.expiretime(key) for key in keys] == [LATER, LATER, LATER, -1]
    assert {one.fields for one in target.compare(expiring, writes)} == {()}


@pytest.mark.parametrize("tombstones", [False, True])
def test_a_document_that_others_delete_before_its_time_is_stored_again_by_a_repair(
    server: RedisServer, build: Build, tombstones: bool
) -> None:
    target, expiring, write = build(), of(expires="until"), put({"pk": "a", "until": LATER}, 5)
    target.open([expiring], FIRST_EPOCH)
    target.write(batch(write, tombstones=tombstones))
    with server.client() as client:
        client.delete("contract:a")
    assert target.compare(expiring, [write]) == [Comparison(None)]
    assert target.write(batch(write, tombstones=True)) == Outcome()
    assert target.compare(expiring, [write]) == [Comparison(at(5))]


def test_tombstones_have_no_time_to_live(server: RedisServer, opened: Redis) -> None:
    opened.write(batch(put({"pk": "a"}, 1), remove("b", 1), tombstones=True))
    opened.write(batch(remove("a", 2), tombstones=True))
    with server.client() as client:
        assert [client.ttl(f"replicator:{{contract:{pk}}}") for pk in "ab"] == [-1, -1]


# what the server loses


def lost(target: Redis) -> str:
    with pytest.raises(GapFound) as gap:
        target.recheck([table()])
    return gap.value.reason


def test_a_server_that_is_emptied_during_a_run_is_a_gap(server: RedisServer, opened: Redis) -> None:
    opened.write(batch(put({"pk": "a"}, 1)))
    assert opened.recheck([table()]) == []
    with server.client() as client:
        client.flushall()
    assert lost(opened).startswith(f"Redis at 127.0.0.1:{server.port} has lost changes that it had stored")
    opened.write(batch(put({"pk": "b"}, 2)))
    assert "it was emptied" in lost(opened)


def test_a_server_that_is_emptied_during_a_run_is_filled_again_by_a_resync(server: RedisServer, build: Build) -> None:
    """Also if the run has stored something since: what is there is its own, not that of others."""
    target, tables = build(), [table(), table("other")]
    target.open(tables, FIRST_EPOCH)
    before = target.identities(tables)
    for written in (put({"pk": "a"}, 1), put({"pk": "b"}, 2, table="other")):
        target.write(batch(written))
        with server.client() as client:
            client.flushall()
    target.write(batch(put({"pk": "c"}, 3), put({"pk": "c"}, 3, table="other")))
    later = build()
    assert later.epoch(tables) == FIRST_EPOCH
    assert list(recreated_tables(before, later.identities(tables)))
    assert later.check(tables) == []
    later.open(tables, FIRST_EPOCH + 1)
    assert [later.sweep(one, at(0, FIRST_EPOCH + 1), []) for one in tables] == [1, 1]


def test_a_server_that_is_emptied_between_two_runs_has_no_table(server: RedisServer, build: Build) -> None:
    build().open([table()], FIRST_EPOCH)
    with server.client() as client:
        client.flushall()
    assert build().epoch([table()]) is None


@pytest.mark.parametrize("quiet", [False, True])
def test_a_server_that_lost_its_last_batches_is_a_gap_for_this_run_and_the_next(
    server: RedisServer, build: Build, opened: Redis, quiet: bool
) -> None:
    """Also if nothing changes any more."""
    opened.write(batch(put({"pk": "a"}, 1)))
    before, earlier = opened.identities([table()]), kit.kept(server)
    opened.write(batch(put({"pk": "b"}, 2)))
    kit.go_back(server, earlier)
    if not quiet:
        assert opened.write(batch(put({"pk": "c"}, 3))) == Outcome()
    assert "a replica without them took over" in lost(opened)
    assert list(recreated_tables(before, build().identities([table()])))


@pytest.mark.parametrize("cut", [2, 4])
def test_what_a_server_acknowledged_of_a_batch_is_sent_again_if_it_may_have_lost_it(
    server: RedisServer, opened: Redis, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    """The connection is cut behind one of two groups, or behind both; the count of the batch is lost in either case."""
    earlier, receive, received = kit.kept(server), Server.receive, count(1)

    def cut_off(self: Server) -> object:
        if next(received) > cut:
            self.close()
        return receive(self)

    writes = batch(*(put({"pk": f"{n}"}, 1) for n in range(100)))
    with monkeypatch.context() as patched:
        patched.setattr(Server, "receive", cut_off)
        with pytest.raises(TransientError, match="closed the connection"):
            opened.write(writes)
    kit.go_back(server, earlier)
    assert opened.write(writes) == Outcome()
    assert len(kit.documents(server, table())) == 100
    assert opened.recheck([table()]) == []


def test_a_batch_that_takes_long_goes_on_where_it_was_and_is_counted_once(
    server: RedisServer, opened: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock jumps behind the first of two groups. On the same connection nothing is sent again."""
    before, start, sent = _tally(opened).batches, Server.start, []

    def noted(self: Server, commands: Sequence[bytes], *more: Callable[[], bool]) -> Sent:
        sent.append(len(commands))
        return start(self, commands, *more)

    writes = batch(*(put({"pk": pk, "text": "x" * 100_000}, 1) for pk in "ab"))
    times = iter([0.0, 0.0, 0.0, 2 * TRUSTED])  # encoded, begun, after the first group, after the second
    with monkeypatch.context() as patched:
        patched.setattr("connectors.redis.connection.time.time", lambda: next(times))
        with pytest.raises(Unfinished):
            opened.write(writes)
    assert len(kit.documents(server, table())) == 1
    monkeypatch.setattr(Server, "start", noted)
    assert opened.write(writes) == Outcome()
    assert sent == [len(["load", "the second group", "load", "count"])]
    assert _tally(opened).batches == before + 1


@pytest.mark.parametrize("removal", ["sweep", "repair"])
def test_documents_that_come_back_because_the_server_lost_their_removal_are_a_gap(
    server: RedisServer, opened: Redis, removal: str
) -> None:
    opened.write(batch(put({"pk": "a"}, 1)))
    earlier = kit.kept(server)
    if removal == "sweep":
        assert opened.sweep(table(), at(2), []) == 1
    else:
        assert opened.remove(table(), [remove("a", 1)]) == [""]
    kit.go_back(server, earlier)
    assert set(kit.documents(server, table())) == {("a",)}
    assert "a replica without them took over" in lost(opened)


def test_a_server_that_lost_the_beginning_of_an_epoch_is_a_gap(server: RedisServer, opened: Redis) -> None:
    opened.write(batch(put({"pk": "a"}, 1)))
    earlier = kit.kept(server)
    opened.open([table()], FIRST_EPOCH + 1)
    kit.go_back(server, earlier)
    opened.write(batch(put({"pk": "a"}, 2)))
    assert "a replica without them took over" in lost(opened)
    assert opened.epoch([table()]) == FIRST_EPOCH + 1


def test_what_the_run_before_had_stored_and_the_server_lost_since_is_a_gap(server: RedisServer, build: Build) -> None:
    """Before the new run has stored anything."""
    first = build()
    first.open([table()], FIRST_EPOCH)
    earlier = kit.kept(server)
    first.write(batch(put({"pk": "a"}, 1)))
    second = build()
    second.open([table()], FIRST_EPOCH)
    kit.go_back(server, earlier)
    second.write(batch(put({"pk": "b"}, 2)))
    assert "a replica without them took over" in lost(second)


@pytest.mark.parametrize("found_by", ["recheck", "write"])
def test_a_loss_is_a_gap_for_the_run_also_if_another_process_has_stored_something_since(
    server: RedisServer, build: Build, found_by: str
) -> None:
    """As a repair does after a failover: it counts where the run has counted before."""
    run, repair = build(), build()
    run.open([table()], FIRST_EPOCH)
    run.write(batch(put({"pk": "a"}, 1)))
    before, earlier = run.identities([table()]), kit.kept(server)
    run.write(batch(put({"pk": "b"}, 2)))
    kit.go_back(server, earlier)
    repair.open([table()], FIRST_EPOCH)
    for pk in "xyz":
        repair.write(batch(put({"pk": pk}, 3)))
    if found_by == "write":
        run.write(batch(put({"pk": "c"}, 4)))
    assert "a replica without them took over" in lost(run)
    assert list(recreated_tables(before, build().identities([table()]))) != []


def test_a_loss_is_a_gap_for_a_run_that_has_stored_nothing_although_a_command_has_counted_since(
    server: RedisServer, build: Build
) -> None:
    """What the run before had stored is gone, and the command has stored more than that."""
    first = build()
    first.open([table()], FIRST_EPOCH)
    earlier = kit.kept(server)
    first.write(batch(put({"pk": "a"}, 1)))
    run, command = build(), build()
    run.open([table()], FIRST_EPOCH)
    kit.go_back(server, earlier)
    command.open([table()], FIRST_EPOCH)
    for pk in "xyz":
        command.write(batch(put({"pk": pk}, 3)))
    assert "a replica without them took over" in lost(run)


def test_two_processes_that_count_by_turns_and_lose_nothing_are_no_gap(server: RedisServer, build: Build) -> None:
    one, other = build(), build()
    for target in (one, other):
        target.open([table()], FIRST_EPOCH)
    for version in range(1, 4):
        one.write(batch(put({"pk": "a"}, 2 * version)))
        other.write(batch(put({"pk": "b"}, 2 * version + 1)))
        kit.go_back(server, kit.kept(server))
    assert one.recheck([table()]) == other.recheck([table()]) == []


@pytest.mark.parametrize(("days", "left"), [(29, 2), (31, 1)])
def test_the_counts_of_processes_that_have_long_ended_are_removed(
    server: RedisServer, build: Build, days: int, left: int
) -> None:
    first, second = build(), build()
    first.open([table()], FIRST_EPOCH)
    first.write(batch(put({"pk": "a"}, 1)))
    note = layout(table()).note
    with server.client() as client:
        (field,) = (name for name in client.hkeys(note) if name.startswith(b"of:"))
        client.hset(note, field, f"1 {int(time.time()) - days * 86400}")
        second.open([table()], FIRST_EPOCH)
        second.write(batch(put({"pk": "a"}, 2)))
        assert len([name for name in client.hkeys(note) if name.startswith(b"of:")]) == left


def test_a_server_that_is_emptied_while_a_run_resumes_is_a_gap(server: RedisServer, build: Build) -> None:
    """Between its inspection and its open, which makes everything again."""
    first = build()
    first.open([table()], FIRST_EPOCH)
    first.write(batch(put({"pk": "a"}, 1)))
    target = build()
    target.identities([table()])
    with server.client() as client:
        client.flushall()
    for _ in range(2):
        target.open([table()], FIRST_EPOCH)
    target.identities([table()])
    with pytest.raises(GapFound, match="it was emptied"):
        target.recheck([table()])


@pytest.mark.parametrize("loss", ["emptied", "set back"])
def test_a_loss_while_a_run_resumes_is_a_gap_for_the_next_run_too_if_it_is_killed_before_it_tells(
    server: RedisServer, build: Build, loss: str
) -> None:
    """It has noted what it found instead as the table that it writes to. ``set back``: to the epoch before."""
    first = build()
    first.open([table()], FIRST_EPOCH)
    earlier = kit.kept(server) if loss == "set back" else {}
    first.open([table()], FIRST_EPOCH + 1)
    first.write(batch(put({"pk": "a"}, 1)))
    killed = build()
    killed.identities([table()])
    kit.go_back(server, earlier)
    killed.open([table()], FIRST_EPOCH + 1)
    bound = killed.identities([table()])
    for _ in range(2):
        later = build()
        assert list(recreated_tables(bound, later.identities([table()])))
        later.open([table()], FIRST_EPOCH + 1)
    assert "has lost changes that it had stored" in lost(killed)
    later.open([table()], FIRST_EPOCH + 2)
    assert later.recheck([table()]) == []
    bound = later.identities([table()])
    later.close()
    assert build().identities([table()]) == bound, "a later epoch replaces what is there"


def test_a_run_that_was_replaced_does_not_mark_the_table_of_the_later_epoch(server: RedisServer, build: Build) -> None:
    """The one after it began again, as what was there had lost something."""
    late, later = build(), build()
    late.open([table()], FIRST_EPOCH)
    with server.client() as client:
        client.hset(layout(table()).note, "id", "x incomplete")
    late.identities([table()])
    later.open([table()], FIRST_EPOCH + 1)
    late.open([table()], FIRST_EPOCH)
    assert later.recheck([table()]) == []
    assert later.identities([table()]) == build().identities([table()])


@pytest.mark.parametrize("trusted", [False, True])
def test_a_restart_while_a_run_begins_is_a_gap_unless_the_server_is_trusted(
    server: RedisServer, build: Build, trusted: bool
) -> None:
    """Between its inspection and its first batch: what it stores then does not hide it, not even from the next run."""
    first = build()
    first.open([table()], FIRST_EPOCH)
    first.write(batch(put({"pk": "a"}, 1)))
    second = build(trust_restarts=trusted)
    before = second.identities([table()])
    server.restart()
    second.open([table()], FIRST_EPOCH)
    bound = second.identities([table()])
    second.write(batch(put({"pk": "b"}, 2)))
    for was in (before, bound):
        gaps = list(recreated_tables(was, build(trust_restarts=trusted).identities([table()])))
        assert bool(gaps) != trusted
    if trusted:
        assert second.recheck([table()]) == []
    else:
        assert "restarted while this run began, and may have lost the last writes of the previous run" in lost(second)


def test_a_connection_that_the_server_closes_while_nothing_changes_leaves_nothing_in_doubt(
    server: RedisServer, opened: Redis
) -> None:
    opened.write(batch(put({"pk": "a"}, 1)))
    with server.client() as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "normal")
    assert opened.write(batch(put({"pk": "a"}, 2))) == Outcome()
    assert not opened.in_doubt


def test_a_run_of_one_batch_that_was_killed_is_no_gap(build: Build) -> None:
    """The server is noted with the first batch."""
    target = build()
    target.open([table()], FIRST_EPOCH)
    before = target.identities([table()])
    target.write(batch(put({"pk": "a"}, 1)))
    assert list(recreated_tables(before, build().identities([table()]))) == []


@pytest.mark.parametrize("quiet", [False, True])
def test_a_restart_that_loses_nothing_is_no_gap_for_the_run_that_sees_it_and_the_next(
    server: RedisServer, build: Build, quiet: bool
) -> None:
    """For none of its tables, whether it stores something afterwards or only looks."""
    target, tables = build(), [table(), table("other")]
    target.open(tables, FIRST_EPOCH)
    target.write(batch(put({"pk": "a"}, 1)))
    before = target.identities(tables)
    server.restart()
    if quiet:
        assert target.recheck(tables) == []
    else:
        assert target.write(batch(put({"pk": "b"}, 2))) == Outcome()
    after = build().identities(tables)
    assert (list(recreated_tables(before, after)), other_tables(before, after)) == ([], None)


@pytest.mark.parametrize("trusted", [False, True])
def test_a_restart_between_two_runs_is_a_gap_unless_the_server_is_trusted(
    server: RedisServer, build: Build, trusted: bool
) -> None:
    """Whether it had everything that the last run was told is stored cannot be known then."""
    target = build(trust_restarts=trusted)
    target.open([table()], FIRST_EPOCH)
    target.write(batch(put({"pk": "a"}, 1)))
    before = target.identities([table()])
    target.close()
    server.restart()
    assert bool(list(recreated_tables(before, build(trust_restarts=trusted).identities([table()])))) != trusted


@pytest.mark.parametrize("during", [False, True])
def test_a_server_that_was_replaced_for_a_time_is_a_gap_between_two_runs_although_its_process_lives_on(
    build: Build, during: bool
) -> None:
    """It was cut off, another one took over, and it took over again. ``during``: a run saw that, and lacks nothing."""
    with RedisServer() as own, RedisServer() as other:
        _replicate(other, own)
        target = build(**kit.options(own))
        target.open([table()], FIRST_EPOCH)
        target.write(batch(put({"pk": "a"}, 1)))
        eventually(lambda: set(kit.documents(other, table())) == {("a",)}, "the other one has received it")
        _replicate(other, None)
        if not during:
            target.write(batch(put({"pk": "b"}, 2)))
        before = target.identities([table()])
        _replicate(own, other)
        _replicate(own, None)
        assert set(kit.documents(own, table())) == {("a",)}
        if during:
            for _ in range(2):
                assert target.recheck([table()]) == []
                target.write(batch(put({"pk": "c"}, 3)))
        later = build(**kit.options(own))
        assert bool(list(recreated_tables(before, later.identities([table()])))) != during
        if not during:
            later.open([table()], FIRST_EPOCH)
            assert "may have lost the last writes of the previous run" in lost(later)


def _replicate(server: RedisServer, primary: RedisServer | None) -> None:
    """Until it has everything; None: no more."""
    with server.client() as client:
        if primary is None:
            client.replicaof("NO", "ONE")
            return
        client.replicaof("127.0.0.1", str(primary.port))
        eventually(lambda: client.info("replication").get("master_link_status") == "up", "it has everything")


@pytest.mark.parametrize(
    ("noted", "now", "same"),
    [
        ("a", "a", True),
        ("a", "a:x", False),
        ("a:x", "a:x", True),
        ("a:x", "a:y", False),
        ("a:x", "a", True),
        ("a,b:x", "a,b:x", True),
        ("a,b", "a:x,b", False),
        ("a,b", "a,c", False),
        ("a,b", "a", False),
        ("", "a", False),
    ],
)
def test_servers_are_still_those_that_were_noted_unless_one_restarted_or_took_over_again(
    noted: str, now: str, same: bool
) -> None:
    assert is_still(noted, now) == same


# what a server or its keys are refused for


def problems(target: Redis, tables: Sequence[Table] = ()) -> Sequence[str]:
    found = target.check(tables or [table()])
    with pytest.raises(ConfigError) as refused:
        target.open(tables or [table()], FIRST_EPOCH)
    assert list(refused.value.problems) == list(found)
    return found


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_server_that_removes_keys_when_it_is_full_is_refused_at_start_and_during_a_run(
    server: RedisServer, build: Build, policy: str
) -> None:
    target, expiring = build(), of(expires="until")
    target.open([expiring], FIRST_EPOCH)
    assert target.recheck([expiring]) == []
    with server.client() as client:
        client.config_set("maxmemory-policy", policy)
        assert build().check([expiring]) == []  # without a limit nothing is removed
        client.config_set("maxmemory", "1gb")
        try:
            (problem,) = problems(build(), [expiring])
            assert f"removes keys when its memory is full (maxmemory-policy {policy})" in problem
            assert target.recheck([expiring]) == [problem]
            assert bool(build().check([table()])) == (policy == "allkeys-lru"), "without expiry volatile- spares all"
        finally:
            client.config_set("maxmemory", "0")
            client.config_set("maxmemory-policy", "noeviction")


def test_a_full_server_is_waited_for_and_nothing_is_lost(server: RedisServer, opened: Redis) -> None:
    opened.write(batch(put({"pk": "a"}, 1), put({"pk": "b"}, 1)))
    with server.client() as client:
        client.config_set("maxmemory", "1")
        try:
            for _ in range(2):
                with pytest.raises(TransientError, match=r"is out of memory \(maxmemory\) and refuses writes; waiting"):
                    opened.write(batch(put({"pk": "a", "n": 2}, 2), remove("b", 2), tombstones=True))
            assert set(kit.documents(server, table())) == {("a",), ("b",)}
        finally:
            client.config_set("maxmemory", "0")
    assert opened.write(batch(put({"pk": "a", "n": 2}, 2), remove("b", 2), tombstones=True)) == Outcome()
    assert kit.documents(server, table()) == {("a",): {"pk": "a", "n": 2}}


def test_keys_of_others_under_the_prefix_are_refused_and_stay(server: RedisServer, build: Build) -> None:
    with server.client() as client:
        client.set("contract:theirs", "x")
        client.set("contract", "x")
    (problem,) = problems(build())
    assert "has keys that begin with contract: and that no pipeline is noted for" in problem
    assert "'contract:theirs'" in problem
    assert kit.keys(server) == ["contract", "contract:theirs"]
    assert build().check([of(prefix="copy:")]) == []


def test_keys_of_another_pipeline_are_refused(server: RedisServer, build: Build) -> None:
    build().open([table()], FIRST_EPOCH)
    found, _ = destination({**kit.options(server), "table": "contract"})
    assert found is not None
    other = found.build("second")
    try:
        problem = "the keys contract:* are written by the pipeline contract, according to replicator:table:contract:"
        assert other.check([table()])[0].startswith(problem)
        with pytest.raises(ConfigError, match="two copies under the same keys would overwrite each other"):
            other.open([table()], FIRST_EPOCH)
        with pytest.raises(ConfigError, match="two copies under the same keys would overwrite each other"):
            other.epoch([table()])
    finally:
        other.close()


def test_prefixes_that_overlap_are_refused_as_long_as_both_are_noted(server: RedisServer, build: Build) -> None:
    a, b = Table("a", PK, {"prefix": "shop:"}), Table("b", PK, {"prefix": "shop:orders:"})
    assert "the prefixes shop: and shop:orders: of two tables overlap" in problems(build(), [a, b])[0]
    build().open([a], FIRST_EPOCH)
    assert any("overlap" in problem for problem in problems(build(), [b]))
    with server.client() as client:
        client.delete("replicator:table:shop:")
    assert build().check([b]) == []


def test_a_foreign_value_where_a_version_belongs_ends_the_run(server: RedisServer, opened: Redis) -> None:
    with server.client() as client:
        client.rpush("replicator:{contract:a}", "x")
        client.set("replicator:{contract:b}", "x")
    for pk in "ab":
        with pytest.raises(ConfigError, match="a key in which replicator keeps a version"):
            opened.write(batch(put({"pk": pk}, 1)))
    assert kit.documents(server, table()) == {}


def test_who_removes_what_the_error_about_a_foreign_value_names_removes_nothing_of_replicators(
    server: RedisServer,
) -> None:
    target = built(kit.options(server))
    target.open([of(expires="until")], FIRST_EPOCH)
    target.write(batch(put({"pk": "a"}, 1), put({"pk": "b", "until": 4_000_000_000}, 1)))
    target.write(batch(remove("c", 2), tombstones=True))
    with server.client() as client:
        client.set("replicator:{contract:x}", "x")
        with pytest.raises(ConfigError) as raised:
            target.write(batch(put({"pk": "x"}, 1)))
        guards = [key for key in client.keys("replicator:*") if key.startswith(b"replicator:{")]
        foreign = [key for key in guards if not re.fullmatch(rb"[0-9]+(d|e[0-9]+)?", client.get(key))]
    target.close()
    assert len(guards) == 4
    assert foreign == [b"replicator:{contract:x}"]
    said = "neither digits, nor digits and d, nor digits, e and digits, and remove them. Leave all others"
    assert said in str(raised.value)


def test_a_node_of_a_cluster_is_refused_by_name() -> None:
    """Even one that has all slots: others may join it."""
    with RedisServer("--cluster-enabled", "yes") as node:
        with node.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        target = built(kit.options(node))
        problem = "is a node of a Redis Cluster: write url: rediss+cluster://HOST:PORT"
        assert problem in str(target.check([table()]))
        with pytest.raises(ConfigError, match=re.escape(problem)):
            target.open([table()], FIRST_EPOCH)
        target.close()


def test_a_replica_is_refused_at_start_and_waited_for_during_a_run(server: RedisServer, build: Build) -> None:
    target = build()
    target.open([table()], FIRST_EPOCH)
    with server.client() as client:
        client.replicaof("127.0.0.1", "1")
        try:
            with pytest.raises(TransientError, match="is a read-only replica now; waiting"):
                target.write(batch(put({"pk": "a"}, 1)))
            client.config_set("replica-read-only", "no")  # then it accepts writes, and drops them when it synchronizes
            with pytest.raises(TransientError, match="is a read-only replica now; waiting"):
                target.recheck([table()])
            assert "is a read-only replica; name its primary in target.url" in build().check([table()])[0]
        finally:
            client.config_set("replica-read-only", "yes")
            client.replicaof("NO", "ONE")
    assert target.write(batch(put({"pk": "a"}, 1))) == Outcome()


def test_a_server_that_forgets_its_scripts_is_sent_them_again(server: RedisServer, opened: Redis) -> None:
    for n in range(2):
        with server.client() as client:
            client.execute_command("SCRIPT", "FLUSH")
        assert opened.write(batch(put({"pk": "a", "n": n}, n + 1))) == Outcome()


def test_a_wrong_login_is_told_from_a_missing_permission(server: RedisServer, build: Build) -> None:
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "reader", "on", ">secret", "~*", "+@read", "+info", "+ping", "+select")
        try:
            with pytest.raises(NotAuthenticated, match="refuses the login") as refused:
                build(username="reader", password="wrong").check([table()])
            assert "wrong" not in str(refused.value).partition("Correct")[0]
            with pytest.raises(NotPermitted, match="does not permit what replicator does there"):
                build(username="reader", password="secret").check([table()])
        finally:
            client.execute_command("ACL", "DELUSER", "reader")


@pytest.mark.parametrize("missing", ["time", "evalsha"])
def test_check_finds_a_permission_that_is_missing_although_few_writes_need_it(
    server: RedisServer, build: Build, missing: str
) -> None:
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "replicator", "on", ">secret", *kit.granted(), f"-{missing}")
        try:
            with pytest.raises(NotPermitted, match=f"'{missing}' command"):
                build(username="replicator", password="secret").check([table()])
        finally:
            client.execute_command("ACL", "DELUSER", "replicator")


def test_the_permissions_of_the_page_are_enough(server: RedisServer, build: Build) -> None:
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "replicator", "on", ">secret", *kit.granted())
        try:
            target = build(username="replicator", password="secret")
            assert target.check([of(expires="until")]) == []
            target.open([of(expires="until")], FIRST_EPOCH)
            target.write(batch(put({"pk": "a", "until": LATER}, 1), put({"pk": "b"}, 1), tombstones=True))
            target.write(batch(put({"pk": "a"}, 0), remove("b", 2), tombstones=True))
            assert target.recheck([of(expires="until")]) == []
            assert exhaust(lambda: target.sweep(table(), at(2), [])) == 1
            assert exhaust(lambda: target.purge(table(), at(3))) == 2
            assert list(target.walk(table(), None).ids) == []
        finally:
            client.execute_command("ACL", "DELUSER", "replicator")


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        ("LOADING", TransientError, "is starting, and loads its data"),
        ("MISCONF", TransientError, "cannot save its data to disk"),
        ("NOREPLICAS", TransientError, "has fewer replicas than it needs"),
        ("BUSY", TransientError, "is busy with a script"),
        ("CROSSSLOT", ConfigError, "is a node of a Redis Cluster"),
        ("MOVED", ConfigError, "is a node of a Redis Cluster"),
        ("NOAUTH", NotAuthenticated, "refuses the login"),
        ("ERR", ConfigError, "returned an error: ERR some text"),
    ],
)
def test_what_a_server_answers_says_what_to_do(code: str, kind: type[Exception], text: str) -> None:
    error = failure(code, "some text", "Redis at there:6379")
    assert type(error) is kind
    assert text in str(error)


IN_SCRIPT = "ERR Error running script (call to f_5d91a06be8374ef791dfe26ebdfb27cc7e812a3b): @user_script:33: "


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("@user_script: 50: -OOM command not allowed when used memory > 'maxmemory'.", TransientError, "out of memory"),
        (IN_SCRIPT + "@user_script: 33: -OOM command not allowed.", TransientError, "is out of memory"),
        (IN_SCRIPT + "@user_script: 33: -READONLY You can't write", TransientError, "is a read-only replica now"),
        (IN_SCRIPT + "WRONGTYPE Operation against a key", ConfigError, "was written by something else"),
        ("@user_script: 50: -NOREPLICAS Not enough good replicas to write.", TransientError, "has fewer replicas"),
        (IN_SCRIPT + "@user_script: 8: The user executing the script can't run this", NotPermitted, "does not permit"),
        ("OOM command not allowed script: f00, on @user_script:62.", TransientError, "is out of memory"),
        ("-READONLY You can't write", TransientError, "is a read-only replica now"),
    ],
)
def test_an_error_in_a_script_is_recognized_as_every_version_writes_it(
    text: str, kind: type[Exception], said: str
) -> None:
    """Redis 6.2 puts the place in the script in front of the error; the texts are its own."""
    error = failure(*code_in(text), "Redis at there:6379")
    assert type(error) is kind
    assert said in str(error)


# options


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"url": "redis://there:6379"}, "is redis:// to another host, so items would be sent unencrypted"),
        ({"url": "redis://me:secret@127.0.0.1"}, "contains a login; put it under username and password"),
        ({"url": "http://127.0.0.1"}, "must have the form rediss://host:6379"),
        ({"url": "redis://127.0.0.1/x"}, "must have the form rediss://host:6379"),
        ({"url": "redis://127.0.0.1:6379", "client_cert": "a"}, "is without TLS, which ca_certs and client_cert"),
        ({"url": "rediss://there", "client_cert": "a.pem"}, "needs both client_cert and client_key"),
        ({"url": "rediss://there", "username": "me"}, "needs password with username"),
        ({"url": "rediss://there", "ca_certs": "/nowhere.pem"}, "must be a file of certificates, and there is none at"),
        ({"url": "rediss://there", "ca_certs": __file__}, "must be a file of certificates (PEM), and none can be read"),
        (
            {"url": "rediss://there", "client_cert": "a", "client_key": "b"},
            "these cannot be read together: No such file",
        ),
    ],
)
def test_a_wrong_address_or_login_is_named(options: Mapping[str, Any], problem: str) -> None:
    _, found = destination({"type": "redis", "table": "orders", **options})
    assert [problem in one.text for one in found] == [True], found


@pytest.mark.parametrize(
    ("prefix", "problem"),
    [
        ("", "must be the beginning of a key"),
        ("a{b}:", "without braces"),
        ("replicator:x:", "must differ from replicator:"),
        ("repl", "must differ from replicator:"),
        ("x" * 257, "is longer than 256 bytes"),
    ],
)
def test_a_prefix_that_cannot_be_is_named(prefix: str, problem: str) -> None:
    tables = {"orders": {"prefix": prefix}}
    _, found = destination({"type": "redis", "url": "redis://127.0.0.1", "tables": tables})
    assert [problem in one.text for one in found] == [True], found


def test_deleted_documents_are_not_marked() -> None:
    tables = {"orders": {"deletes": "mark"}}
    _, found = destination({"type": "redis", "url": "redis://127.0.0.1", "tables": tables})
    assert "mark is supported by the targets postgres, elasticsearch and opensearch" in found[0].text


def test_the_keys_of_three_parts_of_an_id_stay_apart(server: RedisServer, build: Build) -> None:
    pair = Table("contract", KeySchema((KeyAttribute("a", "S"), KeyAttribute("b", "S"))))
    target = build()
    target.open([pair], FIRST_EPOCH)
    ids = [("a:b", "c"), ("a", "b:c"), ("a%3Ab", "c")]
    target.write(Batch([Part("", [Upsert("contract", id, {"n": n}, at(1), id) for n, id in enumerate(ids)])]))
    assert {id: body["n"] for id, body in kit.documents(server, pair).items()} == {id: n for n, id in enumerate(ids)}
    assert sorted(target.walk(pair, None, ("a",)).ids) == [("a", "b:c")]
