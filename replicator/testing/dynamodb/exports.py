"""Full exports to S3, in the documented format, with the calls of S3 that reading them takes.

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
from replicator.testing.dynamodb.catalog import Catalog
from replicator.testing.dynamodb.refusals import invalid, refusal
from replicator.testing.dynamodb.rows import Table

WINDOW = 35 * 86_400.0  # seconds for which a table can be recovered


@dataclass(slots=True)
class _Export:
    """``images``: the items at the export's time. ``polls``: DescribeExport calls until it is complete."""

    arn: str
    request: Mapping[str, Any]
    table: Mapping[str, Any]
    at: float
    started: float
    images: Sequence[bytes]
    polls: int
    status: str = "IN_PROGRESS"

    @property
    def folder(self) -> str:
        prefix = self.request.get("S3Prefix")
        return f"{prefix}/AWSDynamoDB/{self.id}" if prefix else f"AWSDynamoDB/{self.id}"

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

    def enable(self, table: str) -> None:
        """Turn on point-in-time recovery, which exports need."""
        self.catalog.table(table).recoverable = True

    def export_table_to_point_in_time(self, request: Mapping[str, Any]) -> bytes:
        table = self.catalog.table(request["TableArn"])
        token, now = request.get("ClientToken"), self.catalog.now()
        if token is not None and token in self._tokens:
            return self._shown(self.known[self._tokens[token]])
        if not table.recoverable:
            unavailable = f"Point in time recovery is not enabled for table '{table.name}'"
            raise refusal("PointInTimeRecoveryUnavailableException", unavailable)
        if not now - WINDOW <= request.get("ExportTime", now) <= now:
            raise refusal("InvalidExportTimeException", "The specified ExportTime is outside of the recovery window")
        arn = f"{table.definition['TableArn']}/export/{int(now * 1000):014d}-{self.catalog.random.getrandbits(32):08x}"
        self.known[arn] = _Export(arn, dict(request), table.definition, now, now, _images(table), self.polls)
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
            lines = b"".join(b'{"Item":%s}\n' % image for image in export.images[n :: self.files])
            body = gzip.compress(lines, mtime=0)
            key = f"{export.folder}/data/{export.id[-8:]}{n:04d}.json.gz"
            self._store(export, key, body)
            digest = hashlib.md5(body, usedforsecurity=False)
            files.append(
                {
                    "itemCount": len(export.images[n :: self.files]),
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
            "exportTime": _iso(export.at),
            "s3Bucket": export.request["S3Bucket"],
            "s3Prefix": export.request.get("S3Prefix"),
            "s3SseAlgorithm": export.request.get("S3SseAlgorithm", "AES256"),
            "s3SseKmsKeyId": export.request.get("S3SseKmsKeyId"),
            "manifestFilesS3Key": f"{export.folder}/manifest-files.json",
            "billedSizeBytes": sum(map(len, export.images)),
            "itemCount": len(export.images),
            "outputFormat": export.request.get("ExportFormat", "DYNAMODB_JSON"),
            "exportType": "FULL_EXPORT",
        }

    def _shown(self, export: _Export) -> bytes:
        request = export.request
        shown = {
            "ExportArn": export.arn,
            "ExportStatus": export.status,
            "StartTime": export.started,
            "ExportTime": export.at,
            "TableArn": export.table["TableArn"],
            "TableId": export.table["TableId"],
            "ExportFormat": request.get("ExportFormat", "DYNAMODB_JSON"),
            "ExportType": "FULL_EXPORT",
            **{name: value for name, value in request.items() if name.startswith("S3") or name == "ClientToken"},
        }
        if export.status == "COMPLETED":
            shown |= {"ExportManifest": f"{export.folder}/manifest-summary.json", "ItemCount": len(export.images)}
        return orjson.dumps({"ExportDescription": shown | self.shown})


def _images(table: Table) -> Sequence[bytes]:
    return [bytes(image) for image in table.images()]


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
