"""Entries, owners and counts beside the rows: one transaction, fenced, exactly once even where an answer got lost."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from connectors.postgres import Postgres
from replicator.batch import Batch, Delete, Outcome, Part
from replicator.errors import Fenced
from replicator.state import Counts, DamagedCheckpoint, Owner, Parked, Save, encode
from replicator.target.contract import Table
from replicator.testing.contract import at, batch, put, remove
from replicator.version import FIRST_EPOCH
from tests.connectors.postgres.postgres_kit import PK, opened, owner, rows, run, target, until
from tests.servers.postgres_fixtures import Database

pytestmark = pytest.mark.postgres

CONTRACT = Table("contract", PK)


def claimed(database: Database, run: str = "run") -> Postgres:
    one = opened(database, CONTRACT)
    one.checkpoints.claim(owner(run))
    return one


def entries(one: Postgres) -> dict[tuple[str, str], tuple[int, str]]:
    return {(e.kind, e.id): (e.revision, e.text) for e in one.checkpoints.read().entries if e.kind != "owner"}


def parked(key: str, reason: str = "because") -> str:
    return encode(Parked((key,), 5, reason, 0.0, new='{"big":{"S":"image \\u0000"}}'))


def test_reading_creates_nothing(one_postgres: Database) -> None:
    """``status`` before the first run: no entries, and no schema made for the question."""
    one = target(one_postgres)
    assert (one.checkpoints.read().entries, list(one.checkpoints.parked())) == ((), [])
    with one_postgres.connect() as client:
        assert client.execute("SELECT to_regnamespace('replicator')").fetchone() == (None,)


def test_claiming_creates_the_schema(postgres: Database) -> None:
    one = target(postgres)
    first = one.checkpoints.claim(Owner("run", "host", 7, 1.5))
    assert (first.revision, [e.text for e in first.entries]) == (1, [encode(Owner("run", "host", 7, 1.5))])
    assert target(postgres).checkpoints.claim(owner()).revision == 2
    assert target(postgres, pipeline="another").checkpoints.claim(owner()).revision == 1


def test_saves_compare_and_set(one_postgres: Database) -> None:
    checkpoints = (one := claimed(one_postgres)).checkpoints
    checkpoints.save([Save("shard", "a", 0, "1"), Save("shard", "b", None, "1"), Save("shard", "gone", None, None)])
    checkpoints.save([Save("shard", "a", 1, "2"), Save("shard", "b", None, "2")])
    assert entries(one) == {("shard", "a"): (2, "2"), ("shard", "b"): (2, "2")}
    checkpoints.save([Save("shard", "a", 2, None)])
    assert entries(one) == {("shard", "b"): (2, "2")}
    checkpoints.save([])


@pytest.mark.parametrize(
    "wrong",
    [
        Save("shard", "a", 0, "9"),
        Save("shard", "a", 1, "9"),
        Save("shard", "a", 3, "9"),
        Save("shard", "a", 1, None),
        Save("shard", "absent", 1, "9"),
    ],
)
def test_one_wrong_revision_rejects_the_whole_save(one_postgres: Database, wrong: Save) -> None:
    checkpoints = (one := claimed(one_postgres)).checkpoints
    checkpoints.save([Save("shard", "a", 0, "1")])
    checkpoints.save([Save("shard", "a", 1, "2")])
    with pytest.raises(Fenced):
        checkpoints.save([Save("shard", "new", 0, "1"), wrong])
    assert entries(one) == {("shard", "a"): (2, "2")}


def test_a_command_during_a_run_is_not_fenced_but_compares_revisions(one_postgres: Database) -> None:
    """``parked retry``: claims nothing, takes an entry away with the row it stores, and only if it is as it was."""
    run_, command = claimed(one_postgres), opened(one_postgres, CONTRACT)
    run_.checkpoints.save([Save("parked", "k", None, parked("k"))])
    retry = batch(put({"pk": "k"}, 5), saves=[Save("parked", "k", 1, None)])
    run_.checkpoints.save([Save("parked", "k", None, parked("k", "again"))])
    with pytest.raises(Fenced):
        command.write(retry)
    assert rows(one_postgres) == []
    assert command.write(batch(put({"pk": "k"}, 5), saves=[Save("parked", "k", 2, None)])) == Outcome()
    assert run_.write(batch(put({"pk": "l"}, 5))) == Outcome()
    with pytest.raises(Fenced):
        command.write(retry)
    assert [row["pk"] for row in rows(one_postgres)] == ["k", "l"]


def test_parked_changes_are_listed_without_their_images(one_postgres: Database) -> None:
    checkpoints = claimed(one_postgres).checkpoints
    checkpoints.save([Save("parked", id, None, parked(id)) for id in ('["b"]', '["a"]', '["a"]@7', "%")])
    assert {e.text for e in checkpoints.read().entries if e.kind == "parked"} == {""}
    assert [id for id, _ in checkpoints.parked('["a"]')] == ['["a"]', '["a"]@7']
    assert [id for id, _ in checkpoints.parked("%")] == ["%"]
    ((_, found),) = checkpoints.parked('["b"]')
    assert found == Parked(('["b"]',), 5, "because", 0.0, new='{"big":{"S":"image \\u0000"}}')


def test_a_damaged_entry_is_named_and_left_unchanged(one_postgres: Database) -> None:
    checkpoints = claimed(one_postgres).checkpoints
    checkpoints.save([Save("parked", "k", None, '{"key": 5}')])
    with pytest.raises(DamagedCheckpoint, match="parked 'k'"):
        list(checkpoints.parked())


def test_a_claim_waits_for_the_batch_in_progress(postgres: Database) -> None:
    """The later run reads entries only when no batch of the earlier one can still change them."""
    early, late = claimed(postgres, "early"), target(postgres)
    with postgres.connect() as session, ThreadPoolExecutor(1) as threads:
        session.execute("BEGIN; LOCK TABLE contract IN SHARE MODE")  # holds the batch up inside its transaction
        early.send(early.encode(batch(put({"pk": "a"}, 1), saves=[Save("shard", "s", 0, "1")])))
        until(postgres, "SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND relation = 'contract'::regclass")
        claim = threads.submit(late.checkpoints.claim, owner("late"))
        until(
            postgres,
            "SELECT count(*) = 2 FROM pg_stat_activity WHERE wait_event_type = 'Lock'",
        )
        assert not claim.done()
        session.execute("COMMIT")
        state = claim.result(30)
    assert early.collect() == Outcome()
    assert [(e.kind, e.revision) for e in state.entries] == [("owner", 2), ("shard", 1)]
    with pytest.raises(Fenced, match="another run owns this pipeline"):
        early.write(batch(put({"pk": "b"}, 2)))


# a lost answer


def _lose_the_answer(one: Postgres, given: Batch, database: Database) -> None:
    """Send a batch and let go of the connection when it is committed, before the answer is read."""
    one.send(one.encode(given))
    until(database, "SELECT count(*) > 0 FROM replicator.checkpoints WHERE value::text = '\"mine\"'")
    one.close()


def test_a_batch_whose_response_was_lost_is_stored_once(postgres: Database) -> None:
    """The same call follows: entries, rows and counts are as if nothing had happened, and it is no fence."""
    one = claimed(postgres)
    one.write(batch(put({"pk": "old"}, 9), saves=[Save("shard", "s", 0, "1"), Save("shard", "done", 0, "1")]))
    saves = [Save("shard", "s", 1, '"mine"'), Save("shard", "done", 1, None), Save("pulse", "", None, "1")]
    unsure = batch(put({"pk": "a"}, 2), put({"pk": "old"}, 8, weight=3), saves=saves)
    _lose_the_answer(one, unsure, postgres)
    assert one.write(unsure) == Outcome(superseded={"shard:contract": 3})
    assert entries(one) == {("shard", "s"): (2, '"mine"'), ("pulse", ""): (1, "1")}
    assert one.checkpoints.read().counts == {"shard:contract": Counts(read=5, applied=2, superseded=3)}
    assert one.write(batch(put({"pk": "a"}, 3), saves=[Save("shard", "s", 2, "3")])) == Outcome()


def test_a_batch_whose_response_was_lost_is_still_fenced(one_postgres: Database) -> None:
    one = claimed(one_postgres)
    unsure = batch(put({"pk": "a"}, 2), saves=[Save("shard", "s", 0, '"mine"')])
    _lose_the_answer(one, unsure, one_postgres)
    claimed(one_postgres, "later")
    with pytest.raises(Fenced):
        one.write(unsure)


def test_a_partly_stored_save_does_not_count_as_stored(one_postgres: Database) -> None:
    one = claimed(one_postgres)
    one.checkpoints.save([Save("shard", "a", 0, "1")])
    with pytest.raises(Fenced):
        one.checkpoints.save([Save("shard", "a", 0, "1"), Save("shard", "b", 0, "1")])
    assert entries(one) == {("shard", "a"): (1, "1")}


# counts


def test_the_same_batch_sent_by_several_sources_is_counted_by_each(one_postgres: Database) -> None:
    one = claimed(one_postgres)
    parts = [
        Part("shard:1", [put({"pk": "a"}, 5, weight=2), put({"pk": "b"}, 5)], Counts(read=4, filtered=1)),
        Part("segment:0", [put({"pk": "c"}, 0)], Counts(read=1)),
        Part("shard:1", [remove("d", 5)], Counts(read=1)),
    ]
    assert one.write(Batch(parts)) == Outcome()
    outcome = one.write(Batch(parts))
    assert outcome.superseded == {"shard:1": 3, "segment:0": 1}, "the delete of an absent document applies again"
    assert one.checkpoints.read().counts == {
        "shard:1": Counts(read=10, applied=5, superseded=3, filtered=2),
        "segment:0": Counts(read=2, applied=1, superseded=1),
    }


def test_a_delete_is_superseded_only_by_an_equal_or_newer_version(one_postgres: Database) -> None:
    one = claimed(one_postgres)
    one.write(batch(put({"pk": "a"}, 5), remove("t", 5), tombstones=True))
    writes = {"a": 5, "t": 5, "absent": 5}
    stale = one.write(batch(*(remove(pk, n) for pk, n in writes.items()), tombstones=True)).superseded
    assert stale == {"shard:contract": 2}
    assert one.write(batch(*(remove(pk, 6) for pk in writes), tombstones=True)).superseded == {}
    assert one.write(batch(Delete("contract", ("a",), at(6), ("a",)), tombstones=True)).superseded == {
        "shard:contract": 1
    }
    assert one.write(batch(remove("a", 6))).superseded == {}, "without tombstones no delete is remembered"


def test_sweeping_counts_nothing(one_postgres: Database) -> None:
    one = claimed(one_postgres)
    one.write(batch(put({"pk": "a"}, 5)))
    before = one.checkpoints.read().counts
    assert one.sweep(CONTRACT, at(9), []) == 1
    assert one.checkpoints.read().counts == before


def test_two_connections_never_deadlock(postgres: Database) -> None:
    """Overlapping batches in opposite orders: keys are locked in one order, so there is no deadlock."""
    pair = [opened(postgres, CONTRACT), opened(postgres, CONTRACT)]
    start = threading.Barrier(2)

    def storm(one: Postgres, step: int) -> None:
        for ordinal in range(1, 40):
            start.wait(20)  # not for ever: the other one may have failed
            keys = range(200)[::step]
            one.write(Batch([Part(f"shard:{step}", [_write(key, ordinal * 2 + (step > 0)) for key in keys])]))

    with ThreadPoolExecutor(2) as threads:
        storms: list[Future[Any]] = [threads.submit(storm, one, step) for one, step in zip(pair, (1, -1), strict=True)]
        for done in storms:
            done.result()
    assert {row["_version"] for row in rows(postgres)} <= {at(79), at(78)}


def _write(key: int, ordinal: int) -> Any:
    return put({"pk": f"{key}"}, ordinal) if key % 3 else remove(f"{key}", ordinal)


def test_an_epoch_is_noted_with_its_pipeline(one_postgres: Database) -> None:
    one = target(one_postgres, pipeline="it's %s")
    one.open([CONTRACT], FIRST_EPOCH)
    run(one_postgres, "DROP SCHEMA replicator CASCADE")
    assert one.epoch([CONTRACT]) == FIRST_EPOCH, "it outlives the checkpoints"
    with one_postgres.connect() as client:
        comment = client.execute("SELECT col_description('contract'::regclass, 3)").fetchone()
    assert comment == (f"replicator: pipeline it's %s, epoch {FIRST_EPOCH}",)
