"""The search targets on real servers, beyond the contract."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from urllib.error import HTTPError

import orjson
import pytest

from connectors.search import bulk as bulk_requests
from replicator.batch import Batch, Delete, Outcome, Part, Upsert
from replicator.errors import ConfigError, TransientError, Unfinished
from replicator.target.contract import Table
from replicator.testing.contract.kit import PAIR, at, batch, exhaust, put, remove
from replicator.version import FIRST_EPOCH
from tests.connectors.dynamodb.dynamodb_kit import late_after
from tests.connectors.search.search_kit import PLAIN, behind, hits, hooked, ids, opened, table, target
from tests.servers.search_fixtures import Search

pytestmark = pytest.mark.search


def there(pk: str, ordinal: int, of: Table, **more: Any) -> Upsert:
    return put({"pk": pk, **more}, ordinal, table=of.name)


# documents


def test_any_item_fits(search: Search) -> None:
    """Names that no mapping accepts, a thousand attributes, deep nesting."""
    deep: Any = "deepest"
    for _ in range(31):
        deep = {"": [deep]}
    odd = {"": 1, ".": 2, "a..b": 3, ".a": 4, "_id": 5, "_source": 6, " ": 7, "a": {"b": 1}, "a.b": 2, "replicator": 8}
    of = table(search)
    many = {f"attribute {n}": n for n in range(1000)}
    items = [{"pk": "odd", **odd}, {"pk": "many", **many}, {"pk": "deep", "deep": deep}, {"pk": "x" * 2048}]
    found = opened(search, of)
    assert found.write(batch(*(put(item, 1, table=of.name) for item in items))) == Outcome()
    assert sorted(orjson.dumps(hit["_source"]["document"]) for hit in hits(search, of)) == sorted(
        map(orjson.dumps, items)
    )


def test_documents_of_a_mapping_are_searched_by_their_fields(search: Search) -> None:
    of = table(search, mapping=PLAIN)
    written = batch(
        hooked(of, "a", 1, {"title": "green tea", "n": 12345678901234567}), hooked(of, "b", 1, {"title": "x"})
    )
    assert opened(search, of).write(written) == Outcome()
    (hit,) = hits(search, of, {"match": {"title": "tea"}})
    own = {"version": at(1), "partition": "a"}
    assert hit["_source"] == {"replicator": own, "title": "green tea", "n": 12345678901234567}
    assert hit["_version"] == at(1)


def test_long_ids_are_hashed_and_the_key_is_kept(search: Search) -> None:
    of, long = table(search), "é" * 257
    found = opened(search, of)
    found.write(batch(there(long, 1, of), there("x" * 512, 1, of)))
    assert {hit["_source"]["replicator"]["partition"] for hit in hits(search, of)} == {long, "x" * 512}
    found.write(batch(remove(long, 2, table=of.name), remove("x" * 512, 2, table=of.name)))
    assert hits(search, of) == []


@pytest.mark.parametrize(("routing", "key"), [("pk", "a"), ("before(pk, '#')", "a#1")])
def test_a_document_is_in_the_shard_of_its_routing(search: Search, routing: str, key: str) -> None:
    of = table(search, keys=PAIR, routing=routing, shards=3)
    found = opened(search, of)
    found.write(batch(*(put({"pk": key}, 1, id=(key, str(n)), table=of.name) for n in range(9)), tombstones=True))
    search.ask("POST", f"/{of.name}/_refresh")
    (listed,) = search.ask("GET", f"/_cat/count/{of.name}?format=json")
    one = search.ask("POST", f"/{of.name}/_search?routing=a&size=100")
    assert (listed["count"], {hit["_routing"] for hit in one["hits"]["hits"]}) == ("9", {"a"})
    assert len(one["hits"]["hits"]) == 9
    exhaust(lambda: found.sweep(of, at(2), [(key, "3")]))
    assert ids(search, of) == {f"{key}|3"}
    exhaust(lambda: found.purge(of, at(3)))
    assert set(behind(search, of)) == {f"{key}|3"}


# refusals


REFUSED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "type": ({"n": "secret"}, "the field n is of type long and cannot hold the value"),
    "range": ({"n": 10**30 + 777}, "n is of type long"),
    "unknown": ({"secretive": 1, "in": 1}, "is not in the mapping, which is strict"),
    "term": ({"pk": "secret" * 6000}, "32,766 bytes"),
    "object": ({"box": "secret"}, "the field box is"),
    "nested": ({"box": {"new": "secret"}}, "the field box.new is not in the mapping, which is strict"),
    "date": ({"day": "secret"}, "the field day is of type date"),
    "metadata": ({"_id": "secret"}, "reserved by the engine"),
    "empty": ({"": "secret"}, "whose name is empty"),
    "dots": ({"a..b": "secret"}, ""),
}  # fmt: skip


def test_a_refused_document_has_a_reason_that_quotes_none_of_its_values(search: Search) -> None:
    fields = {**PLAIN["properties"], "box": {"properties": {"a": {"type": "long"}}}, "day": {"type": "date"}}
    of = table(search, mapping={"properties": fields})
    found = opened(search, of)
    good = hooked(of, "good", 1, {"title": "fine"})
    poor = {name: hooked(of, name, 1, body) for name, (body, _) in REFUSED.items()}
    outcome = found.write(batch(good, *poor.values()))
    reasons = {r.write.id[0]: r.reason for r in outcome.rejections}
    assert set(reasons) == set(poor)
    wrong = {name: reasons[name] for name, (_, said) in REFUSED.items() if said not in reasons[name]}
    assert wrong == {}
    assert not any("secret" in r.replace("secretive", "") or "777" in r for r in reasons.values())
    assert found.write(batch(good)) == Outcome()  # it was stored by this run already: not stale
    assert ids(search, of) == {"good"}


def test_a_limit_of_the_index_is_a_reason(one_search: Search) -> None:
    of = table(one_search, mapping={"dynamic": "true", **PLAIN}, settings={"mapping.total_fields.limit": 12})
    body = {f"field{n}": n for n in range(20)}
    (rejection,) = opened(one_search, of).write(batch(hooked(of, "a", 1, body))).rejections
    assert rejection.reason.startswith("the index is limited to 12 total fields")


def test_writes_stored_by_an_earlier_attempt_are_applied_not_superseded(one_search: Search) -> None:
    of = table(one_search, mapping=PLAIN)
    found = opened(one_search, of)
    rest: list[Upsert | Delete] = [hooked(of, "a", 2, {}), remove("b", 2, table=of.name)]
    assert len(found.write(batch(*rest, hooked(of, "c", 1, {"n": "x"}))).rejections) == 1
    assert found.write(batch(*rest)) == Outcome()
    assert found.write(batch(*rest)).superseded == {"shard:contract": 2}  # but now they are


# deletes and late requests


def bulk(*lines: Any) -> bytes:
    return b"".join(orjson.dumps(line) + b"\n" for line in lines)


def test_a_late_request_undoes_no_delete_in_the_in_doubt_window(search: Search) -> None:
    """An old bulk request is applied after the delete, when the engine has forgotten the delete itself."""
    of = table(search)
    found = opened(search, of)
    found.in_doubt.begin()
    found.write(batch(there("a", 1, of)))
    found.write(batch(remove("a", 2, table=of.name)))
    search.ask("POST", f"/{of.name}-1/_close")
    search.ask("POST", f"/{of.name}-1/_open?wait_for_active_shards=1")
    late = {"index": {"_id": "a", "version": at(1), "version_type": "external"}}
    answer = search.ask("POST", f"/{of.name}/_bulk", bulk(late, {"replicator": {"version": at(1), "partition": "a"}}))
    assert [item["index"]["status"] for item in answer["items"]] == [409]
    assert ids(search, of) == set()


def test_a_tombstone_is_hidden_from_searches_but_not_from_get_and_gone_after_the_purge(search: Search) -> None:
    of = table(search, mapping=PLAIN)
    found = opened(search, of)
    found.write(batch(hooked(of, "a", 1, {"title": "x"}), tombstones=True))
    found.write(batch(remove("a", 2, table=of.name), tombstones=True))
    assert hits(search, of) == []
    assert search.ask("GET", f"/{of.name}/_doc/a")["_source"]["replicator"]["deleted"] is True
    assert exhaust(lambda: found.purge(of, at(0, FIRST_EPOCH + 1))) == 1
    with pytest.raises(HTTPError, match="404"):
        search.ask("GET", f"/{of.name}/_doc/a")
    assert found.write(batch(hooked(of, "a", 3, {}))) == Outcome()


def test_outside_the_in_doubt_window_a_delete_leaves_no_tombstone(one_search: Search) -> None:
    of = table(one_search)
    found = opened(one_search, of)
    found.write(batch(there("a", 1, of)))
    found.write(batch(remove("a", 2, table=of.name)))
    assert behind(one_search, of) == {}


def test_a_batch_encoded_before_the_in_doubt_window_leaves_tombstones_in_it(one_search: Search) -> None:
    of = table(one_search)
    found = opened(one_search, of)
    encoded = found.encode(batch(remove("a", 2, table=of.name)))
    found.in_doubt.begin()
    found.send(encoded)
    assert found.collect() == Outcome()
    assert behind(one_search, of)["a"]["_source"]["replicator"] == {"version": at(2), "partition": "a", "deleted": True}


def test_a_purge_spares_documents_stored_in_the_meantime(one_search: Search) -> None:
    """A search may still find a tombstone that a newer document has replaced."""
    of = table(one_search, settings={"refresh_interval": "-1"})
    found = opened(one_search, of)
    found.write(batch(remove("a", 2, table=of.name), tombstones=True))
    one_search.ask("POST", f"/{of.name}/_refresh")
    removal = {"delete": {"_id": "a", "version": at(2), "version_type": "external_gte"}}
    found.write(batch(there("a", 3, of)))
    answer = one_search.ask("POST", f"/{of.name}/_bulk", bulk(removal))
    assert [item["delete"]["status"] for item in answer["items"]] == [409]
    assert ids(one_search, of) == {"a"}


def test_a_purge_ends_however_few_tombstones_a_piece_has_time_for(
    one_search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = table(one_search)
    found = opened(one_search, of, bulk_documents=2, in_flight=1)
    found.write(batch(*(remove(f"{n}", 1, table=of.name) for n in range(9)), tombstones=True))
    monkeypatch.setattr(bulk_requests, "is_late", late_after(1))

    def piece() -> int:
        try:
            return found.purge(of, at(5))
        except Unfinished:
            return 1

    exhaust(piece)
    assert behind(one_search, of) == {}


# conflicts


def test_a_version_that_only_another_writer_can_have_stored_is_reported(one_search: Search) -> None:
    of = table(one_search)
    found = opened(one_search, of)
    foreign = {"index": {"_id": "a", "version": at(0, 6000), "version_type": "external"}}
    one_search.ask("POST", f"/{of.name}/_bulk", bulk(foreign, {"document": {}}))
    with pytest.raises(ConfigError, match=r"document a in .* has version \d+, higher than any that this copy writes"):
        found.write(batch(there("a", 1, of)))


def test_an_index_that_another_tool_filled_with_higher_versions_is_refused(one_search: Search) -> None:
    of = table(one_search)
    opened(one_search, of)
    foreign = {"index": {"_id": "a", "version": 1_700_000_000_000_000_000, "version_type": "external"}}
    one_search.ask("POST", f"/{of.name}/_bulk?refresh=true", bulk(foreign, {"document": {}}))
    (problem,) = target(one_search).check([of])
    assert "another tool filled it with versions up to 1700000000000000000" in problem
    with pytest.raises(ConfigError, match="another tool filled it"):
        opened(one_search, of)
    knowingly = Table(of.name, of.keys, {"adopt": True})
    assert list(target(one_search).check([knowingly])) == []
    assert opened(one_search, knowingly).write(batch(there("a", 1, of))).superseded == {"shard:contract": 1}


# indices


def test_an_index_created_by_accident_is_refused(one_search: Search) -> None:
    of = table(one_search)
    one_search.ask("PUT", f"/{of.name}-1", {"mappings": {"dynamic": "true"}})
    (problem,) = target(one_search).check([of])
    assert problem.startswith(f"{of.name}-1: this index was not created by replicator")
    assert "take it over with adopt: true" in problem


def test_the_name_of_a_table_must_not_be_an_index(one_search: Search) -> None:
    of = table(one_search)
    one_search.ask("PUT", f"/{of.name}")
    (problem,) = target(one_search).check([of])
    assert problem.startswith(f"{of.name} is an index; replicator writes to an index {of.name}-1 behind an alias")


def test_another_tools_index_is_taken_over_with_adopt(one_search: Search) -> None:
    of = table(one_search, index=f"{one_search.prefix}old", mapping={"dynamic": "false", **PLAIN}, adopt=True)
    one_search.ask("PUT", f"/{one_search.prefix}old", {"mappings": {"dynamic": "false", **PLAIN, "_meta": {"by": "x"}}})
    one_search.ask("PUT", f"/{one_search.prefix}old/_doc/theirs?refresh=true", {"title": "old"})
    found = target(one_search)
    assert list(found.check([of])) == []
    assert found.epoch([of]) == 0
    found.open([of], FIRST_EPOCH)
    assert found.write(batch(hooked(of, "a", 1, {"title": "new"}), hooked(of, "theirs", 1, {}))) == Outcome()
    assert ids(one_search, of) == {"a", "theirs"}
    told = one_search.ask("GET", f"/{one_search.prefix}old/_mapping")[f"{one_search.prefix}old"]["mappings"]
    assert (told["_meta"]["by"], told["_meta"]["replicator"]["epoch"]) == ("x", FIRST_EPOCH)


def test_every_mismatch_is_named_at_once(one_search: Search) -> None:
    of = table(one_search, mapping=PLAIN, shards=1)
    opened(one_search, of)
    changed = {
        "dynamic": "false",
        "properties": {**PLAIN["properties"], "n": {"type": "double"}, "more": {"type": "ip"}},
    }
    wanted = Table(of.name, of.keys, {"mapping": changed, "shards": 2})
    problems = target(one_search).check([wanted])
    assert [p.partition(": ")[2].partition(",")[0].partition(" (")[0] for p in problems] == [
        "the mapping must have dynamic: false",
        "field n must be double",
        "field more is missing",
        "it must have 2 primary shards",
    ]
    with pytest.raises(ConfigError) as e:
        opened(one_search, wanted)
    assert list(e.value.problems) == list(problems)


def test_an_index_of_another_pipeline_is_refused(one_search: Search) -> None:
    of = table(one_search)
    opened(one_search, of)
    other = target(one_search, pipeline="other")
    (problem,) = other.check([of])
    assert problem.startswith(f"{of.name}-1: pipeline contract writes to this index")
    for use in (other.epoch, lambda tables: other.open(tables, FIRST_EPOCH + 1)):
        with pytest.raises(ConfigError, match="pipeline contract writes to this index"):
            use([of])
    assert other.epoch([Table(of.name, of.keys, {"adopt": True})]) == FIRST_EPOCH


def test_a_different_routing_is_refused(one_search: Search) -> None:
    of = table(one_search, keys=PAIR)
    opened(one_search, of)
    (problem,) = target(one_search).check([Table(of.name, of.keys, {"routing": "sk"})])
    assert "its documents are routed differently than routing says" in problem


def test_an_alias_to_another_index_or_without_a_filter_is_refused(one_search: Search) -> None:
    of, other = table(one_search), table(one_search, "other")
    opened(one_search, of, other)
    action = {"index": f"{other.name}-1", "alias": of.name}
    one_search.ask("POST", "/_aliases", {"actions": [{"add": action}]})
    one_search.ask("POST", "/_aliases", {"actions": [{"add": {"index": f"{other.name}-1", "alias": other.name}}]})
    problems = target(one_search).check([of, other])
    said = f"the alias {of.name} points to {other.name}-1; it must point to {of.name}-1 only"
    assert any(p.startswith(said) for p in problems)
    assert any(f"the alias {other.name} does not hide tombstones" in p for p in problems)


def test_a_missing_alias_is_created(one_search: Search) -> None:
    of = table(one_search)
    opened(one_search, of).write(batch(there("a", 1, of)))
    one_search.ask("DELETE", f"/{of.name}-1/_alias/{of.name}")
    (statement,) = target(one_search).plan([of])
    assert statement.startswith("POST /_aliases")
    opened(one_search, of)
    assert ids(one_search, of) == {"a"}


def test_the_plan_is_a_valid_request(search: Search) -> None:
    of = table(
        search, mapping={"properties": {"price": {"type": "double"}}}, settings={"refresh_interval": "5s"}, shards=2
    )
    (statement,) = target(search).plan([of])
    note, request, body = statement.split("\n", 2)
    assert note == "# price: double keeps 15 to 17 digits; the document itself keeps all of them"
    assert request == f"PUT /{of.name}-1"
    search.ask("PUT", f"/{of.name}-1", orjson.loads(body))
    settings = search.ask("GET", f"/{of.name}/_settings")[f"{of.name}-1"]["settings"]["index"]
    assert (settings["number_of_shards"], settings["refresh_interval"]) == ("2", "5s")


def test_a_mapping_that_the_engine_refuses_is_a_config_error(one_search: Search) -> None:
    of = table(one_search, mapping={"properties": {"a": {"type": "no_such_type"}}})
    with pytest.raises(ConfigError, match=r"an error while creating the index .*no_such_type"):
        opened(one_search, of)


def test_check_leaves_nothing_behind(search: Search) -> None:
    of = table(search)
    opened(search, of)
    assert list(target(search).check([of])) == []
    assert behind(search, of) == {}


# an index that is not available


def test_a_run_waits_while_a_disk_is_nearly_full(search: Search) -> None:
    of = table(search)
    found = opened(search, of)
    found.write(batch(there("a", 1, of)))
    search.ask("PUT", f"/{of.name}-1/_settings", {"index.blocks.read_only_allow_delete": True})
    later = batch(there("b", 2, of), remove("a", 2, table=of.name))
    for _ in range(7):  # more often than a document too large is tried
        with pytest.raises(TransientError, match="a disk is nearly full"):
            found.write(later)
    search.ask("PUT", f"/{of.name}-1/_settings", {"index.blocks.read_only_allow_delete": None})
    assert found.write(later) == Outcome()
    assert ids(search, of) == {"b"}


def test_a_run_waits_while_the_index_is_closed(search: Search) -> None:
    of = table(search)
    found = opened(search, of)
    search.ask("POST", f"/{of.name}-1/_close")
    with pytest.raises(TransientError, match="the index is closed; waiting until it is opened"):
        found.write(batch(there("a", 1, of)))
    search.ask("POST", f"/{of.name}-1/_open?wait_for_active_shards=1")
    assert found.write(batch(there("a", 1, of))) == Outcome()


def test_a_run_waits_while_writes_are_blocked(search: Search) -> None:
    of = table(search)
    found = opened(search, of)
    search.ask("PUT", f"/{of.name}-1/_settings", {"index.blocks.write": True})
    with pytest.raises(TransientError, match="writes to the index are blocked"):
        found.write(batch(there("a", 1, of)))
    assert ["writes to the index are blocked" in p for p in target(search).check([of])] == [True]
    search.ask("PUT", f"/{of.name}-1/_settings", {"index.blocks.write": None})
    assert found.write(batch(there("a", 1, of))) == Outcome()


@pytest.mark.parametrize("write", ["put", "delete"])
def test_a_deleted_index_ends_the_run(search: Search, write: str) -> None:
    of = table(search)
    found = opened(search, of)
    search.ask("DELETE", f"/{of.name}-1")
    search.ask("PUT", "/_cluster/settings", {"transient": {"action.auto_create_index": "true"}})
    try:
        with pytest.raises(ConfigError, match="is gone"):
            found.write(batch(there("a", 1, of) if write == "put" else remove("a", 1, table=of.name)))
    finally:
        search.ask("PUT", "/_cluster/settings", {"transient": {"action.auto_create_index": None}})
    assert [name for name in search.indices() if name != of.name] == []


def test_an_alias_to_several_indices_ends_the_run(search: Search) -> None:
    of = table(search)
    found = opened(search, of)
    search.ask("PUT", f"/{search.prefix}second", {"aliases": {f"{of.name}-1-Replicator": {"is_hidden": True}}})
    with pytest.raises(ConfigError, match="the alias now points to several indices"):
        found.write(batch(there("a", 1, of)))


# sizes


def test_many_bulks_in_flight_store_everything(one_search: Search) -> None:
    of = table(one_search)
    found = opened(one_search, of, bulk_bytes=20_000, bulk_documents=50, in_flight=4)
    writes = [there(str(n), 1, of, note="x" * (n % 700)) for n in range(900)]
    assert found.write(batch(*writes)) == Outcome()
    assert len(ids(one_search, of)) == 900
    parts = [Part("shard:1", writes[:400]), Part("segment:2", writes[400:])]
    assert found.write(Batch(parts)).superseded == {"shard:1": 400, "segment:2": 500}


def test_numbers_are_exact_in_documents_of_a_mapping(search: Search) -> None:
    of = table(search, mapping={"properties": {"n": {"type": "double"}, "k": {"type": "keyword"}}})
    digits = Decimal("12345678901234567890.123456789012345678")
    opened(search, of).write(batch(hooked(of, "a", 1, {"n": digits, "k": digits})))
    raw = raw_source(search, f"/{of.name}/_source/a")
    assert raw.count(str(digits).encode()) == 2


def raw_source(search: Search, path: str) -> bytes:
    with urllib.request.urlopen(f"{search.url}{path}") as answer:
        found: bytes = answer.read()
    return found
