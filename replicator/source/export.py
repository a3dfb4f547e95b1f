"""Reads the items of a DynamoDB export from S3, instead of a scan: it uses no read capacity.

A full export shows the table as it was at its time (ExportTime). It may replace a scan only if that time is not earlier
than the epoch's shard positions: what happened in between would be in neither of them. An incremental one has the items
that changed in its window, as they were at its end; those that were deleted have no image.

``prepare`` starts the export, or takes an existing one, and waits for it. ``read`` yields the items of one segment:
file n of the export belongs to segment n modulo their number. A file is used once all of it is known to be what the
manifest says. A segment's cursor moves by whole files; one that was interrupted is read again from its start, at the
same versions.
"""

from __future__ import annotations

import base64
import hashlib
import math
import posixpath
import random
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

import msgspec
import orjson
from isal import isal_zlib

from replicator.aws.client import Call, Client, completed
from replicator.aws.errors import AwsError, decoded, failure
from replicator.backoff import backoff
from replicator.change import ScanPage
from replicator.errors import ConfigError, GapFound, NotPermitted, ReplicatorError, TransientError
from replicator.items.attributes import DECODE_ERRORS
from replicator.key import Key, KeySchema
from replicator.retention import SAFE_AGE
from replicator.source.decoding import KeyReader
from replicator.source.stream import describe_stream
from replicator.source.table import SourceTable
from replicator.state import ExportState, SegmentState

SETTLED = 5.0  # seconds from the moment the positions are stored until an export is requested
CLOCKS = 600.0  # seconds by which two clocks may differ, each being five minutes off
AVAILABLE = CLOCKS + 300.0  # seconds from the end of a window until its export is requested: AWS has it 300 s later
DELAYED = 3600.0  # seconds after that in which a refusal may mean that AWS does not have all of the window yet
CONFLICTS = 6 * 3600.0  # seconds for which a request is repeated that conflicts with another export
ENABLING = 900.0  # seconds after which a stream that was requested has all changes; DescribeStream does not say when
POLL = 15.0  # seconds between DescribeExport calls
CHUNK = 1 << 22  # bytes of a file in one GetObject request
LONGEST_LINE = 1 << 24  # bytes; an item has at most 400 KB, and JSON writes a byte as six at most
PIECE = (
    1 << 15
)  # bytes of a file that are decompressed at once, to at most ``BLOCK``: these stay in a processor's cache
BLOCK = 1 << 18
PAGE = 1 << 20  # bytes of uncompressed lines in a page, as in one of Scan
GZIP = b"\x1f\x8b"  # the first bytes of a file
READS = 2  # how often a file that is not what the manifest says is read before that is an error
LONGEST_BACKOFF, QUICKEST_BACKOFF = 20.0, 0.25
START_OVER = "To start over with a new export: replicator resync CONFIG"
OTHER_EXPORT = (  # a resync reads the one that the config names
    "To start over with another one: leave out backfill.export to have a new one made (with backfill.bucket), or name "
    "another full export in the format DYNAMODB_JSON, and run: replicator resync CONFIG"
)
BACKFILL = "To repair the gap with a backfill instead: replicator resync CONFIG"


@dataclass(frozen=True, slots=True)
class Destination:
    """Where DynamoDB writes a new export. ``token``: makes the request idempotent, see ``token``."""

    bucket: str
    prefix: str | None
    bucket_owner: str | None
    kms_key: str | None
    token: str


@dataclass(frozen=True, slots=True)
class File:
    """A file of the export: its key in the bucket, and what its manifest says."""

    key: str
    items: int
    md5: str


@dataclass(frozen=True, slots=True)
class Ahead:
    """An export that is read after the one that is prepared. ``arn``: "" if it was not requested yet."""

    window: tuple[float, float]
    arn: str
    wanted: Destination | None


@dataclass(frozen=True, slots=True)
class Requested:
    """The ARNs of the exports that are read later, "" for one that DynamoDB did not accept yet."""

    arns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Exporting:
    """The export is not complete. ``arn``: "" until it is known. ``waiting_for``: its end, or why a call failed."""

    arn: str
    rest: float
    waiting_for: str


@dataclass(frozen=True, slots=True)
class Exported:
    """A complete export, and its files. ``owner``: the account that its bucket must belong to, if that is known.

    ``incremental``: the lines of its files are changes. ``existing``: the config names it.
    """

    arn: str
    bucket: str
    files: Sequence[File] = ()
    owner: str | None = None
    incremental: bool = False
    existing: bool = False

    @property
    def items(self) -> int:
        return sum(file.items for file in self.files)

    @property
    def start_over(self) -> str:
        """What to do if it cannot be read, nor restored."""
        return _start_over(existing=self.existing, incremental=self.incremental)


def _start_over(*, existing: bool, incremental: bool) -> str:
    return BACKFILL if incremental else OTHER_EXPORT if existing else START_OVER


class _Window(msgspec.Struct):
    ExportFromTime: float | None = None
    ExportToTime: float | None = None


class _Description(msgspec.Struct):
    ExportArn: str
    ExportStatus: str
    TableId: str | None = None
    TableArn: str | None = None
    StartTime: float | None = None
    ExportTime: float | None = None
    ExportFormat: str | None = None
    ExportType: str | None = None
    ExportManifest: str | None = None
    S3Bucket: str | None = None
    S3BucketOwner: str | None = None
    FailureCode: str | None = None
    FailureMessage: str | None = None
    IncrementalExportSpecification: _Window | None = None


class _Recovery(msgspec.Struct):
    PointInTimeRecoveryStatus: str
    EarliestRestorableDateTime: float | None = None


class _Backups(msgspec.Struct):
    PointInTimeRecoveryDescription: _Recovery


class _DescribeContinuousBackups(msgspec.Struct):
    ContinuousBackupsDescription: _Backups


class _DescribeExport(msgspec.Struct):
    ExportDescription: _Description


class _Summary(msgspec.Struct, rename="camel"):
    """manifest-summary.json."""

    item_count: int
    output_format: str | None = None
    export_arn: str | None = None


class _ManifestFile(msgspec.Struct, rename="camel"):
    """A line of manifest-files.json."""

    item_count: int
    md5_checksum: str
    data_file_key: str = msgspec.field(name="dataFileS3Key")


class _Line(msgspec.Struct, gc=False):
    """A line of a data file."""

    Item: msgspec.Raw


class _Changed(msgspec.Struct, gc=False):
    """A line of a data file of an incremental export: an item that was changed, or (without an image) deleted."""

    Keys: msgspec.Raw
    NewImage: msgspec.Raw = msgspec.Raw()


_BEFORE, _BEHIND = b'{"Item":', b"}"  # of an item in its line
_BETWEEN = _BEHIND + b"\n" + _BEFORE
_ITEM = attrgetter("Item")
_LINES = msgspec.json.Decoder(_Line)
_CHANGES = msgspec.json.Decoder(_Changed)
_FILES = msgspec.json.Decoder(list[_ManifestFile])
_SUMMARY = msgspec.json.Decoder(_Summary)


Window = tuple[float, float]


def token(pipeline: str, table_id: str, epoch: int, started: float, window: Window | None = None) -> str:
    """The ClientToken of an epoch's export: a repeated request returns the same one, and never an earlier epoch's.

    ``window``: of an incremental one, of which an epoch may have several.
    """
    text = orjson.dumps([pipeline, table_id, epoch, started, *(window or ())])
    return f"replicator-{hashlib.sha256(text).hexdigest()[:24]}"


def existing(client: Client, arn: str, table: SourceTable, now: float, gap: float | None = None) -> float:
    """The time of an existing export whose changes since then the stream still has. ConfigError if it cannot be used.

    The positions of an epoch that reads it are those of its time: every shard is read from there on. ``gap``: when the
    last gap was found that this epoch must repair, by this machine's clock.
    """
    export = completed(client, _described(arn, OTHER_EXPORT))
    stream_created = completed(client, describe_stream(table.stream_arn or "")).CreationRequestDateTime
    if export.TableId is not None and export.TableId != table.id:
        raise ConfigError(
            f"backfill.export: the export is of the table {export.TableArn or export.TableId}, not of {table.arn}, or "
            "of an earlier table of that name. Leave out backfill.export to have a new one made, or name one of this "
            "table"
        )
    _check(export, existing=True)
    at = export.ExportTime
    if at is None:
        raise TransientError(f"DescribeExport does not say the time of {arn} yet")
    if now - at >= SAFE_AGE:
        raise ConfigError(
            f"backfill.export: the export is of {moment(at)}, {(now - at) / 3600:.0f} hours ago. The stream keeps "
            "changes for 24 hours, so those since then may be gone. Leave out backfill.export to have a new one made, "
            "or name a newer one"
        )
    if gap is not None and at < gap + CLOCKS:
        raise ConfigError(
            f"backfill.export: the export is of {moment(at)}, and a gap was found at {moment(gap)}: what happened in "
            "between may be neither in the export nor in the stream. Leave out backfill.export to have a new one made, "
            f"or name one that was made at least {CLOCKS / 60:.0f} minutes after the gap was found"
        )
    if stream_created is None or at < stream_created:
        raise ConfigError(
            f"backfill.export: the export is of {moment(at)}, and the table's stream was enabled later: changes in "
            "between are in neither. Leave out backfill.export to have a new one made, or name a newer one"
        )
    if at < stream_created + ENABLING:
        raise ConfigError(
            f"backfill.export: the export is of {moment(at)}, and the table's stream was requested at "
            f"{moment(stream_created)}: it may have begun only after the export, and changes in between are in "
            "neither. Leave out backfill.export to have a new one made, or name one that was made at least "
            f"{ENABLING / 60:.0f} minutes after the stream was requested"
        )
    return at


def recoverable_since(client: Client, table: str) -> float | None:
    """From when on incremental exports can be made; None if point-in-time recovery is off."""
    return completed(client, _recoverable_since(table))


def _recoverable_since(table: str) -> Generator[Call, bytes, float | None]:
    try:
        body = yield Call("DescribeContinuousBackups", {"TableName": table})
    except AwsError as e:
        raise failure(e, "DescribeContinuousBackups", table) from e
    described = decoded(body, _DescribeContinuousBackups, "DescribeContinuousBackups").ContinuousBackupsDescription
    recovery = described.PointInTimeRecoveryDescription
    return recovery.EarliestRestorableDateTime if recovery.PointInTimeRecoveryStatus == "ENABLED" else None


def prepare(
    table: SourceTable,
    state: ExportState,
    wanted: Destination | None,
    chance: random.Random,
    now: Callable[[], float] = time.time,
    ahead: Sequence[Ahead] = (),
) -> Generator[Call | Requested | Exporting | Exported, Any, None]:
    """Yields calls, ``Exporting`` while the export is not complete, and in the end one ``Exported``.

    Those ``ahead`` that are not requested yet are first, so that DynamoDB makes all of them at the same time; then one
    ``Requested`` follows. What it does not accept now is requested in its turn. A request that conflicts with another
    export, as of another target of the config, is repeated for as long as ``CONFLICTS``.

    ConfigError if the export failed, or must not be read; GapFound if the table is another one by now. The epoch's
    positions must be stored. An incremental export is requested once its window has passed.
    """
    arn, failures, conflicts_since = state.arn, 0, math.inf
    incremental, existing = state.window is not None, state.at is not None
    start_over = _start_over(existing=existing, incremental=incremental)
    yield from _requested(table, ahead, now)
    if not arn:
        yield Exporting("", SETTLED, "the export to begin")
    while not arn and state.window is not None and (left := state.window[1] + AVAILABLE - now()) > 0:
        yield Exporting("", min(left, POLL), f"{moment(state.window[1] + AVAILABLE)}, to export all changes until then")
    while True:
        try:
            if not arn:
                arn = yield from _start(table, wanted, state.window, now)
                yield Exporting(arn, POLL, _waiting(arn))
            description = yield from _described(arn, start_over)
            if description.TableId is not None and description.TableId != table.id:
                raise GapFound(f"table {table.name} was deleted and created again before it was exported")
            _check(description, incremental=incremental, existing=existing)
            if description.ExportStatus == "COMPLETED":
                if state.window is not None:
                    _check_window(description.IncrementalExportSpecification, state.window)
                else:
                    check_time(description.ExportTime, description.StartTime, state)
                exported = yield from _manifests(description, existing=existing)
                yield exported
                return
            failures = 0
            yield Exporting(arn, POLL, _waiting(arn))
        except _Conflict as e:
            conflicts_since = _conflicts_since(conflicts_since, now(), e)
            yield Exporting(arn, POLL, str(e))
        except TransientError as e:
            failures += 1
            rest = backoff(failures, chance, base=QUICKEST_BACKOFF, limit=LONGEST_BACKOFF)
            yield Exporting(arn, rest, str(e))


def _conflicts_since(since: float, now: float, conflict: _Conflict) -> float:
    """When the first of the conflicts was met. ConfigError if they have lasted too long."""
    since = min(since, now)
    if now - since >= CONFLICTS:
        raise ConfigError(str(conflict)) from conflict
    return since


def readable(client: Client, arn: str) -> Exported | None:
    """An export that the config names, if its manifests and the beginning of its first file can be read; None if it is
    not complete.

    Raises what a run that reads it would end with.
    """
    description = completed(client, _described(arn, OTHER_EXPORT))
    if description.ExportStatus != "COMPLETED":
        return None
    exported = completed(client, _manifests(description, existing=True))
    for file in exported.files[:1]:
        completed(client, _part(exported, file.key, 0))
    return exported


def _waiting(arn: str) -> str:
    return f"the export {arn.rpartition('/')[2]} to S3 to complete"


def _start(
    table: SourceTable, wanted: Destination | None, window: Window | None, now: Callable[[], float]
) -> Generator[Call, bytes, str]:
    if wanted is None and window is not None:
        raise ConfigError(
            "on_gap: a gap is being repaired from an export that is not started yet, and the config no longer has "
            "on_gap: export with a bucket. Restore it, or start over with a backfill: replicator resync CONFIG"
        )
    if wanted is None:
        raise ConfigError(
            "backfill: this backfill reads an export that is not started yet, and backfill.from is no longer export. "
            "Restore it, or start over with a scan: replicator resync CONFIG"
        )
    request: dict[str, Any] = {
        "TableArn": table.arn,
        "S3Bucket": wanted.bucket,
        "ClientToken": wanted.token,
        "ExportFormat": "DYNAMODB_JSON",
        "S3SseAlgorithm": "AES256" if wanted.kms_key is None else "KMS",
    }
    given = {
        "S3Prefix": wanted.prefix,
        "S3BucketOwner": wanted.bucket_owner,
        "S3SseKmsKeyId": wanted.kms_key,
    }
    request |= {name: value for name, value in given.items() if value is not None}
    if window is not None:
        times = {"ExportFromTime": int(window[0]), "ExportToTime": int(window[1]), "ExportViewType": "NEW_IMAGE"}
        request |= {"ExportType": "INCREMENTAL_EXPORT", "IncrementalExportSpecification": times}
    try:
        body = yield Call("ExportTableToPointInTime", request)
    except AwsError as e:
        if e.code == "InvalidExportTimeException" and window is not None:
            raise (yield from _refused_window(table, window, now())) from e
        raise _failed(e, "ExportTableToPointInTime", table.arn or table.name, _named(table)) from e
    return decoded(body, _DescribeExport, "ExportTableToPointInTime").ExportDescription.ExportArn


def _requested(
    table: SourceTable, ahead: Sequence[Ahead], now: Callable[[], float]
) -> Generator[Call | Requested, Any, None]:
    if all(one.arn for one in ahead):
        return
    arns = []
    for one in ahead:
        arns.append(one.arn or (yield from _started(table, one, now)))
    yield Requested(tuple(arns))


def _started(table: SourceTable, one: Ahead, now: Callable[[], float]) -> Generator[Call, bytes, str]:
    """The ARN of an export that is requested now; "" if that must wait for its turn."""
    if one.wanted is None:
        return ""
    try:
        return (yield from _start(table, one.wanted, one.window, now))
    except TransientError:  # such as too many exports at the same time, or a conflict with the run's own
        return ""


def _refused_window(table: SourceTable, window: Window, now: float) -> Generator[Call, bytes, ReplicatorError]:
    """What it means that DynamoDB does not export the changes of a window: it lies too far back, or is too recent."""
    since = yield from _recoverable_since(table.requested)
    if since is None or since > window[0]:
        return ConfigError(
            f"on_gap: point-in-time recovery of {table.name} does not reach back to {moment(window[0])}, so the "
            "changes since then cannot be exported. To repair the gap with a backfill: replicator resync CONFIG"
        )
    times = f"the changes of {table.name} from {moment(window[0])} until {moment(window[1])}"
    if now < window[1] + AVAILABLE + DELAYED:
        return TransientError(f"DynamoDB does not export {times} yet")
    return ConfigError(
        f"on_gap: DynamoDB refuses to export {times}, though point-in-time recovery reaches back to {moment(since)}. "
        "Run again; or, to repair the gap with a backfill: replicator resync CONFIG"
    )


def _described(arn: str, start_over: str) -> Generator[Call, bytes, _Description]:
    try:
        body = yield Call("DescribeExport", {"ExportArn": arn})
    except AwsError as e:
        if e.code == "ExportNotFoundException":
            raise ConfigError(
                f"backfill: DescribeExport on {arn}: there is no such export; DynamoDB forgets them 90 days after they "
                f"are made. {start_over}"
            ) from e
        raise _failed(e, "DescribeExport", arn) from e
    return decoded(body, _DescribeExport, "DescribeExport").ExportDescription


_CONFLICT = "ExportConflictException"
_OTHER_OPTIONS = (
    "DynamoDB knows the request of this export with other options: they were changed during the backfill. Undo the "
    "change, or start over: replicator resync CONFIG"
)
_OF_A_TOKEN = (  # which one DynamoDB returns is documented differently in several places
    "ImportConflictException",
    "IdempotentParameterMismatch",
    "IdempotentParameterMismatchException",
)
_REFUSED = {
    "PointInTimeRecoveryUnavailableException": "point-in-time recovery is off, which an export needs; enable it: "
    "aws dynamodb update-continuous-backups --point-in-time-recovery-specification PointInTimeRecoveryEnabled=true "
    "--table-name TABLE",
    "TableNotFoundException": "the table no longer exists",
    "InvalidExportTimeException": "point-in-time recovery was enabled a moment ago: run again in some minutes",
    _CONFLICT: f"another export writes to that place in the bucket (run again once it has ended), or {_OTHER_OPTIONS}",
    **dict.fromkeys(_OF_A_TOKEN, _OTHER_OPTIONS),
}


def _named(table: SourceTable) -> str:
    """The table as options of a command of the AWS CLI."""
    region = (table.arn or "").split(":")[3:4]
    return f"{table.requested} --region {region[0]}" if region else table.requested


class _Conflict(TransientError):
    """Another export writes to the same place, unless DynamoDB means that this one was requested with other options."""


def _failed(error: AwsError, operation: str, resource: str, named: str = "TABLE") -> ReplicatorError:
    if error.code in _REFUSED:
        text = f"backfill: {operation} on {resource}: {_REFUSED[error.code].replace('TABLE', named)}"
        return _Conflict(text) if error.code == _CONFLICT else ConfigError(text)
    meant = failure(error, operation, resource)
    return ConfigError(f"backfill: {meant}") if type(meant) is ReplicatorError else meant


def _check(export: _Description, *, incremental: bool = False, existing: bool = False) -> None:
    """ConfigError unless it is an export of the wanted type, in DynamoDB JSON, that did not fail."""
    what = f"{'on_gap' if incremental else 'backfill'}: the export {export.ExportArn}"
    start_over = _start_over(existing=existing, incremental=incremental)
    if not incremental and export.ExportType not in (None, "FULL_EXPORT"):
        raise ConfigError(f"{what} is incremental: a backfill needs a full export. {start_over}")
    if incremental and export.ExportType != "INCREMENTAL_EXPORT":
        raise ConfigError(f"{what} is not incremental, as it was requested. {start_over}")
    if export.ExportFormat not in (None, "DYNAMODB_JSON"):
        raise ConfigError(
            f"{what} is in the format {export.ExportFormat}; only DYNAMODB_JSON can be read. {start_over}"
        )
    if export.ExportStatus == "FAILED":
        reason = f"{export.FailureCode}: {export.FailureMessage}"
        raise ConfigError(f"{what} failed ({reason}). {start_over}")


def check_time(at: float | None, started: float | None, state: ExportState) -> None:
    """ConfigError if the export may be older than the epoch's positions.

    Those of an existing export are of its own time. Others precede their request by ``SETTLED``, and both times here
    are DynamoDB's, so that no clocks are compared.
    """
    if at is None or started is None:
        raise TransientError("DescribeExport does not say the time of a complete export")
    earliest = started - SETTLED if state.at is None else state.at
    if at < earliest:
        raise ConfigError(
            f"backfill: the export is of {moment(at)}, which is before the positions in the stream that its items "
            f"would be added to ({moment(earliest)}): changes in between would be lost. Nothing of it was copied. "
            f"{_start_over(existing=state.at is not None, incremental=False)}"
        )


def _check_window(shown: _Window | None, wanted: Window) -> None:
    """ConfigError if the export lacks a part of the window that it was requested for."""
    start, end = (None, None) if shown is None else (shown.ExportFromTime, shown.ExportToTime)
    if start is None or end is None:
        raise TransientError("DescribeExport does not say the window of an incremental export")
    if start > wanted[0] or end < wanted[1]:
        raise ConfigError(
            f"on_gap: the export has the changes from {moment(start)} until {moment(end)}, but was requested from "
            f"{moment(wanted[0])} until {moment(wanted[1])}: some would be lost. Nothing of it was copied. {BACKFILL}"
        )


def moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _manifests(export: _Description, *, existing: bool) -> Generator[Call, bytes, Exported]:
    """The export's files. Only the names of the manifests and data files count: a prefix is documented ambiguously."""
    bucket, summary_key = export.S3Bucket or "", export.ExportManifest or ""
    incremental = export.ExportType == "INCREMENTAL_EXPORT"
    exported = Exported(
        export.ExportArn, bucket, owner=export.S3BucketOwner, incremental=incremental, existing=existing
    )
    start_over = exported.start_over
    folder = posixpath.dirname(summary_key)
    files_key = posixpath.join(folder, "manifest-files.json")
    try:
        summary = _SUMMARY.decode((yield from _object(exported, summary_key)))
        lines = (yield from _object(exported, files_key)).splitlines()
        listed = _FILES.decode(b"[" + b",".join(line for line in lines if line.strip()) + b"]")
    except DECODE_ERRORS as e:
        raise ConfigError(f"backfill: a manifest in s3://{bucket}/{folder} is damaged: {e}. {start_over}") from e
    if summary.output_format not in (None, "DYNAMODB_JSON"):
        raise ConfigError(
            f"backfill: the export in s3://{bucket}/{folder} is in the format {summary.output_format}; only "
            f"DYNAMODB_JSON can be read. {start_over}"
        )
    if summary.export_arn not in (None, export.ExportArn):
        raise ConfigError(
            f"backfill: s3://{bucket}/{summary_key} is of another export, {summary.export_arn}, than "
            f"{export.ExportArn}. Restore it and run again. {start_over}"
        )
    keys = [_data_key(folder, file.data_file_key, incremental=incremental) for file in listed]
    files = [File(key, file.item_count, file.md5_checksum) for key, file in zip(keys, listed, strict=True)]
    exported = replace(exported, files=files)
    if exported.items != summary.item_count:
        raise ConfigError(
            f"backfill: s3://{bucket}/{files_key} lists files with {exported.items:,} items, but manifest-summary.json "
            f"says {summary.item_count:,}: it is not complete. {start_over}"
        )
    return exported


def _data_key(folder: str, listed: str, *, incremental: bool) -> str:
    """The key of a data file. Those of incremental exports are in a folder that all share."""
    own = not incremental or f"{posixpath.basename(folder)}/data/" in listed
    return posixpath.join(folder if own else posixpath.dirname(folder), "data", posixpath.basename(listed))


def _object(place: Exported, key: str) -> Generator[Call, bytes, bytes]:
    parts: list[bytes] = []
    while not parts or len(parts[-1]) == CHUNK:
        parts.append((yield from _part(place, key, len(parts) * CHUNK)))
    return b"".join(parts)


def _part(at: Exported, key: str, offset: int) -> Generator[Call, bytes, bytes]:
    """Up to ``CHUNK`` bytes of an object in the export's bucket; none behind its end."""
    place, part = f"s3://{at.bucket}/{key}", f"bytes={offset}-{offset + CHUNK - 1}"
    owner = {} if at.owner is None else {"ExpectedBucketOwner": at.owner}
    try:
        return (yield Call("GetObject", {"Bucket": at.bucket, "Key": key, "Range": part, **owner}))
    except AwsError as e:
        if e.code == "InvalidRange":
            return b""
        if e.code in ("NoSuchKey", "NoSuchBucket"):
            raise ConfigError(
                f"backfill: {place} does not exist ({e.code}), but belongs to the export. Restore it and run again: "
                f"the backfill continues with it. {at.start_over}"
            ) from e
        error = denied(failure(e, "s3:GetObject", place))
        if type(error) is ReplicatorError:  # an archived object, a disabled key, …
            raise ConfigError(f"backfill: {error}. Correct that and run again: the backfill continues there") from e
        raise error from e


def denied(error: ReplicatorError) -> ReplicatorError:
    """``error``, with what a refusal of s3:GetObject may mean besides."""
    if type(error) is not NotPermitted or error.action != "s3:GetObject":
        return error
    also = "S3 says the same of an object that does not exist, unless s3:ListBucket on the bucket is allowed"
    return NotPermitted(error.problem, error.action, error.resource, f"{error.advice}. {also}")


@dataclass(frozen=True, slots=True)
class _Place:
    """A segment's cursor: the file it is at, and the items in its files before that one."""

    file: int
    items: int = 0

    @classmethod
    def of(cls, segment: int, state: SegmentState) -> _Place:
        return cls(segment) if state.cursor is None else cls(**orjson.loads(state.cursor))

    @property
    def cursor(self) -> dict[str, int]:
        return {"file": self.file, "items": self.items}


class _Corrupt(Exception):
    """A file is not what the manifest says."""


@dataclass(frozen=True, slots=True)
class _Segment:
    """A segment of an export. ``chance``: for backoff."""

    number: int
    export: Exported
    keys: KeySchema
    chance: random.Random


@dataclass(frozen=True, slots=True)
class _Verified:
    """A file that is the manifest's: the digests of its parts, and the only one itself if it has no others."""

    digests: Sequence[bytes]
    only: bytes | None


def read(
    export: Exported, keys: KeySchema, segment: int, state: SegmentState, chance: random.Random
) -> Generator[Call | ScanPage, Any, None]:
    """Yields calls and pages of a segment's files, from its cursor on. A failed step's page has ``waiting_for``.

    ConfigError, which names it, for a file that is missing or damaged: nothing of it is in a page.
    """
    reading, at, corrupt = _Segment(segment, export, keys, chance), _Place.of(segment, state), 0
    if at.file >= len(export.files):
        yield ScanPage(segment, before=at.items)
    while at.file < len(export.files):
        file = export.files[at.file]
        following = _Place(at.file + state.total, at.items + file.items)
        last = following.file >= len(export.files)
        try:
            yield from _pages(reading, file, at, None if last else following)
        except _Corrupt as e:
            corrupt += 1
            if corrupt < READS:
                continue
            raise ConfigError(
                f"backfill: s3://{export.bucket}/{file.key} is damaged: {e}. The backfill does not pass it. "
                f"Restore the file and run again. {export.start_over}"
            ) from e
        corrupt, at = 0, following


def _pages(
    segment: _Segment, file: File, at: _Place, following: _Place | None
) -> Generator[Call | ScanPage, Any, None]:
    """The pages of a file. The last one, which moves the cursor, comes once all of it was read.

    A target keeps the first of two documents with the same version, so what was read wrong could not be replaced by
    what is right later. Therefore the whole file is verified before any of it is used, and read again.
    """
    verified = yield from _verified(segment, file, at)
    reader, before = _FileReader(KeyReader(segment.keys), segment.export.incremental), at.items
    held: _Lines = [], 0
    for n, digest in enumerate(verified.digests):
        part = verified.only
        if part is None:
            part = yield from _retried(segment, file, n * CHUNK, at.cursor, before)
            if _digest(part) != digest:
                raise _Corrupt("it was changed while it was read")
        for page in reader.feed(part):
            yield ScanPage(segment.number, held[0], at.cursor, size=held[1], before=before)
            before += len(held[0])
            held = page
    for page in reader.end(file):
        yield ScanPage(segment.number, held[0], at.cursor, size=held[1], before=before)
        before += len(held[0])
        held = page
    cursor = None if following is None else following.cursor
    yield ScanPage(segment.number, held[0], cursor, size=held[1], before=before)


def _verified(segment: _Segment, file: File, at: _Place) -> Generator[Call | ScanPage, Any, _Verified]:
    """_Corrupt unless the file's checksum is the manifest's."""
    whole = hashlib.md5(usedforsecurity=False)
    digests: list[bytes] = []
    part, size = b"", CHUNK
    while size == CHUNK:
        part = yield from _retried(segment, file, len(digests) * CHUNK, at.cursor, at.items)
        size = len(part)
        whole.update(part)
        digests.append(_digest(part))
    if (found := base64.b64encode(whole.digest()).decode()) != file.md5:
        raise _Corrupt(f"its MD5 checksum is {found}, and the manifest's {file.md5}")
    return _Verified(digests, part if len(digests) == 1 else None)


def _digest(part: bytes) -> bytes:
    return hashlib.sha256(part).digest()


def _retried(
    segment: _Segment, file: File, offset: int, cursor: Mapping[str, Any], before: int
) -> Generator[Call | ScanPage, Any, bytes]:
    """A part of the file. If that fails, what came before it is not read again: a large file might never end.

    ``cursor``, ``before``: of the pages that say so.
    """
    failures = 0
    while True:
        try:
            part = yield from _part(segment.export, file.key, offset)
        except TransientError as e:
            failures += 1
            rest = backoff(failures, segment.chance, base=QUICKEST_BACKOFF, limit=LONGEST_BACKOFF)
            yield ScanPage(segment.number, cursor=cursor, rest=rest, waiting_for=str(e))
            continue
        if failures:
            yield ScanPage(segment.number, cursor=cursor, before=before)  # it no longer waits
        return part


_Items = list[tuple[Key, msgspec.Raw | bytes | None]]
_Lines = tuple[_Items, int]
"""Items with their keys, and the bytes they took. Without an image, the item was deleted."""


@dataclass(slots=True)
class _FileReader:
    """Decompresses a file and decodes its lines, in pieces of limited size. An empty file has no line and no gzip."""

    keys: KeyReader
    incremental: bool = False
    items: int = 0
    size: int = 0
    _rest: bytes = b""
    _page: _Lines = field(default_factory=lambda: ([], 0))
    _inflater: Any = field(default_factory=lambda: isal_zlib.decompressobj(wbits=31))

    def feed(self, part: bytes) -> Iterator[_Lines]:
        """Full pages, for the next ``part`` of the compressed file: items with their keys, and the bytes they take."""
        if not self.size and not GZIP.startswith(part[:2]):
            raise _Corrupt("it is not a gzip file")
        self.size += len(part)
        for start in range(0, len(part), PIECE):
            for data in self._inflated(memoryview(part)[start : start + PIECE]):
                lines = self._whole(data)
                if len(self._rest) > LONGEST_LINE:
                    raise _Corrupt(f"a line has more than {LONGEST_LINE:,} bytes, and no item is that large")
                if lines:
                    self._add(lines)
                if self._page[1] >= PAGE:
                    yield self._taken()

    def end(self, file: File) -> Iterator[_Lines]:
        """What is left: a last line need not end with a newline. _Corrupt unless all of the file was read."""
        if self.size and not self._inflater.eof:
            raise _Corrupt("it is not complete")
        if self._rest.strip():
            self._add(self._rest)
        if self.items != file.items:
            raise _Corrupt(f"it has {self.items:,} items, and the manifest says {file.items:,}")
        if self._page[1]:
            yield self._taken()

    def _inflated(self, piece: memoryview | bytes) -> Iterator[bytes]:
        data, most = b"", min(BLOCK, PAGE)
        while piece or len(data) == most:  # then more may be left, even of a piece that is used up
            if self._inflater.eof:
                if not piece:
                    return
                self._inflater = isal_zlib.decompressobj(wbits=31)  # gzip files may be concatenated
            try:
                data = self._inflater.decompress(piece, most)
            except isal_zlib.error as e:  # type: ignore[misc]  # a value in its stub
                raise _Corrupt(f"it cannot be decompressed: {e}") from e
            piece = self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail
            yield data

    def _whole(self, data: bytes) -> bytes:
        """The lines that end in ``data``, without the last newline; the rest is kept."""
        end = data.rfind(b"\n")
        if end < 0:
            self._rest += data
            return b""
        lines = b"".join((self._rest, memoryview(data)[:end]))
        self._rest = data[end + 1 :]
        return lines

    def _add(self, lines: bytes) -> None:
        items = self._decoded(lines)
        self.items += len(items)
        self._page[0].extend(items)
        self._page = self._page[0], self._page[1] + len(lines)

    def _taken(self) -> _Lines:
        page, self._page = self._page, ([], 0)
        return page

    def _decoded(self, lines: bytes) -> _Items:
        try:
            if self.incremental:
                changes = _CHANGES.decode_lines(lines)
                keys = self.keys.keyed([change.Keys for change in changes], "export")
                images = [
                    change.NewImage if bytes(change.NewImage) not in (b"", b"null") else None for change in changes
                ]
                return [(key, image) for (key, _), image in zip(keys, images, strict=True)]
            return self._items(lines)
        except (*DECODE_ERRORS, TransientError) as e:
            raise _Corrupt(f"a line is not an item in DynamoDB JSON: {e}") from e

    def _items(self, lines: bytes) -> _Items:
        """The items of lines of a full export.

        Lines as DynamoDB writes them are decoded once, for their keys, and cut between their items: a newline is in no
        string. Others take longer: they may have spaces, or further members.
        """
        if lines.startswith(_BEFORE) and lines.endswith(_BEHIND):
            images = lines.split(_BETWEEN)
            images[0] = images[0][len(_BEFORE) :]
            images[-1] = images[-1][: -len(_BEHIND)]
            with suppress(
                *DECODE_ERRORS, ValueError
            ):  # another number of lines; or the second reading says what is wrong
                decoded = self.keys.in_lines.decode_lines(lines)
                return [*zip(self.keys.each(map(_ITEM, decoded)), images, strict=True)]
        return [*self.keys.keyed([line.Item for line in _LINES.decode_lines(lines)], "export")]


def begun(state: ExportState, arn: str) -> ExportState:
    """The state once DynamoDB has named the export."""
    return replace(state, arn=arn)
