"""Documents that go through an ingest pipeline: stored as it makes them, verified as it makes them, refused in time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from connectors.search import definition, ingest
from connectors.search.encode import TableEncoder
from connectors.search.errors import Response
from connectors.search.layout import layouts
from connectors.search.options import SearchTable
from replicator.batch import Outcome, Upsert
from replicator.errors import ConfigError, TransientError
from replicator.identity import changes
from replicator.target.contract import Table
from replicator.testing.contract.kit import PK, at, batch, remove
from replicator.version import FIRST_EPOCH
from tests.connectors.search.search_kit import PLAIN, behind, hooked, ids, opened, table, target
from tests.servers.search_fixtures import Search

OPENSEARCH = pytest.mark.parametrize("search_server", ["opensearch-3"], indirect=True)  # its minimum has processors
Processor = Mapping[str, Any]
UPPERCASE: Processor = {"uppercase": {"field": "title"}}


class Pipelines:
    """Ingest pipelines of one test, which are removed with it."""

    def __init__(self, search: Search) -> None:
        self._search, self._names = search, list[str]()

    def put(self, *processors: Processor, name: str = "p") -> str:
        full = f"{self._search.prefix}{name}"
        self._search.ask("PUT", f"/_ingest/pipeline/{full}", {"processors": list(processors)})
        self._names.append(full)
        return full

    def remove(self) -> None:
        for name in dict.fromkeys(self._names):
            self._search.ask("DELETE", f"/_ingest/pipeline/{name}")
        self._names.clear()


@pytest.fixture
def pipelines(search: Search) -> Iterator[Pipelines]:
    made = Pipelines(search)
    yield made
    made.remove()


def through(search: Search, name: str, **options: Any) -> Table:
    return table(search, mapping=PLAIN, ingest_pipeline=name, **options)


@pytest.mark.search
@OPENSEARCH
def test_documents_go_through_it_and_tombstones_do_not(search: Search, pipelines: Pipelines) -> None:
    of = through(search, pipelines.put(UPPERCASE))
    found = opened(search, of)
    found.in_doubt.begin()
    writes = hooked(of, "a", 1, {"title": "x"}), remove("b", 2, table=of.name)  # a tombstone has no title
    assert found.write(batch(*writes)) == Outcome()
    stored = behind(search, of)
    assert stored["a"]["_source"] == {"replicator": {"version": at(1), "partition": "a"}, "title": "X"}
    assert stored["b"]["_source"]["replicator"]["deleted"]
    found.write(batch(hooked(of, "a", 1, {"title": "older"})))
    assert behind(search, of)["a"]["_source"]["title"] == "X"
    assert ids(search, of) == {"a"}


@pytest.mark.search
@OPENSEARCH
def test_a_marked_document_stays_as_the_pipeline_made_it(search: Search, pipelines: Pipelines) -> None:
    appended = {"append": {"field": "title", "value": "again"}}
    of = through(search, pipelines.put(appended), deletes="mark")
    found = opened(search, of)
    assert found.write(batch(hooked(of, "a", 1, {"title": "x"}))) == Outcome()
    assert found.write(batch(remove("a", 2, table=of.name))) == Outcome()
    assert behind(search, of)["a"]["_source"]["title"] == ["x", "again"]


@pytest.mark.search
@OPENSEARCH
def test_what_it_fails_on_is_refused_without_its_values(search: Search, pipelines: Pipelines) -> None:
    fails = {"fail": {"if": "ctx.title == 'poison'", "message": "no {{title}}"}}
    drops = {"drop": {"if": "ctx.title == 'unwanted'"}}
    adds = {"set": {"if": "ctx.title == 'ours'", "field": "replicator.version", "value": 1}}
    of = through(search, pipelines.put(fails, drops, adds, UPPERCASE))
    found = opened(search, of)
    bodies: list[Mapping[str, Any]] = [
        {"title": "poison"},
        {"title": "unwanted"},
        {"title": "ours"},
        {"n": 1},
        {"title": "x", "m": 10**30},
        {"title": "x"},
    ]
    outcome = found.write(batch(*(hooked(of, str(n), n, body) for n, body in enumerate(bodies))))
    assert [r.reason for r in outcome.rejections] == [
        "its ingest pipeline fails on the document: fail_processor_exception",
        ingest.DROPPED,
        "its ingest pipeline adds a field named replicator or replicator.…, where replicator keeps version and key",
        "its ingest pipeline fails on the document: illegal_argument_exception",
        ingest.UNHELD,
    ]
    assert ids(search, of) == set()


@pytest.mark.search
@OPENSEARCH
def test_verify_compares_with_what_it_makes_and_repairs_through_it(search: Search, pipelines: Pipelines) -> None:
    half = {"set": {"field": "n", "value": 0.1}}
    of = through(search, pipelines.put(UPPERCASE, half))
    found = opened(search, of)
    expected = [hooked(of, id, n, {"title": f"title {id}"}) for n, id in enumerate("abc")]
    found.write(batch(*expected))
    assert [c.fields for c in found.compare(of, expected)] == [(), (), ()]
    other = hooked(of, "b", 1, {"title": "another"})
    assert found.compare(of, [other])[0].fields == ("title",)
    assert found.replace(of, [other]) == [""]
    assert behind(search, of)["b"]["_source"]["title"] == "ANOTHER"
    large = hooked(of, "a", 0, {"title": "x", "huge": 10**30})
    assert [c.refused for c in found.compare(of, [large, expected[2]])] == [ingest.UNHELD, ""]


@pytest.mark.search
@OPENSEARCH
def test_one_that_has_changed_ends_the_run_until_a_resync(search: Search, pipelines: Pipelines) -> None:
    inner = pipelines.put(UPPERCASE, name="inner")
    of = through(search, pipelines.put({"pipeline": {"name": inner}}))
    found = opened(search, of)
    assert target(search).check([of]) == []
    pipelines.put({"lowercase": {"field": "title"}}, name="inner")
    (problem,) = target(search).check([of])
    assert "has changed since documents went through it" in problem
    assert "replicator resync" in problem
    with pytest.raises(ConfigError, match="has changed since documents went through it"):
        opened(search, of)
    with pytest.raises(ConfigError, match="has changed since documents went through it"):
        found.open([of], FIRST_EPOCH + 1)  # a resync of chosen items leaves all others
    found._watch.now = lambda: float("inf")
    with pytest.raises(ConfigError, match="has changed since documents went through it"):
        found.write(batch(hooked(of, "a", 1, {"title": "x"})))
    assert target(search).epoch_problems([of]) == []
    target(search).open([of], FIRST_EPOCH + 1)
    assert target(search).check([of]) == []


SCRIPTS = {
    "id": "ctx._id = 'other'",
    "version": "ctx._version = 99L",
    "routing": "ctx._routing = 'elsewhere'",
    "index": "ctx._index = 'elsewhere'",
    "our field": "ctx.remove('replicator')",
}


@pytest.mark.search
@OPENSEARCH
@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_moves_a_document_or_touches_what_replicator_needs(
    search: Search, pipelines: Pipelines, script: str
) -> None:
    of = through(search, pipelines.put({"script": {"source": SCRIPTS[script]}}), shards=3)
    found = opened(search, of)
    assert found.write(batch(hooked(of, "a", 1, {"n": 1}), hooked(of, "b", 2, {"n": 2}))) == Outcome()
    stored = behind(search, of)["a"]
    assert (stored["_version"], stored["_source"]) == (
        at(1),
        {"replicator": {"version": at(1), "partition": "a"}, "n": 1},
    )
    assert found.write(batch(hooked(of, "a", 3, {"n": 3}), remove("b", 4, table=of.name))) == Outcome()
    assert ids(search, of) == {"a"}
    assert found.compare(of, [hooked(of, "a", 3, {"n": 3})])[0].fields == ()


@pytest.mark.search
def test_one_that_does_not_exist_is_named_by_check_and_run_and_in_the_middle(one_search: Search) -> None:
    name = f"{one_search.prefix}p"
    of = through(one_search, name)
    missing = f"the ingest pipeline {name} does not exist; create it, or leave out ingest_pipeline"
    assert target(one_search).check([of]) == [missing]
    with pytest.raises(ConfigError, match="does not exist; create it"):
        opened(one_search, of)
    one_search.ask("PUT", f"/_ingest/pipeline/{name}", {"processors": []})
    found = opened(one_search, of)
    expected = hooked(of, "a", 1, {"title": "x"})
    assert found.write(batch(expected)) == Outcome()
    assert found.compare(of, [expected])[0].fields == ()
    one_search.ask("DELETE", f"/_ingest/pipeline/{name}")
    with pytest.raises(ConfigError, match=r"ingest pipeline .* does not exist"):
        found.write(batch(hooked(of, "b", 2, {"title": "x"})))


def test_its_name_is_part_of_what_stored_documents_depend_on() -> None:
    parts = [
        definition.parts(layouts([Table("t", PK, {"ingest_pipeline": name} if name else {})])["t"])
        for name in ("", "p", "q")
    ]
    assert parts[1].items() - parts[0].items() == {("ingest_pipeline", "p")}
    assert [c.part for c in changes({"t": parts[1]}, {"t": parts[2]})] == ["ingest_pipeline"]


@pytest.mark.parametrize("name", ["", " ", "_none", "a,b", "a*"])
def test_an_impossible_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="must be the name of an ingest pipeline"):
        SearchTable(ingest_pipeline=name)


def test_documents_that_are_too_large_for_one_request_are_sent_in_parts() -> None:
    of = layouts([Table("t", PK, {"mapping": PLAIN, "ingest_pipeline": "p"})])["t"]
    writes = [Upsert("t", (str(n),), {"n": n}, 7, (str(n),), 0) for n in range(5)]
    entries = list(TableEncoder(of).entries(writes, "", []))
    sizes = []

    def request(_method: str, _path: str, body: bytes) -> Response:
        documents = orjson.loads(body)["docs"]
        sizes.append(len(documents))
        made = {"docs": [{"doc": {"_source": one["_source"]}} for one in documents]}
        return Response(413, b"") if "4" in {one["_id"] for one in documents} else Response(200, orjson.dumps(made))

    connection: Any = SimpleNamespace(request=request, server="S")
    made, rejections = ingest.made(connection, of, entries)
    assert made == entries[:4]
    assert [(r.write.id, r.reason) for r in rejections] == [(("4",), ingest.TOO_LARGE)]
    assert sizes == [5, 2, 3, 1, 2, 1, 1]


@pytest.mark.parametrize("room", [2, 0])
def test_documents_for_which_the_engine_has_no_room_together_are_sent_in_parts(room: int) -> None:
    """The same request may never find room. A single document waits for it."""
    of = layouts([Table("t", PK, {"mapping": PLAIN, "ingest_pipeline": "p"})])["t"]
    writes = [Upsert("t", (str(n),), {"n": n}, 7, (str(n),), 0) for n in range(5)]
    entries = list(TableEncoder(of).entries(writes, "", []))
    sizes = []

    def request(_method: str, _path: str, body: bytes) -> Response:
        documents = orjson.loads(body)["docs"]
        sizes.append(len(documents))
        made = {"docs": [{"doc": {"_source": one["_source"]}} for one in documents]}
        full = {"error": {"type": "circuit_breaking_exception", "reason": "Data too large"}}
        return Response(429, orjson.dumps(full)) if len(documents) > room else Response(200, orjson.dumps(made))

    connection: Any = SimpleNamespace(request=request, server="S")
    if room:
        assert ingest.made(connection, of, entries) == (entries, [])
        assert sizes == [5, 2, 3, 1, 2]
    else:
        with pytest.raises(TransientError, match=r"S is overloaded \(circuit_breaking_exception\)"):
            ingest.made(connection, of, entries)
        assert sizes == [5, 2, 1]
