"""What a mark says of the image that it is in, without a table."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from connectors.dynamodb.documents import Layout
from connectors.dynamodb.encode import encode
from replicator.batch import Delete, Upsert
from replicator.change import OwnWrite, Record, ScanPage
from replicator.hooks.hook import DocumentMapping
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.key import KeyAttribute, KeySchema
from replicator.marks import Marks, mark_of, unmarked
from replicator.pipeline import advance
from replicator.pipeline.compaction import BatchContext
from replicator.pipeline.parked import ParkedItems
from replicator.state import SegmentState
from replicator.testing.contract import at, batch
from replicator.version import FIRST_EPOCH

MARKS = Marks("_replicator_version", "_replicator_deleted", "_replicator_mark")
LAYOUT = Layout("copy", KeySchema((KeyAttribute("pk", "S"),)), *MARKS.names[:2], pristine=False, mark=MARKS.mark)
KEY, OTHER = ("a",), ("b",)


def stored(version: int, n: int = 0, *, key: tuple[str, ...] = KEY, marked: tuple[str, ...] = KEY) -> dict[str, Any]:
    """An item as a pipeline stores it. ``marked``: the key whose mark it has."""
    ours = {MARKS.version: {"N": str(version)}, MARKS.mark: {"S": mark_of(marked)}}
    return {"pk": {"S": key[0]}, "n": {"N": str(n)}, **ours}


def tombstone(version: int) -> dict[str, Any]:
    return {**stored(version), MARKS.deleted: {"BOOL": True}}


def plain(n: int) -> dict[str, Any]:
    return {"pk": {"S": "a"}, "n": {"N": str(n)}}


def seen(old: dict[str, Any] | None, new: dict[str, Any] | None) -> Record:
    images = [None if one is None else orjson.dumps(one) for one in (old, new)]
    return advance.unmarked(Record(KEY, "1", 0.0, images[1], images[0]), MARKS)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (None, stored(1)),
        (plain(1), stored(1)),
        (stored(1), stored(2)),
        (stored(9, marked=OTHER), stored(2)),
        (stored(1), tombstone(2)),
        (tombstone(1), stored(2)),
        (tombstone(1), None),
    ],
    ids=["new", "over an application's", "again", "over a copy of another item", "delete", "after a delete", "purge"],
)
def test_a_write_that_raises_the_version_is_a_pipelines_own(
    old: dict[str, Any] | None, new: dict[str, Any] | None
) -> None:
    assert isinstance(seen(old, new), OwnWrite)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (None, plain(1)),
        (stored(1), plain(1)),
        (stored(1), stored(1, n=5)),
        (stored(2), stored(1)),
        (None, stored(1, marked=OTHER)),
        (tombstone(1), plain(1)),
    ],
    ids=["new", "without marks", "update", "read before", "a copy of another item", "after a delete"],
)
def test_any_other_write_is_an_applications_and_its_image_has_no_marks(
    old: dict[str, Any] | None, new: dict[str, Any]
) -> None:
    record = seen(old, new)
    assert not isinstance(record, OwnWrite)
    assert record.new is not None
    assert set(orjson.loads(bytes(record.new))) == {"pk", "n"}
    assert record.old is None or set(orjson.loads(bytes(record.old))) == {"pk", "n"}


def test_a_removal_is_an_applications_unless_a_tombstone_goes() -> None:
    record = seen(stored(3), None)
    assert (type(record), record.new) == (Record, None)


@pytest.mark.parametrize("wrong", [{"N": "x"}, {"S": "1"}, {"N": "1.5"}, {"L": []}])
def test_a_version_that_no_pipeline_stores_is_none(wrong: dict[str, Any]) -> None:
    assert not isinstance(seen(None, {**stored(1), MARKS.version: wrong}), OwnWrite)


def test_an_image_that_is_not_json_is_passed_on() -> None:
    assert unmarked(MARKS, b'{"_replicator_mark"') == b'{"_replicator_mark"'


def test_a_name_written_with_an_escape_is_a_mark_all_the_same() -> None:
    assert unmarked(MARKS, b'{"\\u005freplicator_mark":{"S":"x"},"n":{"N":"1"}}') == b'{"n":{"N":"1"}}'


def test_a_hook_sees_no_tombstones() -> None:
    assert unmarked(MARKS, orjson.dumps(tombstone(1))) is None


def test_a_marked_write_is_guarded_by_the_version_only_where_the_mark_is_the_items_own() -> None:
    body = Item(image({"pk": "a"}))
    (entry,) = encode(batch(Upsert("copy", KEY, body, at(1), KEY)), {"copy": LAYOUT}).entries
    request = orjson.loads(entry.request(tombstones=False, shows=False, counts=False).body)
    assert request["Item"][MARKS.mark] == request["ExpressionAttributeValues"][":m"] == {"S": mark_of(KEY)}
    expected = "attribute_not_exists(#v) OR #v < :v OR (attribute_exists(#m) AND #m <> :m)"
    assert request["ConditionExpression"] == expected


def test_a_marked_delete_is_a_tombstone_that_is_removed_at_once() -> None:
    (entry,) = encode(batch(Delete("copy", KEY, at(1), KEY)), {"copy": LAYOUT}).entries
    request = entry.request(tombstones=False, shows=False, counts=False)
    assert (request.operation, request.then and request.then.operation) == ("PutItem", "DeleteItem")
    assert orjson.loads(request.body)["Item"][MARKS.deleted] == {"BOOL": True}
    assert request.then is not None
    assert orjson.loads(request.then.body)["ConditionExpression"] == "attribute_exists(#d) AND #v = :v"


def test_while_tombstones_must_stay_a_marked_delete_leaves_one() -> None:
    (entry,) = encode(batch(Delete("copy", KEY, at(1), KEY)), {"copy": LAYOUT}).entries
    assert entry.request(tombstones=True, shows=False, counts=False).then is None


@pytest.mark.parametrize(("full", "deletes"), [(0, 0), (FIRST_EPOCH, 1)], ids=["a sweep follows", "a partial resync"])
def test_a_scanned_tombstone_is_a_delete_only_where_no_sweep_removes_what_it_leaves(full: int, deletes: int) -> None:
    pages = [ScanPage(0, [(KEY, orjson.dumps(tombstone(1)))])]
    around = BatchContext({}, ParkedItems.of([]), FIRST_EPOCH + 4, "segment:0", 0.0, full=full)
    _, compacted = advance.scanned(SegmentState(1), pages, DocumentMapping(None, ("copy",)), around, marks=MARKS)
    assert [type(write) for write in compacted.writes] == [Delete] * deletes
