"""Backfill and live changes at once, through every kind of hook, on real servers."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

from tests.end_to_end.conftest import NewSource
from tests.end_to_end.world import Copy, Load, Source
from tests.security.canary import VALUE
from tests.servers.dynamodb_local import DynamoDBLocal
from tests.servers.postgres_fixtures import Database

TYPED = """
def hook(item):
    if item["n"] % 3 == 0:
        return None
    return {"title": f"no {item['n']}", "amount": item["n"] / 8, "even": item["n"] % 2 == 0}
"""
FAN_OUT = """
from replicator import Document, documents

@documents
def hook(item):
    yield Document("head", {"n": item["n"]}, table="heads")
    for i in range(int(item["n"]) % 4):
        yield Document(f"line-{i}", {"place": i, "n": item["n"]}, table="lines")
"""


def test_a_backfill_beside_live_writes_deletes_and_roll_overs_ends_equal(
    tmp_path: Path, local: DynamoDBLocal, source: Source, postgres: Database
) -> None:
    copy = Copy(tmp_path, source, postgres).configure(backfill={"segments": 2, "read_units": 30})
    source.fill(800, filler="x" * 4000)

    def roll(done: int) -> None:
        if done % 80 == 40:
            local.roll()

    with copy.start() as run:
        run.eventually(copy.rows, "the backfill began")
        with Load(source, seed=1, keys=800, every=roll) as load:
            load.wait(200)
            during = copy.status()
            assert run.stop().code == 0
            load.wait(50)
    copy.configure(backfill={"segments": 2})
    with copy.start("run", "--until", "caught-up") as run:
        with Load(source, seed=2, keys=800, every=roll) as load:
            load.wait(50)
        ended = run.wait()

    assert during["phase"] == "backfill"
    assert ended.code == 0, ended.err
    assert ended.lines[-1]["event"] == "caught up"
    copy.caught_up()
    copy.assert_equal()
    status = copy.status()
    assert status["shards"]["ended"] + status["shards"]["open"] >= 4  # generations
    assert copy.counts()["read"] == status["backfill"]["items"] + source.records


def test_a_hook_that_filters_into_typed_columns_keeps_only_what_it_returns(copy: Copy, source: Source) -> None:
    columns = {"title": "text", "amount": "numeric", "even": "boolean"}
    copy.configure(TYPED, tables={"copy": {"columns": columns}})
    source.fill(90, filler="x")
    copy.caught_up()
    source.put("k1", n=3)  # leaves the filter
    source.put("k3", n=1)  # enters it
    source.put("k4", n=Decimal("7.5"))
    source.delete("k5")
    copy.caught_up()

    wanted = {
        pk: (f"no {item['n']}", item["n"] / 8, item["n"] % 2 == 0)
        for pk, item in source.items().items()
        if item["n"] % 3 != 0
    }
    rows = copy.query("SELECT pk, title, amount, even FROM copy")
    assert {r["pk"]: (r["title"], r["amount"], r["even"]) for r in rows} == wanted
    assert copy.counts()["filtered"] > 0


def test_documents_with_their_own_ids_move_into_and_out_of_several_tables(copy: Copy, source: Source) -> None:
    copy.configure(FAN_OUT, tables={"heads": {}, "lines": {}})
    source.fill(60)
    copy.caught_up()
    with Load(source, seed=2, keys=60) as load:
        load.wait(120)
    copy.caught_up()

    items = source.items().items()
    heads = copy.query("SELECT _item, _id, document FROM heads")
    lines = copy.query("SELECT _item, _id, document FROM lines")
    assert {(r["_item"], r["_id"]): r["document"] for r in heads} == {
        (f'["{pk}"]', "head"): {"n": item["n"]} for pk, item in items
    }
    assert {(r["_item"], r["_id"]): r["document"] for r in lines} == {
        (f'["{pk}"]', f"line-{i}"): {"place": i, "n": item["n"]}
        for pk, item in items
        for i in range(int(item["n"]) % 4)
    }
    copy.counts()


def test_a_stream_of_keys_only_is_read_by_look_ups(
    tmp_path: Path, local: DynamoDBLocal, new_source: NewSource, one_postgres: Database
) -> None:
    source = new_source("KEYS_ONLY")
    copy = Copy(tmp_path, source, one_postgres).configure()
    source.fill(50)
    copy.caught_up()
    with Load(source, seed=3, keys=80) as load:
        load.wait(150)
        local.roll()
        load.wait(50)
    copy.caught_up()

    copy.assert_equal()
    assert copy.counts()["read"] == 50 + source.records


def test_without_a_backfill_only_changes_from_now_on_are_copied(
    copy: Copy, local: DynamoDBLocal, source: Source
) -> None:
    copy.configure(backfill={"enabled": False})
    source.fill(20, prefix="old")
    local.roll()  # a shard that is open when the copy begins is read from its first record
    copy.caught_up()
    source.put("new", n=1)
    source.delete("old3")
    copy.caught_up()

    assert copy.documents() == {"new": {"pk": "new", "n": 1, "canary": VALUE}}
    status = copy.status()
    assert status["backfill"] is None
    assert status["counts"]["read"] == 2


def scanned(copy: Copy) -> int:
    """Items of the scan that are stored; the stream brings its rows beside them."""
    told = copy.command("status", "--json").lines  # none before the run has claimed the pipeline
    backfill = told[0]["backfill"] if told else None
    return backfill["items"] if backfill is not None else 0


def test_a_backfill_that_was_stopped_goes_on_where_it_was(copy: Copy, source: Source) -> None:
    copy.configure(backfill={"segments": 3, "read_units": 50})
    source.fill(800, filler="x" * 6000)
    with copy.start() as run:
        run.eventually(lambda: scanned(copy), "the backfill began")
        assert run.stop().code == 0
    stopped = scanned(copy)
    copy.configure(backfill={"segments": 3})
    copy.caught_up()

    assert 0 < stopped < 800
    status = copy.status()
    assert status["backfill"]["items"] == 800  # each was scanned once
    assert status["counts"]["read"] == 800 + source.records
    copy.assert_equal()
