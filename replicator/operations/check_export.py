"""What exports need, for a backfill or to repair gaps: recovery, permissions, and a bucket. Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from replicator.aws.client import Client
from replicator.aws.errors import AwsError, decoded, failure
from replicator.config.settings import Backfill, Config
from replicator.errors import ConfigError
from replicator.operations.check_offline import gathered
from replicator.operations.dry_run import Outlook
from replicator.operations.finding import Finding, failed
from replicator.options import aws_options
from replicator.source import export
from replicator.source.table import SourceTable

_NO_EXPORT = "00000000000000-00000000"  # an id that no export has


class _Upload(msgspec.Struct):
    UploadId: str


def export_findings(config: Config, client: Client, table: SourceTable) -> Iterator[Finding]:
    """Of the requests that a new export takes: each is made so that it cannot have an effect."""
    backfill = config.backfill
    if backfill.export is not None:  # see ``existing_findings``
        return
    yield _export(config, client, table)
    if config.on_gap == "export":
        export.recoverable_since(client, config.source.table)
        yield Finding("permission", "ok", f"dynamodb:DescribeContinuousBackups on {table.arn or table.name}")
    yield _describe(client, table)
    yield from _bucket(client, backfill)


def existing_findings(config: Config, client: Client, table: SourceTable, start: Outlook | None) -> Iterator[Finding]:
    """Of the export that the config names, if it does, as a run uses it that starts now. ``start``: how; None: unknown.

    A run that resumes does not ask how old the export is, and reads it only during its backfill.
    """
    arn = config.backfill.export
    if arn is None:
        return
    if config.on_gap == "resync":
        text = f"on_gap: resync repairs no gap while backfill.export names {arn}, which is from before the gap"
        yield Finding("backfill", "note", text, "leave out backfill.export once the copy is live")
    if start is None or start.begins:
        gap = None if start is None else time.time() if start.finds_gap else start.last_gap
        yield from _existing(arn, client, table, gap)
        return
    yield from map(_unread, gathered("backfill", _existing(arn, client, table, None)))
    if start.reads:
        yield from (f for f in gathered("backfill", _readable(arn, client)) if f.verdict != "ok")


def _existing(arn: str, client: Client, table: SourceTable, gap: float | None) -> Iterator[Finding]:
    at = export.existing(client, arn, table, time.time(), gap)
    (found,) = _readable(arn, client)
    yield replace(found, text=f"the export {arn} of {export.moment(at)}: {found.text}")


def _readable(arn: str, client: Client) -> Iterator[Finding]:
    files = export.readable(client, arn)
    what = "is not complete yet: a run waits for it" if files is None else f"{files.items:,} items can be read"
    yield Finding("backfill", "ok", what)


def _unread(finding: Finding) -> Finding:
    """What would matter only to a new epoch."""
    if finding.verdict == "ok":
        return finding
    advice = "leave out backfill.export, or name a newer one, before the next resync"
    return Finding(finding.subject, "note", f"a resync would be refused: {finding.text}", advice)


def _export(config: Config, client: Client, table: SourceTable) -> Finding:
    """Ask for an export of a time for which there is none: that is only refused for its time if all else is right."""
    resource = table.arn or table.name
    request = {"TableArn": resource, "S3Bucket": config.backfill.bucket, "ExportTime": 1}
    try:
        client.call("ExportTableToPointInTime", request)
    except AwsError as e:
        if e.code == "InvalidExportTimeException":
            return Finding("permission", "ok", f"dynamodb:ExportTableToPointInTime on {resource}")
        if e.code == "PointInTimeRecoveryUnavailableException":
            enable = (
                f"enable it: aws dynamodb update-continuous-backups --table-name {table.requested}"
                f"{aws_options(config.source, table.arn)} "
                "--point-in-time-recovery-specification PointInTimeRecoveryEnabled=true"
            )
            text = f"point-in-time recovery of {table.name} is off, which an export needs"
            return Finding("on_gap" if config.on_gap == "export" else "backfill.from", "problem", text, enable)
        return failed("permission", failure(e, "ExportTableToPointInTime", resource))
    raise ConfigError(
        "backfill: the endpoint accepted an export time of 1970, so it does not validate requests as DynamoDB does"
    )


def _describe(client: Client, table: SourceTable) -> Finding:
    resource = f"{table.arn}/export/{_NO_EXPORT}"
    try:
        client.call("DescribeExport", {"ExportArn": resource})
    except AwsError as e:
        if e.code != "ExportNotFoundException":
            return failed("permission", failure(e, "DescribeExport", resource))
    return Finding("permission", "ok", f"dynamodb:DescribeExport on {table.arn}/export/*")


def _bucket(client: Client, backfill: Backfill) -> Iterator[Finding]:
    """Begin an upload, and abort it; read an object that does not exist."""
    bucket = backfill.bucket or ""
    key = f"{backfill.prefix}/replicator-check" if backfill.prefix else "replicator-check"
    place, of = f"s3://{bucket}/{key}", {"Bucket": bucket, "Key": key}
    owner = {} if backfill.bucket_owner is None else {"ExpectedBucketOwner": backfill.bucket_owner}
    key_of = {} if backfill.kms_key is None else {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": backfill.kms_key}
    started = _made(client, "CreateMultipartUpload", "s3:PutObject", {**of, **owner, **key_of}, place)
    if isinstance(started, Finding):
        yield started
        return
    yield Finding("permission", "ok", f"s3:PutObject on {place}")
    upload = {**of, "UploadId": decoded(started, _Upload, "CreateMultipartUpload").UploadId}
    ended = _made(client, "AbortMultipartUpload", "s3:AbortMultipartUpload", upload, place)
    yield ended if isinstance(ended, Finding) else Finding("permission", "ok", f"s3:AbortMultipartUpload on {place}")
    read = _made(client, "GetObject", "s3:GetObject", of, place)
    yield read if isinstance(read, Finding) else Finding("permission", "ok", f"s3:GetObject on {place}")


def _made(client: Client, operation: str, action: str, request: Mapping[str, Any], place: str) -> bytes | Finding:
    """The response, empty for an object that does not exist; or the finding that the call failed."""
    try:
        return client.call(operation, request)
    except AwsError as e:
        if e.code == "NoSuchKey":
            return b""
        if e.code == "NoSuchBucket":
            return Finding("backfill.bucket", "problem", f"there is no bucket {request['Bucket']}")
        return failed("permission", export.denied(failure(e, action, place)))
