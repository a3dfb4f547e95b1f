"""Runs after the config changed, or after the index was changed by others, since the last run."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from connectors.search.target import SearchTarget
from replicator.batch import Write
from replicator.config.settings import load
from replicator.engine.assembly import ends
from replicator.target.contract import Table
from replicator.testing.contract.kit import at, batch, put, remove
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from replicator.version import FIRST_EPOCH
from tests.cli.command_line import Shell
from tests.connectors.search.search_kit import opened, table, target
from tests.servers.search_fixtures import Search

pytestmark = pytest.mark.search

ITEMS = 5
FIELDS = {"id": {"type": "keyword"}, "n": {"type": "long"}}
MAPPING = {"dynamic": False, "properties": FIELDS}
TWO = """
from replicator import Document, documents

@documents
def hook(item):
    yield Document("1", {"n": item["n"]}, FIRST)
    yield Document("1", {"n": item["n"]}, SECOND)
"""


@dataclass
class Copy:
    """A pipeline from an in-memory table into indices on a real server, run through the command line."""

    search: Search
    db: DynamoDB
    endpoint: str
    place: Path
    url: str = ""

    def __post_init__(self) -> None:
        self.db.create_table("orders")
        for n in range(ITEMS):
            self.db.put("orders", {"id": f"k{n}", "n": n, "city": "Rome"})
        self.name = f"{self.search.prefix}orders"
        self.index = f"{self.name}-1"
        self.configure({self.name: {"mapping": MAPPING}})

    def configure(self, tables: Mapping[str, Any], **more: Any) -> None:
        config = {
            "pipeline": "orders",
            "source": {"table": "orders", "region": "us-east-1", "endpoint_url": self.endpoint},
            "target": {
                "type": self.search.server.which.partition("-")[0],
                "url": self.url or self.search.url,
                "tables": {name: {"replicas": 0, **options} for name, options in tables.items()},
            },
            **more,
        }
        (self.place / "orders.yaml").write_text(json.dumps(config))

    def cli(self, *command: str) -> tuple[int, str]:
        """Run a command; return its exit code and output."""
        shell = Shell({"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"})
        code, out, err = shell.run(command[0], str(self.place / "orders.yaml"), *command[1:])
        return code, out + err

    def caught_up(self, *options: str) -> tuple[int, str]:
        return self.cli("run", "--until", "caught-up", *options)

    def epoch(self, index: str = "") -> int:
        told = self.search.ask("GET", f"/{index or self.index}/_mapping")
        return int(next(iter(told.values()))["mappings"]["_meta"]["replicator"]["epoch"])

    def hits(self, query: Mapping[str, Any] | None = None, name: str = "") -> int:
        of = name or self.name
        self.search.ask("POST", f"/{of}/_refresh")
        return int(self.search.ask("POST", f"/{of}/_count", {"query": query or {"match_all": {}}})["count"])

    def stored(self) -> Any:
        """Everything that a refused command must not change: indices, documents, checkpoints."""
        self.search.ask("POST", f"/{self.search.prefix}*/_refresh")
        query = {"size": 1000, "version": True, "seq_no_primary_term": True, "sort": ["_doc"]}
        indices = {n: self.search.ask("POST", f"/{n}/_search", query)["hits"]["hits"] for n in self.search.indices()}
        mappings = {name: self.search.ask("GET", f"/{name}") for name in indices}
        with ends(load(self.place / "orders.yaml")) as (_, checkpoints):
            return indices, mappings, list(checkpoints.read().entries)

    def refused(self, *command: str) -> str:
        """Run a command that must exit with code 2 and change nothing; return its output."""
        before = self.stored()
        code, said = self.cli(*command)
        assert code == 2, said
        assert self.stored() == before
        return said


def copied(search: Search, place: Path) -> Iterator[Copy]:
    db = DynamoDB(now=time.time, random=random.Random(1))
    with served(db) as endpoint:
        found = Copy(search, db, endpoint, place)
        assert found.caught_up()[0] == 0
        yield found


@pytest.fixture
def copy(one_search: Search, tmp_path: Path) -> Iterator[Copy]:
    """A copy that has caught up, on the newest server."""
    yield from copied(one_search, tmp_path)


@pytest.fixture
def each_copy(search: Search, tmp_path: Path) -> Iterator[Copy]:
    """A copy that has caught up, on each server."""
    yield from copied(search, tmp_path)


def test_options_that_affect_no_document_may_change(copy: Copy) -> None:
    aside = {"replicas": 1, "settings": {"refresh_interval": "7s"}, "adopt": True}
    copy.configure({copy.name: {"mapping": MAPPING, **aside}})
    assert copy.caught_up()[0] == 0
    assert copy.epoch() == FIRST_EPOCH


def test_a_new_field_is_offered_then_added_and_filled(each_copy: Copy) -> None:
    copy, rome = each_copy, {"term": {"city": "Rome"}}
    assert (copy.hits(), copy.hits(rome)) == (ITEMS, 0)
    copy.configure({copy.name: {"mapping": {**MAPPING, "properties": {**FIELDS, "city": {"type": "keyword"}}}}})
    said = copy.refused("run", "--until", "caught-up")
    assert f"{copy.name}: mapping.city was added since the last run" in said
    assert "replicator run --apply-schema-changes, which executes:" in said
    assert f"PUT /{copy.index}/_mapping" in said
    assert "--apply-schema-changes" in copy.refused("check")
    assert copy.caught_up("--apply-schema-changes")[0] == 0
    assert (copy.hits(), copy.hits(rome)) == (ITEMS, ITEMS)
    assert copy.epoch() == FIRST_EPOCH + 1
    assert copy.caught_up()[0] == 0
    assert copy.epoch() == FIRST_EPOCH + 1


def test_a_changed_field_type_needs_a_new_index(copy: Copy) -> None:
    mapping = {**MAPPING, "properties": {**FIELDS, "n": {"type": "keyword"}}}
    copy.configure({copy.name: {"mapping": mapping}})
    for flags in ((), ("--apply-schema-changes",)):
        said = copy.refused("run", "--until", "caught-up", *flags)
        assert f"{copy.name}: mapping.n was changed since the last run" in said
        assert "replicator resync" in said
    assert "a type cannot be changed: create a new index: set index: NAME under the table" in copy.refused("check")
    copy.configure({copy.name: {"mapping": mapping, "index": f"{copy.name}-2"}})
    copy.search.ask("POST", "/_aliases", {"actions": [{"remove": {"index": copy.index, "alias": copy.name}}]})
    code, said = copy.cli("resync", "--now", "--accept-identity-change", "--until", "caught-up")
    assert code == 0, said
    assert copy.hits({"term": {"n": "3"}}) == 1


def test_another_index_or_alias_is_refused_naming_both(copy: Copy) -> None:
    copy.configure({copy.name: {"mapping": MAPPING, "index": f"{copy.name}-2"}})
    said = copy.refused("run", "--until", "caught-up")
    assert f"this pipeline writes to the index {copy.index} of " in said
    assert f"but the config names the index {copy.name}-2 of " in said
    assert "name it in a second config (docs/rebuilding.md): replicator rebuild start NEW_CONFIG" in said
    copy.configure({f"{copy.name}s": {"mapping": MAPPING, "index": copy.index}})
    said = copy.refused("run", "--until", "caught-up")
    assert f"this pipeline writes to {copy.name}: the index {copy.index} of " in said
    assert f"but the config names {copy.name}s: the index {copy.index} of " in said


def test_the_same_cluster_at_another_address_is_the_same(each_copy: Copy) -> None:
    copy = each_copy
    copy.url = copy.search.url.replace("127.0.0.1", "localhost")
    copy.configure({copy.name: {"mapping": MAPPING}})
    assert copy.caught_up()[0] == 0
    copy.search.ask("DELETE", f"/{copy.index}")
    copy.url = ""
    copy.configure({copy.name: {"mapping": MAPPING}})
    code, said = copy.caught_up()
    assert (code, f"the index {copy.index} of " in said, "is gone from the target since the last run" in said) == (
        3,
        True,
        True,
    ), said


def test_an_index_emptied_by_hand_is_a_gap(each_copy: Copy) -> None:
    copy = each_copy
    for n in range(ITEMS):
        copy.search.ask("DELETE", f"/{copy.index}/_doc/k{n}?refresh=true")
    code, said = copy.caught_up()
    assert code == 3, said
    assert f"the index {copy.index} of " in said
    assert "is empty, but held documents when the last run stopped" in said
    assert copy.cli("resync", "--now", "--until", "caught-up")[0] == 0
    assert copy.hits() == ITEMS


def test_an_index_emptied_by_the_stream_is_no_gap(copy: Copy) -> None:
    for n in range(ITEMS):
        copy.db.delete("orders", {"id": f"k{n}"})
    assert copy.caught_up()[0] == 0
    assert copy.hits() == 0
    assert copy.caught_up()[0] == 0


@pytest.mark.parametrize("filled", [False, True], ids=["empty", "restored"])
def test_of_several_indices_the_recreated_one_is_named(one_search: Search, tmp_path: Path, filled: bool) -> None:
    names = [f"{one_search.prefix}{name}" for name in ("first", "second")]
    hook = TWO.replace("FIRST", repr(names[0])).replace("SECOND", repr(names[1]))
    (tmp_path / "hooks.py").write_text(hook)
    db = DynamoDB(now=time.time, random=random.Random(1))
    with served(db) as endpoint:
        copy = Copy(one_search, db, endpoint, tmp_path)
        copy.configure(
            {name: {"mapping": {"properties": {"n": {"type": "long"}}}} for name in names}, transform="hooks.py:hook"
        )
        assert copy.caught_up()[0] == 0
        index = f"{names[1]}-1"
        was = one_search.ask("GET", f"/{index}")[index]
        kept = one_search.ask("POST", f"/{index}/_search", {"version": True})["hits"]["hits"]
        one_search.ask("DELETE", f"/{index}")
        one_search.ask("PUT", f"/{index}", {"mappings": was["mappings"], "aliases": was["aliases"]})
        for hit in kept if filled else ():
            path = f"/{index}/_doc/{hit['_id']}?version={hit['_version']}&version_type=external&refresh=true"
            one_search.ask("PUT", path, hit["_source"])
        code, said = copy.caught_up()
        assert code == 3, said
        assert f"the index {index} of " in said
        assert "is not the table that the last run wrote to" in said
        assert f"{names[0]}-1" not in said
        code, said = copy.cli("resync", "--now", "--until", "caught-up")
        assert code == 0, said
        assert [copy.hits(name=name) for name in names] == [ITEMS, ITEMS]


# the epoch of an index without notes


def without_note(search: Search, of: Table) -> SearchTarget:
    search.ask("PUT", f"/{of.name}-1/_mapping", {"_meta": {}})
    return target(search)


@pytest.mark.parametrize("newest", ["document", "tombstone"])
def test_without_notes_the_newest_version_gives_the_epoch(search: Search, newest: str) -> None:
    of = table(search, shards=3, adopt=True)
    found = opened(search, of)
    writes: list[Write] = [put({"pk": str(n)}, n, table=of.name) for n in range(1, 300)]
    last = at(7, FIRST_EPOCH + 9)
    one = put({"pk": "last"}, 1, table=of.name) if newest == "document" else remove("last", 1, table=of.name)
    found.write(batch(*writes, replace(one, version=last), tombstones=True))
    assert target(search).epoch([of]) == FIRST_EPOCH  # as noted
    assert without_note(search, of).epoch([of]) == FIRST_EPOCH + 9


def test_notes_copied_from_another_index_do_not_limit_the_epoch(one_search: Search) -> None:
    of = table(one_search)
    found, index = opened(one_search, of), f"{of.name}-1"
    found.write(batch(replace(put({"pk": "a"}, 1, table=of.name), version=at(7, FIRST_EPOCH + 2))))
    assert target(one_search).epoch([of]) == FIRST_EPOCH
    one_search.ask("PUT", f"/{index}/_settings", {"index.blocks.write": True})
    one_search.ask("POST", f"/{index}/_clone/{of.name}-2", {"settings": {"index.blocks.write": None}})
    assert target(one_search).epoch([Table(of.name, of.keys, {"index": f"{of.name}-2"})]) == FIRST_EPOCH + 2


def test_an_index_without_our_versions_has_no_epoch(one_search: Search) -> None:
    of = table(one_search, adopt=True)
    opened(one_search, of)
    assert without_note(one_search, of).epoch([of]) == 0
    old = {"replicator": {"version": 1764288000000000}}  # of a tool that took the time for a version
    one_search.ask("PUT", f"/{of.name}-1/_doc/old?refresh=true", old)
    assert without_note(one_search, of).epoch([of]) == 0
    plain = table(one_search, "plain", adopt=True)
    one_search.ask("PUT", f"/{plain.name}-1", {})
    assert target(one_search).epoch([plain]) == 0


# a changed config, and an epoch that starts for another reason


WIDER = {**MAPPING, "properties": {**FIELDS, "city": {"type": "keyword"}}}


def test_a_resync_that_the_index_refuses_leaves_both_ways_out_open(copy: Copy) -> None:
    """It starts an epoch before it opens the index; the definition is stored only after that."""
    copy.configure({copy.name: {"mapping": WIDER}})
    code, said = copy.cli("resync", "--now", "--until", "caught-up")
    assert code == 2, said
    assert "field city is missing (type keyword" in said
    code, said = copy.caught_up()
    assert (code, "mapping.city was added since the last run" in said) == (2, True), said
    copy.configure({copy.name: {"mapping": MAPPING}})
    assert copy.caught_up()[0] == 0
    copy.configure({copy.name: {"mapping": WIDER}})
    assert copy.caught_up("--apply-schema-changes")[0] == 0
    assert copy.hits({"term": {"city": "Rome"}}) == ITEMS


def test_fields_are_added_also_when_a_gap_starts_the_epoch(copy: Copy) -> None:
    for n in range(ITEMS):
        copy.search.ask("DELETE", f"/{copy.index}/_doc/k{n}?refresh=true")
    copy.configure({copy.name: {"mapping": WIDER}}, on_gap="resync")
    code, said = copy.caught_up("--apply-schema-changes")
    assert code == 0, said
    assert "is empty, but held documents" in said
    assert copy.hits({"term": {"city": "Rome"}}) == ITEMS


def test_documents_that_others_changed_are_repaired_by_a_resync_of_their_items(copy: Copy) -> None:
    for id in ("k0", "k2"):
        copy.search.ask("POST", f"/{copy.index}/_update/{id}?refresh=true", {"doc": {"n": 99}})
    other = copy.search.ask("GET", f"/{copy.index}/_doc/k2")["_source"]
    copy.search.ask("PUT", f"/{copy.index}/_doc/ghost?refresh=true", other)
    copy.search.ask("DELETE", f"/{copy.index}/_doc/k1?refresh=true")
    code, said = copy.cli(
        "resync", *(part for key in ("k0", "k1", "ghost") for part in ("--key", f'{{"id": "{key}"}}'))
    )
    assert code == 0, said
    before = copy.epoch()
    code, said = copy.caught_up()
    assert code == 0, said
    assert copy.epoch() == before + 1
    assert [copy.hits({"term": {"n": n}}) for n in (0, 1, 2, 99)] == [1, 1, 0, 1]  # k2 was not asked for
    copy.db.put("orders", {"id": "k0", "n": 50})
    copy.db.delete("orders", {"id": "k1"})
    assert copy.caught_up()[0] == 0
    assert [copy.hits({"term": {"n": n}}) for n in (0, 1, 50)] == [0, 0, 1]
