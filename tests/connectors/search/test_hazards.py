"""Hazards of an index (docs/targets/elasticsearch.md): ``check`` reports each, and ``run`` refuses to continue."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from replicator.cli import main
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from tests.servers.search_fixtures import Search

pytestmark = pytest.mark.search

MAPPING = {"dynamic": False, "properties": {"n": {"type": "long"}}}
LIVE = {"bool": {"must_not": {"term": {"replicator.deleted": True}}}}
GAP, WRONG = 3, 2


@dataclass
class Copy:
    """A pipeline from an in-memory table into an index on a real server."""

    search: Search
    config: Path

    @property
    def alias(self) -> str:
        return f"{self.search.prefix}orders"

    @property
    def index(self) -> str:
        return f"{self.alias}-1"

    @property
    def writer(self) -> str:
        return f"{self.index}-Replicator"

    @property
    def other(self) -> str:
        return f"{self.search.prefix}other"

    def cli(self, command: str, *options: str) -> tuple[int, str]:
        """Run a command; return its exit code and output. Bugs are raised."""
        login = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}
        result = CliRunner().invoke(main, [command, str(self.config), *options], env=login)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, " ".join(result.output.split())

    def caught_up(self) -> None:
        code, told = self.cli("run", "--until", "caught-up")
        assert code == 0, told

    def aliases(self, *actions: Mapping[str, Any]) -> None:
        self.search.ask("POST", "/_aliases", {"actions": list(actions)})

    def settings(self, **settings: Any) -> None:
        self.search.ask("PUT", f"/{self.index}/_settings", settings)

    def documents(self, name: str) -> Any:
        """In storage order, by sequence number: a merge changes the order of a search."""
        query = {"size": 100, "version": True, "seq_no_primary_term": True}
        hits = self.search.ask("POST", f"/{name}/_search", query)["hits"]["hits"]
        return sorted(hits, key=lambda hit: hit["_seq_no"])

    def refuses(self, said: str, code: int) -> None:
        """Both ``check`` and ``run`` exit with ``code`` and the message; they change no document, create no index."""
        self.search.ask("POST", "/_refresh")
        names = self.search.indices()
        before = [self.documents(name) for name in names]
        for command in (("check",), ("run", "--until", "caught-up")):
            ended, told = self.cli(*command)
            assert said in told, (command, told)
            assert ended == code, (command, told)
        self.search.ask("POST", "/_refresh")
        assert self.search.indices() == names
        assert [self.documents(name) for name in names] == before


def piped(search: Search, folder: Path) -> Iterator[Copy]:
    db = DynamoDB(now=time.time, random=random.Random(1))
    db.create_table("orders")
    for n in range(3):
        db.put("orders", {"id": f"k{n}", "n": n})
    with served(db) as endpoint:
        copy = Copy(search, folder / "orders.yaml")
        kind = search.server.which.partition("-")[0]
        tables = {copy.alias: {"replicas": 0, "mapping": MAPPING}}
        source = {"table": "orders", "region": "us-east-1", "endpoint_url": endpoint}
        target = {"type": kind, "url": search.url, "tables": tables}
        copy.config.write_text(json.dumps({"pipeline": "orders", "source": source, "target": target}))
        yield copy


@pytest.fixture
def copy(one_search: Search, tmp_path: Path) -> Iterator[Copy]:
    yield from piped(one_search, tmp_path)


@pytest.fixture
def each_copy(search: Search, tmp_path: Path) -> Iterator[Copy]:
    yield from piped(search, tmp_path)


# index templates apply when an index is created

SETTINGS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "async": ({"index.translog.durability": "async"}, "translog.durability is async"),
    "final pipeline": ({"index.final_pipeline": "p"}, "the ingest pipeline p is its final_pipeline"),
    "synthetic": ({"index.mapping.source.mode": "synthetic"}, "mapping.source.mode is synthetic"),
    "logs": ({"index.mode": "logsdb"}, "its mode is logsdb"),
    "time series": ({"index.mode": "time_series", "index.routing_path": ["by"]}, "its mode is time_series"),
}
MAPPINGS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "no source": ({"_source": {"enabled": False}}, "_source is disabled"),
    "source excludes": ({"_source": {"excludes": ["n"]}}, "_source has excludes"),
    "source includes": ({"_source": {"includes": ["n"]}}, "_source has includes"),
    "runtime field": ({"runtime": {"replicator.deleted": {"type": "boolean"}}}, "it has a runtime field named"),
    "copy": (
        {"properties": {"x": {"type": "boolean", "copy_to": "replicator.deleted"}}},
        "field x is copied to replicator",
    ),
}
BY = {"by": {"type": "keyword", "time_series_dimension": True}}


def refused_with_a_template(copy: Copy, said: str, **content: Any) -> None:
    search, name = copy.search, copy.search.prefix.strip("-")
    body = {"index_patterns": [f"{search.prefix}*"], "priority": 500, "template": content}
    search.ask("PUT", f"/_index_template/{name}", body)
    try:
        copy.refuses(f"{copy.index}: an index template would make it so that {said}", WRONG)
    finally:
        search.ask("DELETE", f"/_index_template/{name}")
    copy.caught_up()  # nothing was left behind that stands in the way


@pytest.mark.parametrize("case", SETTINGS)
def test_a_setting_from_an_index_template_is_refused(copy: Copy, case: str) -> None:
    settings, said = SETTINGS[case]
    mappings = {"properties": BY} if case == "time series" else {}
    refused_with_a_template(copy, said, settings=settings, mappings=mappings)


@pytest.mark.parametrize("case", MAPPINGS)
def test_a_mapping_from_an_index_template_is_refused(copy: Copy, case: str) -> None:
    mappings, said = MAPPINGS[case]
    refused_with_a_template(copy, said, mappings=mappings)


@pytest.mark.parametrize("search_server", ["elasticsearch-8"], indirect=True)
def test_a_synthetic_source_is_refused(each_copy: Copy) -> None:
    """Elasticsearch 9 no longer supports it."""
    refused_with_a_template(each_copy, "_source has mode synthetic", mappings={"_source": {"mode": "synthetic"}})


@pytest.mark.parametrize("search_server", ["opensearch-3"], indirect=True)
@pytest.mark.parametrize("name", ["index.derived_source.enabled", "derived_source.enabled"])
def test_a_derived_source_is_refused(each_copy: Copy, name: str) -> None:
    refused_with_a_template(each_copy, "derived_source.enabled is true", settings={name: True})


# aliases, settings and the index itself can be changed at any time


def swap(copy: Copy) -> None:
    copy.search.ask("PUT", f"/{copy.other}")
    copy.aliases(
        {"remove": {"index": copy.index, "alias": copy.alias}}, {"add": {"index": copy.other, "alias": copy.alias}}
    )


def second(copy: Copy) -> None:
    copy.search.ask("PUT", f"/{copy.other}", {"aliases": {copy.alias: {}}})


def rolled_over(copy: Copy) -> None:
    copy.search.ask("POST", f"/{copy.alias}/_rollover/{copy.other}", {"conditions": {"max_docs": 1}})


def led_elsewhere(copy: Copy) -> None:
    copy.search.ask("PUT", f"/{copy.other}")
    copy.aliases(
        {"remove": {"index": copy.index, "alias": copy.writer}}, {"add": {"index": copy.other, "alias": copy.writer}}
    )


def shrunk(copy: Copy) -> None:
    """As ILM does: a smaller index takes over all names of the old one."""
    copy.settings(**{"index.blocks.write": True})
    copy.search.ask("POST", f"/{copy.index}/_clone/{copy.other}", {"settings": {"index.blocks.write": None}})
    names = (copy.alias, copy.writer, copy.index)
    adds = [{"add": {"index": copy.other, "alias": name, "filter": LIVE}} for name in names]
    copy.aliases({"remove_index": {"index": copy.index}}, *adds)


def made_anew(copy: Copy) -> None:
    was = copy.search.ask("GET", f"/{copy.index}")[copy.index]
    copy.search.ask("DELETE", f"/{copy.index}")
    copy.search.ask("PUT", f"/{copy.index}", {"mappings": was["mappings"], "aliases": was["aliases"]})


def restored(copy: Copy) -> None:
    """Restore the index over itself, from a snapshot of an earlier epoch, with the notes of that epoch."""
    restore = copy.search.snapshot(copy.index)
    code, said = copy.cli("resync", "--now", "--until", "caught-up")
    assert code == 0, said
    restore()


def final_pipeline(copy: Copy) -> None:
    copy.search.ask("PUT", "/_ingest/pipeline/p", {"processors": []})
    copy.settings(**{"index.final_pipeline": "p"})


def runtime_field(copy: Copy) -> None:
    copy.search.ask("PUT", f"/{copy.index}/_mapping", {"runtime": {"replicator.version": {"type": "long"}}})


def aliased(writer: bool = False, **how: Any) -> Callable[[Copy], None]:
    """Set one of the aliases again, with additional parameters."""

    def again(copy: Copy) -> None:
        name = copy.writer if writer else copy.alias
        copy.aliases({"add": {"index": copy.index, "alias": name, "filter": LIVE, **how}})

    return again


CHANGES: Mapping[str, tuple[Callable[[Copy], None], str, int]] = {
    "alias swapped": (swap, "points to {other}; it must point to {index} only", WRONG),
    "alias with a second index": (second, "points to {other}; it must point to {index} only", WRONG),
    "rollover": (rolled_over, "points to {other}; it must point to {index} only", WRONG),
    "write alias moved": (led_elsewhere, "the alias {index}-Replicator points to {other}", WRONG),
    "alias with a filter": (aliased(filter={"match_all": {}}), "does not hide tombstones", WRONG),
    "alias with a routing": (aliased(routing="r"), "the alias {alias} has a routing", WRONG),
    "alias with a routing for searches": (aliased(search_routing="r"), "the alias {alias} has a routing", WRONG),
    "alias with a routing for writes": (aliased(index_routing="r"), "the alias {alias} has a routing", WRONG),
    "write alias with a routing": (aliased(True, routing="r"), "the alias {index}-Replicator has a routing", WRONG),
    "write alias not for writing": (aliased(True, is_write_index=False), "does not accept writes", WRONG),
    "final pipeline": (final_pipeline, "the ingest pipeline p is its final_pipeline", WRONG),
    "async": (
        lambda copy: copy.settings(**{"index.translog.durability": "async"}),
        "translog.durability is async",
        WRONG,
    ),
    "runtime field": (runtime_field, "it has a runtime field named replicator", WRONG),
    "shrunk": (shrunk, "{index} is no longer an index but an alias of {other}", WRONG),
    "made anew": (made_anew, "is not the table that the last run wrote to", GAP),
    "restored over itself": (restored, "is not the table that the last run wrote to", GAP),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_hazard_introduced_between_two_runs_is_refused(copy: Copy, case: str) -> None:
    change, said, code = CHANGES[case]
    copy.caught_up()
    change(copy)
    copy.refuses(said.format(alias=copy.alias, index=copy.index, other=copy.other), code)


def test_a_default_pipeline_and_a_read_only_public_alias_are_harmless(copy: Copy) -> None:
    copy.caught_up()
    copy.settings(**{"index.default_pipeline": "absent"})
    aliased(is_write_index=False)(copy)
    assert copy.cli("check")[0] == 0
    copy.caught_up()
