"""A resync that the target would refuse is refused before it stores anything: the copy can be followed as before."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from replicator.aws import boto
from replicator.config.settings import load
from replicator.engine import preexisting
from replicator.engine.assembly import ends, introduce, target_tables
from replicator.engine.startup import digest
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.source.table import describe_table
from replicator.state import ResyncRequest, Save, encode
from tests.cli.command_line import World, pristine
from tests.cli.test_check_agrees_with_run import Wrong, assert_agreed, stream_replaced
from tests.cli.test_run import await_that, phase

NOT_EMPTY = "is not empty, but a pristine copy starts with an empty table"
NO_VERSIONS = "have no versions, because they were stored with pristine: true"
RENAMED = "were stored with version_attribute: _replicator_version, and the config has version_attribute: _v"
MARKED_OTHERWISE = "were stored with deleted_attribute: _replicator_deleted, and the config has deleted_attribute: _d"


def versioned(world: World) -> None:
    pristine(world)
    world.change("  pristine: true\n", "")


@pytest.fixture
def copied(world: World) -> World:
    """A pristine copy of one item."""
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1"})
    pristine(world)
    world.catch_up()
    return world


def stored(world: World) -> set[tuple[str, str, str]]:
    with ends(load(world.config)) as (_, checkpoints):
        return {(e.kind, e.id, e.text) for e in checkpoints.read().entries}


def ids(world: World) -> list[str]:
    return sorted(item["id"] for item in world.db.items("copy"))


@pytest.mark.parametrize("now", [["--now", "--until", "caught-up"], []], ids=["now", "requested"])
def test_a_pristine_copy_is_followed_as_before(copied: World, now: list[str]) -> None:
    before = stored(copied)
    code, _, err = copied.shell.run("resync", copied.config, *now)
    assert (code, NOT_EMPTY in err) == (2, True)
    assert stored(copied) == before

    copied.db.put("orders", {"id": "2"})
    assert copied.call("check", copied.config)[0] == 0
    copied.catch_up()
    assert ids(copied) == ["1", "2"]


def test_check_and_run_agree_that_a_gap_in_a_pristine_copy_is_not_repaired_automatically(copied: World) -> None:
    copied.change("target:", "on_gap: resync\ntarget:")
    stream_replaced(copied)
    assert_agreed(copied, Wrong(lambda _: None, 2, NOT_EMPTY))
    before = {(kind, id): text for kind, id, text in stored(copied)}
    assert '"epoch":1024' in before["pipeline", ""]


def test_a_run_that_is_up_goes_on(world: World) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1"})
    pristine(world)
    world.change("target:", f"checkpoints: {{type: postgres, url: '{world.postgres.url}'}}\ntarget:")
    with world.shell.start("run", world.config) as process:
        await_that(lambda: phase(world) == "live", process)
        code, _, err = world.shell.run("resync", world.config, "--now")
        assert (code, NOT_EMPTY in err) == (2, True)
        world.db.put("orders", {"id": "2"})
        await_that(lambda: ids(world) == ["1", "2"], process)
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_table_that_does_not_fit_leaves_the_epoch_as_it_is(world: World) -> None:
    """On Postgres, whose checkpoints are in the target."""
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1", "total": "a"})
    tables = f"{world.postgres.url}\n  tables: {{orders: {{columns: {{total: text}}}}}}"
    world.change(f"{world.postgres.url}\n  table: orders", tables)
    world.catch_up()
    before = stored(world)
    world.change("total: text", "total: bigint")
    code, _, err = world.shell.run("resync", world.config, "--now", "--until", "caught-up")
    assert (code, "total" in err) == (2, True)
    assert stored(world) == before

    world.change("total: bigint", "total: text")
    world.db.put("orders", {"id": "2", "total": "b"})
    world.catch_up()
    assert world.rows("SELECT id, total FROM orders ORDER BY id") == [("1", "a"), ("2", "b")]


def test_check_says_that_a_resync_is_requested(world: World) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1"})
    world.catch_up()
    world.call("resync", world.config)
    assert "run will rescan the table: a resync is requested" in world.call("check", world.config, "--human")[1]


def test_a_pending_request_that_the_target_refuses_can_be_withdrawn(
    copied: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was made before the copy became one that cannot be resynced."""
    for name, value in copied.environ.items():
        monkeypatch.setenv(name, value)
    config = load(copied.config)
    client = boto.connect(config.source)
    with ends(config) as (target, checkpoints):
        table = describe_table(client, config.source.table)
        introduce(config, target, table, client)
        tables = target_tables(config, table, None)
        found = preexisting.inspect(CheckpointView(checkpoints.read()), table, target, tables, None)
        request = ResyncRequest(requested=0.0, config=digest(found))
        checkpoints.save([Save("request", "", None, encode(request))])
    assert_agreed(copied, Wrong(lambda _: None, 2, "a resync is requested; to resume without it"))
    assert copied.call("resync", copied.config, "--cancel")[0] == 0
    assert copied.call("check", copied.config)[0] == 0


@pytest.mark.parametrize(
    ("has_gap", "before", "old", "new", "words", "remedy"),
    [
        (True, pristine, "  pristine: true\n", "", NO_VERSIONS, "another table"),
        (False, pristine, "  pristine: true\n", "", NO_VERSIONS, "restored"),
        (True, versioned, "  create: true", "  version_attribute: _v\n  create: true", RENAMED, "re-created"),
        (False, versioned, "  create: true", "  deleted_attribute: _d\n  create: true", MARKED_OTHERWISE, "restored"),
        (False, versioned, "  create: true", "  pristine: true\n  create: true", NOT_EMPTY, "re-created"),
    ],
    ids=["pristine removed, gap", "pristine removed", "version renamed, gap", "mark renamed", "pristine added"],
)
def test_a_definition_under_which_the_sweep_would_find_nothing_is_refused_and_each_remedy_works(
    world: World, has_gap: bool, before: Callable[[World], None], old: str, new: str, words: str, remedy: str
) -> None:
    world.db.create_table("orders")
    for id in ("1", "2"):
        world.db.put("orders", {"id": id})
    before(world)
    world.catch_up()
    world.db.delete("orders", {"id": "2"})
    if has_gap:
        stream_replaced(world)
    world.change(old, new)
    was = stored(world)
    if has_gap:
        assert world.shell.run("run", world.config, "--until", "caught-up")[0] == 3
    else:
        assert_agreed(world, Wrong(lambda _: None, 2, words))
    for command in (["resync"], ["resync", "--now"]):
        code, _, err = world.call(command[0], world.config, *command[1:])
        assert (code, words in err) == (2, True)
    assert has_gap or stored(world) == was

    table = "elsewhere" if remedy == "another table" else "copy"
    if remedy == "restored":
        world.change(new or "  create: true", old if new else "  pristine: true\n  create: true")
        assert world.call("check", world.config)[0] == (3 if has_gap else 0)
        return
    if remedy == "another table":
        world.change("table: copy", "table: elsewhere")
    else:
        world.db.call("DeleteTable", {"TableName": "copy"})
    assert world.call("resync", world.config, "--accept-identity-change")[0] == 0
    world.catch_up()
    assert [item["id"] for item in world.db.items(table) if "_replicator_deleted" not in item] == ["1"]
    assert world.call("verify", world.config)[0] == 0


def test_without_checkpoints_the_tables_note_tells_how_its_items_are_stored(world: World) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1"})
    versioned(world)
    world.catch_up()
    for path in world.folder.glob("*.checkpoints*"):
        path.unlink()
    world.change("  create: true", "  version_attribute: _v\n  create: true")
    code, _, err = world.call("resync", world.config, "--now")
    assert (code, RENAMED in err) == (2, True)
