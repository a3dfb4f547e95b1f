"""``replicator resync``: requests that a run carries out, of the whole table or of some items, on a real Postgres."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from tests.cli.command_line import World, pristine
from tests.cli.test_run import await_that, phase

HOOK = "def hook(item):\n    return {{'total': item['total'], 'by': '{by}'}}\n"


@contextmanager
def running(world: World) -> Iterator[subprocess.Popen[str]]:
    """A run that is live, and that ends well when it is told to."""
    with world.shell.start("run", world.config, "--json") as process:
        await_that(lambda: phase(world) == "live", process)
        yield process
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err


@pytest.fixture
def orders(world: World) -> World:
    world.db.create_table("orders")
    for n in range(6):
        world.db.put("orders", {"id": str(n), "total": n})
    return world


def vandalize(world: World) -> None:
    """Others change a row, remove one, and add one that no item has."""
    with world.postgres.connect() as client:
        client.execute("UPDATE orders SET document = '{}' WHERE id = '0'")
        client.execute("UPDATE orders SET document = '{}' WHERE id = '5'")
        client.execute("DELETE FROM orders WHERE id = '1'")
        client.execute(
            "INSERT INTO orders (id, document, _version) SELECT 'ghost', document, _version FROM orders WHERE id = '2'"
        )


def totals(world: World) -> dict[str, str | None]:
    return dict(world.rows("SELECT id, document ->> 'total' FROM orders"))


def requested(world: World) -> object:
    (status,) = world.lines("status", world.config)
    return status["resync_requested"]


def told(world: World, *arguments: str) -> tuple[int, str]:
    code, out, err = world.call("resync", world.config, *arguments)
    return code, out + err


def source(world: World) -> dict[str, str]:
    return {str(item["id"]): str(item["total"]) for item in world.db.items("orders")}


def test_a_run_that_is_up_carries_a_request_out_and_stays(orders: World) -> None:
    with running(orders) as process:
        vandalize(orders)
        code, out, err = orders.call("resync", orders.config, "--human")
        assert code == 0, err
        assert out.startswith(f"resync requested for the whole table; process {process.pid} on ")
        await_that(lambda: totals(orders) == source(orders), process)
        await_that(lambda: phase(orders) == "live", process)
        assert requested(orders) is None


def test_a_request_is_shown_until_the_next_run_carries_it_out(orders: World) -> None:
    orders.catch_up()
    vandalize(orders)
    code, said = told(orders, "--human")
    assert code == 0
    assert "no run is up: it starts with: replicator run CONFIG" in said
    shown = requested(orders)
    assert isinstance(shown, dict)
    assert (shown["whole_table"], shown["keys"], shown["conditions"]) == (True, 0, 0)
    assert "requested for the whole table, since 20" in orders.call("status", orders.config, "--human")[1]
    assert totals(orders) != source(orders)

    orders.catch_up()

    assert totals(orders) == source(orders)
    assert requested(orders) is None


def into(world: World, table: str) -> None:
    """Let the config name this target table."""
    path = world.folder / "orders.yaml"
    path.write_text(path.read_text().rpartition("table: ")[0] + f"table: {table}\n")


def test_a_request_for_one_table_allows_no_run_to_write_to_another(orders: World) -> None:
    orders.catch_up()
    into(orders, "others")
    code, said = told(orders, "--accept-identity-change")
    assert code == 0, said
    into(orders, "mistaken")
    code, _, err = orders.shell.run("run", orders.config, "--until", "caught-up")
    assert (code, "but the config names" in err) == (2, True), err
    into(orders, "orders")
    orders.catch_up()
    assert requested(orders) is not None
    into(orders, "others")
    orders.catch_up()
    assert requested(orders) is None
    assert len(orders.rows("SELECT * FROM others")) == 6


def test_a_request_can_be_withdrawn(orders: World) -> None:
    orders.catch_up()
    assert told(orders)[0] == 0
    assert "withdrawn" in told(orders, "--cancel", "--human")[1]
    assert requested(orders) is None
    vandalize(orders)
    orders.catch_up()
    assert totals(orders) != source(orders)
    assert told(orders, "--cancel", "--human") == (0, "no resync is requested, or a run has started it\n")


def test_a_request_repairs_a_gap_when_the_run_is_started_again(orders: World) -> None:
    orders.catch_up()
    orders.db.disable_stream("orders")
    orders.db.put("orders", {"id": "7", "total": 7})
    orders.db.enable_stream("orders", "NEW_AND_OLD_IMAGES")
    assert orders.shell.run("run", orders.config, "--until", "caught-up")[0] == 3
    assert "no run is up" in told(orders, "--human")[1]

    orders.catch_up()

    assert totals(orders) == source(orders)
    assert phase(orders) == "stopped"


def test_a_resync_of_a_table_without_an_enabled_stream_is_refused(orders: World) -> None:
    orders.catch_up()
    orders.db.disable_stream("orders")
    code, said = told(orders)
    assert (code, "table orders has no enabled stream, so changes cannot be read; enable it: aws" in said) == (2, True)
    assert requested(orders) is None


def test_a_request_for_a_changed_hook_waits_for_a_run_that_has_it(orders: World) -> None:
    orders.hook(HOOK.format(by="old"))
    with running(orders) as process:
        orders.hook(HOOK.format(by="new"))
        assert told(orders)[0] == 0
        assert process.stdout is not None
        for line in process.stdout:
            if orjson.loads(line)["event"] == "requested resync not started":
                break
        assert requested(orders) is not None
    orders.catch_up()
    assert orders.rows("SELECT DISTINCT document ->> 'by' FROM orders") == [("new",)]


def test_items_are_not_added_to_a_request_for_another_config(orders: World) -> None:
    orders.hook(HOOK.format(by="old"))
    orders.catch_up()
    orders.hook(HOOK.format(by="new"))
    assert told(orders)[0] == 0
    orders.hook(HOOK.format(by="old"))
    vandalize(orders)
    code, said = told(orders, "--key", '{"id": "0"}')
    assert (code, "a resync is pending that was requested with another config" in said) == (2, True), said

    assert told(orders)[0] == 0, "one of the whole table replaces it"
    orders.catch_up()
    assert totals(orders) == source(orders)
    assert requested(orders) is None


def until_told(process: subprocess.Popen[str], event: str) -> str:
    """The line of the first such event."""
    assert process.stdout is not None
    return next(line for line in process.stdout if orjson.loads(line)["event"] == event)


def test_a_run_that_may_not_look_items_up_goes_on_without_the_resync(orders: World) -> None:
    """The command may, and the run's role may not: the optional statement of its policy is missing."""
    orders.catch_up()
    vandalize(orders)
    assert told(orders, "--key", '{"id": "0"}')[0] == 0
    orders.db.fail("BatchGetItem", "AccessDeniedException", times=1000)
    with running(orders) as process:
        said = until_told(process, "requested resync not started")
        assert "dynamodb:BatchGetItem on orders is not permitted" in said
        orders.db.put("orders", {"id": "new", "total": 7})
        await_that(lambda: totals(orders).get("new") == "7", process)
        assert requested(orders) is not None
    orders.db.heal()
    orders.catch_up()
    assert totals(orders)["0"] == "0"
    assert requested(orders) is None


def test_a_run_that_keeps_expired_items_starts_no_resync_that_was_requested_without_them(orders: World) -> None:
    text = Path(orders.config).read_text()
    orders.change("source:", "ttl_deletes: ignore\nsource:")
    orders.catch_up()
    orders.db.expire("orders", {"id": "2"})
    with running(orders) as process:
        ignoring = Path(orders.config).read_text()
        Path(orders.config).write_text(text)
        assert told(orders)[0] == 0
        assert "To allow their removal, add --remove-expired" in until_told(process, "requested resync not started")
        Path(orders.config).write_text(ignoring)
        assert told(orders, "--remove-expired")[0] == 0
        await_that(lambda: requested(orders) is None, process)


def test_chosen_items_are_repaired_and_no_others_touched(orders: World) -> None:
    with running(orders) as process:
        vandalize(orders)
        before = orders.rows("SELECT id, _version FROM orders WHERE id IN ('2', '3', '4', '5') ORDER BY id")
        keys = [f'{{"id": "{key}"}}' for key in ("0", "1", "ghost")]
        code, said = told(orders, "--key", keys[0], "--key", keys[1], "--key", keys[2], "--human")
        assert code == 0, said
        assert said.startswith("resync requested for 3 item(s); process ")
        await_that(lambda: totals(orders) == source(orders) | {"5": None}, process)
        after = orders.rows("SELECT id, _version FROM orders WHERE id IN ('2', '3', '4', '5') ORDER BY id")
        assert after == before
        await_that(lambda: phase(orders) == "live" and requested(orders) is None, process)
        orders.db.put("orders", {"id": "0", "total": 100})
        orders.db.delete("orders", {"id": "1"})
        await_that(lambda: totals(orders) == source(orders) | {"5": None}, process)
    orders.catch_up()  # it resumes: the epoch of chosen items is no gap
    assert totals(orders) == source(orders) | {"5": None}


def test_after_a_resync_of_some_items_all_are_equal(orders: World) -> None:
    orders.catch_up()
    vandalize(orders)
    assert told(orders, *(part for key in ("0", "1", "5", "ghost") for part in ("--key", f'{{"id": "{key}"}}')))[0] == 0
    orders.catch_up()
    code, out, err = orders.call("verify", orders.config, "--json")
    assert code == 0, out + err


def test_items_that_are_chosen_by_several_conditions_and_by_their_keys_are_repaired_once_each(orders: World) -> None:
    """No batch has an item twice, which Postgres refuses."""
    orders.catch_up()
    vandalize(orders)
    conditions = ("--where", "total >= 0", "--where", "total < 1000")
    assert told(orders, *conditions, "--key", '{"id": "0"}', "--key", '{"id": "1"}')[0] == 0
    orders.catch_up()
    assert {id: total for id, total in totals(orders).items() if id != "ghost"} == source(orders)


def test_a_later_resync_of_the_whole_table_sweeps_what_came_before_chosen_items(orders: World) -> None:
    orders.catch_up()
    vandalize(orders)
    assert told(orders, "--key", '{"id": "0"}')[0] == 0
    orders.catch_up()
    assert totals(orders)["ghost"] is not None
    assert told(orders)[0] == 0
    orders.catch_up()
    assert totals(orders) == source(orders)


def test_items_that_match_a_condition_are_repaired(orders: World) -> None:
    orders.catch_up()
    vandalize(orders)
    code, said = told(orders, "--where", "total >= 1 AND total < 5 AND NOT id = 'x''y'", "--human")
    assert code == 0, said
    assert "requested for 1 condition(s)" in said
    orders.catch_up()
    now = totals(orders)
    assert now.pop("ghost") is not None
    assert now == source(orders) | {"0": None, "5": None}


def test_keys_come_from_a_file_and_join_a_pending_request(orders: World, tmp_path: Path) -> None:
    orders.catch_up()
    vandalize(orders)
    file = tmp_path / "keys"
    file.write_text('{"id": "0"}\n\n{"id": "1"}\n')
    assert told(orders, "--keys", str(file))[0] == 0
    (answer,) = orders.lines("resync", orders.config, "--key", '{"id": "ghost"}')
    assert (answer["keys"], answer["run"]) == (3, None)
    orders.catch_up()
    assert totals(orders) == source(orders) | {"5": None}


def test_what_the_hook_filters_out_is_removed(orders: World) -> None:
    orders.hook("def hook(item):\n    return {'total': item['total']} if item['total'] != 3 else None\n")
    orders.catch_up()
    with orders.postgres.connect() as client:
        client.execute(
            "INSERT INTO orders (id, document, _version) SELECT '3', document, _version FROM orders WHERE id = '2'"
        )
    assert told(orders, "--key", '{"id": "3"}')[0] == 0
    orders.catch_up()
    assert "3" not in totals(orders)


def test_expired_items_that_the_target_keeps_stay(orders: World) -> None:
    orders.change("source:", "ttl_deletes: ignore\nsource:")
    orders.catch_up()
    orders.db.expire("orders", {"id": "2"})
    assert told(orders, "--key", '{"id": "2"}', "--key", '{"id": "3"}')[0] == 0
    orders.catch_up()
    assert totals(orders) == source(orders) | {"2": "2"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--key", "{"], "--key {: invalid JSON: "),
        (["--key", '"1"'], '--key "1": a key is a JSON object such as {"id": "..."}'),
        (["--key", '{"nr": "1"}'], '--key {"nr": "1"}: the key has the attributes id, not nr'),
        (["--where", ""], "--where: the condition is empty"),
        (["--where", "total > £5"], "--where: unexpected '£5' at character 8. Text is in single quotes"),
        (["--where", "total >"], "--where: DynamoDB does not accept the condition: "),
        (["--until", "caught-up"], "--until: the pipeline's run carries out the request; to rescan in this process"),
        (["--now", "--cancel"], "--cancel cannot be combined with --now"),
        (["--now", "--key", "1"], "--key, --keys and --where cannot be combined with --now"),
        (["--cancel", "--where", "a = 1"], "--key, --keys and --where cannot be combined with --cancel"),
    ],
)
def test_what_cannot_be_requested_is_refused_with_the_reason(orders: World, arguments: list[str], message: str) -> None:
    orders.catch_up()
    code, said = told(orders, *arguments)
    assert (code, message in said) == (2, True), said
    assert requested(orders) is None


def test_items_that_may_not_be_looked_up_are_not_requested(orders: World) -> None:
    orders.catch_up()
    orders.db.fail("BatchGetItem", "AccessDeniedException", times=1)
    code, said = told(orders, "--key", '{"id": "0"}')
    assert (code, "dynamodb:BatchGetItem on orders is not permitted" in said) == (4, True), said
    assert requested(orders) is None


def test_a_line_of_a_file_that_is_no_key_is_named(orders: World, tmp_path: Path) -> None:
    orders.catch_up()
    file = tmp_path / "keys"
    file.write_text('{"id": "0"}\nid=1\n')
    assert f"--keys {file}, line 2: invalid JSON: " in told(orders, "--keys", str(file))[1]


def _own_ids(world: World) -> None:
    world.hook(
        "from replicator import Document, documents\n\n\n@documents\ndef hook(item):\n"
        "    yield Document(item['id'], {'total': item['total']})\n"
    )


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (_own_ids, "the hook chooses document ids (@documents), and documents that it no longer gives an item"),
        (pristine, "this target compares no versions (pristine), so a partial resync could replace newer items"),
    ],
)
def test_chosen_items_are_refused_where_the_guard_cannot_hold(
    orders: World, shape: Callable[[World], None], message: str
) -> None:
    shape(orders)
    orders.catch_up()
    code, said = told(orders, "--key", '{"id": "0"}')
    assert (code, message in said) == (2, True), said


def test_chosen_items_cannot_repair_a_gap(orders: World) -> None:
    orders.catch_up()
    orders.db.disable_stream("orders")
    orders.db.enable_stream("orders", "NEW_AND_OLD_IMAGES")
    code, said = told(orders, "--key", '{"id": "0"}')
    assert (code, "records were lost, so a partial resync cannot repair the copy: the stream was replaced" in said) == (
        2,
        True,
    ), said


def test_lost_checkpoints_cannot_keep_a_request(orders: World) -> None:
    orders.catch_up()
    with orders.postgres.connect() as client:
        client.execute("DELETE FROM replicator.checkpoints")
    code, said = told(orders)
    assert (code, "if they are lost, start over with: replicator resync CONFIG --now" in said) == (2, True), said


def test_a_run_killed_while_it_reads_chosen_items_goes_on_with_them(orders: World) -> None:
    orders.catch_up()
    vandalize(orders)
    assert told(orders, "--key", '{"id": "0"}', "--key", '{"id": "1"}', "--key", '{"id": "ghost"}')[0] == 0
    orders.db.fail("BatchGetItem", "InternalServerError", times=10_000)
    with orders.shell.start("run", orders.config, "--json") as process:
        await_that(lambda: requested(orders) is None, process)  # the epoch has begun
        process.kill()
        process.communicate()
    assert totals(orders) != source(orders) | {"5": None}
    orders.db.heal()
    orders.catch_up()
    assert totals(orders) == source(orders) | {"5": None}
