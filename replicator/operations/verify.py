"""Compares a source table with its copy while both change: the source's items with their documents, and the target's
documents with their items."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from typing import Any, Protocol

import orjson

from replicator.aws.batch_get import BatchReader
from replicator.aws.boto import connect
from replicator.aws.client import Call, Client, completed
from replicator.batch import DocumentId
from replicator.change import ScanPage
from replicator.checkpoints.contract import Checkpoints, Claimed
from replicator.checkpoints.presence import check_known
from replicator.config.settings import Config
from replicator.engine import preexisting
from replicator.engine.assembly import ends, introduce, target_tables
from replicator.engine.binding import check_start
from replicator.engine.context import Environment
from replicator.engine.retry import RetryPolicy, Stopped
from replicator.engine.run import tune_allocator
from replicator.engine.startup import RESUMING, made_again
from replicator.errors import ConfigError, ReplicatorError
from replicator.hooks import loading
from replicator.hooks.hook import DocumentMapping, Hook
from replicator.key import Key, key_text
from replicator.operations.pass_record import Part, PassRecord, Voided
from replicator.operations.repair import Announced, Repairs
from replicator.pipeline import lanes
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.pipeline.coordination import writers
from replicator.pipeline.lanes import NO_REPAIR
from replicator.pipeline.parked import item_of
from replicator.pipeline.progress import UNINVOKED, invoked
from replicator.source.decoding import KeyReader
from replicator.source.scan import ReadBudget, Scanned, scan
from replicator.source.table import SourceTable, describe_table
from replicator.state import (
    FULL,
    FULL_SCOPE,
    SAMPLE,
    Entry,
    Heartbeat,
    PipelineState,
    SegmentState,
    ShardState,
    Verified,
    decode,
)
from replicator.target.contract import Table, Target, marks_of
from replicator.target.verification import CursorExpired, Verifiable, Walked, cannot_compare
from replicator.verification.differences import Finding, Positions, has_scanned, positions
from replicator.verification.examiner import Examiner, Floor, Image
from replicator.verification.verifier import Result, Verifier
from replicator.version import version

SETTLE_INTERVAL = 1.0  # seconds between reads of the positions, while there are candidates
SAVE_INTERVAL = 10.0  # seconds between saves of the progress; without candidates, also between reads of the positions
POLL = 0.2  # seconds
KEYS, WHOLE_ITEMS = 2000, 160  # that are looked up at once: 64 MB, of the largest items that there are
ITEMS = 2000  # of a page that are compared at once
FEWEST = 4  # segments of a scan
PER_SEGMENT = 50_000  # items of a segment
SAMPLED = 20  # segments of a sample at least
FINEST = 1_000_000  # segments of a scan at most
RESUMABLE = 86_400.0  # seconds since its last save for which a pass can be resumed: what it compared is as old


class Unconfirmed(ReplicatorError):
    """It cannot be decided at present whether the copy equals the source."""

    exit_code = 7


@dataclass(frozen=True, slots=True)
class Request:
    """What to verify. ``share``: of the table, 1.0 for all of it. ``key``: a single item, as given.

    ``resume``: continue a pass that did not end. ``read_units``: read capacity units per second that may be used.
    """

    share: float = 1.0
    key: Callable[[SourceTable], Key] | None = None
    resume: bool = False
    repair: bool = False
    read_units: float | None = None

    @property
    def is_sample(self) -> bool:
        return self.share < 1.0 and self.key is None

    @property
    def scope(self) -> str:
        if self.key is not None:
            return "key"
        return FULL_SCOPE if self.share >= 1.0 else f"{self.share:.10%}".rstrip("%").rstrip("0").rstrip(".") + " %"


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a pass. ``done``: share of the work, None if unknown; ``pending``: candidates to read again."""

    phase: str
    items: int
    documents: int
    done: float | None
    pending: int
    differences: int


class Report(Announced, Protocol):
    """Receives what a pass finds."""

    def result(self, result: Result) -> None: ...
    def progress(self, progress: Progress) -> None: ...


class Paused(Exception):
    """The pass must not go on at present. It can be resumed later."""


class Watch:
    """Learns of what a pass reads, and may end it by raising ``Paused``. This one never does."""

    def looked(self, entries: Sequence[Entry], current: Positions) -> None:
        """The checkpoints were read. What was found so far is not decided yet."""

    def voided(self) -> None:
        """The pass is no longer recorded, because it proves nothing of changes that were discarded meanwhile."""


@dataclass(slots=True)
class Tally:
    """What a pass has found so far. ``items``: read from the source; ``walked``: documents found in the target."""

    items: int = 0
    documents: int = 0
    walked: int = 0
    missing: int = 0
    extra: int = 0
    different: int = 0
    repaired: int = 0
    parked: int = 0
    unconfirmed: int = 0
    kept: int = 0

    @property
    def differences(self) -> int:
        return self.missing + self.extra + self.different

    @property
    def exit_code(self) -> int:
        if self.differences > self.repaired or self.parked:
            return 6
        return 7 if self.unconfirmed else 0

    def count(self, result: Result) -> None:
        if result.outcome == "difference":
            kind = result.finding.kind
            setattr(self, kind, getattr(self, kind) + 1)
        else:
            setattr(self, result.outcome, getattr(self, result.outcome) + 1)

    def take_back(self, finding: Finding) -> None:
        """A difference is looked at again, and counted again if it is one then."""
        kind = finding.kind
        setattr(self, kind, getattr(self, kind) - 1)


@dataclass(frozen=True, slots=True)
class Ends:
    """Source and target, and how to read them."""

    config: Config
    client: Client
    source: SourceTable
    target: Target
    comparing: Verifiable
    checkpoints: Checkpoints
    tables: Mapping[str, Table]
    mapping: DocumentMapping
    state: PipelineState

    @property
    def names_of_existence(self) -> Sequence[str]:
        """The attributes that tell whether an item exists: its key, and what marks tombstones of another pipeline."""
        marks = marks_of(self.target)
        return (*self.source.keys.names, *(() if marks is None else (marks.deleted,)))


def checked_tables(
    config: Config, hook: Hook | None, client: Client, source: SourceTable, target: Target, checkpoints: Checkpoints
) -> Sequence[Table]:
    """The tables of a target, which is told of the source. ConfigError if the config is not the pipeline's."""
    introduce(config, target, source, client)
    tables = target_tables(config, source, hook)
    check_start(
        checkpoints,
        lambda view: preexisting.inspect(view, source, target, tables, hook),
        RESUMING,
        lambda _: None,  # nothing begins
    )
    return tables


@contextlib.contextmanager
def opened(config: Config, hook: Hook | None) -> Iterator[Ends]:
    """Both ends of a pipeline that has run. ConfigError if the config is not the pipeline's, GapFound if the source is
    another table by now."""
    client = connect(config.source)
    with ends(config) as (target, checkpoints):
        check_known(config.pipeline, checkpoints, checkpoints.read())
        source = describe_table(client, config.source.table)
        tables = checked_tables(config, hook, client, source, target, checkpoints)
        state = scanned_state(checkpoints)
        if gap := made_again(state, source):
            raise gap
        yield Ends(
            config,
            client,
            source,
            target,
            comparing(config, target),
            checkpoints,
            {table.name: table for table in tables},
            DocumentMapping(hook, tuple(table.name for table in tables)),
            state,
        )


def check_repairs(claimed: Claimed) -> None:
    """ConfigError where AWS Lambda follows the stream, whatever engine this config has."""
    if lanes.is_handed_over(CheckpointView(claimed).slots, claimed.revision):
        raise ConfigError(NO_REPAIR)


def comparing(config: Config, target: Target) -> Verifiable:
    if not isinstance(target, Verifiable):
        raise ConfigError(f"target.type: {cannot_compare(config.target.type, target)}")
    return target


def scanned_state(checkpoints: Checkpoints) -> PipelineState:
    """The pipeline's state. Unconfirmed while a backfill explains any difference."""
    state = checkpoints.pipeline()
    if state is None or not has_scanned(state):
        raise Unconfirmed(
            "the backfill of this pipeline has not ended, so the copy is not complete yet; verify when "
            "`replicator status` shows the phase live"
        )
    return state


def verify(config: Config, request: Request, report: Report, environment: Environment) -> Tally:
    """One pass. Ends early, with what was found so far, once ``environment.stop`` is set."""
    hook = loading.load(config.transform, config.base) if config.transform is not None else None
    with opened(config, hook) as both:
        if request.repair:
            check_repairs(both.checkpoints.read())
        record = PassRecord(both.checkpoints, FULL if request.share >= 1.0 else SAMPLE)
        tune_allocator()
        return examine(both, request, report, environment, record)


def examine(
    both: Ends,
    request: Request,
    report: Report,
    environment: Environment,
    record: PassRecord,
    watch: Watch | None = None,
) -> Tally:
    """The same over both ends that are open. What is done is recorded whenever the pass ends early."""
    source = Source(both, request.read_units, environment)
    retrying = RetryPolicy(environment.stop, report.waiting, environment.now, environment.random)
    with contextlib.closing(source), Repairs(both, report, wanted=request.repair, retrying=retrying) as repairs:
        one = Pass(both, request, report, environment, source, repairs, record, watch or Watch())
        one.run()
        return one.tally


@dataclass(slots=True)
class Source:
    """Reads the source's items by key, within the budget. Stopped if that takes longer than the pass may.

    What is read may be of another table that got this one's name until ``check_same`` has returned.
    """

    both: Ends
    read_units: float | None
    environment: Environment
    budget: ReadBudget = field(init=False)
    table: Scanned = field(init=False)
    _reader: BatchReader = field(init=False)
    _keys: KeyReader = field(init=False)

    def __post_init__(self) -> None:
        environment, source = self.environment, self.both.source
        self.budget = ReadBudget(self.read_units)
        self.table = Scanned(
            self.both.config.source.table, source.keys, environment.random, environment.monotonic, source.identity
        )
        self._reader = BatchReader(self.both.client, self.both.config.source.table)
        self._keys = KeyReader(self.both.source.keys)

    def read(self, keys: Collection[Key], names: Sequence[str] = ()) -> Mapping[Key, Image]:
        self._wait()  # before, because what is read is compared at once: it may change
        schema, before = self.both.source.keys, self._reader.units
        images = self._reader.read([schema.typed(key) for key in keys], names)
        self.budget.spend(self._reader.units - before, self.environment.monotonic())
        return {self._keys.of(image): image for image in images}

    def check_same(self) -> None:
        """GapFound or ConfigError unless all that was read so far is of the pipeline's table."""
        completed(self.both.client, self.table.check_same())

    def _wait(self) -> None:
        rest = self.budget.spend(0.0, self.environment.monotonic())
        if rest > 0 and self.environment.stop.wait(rest):
            raise Stopped

    def close(self) -> None:
        self._reader.close()


class Pass:
    """One pass: scans the source's segments, walks the target's tables, and settles the candidates in between."""

    def __init__(
        self,
        both: Ends,
        request: Request,
        report: Report,
        environment: Environment,
        source: Source,
        repairs: Repairs,
        record: PassRecord,
        watch: Watch,
    ) -> None:
        self._both, self._request, self._report, self._source = both, request, report, source
        self._repairs, self._record, self._watch = repairs, record, watch
        self._environment, self._stop = environment, environment.stop
        self._now, self._monotonic = environment.now, environment.monotonic
        self._retrying = RetryPolicy(self._stop, report.waiting, self._now, environment.random)
        floor = Floor(version(both.state.complete, 0), both.state.epoch)
        self._examiner = Examiner(
            both.mapping, both.tables, both.comparing, floor, environment.hook_limit, keys=both.source.keys
        )
        expiring = both.config.ttl_deletes == "ignore"
        self._verifier = Verifier(
            self._examiner,
            source.read,
            lambda keys: source.read(keys, both.names_of_existence),
            self._now,
            self._monotonic,
            check_same=source.check_same,
            keeps_expired=expiring,
        )
        self.tally = Tally()
        self._examiner.forgot_hashed = request.share < 1.0  # those of items that the sample does not read are unknown
        self._settled_at = self._looked_at = self._saved_at = -math.inf
        self._records = request.key is None
        self._note = self._first_note()
        self._repaired_before = self.tally.repaired
        self._parts = {name: Part(name, cursor) for name, cursor in self._note.cursors.items()}
        self._phase = "reading the source"

    def run(self) -> None:
        """Until it ends, or is stopped or paused: then what is done is recorded."""
        try:
            self._work()
        except Stopped:
            self._leave()
        except Paused:
            self._leave()
            raise

    def _work(self) -> None:
        self._save()
        self._look()
        if self._request.key is not None:
            self._one(self._request.key(self._both.source))
        else:
            self._scan()
            self._save()
            self._walk()
        while (self._verifier.pending or self._repairs.pending) and not self._stop.is_set():
            self._phase = "waiting for changes on their way"
            self._settle()
            self._stop.wait(POLL)
        if self._stop.is_set():
            raise Stopped
        self._retrying(self._source.check_same)
        self._save(ended=self._now())

    # The source's items

    def _scan(self) -> None:
        left = {n for n in self._segments() if n not in self._note.segments}
        steps = self._environment.scheduler(self._both.client)
        steps.full = lambda: self._verifier.full
        with contextlib.closing(steps):
            waiting = iter(sorted(left))
            running: set[int] = set()
            while left and not self._stop.is_set():
                while len(running) < FEWEST * 2 and (segment := next(waiting, None)) is not None:
                    running.add(segment)
                    steps.add(str(segment), self._segment_scan(segment))
                result = steps.get(POLL)
                if result is not None:
                    if result.error is not None:
                        raise result.error
                    if result.ended:
                        running.discard(int(result.name))
                        left.discard(int(result.name))
                    elif isinstance(result.value, ScanPage):
                        self._page(result.value)
                        rest = self._source.budget.spend(result.value.read_units, self._monotonic())
                        steps.again(result.name, max(result.value.rest, rest))
                self._note = replace(self._note, done=self._scanned_share())
                self._settle()

    def _segments(self) -> Sequence[int]:
        if self._request.share >= 1.0:
            return range(self._note.total)
        count = max(1, round(self._note.total * self._request.share))
        return random.Random(self._note.started).sample(range(self._note.total), count)

    def _segment_scan(self, segment: int) -> Generator[Call | ScanPage, Any, None]:
        """Its end is not checked: the end of the pass is, and there may be many small segments."""
        part = self._part(f"segment:{segment}")
        state = SegmentState(total=self._note.total, cursor=part.cursor)
        return scan(self._source.table, segment, state, check_end=False)

    def _part(self, name: str) -> Part:
        if name not in self._parts:
            self._parts[name] = Part(name)
        return self._parts[name]

    def _scanned_share(self) -> float:
        """The share of the work that is done, as far as the source's count of its items tells."""
        expected = max(1.0, self._both.source.items * self._request.share)
        return max(self._note.done, 0.5 * min(0.99, self.tally.items / expected))

    def _page(self, page: ScanPage) -> None:
        if page.waiting_for is not None:
            self._report.waiting(page.waiting_for)
            return
        part, at = self._part(f"segment:{page.segment}"), self._now()
        items = [(key, image) for key, image in page.items if image is not None]
        before = self._examiner.documents
        for start in range(0, len(items), ITEMS):
            some = items[start : start + ITEMS]
            self._take(partial(self._verifier.scanned, some, at, part.next_origin))
            self._make_room()
        documents = self._examiner.documents - before
        self.tally.items += len(page.items)
        self.tally.documents += documents
        cursor = None if page.cursor is None else orjson.dumps(page.cursor).decode()
        part.read(cursor, len(page.items), documents)

    # The target's documents

    def _walk(self) -> None:
        self._phase = "reading the target"
        names = list(self._both.tables)
        for number, name in enumerate(names):
            if name in self._note.tables:
                continue
            estimate = max(1, self.tally.documents // len(names))
            part = self._part(f"table:{name}")
            walked = estimate * max(0.0, (self._note.done - 0.5) * 2 * len(names) - number)  # if the pass is resumed
            for piece in self._pieces(self._both.tables[name], part.cursor):
                walked += len(piece.ids)
                self.tally.walked += len(piece.ids)
                self._look_for(name, piece, part)
                share = (number + min(0.99, walked / estimate)) / len(names)
                self._note = replace(self._note, done=max(self._note.done, 0.5 + 0.5 * share))
                self._settle()

    def _look_for(self, name: str, piece: Walked, part: Part) -> None:
        """Look for the items of a piece's documents, in portions that are done one by one: reading them takes time."""
        size, at = looked_up_at_once(self._both.mapping.hook, self._request.read_units), 0
        ids = self._verifier.unknown(name, piece.ids)
        wanted = ids if self._request.share >= 1.0 else [id for id in ids if self._is_sampled(id)]
        for start in range(0, len(wanted), size):
            portion = wanted[start : start + size]
            self._take(partial(self._verifier.walked, name, portion, part.next_origin))
            if piece.behind is not None:
                at = piece.ids.index(portion[-1], at)
                part.read(piece.behind(at))
            self._make_room()
        part.read(piece.cursor)

    def _pieces(self, table: Table, cursor: str | None, within: DocumentId = ()) -> Iterator[Walked]:
        """What is behind ``cursor``, or all where it has expired."""
        while not self._stop.is_set():
            try:
                piece = self._retrying(lambda c=cursor: self._both.comparing.walk(table, c, within))  # type: ignore[misc]
            except CursorExpired:
                cursor = None
                continue
            yield piece
            if (cursor := piece.cursor) is None:
                return

    def _is_sampled(self, id: DocumentId) -> bool:
        text = repr((self._note.started, id)).encode(errors="surrogatepass")
        return int.from_bytes(blake2b(text, digest_size=8).digest()) / 2**64 < self._request.share

    # One item

    def _one(self, key: Key) -> None:
        verifier, own = self._verifier, self._both.mapping.own_ids
        self._take(lambda: verifier.look_at(key, "key"))
        within: DocumentId = (key_text(key),) if own else key
        for name, table in self._both.tables.items():
            for piece in self._pieces(table, None, within):
                if piece.ids:
                    self._take(partial(self._verifier.walked, name, piece.ids, f"table:{name}"))
                    self.tally.documents += len(piece.ids)
        self.tally.items = 1

    # Candidates

    def _make_room(self) -> None:
        """Settle candidates, until another portion may be compared. Stopped if the pass must end before that."""
        self._settle()
        while self._verifier.full and not self._stop.is_set():
            self._stop.wait(POLL)
            self._settle()
        if self._stop.is_set():
            raise Stopped

    def _settle(self) -> None:
        now = self._monotonic()
        if now - self._settled_at < SETTLE_INTERVAL:
            return
        self._settled_at = now
        if self._verifier.pending or self._repairs.waits or now - self._looked_at >= SAVE_INTERVAL:
            self._look()
        self._repairs.flush(self._verifier)
        for finding in self._repairs.changed:
            self.tally.take_back(finding)
        self.tally.repaired = self._repaired_before + self._repairs.repaired
        if now - self._saved_at >= SAVE_INTERVAL:
            self._save()
        self._report.progress(
            Progress(
                self._phase,
                self.tally.items,
                self.tally.documents,
                None if self._request.key else self._note.done,
                self._verifier.pending,
                self.tally.differences,
            )
        )

    def _look(self) -> None:
        """Read the checkpoints, and settle the candidates that are due."""
        self._looked_at = self._monotonic()
        entries = self._retrying(lambda: self._both.checkpoints.read().entries)
        self._verifier.parked = parked_items(entries)
        current = positions_of(entries, self._both.state.epoch, self._now())
        self._watch.looked(entries, current)
        look = self._verifier.wait if self._repairs.waits else self._verifier.settle
        self._take(lambda: look(current))

    def _take(self, results: Callable[[], Iterable[Result]]) -> None:
        """Count and report each result as it comes: what comes before a failure does not come again."""
        self._retrying(lambda: self._taken(results()))

    def _taken(self, results: Iterable[Result]) -> None:
        for result in results:
            self.tally.count(result)
            self._report.result(result)
            if result.outcome == "difference":
                self._note = replace(self._note, found=self._now())
                self._repairs.offer(result)

    # What is recorded

    def _first_note(self) -> Verified:
        now, request, state = self._now(), self._request, self._both.state
        if request.resume:
            stored = self._record.unfinished()
            if reason := not_resumable(stored, self._both, request.scope, now):
                raise ConfigError(f"--resume: {reason}; start one without --resume")
            assert stored is not None
            self._record.resume(stored)
            self.tally = Tally(stored.items, stored.documents, 0, 0, 0, stored.differences, stored.repaired)
            self.tally.parked, self.tally.unconfirmed = stored.parked, stored.unconfirmed
            self._examiner.forgot_hashed |= stored.hashed
            return stored
        items = max(self._both.source.items, 1)
        total = max(FEWEST, items // PER_SEGMENT)
        if request.share < 1.0:
            total = max(total, items // 1000, math.ceil(SAMPLED / request.share))
        return Verified(
            now,
            now,
            state.epoch,
            request.scope,
            min(total, FINEST),
            hook=state.hook,
            ttl_deletes=self._both.config.ttl_deletes,
            seen=self._record.seen() if self._records else None,
        )

    def _save(self, ended: float | None = None) -> None:
        """Record what is done, and with ``ended`` that all is."""
        if not self._records:
            return
        self._saved_at = self._monotonic()
        note = self._noted(ended)
        if note is None:
            return
        record = self._record.save if ended is None else self._record.end
        try:
            self._retrying(lambda: record(note))
        except Voided:
            self._records = False
            self._watch.voided()

    def _leave(self) -> None:
        """Record what is done before the pass ends early, unless the checkpoints cannot be reached now."""
        note = self._noted(None) if self._records else None
        if note is not None:
            with contextlib.suppress(ReplicatorError, Voided):
                self._record.save(replace(note, left=True))

    def _noted(self, ended: float | None) -> Verified | None:
        """What to record: segments, tables and pieces of them of which no candidate is left.

        None if there is nothing new to record: candidates of a repair that came too late are of no piece.
        """
        origins, tally, note = self._verifier.origins(), self.tally, self._note
        if "repair" in origins:
            return None
        for part in self._parts.values():
            done = part.take_done(origins)
            items, documents = sum(p.items for p in done), sum(p.documents for p in done)
            note = replace(note, items=note.items + items, documents=note.documents + documents)
        ended_parts = [name for name, part in self._parts.items() if part.done]
        for name in ended_parts:
            del self._parts[name]
            kind, _, rest = name.partition(":")
            if kind == "table":
                note = replace(note, tables=(*note.tables, rest))
            else:
                note = replace(note, segments=(*note.segments, int(rest)))
        self._note = replace(
            note,
            updated=self._now(),
            cursors={name: part.cursor for name, part in self._parts.items() if part.cursor is not None},
            differences=tally.differences,
            repaired=tally.repaired,
            parked=tally.parked,
            unconfirmed=tally.unconfirmed,
            ended=ended,
            done=1.0 if ended is not None else note.done,
            hashed=self._examiner.has_hashed,
            left=False,
        )
        return self._note


def looked_up_at_once(hook: Hook | None, read_units: float | None) -> int:
    """How many items: they are held in memory, and read in a few seconds, as candidates are not to wait for long."""
    most = KEYS if hook is None else WHOLE_ITEMS  # without a hook, only the keys of items are read
    return most if read_units is None else max(1, min(most, math.ceil(read_units * SAVE_INTERVAL)))


_HASHED = (
    "the unfinished pass came across documents whose ids only have a hash of their item's key, and what it has seen of "
    "those is not stored"
)


def not_resumable(stored: Verified | None, both: Ends, scope: str, now: float) -> str:
    """Why the pass cannot be resumed; empty if it can."""
    if stored is None or stored.epoch != both.state.epoch:
        return "there is no unfinished pass of this epoch"
    if stored.hook != both.state.hook:
        return "the hook has changed since that pass began"
    if stored.ttl_deletes != both.config.ttl_deletes:
        return "ttl_deletes has changed since that pass began"
    if stored.scope != scope:
        return f"the unfinished pass is of scope {stored.scope}, not {scope}"
    if now - stored.updated > RESUMABLE:
        return (
            f"the unfinished pass was left {(now - stored.updated) / 3600:,.0f} hours ago, so it proves little of today"
        )
    if stored.hashed and scope == FULL_SCOPE:
        return _HASHED
    return ""


def parked_items(entries: Sequence[Entry]) -> frozenset[str]:
    """The key texts of the parked items."""
    return frozenset(item_of(e.id) for e in entries if e.kind == "parked")


def positions_of(entries: Sequence[Entry], epoch: int, now: float) -> Positions:
    """How far the pipeline is stored. Behind AWS Lambda a shard without records moves with the schedule only."""
    values: dict[str, dict[str, Any]] = {"pipeline": {}, "shard": {}, "pulse": {}, "owner": {}}
    for e in entries:
        if e.kind in values:
            values[e.kind][e.id] = decode(e.kind, e.id, e.text)
    slots = writers(entries) - {""}
    by_lambda = lanes.followed(slots)
    state, heartbeat = values["pipeline"].get(""), values["pulse"].get("")
    heartbeat = invoked(values["pulse"], now, values["owner"].get("")) if by_lambda else heartbeat
    assert state is None or isinstance(state, PipelineState)
    assert heartbeat is None or isinstance(heartbeat, Heartbeat)
    shards: dict[str, ShardState] = values["shard"]
    workers = [values["pulse"][slot] for slot in slots if slot in values["pulse"]]
    found = positions(state, epoch, shards, heartbeat, now, workers)
    return replace(found, patience=UNINVOKED) if by_lambda else found
