"""Rules 1 to 3: positions first, no holes, parents before children."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from msgspec import structs

from replicator.aws.client import Call
from replicator.change import Page, Record
from replicator.pipeline import lineage, stages
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.pipeline.discovery import Discovery
from replicator.pipeline.pipeline import Pipeline
from replicator.source import export, shard_reader, stream
from replicator.source.decoding import Records, RecordsDecoder
from replicator.source.stream import Stream
from replicator.state import ShardState
from tests.simulation.mutants.mutant import Patch, mutant
from tests.simulation.mutants.scenarios import (
    clock_steps,
    dying_exports,
    existing_exports,
    exporting,
    growing_sequence_numbers,
    has_at_timestamp,
    hours_skipped,
    spoiled_exports,
    streams_enabled_again,
    trims,
)
from tests.simulation.runs import Touched

Step = Generator[Call | Page, Any, Page]


@mutant("positions are taken when a reader opens", 1)
def late_positions(patch: Patch) -> None:
    right = shard_reader._place

    def latest(at: Any) -> dict[str, Any]:
        return {"ShardIteratorType": "LATEST"} if at.untouched and not at.state.whole else right(at)

    patch.setattr(shard_reader, "_place", latest)


@mutant("an epoch begins while its stream is being enabled", 1, shape=streams_enabled_again)
def positions_before_the_stream(patch: Patch) -> None:
    right = stream.describe_stream

    def at_once(arn: str, *, after: str | None = None) -> Generator[Call, bytes, stream.StreamPage]:
        page = yield from right(arn, after=after)
        status = "ENABLED" if page.StreamStatus == "ENABLING" else page.StreamStatus
        return structs.replace(page, StreamStatus=status)

    patch.setattr(stream, "describe_stream", at_once)


@mutant("an epoch reads the export of an earlier one, which is older than its positions", 1, shape=exporting)
def older_export(patch: Patch) -> None:
    patch.setattr(export, "token", lambda pipeline, table_id, *_: f"{pipeline} {table_id}")


@mutant("a file of an export counts as read from its first page on", 6, shape=dying_exports)
def unfinished_file(patch: Patch) -> None:
    right = export._pages

    def ahead(segment: Any, file: Any, at: Any, following: Any) -> Iterator[Any]:
        return right(segment, file, at if following is None else following, following)

    patch.setattr(export, "_pages", ahead)


@mutant("a file of an export is used whatever its checksum is", 5, shape=spoiled_exports)
def unverified_file(patch: Patch) -> None:
    right = export._verified

    def trusted(segment: Any, file: Any, at: Any) -> Generator[Any, Any, Any]:
        """The digests of whatever the file is now."""
        with suppress(export._Corrupt):
            return (yield from right(segment, file, at))
        parts: list[bytes] = []
        part = b"x" * export.CHUNK
        while len(part) == export.CHUNK:
            part = yield from export._retried(segment, file, len(parts) * export.CHUNK, at.cursor, at.items)
            parts.append(part)
        return export._Verified([export._digest(part) for part in parts], None)

    patch.setattr(export, "_verified", trusted)


@mutant(
    "after an existing export, shards that had closed before the listing are passed over", 1, shape=existing_exports
)
def closed_since_the_export(patch: Patch) -> None:
    patch.setattr(stages, "shards_since", lambda listed, since: stages.first_shards(listed, since))


@mutant("after an existing export, old shards that are listed late are passed over", 1, shape=existing_exports)
def late_since_the_export(patch: Patch) -> None:
    patch.setattr(Discovery, "_check_not_needed", lambda *_: None)


@mutant("the resume probe is skipped", 2, trims, 10_000)
def no_probe(patch: Patch) -> None:
    def open_at_what_is_left(at: Any) -> dict[str, Any]:
        at.expected = None
        return {"ShardIteratorType": "TRIM_HORIZON"}

    patch.setattr(shard_reader, "_place", open_at_what_is_left)
    patch.setattr(shard_reader, "_require_young", lambda *_: None)
    right = shard_reader._new_records

    def only_newer(stream: Stream, at: Any, records: Sequence[Record]) -> Sequence[Record]:
        last = int(at.last or 0)
        return right(stream, at, [r for r in records if int(r.sequence) > last])

    patch.setattr(shard_reader, "_new_records", only_newer)


@mutant("a late shard is opened at its oldest remaining record, whatever its age", 2, shape=hours_skipped)
def late_shards_at_what_is_left(patch: Patch) -> None:
    patch.setattr(shard_reader, "_require_young", lambda *_: None)
    right = shard_reader._place
    patch.setattr(
        shard_reader,
        "_place",
        lambda at: right(at) if at.expected is not None else {"ShardIteratorType": "TRIM_HORIZON"},
    )


@mutant("children open before their parents' end is stored", 3)
def children_first(patch: Patch) -> None:
    def all_unfinished(known: Mapping[str, Any]) -> set[str]:
        return {id for id, shard in known.items() if not shard.ended}

    patch.setattr(lineage, "readable", all_unfinished)


@mutant("an empty page is taken as the end of its shard", 3)
def empty_is_the_end(patch: Patch) -> None:
    right = shard_reader._advance

    def ends_at_nothing(stream: Stream, at: Any, answer: Records, started: float) -> Step:
        if not answer.records:
            answer, at.expected = replace(answer, next=None), None
        return right(stream, at, answer, started)

    patch.setattr(shard_reader, "_advance", ends_at_nothing)


@mutant("the records of a closed shard's last page are dropped", 3)
def last_page_dropped(patch: Patch) -> None:
    right = shard_reader._advance

    def forgets_the_last(stream: Stream, at: Any, answer: Records, started: float) -> Step:
        if answer.next is None:
            answer, at.expected = replace(answer, records=()), None
        return right(stream, at, answer, started)

    patch.setattr(shard_reader, "_advance", forgets_the_last)


@mutant("an expired iterator is replaced one record too far", 3)
def one_too_far(patch: Patch) -> None:
    right = shard_reader._new_records

    def skips_one(stream: Stream, at: Any, records: Sequence[Record]) -> Sequence[Record]:
        resumed = at.expected is not None and at.expected == at.last
        found = right(stream, at, records)
        return found[1:] if resumed else found

    patch.setattr(shard_reader, "_new_records", skips_one)


@mutant("positions are taken after the scan", 1)
def positions_after_the_scan(patch: Patch) -> None:
    right = Pipeline.openings

    def once_scanned(self: Pipeline) -> Iterator[tuple[str, ShardState]]:
        scanning = self.state is None or self.state.stage == stages.SCANNING
        return iter(()) if scanning else right(self)

    patch.setattr(Pipeline, "openings", once_scanned)
    late_positions.apply(patch)


@mutant("the scan is not consistent, and positions are taken when it starts", 1, has_at_timestamp, 10_000)
def inconsistent_scan(patch: Patch) -> None:
    right = Touched.call

    def eventually(self: Touched, operation: str, request: Mapping[str, Any]) -> bytes:
        return right(self, operation, {**request, "ConsistentRead": False} if operation == "Scan" else request)

    patch.setattr(Touched, "call", eventually)
    patch.setattr(shard_reader, "OVERLAP", 0.0)


@mutant("a shard's sequence numbers are compared as strings", 2, growing_sequence_numbers)
def compared_as_strings(patch: Patch) -> None:
    class Digits(str):
        def __le__(self, other: object) -> bool:
            return isinstance(other, str) and str.__le__(self, other)

    patch.setattr(shard_reader, "int", Digits, raising=False)


@mutant("stored times that lie in the future are believed", 2, shape=clock_steps)
def future_is_believed(patch: Patch) -> None:
    patch.setattr(CheckpointView, "discard_times_after", lambda self, now: None)


@mutant("a record's images, not its event, decide whether it is a removal", 7)
def removals_by_image(patch: Patch) -> None:
    right = RecordsDecoder.__call__

    def blind(self: RecordsDecoder, body: bytes) -> Records:
        found, images = right(self, body), self._images
        if images:
            self._images = False
            found = right(self, body.replace(b'"eventName":"REMOVE"', b'"eventName":""'))
            self._images = True
        return found

    patch.setattr(RecordsDecoder, "__call__", blind)


@mutant("a change without its new image is taken as a removal", 7)
def imageless_is_removed(patch: Patch) -> None:
    right = RecordsDecoder.__call__

    def lenient(self: RecordsDecoder, body: bytes) -> Records:
        self._images = False
        return right(self, body)

    patch.setattr(RecordsDecoder, "__call__", lenient)


@mutant("an endpoint that cannot list a shard's children is taken as one without the stream", 3)
def children_must_be_named(patch: Patch) -> None:
    patch.setattr(stream, "_FILTER_REJECTED", frozenset())
