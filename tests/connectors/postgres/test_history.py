"""``history: true`` on a real Postgres: what runs keep of every change, and what ``replicator history`` says of it."""

from __future__ import annotations

import shlex
import signal
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from connectors.postgres import session
from replicator.errors import TransientError
from replicator.key import KeyAttribute, KeySchema
from replicator.target.contract import Table
from replicator.target.past import Period
from tests.cli.command_line import World
from tests.cli.test_verify import live
from tests.connectors.postgres.history_kit import as_of, changes, keep_history, n_of, resync, soon
from tests.connectors.postgres.postgres_kit import target as made_target
from tests.end_to_end.pipeline import eventually

pytestmark = pytest.mark.postgres


def test_every_change_is_kept_also_those_that_a_batch_compacts(world: World) -> None:
    keep_history(world)
    world.db.create_table("orders")
    world.db.put("orders", {"id": "before", "n": 0})
    world.catch_up()
    for n in range(3):
        world.db.put("orders", {"id": "a", "n": n})
    world.db.delete("orders", {"id": "a"})
    world.db.put("orders", {"id": "a", "n": 9})
    world.catch_up()
    assert changes(world, "a") == [
        ("insert", None, 0),
        ("modify", 0, 1),
        ("modify", 1, 2),
        ("remove", 2, None),
        ("insert", None, 9),
    ]
    assert changes(world, "a", "--limit", "2") == [("remove", 2, None), ("insert", None, 9)]
    assert world.rows("SELECT document ->> 'n' FROM orders ORDER BY id") == [("9",), ("0",)]
    assert as_of(world, soon()) == {"a": 9, "before": 0}


FILTER = """
def hook(item):
    return {"n": item["n"]} if item["n"] % 2 == 0 else None
"""

TAGS = """
from replicator import Document, documents

@documents
def hook(item):
    for tag in item["tags"]:
        yield Document(tag, {"n": item["n"]})
"""

FAILS = """
def hook(item):
    return {"n": 6 / (item["n"] - 3)}
"""


def test_a_document_that_leaves_the_hooks_filter_is_removed_in_the_history(world: World) -> None:
    world.hook(FILTER)
    keep_history(world)
    world.db.create_table("orders")
    world.db.put("orders", {"id": "odd", "n": 1})
    world.catch_up()
    for n in (1, 2, 4, 5, 6, 7):
        world.db.put("orders", {"id": "a", "n": n})
    world.catch_up()
    assert changes(world, "a") == [
        ("insert", None, 2),
        ("modify", 2, 4),
        ("remove", 4, None),
        ("insert", None, 6),
        ("remove", 6, None),
    ]
    assert changes(world, "odd") == []
    assert as_of(world, soon()) == {}


def test_each_document_of_a_hooks_own_has_its_history(world: World) -> None:
    world.hook(TAGS)
    keep_history(world)
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1", "tags": ["a"], "n": 1})
    world.catch_up()
    world.db.put("orders", {"id": "1", "tags": ["a", "b"], "n": 2})
    world.db.put("orders", {"id": "1", "tags": ["b"], "n": 3})
    world.catch_up()
    lines = world.lines("history", world.config, "--key", '{"id": "1"}')
    assert {line["key"]["_item"] for line in lines} == {'["1"]'}
    found = [(line["key"]["_id"], line["operation"], n_of(line["old"]), n_of(line["new"])) for line in lines]
    later = [change for change in found if change[2:] != (None, 1)]  # records have whole seconds, and the scan has not
    assert sorted(later) == [
        ("a", "modify", 1, 2),
        ("a", "remove", 2, None),
        ("b", "insert", None, 2),
        ("b", "modify", 2, 3),
    ]
    state = world.lines("history", world.config, "--at", soon().isoformat())
    assert [(line["key"]["_id"], line["document"]) for line in state] == [("b", {"n": 3})]


def test_a_rescan_adds_nothing_of_what_is_known_and_records_are_not_kept_twice(world: World) -> None:
    """In the new epoch the stream is read again from its beginning, and its records have other versions."""
    keep_history(world)
    world.db.create_table("orders")
    world.catch_up()
    for n in range(3):
        world.db.put("orders", {"id": "a", "n": n})
    world.db.put("orders", {"id": "b", "n": 0})
    world.catch_up()
    before = world.rows("SELECT id, _version, _operation FROM orders_history ORDER BY id, _version")
    assert world.call("resync", world.config, "--now", "--until", "caught-up")[0] == 0
    assert world.rows("SELECT id, _version, _operation FROM orders_history ORDER BY id, _version") == before
    assert len(before) == 4
    world.db.put("orders", {"id": "a", "n": 3})
    world.catch_up()
    assert changes(world, "a", "--limit", "2") == [("modify", 1, 2), ("modify", 2, 3)]


def test_what_a_scan_finds_different_is_kept_as_found_by_a_scan(world: World) -> None:
    """A stream that was replaced may have lost changes: the history says between which times they are unknown."""
    keep_history(world)
    world.db.create_table("orders")
    world.catch_up()
    for id in ("same", "changed", "removed"):
        world.db.put("orders", {"id": id, "n": 1})
    world.catch_up()
    known = datetime.now(UTC)
    world.db.disable_stream("orders")
    world.db.put("orders", {"id": "changed", "n": 2})
    world.db.delete("orders", {"id": "removed"})
    world.db.put("orders", {"id": "new", "n": 3})
    world.db.enable_stream("orders")
    assert world.call("resync", world.config, "--now", "--until", "caught-up")[0] == 0
    assert changes(world, "same")[1:] == []
    assert changes(world, "changed")[1:] == [("scan", None, 2)]
    assert changes(world, "removed")[1:] == [("remove", None, None)]
    assert changes(world, "new") == [("scan", None, 3)]
    assert as_of(world, soon()) == {"same": 1, "changed": 2, "new": 3}
    code, _, err = world.call("history", world.config, "--at", known.isoformat(), "--human")
    assert (code, "may be unknown: a new epoch began" in err) == (2, True), err


def test_a_change_that_is_parked_is_kept_without_a_document_until_it_is_retried(world: World) -> None:
    world.hook(FAILS)
    keep_history(world)
    world.db.create_table("orders")
    world.catch_up()
    for n in (1, 3):
        world.db.put("orders", {"id": "a", "n": n})
    for n in (3, 5):
        world.db.put("orders", {"id": "b", "n": n})
    world.catch_up()
    lines = world.lines("history", world.config, "--key", '{"id": "a"}')
    assert [(line["operation"], n_of(line["old"]), n_of(line["new"])) for line in lines] == [
        ("insert", None, -3),
        ("modify", -3, None),
    ]
    assert "raised DivisionByZero" in lines[1]["problem"]
    (state,) = world.lines("history", world.config, "--at", soon().isoformat(), "--key", '{"id": "a"}')
    assert (state["document"], "raised" in state["problem"]) == (None, True)
    assert changes(world, "b") == [("insert", None, None), ("modify", None, 3)]
    world.hook(FAILS.replace('item["n"] - 3', 'item["n"] - 4'))
    assert world.call("parked", "retry", world.config, "--all")[0] == 0
    assert changes(world, "a")[1] == ("modify", 6 / (1 - 4), 6 / (3 - 4))
    assert as_of(world, soon(), "--key", '{"id": "a"}') == {"a": -6}


def test_a_document_that_only_the_history_cannot_store_is_kept_with_the_reason(world: World) -> None:
    keep_history(world, "history: true\n      columns: {n: numeric}")
    world.db.create_table("orders")
    world.catch_up()
    world.db.put("orders", {"id": "a", "n": 1, "text": "a\0b"})
    world.catch_up()
    (line,) = world.lines("history", world.config, "--key", '{"id": "a"}')
    assert (line["new"], "contains a NUL character" in line["problem"]) == (None, True)
    assert world.rows("SELECT id, n FROM orders") == [("a", 1)]
    assert world.lines("verify", world.config)[-1]["result"] == "equal"


def test_a_history_begins_with_a_scan_and_ends_with_its_table(world: World) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "a", "n": 1})
    world.catch_up()
    keep_history(world)
    code, _, err = world.call("run", world.config, "--until", "caught-up", "--human")
    assert (code, "orders: history was added since the last run" in err) == (2, True), err
    before = datetime.now(UTC) - timedelta(minutes=1)
    code, out, err = world.call("check", world.config, "--human")
    assert 'CREATE TABLE "public"."orders_history"' in out
    assert world.call("resync", world.config, "--now", "--until", "caught-up")[0] == 0
    assert as_of(world, soon()) == {"a": 1}
    code, _, err = world.call("history", world.config, "--at", before.isoformat(), "--human")
    assert (code, "--at: the history begins at" in err) == (2, True)
    with world.postgres.connect() as client:
        client.execute("DROP TABLE orders_history")
    code, _, err = world.call("run", world.config, "--until", "caught-up", "--human")
    assert (code, '"public"."orders_history" is gone' in err) == (2, True)
    code, _, err = world.call("history", world.config, "--key", '{"id": "a"}', "--human")
    assert (code, "the history of orders does not exist yet" in err) == (2, True)
    assert world.call("resync", world.config, "--now", "--until", "caught-up")[0] == 0
    assert as_of(world, soon()) == {"a": 1}


def test_commands_refuse_what_a_history_cannot_say(world: World) -> None:
    code, _, err = world.call("history", world.config, "--key", "{}", "--human")
    assert (code, "no table keeps a history" in err) == (2, True)
    keep_history(world)
    world.db.create_table("orders")
    world.catch_up()
    for arguments, expected in {
        (): "give --key KEY",
        ("--key", '{"nr": 1}'): "--key: the key has the attributes id, not nr",
        ("--key", "{"): "--key: invalid JSON",
        ("--at", "2026-01-31"): "--at: must be a time with an offset, such as 2026-01-31T12:00:00Z",
        ("--at", "2026-01-31T00:00:00Z", "--limit", "1"): "they do not go with --at",
        ("--key", '{"id": "a"}', "--since", "2026-01-31T00:00:00+01:00", "--until", "2026-01-30T22:00:00Z"): (
            "--since: must not be later than --until"
        ),
        ("--at", "2001-01-31T00:00:00Z"): "--at: the history begins at",
    }.items():
        code, _, err = world.call("history", world.config, *arguments, "--human")
        assert (code, expected in err) == (2, True), err


@pytest.mark.parametrize("view", ["NEW_IMAGE", "KEYS_ONLY"])
def test_a_stream_without_old_images_is_refused(world: World, view: str) -> None:
    keep_history(world)
    world.db.create_table("orders", view=view)
    for command in (["check"], ["run", "--until", "caught-up"]):
        code, out, err = world.call(command[0], world.config, *command[1:], "--human")
        assert (code, "history: true needs old and new images" in out + err) == (2, True)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("history: {keep: 1d}", "target.tables.orders.history.keep: must be at least 2"),
        ("history: {keep: 9}", "must be a number of days such as 90d"),
        ("history: {kept: 9d}", "unknown key; did you mean keep?"),
    ],
)
def test_wrong_options_are_explained(world: World, options: str, expected: str) -> None:
    keep_history(world, options)
    code, _, err = world.call("check", world.config, "--offline", "--human")
    assert (code, expected in err) == (2, True), err


def test_the_documented_commands_show_what_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_history(world)
    world.db.create_table("orders")
    world.catch_up()
    monkeypatch.chdir(world.folder)
    world.db.put("orders", {"id": "order#1", "n": 1})
    world.catch_up()
    text = (Path(__file__).parents[3] / "docs" / "history.md").read_text()
    commands = [line for line in text.splitlines() if line.startswith("replicator history ")]
    assert len(commands) == 4
    for line in commands:
        arguments = [soon().isoformat() if "T12:00" in word else word for word in shlex.split(line, comments=True)[1:]]
        (shown,) = world.lines(*arguments)
        assert n_of(shown["new"] if "new" in shown else shown["document"]) == 1
        assert world.call(*arguments, "--human")[1].startswith(("20", "orders "))


def test_a_run_removes_what_is_older_than_is_kept(world: World) -> None:
    keep_history(world, "history: {keep: 2d}")
    world.db.create_table("orders")
    world.catch_up()
    world.db.put("orders", {"id": "a", "n": 1})
    world.catch_up()
    partitions = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'orders_history'::regclass"
    ((before,),) = world.rows(partitions)
    with world.postgres.connect() as client:
        client.execute("CREATE TABLE orders_history_20010101 (LIKE orders_history INCLUDING ALL)")
        client.execute(
            "ALTER TABLE orders_history ATTACH PARTITION orders_history_20010101 "
            "FOR VALUES FROM ('2001-01-01T00:00:00Z') TO ('2001-01-02T00:00:00Z')"
        )
        client.execute(
            "INSERT INTO orders_history VALUES ('old', '2001-01-01T10:00:00Z', '', 1024::bigint << 48, 'scan', NULL, "
            """'{"n": 7}')"""
        )
    with world.shell.start("run", world.config) as process:
        eventually(lambda: world.rows(partitions) == [(before,)], "the partition is removed")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert as_of(world, soon()) == {"a": 1, "old": 7}
    assert world.rows("SELECT id FROM orders_history") == [("a",)]


def test_status_says_since_when_the_history_tells_the_table_and_how_large_it_is(world: World) -> None:
    before = time.time()
    keep_history(world, "history: {keep: 2d}")
    world.db.create_table("orders")
    world.db.put("orders", {"id": "a", "n": 1})
    world.catch_up()
    with live(world):
        (history,) = eventually(lambda: world.lines("status", world.config)[0]["histories"], "it is looked at")
        _, out, _ = world.call("status", world.config, "--human")
    assert before - 1 < history["since"] < time.time()
    assert (history["table"], history["unknown_seconds"], history["removed_before"]) == ("orders", 0.0, None)
    assert (history["partitions"], history["lost"]) == (4, None)
    assert (
        history["bytes"]
        == world.rows(
            "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class "
            "WHERE relname LIKE 'orders_history%' AND relkind = 'r'"
        )[0][0]
    )
    assert "orders: since 20" in out
    assert "in 4 partition(s)" in out
    told = datetime.fromtimestamp(history["since"] + 0.001, UTC)  # no microsecond before it
    code, shown, _ = world.call("history", world.config, "--at", told.isoformat())
    assert (code, "a" in shown) == (0, True)


def test_retention_waits_for_readers_of_the_history(world: World) -> None:
    keep_history(world, "history: {keep: 2d}")
    world.db.create_table("orders")
    world.catch_up()
    target = made_target(world.postgres, "orders")
    table = Table("orders", KeySchema((KeyAttribute("id", "S"),)), {"history": {"keep": "2d"}})
    with world.postgres.connect() as client:
        client.execute(
            "CREATE TABLE orders_history_20010101 PARTITION OF orders_history "
            "FOR VALUES FROM ('2001-01-01T00:00:00Z') TO ('2001-01-02T00:00:00Z')"
        )
    with world.postgres.connect() as reader, reader.transaction():
        reader.execute("SELECT count(*) FROM orders_history")
        with pytest.raises(TransientError):
            target.retain([table])
    assert target.retain([table])
    assert not target.retain([table])


def test_gaps_of_a_history_are_not_repaired_from_exports(world: World) -> None:
    keep_history(world)
    world.db.create_table("orders")
    world.change("pipeline: orders", "pipeline: orders\non_gap: export\nbackfill: {bucket: exports}")
    for command in (["check"], ["run", "--until", "caught-up"]):
        code, out, err = world.call(command[0], world.config, *command[1:], "--human")
        assert (code, "is not supported for tables that keep a history" in out + err) == (2, True), out + err


def _new_stream(world: World) -> None:
    world.db.disable_stream("orders")
    world.db.enable_stream("orders")


def test_after_a_resync_under_another_hook_the_history_has_the_state_of_the_table(world: World) -> None:
    """The stream is read again, and has changes that the earlier hook left out between those that are known."""
    world.hook(FILTER)
    keep_history(world)
    world.db.create_table("orders")
    world.catch_up()
    for n in (2, 3, 5, 4):
        world.db.put("orders", {"id": "a", "n": n})
    world.catch_up()
    world.hook('def hook(item):\n    return {"n": item["n"]}\n')
    resync(world)
    assert as_of(world, soon()) == {"a": 4}
    assert changes(world, "a") == [("insert", None, 2), ("remove", 2, None), ("modify", 3, 5), ("insert", None, 4)]


def test_until_the_scan_of_a_resync_is_done_its_times_are_refused(world: World) -> None:
    keep_history(world)
    world.db.create_table("orders")
    world.db.put("orders", {"id": "a", "n": 1})
    world.catch_up()
    before = datetime.now(UTC) - timedelta(seconds=1)
    world.db.disable_stream("orders")
    world.db.put("orders", {"id": "a", "n": 2})
    world.db.enable_stream("orders")
    world.db.fail("Scan", times=None)
    epochs = "SELECT count(*) FROM replicator.checkpoints WHERE kind = 'history'"
    with world.shell.start("resync", world.config, "--now", "--until", "caught-up") as process:
        eventually(lambda: world.rows(epochs) == [(2,)], "the epoch begins")
        code, _, err = world.call("history", world.config, "--at", soon().isoformat(), "--human")
        assert (code, "are not known yet: the scan that began then is not done" in err) == (2, True), err
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    between = datetime.now(UTC)
    world.db.heal()
    resync(world)
    code, _, err = world.call("history", world.config, "--at", between.isoformat(), "--human")
    assert (code, "may be unknown" in err) == (2, True), err
    assert as_of(world, soon()) == {"a": 2}
    assert world.call("history", world.config, "--at", before.isoformat())[0] in (0, 2)


def test_a_history_that_was_turned_off_begins_anew_without_what_was_deleted_meanwhile(world: World) -> None:
    world.db.create_table("orders")
    keep_history(world)
    for id in ("a", "b"):
        world.db.put("orders", {"id": id, "n": 1})
    world.catch_up()
    kept = datetime.now(UTC)
    world.change("history: true", "adopt: false")
    assert world.call("resync", world.config, "--now", "--until", "caught-up", "--accept-identity-change")[0] == 0
    world.db.delete("orders", {"id": "a"})
    world.catch_up()
    world.change("adopt: false", "history: true")
    _new_stream(world)
    assert world.call("resync", world.config, "--now", "--until", "caught-up", "--accept-identity-change")[0] == 0
    assert as_of(world, soon()) == {"b": 1}
    code, _, err = world.call("history", world.config, "--at", kept.isoformat(), "--human")
    assert (code, "--at: the history begins at" in err) == (2, True), err


def test_a_parked_insert_that_a_resync_does_not_find_is_gone(world: World) -> None:
    world.hook(FAILS)
    keep_history(world)
    world.db.create_table("orders")
    world.catch_up()
    world.db.put("orders", {"id": "a", "n": 3})
    world.catch_up()
    world.db.disable_stream("orders")
    world.db.delete("orders", {"id": "a"})
    world.db.enable_stream("orders")
    resync(world)
    assert world.lines("history", world.config, "--at", soon().isoformat()) == []


def test_the_removal_of_an_item_whose_image_was_parked_is_kept(world: World) -> None:
    world.hook(FAILS)
    keep_history(world)
    world.db.create_table("orders")
    world.catch_up()
    world.db.put("orders", {"id": "a", "n": 3})
    world.catch_up()
    world.db.delete("orders", {"id": "a"})
    world.catch_up()
    assert [operation for operation, _, _ in changes(world, "a")] == ["insert", "remove"]
    assert world.lines("history", world.config, "--at", soon().isoformat()) == []


def test_a_document_that_only_the_server_refuses_to_keep_has_the_reason_in_its_place(world: World) -> None:
    world.hook(
        "from decimal import Decimal\n\n"
        "def hook(item):\n"
        '    return {"n": item["n"], "big": Decimal("1E+200000") if item["n"] == 2 else 0}\n'
    )
    keep_history(world, "history: true\n      columns: {n: numeric}\n      extra: ignore")
    world.db.create_table("orders")
    world.catch_up()
    for n in (1, 2, 3):
        world.db.put("orders", {"id": "a", "n": n})
    for id in "bcd":
        world.db.put("orders", {"id": id, "n": 2})
    world.catch_up()
    assert world.lines("verify", world.config)[-1]["result"] == "equal"
    lines = world.lines("history", world.config, "--key", '{"id": "a"}')
    assert [n_of(line["new"]) for line in lines] == [1, None, 3]
    assert "Postgres refuses it for the history of orders" in lines[1]["problem"]
    assert world.rows("SELECT id, n FROM orders WHERE n = 3") == [("a", 3)]


def test_a_table_with_the_name_of_anothers_history_is_refused(world: World) -> None:
    world.hook(TAGS)
    world.db.create_table("orders")
    old = f"url: {world.postgres.url}\n  table: orders"
    for name in ("orders_history", "orders_history_base"):
        new = f"url: {world.postgres.url}\n  tables:\n    orders:\n      history: true\n    {name}: {{}}"
        world.change(old, new)
        code, out, err = world.call("check", world.config, "--human")
        assert (code, "the history of orders has a table of this name" in out + err) == (2, True), out + err
        world.change(new, old)


def test_each_line_has_the_documented_fields(world: World) -> None:
    """And keys of any type are found by what a person would write, and shown so."""
    keep_history(world)
    world.db.create_table("orders", keys={"id": "N", "part": "B"})
    world.db.put("orders", {"id": Decimal("1.50"), "part": b"\x00\xff", "n": 0})
    world.catch_up()
    world.db.put("orders", {"id": Decimal("1.5"), "part": b"\x00\xff", "n": 1})
    world.catch_up()
    for key in ('{"id": 1.5, "part": "AP8="}', '{"part": "AP8=", "id": 1.500}', '{"id": 15e-1, "part": "AP8="}'):
        change = world.lines("history", world.config, "--key", key)[-1]
        assert list(change) == ["table", "key", "version", "at", "operation", "sequence", "old", "new"]
        assert change["key"] == {"id": "1.5", "part": "AP8="}
        assert change["sequence"].isdigit()
        assert datetime.fromisoformat(change["at"]).utcoffset() == timedelta(0)
        (state,) = world.lines("history", world.config, "--at", soon().isoformat(), "--key", key)
        assert list(state) == ["table", "key", "document", "version"]
        assert (state["key"], state["document"]["n"]) == (change["key"], 1)
    for key, expected in {
        '{"id": "1.5", "part": "AP8="}': "key attribute id is of type N (number): write it without quotes, such as 5",
        '{"id": 1.5, "part": "AP8"}': "key attribute part is binary: write it in base64",
        '{"id": 1.5, "part": 5}': "key attribute part is binary: write it in base64",
        '{"id": 1.5}': "--key: the key has the attributes id, part, not id",
    }.items():
        code, _, err = world.call("history", world.config, "--key", key, "--human")
        assert (code, expected in err) == (2, True), err
    text = (Path(__file__).parents[3] / "docs" / "history.md").read_text()
    assert all(f"`{field}`" in text for field in {*change, *state, "problem"})


@pytest.mark.parametrize("value", ["null", "true", '["a"]', '{"S": "a"}'])
def test_where_the_hook_chooses_ids_a_key_has_texts_and_numbers_only(world: World, value: str) -> None:
    """Else the answer would be that nothing is kept."""
    world.hook(TAGS)
    world.db.create_table("orders")
    keep_history(world)
    world.catch_up()
    code, _, err = world.call("history", world.config, "--key", f'{{"id": {value}}}', "--human")
    assert (code, "--key: a key's values are texts in quotes, numbers, or binary in base64" in err) == (2, True), err


def test_an_item_of_which_nothing_is_kept_is_said_to_have_none(world: World) -> None:
    keep_history(world)
    world.db.create_table("orders")
    world.catch_up()
    code, out, err = world.call("history", world.config, "--key", '{"id": "no such"}')
    assert (code, out, "no change of this item is kept" in err) == (0, "", True)
    code, out, err = world.call("history", world.config, "--key", '{"id": "no such"}', "--at", soon().isoformat())
    assert (code, out, "this item had no document then" in err) == (0, "", True)


def test_an_answer_is_read_in_pieces_for_as_long_as_its_reader_takes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_history(world)
    world.db.create_table("orders")
    world.catch_up()
    with world.postgres.connect() as client:
        client.execute(
            "INSERT INTO orders_history SELECT 'a', now(), n, 1024::bigint << 48, 'modify', NULL, '{}' "
            "FROM generate_series(1, 5000) AS n"
        )
    monkeypatch.setattr(session, "_SETTINGS", session._SETTINGS.replace("'60s'", "'100ms'"))
    target = made_target(world.postgres, "orders")
    table = Table("orders", KeySchema((KeyAttribute("id", "S"),)), {"history": {}})
    shown = target.history_changes(table, '{"id": "a"}', Period())
    next(shown)
    assert world.rows("SELECT 1 FROM pg_stat_activity WHERE query LIKE 'FETCH FORWARD 1000 %'") != []
    world.rows("SELECT pg_sleep(0.5)")
    assert len(list(shown)) == 4999
