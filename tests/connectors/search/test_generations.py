"""Readers' aliases move from one generation of indices to the other, and one of them is removed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.error import HTTPError

import orjson
import pytest

from connectors.search import catalog, generations
from connectors.search.catalog import Index, State
from connectors.search.generations import Generation, actions, refused, unbuildable, undroppable
from connectors.search.layout import LIVE, Layout, layouts
from connectors.search.target import SearchTarget
from replicator.errors import ConfigError, TransientError
from replicator.target.contract import UNKNOWN_KEYS, Table
from replicator.target.contract import Generation as Copy
from replicator.testing.contract.kit import PK, batch, remove
from replicator.version import FIRST_EPOCH
from tests.connectors.search.search_kit import PLAIN, hooked, target
from tests.servers.search_fixtures import Search

IDS = ("a", "b", "c")
PIPELINES = ("old", "new")


def beside(name: str) -> tuple[Table, Table]:
    """The same table of both generations."""
    old, new = (Table(name, PK, {"mapping": PLAIN, "index": f"{name.lower()}-{n}"}) for n in (1, 2))
    return replace(old, beside=replace(new, keys=UNKNOWN_KEYS)), replace(new, beside=replace(old, keys=UNKNOWN_KEYS))


def copied(search: Search, of: Table, pipeline: str) -> SearchTarget:
    """A complete copy, with a document that is deleted and left a tombstone."""
    found = target(search, pipeline)
    found.open([of], FIRST_EPOCH)
    found.write(batch(*(hooked(of, pk, 1, {"title": pipeline}) for pk in (*IDS, "gone"))))
    found.write(batch(remove("gone", 2, table=of.name), tombstones=True))
    search.ask("POST", f"/{of.options['index']}/_refresh")
    return found


@dataclass(frozen=True)
class Copies:
    """Two complete copies, of which the old one is live."""

    search: Search
    old: Table
    new: Table
    first: SearchTarget
    second: SearchTarget

    @property
    def indices(self) -> tuple[str, str]:
        return str(self.old.options["index"]), str(self.new.options["index"])

    def switch(self) -> bool:
        return self.second.point([self.old], [self.new], PIPELINES)

    def rollback(self) -> bool:
        return self.second.point([self.new], [self.old], PIPELINES[::-1])

    def aliases(self) -> Any:
        return {index: self.search.ask("GET", f"/{index}/_alias")[index]["aliases"] for index in self.indices}


@pytest.fixture
def copies(search: Search) -> Copies:
    old, new = beside(f"{search.prefix}products")
    first = copied(search, replace(old, beside=None), "old")
    second = copied(search, new, "new")
    first.open([old], FIRST_EPOCH)
    return Copies(search, old, new, first, second)


def titles(search: Search, alias: str) -> object:
    """What a reader finds: each document's title by id, or the error."""
    try:
        found = search.ask("POST", f"/{alias}/_search", {"size": 100})
    except HTTPError as e:
        return e.code
    return {hit["_id"]: hit["_source"].get("title") for hit in found["hits"]["hits"]}


@dataclass
class Reader:
    """Reads all the time, in a thread of its own, and keeps whatever differs from what it may find."""

    search: Search
    alias: str
    allowed: list[object]
    wrong: list[object] = field(default_factory=list)
    reads: int = 0
    ended: bool = False
    read: threading.Condition = field(default_factory=threading.Condition)

    def run(self) -> None:
        while not self.ended:
            try:
                found = titles(self.search, self.alias)
            except OSError as e:
                found = e
            with self.read:
                self.reads += 1
                self.wrong += [] if found in self.allowed else [found]
                self.read.notify_all()

    def await_another(self) -> None:
        """Wait for a read that began after this call."""
        with self.read:
            wanted = self.reads + 2
            self.read.wait_for(lambda: self.reads >= wanted)


@contextmanager
def reading(reader: Reader) -> Iterator[Reader]:
    thread = threading.Thread(target=reader.run)
    thread.start()
    try:
        yield reader
    finally:
        reader.ended = True
        thread.join()


@pytest.mark.search
def test_readers_see_no_error_and_no_mixture_while_the_aliases_move_twenty_times(copies: Copies) -> None:
    search, shop = copies.search, f"{copies.search.prefix}shop"
    own = {"filter": {"bool": {"must_not": {"term": {"replicator.deleted": True}}}}, "is_hidden": True}
    search.ask("POST", "/_aliases", {"actions": [{"add": {"index": copies.indices[0], "alias": shop, **own}}]})
    complete = [dict.fromkeys(IDS, title) for title in PIPELINES]
    with reading(Reader(search, copies.old.name, list(complete))) as reader:
        for step in range(20):
            reader.await_another()
            assert copies.rollback() if step % 2 else copies.switch()
            assert titles(search, copies.old.name) == titles(search, shop) == complete[(step + 1) % 2]
            live = (copies.old, copies.first) if step % 2 else (copies.new, copies.second)
            assert live[1].seen([live[0]]) == [copies.old.name]
    assert reader.wrong == []
    assert copies.aliases()[copies.indices[0]][shop] == own
    assert copies.first.check([copies.old]) == copies.second.check([copies.new]) == []


@pytest.mark.search
def test_a_move_is_repeated_without_effect_and_refused_as_a_whole_if_another_one_came_first(copies: Copies) -> None:
    read = [generations.read(copies.second._connection, list(layouts([t]).values()), p) for t, p in sides(copies)]
    assert copies.switch()
    before = copies.aliases()
    assert not copies.switch()
    assert copies.aliases() == before
    with pytest.raises(ConfigError, match="alias"):  # planned before the first one: the alias is gone from there
        generations.point(copies.second._connection, *read)
    assert copies.aliases() == before


def sides(copies: Copies) -> list[tuple[Table, str]]:
    return [(copies.old, "old"), (copies.new, "new")]


@pytest.mark.search
def test_only_an_index_that_nobody_reads_is_removed_and_once(copies: Copies) -> None:
    with pytest.raises(ConfigError, match=f"is still read through the alias {copies.old.name}"):
        copies.second.drop([copies.old], "old")
    with pytest.raises(ConfigError, match=r"is not of the pipeline new: its notes name old"):
        copies.second.drop([copies.old], "new")
    copies.switch()
    copies.second.drop([copies.old], "old")
    copies.second.drop([copies.old], "old")
    assert copies.search.indices() == [copies.indices[1]]
    assert titles(copies.search, copies.old.name) == dict.fromkeys(IDS, "new")
    assert copies.second.check([replace(copies.new, beside=None)]) == []


def layout(side: int, alias: str = "products") -> Layout:
    return layouts([beside(alias)[side]])[alias]


def generation(
    side: int,
    searched: tuple[str, ...] = ("products-1",),
    others: Mapping[str, Any] | None = None,
    *,
    alias: str = "products",
    noted: Mapping[str, Any] | None = None,
    there: bool = True,
    instead: tuple[str, ...] = (),
) -> Generation:
    """One side as the cluster has it. ``others``: aliases that are not replicator's."""
    of = layout(side, alias)
    own = {of.writer: {"filter": LIVE}} | ({of.alias: {"filter": LIVE}} if of.index in searched else {})
    notes = {"pipeline": PIPELINES[side], "uuid": f"uuid-{side}", **(noted or {})}
    mapping = {"_meta": {"replicator": notes}}
    index = Index(of.index, mapping, {"uuid": f"uuid-{side}"}, {**own, **(others or {})})
    return Generation(of, State(index if there else None, searched, (of.index,), instead), PIPELINES[side])


def test_one_request_moves_the_tables_alias_and_all_others_as_they_are() -> None:
    mine = {"filter": {"term": {"shop": 1}}, "search_routing": "1", "is_write_index": False}
    assert list(actions(generation(0, others={"mine": mine}), generation(1))) == [
        {"remove": {"index": "products-1", "alias": "mine", "must_exist": True}},
        {"add": {"index": "products-2", "alias": "mine", **mine}},
        {"remove": {"index": "products-1", "alias": "products", "must_exist": True}},
        {"add": {"index": "products-2", "alias": "products", "filter": LIVE}},
    ]
    assert list(refused(generation(0, others={"mine": mine}), generation(1))) == []


@dataclass
class Recording:
    """A connection that only keeps the requests."""

    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    server: str = "Elasticsearch"

    def ask(self, method: str, path: str, body: bytes = b"null", *, doing: str) -> None:
        self.requests.append((method, path, orjson.loads(body)))


@pytest.mark.parametrize("moved", [True, False])
def test_all_tables_move_in_one_request_and_that_they_did_is_confirmed(
    monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    away, here = ([generation(s), generation(s, ("lines-1",), alias="lines")] for s in (0, 1))
    connection: Any = Recording()
    monkeypatch.setattr(catalog, "state", lambda _, of: State(None, (of.index if moved else "lines-1",), ()))
    if moved:
        assert generations.point(connection, away, here)
    else:
        with pytest.raises(TransientError, match=r"has not moved the aliases yet; run the command again"):
            generations.point(connection, away, here)
    ((method, path, body),) = connection.requests
    added = [(a["add"]["index"], a["add"]["alias"]) for a in body["actions"] if "add" in a]
    assert (method, path, added) == ("POST", "/_aliases", [("products-2", "products"), ("lines-2", "lines")])


def test_one_table_that_cannot_move_holds_all_back() -> None:
    connection: Any = Recording()
    with pytest.raises(ConfigError, match=r"Elasticsearch: the index products-2 does not exist"):
        generations.point(connection, [generation(0)] * 2, [generation(1), generation(1, there=False)])
    assert connection.requests == []


def test_an_alias_that_is_gone_is_put_where_it_should_be() -> None:
    assert list(actions(generation(1, ()), generation(0, ()))) == [
        {"add": {"index": "products-1", "alias": "products", "filter": LIVE}}
    ]
    assert list(refused(generation(1, (), there=False), generation(0, ()))) == []


def test_nothing_moves_if_the_alias_is_there() -> None:
    connection: Any = Recording()
    assert not generations.point(connection, [generation(1)], [generation(0, others={"mine": {}})])
    assert connection.requests == []


@pytest.mark.parametrize("broken", [generation(1, noted={"uuid": "was"}), generation(1, noted={"pipeline": "x"})])
def test_readers_can_leave_a_copy_that_something_else_has_replaced(broken: Generation) -> None:
    assert list(refused(broken, generation(0))) == []


@pytest.mark.parametrize(
    ("away", "here", "sentence"),
    [
        (
            generation(0, others={"mine": {"is_write_index": True}}),
            generation(1),
            "the alias mine of products-1 has is_write_index, so something else may write through it",
        ),
        (generation(0), generation(1, others={"preview": {}}), "products-2 has the alias preview, but while there are"),
        (
            generation(0, ("other", "products-1")),
            generation(1, ("other", "products-1")),
            "the alias products points to other, too: remove it from there",
        ),
        (generation(0), generation(1, there=False), "the index products-2 does not exist"),
        (generation(0), generation(1, there=False, instead=("x",)), "products-2 is no longer an index but an alias"),
        (
            generation(0),
            generation(1, noted={"pipeline": "third"}),
            "products-2 is not of the pipeline new: its notes name third",
        ),
        (
            generation(0, others={"products": {"filter": LIVE, "is_write_index": True}}),
            generation(1),
            "the alias products of products-1 has is_write_index, so something else may write through it",
        ),
        (generation(0), generation(1, noted={"uuid": "was"}), "products-2 is not the index that replicator wrote to"),
        (
            generation(1, ("products-2",), {"products": {"filter": LIVE, "index_routing": "1"}}),
            generation(0, ("products-2",)),
            "the alias products has a routing",
        ),
    ],
)
def test_what_would_not_survive_the_move_is_refused_by_name(away: Generation, here: Generation, sentence: str) -> None:
    assert [text[: len(sentence)] for text in refused(away, here)] == [sentence]


@pytest.mark.parametrize(
    ("live", "new", "sentence"),
    [
        (generation(0), generation(1), "products-2 exists already, and a rebuild would create it"),
        (
            generation(0),
            generation(1, there=False, instead=("x",)),
            "products-2 exists already, and a rebuild would create it",
        ),
        (generation(0, ()), generation(1, (), there=False), "the alias products points to nothing, not to products-1"),
        (
            generation(0, ("a", "products-1")),
            generation(1, there=False),
            "the alias products points to a, products-1, not to products-1 alone",
        ),
        (
            generation(0, others={"mine": {"is_write_index": True}}),
            generation(1, there=False),
            "the alias mine of products-1 has is_write_index",
        ),
    ],
)
def test_what_keeps_a_new_index_from_being_built_is_named_at_the_start(
    live: Generation, new: Generation, sentence: str
) -> None:
    assert [text[: len(sentence)] for text in unbuildable(live, new)] == [sentence]
    assert list(unbuildable(generation(0), generation(1, there=False))) == []


@pytest.mark.parametrize(
    ("one", "sentences"),
    [
        (generation(0), ["products-1 is still read through the alias products, so it is not removed"]),
        (
            generation(0, ("products-2",), {"mine": {}}),
            ["products-1 is still read through the alias mine, so it is not removed"],
        ),
        (
            generation(0, (), noted={"pipeline": "other"}),
            ["products-1 is not of the pipeline old: its notes name other"],
        ),
        (generation(0, (), noted={"uuid": "was"}), [catalog.replaced(layout(0))]),
        (generation(0, ("products-2",)), []),
        (generation(0, ("products-2",), there=False), []),
    ],
)
def test_an_index_is_removed_only_if_it_is_its_pipelines_own_and_unread(one: Generation, sentences: list[str]) -> None:
    assert list(undroppable(one)) == sentences


def test_a_name_that_became_an_alias_of_another_index_is_not_removed() -> None:
    (text,) = undroppable(generation(0, ("products-2",), there=False, instead=("shrunk",)))
    assert text.startswith("products-1 is no longer an index but an alias of shrunk")


def test_both_generations_need_an_index_each() -> None:
    old, _ = beside("products")
    with pytest.raises(ConfigError, match=r"products: both copies would have the index products-1: give the new one"):
        layouts([replace(old, beside=old)])


@pytest.mark.parametrize(
    ("searched", "sentences"),
    [
        (("products-1",), []),
        (("products-2",), []),
        ((), ["the alias products is gone, so searches find nothing. To put it on the old copy again"]),
        (("products-1", "products-2"), ["the alias products points to both products-2 and products-1, so searches"]),
        (("other", "products-1"), ["the alias products points to other; it must point to products-2 or products-1"]),
    ],
)
def test_a_run_of_one_generation_lets_the_alias_point_to_the_other_but_to_nothing_else(
    searched: tuple[str, ...], sentences: list[str]
) -> None:
    of, state = layout(1), generation(1, searched).state
    found = list(catalog.changed(of, state, "uuid-1"))
    assert [text[: len(s)] for text, s in zip(found, sentences, strict=True)] == sentences
    first_run = list(catalog.mismatches(of, State(None, searched, ()), "new"))
    assert [text[: len(s)] for text, s in zip(first_run, sentences, strict=True)] == sentences[:1]


@pytest.mark.parametrize(
    ("copy", "remedy"),
    [
        (Copy.ONLY, "create a new index: set index: NAME under the table, and run: replicator resync"),
        (Copy.NEW, "start the new copy over, while it is not live: replicator rebuild cancel CONFIG, then"),
        (Copy.OLD, "put the new mapping in the new config only: the old copy of a rebuild keeps"),
    ],
)
def test_a_changed_type_leads_to_what_can_be_done_with_this_copy(copy: Copy, remedy: str) -> None:
    of = replace(layout(1), generation=copy, mapping={"properties": {"title": {"type": "long"}}})
    there = generation(1).state
    assert there.index is not None
    index = replace(there.index, mapping={**there.index.mapping, "properties": {"title": {"type": "text"}}})
    (found,) = [t for t in catalog.mismatches(of, replace(there, index=index), "new") if "field title" in t]
    assert f"(a type cannot be changed: {remedy}" in found
    assert [one.generation for one in layouts([replace(beside("products")[1], generation=copy)]).values()] == [copy]


def test_a_new_generation_is_created_without_the_readers_alias() -> None:
    assert set(catalog._creation(layout(1), {})["aliases"]) == {"products-2-Replicator"}
    alone = layouts([replace(beside("products")[1], beside=None)])["products"]
    assert set(catalog._creation(alone, {})["aliases"]) == {"products", "products-2-Replicator"}
