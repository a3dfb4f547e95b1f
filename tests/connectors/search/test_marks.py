"""``deletes: mark`` on a real search engine: what readers see, what is kept exactly, turning the option on and off."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import orjson
import pytest

from replicator.batch import Delete, DocumentId, Outcome
from replicator.errors import ConfigError
from replicator.identity import Change
from replicator.target.contract import Table
from replicator.target.verification import Comparison
from replicator.testing.contract.kit import PAIR, at, batch, exhaust, put
from replicator.version import FIRST_EPOCH
from tests.connectors.search.search_kit import PLAIN, behind, hits, hooked, opened, table, target
from tests.servers.search_fixtures import Search

pytestmark = pytest.mark.search

TIME = 1_700_000_000.5
NEXT = at(0, FIRST_EPOCH + 1)
DOCUMENT = Path(__file__).parents[3] / "docs" / "targets" / "elasticsearch.md"


def gone(of: Table, id: DocumentId, ordinal: int, last: Mapping[str, object] | None = None) -> Delete:
    return Delete(of.name, id, at(ordinal), id, 1, TIME, last)


def test_readers_leave_marked_documents_out_by_an_alias_of_their_own_or_ask_for_them(one_search: Search) -> None:
    of = table(one_search, mapping=PLAIN, deletes="mark")
    found = opened(one_search, of)
    (request,) = re.findall(r"^POST /_aliases\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    one_search.ask("POST", "/_aliases", orjson.loads(request.replace('"products', f'"{of.name}')))
    assert found.check([of]) == []
    found.write(batch(*(hooked(of, pk, 1, {"title": pk}) for pk in ("a", "b"))))
    found.write(batch(gone(of, ("a",), 2), gone(of, ("never stored",), 2), tombstones=True))
    assert {hit["_id"] for hit in hits(one_search, of)} == {"a", "b"}
    assert {hit["_id"] for hit in hits(one_search, replace(of, name=f"{of.name}-live"))} == {"b"}
    before = {"range": {"replicator.deleted_at": {"lt": "now-1d"}}}
    (hit,) = hits(one_search, of, before)
    own = {"version": at(2), "partition": "a", "deleted_at": "2023-11-14T22:13:20.500Z"}
    assert hit["_source"] == {"replicator": own, "title": "a"}
    (comparison,) = found.compare(of, [hooked(of, "a", 1, {"title": "a"})])  # as if its item was there
    assert comparison == Comparison(at(2), ("replicator.deleted_at",))


def test_a_document_that_is_read_to_be_marked_keeps_every_digit_and_its_routing(one_search: Search) -> None:
    of = table(one_search, keys=PAIR, routing="pk", shards=3, deletes="mark")
    found = opened(one_search, of)
    number = 12345678901234567890123456789012345678
    ids = [("a", "1"), ("b", "2")]
    found.write(batch(*(put({"pk": id[0], "n": number}, 1, id=id, table=of.name) for id in ids)))
    stored = {id: hit["_source"]["document"] for id, hit in behind(one_search, of).items()}
    found.write(batch(gone(of, ids[0], 2)))
    exhaust(lambda: found.sweep(of, NEXT, []))
    marked = behind(one_search, of)
    assert {id: hit["_source"]["document"] for id, hit in marked.items()} == stored
    assert {id: hit["_routing"] for id, hit in marked.items()} == {"a|1": "a", "b|2": "b"}
    assert all("deleted_at" in hit["_source"]["replicator"] for hit in marked.values())
    with urlopen(f"{one_search.url}/{of.name}-1/_doc/a%7C1?routing=a") as response:
        assert b'"n":%d' % number in response.read()


def test_documents_of_an_adopted_index_are_marked_where_no_item_has_them(one_search: Search) -> None:
    earlier = table(one_search, mapping=PLAIN)
    opened(one_search, earlier, pipeline="earlier").write(batch(hooked(earlier, "theirs", 1, {"title": "old"})))
    of = table(one_search, mapping=PLAIN, deletes="mark", adopt=True)
    found = opened(one_search, of)
    exhaust(lambda: found.sweep(of, NEXT, []))
    (hit,) = hits(one_search, of)
    assert (hit["_id"], hit["_source"]["title"], hit["_version"]) == ("theirs", "old", NEXT)
    assert "deleted_at" in hit["_source"]["replicator"]


def test_marked_documents_are_removed_for_good_without_turning_the_next_change_away(one_search: Search) -> None:
    """By their own versions: a removal without one would have the version of the item's next change."""
    of = table(one_search, mapping=PLAIN, deletes="mark")
    found = opened(one_search, of)
    found.write(batch(hooked(of, "a", 1, {"title": "a"})))
    found.write(batch(gone(of, ("a",), 2)))
    (hit,) = hits(one_search, of, {"range": {"replicator.deleted_at": {"lt": "now-90d"}}})
    removal = {"_id": hit["_id"], "version": hit["_version"], "version_type": "external_gte"}
    one_search.ask("POST", f"/{of.name}-1/_bulk", b'{"delete":%b}\n' % orjson.dumps(removal))
    assert behind(one_search, of) == {}
    assert found.write(batch(hooked(of, "a", 3, {"title": "new"}))) == Outcome()
    assert [hit["_source"]["title"] for hit in hits(one_search, of)] == ["new"]


def test_turning_marks_on_adds_a_field_to_an_index(one_search: Search) -> None:
    plain = table(one_search, mapping=PLAIN)
    marks = table(one_search, mapping=PLAIN, deletes="mark")
    found = opened(one_search, plain)
    found.write(batch(hooked(plain, "a", 1, {"title": "a"})))
    assert found.parts(marks) == {**found.parts(plain), "deletes": "mark"}
    (request,) = found.additions([marks], [Change(marks.name, "deletes", "", "mark")]) or ()
    assert request.startswith(f"PUT /{marks.name}-1/_mapping")
    assert '"deleted_at": {\n' in request
    found.extend([marks], [Change(marks.name, "deletes", "", "mark")])
    found.open([marks], FIRST_EPOCH)
    found.write(batch(gone(marks, ("a",), 2)))
    assert [hit["_source"]["title"] for hit in hits(one_search, marks)] == ["a"]


def test_turning_marks_off_is_refused(one_search: Search) -> None:
    opened(one_search, table(one_search, mapping=PLAIN, deletes="mark"))
    with pytest.raises(ConfigError, match="was written with deletes: mark, and its field"):
        opened(one_search, table(one_search, mapping=PLAIN))
    (problem,) = target(one_search).check([table(one_search, mapping=PLAIN)])
    assert "Set deletes: mark again; or create a new index: set index: NAME under the table" in problem
