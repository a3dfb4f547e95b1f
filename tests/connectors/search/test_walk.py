"""Walks through an index that is written to meanwhile: the engine is a list of ids, which counts what it sorts."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import pytest

from connectors.search import searches, walk
from connectors.search.layout import layouts
from connectors.search.walk import Walk, divided
from replicator.batch import DocumentId
from replicator.key import KeyAttribute, KeySchema
from replicator.target.contract import Table

SIZE = 50
(LAYOUT,) = layouts([Table("orders", KeySchema((KeyAttribute("pk", "S"), KeyAttribute("sk", "S"))))]).values()
SHAPES: Mapping[str, Callable[[random.Random, int], DocumentId]] = {
    "many partitions": lambda ran, n: (f"{ran.random()}", "-"),
    "a few documents in each partition": lambda ran, n: (f"{n // 5}", f"{ran.random()}"),
    "large partitions": lambda ran, n: (f"{n % 10}", f"{ran.random()}"),
    "one partition": lambda ran, n: ("all", f"{ran.random()}"),
    "one large partition of many": lambda ran, n: ("all" if n % 2 else f"{ran.random()}", f"{ran.random()}"),
}


@dataclass
class Response:
    json: Any
    status: int = 200

    @property
    def body(self) -> bytes:
        return json.dumps(self.json).encode()


@dataclass
class Engine:
    """``cheap``: whether the cluster allows no expensive queries. ``sorted``: how many documents searches matched."""

    ids: set[DocumentId]
    random: random.Random
    cheap: bool = False
    sorted: int = 0
    server: str = "the engine"
    product: str = "Elasticsearch"

    def request(self, method: str, path: str, body: bytes) -> Response:
        wanted = json.loads(body)
        if "function_score" in wanted["query"]:
            return self._found([[0.5, *id] for id in self.random.sample(sorted(self.ids), min(SIZE, len(self.ids)))])
        filters = [one for one in wanted["query"]["bool"]["filter"] if "range" in one or "term" in one]
        if self.cheap and any("range" in one for one in filters):
            reason = "[range] queries on [text] or [keyword] fields cannot be executed when "
            return Response({"error": {"reason": f"{reason}'search.allow_expensive_queries' is set to false."}}, 400)
        matching = sorted(id for id in self.ids if all(matches(one, id) for one in filters))
        self.sorted += len(matching)
        after = tuple(wanted.get("search_after", ()))
        return self._found([id for id in matching if id > after][: wanted["size"]])

    def _found(self, sorts: Sequence[Any]) -> Response:
        return Response({"hits": {"hits": [{"sort": list(sort)} for sort in sorts], "total": {"value": len(self.ids)}}})


def matches(clause: Mapping[str, Any], id: DocumentId) -> bool:
    ((kind, by_field),) = clause.items()
    ((name, value),) = by_field.items()
    part = id[["replicator.partition", "replicator.sort"].index(name)]
    if kind == "term":
        return bool(part == value)
    return bool(value["gte"] <= part <= value.get("lte", part))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "WALK_PIECE", SIZE)
    monkeypatch.setattr(searches, "settings", lambda *_: {})
    monkeypatch.setattr(searches, "refresh", lambda *_: None)


def engine(shape: str, count: int, seed: int = 1) -> Engine:
    ran = random.Random(seed)
    return Engine({SHAPES[shape](ran, n) for n in range(count)}, ran)


def walked(engine: Engine, between: Callable[[], object] = lambda: None, *, resumed: bool = False) -> list[DocumentId]:
    """The ids that a walk finds. ``resumed``: each time by another process."""
    found: list[DocumentId] = []
    cursor: str | None = None
    one = Walk(cast(Any, engine), LAYOUT)
    for _ in range(len(engine.ids) * 2):
        piece = one.walk(cursor, ())
        found += piece.ids
        between()
        if (cursor := piece.cursor) is None:
            return found
        if resumed:
            one = Walk(cast(Any, engine), LAYOUT)
    raise AssertionError("the walk does not end")


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_walk_finds_every_document_that_is_there_all_the_time(shape: str, resumed: bool) -> None:
    """Others are stored and removed meanwhile, and one that was found is not found again."""
    found = engine(shape, 500)
    every = sorted(found.ids)
    removed = set(every[::3])

    def written() -> None:
        found.ids -= set(found.random.sample(sorted(removed), 20))
        found.ids |= {(f"{found.random.random()}", "new") for _ in range(20)}

    ids = walked(found, written, resumed=resumed)
    assert set(every) - removed <= set(ids)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_engine_sorts_a_few_times_as_many_documents_as_there_are(shape: str) -> None:
    """Without ranges it would be twenty times as many."""
    found = engine(shape, 2000)
    assert len(walked(found)) == 2000
    assert found.sorted <= 7 * 2000


def test_where_the_cluster_allows_no_expensive_queries_a_walk_finds_everything_without_ranges() -> None:
    found = engine("many partitions", 200)
    found.cheap = True
    assert walked(found) == sorted(found.ids)


def test_a_sample_divides_an_index_into_ranges_of_the_size_of_a_search() -> None:
    ids = [(f"{n:06}",) for n in range(100_000)]
    bounds = divided(random.Random(1).sample(ids, 10_000), len(ids), 10_000)
    assert len(bounds) == 10
    gaps = [int(b[0]) - int(a[0]) for a, b in pairwise(bounds)]
    assert all(8_000 < gap < 12_000 for gap in gaps), gaps
    assert divided([], 0, 10_000) == []
