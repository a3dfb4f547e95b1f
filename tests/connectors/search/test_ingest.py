"""Documents that go through an ingest pipeline: stored as it makes them, verified as it makes them, refused in time."""

from __future__ import annotations

import json
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
from connectors.search.responses import MOVED, in_place, verdicts
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
    of = through(search, pipelines.put(fails, UPPERCASE))
    found = opened(search, of)
    outcome = found.write(batch(hooked(of, "a", 1, {"title": "poison"}), hooked(of, "b", 2, {"title": "x"})))
    assert [(r.write.id, r.reason) for r in outcome.rejections] == [
        (("a",), "its ingest pipeline fails on the document: fail_processor_exception")
    ]
    unheld = found.write(batch(hooked(of, "a", 1, {"n": 1}))).rejections
    assert [r.reason for r in unheld] == ["the engine refuses the document: illegal_argument_exception"]


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
    assert [c.refused for c in found.compare(of, [large, expected[2]])] == [ingest.FAILS, ""]


@pytest.mark.search
@OPENSEARCH
def test_one_that_has_changed_ends_the_run_until_a_resync(search: Search, pipelines: Pipelines) -> None:
    inner = pipelines.put(UPPERCASE, name="inner")
    of = through(search, pipelines.put({"pipeline": {"name": inner}}))
    opened(search, of)
    assert target(search).check([of]) == []
    pipelines.put({"lowercase": {"field": "title"}}, name="inner")
    (problem,) = target(search).check([of])
    assert "has changed since documents went through it" in problem
    assert "replicator resync" in problem
    with pytest.raises(ConfigError, match="has changed since documents went through it"):
        opened(search, of)
    assert target(search).epoch_problems([of]) == []
    target(search).open([of], FIRST_EPOCH + 1)
    assert target(search).check([of]) == []


HAZARDS: Mapping[str, tuple[Processor, str]] = {
    "drop": ({"drop": {"if": "ctx.title == 'x'"}}, "drops documents"),
    "another id": ({"set": {"field": "_id", "value": "other"}}, "changes _id, which replicator needs"),
    "another version": ({"set": {"field": "_version", "value": 9}}, "changes _version, which replicator needs"),
    "another routing": ({"set": {"field": "_routing", "value": "r"}}, "changes _routing, which replicator needs"),
    "our field": ({"remove": {"field": ["replicator.version"], "ignore_missing": True}}, "changes replicator.version"),
    "inside": ({"foreach": {"field": "tags", "processor": {"set": {"field": "_id", "value": 1}}}}, "changes _id"),
    "on failure": ({"fail": {"message": "", "on_failure": [{"drop": {}}]}}, "drops documents"),
    "a script": ({"script": {"source": "ctx.remove('replicator')"}}, "changes the field replicator"),
    "another index": ({"date_index_name": {"field": "d", "date_rounding": "d"}}, "sends documents to another index"),
}


@pytest.mark.search
@OPENSEARCH
def test_what_would_lose_documents_is_refused_before_any_index_exists(search: Search, pipelines: Pipelines) -> None:
    for processor, problem in HAZARDS.values():
        of = through(search, pipelines.put(processor))
        assert problem in " ".join(target(search).check([of])), processor
        with pytest.raises(ConfigError, match=problem):
            opened(search, of)
    assert search.indices() == []


@pytest.mark.search
@OPENSEARCH
def test_an_id_that_a_script_changes_for_some_documents_ends_the_run(search: Search, pipelines: Pipelines) -> None:
    moving = {"script": {"source": "if (ctx.title != null) { ctx._id = 'other' }"}}
    of = through(search, pipelines.put(moving))
    found = opened(search, of)
    assert found.write(batch(hooked(of, "a", 1, {"n": 1}))) == Outcome()
    with pytest.raises(ConfigError, match="stored a document under another id, version or routing"):
        found.write(batch(hooked(of, "b", 2, {"title": "x"})))


@pytest.mark.search
@OPENSEARCH
def test_what_a_script_does_to_some_documents_only_is_found_when_it_happens_or_by_verify(
    search: Search, pipelines: Pipelines
) -> None:
    """A lower version meets the stored one and looks superseded; another routing leaves a second document behind."""
    script = (
        "if (ctx.n == 2) { ctx._version = 1L } if (ctx.n == 3) { ctx.remove('replicator') } "
        "if (ctx.n == 4) { ctx._routing = 'z' }"
    )
    of = through(search, pipelines.put({"script": {"source": script}}), shards=2)
    found = opened(search, of)
    assert target(search).check([of]) == []
    found.write(batch(hooked(of, "a", 1, {"n": 1})))
    with pytest.raises(ConfigError, match="stored a document under another id, version or routing"):
        found.write(batch(hooked(of, "a", 2, {"n": 2})))
    found = opened(search, of)
    kept, ownless = hooked(of, "b", 3, {"n": 1}), hooked(of, "c", 4, {"n": 3})
    found.write(batch(kept, ownless))
    assert [c.refused for c in found.compare(of, [kept, ownless])] == ["", ingest.CHANGES]
    assert set(found.walk(of, None).ids) == {("a",), ("b",)}
    found.write(batch(hooked(of, "d", 5, {"n": 4})))
    with pytest.raises(ConfigError, match="stored a document under another id, version or routing"):
        found.walk(of, None)


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
    with pytest.raises(ConfigError, match="ingest pipeline that does not exist"):
        found.write(batch(hooked(of, "b", 2, {"title": "x"})))


def test_its_name_is_part_of_what_stored_documents_depend_on() -> None:
    parts = [
        definition.parts(layouts([Table("t", PK, {"ingest_pipeline": name} if name else {})])["t"])
        for name in ("", "p", "q")
    ]
    assert parts[1].items() - parts[0].items() == {("ingest_pipeline", "p")}
    assert [c.part for c in changes({"t": parts[1]}, {"t": parts[2]})] == ["ingest_pipeline"]


def test_a_name_may_have_any_characters_that_pipelines_have() -> None:
    encoder = TableEncoder(layouts([Table("t", PK, {"mapping": PLAIN, "ingest_pipeline": '50 % "off"'})])["t"])
    write = Upsert("t", ("a",), {"title": "x"}, 7, ("a",), 0)
    (entry,) = encoder.entries([write], "", [])
    action = json.loads(entry.lines.splitlines()[0])["index"]
    assert action == {"_id": "a", "version": 7, "version_type": "external", "pipeline": '50 % "off"'}


@pytest.mark.parametrize("name", ["", " ", "_none", "a,b", "a*"])
def test_an_impossible_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="must be the name of an ingest pipeline"):
        SearchTable(ingest_pipeline=name)


def test_a_conflict_of_anything_but_versions_is_waited_for() -> None:
    """A processor whose model is not deployed answers with the status of a version conflict."""
    (verdict,) = verdicts([{"index": {"status": 409, "error": {"type": "status_exception"}}}], "S", "i")
    assert isinstance(verdict.error, TransientError)


def test_documents_that_are_too_large_for_one_simulation_are_sent_in_parts() -> None:
    of = layouts([Table("t", PK, {"mapping": PLAIN, "ingest_pipeline": "p"})])["t"]
    sources = {str(n): orjson.dumps({"n": n}) for n in range(5)}
    sizes = []

    def request(_method: str, _path: str, body: bytes) -> Response:
        documents = orjson.loads(body)["docs"]
        sizes.append(len(documents))
        made = {"docs": [{"doc": {"_source": one["_source"]}} for one in documents]}
        return Response(413, b"") if len(documents) > 2 else Response(200, orjson.dumps(made))

    connection: Any = SimpleNamespace(request=request, server="S")
    assert ingest.simulated(connection, of, sources) == sources
    assert sizes == [5, 2, 3, 1, 2]


def conflict(provided: int, id: str = "a") -> Mapping[str, Any]:
    reason = f"[{id}]: version conflict, current version [9] is higher or equal to the one provided [{provided}]"
    return {"type": "version_conflict_engine_exception", "reason": reason}


@pytest.mark.parametrize(
    ("outcome", "moved"),
    [
        ({"_id": "a", "_version": 7, "status": 201}, False),
        ({"_id": "b", "_version": 7, "status": 201}, True),
        ({"_id": "a", "_version": 8, "status": 201}, True),
        ({"_id": "a", "status": 409, "error": {"type": "version_conflict_engine_exception"}}, False),
        ({"_id": "b", "status": 409, "error": {"type": "version_conflict_engine_exception"}}, True),
        ({"_id": "a", "status": 409, "error": conflict(7)}, False),
        ({"_id": "a", "status": 409, "error": conflict(1)}, True),
        ({"_id": "a", "status": 409, "error": conflict(7, id="the one provided [1]")}, False),
    ],
)
def test_a_document_counts_as_stored_only_where_it_was_sent(outcome: Mapping[str, Any], moved: bool) -> None:
    line = orjson.dumps({"index": {"_id": "a", "version": 7}}) + b"\n{}\n"
    items = [{"index": outcome}]
    (verdict,) = in_place(verdicts(items, "S", "i"), items, [line], "S")
    assert (verdict.error is not None and MOVED in str(verdict.error)) == moved
