"""Full and incremental exports to S3, in the documented format, with the calls of S3 that reading them takes.

An incremental export has the net changes of its window: one line for an item that existed at its start or at its end,
if it was written in between. It has none for an item that was inserted and deleted within the window.

https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/S3DataExport.Output.html describes the format.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from replicator.aws.errors import AwsError
from replicator.key import Key
from replicator.testing.dynamodb.catalog import DELAY, RECOVERY, Catalog
from replicator.testing.dynamodb.refusals import invalid, refusal
from replicator.testing.dynamodb.rows import Table

SHORTEST, LONGEST = 900.0, 86_400.0  # seconds of an incremental export's window
MINUTE = 60.0  # to which its times are rounded down


@dataclass(slots=True)
class _Export:
    """``lines``: of its files. ``window``: of an incremental one. ``polls``: DescribeExport calls until it is ready."""

    arn: str
    request: Mapping[str, Any]
    table: Mapping[str, Any]
    at: float
    started: float
    lines: Sequence[bytes]
    polls: int
    window: tuple[float, float] | None = None
    status: str = "IN_PROGRESS"

    @property
    def folder(self) -> str:
        prefix = self.request.get("S3Prefix")
        return f"{prefix}/AWSDynamoDB/{self.id}" if prefix else f"AWSDynamoDB/{self.id}"

    @property
    def data(self) -> str:
        """The folder of the data files, which incremental exports share."""
        return f"{self.folder}/data" if self.window is None else f"{self.folder.rpartition('/')[0]}/data"

    @property
    def times(self) -> dict[str, Any]:
        """The window as DescribeExport shows it."""
        if self.window is None:
            return {"ExportType": "FULL_EXPORT", "ExportTime": self.at}
        view = self.request["IncrementalExportSpecification"].get("ExportViewType", "NEW_AND_OLD_IMAGES")
        times = {"ExportFromTime": self.window[0], "ExportToTime": self.window[1], "ExportViewType": view}
        return {"ExportType": "INCREMENTAL_EXPORT", "IncrementalExportSpecification": times}

    @property
    def id(self) -> str:
        return self.arn.rpartition("/")[2]


@dataclass(slots=True)
class Exports:
    """The exports of one endpoint, and the objects in its buckets.

    ``files``: data files of a new export; item n is in file n modulo their number, so that some may be empty.
    ``polls``: DescribeExport calls until it is complete. ``put``: stores an object; by default in ``objects``, which
    GetObject reads. ``known``: the exports, by ARN. ``shown``: members of their descriptions to falsify.
    """

    catalog: Catalog
    files: int = 3
    polls: int = 1
    objects: dict[tuple[str, str], bytes] = field(default_factory=dict)
    put: Callable[[str, str, bytes], object] | None = None
    known: dict[str, _Export] = field(default_factory=dict)
    shown: dict[str, Any] = field(default_factory=dict)
    _tokens: dict[str, str] = field(default_factory=dict)

    def enable(self, table: str, *, since: float | None = None) -> None:
        """Turn on point-in-time recovery, which exports need. ``since``: as if that was done then."""
        found = self.catalog.table(table)
        found.recover(enabled=True)
        found.recoverable_since = found.recoverable_since if since is None else since

    def export_table_to_point_in_time(self, request: Mapping[str, Any]) -> bytes:
        table = self.catalog.table(request["TableArn"])
        token, now = request.get("ClientToken"), self.catalog.now()
        if token is not None and token in self._tokens:
            return self._shown(self.known[self._tokens[token]])
        if not table.recoverable:
            unavailable = f"Point in time recovery is not enabled for table '{table.name}'"
            raise refusal("PointInTimeRecoveryUnavailableException", unavailable)
        window = _window(request, now)
        latest = now if window is None else now - DELAY
        for at in window or (request.get("ExportTime", now),):
            if not now - RECOVERY <= at <= latest or (window is not None and at < (table.recoverable_since or 0.0)):
                outside = "The specified ExportTime is outside of the recovery window"
                raise refusal("InvalidExportTimeException", outside)
        arn = f"{table.definition['TableArn']}/export/{int(now * 1000):014d}-{self.catalog.random.getrandbits(32):08x}"
        lines = (
            [b'{"Item":%s}' % image for image in _images(table)] if window is None else _changes(table, request, window)
        )
        self.known[arn] = _Export(arn, dict(request), table.definition, now, now, lines, self.polls, window)
        if token is not None:
            self._tokens[token] = arn
        return self._shown(self.known[arn])

    def describe_export(self, request: Mapping[str, Any]) -> bytes:
        export = self.known.get(request["ExportArn"])
        if export is None:
            raise refusal("ExportNotFoundException", f"Export not found: {request['ExportArn']}")
        if export.status == "IN_PROGRESS":
            export.polls -= 1
            if export.polls < 0:
                self._write(export)
                export.status = "COMPLETED"
        return self._shown(export)

    def get_object(self, request: Mapping[str, Any]) -> bytes:
        body = self.objects.get((request["Bucket"], request["Key"]))
        if body is None:
            raise AwsError("NoSuchKey", "The specified key does not exist.", 404)
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", request.get("Range", f"bytes=0-{len(body)}"))
        if part is None:
            raise invalid("Range")
        if int(part[1]) >= len(body):
            raise AwsError("InvalidRange", "The requested range is not satisfiable", 416)
        return body[int(part[1]) : int(part[2]) + 1]

    def create_multipart_upload(self, request: Mapping[str, Any]) -> bytes:
        return orjson.dumps({"UploadId": "upload"})

    def abort_multipart_upload(self, request: Mapping[str, Any]) -> bytes:
        return orjson.dumps({"UploadId": None})

    def _write(self, export: _Export) -> None:
        """The data files, then the manifests."""
        files = []
        for n in range(self.files):
            lines = export.lines[n :: self.files]
            body = gzip.compress(b"".join(b"%s\n" % line for line in lines), mtime=0)
            key = f"{export.data}/{export.id[-8:]}{n:04d}.json.gz"
            self._store(export, key, body)
            digest = hashlib.md5(body, usedforsecurity=False)
            files.append(
                {
                    "itemCount": len(lines),
                    "md5Checksum": base64.b64encode(digest.digest()).decode(),
                    "etag": f"{digest.hexdigest()}-1",
                    "dataFileS3Key": key,
                }
            )
        self._store(export, f"{export.folder}/manifest-files.json", b"".join(orjson.dumps(f) + b"\n" for f in files))
        self._store(export, f"{export.folder}/manifest-summary.json", orjson.dumps(self._summary(export)))

    def _store(self, export: _Export, key: str, body: bytes) -> None:
        bucket = export.request["S3Bucket"]
        if self.put is not None:
            self.put(bucket, key, body)
        else:
            self.objects[bucket, key] = body

    def _summary(self, export: _Export) -> dict[str, Any]:
        return {
            "version": "2020-06-30",
            "exportArn": export.arn,
            "startTime": _iso(export.started),
            "endTime": _iso(self.catalog.now()),
            "tableArn": export.table["TableArn"],
            "tableId": export.table["TableId"],
            "s3Bucket": export.request["S3Bucket"],
            "s3Prefix": export.request.get("S3Prefix"),
            "s3SseAlgorithm": export.request.get("S3SseAlgorithm", "AES256"),
            "s3SseKmsKeyId": export.request.get("S3SseKmsKeyId"),
            "manifestFilesS3Key": f"{export.folder}/manifest-files.json",
            "billedSizeBytes": sum(map(len, export.lines)),
            "itemCount": len(export.lines),
            "outputFormat": export.request.get("ExportFormat", "DYNAMODB_JSON"),
            **_summary_times(export),
        }

    def _shown(self, export: _Export) -> bytes:
        request = export.request
        shown = {
            "ExportArn": export.arn,
            "ExportStatus": export.status,
            "StartTime": export.started,
            "TableArn": export.table["TableArn"],
            "TableId": export.table["TableId"],
            "ExportFormat": request.get("ExportFormat", "DYNAMODB_JSON"),
            **export.times,
            **{name: value for name, value in request.items() if name.startswith("S3") or name == "ClientToken"},
        }
        if export.status == "COMPLETED":
            shown |= {"ExportManifest": f"{export.folder}/manifest-summary.json", "ItemCount": len(export.lines)}
        return orjson.dumps({"ExportDescription": shown | self.shown})


def _images(table: Table) -> Sequence[bytes]:
    return [bytes(image) for image in table.images()]


def _window(request: Mapping[str, Any], now: float) -> tuple[float, float] | None:
    """The window of an incremental export, in whole minutes; None for a full one."""
    if request.get("ExportType", "FULL_EXPORT") == "FULL_EXPORT":
        return None
    times = request["IncrementalExportSpecification"]
    end = times.get("ExportToTime", now - DELAY)
    start, end = (at // MINUTE * MINUTE for at in (times["ExportFromTime"], end))
    if not SHORTEST <= end - start <= LONGEST:
        raise invalid("The export period must be between 15 minutes and 24 hours")
    return start, end


def _changes(table: Table, request: Mapping[str, Any], window: tuple[float, float]) -> list[bytes]:
    """A line for each item that was written in the window, unless it neither existed before nor afterwards."""
    first: dict[Key, bytes | None] = {}
    last: dict[Key, tuple[float, bytes | None]] = {}
    for at, key, old, new in table.history:
        if window[0] <= at < window[1]:
            first.setdefault(key, old)
            last[key] = at, new
    both = request["IncrementalExportSpecification"].get("ExportViewType", "NEW_AND_OLD_IMAGES") != "NEW_IMAGE"
    lines = []
    for key, (at, new) in last.items():
        old = first[key]
        if old is None and new is None:
            continue
        images = {"NewImage": new, "OldImage": old if both else None}
        line: dict[str, Any] = {"Metadata": {"WriteTimestampMicros": {"N": f"{at * 1e6:.0f}"}}}
        line["Keys"] = table.typed(key)
        line |= {name: orjson.Fragment(image) for name, image in images.items() if image is not None}
        lines.append(orjson.dumps(line))
    return lines


def _summary_times(export: _Export) -> dict[str, Any]:
    if export.window is None:
        return {"exportTime": _iso(export.at), "exportType": "FULL_EXPORT"}
    view = export.times["IncrementalExportSpecification"]["ExportViewType"]
    times = {"exportFromTime": _iso(export.window[0]), "exportToTime": _iso(export.window[1])}
    return {**times, "exportType": "INCREMENTAL_EXPORT", "outputView": f"{view}S" if view == "NEW_IMAGE" else view}


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
