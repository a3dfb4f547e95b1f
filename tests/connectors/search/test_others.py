"""Changes by others to an index before or during a run: aliases, templates, pipelines, settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from connectors.search import checks
from connectors.search.checks import EVERY
from connectors.search.target import SearchTarget
from replicator.batch import Outcome
from replicator.errors import ConfigError, GapFound, TransientError
from replicator.identity import recreated_tables
from replicator.target.contract import Table
from replicator.testing.contract.kit import at, batch, exhaust, put, remove
from replicator.version import FIRST_EPOCH
from tests.connectors.search.search_kit import PLAIN, behind, hooked, ids, opened, table, target
from tests.servers.search_fixtures import Search

pytestmark = pytest.mark.search

LIVE = {"bool": {"must_not": {"term": {"replicator.deleted": True}}}}


@pytest.fixture
def of(one_search: Search) -> Table:
    return table(one_search)


def later(found: SearchTarget) -> SearchTarget:
    """The same target, once it is time to inspect the index again."""
    found._watch.now = lambda: float("inf")
    return found


def alias(search: Search, *actions: Mapping[str, Any]) -> None:
    search.ask("POST", "/_aliases", {"actions": list(actions)})


def there(pk: str, ordinal: int, of: Table) -> Any:
    return put({"pk": pk}, ordinal, table=of.name)


# aliases and indices that move


@pytest.mark.parametrize("how", ["swap", "second write index", "rollover"])
def test_a_run_writes_to_its_own_index_until_it_notices_and_ends(one_search: Search, of: Table, how: str) -> None:
    found, other = opened(one_search, of), f"{of.name}-000002"
    one_search.ask("PUT", f"/{other}") if how != "rollover" else None
    mine = {"index": f"{of.name}-1", "alias": of.name}
    match how:
        case "swap":
            alias(one_search, {"remove": mine}, {"add": {"index": other, "alias": of.name}})
        case "second write index":
            add = {"index": other, "alias": of.name, "is_write_index": True}
            alias(one_search, {"add": {**mine, "filter": LIVE, "is_write_index": False}}, {"add": add})
        case "rollover":
            one_search.ask("POST", f"/{of.name}/_rollover", {"conditions": {"max_docs": 0}})
    assert found.write(batch(there("a", 1, of))) == Outcome()
    assert one_search.ask("GET", f"/{of.name}-1/_doc/a")["found"]
    with pytest.raises(ConfigError, match=f"the alias {of.name} points to {other}; it must point to {of.name}-1 only"):
        later(found).write(batch(there("b", 2, of)))
    assert one_search.ask("GET", f"/{other}/_count")["count"] == 0


def test_if_our_own_alias_is_moved_nothing_counts_as_stored(one_search: Search, of: Table) -> None:
    found, other = opened(one_search, of), f"{of.name}-2"
    one_search.ask("PUT", f"/{other}")
    writer = f"{of.name}-1-Replicator"
    moved = {"remove": {"index": f"{of.name}-1", "alias": writer}}, {"add": {"index": other, "alias": writer}}
    alias(one_search, *moved)
    for write in (there("a", 1, of), remove("a", 2, table=of.name)):
        with pytest.raises(ConfigError, match=f"arrived in another one, {other}.*Keep {other}, perhaps the only copy"):
            found.write(batch(write))
    with pytest.raises(ConfigError, match=f"the alias {writer} points to {other}"):
        opened(one_search, of)


@pytest.mark.parametrize("write", ["put", "delete"])
def test_a_missing_index_is_not_created_by_accident(search: Search, write: str) -> None:
    of = table(search)
    search.ask("PUT", "/_cluster/settings", {"transient": {"action.auto_create_index": "true"}})
    try:
        found = opened(search, of)
        search.ask("DELETE", f"/{of.name}-1")
        with pytest.raises(ConfigError, match="is gone"):
            found.write(batch(there("a", 1, of) if write == "put" else remove("a", 1, table=of.name)))
    finally:
        search.ask("PUT", "/_cluster/settings", {"transient": {"action.auto_create_index": None}})
    assert search.indices() == []


def test_an_index_that_was_shrunk_is_kept_and_named(one_search: Search, of: Table) -> None:
    """ILM creates a smaller index, gives it the aliases and the old index's name, and removes the old one."""
    found, index = opened(one_search, of), f"{of.name}-1"
    found.write(batch(there("a", 1, of)))
    small = f"{one_search.prefix}shrink"
    one_search.ask("PUT", f"/{index}/_settings", {"index.blocks.write": True})
    one_search.ask("POST", f"/{index}/_clone/{small}", {"settings": {"index.blocks.write": None}})
    names = (of.name, f"{index}-Replicator", index)
    moved = [{"add": {"index": small, "alias": name, "filter": LIVE}} for name in names]
    alias(one_search, {"remove_index": {"index": index}}, *moved)
    with pytest.raises(ConfigError, match=f"{index} is no longer an index but an alias of {small}.*Keep {small}"):
        later(found).write(batch(there("b", 2, of)))
    with pytest.raises(ConfigError, match=f"Keep {small}, perhaps the only copy.*set index: {small}"):
        opened(one_search, of)
    going_on = Table(of.name, of.keys, {"index": small})
    with pytest.raises(GapFound, match="is not the index that replicator wrote to"):
        opened(one_search, going_on)
    target(one_search).open([going_on], FIRST_EPOCH + 1)
    assert ids(one_search, going_on) == {"a"}


def test_recreating_an_index_ends_the_run(one_search: Search, of: Table) -> None:
    found, index = opened(one_search, of), f"{of.name}-1"
    found.write(batch(there("a", 1, of)))
    was = one_search.ask("GET", f"/{index}")[index]
    one_search.ask("DELETE", f"/{index}")
    one_search.ask("PUT", f"/{index}", {"mappings": was["mappings"], "aliases": was["aliases"]})
    with pytest.raises(
        ConfigError, match=f"{index} is not the index that replicator wrote to: it was deleted and recreated"
    ):
        later(found).write(batch(there("b", 2, of)))
    (problem,) = target(one_search).check([of])
    assert "What it lacks may be gone from the stream; copy everything again with: replicator resync" in problem
    with pytest.raises(GapFound, match=f"{index} is not the index that replicator wrote to"):
        opened(one_search, of)
    target(one_search).open([of], FIRST_EPOCH + 1)
    assert list(target(one_search).check([of])) == []


def test_restoring_an_index_over_itself_ends_the_run_and_is_a_gap(search: Search) -> None:
    """It keeps its UUID and the notes in its mapping."""
    of = table(search)
    found, index = opened(search, of), f"{of.name}-1"
    found.write(batch(there("a", 1, of)))
    for _ in range(2):  # also one that was restored before
        restore, was = search.snapshot(index), search.ask("GET", f"/{index}")[index]
        (before,) = target(search).identities([of]).values()
        epoch = target(search).epoch([of]) or 0
        later(found).write(batch(there("b", 2, of)))
        restore()
        now = search.ask("GET", f"/{index}")[index]
        assert now["settings"]["index"]["uuid"] == was["settings"]["index"]["uuid"]
        assert now["mappings"]["_meta"] == was["mappings"]["_meta"]
        with pytest.raises(ConfigError, match=f"{index} is not the index .* restored from a snapshot"):
            later(found).write(batch(there("c", 3, of)))
        (problem,) = target(search).check([of])
        assert f"{index} is not the index that replicator wrote to" in problem
        with pytest.raises(GapFound, match=f"{index} is not the index that replicator wrote to"):
            target(search).open([of], epoch)
        (after,) = target(search).identities([of]).values()
        assert list(recreated_tables({of.name: before}, {of.name: after})) == [after.place]
        found = target(search)
        found.open([of], epoch + 1)
        assert list(target(search).check([of])) == []


def test_closing_and_opening_an_index_keeps_its_identity(one_search: Search, of: Table) -> None:
    found, index = opened(one_search, of), f"{of.name}-1"
    (before,) = found.identities([of]).values()
    one_search.ask("POST", f"/{index}/_close")
    one_search.ask("POST", f"/{index}/_open?wait_for_active_shards=1")
    assert later(found).write(batch(there("a", 1, of))) == Outcome()
    assert list(found.identities([of]).values()) == [before]
    assert list(target(one_search).check([of])) == []


def test_a_note_from_before_restores_were_noted_holds_for_an_index_that_was_not(one_search: Search, of: Table) -> None:
    opened(one_search, of)
    index = one_search.ask("GET", f"/{of.name}-1")[f"{of.name}-1"]
    assert index["mappings"]["_meta"]["replicator"]["uuid"] == index["settings"]["index"]["uuid"]


def test_a_run_of_an_epoch_before_the_indexs_own_is_refused(one_search: Search, of: Table) -> None:
    target(one_search).open([of], FIRST_EPOCH + 3)
    with pytest.raises(
        ConfigError, match=f"was written by epoch {FIRST_EPOCH + 3}, later than this run's {FIRST_EPOCH + 1}"
    ):
        target(one_search).open([of], FIRST_EPOCH + 1)


def test_an_index_is_told_from_a_later_one_by_its_uuid(search: Search) -> None:
    of = table(search)
    (absent,) = target(search).identities([of]).values()
    assert (absent.place, absent.id) == (f"the index {of.name}-1 of {target(search).server}", "")
    (was,) = opened(search, of).identities([of]).values()
    search.ask("DELETE", f"/{of.name}-1")
    (now,) = opened(search, of).identities([of]).values()
    assert was.place == now.place
    assert len({was.id, now.id, ""}) == 3


def test_a_later_epoch_of_another_run_is_a_gap_also_for_a_run_that_writes_nothing(
    one_search: Search, of: Table
) -> None:
    """Both have checkpoints of their own: whatever the earlier one writes is superseded, although it succeeds."""
    found = opened(one_search, of)
    assert later(found).recheck([of]) == ()
    target(one_search).open([of], FIRST_EPOCH + 1)
    with pytest.raises(GapFound, match=rf"{of.name}-1 was written by epoch {FIRST_EPOCH + 1} since this run") as gap:
        found.recheck([of])
    assert (gap.value.of_target, gap.value.by_hand) == (True, True)
    found.open([of], FIRST_EPOCH + 2)
    assert found.recheck([of]) == ()


def test_an_index_that_was_replaced_is_noticed_by_a_run_that_writes_nothing(one_search: Search, of: Table) -> None:
    found = opened(one_search, of)
    one_search.ask("DELETE", f"/{of.name}-1")
    opened(one_search, of)
    with pytest.raises(ConfigError, match="is not the index that replicator wrote to"):
        later(found).recheck([of])


def test_an_index_is_inspected_at_most_every_few_seconds(one_search: Search, of: Table) -> None:
    found, clock = opened(one_search, of), [0.0]
    found._watch.now = lambda: clock[0]
    found._watch._looked = 0.0
    one_search.ask("PUT", f"/{of.name}-1/_settings", {"index.translog.durability": "async"})
    clock[0] = EVERY - 0.1
    assert found.write(batch(there("a", 1, of))) == Outcome()
    clock[0] = EVERY
    with pytest.raises(ConfigError, match=r"translog\.durability is async"):
        found.write(batch(there("b", 1, of)))


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("contract", {"routing": "r"}, "has a routing, so documents would be stored twice or not be found"),
        ("contract", {"search_routing": "r"}, "has a routing"),
        ("contract-1-Replicator", {"index_routing": "r"}, "has a routing"),
        ("contract-1-Replicator", {"is_write_index": False}, "does not accept writes"),
        ("contract", {"filter": {"match_all": {}}}, "does not hide tombstones"),
    ],
)
def test_a_changed_alias_is_refused(
    one_search: Search, of: Table, name: str, more: Mapping[str, Any], said: str
) -> None:
    found = opened(one_search, of)
    change = {"index": f"{of.name}-1", "alias": f"{one_search.prefix}{name}", "filter": LIVE, **more}
    alias(one_search, {"add": change})
    (problem,) = target(one_search).check([of])
    assert said in problem
    for use in (lambda: later(found).write(batch(there("a", 1, of))), lambda: opened(one_search, of)):
        with pytest.raises(ConfigError) as e:
            use()
        assert said in str(e.value)


def test_the_public_alias_need_not_accept_writes(one_search: Search, of: Table) -> None:
    found = opened(one_search, of)
    alias(one_search, {"add": {"index": f"{of.name}-1", "alias": of.name, "filter": LIVE, "is_write_index": False}})
    assert later(found).write(batch(there("a", 1, of))) == Outcome()
    assert ids(one_search, of) == {"a"}


# templates, pipelines and settings


@pytest.fixture
def template(one_search: Search) -> Iterator[Any]:
    """Creates an index template for this test's indices."""
    name = one_search.prefix.strip("-")

    def made(**content: Any) -> None:
        body = {"index_patterns": [f"{one_search.prefix}*"], "priority": 500, "template": content}
        one_search.ask("PUT", f"/_index_template/{name}", body)

    yield made
    one_search.ask("DELETE", f"/_index_template/{name}")


HAZARDS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "async": ({"settings": {"index.translog.durability": "async"}}, "an engine that crashes loses documents"),
    "final pipeline": ({"settings": {"index.final_pipeline": "p"}}, "the ingest pipeline p is its final_pipeline"),
    "no source": ({"mappings": {"_source": {"enabled": False}}}, "_source is disabled"),
    "source excludes": ({"mappings": {"_source": {"excludes": ["n"]}}}, "_source has excludes"),
    "source includes": ({"mappings": {"_source": {"includes": ["n"]}}}, "_source has includes"),
    "synthetic": ({"settings": {"index.mapping.source.mode": "synthetic"}}, "mapping.source.mode is synthetic"),
    "runtime": ({"mappings": {"runtime": {"replicator.deleted": {"type": "boolean"}}}}, "it has a runtime field named"),
    "copy": (
        {"mappings": {"properties": {"x": {"type": "boolean", "copy_to": "replicator.deleted"}}}},
        "field x is copied to replicator",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HAZARDS)
def test_hazards_from_a_template_are_found_even_if_the_login_may_not_simulate_it(
    one_search: Search, template: Any, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, said = HAZARDS[case]
    one_search.ask("PUT", "/_ingest/pipeline/p", {"processors": []})
    template(**content)
    of = table(one_search, mapping={"dynamic": "false", **PLAIN})
    monkeypatch.setattr(checks, "templates", lambda connection, layout: iter(()))
    for _ in range(2):
        with pytest.raises(ConfigError) as e:
            opened(one_search, of)
        assert said in str(e.value)
    assert any(said in p for p in target(one_search).check([of]))
    assert target(one_search).epoch([of]) == 0  # nothing is lost: no run has written there


def test_settings_of_the_config_override_templates(one_search: Search, template: Any) -> None:
    template(settings={"index.translog.durability": "async", "index.final_pipeline": "p"})
    of = table(one_search, settings={"translog": {"durability": "request"}, "index.final_pipeline": None})
    assert list(target(one_search).check([of])) == []
    assert opened(one_search, of).write(batch(there("a", 1, of))) == Outcome()


@pytest.mark.parametrize("case", ["async", "final pipeline"])
def test_changing_a_setting_to_a_hazard_ends_the_run(one_search: Search, of: Table, case: str) -> None:
    content, said = HAZARDS[case]
    one_search.ask("PUT", "/_ingest/pipeline/p", {"processors": []})
    found = opened(one_search, of)
    one_search.ask("PUT", f"/{of.name}-1/_settings", content["settings"])
    with pytest.raises(ConfigError) as e:
        later(found).write(batch(there("a", 1, of)))
    assert said in str(e.value)


def test_a_default_pipeline_is_skipped(search: Search) -> None:
    """Even one that does not exist."""
    of = table(search, mapping=PLAIN)
    found = opened(search, of)
    search.ask("PUT", f"/{of.name}-1/_settings", {"index.default_pipeline": "absent"})
    assert later(found).write(batch(hooked(of, "a", 1, {"title": "x"}), remove("b", 1, table=of.name))) == Outcome()
    assert behind(search, of)["a"]["_source"] == {"replicator": {"version": at(1), "partition": "a"}, "title": "x"}


def test_own_fields_with_a_wrong_mapping_are_refused(one_search: Search) -> None:
    index = f"{one_search.prefix}contract-1"
    fields = {
        "version": {"type": "long", "index": False},
        "deleted": {"type": "keyword"},
        "partition": {"type": "text"},
    }
    one_search.ask(
        "PUT", f"/{index}", {"mappings": {"dynamic": "strict", "properties": {"replicator": {"properties": fields}}}}
    )
    of = table(one_search, mapping=PLAIN, adopt=True)
    problems = " ".join(target(one_search).check([of]))
    for said in (
        "replicator.version must have index: true, but has false",
        "replicator.deleted must have type: boolean",
    ):
        assert said in problems


# hooks changed to use document ids of their own


def test_a_resync_after_a_change_to_own_ids_ends(search: Search) -> None:
    from replicator.batch import Upsert
    from replicator.target.contract import OWN_IDS

    of = table(search, mapping=PLAIN)
    opened(search, of).write(batch(*(hooked(of, str(n), 1, {"n": n}) for n in range(3))))
    own = Table(of.name, OWN_IDS, of.options)
    assert list(target(search).check([own])) == []
    found = target(search)
    found.open([own], FIRST_EPOCH + 1)
    begun = at(0, FIRST_EPOCH + 1)
    write = Upsert(of.name, ("1", "d"), {"n": 1}, begun, ("1",))
    assert found.write(batch(write, tombstones=True)) == Outcome()
    assert exhaust(lambda: found.sweep(own, begun, [])) == 3
    assert ids(search, own) == {"1|d"}
    assert exhaust(lambda: found.purge(own, at(0, FIRST_EPOCH + 2))) == 3


# limits of an index


LIMITS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any], str]] = {
    "nested documents": ({"mapping.nested_objects.limit": 1}, {"box": [{"a": 1}, {"a": 2}]}, "the engine refuses"),
    "depth": ({"mapping.depth.limit": 3}, {"m": {"secret": {"b": {"c": {"d": 1}}}}}, "the index is limited to 3 "),
    "length of names": (
        {"mapping.field_name_length.limit": 40},
        {"secret" * 9: 1},
        "it has a field whose name is longer",
    ),
    "number of fields": (
        {"mapping.total_fields.limit": 9},
        {f"secret{n}": n for n in range(9)},
        "the index is limited",
    ),
}


@pytest.mark.parametrize("case", LIMITS)
def test_only_the_document_beyond_a_limit_of_the_index_is_refused(one_search: Search, case: str) -> None:
    settings, body, said = LIMITS[case]
    fields = {"box": {"type": "nested", "properties": {"a": {"type": "long"}}}}
    of = table(one_search, mapping={"dynamic": "true", "properties": fields}, settings=settings)
    found = opened(one_search, of)
    (rejection,) = found.write(batch(hooked(of, "a", 1, {}), hooked(of, "b", 1, body))).rejections
    assert rejection.write.id == ("b",)
    assert rejection.reason.startswith(said)
    assert "secret" not in rejection.reason
    assert found.write(batch(hooked(of, "a", 1, {}))) == Outcome()
    assert ids(one_search, of) == {"a"}


def test_a_run_waits_for_an_unassigned_shard(one_search: Search) -> None:
    """A red index: the engine fails a request after 30 s, or at once if no copy of the shard is assigned."""
    of = table(one_search, settings={"routing.allocation.require._name": "no such node"})
    with pytest.raises(TransientError):
        opened(one_search, of)
    allocate = {"index.routing.allocation.require._name": None}
    one_search.ask("PUT", f"/{of.name}-1/_settings", allocate)
    one_search.ask("GET", f"/_cluster/health/{of.name}-1?wait_for_status=yellow&timeout=30s")
    found = opened(one_search, of)
    assert found.write(batch(there("a", 1, of))) == Outcome()
    assert ids(one_search, of) == {"a"}
