"""Nothing that replicator did not make is written or deleted in a database: each command beside tables of others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest

from replicator.operations import rebuild
from tests.cli.command_line import World
from tests.connectors.neighbors_kit import COMMANDS, GROUPS, HOOK, REBUILD, change, fill

TABLES = ('public."Orders"', "public.orders2", "public.orders_copy", "other.orders", "public.others")
MADE = """
CREATE SCHEMA other;
CREATE TABLE public."Orders" (id text PRIMARY KEY, n numeric, _version bigint NOT NULL);
CREATE TABLE public.orders2 (id text PRIMARY KEY, document jsonb, _version bigint NOT NULL);
CREATE TABLE public.orders_copy (LIKE public.orders2 INCLUDING ALL);
CREATE TABLE other.orders (LIKE public.orders2 INCLUDING ALL);
COMMENT ON TABLE other.orders IS 'mine';
INSERT INTO public."Orders" SELECT id, 1, 1 FROM unnest('{a,b,gone,parked}'::text[]) AS id;
INSERT INTO public.orders2 SELECT id, '{"n": 0}', 1 FROM unnest('{a,b,gone,parked}'::text[]) AS id;
INSERT INTO public.orders_copy SELECT * FROM public.orders2;
INSERT INTO other.orders SELECT * FROM public.orders2;
"""
TOMBSTONES = """
INSERT INTO replicator.tombstones (target, id, version)
SELECT target, id, 1 FROM unnest('{a,b,gone,parked}'::text[]) AS id,
  unnest(ARRAY['"public"."others"', '"public"."orders2"', '"other"."orders"', 'public.Orders']) AS target
"""
OURS = ("orders", "orders_pkey")


@pytest.fixture
def neighbors(world: World) -> World:
    """Tables of others whose names are like ours, and another pipeline, with parked changes and tombstones."""
    fill(world.db)
    world.hook(HOOK)
    with world.postgres.connect() as client:
        client.execute(MADE)
    ours = (world.folder / "orders.yaml").read_text()
    theirs = ours.replace("pipeline: orders", "pipeline: other").replace("  table: orders\n", "  table: others\n")
    theirs = theirs.replace("source:\n  table: others", "source:\n  table: orders")
    (world.folder / "other.yaml").write_text(theirs)
    for config in ("other.yaml", "orders.yaml"):
        assert world.shell.run("run", str(world.folder / config), "--until", "caught-up")[0] == 6, "an item is parked"
    with world.postgres.connect() as client:
        client.execute(TOMBSTONES)
    change(world.db)
    return world


def read(world: World, table: str, which: str) -> list[Any]:
    return world.rows(f"SELECT ctid::text, xmin::text, t::text FROM {table} AS t WHERE {which} ORDER BY ctid")  # noqa: S608


def everything(world: World) -> Sequence[Any]:
    """Each row with the transaction that wrote it and its place, what each relation is, and what is kept of others."""
    rows = [read(world, table, "true") for table in TABLES]
    kept = [
        read(world, f"replicator.{name}", whose)
        for name, whose in (
            ("checkpoints", "pipeline = 'other'"),
            ("counts", "pipeline = 'other'"),
            ("tombstones", "version = 1"),
        )
    ]
    relations = world.rows(
        "SELECT c.oid::int, c.oid::regclass::text, c.relfilenode::int, c.relowner::int, c.relacl::text, "
        "obj_description(c.oid, 'pg_class') FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace "
        "WHERE n.nspname IN ('public', 'other', 'replicator') ORDER BY 1"
    )
    others = world.rows("SELECT nspname::text FROM pg_namespace ORDER BY 1")
    functions = world.rows("SELECT p.oid::int, p.xmin::text FROM pg_proc AS p WHERE p.oid >= 16384 ORDER BY 1")
    return [rows, kept, [r for r in relations if r[1] not in OURS], others, functions]


@pytest.mark.parametrize("commands", GROUPS)
def test_a_command_leaves_the_tables_of_others_and_another_pipeline_as_they_are(
    neighbors: World, commands: str
) -> None:
    before = everything(neighbors)
    assert [len(rows) for rows in before[0]] == [4, 4, 4, 4, 3]
    assert all(before[1])
    for command in GROUPS[commands]:
        output = COMMANDS[command].run(neighbors.shell, neighbors.config).replace("other run", "")
        assert everything(neighbors) == before, command
        assert not re.search(r"Orders|orders2|orders_copy|others?\b", output), output  # none is named


def test_a_rebuild_leaves_the_tables_of_others_and_another_pipeline_as_they_are(
    neighbors: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "ready", lambda *_, **__: [])  # with one item parked, and without a run
    for name in ("orders.yaml", "hooks.py"):
        (neighbors.folder / f"old-{name}").write_text(
            (neighbors.folder / name).read_text().replace(" hooks", " old-hooks")
        )
    neighbors.change("pipeline:", "replaces: old-orders.yaml\npipeline:")
    before = everything(neighbors)
    for step in REBUILD:
        code, out, err = neighbors.call("rebuild", step, neighbors.config)
        assert code == 0, out + err
        rows, kept, relations, *others = everything(neighbors)
        foreign = [r for r in relations if not re.match(r"orders_(new_|old_)?(pkey_)?(new|old|pkey)$", r[1])]
        assert [rows, kept, foreign, *others] == before
