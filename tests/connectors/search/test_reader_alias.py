"""Readers change from one copy to another through an alias of their own, with the requests of docs/rebuilding.md."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from connectors.search.target import SearchTarget
from replicator.target.contract import Table
from replicator.testing.contract.kit import batch, remove
from tests.connectors.search.search_kit import PLAIN, hooked, opened, table
from tests.servers.search_fixtures import Search

pytestmark = pytest.mark.search

DOCUMENT = Path(__file__).parents[3] / "docs" / "rebuilding.md"
IDS = ("a", "b", "c")


def requests(old: Table, new: Table, alias: str) -> tuple[Any, Any]:
    """The document's two requests, which create the readers' alias and move it, with the test's names."""
    names = {"products-1": f"{old.name}-1", "products_2-1": f"{new.name}-1", "shop": alias}
    bodies = re.findall(r"^```json\nPOST /_aliases\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    created, moved = [re.sub(r'(?<=")(products-1|products_2-1|shop)(?=")', lambda m: names[m[0]], b) for b in bodies]
    return json.loads(created), json.loads(moved)


def backwards(request: Any, old: Table, new: Table) -> Any:
    """The same request with the two indices exchanged."""
    text = json.dumps(request)
    exchanged = {f"{old.name}-1": f"{new.name}-1", f"{new.name}-1": f"{old.name}-1"}
    return json.loads(re.sub("|".join(map(re.escape, exchanged)), lambda m: exchanged[m[0]], text))


def copied(search: Search, name: str) -> tuple[Table, SearchTarget]:
    """A complete copy, with a document that is deleted and left a tombstone."""
    of = table(search, name, mapping=PLAIN)
    found = opened(search, of, pipeline=name)
    found.write(batch(*(hooked(of, pk, 1, {"title": name}) for pk in (*IDS, "gone"))))
    found.write(batch(remove("gone", 2, table=of.name), tombstones=True))
    search.ask("POST", f"/{of.name}/_refresh")
    return of, found


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


def test_readers_see_no_error_and_no_mixture_while_their_alias_moves_twenty_times(search: Search) -> None:
    (old, first), (new, second) = copied(search, "products"), copied(search, "products_2")
    alias = f"{search.prefix}shop"
    create, switch = requests(old, new, alias)
    back = backwards(switch, old, new)
    search.ask("POST", "/_aliases", create)
    complete = [dict.fromkeys(IDS, name) for name in ("products", "products_2")]
    assert titles(search, alias) == complete[0]
    with reading(Reader(search, alias, list(complete))) as reader:
        for step in range(20):
            reader.await_another()
            search.ask("POST", "/_aliases", back if step % 2 else switch)
            assert titles(search, alias) == complete[(step + 1) % 2]
    assert reader.wrong == []
    assert first.check([old]) == second.check([new]) == []


def test_a_repeated_move_of_the_readers_alias_is_refused_and_changes_nothing(search: Search) -> None:
    (old, _), (new, _) = copied(search, "products"), copied(search, "products_2")
    alias = f"{search.prefix}shop"
    create, switch = requests(old, new, alias)
    search.ask("POST", "/_aliases", create)
    search.ask("POST", "/_aliases", switch)
    before = search.ask("GET", f"/_alias/{alias}")
    with pytest.raises(HTTPError, match="404"):
        search.ask("POST", "/_aliases", switch)
    assert search.ask("GET", f"/_alias/{alias}") == before
    assert list(before) == [f"{new.name}-1"]


def test_the_old_copy_is_removed_without_the_readers_alias(search: Search) -> None:
    (old, _), (new, second) = copied(search, "products"), copied(search, "products_2")
    alias = f"{search.prefix}shop"
    for request in requests(old, new, alias):
        search.ask("POST", "/_aliases", request)
    assert sorted(search.ask("GET", f"/{old.name}-1/_alias")[f"{old.name}-1"]["aliases"]) == [
        old.name,
        f"{old.name}-1-Replicator",
    ]
    search.ask("DELETE", f"/{old.name}-1")
    assert titles(search, alias) == dict.fromkeys(IDS, "products_2")
    assert second.check([new]) == []
