"""An export is started once, checked before it is read, and read file by file in limited memory."""

from __future__ import annotations

import base64
import gzip
import hashlib
import random
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import orjson
import pytest

from replicator.aws.client import Client, answered
from replicator.aws.errors import AwsError
from replicator.change import ScanPage
from replicator.errors import ConfigError
from replicator.key import KeyAttribute, KeySchema
from replicator.source import export
from replicator.source.export import Destination, Exported, Exporting, File, prepare, read
from replicator.source.table import describe_table
from replicator.state import ExportState, SegmentState
from replicator.testing.dynamodb import DynamoDB
from tests.servers.two_accounts import OTHER, OWN, TwoAccounts, arn

KEYS = KeySchema((KeyAttribute("id", "S"),))
NEW = ExportState()
TO = Destination("exports", "some/prefix", "123456789012", "key", "token")
Damage = Callable[[bytes], bytes]


@pytest.fixture
def db() -> DynamoDB:
    """Ten items that can be exported, to three files."""
    made = DynamoDB(now=lambda: 1_700_000_000.0, random=random.Random(1))
    made.create_table("orders")
    made.exports.enable("orders")
    for n in range(10):
        made.put("orders", {"id": f"i{n}", "text": "x" * n})
    return made


def steps(db: DynamoDB, state: ExportState = NEW, to: Destination | None = TO) -> list[Any]:
    table = describe_table(db, "orders")
    return list(answered(db, prepare(table, state, to, random.Random(2))))


def pages(db: DynamoDB, exported: Exported, segment: int = 0, total: int = 1, cursor: Any = None) -> list[ScanPage]:
    text = None if cursor is None else orjson.dumps(cursor).decode()
    return list(answered(db, read(exported, KEYS, segment, SegmentState(total, text), random.Random(2))))


def ids(found: list[ScanPage]) -> list[str]:
    return [key[0] for page in found for key, _ in page.items]


def rewrite(db: DynamoDB, end: str, how: Damage) -> None:
    (place,) = [place for place in db.exports.objects if place[1].endswith(end)]
    db.exports.objects[place] = how(db.exports.objects[place])


def test_an_export_is_requested_with_all_options_and_awaited(db: DynamoDB) -> None:
    db.exports.polls = 2
    found = steps(db)

    assert [type(step) for step in found] == [Exporting] * 4 + [Exported]
    assert (found[0].arn, found[0].rest, found[1].arn) == ("", export.SETTLED, found[-1].arn)
    (known,) = db.exports.known.values()
    assert known.request == {
        "TableArn": "arn:aws:dynamodb:us-east-1:123456789012:table/orders",
        "S3Bucket": "exports",
        "S3Prefix": "some/prefix",
        "S3BucketOwner": "123456789012",
        "S3SseAlgorithm": "KMS",
        "S3SseKmsKeyId": "key",
        "ClientToken": "token",
        "ExportFormat": "DYNAMODB_JSON",
    }
    assert [file.items for file in found[-1].files] == [4, 3, 3]


def test_the_token_of_an_epoch_is_that_of_no_other() -> None:
    first = export.token("orders", "id", 1024, 1.0)
    others = [
        ("other", "id", 1024, 1.0),
        ("orders", "new", 1024, 1.0),
        ("orders", "id", 1025, 1.0),
        ("orders", "id", 1024, 2.0),
    ]
    assert first == export.token("orders", "id", 1024, 1.0)
    assert first not in {export.token(*other) for other in others}


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        ({"ExportTime": 1_699_999_994.0}, "which is before the positions in the stream"),
        ({"ExportFormat": "ION"}, "is in the format ION; only DYNAMODB_JSON can be read"),
        ({"ExportType": "INCREMENTAL_EXPORT"}, "is incremental: a backfill needs a full export"),
        (
            {"ExportStatus": "FAILED", "FailureCode": "S3NoSuchBucket", "FailureMessage": "none"},
            "failed (S3NoSuchBucket: none). To start over with a new export: replicator resync CONFIG",
        ),
    ],
)
def test_an_export_that_must_not_be_read_is_refused(db: DynamoDB, shown: dict[str, Any], reason: str) -> None:
    db.exports.shown = shown
    with pytest.raises(ConfigError) as refused:
        steps(db)
    assert reason in str(refused.value)


def test_an_export_of_the_moment_of_its_request_is_read_whatever_the_clock_here_says(db: DynamoDB) -> None:
    assert isinstance(steps(db)[-1], Exported)  # the clock here is years ahead


def test_an_existing_export_must_be_of_the_time_of_the_positions(db: DynamoDB) -> None:
    arn = steps(db)[-1].arn
    assert isinstance(steps(db, ExportState(arn, 1_700_000_000.0), None)[-1], Exported)
    with pytest.raises(ConfigError, match="which is before the positions"):
        steps(db, ExportState(arn, 1_700_000_001.0), None)


def changed(**members: object) -> Damage:
    return lambda body: orjson.dumps(orjson.loads(body) | members)


@pytest.mark.parametrize(
    ("end", "how", "reason"),
    [
        ("manifest-summary.json", changed(itemCount=11), "with 10 items, but manifest-summary.json says 11"),
        ("manifest-summary.json", changed(outputFormat="ION"), "is in the format ION"),
        ("manifest-summary.json", changed(exportArn="arn:other"), "is of another export, arn:other, than arn:aws:"),
        ("manifest-summary.json", lambda body: body[:9], "a manifest in s3://exports/some/prefix/AWSDynamoDB/"),
        ("manifest-files.json", lambda body: body[:99], "a manifest in s3://exports/some/prefix/AWSDynamoDB/"),
        ("manifest-files.json", lambda body: body.splitlines(keepends=True)[0], "lists files with 4 items"),
    ],
)
def test_a_manifest_that_is_damaged_or_not_understood_is_an_error(
    db: DynamoDB, end: str, how: Damage, reason: str
) -> None:
    arn = steps(db)[-1].arn
    rewrite(db, end, how)
    with pytest.raises(ConfigError) as refused:
        steps(db, ExportState(arn))
    assert reason in str(refused.value)


def test_the_segments_together_have_each_item_once(db: DynamoDB) -> None:
    exported = steps(db)[-1]
    found = [pages(db, exported, segment, 5) for segment in range(5)]

    assert sorted(id for segment in found for id in ids(segment)) == [f"i{n}" for n in range(10)]
    assert all(segment[-1].ended for segment in found)


def test_a_file_counts_once_it_is_read_whole_and_a_segment_continues_at_the_next(
    db: DynamoDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "PAGE", 60)
    monkeypatch.setattr(export, "CHUNK", 40)
    exported = steps(db)[-1]
    found = pages(db, exported)
    first = [page for page in found if page.cursor == {"file": 0, "items": 0}]

    assert len(first) > 1
    assert ids(first) + ids([found[len(first)]]) == ["i0", "i3", "i6", "i9"]
    assert found[len(first)].cursor == {"file": 1, "items": 4}
    rest = pages(db, exported, cursor={"file": 1, "items": 4})
    assert ids(rest) == ["i1", "i4", "i7", "i2", "i5", "i8"]
    assert next(page.before for page in rest) == 4


def test_memory_is_bounded_whatever_the_file_expands_to(db: DynamoDB) -> None:
    items = b"".join(b'{"Item":{"id":{"S":"%d"},"text":{"S":"%s"}}}\n' % (n, b"x" * 1000) for n in range(5_000))
    exported = of(db, gzip.compress(items), 5_000)
    found = pages(db, exported)

    assert len(found) > 4
    assert max(page.size for page in found) < 2 * export.PAGE
    assert len(ids(found)) == 5_000


def test_memory_does_not_grow_with_the_file(db: DynamoDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 8 and one of 64 MB, each compressed several times and read in many pieces."""
    monkeypatch.setattr(export, "CHUNK", 1 << 14)
    block = b"".join(b'{"Item":{"id":{"S":"%d"},"text":{"S":"%s"}}}\n' % (n, b"x" * 900) for n in range(8_600))
    small = gzip.compress(block, 1)

    def peak(blocks: int) -> int:
        exported = of(db, small * blocks, 8_600 * blocks)
        tracemalloc.start()
        reading = answered(db, read(exported, KEYS, 0, SegmentState(1, None), random.Random(2)))
        assert sum(len(page.items) for page in reading) == 8_600 * blocks
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    first = peak(1)
    assert first < 12 * export.PAGE
    assert peak(8) < 1.1 * first


@pytest.mark.parametrize(
    "lines",
    [
        b'{"Item":{"id":{"S":"1"}}}\n{"Item":{"id":{"S":"2"}}}\n{"Item":{"id":{"S":"}\\n{\\"Item\\":"}}}\n',
        b'{"Item":{"id":{"S":"1"}}}\n{ "Item": {"id": {"S": "2"} } }\n{"Item":{"id":{"S":"}\\n{\\"Item\\":"}}}\n',
        b'{"Item":{"id":{"S":"1"}}} \n {"Item":{"id":{"S":"2"}}}\n{"Item":{"id":{"S":"}\\n{\\"Item\\":"}}}\n',
        b'{"Item":{"id":{"S":"1"}},"x":1}\n{"x":{},"Item":{"id":{"S":"2"}}}\n{"Item":{"id":{"S":"}\\n{\\"Item\\":"}}}\n',
        b'{"Item":{"id":{"S":"1"}}}\r\n{"Item":{"id":{"S":"2"}}}\r\n{"Item":{"id":{"S":"}\\n{\\"Item\\":"}}}\r\n',
    ],
    ids=["as DynamoDB writes them", "spaces", "spaces around", "further members", "CRLF"],
)
@pytest.mark.parametrize("piece", [1, 7, 1 << 15])
def test_items_are_cut_out_of_lines_however_they_are_written(
    db: DynamoDB, lines: bytes, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "PIECE", piece)
    found = [item for page in pages(db, of(db, gzip.compress(lines), 3)) for item in page.items]

    assert [key for key, _ in found] == [("1",), ("2",), ('}\n{"Item":',)]
    assert [orjson.loads(bytes(image or b"")) for _, image in found] == [{"id": {"S": key}} for (key,), _ in found]


@pytest.mark.parametrize("key", [{"N": "1.50"}, {"B": "AAE="}], ids=["number", "binary"])
def test_keys_of_other_types_are_read_from_lines(db: DynamoDB, key: dict[str, str]) -> None:
    exported = of(db, gzip.compress(b"".join(orjson.dumps({"Item": {"id": key}}) + b"\n" for _ in range(2))), 2)
    (kind,) = key
    keys = KeySchema((KeyAttribute("id", kind),))
    found = list(answered(db, read(exported, keys, 0, SegmentState(1, None), random.Random(2))))

    assert ids(found) == [{"N": "1.5", "B": "AAE="}[kind]] * 2


@pytest.mark.parametrize("size", [export.BLOCK, 3 * export.BLOCK, export.BLOCK + 1])
def test_what_a_piece_expands_to_beyond_a_block_is_not_left_behind(db: DynamoDB, size: int) -> None:
    """Of lines that end where a block of decompressed bytes does, and of a piece that expands to many of them."""
    start, end = b'{"Item":{"id":{"S":"1"},"text":{"S":"', b'"}}}\n'
    lines = start + b"x" * (size - len(start) - len(end)) + end
    assert ids(pages(db, of(db, gzip.compress(lines * 3), 3))) == ["1"] * 3


def of(db: DynamoDB, body: bytes, items: int) -> Exported:
    """An export of one file."""
    db.exports.objects["exports", "data/a.json.gz"] = body
    md5 = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
    return Exported("arn", "exports", [File("data/a.json.gz", items, md5)])


LINE = b'{"Item":{"id":{"S":"1"}}}\n'


def test_a_file_of_several_gzip_members_is_read_whole(db: DynamoDB) -> None:
    assert len(ids(pages(db, of(db, gzip.compress(LINE) + gzip.compress(LINE), 2)))) == 2


def test_a_last_line_may_end_without_a_newline_and_lines_may_be_empty(db: DynamoDB) -> None:
    """The checksum says that the file is whole. The format's description says only that newlines delimit items."""
    assert len(ids(pages(db, of(db, gzip.compress(LINE + b"\n" + LINE[:-1]), 2)))) == 2


@pytest.mark.parametrize("body", [gzip.compress(b""), b""], ids=["gzip of nothing", "no bytes"])
def test_an_empty_file_is_read(db: DynamoDB, body: bytes) -> None:
    (page,) = pages(db, of(db, body, 0))
    assert page.ended


@pytest.mark.parametrize(
    ("body", "items", "reason"),
    [
        (gzip.compress(LINE)[:-9], 1, "it is not complete"),
        (gzip.compress(LINE) + gzip.compress(LINE[:-5]), 2, "a line is not an item in DynamoDB JSON"),
        (gzip.compress(b" " * (18 << 20) + LINE), 1, "a line has more than 16,777,216 bytes"),
        (b"", 1, "it has 0 items, and the manifest says 1"),
        (b"no gzip", 1, "it is not a gzip file"),
        (gzip.compress(LINE)[:10] + b"\xff" * 20, 1, "it cannot be decompressed: Error -"),
        (gzip.compress(b'{"Item":{"n":{"N":"1"}}}\n'), 1, "a line is not an item in DynamoDB JSON"),
        (gzip.compress(b'$ion_1_0 {Item:{id:"1"}}\n'), 1, "a line is not an item in DynamoDB JSON"),
        (gzip.compress(LINE), 2, "it has 1 items, and the manifest says 2"),
    ],
    ids=["cut", "cut line", "long line", "nothing", "no gzip", "garbage", "no item", "ION", "another number"],
)
def test_a_file_that_is_not_what_the_manifest_says_is_read_twice_and_named(
    db: DynamoDB, body: bytes, items: int, reason: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        pages(db, of(db, body, items))
    assert f"s3://exports/data/a.json.gz is damaged: {reason}" in str(refused.value)
    assert db.calls["GetObject"] == 2


def test_nothing_of_a_file_with_another_checksum_is_used(db: DynamoDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a target has stored of it could not be replaced later: that has the same version."""
    monkeypatch.setattr(export, "PAGE", 10)
    exported = of(db, gzip.compress(LINE * 3), 3)
    other = replace(exported, files=[replace(exported.files[0], md5="AAAA")])
    found: Iterator[ScanPage] = answered(db, read(other, KEYS, 0, SegmentState(1), random.Random(2)))
    with pytest.raises(ConfigError, match="its MD5 checksum is"):
        next(found)


def test_nothing_of_a_file_that_changes_while_it_is_read_is_used(db: DynamoDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "CHUNK", 10)
    exported = of(db, gzip.compress(LINE), 1)
    places, right = iter(range(100)), db.call

    def call(operation: str, request: Mapping[str, Any]) -> bytes:
        part = right(operation, request)
        return part if next(places) < len(db.exports.objects["exports", "data/a.json.gz"]) / 10 else part[::-1]

    with monkeypatch.context() as patch:
        patch.setattr(db, "call", call)
        patch.setattr(export, "READS", 1)
        with pytest.raises(ConfigError, match="it was changed while it was read"):
            pages(db, exported)
    assert ids(pages(db, exported)) == ["1"]


def test_a_failed_read_is_repeated_and_what_came_before_it_is_not(
    db: DynamoDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If one request in a hundred fails, a file of a thousand parts could otherwise never be read."""
    monkeypatch.setattr(export, "CHUNK", 1000)
    monkeypatch.setattr(export, "PAGE", 400)
    chance, asked = random.Random(1), list[str]()
    lines = b"".join(
        b'{"Item":{"id":{"S":"%d"},"text":{"S":"%x"}}}\n' % (n, chance.getrandbits(800)) for n in range(40)
    )
    exported = of(db, gzip.compress(lines), 40)

    def call(operation: str, request: Mapping[str, Any]) -> bytes:
        asked.append(request["Range"])
        if asked[-1] == "bytes=3000-3999" and asked.count(asked[-1]) in (2, 3):
            raise AwsError("SlowDown", "Reduce your rate", 503)
        return DynamoDB.call(db, operation, request)

    monkeypatch.setattr(db, "call", call)
    found = pages(db, exported)
    parts = [f"bytes={at}-{at + 999}" for at in range(0, 1000 * ((len(asked) - 2) // 2), 1000)]

    assert asked == [*parts, *parts[:3], parts[3], parts[3], *parts[3:]]
    waiting = [page.waiting_for is not None for page in found]
    assert waiting.count(True) == 2
    assert not found[waiting.index(True) + 2].items, "it says at once that it no longer waits"
    assert ids(found) == [str(n) for n in range(40)]
    answers = [page for page in found if page.waiting_for is None]
    assert [page.before for page in answers] == [len(ids(answers[:n])) for n in range(len(answers))]


def test_the_bucket_must_belong_to_the_account_that_the_export_was_written_to(db: DynamoDB) -> None:
    exported = steps(db)[-1]
    db.calls.clear()
    db.fail("GetObject", "NoSuchKey", when=lambda request: request["ExpectedBucketOwner"] == "123456789012")
    with pytest.raises(ConfigError):
        pages(db, exported)


@pytest.mark.parametrize("code", ["InvalidObjectState", "KMS.DisabledException", "KMS.NotFoundException"])
def test_an_object_that_s3_refuses_to_return_is_named(db: DynamoDB, code: str) -> None:
    exported = steps(db)[-1]
    db.fail("GetObject", code, times=None)
    with pytest.raises(ConfigError, match=f"backfill: s3:GetObject on s3://exports/.* was refused: {code}.*run again"):
        pages(db, exported)


# Incremental exports

MINUTE, T = 60.0, 1_700_000_040.0  # a whole minute
WINDOW = (T, T + 30 * MINUTE)


@pytest.fixture
def busy() -> DynamoDB:
    """Changes of all kinds within WINDOW, and some beside it."""
    clock = [T - 10 * MINUTE]
    made = DynamoDB(now=lambda: clock[0], random=random.Random(1))
    made.create_table("orders")
    made.exports.enable("orders")
    for id in ("same", "updated", "deleted", "deleted and back"):
        made.put("orders", {"id": id, "n": 1})
    clock[0] = T
    made.put("orders", {"id": "updated", "n": 2})
    made.put("orders", {"id": "new", "n": 1})
    made.put("orders", {"id": "short", "n": 1})
    made.delete("orders", {"id": "deleted and back"})
    clock[0] = T + 29 * MINUTE
    made.put("orders", {"id": "updated", "n": 3})
    made.delete("orders", {"id": "deleted"})
    made.delete("orders", {"id": "short"})
    made.put("orders", {"id": "deleted and back", "n": 1})
    clock[0] = T + 30 * MINUTE
    made.put("orders", {"id": "updated", "n": 4})
    made.put("orders", {"id": "late", "n": 1})
    clock[0] = T + 60 * MINUTE
    return made


def lines(db: DynamoDB, view: str) -> dict[str, dict[str, Any]]:
    """The lines of an export of WINDOW, by the id in their keys."""
    times = {"ExportFromTime": WINDOW[0] + 59, "ExportToTime": WINDOW[1] + 59, "ExportViewType": view}
    request: dict[str, Any] = {"TableArn": "table/orders", "S3Bucket": "b", "ExportType": "INCREMENTAL_EXPORT"}
    request |= {"IncrementalExportSpecification": times}
    arn = orjson.loads(db.call("ExportTableToPointInTime", request))["ExportDescription"]["ExportArn"]
    for _ in range(2):
        db.call("DescribeExport", {"ExportArn": arn})
    bodies = [gzip.decompress(body) for (_, key), body in db.exports.objects.items() if "/data/" in key]
    found = [orjson.loads(line) for body in bodies for line in body.splitlines()]
    return {line["Keys"]["id"]["S"]: line for line in found}


def test_the_fake_writes_net_changes_and_no_line_for_what_was_inserted_and_deleted(busy: DynamoDB) -> None:
    found = lines(busy, "NEW_AND_OLD_IMAGES")

    images = {
        id: tuple(line[image]["n"]["N"] if image in line else None for image in ("OldImage", "NewImage"))
        for id, line in found.items()
    }
    assert images == {"updated": ("1", "3"), "new": (None, "1"), "deleted": ("1", None), "deleted and back": ("1", "1")}
    assert found["updated"]["Metadata"] == {"WriteTimestampMicros": {"N": f"{(T + 29 * MINUTE) * 1e6:.0f}"}}


def test_the_fake_leaves_old_images_out_of_a_view_of_new_ones(busy: DynamoDB) -> None:
    found = lines(busy, "NEW_IMAGE")

    assert {id: sorted(line.keys() - {"Metadata", "Keys"}) for id, line in found.items()} == {
        "updated": ["NewImage"],
        "new": ["NewImage"],
        "deleted": [],
        "deleted and back": ["NewImage"],
    }


@pytest.mark.parametrize(
    ("start", "end", "code"),
    [
        (T, T + 14 * MINUTE, "ValidationException"),
        (T - 86_400, T + MINUTE, "ValidationException"),
        (T, T + 90 * MINUTE, "InvalidExportTimeException"),
        (T - 20 * MINUTE, T, "InvalidExportTimeException"),
        (T + 35 * MINUTE, T + 56 * MINUTE, "InvalidExportTimeException"),
    ],
)
def test_the_fake_refuses_windows_that_dynamodb_does(busy: DynamoDB, start: float, end: float, code: str) -> None:
    request = {"TableArn": "table/orders", "S3Bucket": "b", "ExportType": "INCREMENTAL_EXPORT"}
    times = {"ExportFromTime": start, "ExportToTime": end}
    with pytest.raises(AwsError) as refused:
        busy.call("ExportTableToPointInTime", {**request, "IncrementalExportSpecification": times})
    assert refused.value.code == code


def of_window(
    db: Client, now: float = T + 60 * MINUTE, window: tuple[float, float] = WINDOW, name: str = "orders"
) -> list[Any]:
    table, clock = describe_table(db, name), [now]
    found = []
    for step in answered(db, prepare(table, ExportState(window=window), TO, random.Random(2), lambda: clock[0])):
        found.append(step)
        clock[0] += step.rest if isinstance(step, Exporting) else 0.0
    return found


def test_an_incremental_export_is_read_with_the_items_that_are_gone(busy: DynamoDB) -> None:
    exported = of_window(busy)[-1]
    found = {key[0]: image for page in pages(busy, exported) for key, image in page.items}

    assert {id: image and orjson.loads(bytes(image))["n"]["N"] for id, image in found.items()} == {
        "updated": "3",
        "new": "1",
        "deleted": None,
        "deleted and back": "1",
    }
    (known,) = busy.exports.known.values()
    assert known.request["IncrementalExportSpecification"] == {
        "ExportFromTime": T,
        "ExportToTime": T + 30 * MINUTE,
        "ExportViewType": "NEW_IMAGE",
    }


def test_an_incremental_export_is_requested_once_its_window_has_passed(busy: DynamoDB) -> None:
    steps = of_window(busy, now=WINDOW[1] - 100)
    waits = [step for step in steps if isinstance(step, Exporting) and "all changes until" in step.waiting_for]

    assert sum(step.rest for step in waits) == pytest.approx(100 + export.AVAILABLE - export.SETTLED)


def test_each_window_of_an_epoch_has_a_token_of_its_own() -> None:
    tokens = {export.token("orders", "id", 1024, 1.0, window) for window in (None, (0.0, 900.0), (900.0, 1800.0))}
    assert len(tokens) == 3


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        ({"ExportType": "FULL_EXPORT"}, "is not incremental, as it was requested"),
        (
            {"IncrementalExportSpecification": {"ExportFromTime": T + 60, "ExportToTime": WINDOW[1]}},
            "some would be lost. Nothing of it was copied",
        ),
        (
            {"IncrementalExportSpecification": {"ExportFromTime": T, "ExportToTime": WINDOW[1] - 60}},
            "some would be lost. Nothing of it was copied",
        ),
    ],
)
def test_an_export_of_less_than_the_window_is_refused(busy: DynamoDB, shown: dict[str, Any], reason: str) -> None:
    busy.exports.shown = shown
    with pytest.raises(ConfigError) as refused:
        of_window(busy)
    assert reason in str(refused.value)


def test_a_window_before_recovery_is_refused_with_what_to_do(busy: DynamoDB) -> None:
    with pytest.raises(ConfigError) as refused:
        of_window(busy, window=(T - 30 * MINUTE, T))
    assert "point-in-time recovery of orders does not reach back to" in str(refused.value)
    assert "replicator resync CONFIG" in str(refused.value)


def test_recovery_is_asked_of_a_table_of_another_account_and_not_of_its_namesake() -> None:
    accounts = TwoAccounts()
    for db, since in ((accounts.other, T), (accounts.own, 0.0)):
        db.create_table("orders")
        db.exports.enable("orders", since=since)
    with pytest.raises(ConfigError) as refused:
        of_window(accounts, window=(T - 30 * MINUTE, T), name=arn("orders"))
    assert accounts.requested[OWN] == []
    assert ("DescribeContinuousBackups", arn("orders")) in accounts.requested[OTHER]
    assert "point-in-time recovery of orders does not reach back to" in str(refused.value)


def test_recovery_that_is_off_is_enabled_by_the_name_that_the_config_has() -> None:
    accounts = TwoAccounts()
    accounts.other.create_table("orders")
    with pytest.raises(ConfigError) as refused:
        of_window(accounts, name=arn("orders"))
    assert f"--table-name {arn('orders')} --region us-east-1" in str(refused.value)
