"""A rebuild of a table that keeps a history: each copy has its own, and in the end one continues the other."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from connectors.postgres.table_schema import shapes
from replicator.errors import ConfigError
from replicator.operations import history as operation
from replicator.target.contract import Generation, Table
from tests.cli.command_line import World
from tests.cli.test_rebuild import done, phases, running, use
from tests.cli.test_run import await_that
from tests.connectors.postgres.history_kit import as_of, changes, keep_history, resync, soon
from tests.connectors.postgres.postgres_kit import PK
from tests.connectors.postgres.test_history_losses import execute

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(300)]

OLD = "def hook(item):\n    return {'made': 'old', 'n': int(item['n'])}\n"
NEW = "def hook(item):\n    return {'made': 'new', 'n': int(item['n']) * 10} if item['n'] % 2 == 0 else None\n"

REQUESTS = "SELECT 1 FROM replicator.checkpoints WHERE kind = 'request'"


@pytest.fixture
def orders(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A copy with a history, that the old hook made, and the config of a new one, whose hook omits odd numbers."""
    monkeypatch.setattr(operation, "MARGIN", 1.0)
    world.db.create_table("orders")
    for id, n in {"even": 2, "odd": 1, "removed": 2, "untouched": 2}.items():
        world.db.put("orders", {"id": id, "n": n})
    world.hook(OLD)
    keep_history(world)
    world.catch_up()
    world.db.put("orders", {"id": "even", "n": 4})
    world.db.put("orders", {"id": "odd", "n": 3})
    world.db.delete("orders", {"id": "removed"})
    world.catch_up()
    use(world, NEW)
    return world


def after(moment: datetime, seconds: float = 0.0) -> datetime:
    """Now, which is at least so many seconds later."""
    while (now := datetime.now(UTC)).timestamp() <= moment.timestamp() + seconds:
        pass
    return now


def live(world: World, process: subprocess.Popen[str], copies: Sequence[str] = ("live", "live")) -> None:
    await_that(lambda: phases(world) == list(copies), process)


def stored(world: World, table: str, id: str) -> bool:
    return bool(world.rows(f"SELECT 1 FROM {table} WHERE id = '{id}'"))  # noqa: S608


def put(world: World, process: subprocess.Popen[str], id: str, n: int, *tables: str) -> None:
    world.db.put("orders", {"id": id, "n": n})
    await_that(lambda: all(stored(world, table, id) for table in tables), process)


def switched(world: World) -> None:
    assert world.call("verify", world.config)[0] == 0
    done(world, "switch")


def caught_up(world: World) -> None:
    """Read the stream up to the end of the last scan: before that, the history does not tell its states."""
    world.change("replaces: orders-old.yaml\n", "")
    world.catch_up()


def at(world: World, moment: datetime) -> dict[str, Any]:
    code, out, err = world.call("history", world.config, "--at", moment.isoformat(), "--json")
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    return {line["key"]["id"]: (line["document"]["made"], line["document"]["n"]) for line in lines}


def test_the_history_of_a_rebuilt_copy_continues_that_of_the_old_one(orders: World) -> None:
    built = after(soon())
    after(built, 3.0)
    done(orders, "start")
    with running(orders) as process:
        live(orders, process)
        put(orders, process, "during", 6, "orders", "orders_new")
        during = after(soon())
        assert at(orders, during) == {"even": ("new", 40), "untouched": ("new", 20), "during": ("new", 60)}
        after(during, 1.0)  # DynamoDB's times are in whole seconds
        orders.db.delete("orders", {"id": "untouched"})
        switched(orders)
        live(orders, process)
        put(orders, process, "after", 8, "orders", "orders_old")
        orders.db.put("orders", {"id": "even", "n": 5})
        orders.db.put("orders", {"id": "even", "n": 8})
        put(orders, process, "before the end", 10, "orders", "orders_old")
        done(orders, "finish")
        put(orders, process, "last", 12, "orders")
    caught_up(orders)
    assert at(orders, built) == {"even": ("old", 4), "odd": ("old", 3), "untouched": ("old", 2)}
    assert at(orders, during) == {"even": ("new", 40), "untouched": ("new", 20), "during": ("new", 60)}
    latest = {"even": 80, "during": 60, "after": 80, "before the end": 100, "last": 120}
    assert at(orders, soon()) == {id: ("new", n) for id, n in latest.items()}
    assert [change for change in changes(orders, "even") if change != ("scan", None, 2)] == [
        ("insert", None, 2),
        ("modify", 2, 4),
        ("scan", None, 40),
        ("remove", 40, None),
        ("insert", None, 80),
    ]
    assert changes(orders, "odd")[-1] == ("remove", None, None)
    for name in ("orders_history_new", "orders_history_new_base", "orders_old"):
        assert not orders.has_table(name)
    assert orders.call("check", orders.config)[0] == 0
    resync(orders)
    assert at(orders, built) == {"even": ("old", 4), "odd": ("old", 3), "untouched": ("old", 2)}
    assert at(orders, soon()) == {id: ("new", n) for id, n in latest.items()}


def test_a_record_that_the_new_copy_has_read_from_before_its_scan_does_not_repeat_the_state(orders: World) -> None:
    done(orders, "start")
    with running(orders) as process:
        live(orders, process)
        execute(
            orders,
            "INSERT INTO orders_history_new SELECT id, _changed_at, _sequence,"
            " (SELECT max(_version) FROM orders_history_new) + 1, _operation,"
            """ '{"made": "new", "n": 20}', '{"made": "new", "n": 40}'"""
            " FROM orders_history WHERE id = 'even' AND _operation = 'modify' ON CONFLICT DO NOTHING",
        )
        switched(orders)
        live(orders, process)
        done(orders, "finish")
    assert changes(orders, "even")[-2:] == [("modify", 2, 4), ("scan", None, 40)]


def test_changes_from_shards_that_were_closed_before_the_rebuild_stay_in_the_history(
    orders: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new copy never reads such a shard, so only the old one has what it ended with."""
    monkeypatch.setattr(operation, "MARGIN", 8.0)
    orders.db.put("orders", {"id": "even", "n": 100})
    orders.db.put("orders", {"id": "untouched", "n": 201})
    assert orders.call("run", str(orders.folder / "orders-old.yaml"), "--until", "caught-up")[0] == 0
    kept = {id: changes(orders, id) for id in ("even", "odd", "removed", "untouched")}
    orders.db.roll_all("orders")
    done(orders, "start")
    began = datetime.now(UTC)
    with running(orders) as process:
        live(orders, process)
        switched(orders)
        live(orders, process)
        put(orders, process, "after", 8, "orders", "orders_old")
        after(began, 10.0)  # the hook of the new copy omits this one from now on
        orders.db.put("orders", {"id": "even", "n": 101})
        put(orders, process, "later", 8, "orders", "orders_old")
        done(orders, "finish")
        put(orders, process, "last", 12, "orders")
    for id, before in kept.items():
        assert [change for change in changes(orders, id) if change in before] == before
    assert changes(orders, "even")[-2:] == [("scan", None, 1000), ("remove", 1000, None)]
    assert changes(orders, "untouched")[-1] == ("remove", None, None)
    assert at(orders, soon()) == {id: ("new", n) for id, n in {"after": 80, "later": 80, "last": 120}.items()}


def test_times_that_the_new_copys_history_has_lost_are_told_by_the_old_one(orders: World) -> None:
    done(orders, "start")
    with running(orders) as process:
        live(orders, process)
        put(orders, process, "during", 6, "orders", "orders_new")
        during = after(soon())
        after(during, 1.0)
        execute(orders, "TRUNCATE orders_history_new")
        assert orders.call("resync", orders.config)[0] == 0
        await_that(lambda: not orders.rows(REQUESTS), process)
        live(orders, process)
        switched(orders)
        live(orders, process)
        done(orders, "finish")
        put(orders, process, "last", 12, "orders")
    caught_up(orders)
    expected = {"even": 4, "odd": 3, "untouched": 2, "during": 6}
    assert at(orders, during) == {id: ("old", n) for id, n in expected.items()}
    assert at(orders, after(soon())) == {
        "even": ("new", 40),
        "untouched": ("new", 20),
        "during": ("new", 60),
        "last": ("new", 120),
    }


def test_a_canceled_rebuild_leaves_the_history_as_it_was(orders: World) -> None:
    done(orders, "start")
    with running(orders) as process:
        live(orders, process)
        put(orders, process, "during", 6, "orders", "orders_new")
        switched(orders)
        live(orders, process)
        put(orders, process, "after", 7, "orders_old")
        await_that(lambda: orders.call("rebuild", "rollback", orders.config)[0] == 0, process)
        put(orders, process, "back", 7, "orders")
        live(orders, process)
        done(orders, "cancel")
        put(orders, process, "last", 9, "orders")
    for name in ("orders_history_new", "orders_history_new_base", "orders_new"):
        assert not orders.has_table(name)
    (orders.folder / "orders.yaml").write_text((orders.folder / "orders-old.yaml").read_text())
    assert as_of(orders, soon()) == {"even": 4, "odd": 3, "untouched": 2, "during": 6, "after": 7, "back": 7, "last": 9}
    assert changes(orders, "even")[-1] == ("modify", 2, 4)
    assert orders.call("check", orders.config)[0] == 0


def test_a_history_of_a_later_epoch_than_the_new_copys_is_not_continued(orders: World) -> None:
    done(orders, "start")
    old = str(orders.folder / "orders-old.yaml")
    with running(orders) as process:
        live(orders, process)
        for _ in range(2):
            assert orders.call("resync", old)[0] == 0
            await_that(lambda: not orders.rows(REQUESTS), process)
            live(orders, process)
        switched(orders)
        live(orders, process)
        code, _, err = orders.call("rebuild", "finish", orders.config, "--human")
        assert (code, "the old copy was scanned again after the new one was begun" in err) == (2, True), err
        assert orders.call("resync", orders.config)[0] == 0
        await_that(lambda: not orders.rows(REQUESTS), process)
        live(orders, process)
        done(orders, "finish")
        put(orders, process, "last", 12, "orders")
    caught_up(orders)
    assert at(orders, soon()) == {"even": ("new", 40), "untouched": ("new", 20), "last": ("new", 120)}


@pytest.mark.parametrize(
    ("taken", "expected", "repair"),
    [
        ("DROP TABLE {}", 'the partition of "public"."orders_history_new" with', "replicator resync CONFIG"),
        ("TRUNCATE orders_history", '"public"."orders_history" lacks changes', "replicator resync orders-old.yaml"),
    ],
    ids=["of the new copy", "of the old copy"],
)
def test_a_rebuild_ends_only_while_both_histories_are_whole(
    orders: World, taken: str, expected: str, repair: str
) -> None:
    """What is left of them would be taken for all changes."""
    done(orders, "start")
    with running(orders) as process:
        live(orders, process)
        switched(orders)
        live(orders, process)
    ((partition,),) = orders.rows("SELECT tableoid::regclass::text FROM orders_history_new LIMIT 1")
    execute(orders, taken.format(partition))
    code, _, err = orders.call("rebuild", "finish", orders.config, "--human")
    assert (code, expected in err, repair in err) == (2, True, True), err
    code, out, err = orders.call("check", orders.config, "--human")
    assert (code, expected in out + err) == (2, True), out + err
    assert orders.has_table("orders_old")


def test_a_rebuild_may_add_a_history(world: World) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "a", "n": 2})
    world.hook(OLD)
    world.catch_up()
    use(world, NEW)
    keep_history(world)
    done(world, "start")
    with running(world) as process:
        live(world, process)
        switched(world)
        live(world, process)
        done(world, "finish")
        put(world, process, "last", 12, "orders")
    caught_up(world)
    assert at(world, soon()) == {"a": ("new", 20), "last": ("new", 120)}
    assert world.call("check", world.config)[0] == 0


FOREIGN = "CREATE TABLE orders_history (id int PRIMARY KEY, mine text)"


def test_a_table_of_others_with_the_name_of_the_history_is_refused_at_each_step(world: World) -> None:
    """Before the new copy is built, while it is, and when the rebuild ends."""
    world.db.create_table("orders")
    world.db.put("orders", {"id": "a", "n": 2})
    world.hook(OLD)
    world.catch_up()
    use(world, NEW)
    keep_history(world)
    expected = '"public"."orders_history" exists, but is no history of "public"."orders" with this key; rename it'
    execute(world, FOREIGN)
    for command in (["rebuild", "start"], ["check"]):
        code, out, err = world.call(*command, world.config, "--human")
        assert (code, expected in out + err) == (2, True), out + err
    assert not world.has_table("orders_new")
    execute(world, "DROP TABLE orders_history")
    done(world, "start")
    with running(world) as process:
        live(world, process)
        switched(world)
        live(world, process)
    execute(world, FOREIGN)
    for command in (["check"], ["run", "--until", "caught-up"], ["rebuild", "finish"]):
        code, out, err = world.call(*command, world.config, "--human")
        assert (code, expected in out + err) == (2, True), out + err
    assert world.has_table("orders_old")
    execute(world, "ALTER TABLE orders_history RENAME TO mine")
    done(world, "finish")
    world.catch_up()
    assert at(world, soon()) == {"a": ("new", 20)}


OWN_IDS = """
from replicator import Document, documents

@documents
def hook(item):
    yield Document('x', {'n': int(item['n'])})
"""


def test_a_new_copy_with_other_keys_begins_a_history_after_the_rebuild(orders: World) -> None:
    """Its changes are not of the same documents. The message says what to do, and that works."""
    orders.hook(OWN_IDS)
    code, _, err = orders.call("rebuild", "start", orders.config, "--human")
    told = '"public"."orders_history" has the key (id), and documents of the new copy have (_item, _id), so that'
    assert (code, told in err) == (2, True), err
    assert not orders.has_table("orders_new")
    orders.change("history: true", "history: null")
    done(orders, "start")
    with running(orders) as process:
        live(orders, process)
        switched(orders)
        live(orders, process)
    orders.change("history: null", "history: true")
    code, out, err = orders.call("check", orders.config, "--human")
    assert (code, told in out + err) == (2, True), out + err
    orders.change("history: true", "history: null")
    done(orders, "finish")
    orders.change("replaces: orders-old.yaml\n", "")
    orders.catch_up()
    execute(orders, "ALTER TABLE orders_history RENAME TO earlier", "ALTER TABLE orders_history_base RENAME TO base")
    orders.change("history: null", "history: true")
    resync(orders)
    found = orders.lines("history", orders.config, "--at", soon().isoformat())
    assert sorted(line["key"]["_item"] for line in found) == ['["even"]', '["odd"]', '["untouched"]']


def test_states_from_before_what_is_kept_move_with_the_history(orders: World) -> None:
    """As if the rebuild had taken longer than changes are kept: retention has moved a document's last change."""
    done(orders, "start")
    with running(orders) as process:
        live(orders, process)
        with orders.postgres.connect() as client:
            client.execute(
                "WITH moved AS (DELETE FROM orders_history_new WHERE id = 'untouched' RETURNING *) "
                "INSERT INTO orders_history_new_base SELECT * FROM moved ORDER BY _version DESC LIMIT 1"
            )
            client.execute(
                "COMMENT ON TABLE orders_history_new_base IS 'replicator: changes are kept since 1000000000'"
            )
        switched(orders)
        live(orders, process)
        done(orders, "finish")
        put(orders, process, "last", 12, "orders")
    caught_up(orders)
    assert at(orders, soon()) == {"even": ("new", 40), "untouched": ("new", 20), "last": ("new", 120)}
    code, _, err = orders.call("history", orders.config, "--at", "2001-01-01T00:00:00Z", "--human")
    assert (code, "--at: the history begins at" in err) == (2, True), err


def test_a_name_must_leave_room_for_the_history_of_a_new_copy() -> None:
    options: dict[str, Any] = {"history": {}}
    for length, generation in ((46, Generation.ONLY), (46, Generation.OLD), (42, Generation.NEW)):
        shapes([Table("x" * length, PK, options, generation=generation)], "public")
        with pytest.raises(ConfigError, match=f"the name of the table may have {length} bytes"):
            shapes([Table("x" * (length + 1), PK, options, generation=generation)], "public")
