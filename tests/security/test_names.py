"""Attributes of any name, from the source to the target: a name is never anything but a name.

What leaves for DynamoDB and for a search engine is JSON, with expressions in it. It is read back by another parser, or
carried out by the in-memory DynamoDB, and has to say what was meant, and nothing else. Postgres has a test of its own
(test_identifiers), on a real server.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import partial
from itertools import islice
from typing import Any

import orjson
import pytest

from connectors.dynamodb.cleanup import _scan, tombstone_deletes, tombstone_puts
from connectors.dynamodb.documents import Layout
from connectors.dynamodb.encode import Encoder, encode
from connectors.search.encode import TableEncoder
from connectors.search.encode import encode as encode_lines
from connectors.search.layout import index_id, layouts
from connectors.search.mappings import is_ours
from replicator.aws.errors import AwsError
from replicator.batch import Batch, Delete, DocumentId, Part, Rejection, Upsert, Write
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.key import KeyAttribute, KeySchema
from replicator.source.decoding import KeyReader, RecordsDecoder
from replicator.target.contract import Table
from replicator.testing.dynamodb import DynamoDB
from replicator.version import FIRST_EPOCH, version
from tests.security.identifiers import names

SEED = 20261128
HOW_MANY = 100_000 if os.environ.get("REPLICATOR_PROVE") else 5_000
A_TABLE = 20  # names in one table
FIRST, SECOND, THIRD = (version(FIRST_EPOCH, n) for n in (1, 2, 3))


def possible(name: str) -> bool:
    """Whether DynamoDB accepts it as the name of a key attribute."""
    try:
        return 0 < len(name.encode()) <= 255
    except UnicodeEncodeError:
        return False


def groups() -> Iterator[list[str]]:
    """Distinct valid names, as many as a table gets."""
    given = [name for name in dict.fromkeys(islice(names(SEED), HOW_MANY)) if possible(name)]
    for at in range(0, len(given) - A_TABLE + 1, A_TABLE):
        yield given[at : at + A_TABLE]


def item_of(given: Sequence[str], n: int) -> dict[str, Any]:
    """A key of the first two names, and each other name as an attribute, in a map, and as a string value."""
    one, other, *rest = given
    return {one: f"k{n}", other: n, **{name: {name: [name, n]} for name in rest}}


def keys_of(given: Sequence[str]) -> KeySchema:
    return KeySchema((KeyAttribute(given[0], "S"), KeyAttribute(given[1], "N")))


def database() -> DynamoDB:
    return DynamoDB(now=lambda: 1_700_000_000.0, random=random.Random(SEED))


def call(db: DynamoDB, operation: str, request: Any) -> Any:
    return orjson.loads(db.call(operation, request))


def test_the_source_reads_keys_under_any_names() -> None:
    for given in groups():
        db, keys = database(), keys_of(given)
        db.create_table("named", keys={name: kind for name, kind in zip(given, "SN", strict=False)})
        for n in range(3):
            db.put("named", item_of(given, n))
        wanted = {(f"k{n}", str(n)) for n in range(3)}
        raws = call(db, "Scan", {"TableName": "named"})["Items"]
        reader = KeyReader(keys)
        assert {reader.of(orjson.dumps(raw)) for raw in raws} == wanted, given
        assert {reader.of(orjson.dumps(keys.typed(key))) for key in wanted} == wanted, given

        (shard,) = db.open_shards("named")
        where = {"StreamArn": db.stream_arn("named"), "ShardId": shard, "ShardIteratorType": "TRIM_HORIZON"}
        iterator = call(db, "GetShardIterator", where)["ShardIterator"]
        records = RecordsDecoder(keys)(db.call("GetRecords", {"ShardIterator": iterator})).records
        assert {record.key for record in records} == wanted, given
        assert [Item(bytes(r.new or b"")) for r in records] == [Item(image(item_of(given, n))) for n in range(3)], given


def upserts(given: Sequence[str], table: str) -> list[Upsert]:
    """Bodies of an unchanged item, of a hook's own document, and of an item changed by a hook."""
    items = [item_of(given, n) for n in range(3)]
    bodies = [Item(image(items[0])), items[1], Item(image(items[2])) | {given[2]: given[3], given[4]: Decimal("0.1")}]
    ids = [(f"k{n}", str(n)) for n in range(3)]
    return [Upsert(table, id, body, FIRST, id) for id, body in zip(ids, bodies, strict=True)]


def documents(given: Sequence[str]) -> dict[DocumentId, Any]:
    found = [item_of(given, n) for n in range(3)]
    found[2] |= {given[2]: given[3], given[4]: Decimal("0.1")}
    return {(f"k{n}", str(n)): item for n, item in enumerate(found)}


def test_dynamodb_stores_attributes_of_any_name_under_conditions_that_name_ours() -> None:
    for given in groups():
        db, keys, (ours, deleted) = database(), keys_of(given), given[-2:]
        db.create_table("named", keys={name: kind for name, kind in zip(given, "SN", strict=False)}, view=None)
        layout = Layout("named", keys, ours, deleted, pristine=False)
        here = given[:-2]
        stored = upserts(here, "named")
        carry_out(db, layout, stored)
        stale = Upsert("named", stored[0].id, {given[0]: "k0", given[1]: 0}, FIRST - 1, stored[0].item)
        assert conflicts(db, layout, [stale]) == 1, given
        wanted = {
            key: {n: v for n, v in item.items() if n not in (ours, deleted)} for key, item in documents(here).items()
        }
        assert there(db, layout) == wanted, given

        carry_out(db, layout, [Delete("named", stored[1].id, SECOND, stored[1].id)])
        carry_out(db, layout, [Delete("named", stored[2].id, SECOND, stored[2].id)], tombstones=True)
        assert set(there(db, layout)) == {stored[0].id}, given
        assert conflicts(db, layout, [stored[2]]) == 1, given
        passed(db, layout, "attribute_not_exists(#d) AND #v < :b", burying=True)
        assert there(db, layout) == {}, given
        passed(db, layout, "attribute_exists(#d) AND #v < :b", burying=False)
        assert db.items("named") == [], given


def carry_out(db: DynamoDB, layout: Layout, writes: Sequence[Write], *, tombstones: bool = False) -> None:
    encoded = encode(Batch([Part("s", writes)]), {"named": layout})
    assert not encoded.rejections
    for entry in encoded.entries:
        request = entry.request(tombstones=tombstones, shows=True, counts=True)
        db.call(request.operation, strict(request.body))


def conflicts(db: DynamoDB, layout: Layout, writes: Sequence[Write]) -> int:
    """How many of the writes the conditions reject."""
    found = 0
    for write in writes:
        try:
            carry_out(db, layout, [write])
        except AwsError as e:
            found += e.code == "ConditionalCheckFailedException"
    return found


def passed(db: DynamoDB, layout: Layout, condition: str, *, burying: bool) -> None:
    for page in _scan(db, layout, THIRD, condition, after=None):
        make = partial(tombstone_puts, below=THIRD - 1) if burying else tombstone_deletes
        requests = make(layout, page.items, spare=frozenset())
        for request in requests:
            db.call(request.operation, strict(request.body))


def there(db: DynamoDB, layout: Layout) -> dict[DocumentId, Any]:
    """The items without our own attributes."""
    found: dict[DocumentId, Any] = {}
    for item in db.items("named"):
        if layout.deleted not in item:
            key = (str(item[layout.keys.names[0]]), str(item[layout.keys.names[1]]))
            found[key] = {name: value for name, value in item.items() if name != layout.version}
    return found


def strict(text: bytes) -> Any:
    """JSON decoded by the standard library; fails on duplicate names."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs), pairs
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once, parse_float=Decimal)


@pytest.mark.parametrize("mapped", [False, True], ids=["whole", "fields"])
def test_a_search_engine_gets_two_lines_per_document_whatever_its_attribute_names(mapped: bool) -> None:
    for given in groups():
        options: dict[str, Any] = {"mapping": {"properties": {}}} if mapped else {}
        table = Table("named", keys_of(given), {"routing": given[0], **options})
        encoder = TableEncoder(layouts([table])["named"])
        stored = upserts(given, "named")
        removed = Delete("named", stored[0].id, SECOND, stored[0].id)
        encoded = encode_lines(Batch([Part("s", [*stored, removed])]), {"named": encoder})
        if mapped and any(map(is_ours, given)):
            assert [r.write for r in encoded.rejections] == stored
            continue
        assert not encoded.rejections, given
        *found, tombstone = encoded.tables["named"]
        for entry, (id, document) in zip(found, documents(given).items(), strict=True):
            about, fields = lines(entry.lines)
            assert about == {"index": action(id, FIRST)}, given
            own = fields.pop("replicator")
            assert own == {"version": FIRST, "partition": id[0], "sort": id[1]}, given
            assert fields == (document if mapped else {"document": document}), given
        about, fields = lines(tombstone.lines)
        assert about == {"index": action(removed.id, SECOND)}
        assert fields == {"replicator": {"version": SECOND, "partition": "k0", "sort": "0", "deleted": True}}


def action(id: DocumentId, of: int) -> dict[str, Any]:
    return {"_id": index_id(id), "version": of, "version_type": "external", "routing": id[0]}


def lines(text: bytes) -> list[Any]:
    """Split as an engine does."""
    first, second, end = text.split(b"\n")
    assert end == b""
    return [strict(first), strict(second)]


@pytest.mark.parametrize("name", ["\ud800", 'a\udfff"', "x\ud800\\"])
def test_a_name_from_a_hook_that_is_not_text_parks_its_document(name: str) -> None:
    bodies: list[Any] = [{name: 1}, {"a": {name: 1}}, {"a": [{name: 1}]}, Item(image({"pk": "a"})) | {name: 1}]
    keys = KeySchema((KeyAttribute("pk", "S"),))
    for body in bodies:
        write = Upsert("named", ("a",), body, FIRST, ("a",))
        batch = Batch([Part("s", [write])])
        refused: list[Rejection] = []
        refused += encode(batch, {"named": Layout("named", keys, "v", "d", pristine=False)}).rejections
        refused += encode_lines(batch, {"named": TableEncoder(layouts([Table("named", keys, {})])["named"])}).rejections
        assert [r.write for r in refused] == [write, write]
        assert all("half of a surrogate pair" in r.reason for r in refused)


def test_a_name_that_breaks_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a name were quoted without escaping it."""
    right = Encoder.__init__

    def careless(self: Encoder, layout: Layout, same: bool = False) -> None:
        right(self, layout, same)
        self._version = f',"{layout.version}":'.encode()

    monkeypatch.setattr(Encoder, "__init__", careless)
    with pytest.raises((AssertionError, ValueError)):
        test_dynamodb_stores_attributes_of_any_name_under_conditions_that_name_ours()
