"""``replicator parked``: rejected changes can be listed, retried at their own version, or discarded."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from replicator.cli import main
from replicator.config.settings import load
from replicator.engine.assembly import ends
from replicator.operations import parked as parking
from replicator.operations.parked import BUSY, CHANGED, GONE, SUPERSEDED, ParkedItem
from replicator.state import Heartbeat, Owner, Parked, Save, Verified, encode
from replicator.testing.memory import MemoryCheckpoints, MemoryDatabase, MemoryTarget
from tests.cli.command_line import World, pristine
from tests.operations.test_parked import Moving

command_line = import_module("replicator.cli.parked")  # the package has the command under this name
NEEDS_TOTAL = "def hook(item):\n    return {'total': item['total'], 'note': item.get('note')}\n"
BAD = '["bad"]'
FIXED = "def hook(item):\n    return {'total': item.get('total', 0), 'note': item.get('note')}\n"
COLUMNS = "{columns: {total: {type: numeric}}}"
FAN_OUT = """
from replicator import Document, documents

@documents
def hook(item):
    if "broken" in item:
        raise ValueError("broken")
    return [Document(id=tag, body={"tag": tag}) for tag in item.get("tags", ())]
"""


@pytest.fixture
def parked(world: World) -> World:
    """A pipeline with one stored item, two parked ones, and no run."""
    world.db.create_table("orders")
    world.db.put("orders", {"id": "good", "total": 1})
    world.db.put("orders", {"id": "bad", "note": "private"})
    world.db.put("orders", {"id": "worse"})
    world.hook(NEEDS_TOTAL)
    world.catch_up()
    return world


def counts(world: World) -> dict[str, int]:
    summed: dict[str, int] = world.lines("status", world.config)[0]["counts"]
    assert summed["read"] == summed["applied"] + summed["superseded"] + summed["filtered"] + summed["parked"], summed
    return summed


def test_list_shows_items_and_reasons(parked: World) -> None:
    items = parked.lines("parked", "list", parked.config)

    assert [item["item"] for item in items] == ['["bad"]', '["worse"]']
    assert all("raised KeyError at hooks.py:2: no attribute 'total'" in item["reason"] for item in items)
    human = parked.call("parked", "list", parked.config, "--human")[1]
    assert human.endswith("2 item(s) parked\n")


def test_the_fields_are_those_that_the_documentation_lists(parked: World) -> None:
    text = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    table = text.partition("`parked show --json` has all but `item`:\n\n")[2].partition("\n\n")[0]
    documented = {name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.partition(" | ")[0])}
    shown = parked.lines("parked", "show", parked.config, "--all", "--show-values")
    listed = parked.lines("parked", "list", parked.config)

    assert {name for fields in (*listed, *shown) for name in fields} == documented
    assert all(abs(time.time() - fields["parked_at"]) < 3600 for fields in (*listed, *shown))


def test_values_are_shown_only_on_request(parked: World) -> None:
    for command in (["list"], ["show", "--all"]):
        assert "private" not in parked.call("parked", *command[:1], parked.config, *command[1:])[1]

    (item,) = parked.lines("parked", "show", parked.config, '[ "bad" ]', "--show-values")
    assert '"note":{"S":"private"}' in item["new"].replace(" ", "")
    assert "KeyError" in item["traceback"]
    text = parked.call("parked", "show", parked.config, "--all", "--show-values", "--human")[1]
    assert "private" in text
    assert '\nkey: ["bad"]\n' in text, "as the other commands take it"


def test_retry_with_the_same_hook_changes_nothing_and_is_exit_code_6(parked: World) -> None:
    before = counts(parked)
    code, out, err = parked.call("parked", "retry", parked.config, "--all", "--human")

    assert (code, "the hook is not the one" in err) == (6, False)
    assert out.count("still parked: hook hook raised KeyError") == 2
    assert counts(parked) == before
    assert len(parked.lines("parked", "list", parked.config)) == 2


def test_retry_with_a_fixed_hook_stores_what_was_parked(parked: World) -> None:
    before = counts(parked)
    parked.hook(FIXED)
    code, out, err = parked.call("parked", "retry", parked.config, '["bad"]', "--human")

    assert (code, out) == (0, '["bad"]  stored\n')
    assert "the next run ends with exit code 2 until you choose: replicator run CONFIG --accept-hook-change" in err
    assert parked.rows("SELECT document->>'note' FROM orders WHERE id = 'bad'") == [("private",)]
    assert [f["item"] for f in parked.lines("parked", "list", parked.config)] == ['["worse"]']
    after = counts(parked)
    assert after["applied"] + after["superseded"] > before["applied"] + before["superseded"]
    assert after["parked"] < before["parked"]
    assert parked.call("parked", "retry", parked.config, "--all")[0] == 0
    assert parked.lines("status", parked.config)[0]["parked"] == 0


def test_a_retry_whose_config_names_another_table_is_refused_and_the_item_stays_parked(parked: World) -> None:
    """It would be stored there, and be missing forever where the pipeline continues."""
    parked.hook(FIXED)
    parked.change("  table: orders\n", "  table: staging\n")
    parked.change("source:\n  table: staging", "source:\n  table: orders")
    code, _, err = parked.call("parked", "retry", parked.config, "--all")

    assert code == 2
    assert 'this pipeline writes to "public"."orders", but the config names "public"."staging"' in err
    assert not parked.has_table("staging")
    parked.change("table: staging", "table: orders")
    assert len(parked.lines("parked", "list", parked.config)) == 2


def test_a_retry_whose_config_defines_the_table_differently_is_refused(parked: World) -> None:
    parked.hook(FIXED)
    parked.change(f"{parked.postgres.url}\n  table: orders", f"{parked.postgres.url}\n  tables: {{orders: {COLUMNS}}}")
    code, _, err = parked.call("parked", "retry", parked.config, "--all")

    assert code == 2
    assert "since the last run" in err
    assert len(parked.rows("SELECT id FROM orders")) == 1


def test_a_retry_with_a_hook_that_filters_the_item_removes_it(parked: World) -> None:
    parked.hook("def hook(item):\n    return None\n")

    assert parked.call("parked", "retry", parked.config, "--all")[0] == 0
    assert parked.rows("SELECT id FROM orders") == [("good",)]
    assert parked.lines("parked", "list", parked.config) == []
    counts(parked)


def test_retry_never_overwrites_a_newer_state(parked: World) -> None:
    with parked.postgres.connect() as connection:
        connection.execute(
            "INSERT INTO orders (id, document, _version) VALUES ('bad', '{\"newer\": true}', 9000000000000000000)"
        )
    parked.hook(FIXED)

    assert parked.call("parked", "retry", parked.config, '["bad"]')[0] == 0
    assert parked.rows("SELECT document FROM orders WHERE id = 'bad'") == [({"newer": True},)]
    assert counts(parked)["superseded"] >= 1


def test_an_item_that_the_target_refuses_again_stays_parked(parked: World) -> None:
    parked.hook("def hook(item):\n    return {'total': float('nan')}\n")
    code, out, _ = parked.call("parked", "retry", parked.config, '["bad"]', "--human")

    assert code == 6
    assert "still parked: " in out
    assert len(parked.lines("parked", "list", parked.config)) == 2


def test_drop_discards_the_item_and_counts_its_changes(parked: World) -> None:
    before = counts(parked)
    assert parked.call("parked", "drop", parked.config, "--yes", '["bad"]')[0] == 0

    assert [f["item"] for f in parked.lines("parked", "list", parked.config)] == ['["worse"]']
    after = counts(parked)
    given_up = after["filtered"] - before["filtered"]
    assert given_up in (1, 2), "the item was scanned, and streamed too if the stream came first"
    assert after["parked"] == before["parked"] - given_up
    assert parked.rows("SELECT id FROM orders") == [("good",)]


def test_after_a_drop_no_earlier_verify_pass_vouches_for_the_copy(parked: World) -> None:
    with ends(load(parked.config)) as (_, checkpoints):
        checkpoints.save([Save("verified", "", None, encode(Verified(1.0, 2.0, 1024, "full", 1, ended=3.0)))])
    assert parked.call("parked", "drop", parked.config, "--yes", '["bad"]')[0] == 0
    (status,) = parked.lines("status", parked.config, "--no-exit-code")
    assert status["verified"] is None


@pytest.mark.parametrize("command", ["show", "retry", "drop"])
def test_an_item_that_is_not_parked_or_missing_is_reported(parked: World, command: str) -> None:
    code, _, err = parked.call("parked", command, parked.config, '["good"]')
    assert code == 2
    assert '["good"] is not parked' in err

    code, _, err = parked.call("parked", command, parked.config, '{"id": "bad"}')
    assert code == 2
    assert """name an item as `replicator parked list` prints it: its key's values""" in err
    assert 'such as ["bad"]' in err

    code, _, err = parked.call("parked", command, parked.config)
    assert code == 2
    assert "or use --all" in err


@pytest.mark.parametrize("item", ['["d1","17"]', '["d1", 17]', '["d1", 17.0]', '["d1", 1.7e1]'])
def test_a_number_in_a_parked_items_key_is_named_with_or_without_quotes(world: World, item: str) -> None:
    world.db.create_table("orders", keys={"id": "S", "at": "N"})
    world.db.put("orders", {"id": "d1", "at": 17})
    world.hook(NEEDS_TOTAL)
    world.catch_up()
    (shown,) = world.lines("parked", "show", world.config, item)
    assert shown["key"] == ["d1", "17"]


@pytest.mark.parametrize("item", ["[" * 100_000, '["\\ud800"]', "17", '[["bad"]]', "[1e999999999]"])
def test_no_text_that_names_no_item_ends_a_command_as_a_bug(parked: World, item: str) -> None:
    code, _, err = parked.call("parked", "show", parked.config, item)
    assert (code, "is not parked" in err) == (2, True), err


def test_a_pipeline_that_never_ran_has_nothing_parked(world: World) -> None:
    with ends(load(world.config)) as (_, checkpoints):
        checkpoints.claim(Owner("run", "here", 1, 0.0))

    assert world.lines("parked", "list", world.config) == []
    code, _, err = world.call("parked", "retry", world.config, "--all")
    assert code == 2
    assert "has not started yet, so nothing is parked" in err


def test_all_parked_changes_of_an_item_are_retried_together(world: World) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1", "tags": ["a", "b"]})
    world.hook(FAN_OUT)
    world.catch_up()
    world.db.put("orders", {"id": "1", "tags": ["b", "c"], "broken": 1})
    world.db.put("orders", {"id": "1", "tags": ["c"], "broken": 2})
    world.catch_up()
    assert world.rows("SELECT _id FROM orders ORDER BY 1") == [("a",), ("b",)]
    (item,) = world.lines("parked", "list", world.config)
    assert (item["item"], item["changes"]) == ('["1"]', 2)

    world.hook(FAN_OUT.replace('raise ValueError("broken")', "pass"))
    code, out, _ = world.call("parked", "retry", world.config, "--all", "--human")

    assert (code, out) == (0, '["1"]  stored\n')
    assert world.rows("SELECT _id FROM orders ORDER BY 1") == [("c",)]
    assert counts(world)["parked"] == 0


def park_scanned(world: World, *ids: str) -> None:
    """Items from before the stream, on which the hook fails."""
    world.db.create_table("orders", view=None)
    for id in ids:
        world.db.put("orders", {"id": id, "tags": ["a"], "broken": 1})
    world.db.enable_stream("orders")
    world.hook(FAN_OUT)
    world.catch_up()


def test_a_retry_of_a_scanned_item_stores_it_only_if_the_source_still_has_it(world: World) -> None:
    """Documents with their own ids have no tombstones of an image that no hook could read."""
    park_scanned(world, "1", "2")
    world.db.put("orders", {"id": "2", "tags": ["b"]})
    world.hook(FAN_OUT.replace('raise ValueError("broken")', "pass"))
    code, out, _ = world.call("parked", "retry", world.config, "--all", "--human")

    assert (code, out) == (0, f'["1"]  stored\n["2"]  superseded: {SUPERSEDED}\n')
    assert world.rows("SELECT _id FROM orders ORDER BY 1") == [("a",)]
    assert counts(world)["parked"] == 0


def test_a_retry_without_permission_to_read_the_source_names_it_and_keeps_the_item_parked(world: World) -> None:
    park_scanned(world, "1")
    world.db.fail("GetItem", "AccessDeniedException", times=1)
    code, _, err = world.call("parked", "retry", world.config, "--all")

    assert code == 4
    assert "dynamodb:GetItem on orders" in err
    assert counts(world)["parked"] == 1


def test_after_a_drop_the_items_next_change_removes_what_it_had_before(world: World) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1", "tags": ["a", "b"]})
    world.hook(FAN_OUT)
    world.catch_up()
    world.db.put("orders", {"id": "1", "tags": ["b"], "broken": 1})
    world.catch_up()
    assert world.call("parked", "drop", world.config, "--yes", "--all")[0] == 0
    assert world.lines("status", world.config)[0]["parked"] == 0
    assert world.rows("SELECT _id FROM orders ORDER BY 1") == [("a",), ("b",)]

    world.db.put("orders", {"id": "1", "tags": ["c"]})
    world.catch_up()
    assert world.rows("SELECT _id FROM orders ORDER BY 1") == [("c",)]


def test_a_retry_during_a_run_does_not_take_over_the_pipeline(parked: World) -> None:
    config = load(parked.config)
    owner = config.target.build(config.pipeline)
    try:
        checkpoints = owner.checkpoints  # type: ignore[attr-defined]
        checkpoints.claim(Owner("run", "here", 1, 0.0))
        parked.hook(FIXED)
        assert parked.call("parked", "retry", parked.config, "--all")[0] == 0
        checkpoints.save([])  # not fenced
    finally:
        owner.close()


@pytest.mark.parametrize("act", ["retry", "drop"])
def test_an_item_that_runs_keep_changing_stays_parked_which_is_exit_code_6(
    parked: World, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    monkeypatch.setattr(parking, act, lambda *given, **named: CHANGED)
    flags = ["--yes"] if act == "drop" else []
    code, out, _ = parked.call("parked", act, parked.config, *flags, '["bad"]', "--human")

    assert code == 6
    assert f'["bad"]  still parked: {CHANGED}' in out


@pytest.mark.parametrize("command", ["show", "retry", "drop"])
def test_an_empty_item_is_an_error_and_does_not_mean_all_items(parked: World, command: str) -> None:
    code, _, err = parked.call("parked", command, parked.config, "")

    assert code == 2
    assert "an ITEM is empty; name it as `replicator parked list` prints it, or use --all" in err
    assert len(parked.lines("parked", "list", parked.config)) == 2


def test_naming_items_together_with_all_is_an_error(parked: World) -> None:
    code, _, err = parked.call("parked", "drop", parked.config, "--yes", "--all", '["bad"]')
    assert code == 2
    assert "name items or use --all, not both" in err


def test_discarding_requires_a_confirmation(parked: World) -> None:
    code, _, err = parked.call("parked", "drop", parked.config, "--all")

    assert code == 2
    assert "this permanently discards the parked changes of 2 item(s); add --yes to confirm" in err
    assert len(parked.lines("parked", "list", parked.config)) == 2


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("n\n", 2)])
def test_on_a_terminal_the_confirmation_decides(
    parked: World, monkeypatch: pytest.MonkeyPatch, answer: str, left: int
) -> None:
    monkeypatch.setattr(command_line, "_confirmed", lambda count: answer == "y\n")
    assert parked.call("parked", "drop", parked.config, "--all")[0] == 0
    assert len(parked.lines("parked", "list", parked.config)) == left


def test_an_item_that_a_run_changes_at_the_same_time_is_retried() -> None:
    first = ParkedItem("a", "a@1", 1, Parked(("a",), 1, "no", 0.0))
    database = MemoryDatabase()
    target = MemoryTarget(database)
    text = encode(Parked(("a",), 2, "no", 0.0))
    target.checkpoints.save([Save("parked", f'["a"]@{2:019d}', 0, text)])
    tried: list[int] = []

    def busy(item: ParkedItem) -> str:
        tried.append(item.entry.version)
        return CHANGED if len(tried) < 3 else ""

    seen = replace(first, item='["a"]')
    assert command_line._unless_busy(seen, target.checkpoints, busy) == ""
    assert tried == [1, 2, 2]
    assert command_line._unless_busy(seen, target.checkpoints, lambda _: CHANGED) == CHANGED
    database.entries.clear()
    assert command_line._unless_busy(seen, target.checkpoints, lambda _: CHANGED) == GONE


@pytest.mark.parametrize("command", ["retry", "drop"])
@pytest.mark.parametrize("other", ["retry", "drop"])
def test_an_item_that_another_command_settled_meanwhile_is_no_longer_parked(
    parked: World, monkeypatch: pytest.MonkeyPatch, command: str, other: str
) -> None:
    parked.hook(FIXED)
    act = getattr(parking, command)
    flags = ["--yes"] if command == "drop" else []

    def behind(item: ParkedItem, *given: Any, **named: Any) -> str:
        monkeypatch.setattr(parking, command, act)
        assert parked.call("parked", other, parked.config, BAD, *(["--yes"] if other == "drop" else []))[0] == 0
        return str(act(item, *given, **named))

    monkeypatch.setattr(parking, command, behind)
    code, out, _ = parked.call("parked", command, parked.config, BAD, "--json", *flags)
    assert (code, [orjson.loads(line) for line in out.splitlines()]) == (
        0,
        [{"item": BAD, "outcome": "no longer parked", "reason": GONE}],
    )


def test_an_item_that_was_settled_before_it_was_read_is_no_longer_parked(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryCheckpoints(MemoryDatabase())
    for key in ("a", "b"):
        store.save([Save("parked", f'["{key}"]@{1:019d}', 0, encode(Parked((key,), 1, "no", 0.0)))])

    @contextmanager
    def opened(config: str, target: str | None) -> Iterator[tuple[None, None, MemoryCheckpoints]]:
        yield None, None, store

    def settled(found: Any, *_: Any, **__: Any) -> bool:
        store.save([Save("parked", f'["b"]@{1:019d}', None, None)])
        return True

    monkeypatch.setattr(command_line, "_opened", opened)
    monkeypatch.setattr(command_line, "_confirmed", settled)
    result = CliRunner().invoke(main, ["parked", "drop", "orders.yaml", "--all", "--json"])
    assert result.exit_code == 0
    assert [orjson.loads(line) for line in result.stdout.splitlines()] == [
        {"item": '["a"]', "outcome": "dropped", "reason": None},
        {"item": '["b"]', "outcome": "no longer parked", "reason": GONE},
    ]


def test_an_item_that_a_run_keeps_parking_again_is_reported_with_exit_code_6(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Moving(MemoryDatabase())
    store.always = True
    cold = Save("parked", f'["cold"]@{1:019d}', 0, encode(Parked(("cold",), 1, "no", 0.0)))
    MemoryCheckpoints(store._database).save([cold])
    store.park_anew()

    @contextmanager
    def opened(config: str, target: str | None) -> Iterator[tuple[None, None, Moving]]:
        yield None, None, store

    monkeypatch.setattr(command_line, "_opened", opened)
    result = CliRunner().invoke(main, ["parked", "drop", "orders.yaml", "--all", "--yes", "--json"])
    assert result.exit_code == 6
    assert [orjson.loads(line) for line in result.stdout.splitlines()] == [
        {"item": '["cold"]', "outcome": "dropped", "reason": None},
        {"item": '["hot"]', "outcome": "still parked", "reason": BUSY},
    ]


def test_a_retry_into_a_pristine_table_is_refused_while_a_run_is_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "bad"})
    world.hook(NEEDS_TOTAL)
    pristine(world)
    world.catch_up()
    world.hook(FIXED)
    with ends(load(world.config)) as (_, checkpoints):
        checkpoints.claim(Owner("run", "here", 1, time.time()))

        def heartbeat(_seconds: float) -> None:
            checkpoints.save([Save("pulse", "", None, encode(Heartbeat(1.0, "live")))])

        monkeypatch.setattr(time, "sleep", heartbeat)
        code, out, err = world.call("parked", "retry", world.config, "--all")
    assert (code, out) == (2, "")
    assert "waiting 15 s to see whether it is up" in err
    assert "Stop the run, retry, and start it again" in err
    assert world.db.items("copy") == []

    monkeypatch.setattr(time, "sleep", lambda _: None)
    assert world.call("parked", "retry", world.config, "--all", "--human")[:2] == (0, '["bad"]  stored\n')
    assert [item["id"] for item in world.db.items("copy")] == ["bad"]


def test_without_versions_a_retry_never_stores_what_the_source_no_longer_has(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where expired items are kept: a removed one would stay for ever, because a pristine copy has no resync."""
    world.db.create_table("orders")
    world.db.put("orders", {"id": "bad"})
    world.hook(NEEDS_TOTAL)
    pristine(world)
    world.change("pipeline: orders", "pipeline: orders\nttl_deletes: ignore")
    world.catch_up()
    world.hook(FIXED)
    world.db.delete("orders", {"id": "bad"})

    assert world.call("parked", "retry", world.config, "--all", "--human")[1].startswith('["bad"]  superseded')
    assert world.db.items("copy") == []


@pytest.mark.parametrize("gap", [False, True], ids=["without a gap", "with a gap"])
def test_a_retry_into_redefined_tables_is_refused_whether_or_not_a_gap_is_open(parked: World, *, gap: bool) -> None:
    world = parked
    if gap:
        world.db.disable_stream("orders")
        world.db.enable_stream("orders")
        assert world.call("run", world.config)[0] == 3
    world.change(f"{world.postgres.url}\n  table: orders", f"{world.postgres.url}\n  tables: {{orders: {COLUMNS}}}")
    code, out, err = world.call("parked", "retry", world.config, "--all")

    assert (code, out) == (2, "")
    assert "since the last run" in err


def test_a_retry_creates_no_table_in_the_place_of_one_that_is_gone(parked: World) -> None:
    world = parked
    with world.postgres.connect() as admin:
        admin.execute("DROP TABLE orders")
    code, out, err = world.call("parked", "retry", world.config, "--all")

    assert (code, out) == (3, "")
    assert "is gone from the target since the last run" in err
    assert not world.has_table("orders")


ALL_FAIL = "def hook(item):\n    raise ValueError('no')\n"
NONE_FAILS = "def hook(item):\n    return {'total': item['total']}\n"


@pytest.fixture
def full(world: World) -> World:
    """A pipeline that parked all items, more than its limit. The hook is corrected since."""
    world.db.create_table("orders")
    for n in range(8):
        world.db.put("orders", {"id": str(n), "total": n})
    world.hook(ALL_FAIL)
    world.change("target:", "parked_limit: 3\ntarget:")
    code, _, err = world.shell.run("run", world.config, "--until", "caught-up", "--human")
    assert (code, "more than 3 items are parked" in err) == (2, True), err
    world.hook(NONE_FAILS)
    return world


def test_a_resync_reads_again_what_was_parked_before_however_much_that_is(full: World) -> None:
    assert full.call("resync", full.config)[0] == 0
    assert full.call("check", full.config)[0] == 0
    full.catch_up()
    assert full.rows("SELECT count(*) FROM orders") == [(8,)]
    assert full.lines("status", full.config)[0]["parked"] == 0


def test_a_gap_that_a_rescan_repairs_is_repaired_however_much_was_parked_before(full: World) -> None:
    full.change("target:", "on_gap: resync\ntarget:")
    full.db.disable_stream("orders")
    full.db.enable_stream("orders")
    code, out, _ = full.call("check", full.config, "--human")
    assert (code, "run will rescan the table (on_gap: resync)" in out) == (0, True), out
    full.catch_up("--accept-hook-change")
    assert full.rows("SELECT count(*) FROM orders") == [(8,)]
