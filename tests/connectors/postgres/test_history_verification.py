"""``verify`` of a table with a history, on a real Postgres: what it tells of the history, beside a run that is up."""

from __future__ import annotations

import pytest

from tests.cli.command_line import World
from tests.cli.test_verify import live
from tests.connectors.postgres.history_kit import changes, keep_history, resync
from tests.connectors.postgres.test_history_losses import execute

pytestmark = pytest.mark.postgres


@pytest.fixture
def kept(world: World) -> World:
    keep_history(world)
    filled(world)
    return world


def filled(world: World) -> None:
    """An item of the scan, and items that the stream has changed, deleted and put back."""
    world.db.create_table("orders")
    world.db.put("orders", {"id": "scanned", "n": 0, "note": "x"})
    world.catch_up()
    for id in "abcdef":
        for n in (1, 2):
            world.db.put("orders", {"id": id, "n": n, "note": "x"})
        world.db.delete("orders", {"id": id})
    for id in "abcdf":
        world.db.put("orders", {"id": id, "n": 3, "note": "x"})
    world.catch_up()


def differences(world: World, *damage: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """The key, kind and fields of what ``verify`` finds beside a run, after the damage."""
    with live(world):
        execute(world, *damage)
        *lines, total = world.lines("verify", world.config)
    assert total["differences"] == len(lines) > 0
    return sorted((line["id"][0], line["kind"], tuple(line["fields"])) for line in lines)


def is_equal(world: World) -> bool:
    """Without a run, which only a difference needs."""
    return bool(world.lines("verify", world.config)[-1]["result"] == "equal")


def test_a_history_that_ends_with_the_rows_is_equal_also_after_a_resync_and_under_another_hook(kept: World) -> None:
    assert is_equal(kept)
    resync(kept)
    assert is_equal(kept)
    kept.hook("def hook(item):\n    return {'n': int(item['n']) + 1}\n")
    resync(kept)
    assert is_equal(kept)


@pytest.mark.parametrize("columns", ["{n: numeric}", "{n: numeric, note: text}"])
def test_the_documents_of_a_history_are_compared_whole_whatever_columns_the_table_has(
    world: World, columns: str
) -> None:
    keep_history(world, f"history: true\n      columns: {columns}")
    filled(world)
    assert is_equal(world)
    damage = "UPDATE orders_history SET _new = _new - 'note' WHERE id = 'a' AND _new ->> 'n' = '3'"
    assert differences(world, damage) == [("a", "different", ("_history",))]


def test_a_history_that_ends_otherwise_or_is_in_another_order_than_its_versions_is_a_difference(kept: World) -> None:
    damage = (
        "UPDATE orders_history SET _new = jsonb_set(_new, '{n}', '7') WHERE _new ->> 'n' = '3' AND id = 'a'",
        "DELETE FROM orders_history WHERE _new ->> 'n' = '3' AND id = 'b'",
        "UPDATE orders_history SET _new = NULL, _operation = 'remove' WHERE _new ->> 'n' = '3' AND id = 'c'",
        "UPDATE orders_history SET _version = _version + 99 WHERE id = 'd' AND _new ->> 'n' = '1'",
        "UPDATE orders_history SET _new = '{}' WHERE id = 'scanned'",
        "UPDATE orders_history SET _new = NULL, _problem = 'not known' WHERE _new ->> 'n' = '3' AND id = 'f'",
    )
    assert differences(kept, *damage) == [
        ("a", "different", ("_history",)),
        ("b", "different", ("_history",)),
        ("c", "different", ("_history",)),
        ("d", "different", ("_history._version",)),
        ("scanned", "different", ("_history",)),
    ]


def test_a_resync_makes_a_history_that_differs_equal(kept: World) -> None:
    execute(kept, "UPDATE orders_history SET _new = '{\"n\": 5}' WHERE id = 'scanned'")
    resync(kept)
    assert changes(kept, "scanned")[-2:] == [("scan", None, 5), ("scan", None, 0)]
    assert is_equal(kept)
