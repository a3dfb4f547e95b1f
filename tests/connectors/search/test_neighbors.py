"""No command writes to or deletes indices that replicator did not create."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from replicator.cli import main
from replicator.operations import rebuild_by_alias
from replicator.testing.contract.kit import batch, put, remove
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from replicator.version import FIRST_EPOCH
from tests.cli.command_line import Shell
from tests.connectors.neighbors_kit import COMMANDS, GROUPS, HOOK, IDS, REBUILD, WITHOUT_TARGET, change, fill
from tests.connectors.search.search_kit import table, target
from tests.servers.search_fixtures import Search

pytestmark = pytest.mark.search


@pytest.fixture
def neighbors(one_search: Search) -> Sequence[str]:
    """Foreign indices with names and ids similar to ours; one belongs to another pipeline and has tombstones."""
    names = [f"{one_search.prefix}{name}" for name in ("orders-2", "orders1", "orders-1-copy", "ord")]
    for name in names:
        one_search.ask("PUT", f"/{name}")
        for id in IDS:
            one_search.ask("PUT", f"/{name}/_doc/{id}?refresh=true", {"mine": id, "replicator": {"version": 1}})
    add = {"index": names[0], "alias": f"{one_search.prefix}all", "is_write_index": True}
    one_search.ask("POST", "/_aliases", {"actions": [{"add": add}]})
    of = table(one_search, "other")
    other = target(one_search, pipeline="other")
    other.open([of], FIRST_EPOCH)
    writes = put({"pk": "a"}, 1, table=of.name), remove("gone", 2, table=of.name)
    other.write(batch(*writes, tombstones=True))
    return [*names, f"{of.name}-1"]


def everything(search: Search, names: Sequence[str]) -> Any:
    """Each index's definition, and its documents with version and sequence number."""
    search.ask("POST", "/_refresh")
    query = {"size": 1000, "version": True, "seq_no_primary_term": True, "sort": ["_doc"]}
    return [(search.ask("GET", f"/{n}"), search.ask("POST", f"/{n}/_search", query)["hits"]["hits"]) for n in names]


@pytest.fixture
def shell(one_search: Search, tmp_path: Path) -> Iterator[tuple[Shell, str, DynamoDB]]:
    """A pipeline beside the neighbors, with work to do: a sweep, a purge, a parked item."""
    db = DynamoDB(now=time.time, random=random.Random(1))
    fill(db)
    (tmp_path / "hooks.py").write_text(HOOK)
    with served(db) as endpoint:
        config = tmp_path / "orders.yaml"
        config.write_text(
            f"pipeline: orders\nsource: {{table: orders, region: us-east-1, endpoint_url: {endpoint}}}\n"
            f"transform: hooks.py:hook\ntarget: {{type: elasticsearch, url: {one_search.url}, "
            f"table: {one_search.prefix}orders}}\n"
        )
        yield Shell({"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}), str(config), db


def test_every_command_is_tested() -> None:
    groups = {name: getattr(command, "commands", {}) for name, command in main.commands.items()}
    known = {f"{name} {inner}" for name, inners in groups.items() for inner in inners}
    tested = {*COMMANDS, *WITHOUT_TARGET, *(f"rebuild {step}" for step in REBUILD)}
    assert known | {name for name, inners in groups.items() if not inners} == tested


@pytest.mark.parametrize("commands", GROUPS)
def test_a_command_leaves_the_indices_of_others_as_they_are(
    one_search: Search, neighbors: Sequence[str], shell: tuple[Shell, str, DynamoDB], commands: str
) -> None:
    replicator, config, db = shell
    before = everything(one_search, neighbors)
    listed = set(one_search.indices())
    assert replicator.run("run", config, "--until", "caught-up")[0] == 6, "an item is parked"
    change(db)
    for command in GROUPS[commands]:
        said = COMMANDS[command].run(replicator, config)
        assert everything(one_search, neighbors) == before, command
        assert set(one_search.indices()) - listed == {f"{one_search.prefix}orders-1"}, command
        assert not any(re.search(rf"{other}(?![\w-])", said) for other in neighbors), command  # none is even named


def test_a_rebuild_leaves_the_indices_of_others_as_they_are(
    one_search: Search, neighbors: Sequence[str], shell: tuple[Shell, str, DynamoDB], monkeypatch: pytest.MonkeyPatch
) -> None:
    replicator, config, _ = shell
    monkeypatch.setattr(rebuild_by_alias, "ready", lambda *_, **__: [])  # no run is up
    monkeypatch.setattr(rebuild_by_alias, "incomplete", lambda *_: [])  # an item is parked
    new, alias = Path(config).with_name("new.yaml"), f"{one_search.prefix}orders"
    text = Path(config).read_text().replace("pipeline: orders\n", "pipeline: orders-9\nreplaces: orders.yaml\n")
    new.write_text(text.replace(f"table: {alias}}}", f"tables: {{{alias}: {{index: {alias}-9}}}}}}"))
    assert replicator.run("run", config, "--until", "caught-up")[0] == 6, "an item is parked"
    before, listed = everything(one_search, neighbors), set(one_search.indices())
    for step in REBUILD:
        if step not in ("start", "finish") and f"{alias}-9" not in one_search.indices():
            replicator.run("run", str(new), "--until", "caught-up")
        result = CliRunner().invoke(main, ["rebuild", step, str(new)], env=replicator.environ)
        assert (result.exit_code, everything(one_search, neighbors)) == (0, before), result.output
    assert set(one_search.indices()) ^ listed == {f"{alias}-1", f"{alias}-9"}
