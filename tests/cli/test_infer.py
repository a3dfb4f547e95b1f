"""``replicator infer``: what it proposes is accepted by ``check``, and stores the documents."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from tests.cli.command_line import World, pristine

HOSTILE = ("a b", "yes", "x: y", "# no", "a.b", "ctid", "_version", "é" * 40, "${HOME}", "\x1b[2J", "{", "'\"", "-")


def put_orders(world: World, count: int = 3) -> None:
    world.db.create_table("orders")
    for n in range(count):
        item: dict[str, Any] = {
            "id": str(n),
            "customer": f"c{n}",
            "total": Decimal("1.50") + n,
            "lines": [{"sku": "a"}],
        }
        item |= {"qty": n, "paid": n % 2 == 0, "placed": f"2026-01-{n % 28 + 1:02}T12:00:00Z", "tags": {"x", "y"}}
        item |= {"blob": b"\x00\xff", "sizes": {Decimal(1), Decimal(2)}, "mixed": n if n % 2 else str(n)}
        world.db.put("orders", item | ({"note": "n" * 50} if n == 1 else {}) | ({"gone": None} if n == 2 else {}))


def columns(world: World, table: str = "orders") -> dict[str, str]:
    query = f"SELECT column_name, data_type FROM information_schema.columns WHERE table_name = '{table}'"  # noqa: S608
    return {name: kind for name, kind in world.rows(query) if name != "_version"}


def proposed(world: World) -> str:
    """The whole config with the proposal in it."""
    new = world.folder / "new.yaml"
    code, out, err = world.call("infer", world.config, "--output", str(new))
    assert (code, f"written to {new}; next: replicator check {new}" in out) == (0, True), err
    text = new.read_text()
    new.unlink()
    return text


def accepted(world: World) -> None:
    """Put the proposal into the config; ``check`` accepts it, and a run stores every document."""
    Path(world.config).write_text(proposed(world))
    code, out, _ = world.call("check", world.config, "--human")
    assert (code, "would be parked" in out) == (0, False), out
    world.catch_up()


def test_a_typed_table_is_proposed_checked_and_filled(world: World) -> None:
    put_orders(world)
    accepted(world)

    assert columns(world) == {
        "id": "text",
        "blob": "bytea",
        "canary": "text",
        "customer": "text",
        "lines": "jsonb",
        "mixed": "jsonb",
        "note": "text",
        "paid": "boolean",
        "placed": "text",
        "qty": "numeric",
        "sizes": "ARRAY",
        "tags": "ARRAY",
        "total": "numeric",
        "gone": "jsonb",
    }
    assert world.rows("SELECT id, total, paid, tags FROM orders ORDER BY id")[1] == (
        "1",
        Decimal("2.5"),
        False,
        ["x", "y"],
    )


def test_narrow_types_are_proposed_only_where_many_values_have_them(world: World) -> None:
    put_orders(world, 100)
    accepted(world)

    assert columns(world)["placed"] == "timestamp with time zone"
    assert columns(world)["qty"] == "bigint"
    assert columns(world)["total"] == "numeric"
    assert world.rows("SELECT count(*) FROM orders") == [(100,)]


def test_names_that_no_column_and_no_plain_yaml_can_have_are_proposed_in_another_way(world: World) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1", **dict.fromkeys(HOSTILE, "v")})
    _, out, _ = world.call("infer", world.config)
    accepted(world)

    assert "\x1b" not in out
    assert "a config cannot name the field '${HOME}'" in out
    names = columns(world)
    assert {"a b", "yes", "x: y", "# no", "a_b", "ctid_", "_version_", "{", "'\"", "-", "\x1b[2J"} <= set(names)
    ((row,),) = world.rows("SELECT row_to_json(orders) FROM orders")
    assert {row[name] for name in names} - {"1"} == {"v", row["canary"]}
    assert len(names) == len(HOSTILE) - 1 + 2  # without ${HOME}; the key and the canary


def test_the_rest_of_the_config_stays_as_it_is_written(world: World) -> None:
    put_orders(world)
    text = Path(world.config).read_text()
    head, _, _ = text.rpartition("  table: orders\n")
    commented = f"# mine\n{head}  table: orders   # the copy\n# after\nbackfill:\n  segments: 2\n"
    Path(world.config).write_text(commented)
    out = proposed(world)

    assert out.startswith(f"# mine\n{head}  tables:   # the copy\n    orders:\n      columns:\n")
    assert out.endswith("\n# after\nbackfill:\n  segments: 2\n")
    Path(world.config).write_text(out)
    assert proposed(world) == out.replace("tables:   # the copy", "tables:")


def test_a_target_on_one_line_stays_on_one_line(world: World) -> None:
    put_orders(world)
    config = yaml.safe_load(Path(world.config).read_text())
    Path(world.config).write_text(yaml.safe_dump(config, default_flow_style=True, width=10_000))
    accepted(world)

    assert columns(world)["total"] == "numeric"


def test_the_comments_say_how_often_which_types_and_how_long(world: World) -> None:
    put_orders(world)
    _, out, _ = world.call("infer", world.config)
    lines = {line.split(":")[0].strip(): line.partition("# ")[2] for line in out.splitlines()}

    assert out.startswith("# Proposed from 3 of about 3 items.")
    assert lines["customer"] == "100 %; text; up to 2 bytes"
    assert lines["note"] == "33.3 %; text; up to 50 bytes"
    assert lines["mixed"] == "100 %; text 2, number 1; up to 1 byte"
    assert lines["gone"] == "0 %; always null"
    assert out.endswith("# orders: none of the 3 sampled documents would be parked\n")


def test_what_would_be_parked_is_counted_by_reason(world: World) -> None:
    world.db.create_table("orders")
    for n in range(3):
        world.db.put("orders", {"id": str(n), "text": "a\0b" if n else "ab"})
    world.hook("def hook(item):\n    if item['id'] == '2':\n        raise ValueError(item['text'])\n    return item\n")
    _, out, _ = world.call("infer", world.config)

    assert "# orders: 1 of 2 documents would be parked: column text " in out
    assert "# 1 of 3 items would be parked: hook hook raised ValueError at hooks.py:3" in out


def test_the_documents_of_a_hook_decide_and_each_table_has_its_own(world: World) -> None:
    put_orders(world)
    world.hook(
        "from replicator import Document, documents\n"
        "@documents\n"
        "def hook(item):\n"
        "    yield Document(id=item['id'], body={'n': item['qty'], '_id': 'x', 'm': {'a': 1}}, table='one')\n"
        "    if item['paid']:\n"
        "        yield Document(id='p', body={'when': item['placed']}, table='two')\n"
    )
    head, _, _ = Path(world.config).read_text().rpartition("  table: orders\n")
    Path(world.config).write_text(head + "  tables: {one: , two: {extra: ignore}, none: }\n")
    _, out, _ = world.call("infer", world.config)
    accepted(world)

    assert "# none: none of the sampled items has a document there" in out
    assert set(columns(world, "one")) == {"_item", "_id", "n", "m", *[n for n in columns(world, "one") if "_id_" in n]}
    assert columns(world, "two")["when"] == "text"
    assert yaml.safe_load(Path(world.config).read_text())["target"]["tables"]["two"]["extra"] == "ignore"
    assert world.rows("SELECT count(*) FROM two") == [(2,)]


def test_json_has_the_statistics_and_no_values(world: World) -> None:
    put_orders(world)
    (table,) = [orjson.loads(line) for line in world.call("infer", world.config, "--json")[1].splitlines()]

    assert (table["table"], table["documents"], table["would_be_parked"]) == ("orders", 3, {})
    (note,) = [field for field in table["fields"] if field["name"] == "note"]
    assert note == {
        "path": ["columns", "note"],
        "name": "note",
        "count": 1,
        "nulls": 0,
        "kinds": {"text": 1},
        "longest_text_bytes": 50,
    }


def test_a_large_table_is_sampled_in_many_parts(world: World) -> None:
    world.db.create_table("orders")
    for n in range(300):
        world.db.put("orders", {"id": str(n)})
    segments: list[int] = []
    asked = world.db.call

    def noting(operation: str, request: Any) -> bytes:
        if operation == "Scan":
            segments.append(request["Segment"])
        return asked(operation, request)

    world.db.call = noting  # type: ignore[method-assign]
    _, out, _ = world.call("infer", world.config, "--limit", "15")

    assert out.startswith("# Proposed from 15 of about 300 items")
    assert set(segments) == set(range(15))


def test_an_empty_table_and_a_target_without_columns_are_plain_errors(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert world.call("infer", world.config)[0] == 2, "no table"
    world.db.create_table("orders")
    code, out, err = world.call("infer", world.config)
    assert (code, out, err) == (2, "", "source.table: orders has no items to infer from\n")
    pristine(world)
    code, out, err = world.call("infer", world.config)
    assert (code, out) == (2, "")
    assert "target.type: a dynamodb target has neither columns nor a mapping to propose" in err


def test_no_file_is_overwritten_and_a_new_one_is_as_private_as_the_config(world: World) -> None:
    put_orders(world)
    new = world.folder / "new.yaml"
    Path(world.config).chmod(0o600)
    assert world.call("infer", world.config, "--output", str(new))[0] == 0
    before = new.read_text()
    code, _, err = world.call("infer", world.config, "--output", str(new), "--limit", "1")

    assert (code, err) == (2, f"{new} exists already, and no file is overwritten; name another one\n")
    assert (new.read_text(), new.stat().st_mode & 0o777) == (before, 0o600)
    code, _, err = world.call("infer", world.config, "--output", str(world.folder / "no" / "new.yaml"))
    assert (code, "new.yaml cannot be written: No such file or directory" in err) == (2, True)
    code, _, err = world.call("infer", world.config, "--output", str(new), "--json")
    assert (code, "--output writes YAML, and --json prints JSON" in err) == (2, True)
