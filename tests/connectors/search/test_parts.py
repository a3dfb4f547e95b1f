"""Unit tests of the search targets: ids, lines, sizes, verdicts, reasons, mappings, options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from functools import partial
from http.client import RemoteDisconnected
from itertools import permutations
from typing import Any

import pytest
from elastic_transport import ConnectionError as TransportConnectionError
from pydantic import ValidationError
from urllib3.exceptions import ProtocolError

from connectors.search.bulk import SMALLEST, Size
from connectors.search.conflicts import STRIKES, Progress
from connectors.search.connection import no_response
from connectors.search.encode import TableEncoder, cut, encode
from connectors.search.errors import ResponseLost
from connectors.search.layout import LONGEST_ID, index_id, layouts
from connectors.search.mappings import differences, roundings, settings_differences
from connectors.search.options import SearchTable
from connectors.search.responses import all_stored, refusal, verdicts, worst
from replicator.batch import Batch, Delete, Part, Rejection, Upsert
from replicator.config.target import destination
from replicator.errors import ConfigError, NotPermitted, TransientError
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.target.acks import place
from replicator.target.contract import OWN_IDS, Table
from replicator.testing.contract.kit import PAIR, PK, at, batch, put, remove
from replicator.version import FIRST_EPOCH, version

# ids


@pytest.mark.parametrize(
    ("key", "found"),
    [
        (("a",), "a"),
        (("ORDER#1", "10"), "ORDER#1|10"),
        (("a|b", "100%"), "a%7Cb|100%25"),
        (("a|b",), "a|b"),
        (('["a"]', ""), '["a"]|'),
        (("é" * 256,), "é" * 256),
    ],
)
def test_an_id_is_the_readable_key(key: tuple[str, ...], found: str) -> None:
    assert index_id(key) == found


def test_ids_of_different_keys_never_meet() -> None:
    texts = ["", "a", "|", "%", "%7C", "%25", "a|", "|a", "%7", "C", "7C|", "|%7C", "x" * 600, "x" * 601]
    keys = [*permutations(texts, 2), *((t, t) for t in texts)]
    assert len({index_id(key) for key in keys}) == len(keys)


@pytest.mark.parametrize("key", [("x" * 513,), ("é" * 257,), ("漢" * 171,), ("p" * 300, "s" * 300)])
def test_a_long_id_is_hashed(key: tuple[str, ...]) -> None:
    assert index_id(key).startswith("sha256:")
    assert len(index_id(key).encode()) <= LONGEST_ID


def test_a_key_that_looks_like_a_hash_collides_with_no_other() -> None:
    long = ("x" * 600,)
    assert index_id((index_id(long),)) != index_id(long)


# lines


def encoders(*tables: Table) -> dict[str, TableEncoder]:
    return {name: TableEncoder(layout) for name, layout in layouts(tables).items()}


def lines(written: Batch, *tables: Table) -> dict[str, list[Any]]:
    encoded = encode(written, encoders(*tables))
    assert not encoded.rejections, encoded.rejections
    exact = partial(json.loads, parse_float=Decimal, parse_int=Decimal)
    return {
        name: [[exact(line) for line in e.sent(tombstones=False).splitlines()] for e in entries]
        for name, entries in encoded.tables.items()
    }


def test_a_whole_item_is_kept_apart_from_our_own_fields() -> None:
    ((action, source),) = lines(
        batch(put({"pk": "a", "n": Decimal("1.10"), "replicator": 1}, 3)), Table("contract", PK)
    )["contract"]
    assert action == {"index": {"_id": "a", "version": at(3), "version_type": "external"}}
    assert source == {
        "replicator": {"version": at(3), "partition": "a"},
        "document": {"pk": "a", "n": Decimal("1.10"), "replicator": 1},
    }


MAPPED = {"mapping": {"properties": {"title": {"type": "text"}}}}


@pytest.mark.parametrize("body", [{"title": "x"}, {}])
def test_with_a_mapping_fields_are_at_the_top_level(body: Mapping[str, Any]) -> None:
    written = batch(Upsert("contract", ("a",), body, at(1), ("a",)))
    ((_, source),) = lines(written, Table("contract", PK, MAPPED))["contract"]
    assert source == {"replicator": {"version": at(1), "partition": "a"}, **body}


def test_a_delete_leaves_a_tombstone_or_not() -> None:
    (entry,) = encode(batch(remove("a", 3)), encoders(Table("contract", PK))).tables["contract"]
    action, source = map(json.loads, entry.sent(tombstones=True).splitlines())
    # Stored even where the engine remembers the delete, because that memory ends.
    assert action == {"index": {"_id": "a", "version": at(3), "version_type": "external"}}
    assert json.loads(entry.insisting.splitlines()[0])["index"]["version_type"] == "external_gte"
    assert source == {"replicator": {"version": at(3), "partition": "a", "deleted": True}}
    assert json.loads(entry.sent(tombstones=False)) == {
        "delete": {"_id": "a", "version": at(3), "version_type": "external"}
    }


@pytest.mark.parametrize(
    ("routing", "sentence"),
    [
        ("total", "routing must be an attribute of the key (pk, sk), and total is not"),
        ("after(pk, '#')", "routing must be an attribute of the key (pk, sk), and after(pk, '#') is not"),
        ("before(total, '#')", "routing must be an attribute of the key (pk, sk), and total is not"),
        ("before(sk, '#')", "routing: before(…) needs a text, and sk is of another type"),
    ],
)
def test_a_routing_that_a_key_cannot_give_is_refused(routing: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        layouts([Table("pair", PAIR, {"routing": routing})])
    assert str(refused.value) == f"pair: {sentence}"


@pytest.mark.parametrize("routing", ["before(pk)", "before(pk, '')", "before(pk, #)"])
def test_a_routing_that_is_no_expression_is_explained(routing: str) -> None:
    with pytest.raises(
        ValidationError, match=r"must be a key attribute, or its beginning up to a text: before\(pk, '#'\)"
    ):
        SearchTable(routing=routing)


def test_the_parts_of_a_key_and_its_routing() -> None:
    pair = Table("pair", PAIR, {"routing": "pk"})
    own = Table("own", OWN_IDS, {"routing": "_item"})
    written = batch(put({"pk": "a"}, 1, id=("a", "10"), table="pair"), put({"pk": "a"}, 1, id=("k", "i"), table="own"))
    found = lines(written, pair, own)
    assert [found[name][0][0]["index"]["routing"] for name in ("pair", "own")] == ["a", "k"]
    assert found["pair"][0][1]["replicator"] == {"version": at(1), "partition": "a", "sort": "10"}
    assert found["own"][0][1]["replicator"] == {"version": at(1), "item": "k", "id": "i"}


def rejections(write: Upsert | Delete, **options: Any) -> list[str]:
    encoded = encode(batch(write), encoders(Table("contract", PK, options)))
    assert not (encoded.tables.get("contract") and encoded.rejections)
    return [r.reason for r in encoded.rejections]


def hooked(body: Mapping[str, Any], pk: str = "a") -> Upsert:
    return Upsert("contract", (pk,), body, at(1), (pk,))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (hooked({"x": float("nan")}), "the document contains NaN or Infinity"),
        (hooked({"x": object()}), "the document contains a object"),
        (hooked({"x": "\ud800"}), "the document contains half of a surrogate pair, which is not valid text"),
        (hooked({}, pk="\ud800"), "the key contains half of a surrogate pair, which is not valid text"),
        (
            put({"pk": "a"}, 1).__class__("contract", ("a",), Item(b'{"pk":1}'), at(1), ("a",)),
            "not valid DynamoDB JSON",
        ),
    ],
)
def test_documents_no_engine_can_hold_are_refused_before_sending(write: Upsert, reason: str) -> None:
    (found,) = rejections(write)
    assert reason in found


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("character", ["x", "\U0001f600"])
def test_an_id_that_an_index_would_store_and_never_find_is_refused(character: str, count: int) -> None:
    """The index keeps no term for a longer one, so that no walk and no sweep by ids would see the document."""
    longest = character * (8191 if character == "x" else 4095)
    for id, refused in ((longest, 0), (longest + character, 1)):
        ids = [*map(str, range(count - 1)), id]
        writes = [Upsert("contract", ('["k"]', id), {"n": 1}, at(1), ("k",)) for id in ids]
        encoded = encode(batch(*writes), encoders(Table("contract", OWN_IDS, {})))
        reasons = ["its id has 8,192 characters, and an index can find no more than 8,191"] * refused
        assert [one.reason for one in encoded.rejections] == reasons


def test_a_field_in_our_own_object_is_refused() -> None:
    for name in ("replicator", "replicator.deleted", "replicator.version", "replicator.deleted.x", "replicator."):
        (found,) = rejections(hooked({"title": "x", name: True}), **MAPPED)
        assert found.startswith("the document has a field named replicator or replicator.…, which is where replicator")
    fine = {"nested": {"replicator": 1}, "replicators": 1, "replicator_id": 2, "a": "replicator.deleted"}
    assert rejections(hooked(fine), **MAPPED) == []


ESCAPED = b'{"pk":{"S":"a"},"repl\\u0069cator.deleted":{"BOOL":true}}'


def test_a_field_in_our_own_object_is_found_however_it_is_escaped() -> None:
    """In an item, in an item changed by a hook, in many of one shape, and in a hook's own document."""
    items = [Item(ESCAPED)] * 40
    for bodies in (items, [item | {"b": 1} for item in items], [{"replicator.deleted": True}] * 40):
        writes = [hooked(body, str(n)) for n, body in enumerate(bodies)]
        encoded = encode(batch(*writes), encoders(Table("contract", PK, MAPPED)))
        assert len(encoded.rejections) == len(writes)


def test_deleting_an_impossible_id_sends_nothing() -> None:
    encoded = encode(batch(remove("\ud800", 1)), encoders(Table("contract", PK)))
    assert (dict(encoded.tables), encoded.rejections) == ({}, [])


@pytest.mark.parametrize(
    ("sizes", "pieces"),
    [
        ([], []),
        ([5], [[5]]),
        ([50], [[50]]),
        ([5, 5, 5], [[5, 5], [5]]),
        ([3, 3, 3, 3], [[3, 3, 3], [3]]),
        ([20, 1, 20], [[20], [1], [20]]),
        ([1, 1, 1, 1, 1], [[1, 1, 1], [1, 1]]),
    ],
)
def test_a_bulk_request_stays_within_both_limits(sizes: list[int], pieces: list[list[int]]) -> None:
    assert [sizes[piece] for piece in cut(sizes, 10, 3)] == pieces


def test_bulk_requests_shrink_and_grow_but_not_past_what_was_too_large() -> None:
    size = Size(8 << 20, 1000)
    size.shrink()
    assert size.bytes == 4 << 20
    size.grow()
    size.grow()
    assert size.bytes == 8 << 20
    size.too_large(2 << 20)
    size.grow()
    assert size.bytes == 1 << 20
    for _ in range(10):
        size.shrink()
    assert size.bytes == SMALLEST


# verdicts


def item(status: int, type: str = "", reason: str = "", action: str = "index") -> dict[str, Any]:
    return {action: {"status": status, **({"error": {"type": type, "reason": reason}} if type else {})}}


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (item(200), "stored"),
        (item(201), "stored"),
        (item(404, action="delete"), "stored"),
        (item(409, "version_conflict_engine_exception"), "conflict"),
        (item(400, "mapper_parsing_exception", "secret"), "refused"),
        (item(429, "es_rejected_execution_exception"), "busy"),
        (item(429, "rejected_execution_exception"), "busy"),
        (item(429, "circuit_breaking_exception"), "busy"),
        (item(429, "something_new"), "busy"),
        (item(404, "index_not_found_exception", action="delete"), "failed"),
        (item(503, "unavailable_shards_exception"), "failed"),
        (item(500, "null_pointer_exception"), "failed"),
    ],
)
def test_verdict_of_a_bulk_item(given: Mapping[str, Any], kind: str) -> None:
    assert [v.kind for v in verdicts([given], "S", "i")] == [kind]


def test_an_error_that_is_only_a_string_is_read_too() -> None:
    (found,) = verdicts([{"index": {"status": 400, "error": "secret"}}], "S", "i")
    assert (found.kind, "secret" in found.reason) == ("refused", False)


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (item(404, "index_not_found_exception", "no such index [x]"), ConfigError, "is gone: no such index [x]"),
        (item(400, "index_closed_exception"), TransientError, "the index is closed; waiting until it is opened"),
        (item(429, "cluster_block_exception", "x"), TransientError, "a disk is nearly full (flood stage)"),
        (item(403, "cluster_block_exception", "index write (api)"), TransientError, "writes to the index are blocked"),
        (item(503, "cluster_block_exception", "blocked by: no master"), TransientError, "the cluster is not ready"),
        (item(503, "unavailable_shards_exception"), ResponseLost, "a shard of the index is not available"),
        (item(503, "master_not_discovered_exception"), ResponseLost, "the cluster has no master"),
        (item(403, "security_exception", "action [x] is unauthorized"), NotPermitted, "action [x] is unauthorized"),
        (item(400, "routing_missing_exception"), ConfigError, "set routing: ATTRIBUTE"),
        (item(400, "illegal_argument_exception", "no write index is defined for alias [x]"), ConfigError, "several"),
        (item(400, "illegal_argument_exception", "pipeline with id [p] does not exist"), ConfigError, "[p]"),
        (
            item(400, "illegal_argument_exception", "number of documents in the index cannot exceed 5"),
            ConfigError,
            "full",
        ),
        (item(500, "io_exception"), ResponseLost, "fails to store documents: io_exception"),
        (item(429, "es_rejected_execution_exception"), TransientError, "is overloaded"),
    ],
)
def test_error_of_a_batch(given: Mapping[str, Any], error: type[Exception], text: str) -> None:
    found = worst(verdicts([item(200), given], "Elasticsearch at h:1", "i"))
    assert type(found) is error
    assert str(found).startswith("Elasticsearch at h:1")
    assert text in str(found)


def test_permanent_errors_take_precedence_over_transient_ones() -> None:
    given = [item(429, "rejected_execution_exception"), item(503, "x"), item(404, "index_not_found_exception")]
    assert isinstance(worst(verdicts(given, "S", "i")), ConfigError)
    assert isinstance(worst(verdicts(given[:2], "S", "i")), ResponseLost)
    assert worst(verdicts([item(200), item(409, "x")], "S", "i")) is None


@pytest.mark.parametrize("action", ["index", "delete"])
@pytest.mark.parametrize("status", [200, 404, 409])
def test_a_write_to_another_index_is_not_stored_and_no_advice_removes_that_index(action: str, status: int) -> None:
    answered = item(status, "version_conflict_engine_exception" if status == 409 else "", action=action)
    answered[action]["_index"] = "shrink-1"
    (found,) = verdicts([answered], "S", "products-1")
    assert isinstance(found.error, ConfigError)
    assert str(found.error).startswith(
        "S: writes to the index products-1 arrived in another one, shrink-1: its alias products-1-Replicator "
    )
    assert "Keep shrink-1, perhaps the only copy" in str(found.error)
    assert "emove" not in str(found.error)


def test_a_document_that_an_ingest_pipeline_dropped_is_not_stored() -> None:
    answered = {"index": {"_index": "i", "result": "noop", "status": 200}}
    (found,) = verdicts([answered], "S", "i")
    assert isinstance(found.error, ConfigError)
    assert "an ingest pipeline dropped a document that was to be stored in i" in str(found.error)
    assert not all_stored(answer('{"index":{"_index":"i","result":"noop","status":200}}'), 1, "i")


def answer(*items: str) -> bytes:
    return f'{{"errors":false,"items":[{",".join(items)}]}}'.encode()


INDEXED = (
    '{"index":{"_index":"i","result":"created","status":201}}',
    '{"index":{"_index":"i","result":"updated","status":200}}',
)
DELETED = (
    '{"delete":{"_index":"i","result":"deleted","status":200}}',
    '{"delete":{"_index":"i","result":"not_found","status":404}}',
)


@pytest.mark.parametrize(
    ("body", "count", "expected"),
    [
        (answer(*INDEXED, INDEXED[0]), 3, True),
        (answer(*INDEXED), 3, False),
        (answer(*INDEXED), 1, False),
        (answer(INDEXED[0], INDEXED[0].replace("201", "409")), 2, False),
        (answer(INDEXED[0], INDEXED[1].replace("200", "2000")), 2, False),
        (answer(INDEXED[0], *DELETED), 3, True),
        (answer(INDEXED[0], DELETED[0].replace('"i"', '"other"')), 2, False),
        (answer(INDEXED[0], INDEXED[1].replace('"i"', '"other"')), 2, False),
        (answer(INDEXED[0], DELETED[0].replace("200", "409")), 2, False),
        (answer(*INDEXED).replace(b"false", b"true"), 2, False),
        (answer(*INDEXED)[:-1], 2, False),
        (answer(), 0, True),
        (b"", 0, False),
    ],
)
def test_a_response_is_left_unparsed_only_if_every_item_is_stored(body: bytes, count: int, expected: bool) -> None:
    assert all_stored(body, count, "i") is expected


LONG = "dynamic introduction of [" * 1250 + "] within [" * 3125


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (f"[1:20] mapping set to strict, dynamic introduction of [{LONG}] within [_doc] is not allowed", "the engine"),
        (
            f"failed to parse field [{'failed to parse field [' * 3000}] of type [long] in document with id 'a'",
            "the eng",
        ),
        ("Limit of a [1]" * 5000, "the engine refuses the document"),
        (
            "Limit of total fields [12] has been exceeded while adding new fields [8]",
            "the index is limited to 12 total",
        ),
        ("failed to parse date field [secret] of type", "the engine refuses the document"),
        (
            "failed to parse field [n] of type [long] in document with id 'a'. Preview of field's value: 's'",
            "the field n",
        ),
        ("value 'x' in document with id 'a'. dynamic introduction of [s] within [_doc] is not allowed", "the engine"),
    ],
)
def test_a_long_reason_is_read_in_linear_time(reason: str, said: str) -> None:
    """With backtracking, the first three would take minutes."""
    found = refusal("odd_exception", reason)
    assert found.startswith(said)
    assert len(found) < 1000


def test_an_unknown_reason_is_not_repeated() -> None:
    assert refusal("odd_exception", "value 'secret'") == "the engine refuses the document: odd_exception"


# acknowledgments


def test_only_unfinished_writes_are_sent_again() -> None:
    entries = encode(batch(put({"pk": "a"}, 1), put({"pk": "b"}, 1), remove("c", 1)), encoders(Table("contract", PK)))
    progress, (a, b, c) = Progress(), entries.tables["contract"]
    for entry in (a, c):
        progress.was_stored(entry, tombstones=False)
    assert progress.unfinished([a, b, c], tombstones=False) == [b]
    assert progress.unfinished([a, b, c], tombstones=True) == [b, c]  # it left no tombstone, and needs one now
    progress.forget([a, b, c])
    assert progress.unfinished([a, b, c], tombstones=False) == [a, b, c]


def test_nothing_of_a_returned_batch_counts_as_stored() -> None:
    """It is split differently next time, so an older write may go out first and undo a delete without a tombstone."""
    entries = encode(batch(put({"pk": "a"}, 1), remove("b", 1), remove("c", 1)), encoders(Table("contract", PK)))
    progress, (a, b, c) = Progress(), entries.tables["contract"]
    for entry in (a, b):
        progress.was_stored(entry, tombstones=False)
    progress.superseded.add(place(c.write))
    progress.came_back(entries.entries)
    assert progress.unfinished([a, b, c], tombstones=False) == [a, b, c]
    assert progress.lost == {place(a.write), place(b.write)}  # they count as applied if they are found there


def test_a_document_gets_a_limited_number_of_strikes() -> None:
    (entry,) = encode(batch(put({"pk": "a"}, 1)), encoders(Table("contract", PK))).tables["contract"]
    progress = Progress()
    assert [progress.struck(entry) for _ in range(STRIKES)] == [False] * (STRIKES - 1) + [True]


# mappings


def test_hidden_defaults_are_no_difference() -> None:
    wanted = {
        "dynamic": "strict",
        "properties": {
            "a": {"type": "long", "index": True, "doc_values": True},
            "b": {"properties": {"c": {"type": "keyword", "ignore_above": 256, "norms": False}}},
            "d": {"type": "text", "fields": {"raw": {"type": "keyword"}}},
        },
    }
    there = {
        "dynamic": "strict",
        "properties": {
            "a": {"type": "long"},
            "b": {"properties": {"c": {"type": "keyword", "ignore_above": 256}}},
            "d": {"type": "text", "fields": {"raw": {"type": "keyword"}}},
            "more": {"type": "long"},
        },
    }
    assert list(differences(wanted, there, NEW)) == []


NEW = (
    "create a new index: set index: NAME under the table, and run: replicator resync CONFIG "
    "--accept-identity-change; or build it beside this one: replicator rebuild start CONFIG"
)
ADDED = f"if fields were only added to mapping, replicator run --apply-schema-changes adds it; otherwise {NEW}"


@pytest.mark.parametrize(
    ("wanted", "there", "said"),
    [
        ({"dynamic": "strict"}, {}, "the mapping must have dynamic: strict, but has none"),
        ({"dynamic": "strict"}, {"dynamic": "true"}, "the mapping must have dynamic: strict, but has true"),
        (
            {"properties": {"a": {"type": "long"}}},
            {"properties": {"a": {"type": "double"}}},
            f"field a must be long, but is double (a type cannot be changed: {NEW})",
        ),
        ({"properties": {"a": {"type": "long"}}}, {}, f"field a is missing (type long; {ADDED})"),
        (
            {"properties": {"a": {"properties": {"b": {"type": "keyword", "ignore_above": 9}}}}},
            {"properties": {"a": {"properties": {"b": {"type": "keyword", "ignore_above": 8}}}}},
            "field a.b must have ignore_above: 9, but has 8",
        ),
        (
            {"properties": {"a": {"type": "text", "analyzer": "french"}}},
            {"properties": {"a": {"type": "text"}}},
            "field a must have analyzer: french, but has none",
        ),
        (
            {"properties": {"a": {"type": "text", "fields": {"raw": {"type": "keyword"}}}}},
            {"properties": {"a": {"type": "text"}}},
            f"field a.raw is missing (type keyword; {ADDED})",
        ),
    ],
)
def test_every_difference_of_a_mapping_is_named(wanted: Mapping[str, Any], there: Mapping[str, Any], said: str) -> None:
    assert list(differences(wanted, there, NEW)) == [said]


def test_only_the_number_of_shards_is_compared() -> None:
    assert settings_differences({"number_of_shards": 2, "number_of_replicas": 1}, {"number_of_shards": "2"}) == []
    (said,) = settings_differences({"number_of_shards": 2}, {"number_of_shards": "1"})
    assert said.startswith("it must have 2 primary shards, but has 1")


def test_numeric_precision_is_reported() -> None:
    fields = {"price": {"type": "double"}, "a": {"properties": {"n": {"type": "long"}}}, "t": {"type": "text"}}
    assert [text.partition(";")[0] for text in roundings(fields)] == [
        "price: double keeps 15 to 17 digits",
        "a.n: long cuts off fractions, and refuses more than 64 bits",
    ]


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ([Table("a", PK, {"routing": "x"})], "a: routing must be an attribute of the key (pk), and x is not"),
        ([Table("a", PK, {"index": "a"})], "a: the alias and the index behind it need different names"),
        ([Table("a b", PK)], "a b: a b must be a valid index name"),
        ([Table("a", PK, {"index": "same"}), Table("b", PK, {"index": "same"})], "the name same is used twice"),
        ([Table("a", PK), Table("a-1", PK)], "the name a-1 is used twice"),
    ],
)
def test_impossible_tables_are_named(tables: list[Table], said: str) -> None:
    with pytest.raises(ConfigError) as e:
        layouts(tables)
    assert said in str(e.value)


# options


def problems(**target: Any) -> list[str]:
    _, found = destination({"table": "t", **target} if "tables" not in target else target)
    return [f"{'.'.join(map(str, p.path))} {p.text}" for p in found]


ES = {"type": "elasticsearch", "url": "https://h:9200"}
OS = {"type": "opensearch", "url": "https://h:9200"}


HAZARDS: list[tuple[Mapping[str, Any], str]] = [
    ({"translog.durability": "async"}, "translog.durability is async"),
    ({"index": {"translog": {"durability": "ASYNC"}}}, "translog.durability is async"),
    ({"index.final_pipeline": "p"}, "the ingest pipeline p is its final_pipeline"),
    ({"lifecycle.name": "days"}, "the ILM policy days manages it, which may roll it over, shrink it, block writes"),
    ({"lifecycle.name": "days"}, "if the index does not exist yet, set settings: {lifecycle.name: null}"),
    ({"mapping": {"source": {"mode": "synthetic"}}}, "mapping.source.mode is synthetic"),
    ({"mapping.source.mode": "disabled"}, "mapping.source.mode is disabled: documents are not kept"),
    ({"mode": "logsdb"}, "its mode is logsdb"),
    ({"index.mode": "time_series"}, "its mode is time_series"),
    ({"derived_source.enabled": True}, "derived_source.enabled is true"),
    ({"index": {"derived_source": {"enabled": "true"}}}, "derived_source.enabled is true"),
]  # fmt: skip
HARMLESS: Mapping[str, Any] = {
    "translog.durability": "request", "index.final_pipeline": None, "final_pipeline": "_none", "mode": "standard",
    "mapping.source.mode": "stored", "derived_source.enabled": False, "lifecycle.name": None, "default_pipeline": "p",
}  # fmt: skip


PROXIES = ("p:3128", "https://p:3128", "http://p", "http://p:x", "http://p:3128/path", "http://:3128", "socks5://p:1")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"type": "elasticsearch"}, "needs either url or cloud_id"),
        ({**ES, "cloud_id": "x:" + "aG9zdCR1dWlkJA=="}, "needs either url or cloud_id"),
        ({"type": "elasticsearch", "cloud_id": "nonsense"}, "target.cloud_id is not a cloud id"),
        ({"type": "opensearch"}, "target.url is missing"),
        ({**ES, "url": "h:9200"}, "target.url must have the form https://host:9200"),
        ({**ES, "url": "https://u:p@h:9200"}, "target.url contains a user name"),
        ({**ES, "url": "http://10.0.0.1:9200"}, "target.url is plain http to another host"),
        ({**ES, "url": ["https://h:9200", "http://10.0.0.1:9200"]}, "target.url is plain http to another host"),
        ({**ES, "username": "u"}, "needs both username and password"),
        ({**ES, "username": "u", "password": "p", "api_key": "k"}, "has both api_key and username; keep one"),
        ({**ES, "ca_certs": "/nowhere"}, "target.ca_certs must be a file of certificates, and there is none"),
        ({**ES, "client_cert": "crt"}, "needs both client_cert and client_key"),
        ({**ES, "client_key": "key"}, "needs both client_cert and client_key"),
        (
            {**ES, "url": "http://127.0.0.1:9", "client_cert": "crt", "client_key": "key"},
            "target.url is plain http, where no client_cert can be presented; use https",
        ),
        *(({**ES, "proxy": proxy}, "target.proxy must have the form http://proxy:3128") for proxy in PROXIES),
        (
            {**OS, "url": "http://127.0.0.1:9", "proxy": "http://p:3128"},
            "target.url is plain http, which proxy does not forward: items would be readable on the way; use https",
        ),
        ({**OS, "aws": {}, "username": "u", "password": "p"}, "has both aws and username; keep one"),
        ({**OS, "url": ["https://a", "https://b"], "aws": {}}, "has aws and several addresses"),
        ({**OS, "aws": {}, "compress": True}, "has both aws and compress"),
        ({**OS, "aws": {"external_id": "x"}}, "external_id means nothing without role_arn"),
        ({**OS, "aws": {"service": "s3"}}, "target.aws.service must be one of es, aoss"),
        ({**ES, "bulk_bytes": 10}, "target.bulk_bytes must be at least 1024"),
        ({**ES, "tables": {"t": {"index": "Upper"}}}, "target.tables.t.index must be a valid index name: lowercase"),
        ({**ES, "tables": {"t": {"index": "x" * 256}}}, "is longer than 255 bytes"),
        ({**ES, "tables": {"t": {"mapping": "{"}}}, "target.tables.t.mapping is not valid JSON"),
        ({**ES, "tables": {"t": {"mapping": {}}}}, "has no properties; it must look like properties:"),
        (
            {**ES, "tables": {"t": {"mapping": {"mappings": {}}}}},
            "is a complete index definition; keep only what is under mappings",
        ),
        ({**ES, "tables": {"t": {"mapping": {"properties": {"replicator": {}}}}}}, "has a field named replicator"),
        ({**ES, "tables": {"t": {"mapping": {"properties": {}, "_source": {}}}}}, "has _source"),
        *(({**ES, "tables": {"t": {"settings": given}}}, said) for given, said in HAZARDS),
    ],
)
def test_an_invalid_option_is_named(target: Mapping[str, Any], said: str) -> None:
    assert said in "\n".join(problems(**target))


@pytest.mark.parametrize(
    "target",
    [
        ES,
        OS,
        {"type": "elasticsearch", "cloud_id": "x:" + "aG9zdCR1dWlkJA==", "api_key": "k"},
        {**ES, "url": ["https://a:9200", "https://b:9200"], "username": "u", "password": "p"},
        {**ES, "url": "http://10.0.0.1:9200", "insecure": True},
        {**ES, "url": "http://localhost:9200"},
        {**OS, "aws": {"region": "eu-west-1", "role_arn": "arn:aws:iam::1:role/r", "external_id": "x"}},
        {**ES, "tables": {"t": {"settings": HARMLESS}}},
        {**ES, "tables": {"t": {"mapping": '{"properties": {"a": {"type": "long"}}}', "shards": 2, "replicas": 0}}},
    ],
)
def test_valid_options(target: Mapping[str, Any]) -> None:
    assert problems(**target) == []


def test_secrets_are_not_shown() -> None:
    found, _ = destination({**ES, "table": "t", "username": "u", "password": "hush"})
    assert found is not None
    assert "hush" not in repr(found)


def test_versions_fit_the_engines() -> None:
    assert version(FIRST_EPOCH, 0) > 2**53  # beyond what a double holds: they are written as integers
    ((action, _),) = lines(batch(put({"pk": "a"}, 1)), Table("contract", PK))["contract"]
    assert action["index"]["version"] == version(FIRST_EPOCH, 1)


def test_an_item_with_a_malformed_image_is_rejected() -> None:
    write = Upsert("contract", ("a",), Item(b"[]"), at(1), ("a",))
    found = encode(Batch([Part("s", [write, put({"pk": "b"}, 1)])]), encoders(Table("contract", PK)))
    assert found.rejections == [Rejection(write, "the document is not valid DynamoDB JSON")]
    assert dict(found.tables) == {}


def test_a_well_formed_item_is_not_rejected() -> None:
    assert rejections(Upsert("contract", ("a",), Item(image({"pk": "a"})), at(1), ("a",))) == []


def test_a_lost_connection_is_reported_by_the_innermost_message() -> None:
    cut_off = ProtocolError("Connection aborted.", RemoteDisconnected("Remote end closed connection without response"))
    error = TransportConnectionError("Connection error")
    error.__cause__ = cut_off
    said = str(no_response(error, "the server"))
    assert said == "the server: the connection was lost: Remote end closed connection without response"
