"""A gap is repaired from incremental exports in real targets: the source, its exports and the clock are in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson
import psycopg
import pytest

from replicator.engine import assembly
from replicator.engine import run as running
from replicator.target import in_doubt
from tests.faults.test_exports import BUCKET
from tests.faults.test_gap_exports import after, live, looked_up, lose
from tests.faults.world import HOUR, TABLE, World, faults
from tests.servers.postgres_fixtures import Database
from tests.servers.search_fixtures import Search

ENDS = assembly.ends  # before the fixture replaces it
Stored = Callable[[], Iterable[tuple[str, int | None]]]

__all__ = ["faults"]


def repaired(world: World, monkeypatch: pytest.MonkeyPatch, target: Mapping[str, Any], stored: Stored) -> None:
    monkeypatch.setattr(assembly, "ends", ENDS)
    monkeypatch.setattr(running, "ends", ENDS)
    options = {"on_gap": "export", "backfill": {"bucket": BUCKET}, "target": target, "pipeline": "orders"}
    options["source"] = {"table": TABLE, "region": "us-east-1"}
    (world.folder / "orders.yaml").write_text(orjson.dumps(options).decode())
    world.fill(50)
    world.db.exports.enable(TABLE)
    after(world, HOUR)
    assert world.run().code == 0
    world.put("k0", n=1)
    assert world.run().code == 0
    after(world, HOUR)
    world.put("ghost", "stays", n=1)
    live(world, 60)
    lose(world, "k1", "new", removed=("ghost", "k2"), hours=30)
    world.client.asked.clear()
    assert "ghost" in dict(stored())
    ended = world.run()

    assert ended.code == 0, ended
    assert ended.event("gap repair started")
    assert not world.client.times("Scan")
    assert looked_up(world) == {"ghost"}
    expected = {str(item["id"]): item.get("n") for item in world.db.items(TABLE)}
    assert dict(stored()) == {id: None if n is None else int(n) for id, n in expected.items()}


def test_a_gap_is_repaired_from_exports_in_postgres(
    faults: World, monkeypatch: pytest.MonkeyPatch, one_postgres: Database
) -> None:
    columns = {"n": "bigint"}
    target = {"type": "postgres", "url": one_postgres.url, "tables": {TABLE: {"columns": columns}}}

    def stored() -> list[tuple[str, int | None]]:
        with psycopg.connect(one_postgres.url) as connection:
            return connection.execute("SELECT id, n FROM orders").fetchall()

    repaired(faults, monkeypatch, target, stored)


def test_a_gap_is_repaired_from_exports_in_elasticsearch(
    faults: World, monkeypatch: pytest.MonkeyPatch, one_search: Search
) -> None:
    monkeypatch.setattr(in_doubt, "WINDOW", 0.2)  # by the real clock, which stands still here
    index = f"{one_search.prefix}{TABLE}"
    mapping = {"properties": {"id": {"type": "keyword"}, "n": {"type": "long"}}}
    target = {"type": "elasticsearch", "url": one_search.url, "tables": {index: {"mapping": mapping}}}

    def stored() -> list[tuple[str, int | None]]:
        one_search.ask("POST", f"/{index}/_refresh")
        live = {"bool": {"must_not": {"exists": {"field": "_replicator.deleted"}}}}
        hits = one_search.ask("POST", f"/{index}/_search", {"size": 1000, "query": live})["hits"]["hits"]
        return [(hit["_source"]["id"], hit["_source"].get("n")) for hit in hits if "id" in hit["_source"]]

    repaired(faults, monkeypatch, target, stored)
