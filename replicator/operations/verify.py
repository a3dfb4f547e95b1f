"""Compares a source table with its copy while both change: the source's items with their documents, and the target's
documents with their items."""

from __future__ import annotations

import contextlib
import math
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Protocol

from replicator.aws.batch_get import BatchReader
from replicator.aws.boto import connect
from replicator.aws.client import Client
from replicator.aws.threaded import calls_of
from replicator.batch import DocumentId
from replicator.change import ScanPage
from replicator.checkpoints.contract import Checkpoints
from replicator.checkpoints.presence import check_known
from replicator.config.settings import Config
from replicator.engine import preexisting
from replicator.engine.assembly import ends, introduce, target_tables
from replicator.engine.binding import check_start
from replicator.engine.retry import RetryPolicy
from replicator.engine.scheduler import Scheduler
from replicator.engine.startup import RESUMING
from replicator.errors import ConfigError, ReplicatorError
from replicator.hooks import loading
from replicator.hooks.hook import DocumentMapping
from replicator.hooks.time_limit import HookLimit
from replicator.key import Key, key_text
from replicator.operations.repair import Announced, Repairs
from replicator.pipeline.parked import item_of
from replicator.source.decoding import KeyReader
from replicator.source.scan import ReadBudget, Scanned, scan
from replicator.source.table import SourceTable, describe_table
from replicator.state import (
    Entry,
    Heartbeat,
    PipelineState,
    Save,
    SegmentState,
    ShardState,
    Verified,
    decode,
    encode,
)
from replicator.target.contract import Table, Target
from replicator.target.verification import CursorExpired, Verifiable
from replicator.verification.differences import Positions, has_scanned, positions
from replicator.verification.examiner import Examiner, Floor, Image
from replicator.verification.verifier import Result, Verifier
from replicator.version import version

SETTLE_INTERVAL = 1.0  # seconds between reads of the positions
SAVE_INTERVAL = 10.0  # seconds between saves of the progress
POLL = 0.2  # seconds
FEWEST = 4  # segments of a scan
PER_SEGMENT = 50_000  # items of a segment: what a pass that is resumed repeats at most
SAMPLED = 20  # segments of a sample at least
FINEST = 1_000_000  # segments of a scan at most


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
    def scope(self) -> str:
        if self.key is not None:
            return "key"
        return "full" if self.share >= 1.0 else f"{self.share:.10%}".rstrip("%").rstrip("0").rstrip(".") + " %"


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


@contextlib.contextmanager
def opened(config: Config) -> Iterator[Ends]:
    """Both ends of a pipeline that has run. ConfigError if the config is not the pipeline's."""
    hook = loading.load(config.transform, config.base) if config.transform is not None else None
    client = connect(config.source)
    with ends(config) as (target, checkpoints):
        check_known(config.pipeline, checkpoints, checkpoints.read())
        source = describe_table(client, config.source.table)
        introduce(config, target, source, client)
        tables = target_tables(config, source, hook)
        check_start(
            checkpoints,
            lambda view: preexisting.inspect(view, source, target, tables, hook),
            RESUMING,
            lambda _: None,  # verify begins no epoch
        )
        yield Ends(
            config,
            client,
            source,
            target,
            comparing(config, target),
            checkpoints,
            {table.name: table for table in tables},
            DocumentMapping(hook, tuple(table.name for table in tables)),
            scanned_state(checkpoints),
        )


def comparing(config: Config, target: Target) -> Verifiable:
    if not isinstance(target, Verifiable):
        raise ConfigError(
            f"target.type: {config.target.type} cannot compare documents; its connector would have to implement "
            "replicator.target.verification.Verifiable"
        )
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


def verify(config: Config, request: Request, report: Report, stop: threading.Event) -> Tally:
    """One pass. Stops early, with what was found so far, once ``stop`` is set."""
    with opened(config) as both:
        source = Source(both, request.read_units)
        with contextlib.closing(source), Repairs(both, report, wanted=request.repair) as repairs:
            one = Pass(both, request, report, stop, source, repairs)
            one.run()
            return one.tally


@dataclass(slots=True)
class Source:
    """Reads the source's items by key, within the budget."""

    both: Ends
    read_units: float | None
    budget: ReadBudget = field(init=False)
    _reader: BatchReader = field(init=False)
    _keys: KeyReader = field(init=False)

    def __post_init__(self) -> None:
        self.budget = ReadBudget(self.read_units)
        self._reader = BatchReader(self.both.client, self.both.config.source.table)
        self._keys = KeyReader(self.both.source.keys)

    def read(self, keys: Collection[Key], names: Sequence[str] = ()) -> Mapping[Key, Image]:
        schema, before = self.both.source.keys, self._reader.units
        images = self._reader.read([schema.typed(key) for key in keys], names)
        rest = self.budget.spend(self._reader.units - before, time.monotonic())
        if rest > 0:
            time.sleep(rest)
        return {self._keys.of(image): image for image in images}

    def close(self) -> None:
        self._reader.close()


class Pass:
    """One pass: scans the source's segments, walks the target's tables, and settles the candidates in between."""

    def __init__(
        self, both: Ends, request: Request, report: Report, stop: threading.Event, source: Source, repairs: Repairs
    ) -> None:
        self._both, self._request, self._report, self._stop, self._source = both, request, report, stop, source
        self._repairs = repairs
        self._random = random.Random()
        self._retrying = RetryPolicy(stop, report.waiting, time.time, self._random)
        floor = Floor(version(both.state.complete, 0), both.state.epoch)
        limit = HookLimit(both.config.hook_timeout)
        self._examiner = Examiner(both.mapping, both.tables, both.comparing, floor, limit)
        expiring = both.config.ttl_deletes == "ignore"
        self._verifier = Verifier(
            self._examiner,
            source.read,
            lambda keys: source.read(keys, both.source.keys.names),
            time.time,
            time.monotonic,
            keeps_expired=expiring,
        )
        self.tally = Tally()
        self._examiner.forgot_hashed = request.share < 1.0  # those of items that the sample does not read are unknown
        self._settled_at = self._saved_at = -math.inf
        self._noted = False
        self._note = self._first_note()
        self._phase, self._share = "reading the source", 0.0
        self._by_segment: dict[int, tuple[int, int]] = {}  # items and documents that this part of the pass compared

    def run(self) -> None:
        self._verifier.parked, _ = self._retrying(self._positions)
        if self._request.key is not None:
            self._one(self._request.key(self._both.source))
        else:
            self._scan()
            self._walk()
        while (self._verifier.pending or self._repairs.pending) and not self._stop.is_set():
            self._phase = "waiting for changes on their way"
            self._settle()
            self._stop.wait(POLL)
        self._finish()

    # The source's items

    def _scan(self) -> None:
        wanted = [n for n in self._segments() if n not in self._note.segments]
        table = Scanned(self._both.config.source.table, self._both.source.keys, self._random)
        steps = Scheduler(calls_of(self._both.client))
        steps.full = lambda: self._verifier.full
        with contextlib.closing(steps):
            waiting, left = iter(wanted), set(wanted)
            running: set[int] = set()
            while left and not self._stop.is_set():
                while len(running) < FEWEST * 2 and (segment := next(waiting, None)) is not None:
                    running.add(segment)
                    steps.add(str(segment), scan(table, segment, SegmentState(total=self._note.total)))
                result = steps.get(POLL)
                if result is not None:
                    if result.error is not None:
                        raise result.error
                    if result.ended:
                        running.discard(int(result.name))
                        left.discard(int(result.name))
                        self._ended(segment=int(result.name))
                    elif isinstance(result.value, ScanPage):
                        self._page(result.value)
                        rest = self._source.budget.spend(result.value.read_units, time.monotonic())
                        steps.again(result.name, max(result.value.rest, rest))
                self._share = 0.5 * (1 - len(left) / max(1, len(wanted)))
                self._settle()

    def _segments(self) -> Sequence[int]:
        if self._request.share >= 1.0:
            return range(self._note.total)
        count = max(1, round(self._note.total * self._request.share))
        return random.Random(self._note.started).sample(range(self._note.total), count)

    def _page(self, page: ScanPage) -> None:
        if page.waiting_for is not None:
            self._report.waiting(page.waiting_for)
            return
        at, items = time.time(), [(key, image) for key, image in page.items if image is not None]
        self._take(self._retrying(lambda: list(self._verifier.scanned(items, at, f"segment:{page.segment}"))))
        self.tally.items += len(page.items)
        documents = self._note.documents + self._examiner.documents
        before = self._by_segment.get(page.segment, (0, 0))
        self._by_segment[page.segment] = before[0] + len(page.items), before[1] + documents - self.tally.documents
        self.tally.documents = documents

    # The target's documents

    def _walk(self) -> None:
        self._phase = "reading the target"
        names = [name for name in self._both.tables if name not in self._note.tables]
        for number, name in enumerate(names):
            estimate = max(1, self.tally.documents // len(names))
            walked = 0
            for ids in self._pieces(self._both.tables[name]):
                walked += len(ids)
                self.tally.walked += len(ids)
                wanted = [id for id in ids if self._is_sampled(id)]
                self._take(self._retrying(lambda ids=wanted, name=name: self._looked_for(name, ids)))  # type: ignore[misc]
                self._share = 0.5 + 0.5 * (number + min(1.0, walked / estimate)) / len(names)
                self._settle()
                while self._verifier.full and not self._stop.is_set():
                    self._stop.wait(POLL)
                    self._settle()
            if self._stop.is_set():
                return
            self._ended(table=name)

    def _looked_for(self, name: str, ids: Sequence[DocumentId]) -> list[Result]:
        return list(self._verifier.walked(name, ids, f"table:{name}")) if ids else []

    def _pieces(self, table: Table, within: DocumentId = ()) -> Iterator[Sequence[DocumentId]]:
        cursor: str | None = None
        while not self._stop.is_set():
            try:
                piece = self._retrying(lambda c=cursor: self._both.comparing.walk(table, c, within))  # type: ignore[misc]
            except CursorExpired:
                cursor = None
                continue
            yield piece.ids
            if (cursor := piece.cursor) is None:
                return

    def _is_sampled(self, id: DocumentId) -> bool:
        if self._request.share >= 1.0:
            return True
        text = repr((self._note.started, id)).encode(errors="surrogatepass")
        return int.from_bytes(blake2b(text, digest_size=8).digest()) / 2**64 < self._request.share

    # One item

    def _one(self, key: Key) -> None:
        verifier, own = self._verifier, self._both.mapping.own_ids
        self._take(self._retrying(lambda: list(verifier.look_at(key, "key"))))
        within: DocumentId = (key_text(key),) if own else key
        for name, table in self._both.tables.items():
            for ids in self._pieces(table, within):
                self._take(self._retrying(lambda ids=ids, name=name: self._looked_for(name, ids)))  # type: ignore[misc]
        self.tally.items = 1

    # Candidates

    def _settle(self) -> None:
        now = time.monotonic()
        if now - self._settled_at < SETTLE_INTERVAL:
            return
        self._settled_at = now
        self._verifier.parked, current = self._retrying(self._positions)
        if not self._repairs.waits or current.blocked_by:
            self._take(self._retrying(lambda: list(self._verifier.settle(current))))
        self._repairs.flush(self._verifier)
        self.tally.repaired = self._repairs.repaired
        if now - self._saved_at >= SAVE_INTERVAL:
            self._save()
        self._report.progress(
            Progress(
                self._phase,
                self.tally.items,
                self.tally.documents,
                None if self._request.key else self._share,
                self._verifier.pending,
                self.tally.differences,
            )
        )

    def _positions(self) -> tuple[Collection[str], Positions]:
        entries = self._both.checkpoints.read().entries
        return parked_items(entries), positions_of(entries, self._both.state.epoch, time.time())

    def _take(self, results: Iterable[Result]) -> None:
        for result in results:
            self.tally.count(result)
            self._report.result(result)
            if result.outcome == "difference":
                self._repairs.offer(result)

    # What is noted

    def _first_note(self) -> Verified:
        now, request = time.time(), self._request
        stored = last(self._both.checkpoints.read().entries)
        if request.resume:
            if stored is None or stored.ended is not None or stored.epoch != self._both.state.epoch:
                raise ConfigError("--resume: there is no unfinished pass of this epoch; start one without --resume")
            if stored.hook != self._both.state.hook:
                raise ConfigError("--resume: the hook has changed since that pass began; start one without --resume")
            if stored.scope != request.scope:
                raise ConfigError(f"--resume: the unfinished pass is of scope {stored.scope}, not {request.scope}")
            self.tally = Tally(stored.items, stored.documents, 0, 0, 0, stored.differences, stored.repaired)
            self.tally.parked, self.tally.unconfirmed = stored.parked, stored.unconfirmed
            self._examiner.forgot_hashed |= stored.hashed
            return stored
        items = max(self._both.source.items, 1)
        total = max(FEWEST, items // PER_SEGMENT)
        if request.share < 1.0:
            total = max(total, items // 1000, math.ceil(SAMPLED / request.share))
        state = self._both.state
        return Verified(now, now, state.epoch, request.scope, min(total, FINEST), hook=state.hook)

    def _ended(self, segment: int | None = None, table: str | None = None) -> None:
        note = self._note
        if segment is not None:
            self._note = replace(note, segments=(*note.segments, segment))
        if table is not None:
            self._note = replace(note, tables=(*note.tables, table))

    def _save(self, ended: float | None = None) -> None:
        """Note what is done: segments and tables of which no candidate is left."""
        if self._request.key is not None:
            return
        self._saved_at = time.monotonic()
        open_origins, tally = self._verifier.origins(), self.tally
        if "repair" in open_origins or self._is_void():
            return
        segments = tuple(n for n in self._note.segments if f"segment:{n}" not in open_origins)
        repeated = [self._by_segment[n] for n in self._by_segment.keys() - set(segments)]  # if the pass is resumed
        note = replace(
            self._note,
            updated=time.time(),
            segments=segments,
            tables=tuple(name for name in self._note.tables if f"table:{name}" not in open_origins),
            items=tally.items - sum(items for items, _ in repeated),
            documents=tally.documents - sum(documents for _, documents in repeated),
            differences=tally.differences,
            repaired=tally.repaired,
            parked=tally.parked,
            unconfirmed=tally.unconfirmed,
            ended=ended,
            hashed=self._examiner.has_hashed,
        )
        self._retrying(lambda: self._both.checkpoints.save([Save("verified", "", None, encode(note))]))
        self._noted = True

    def _is_void(self) -> bool:
        """Whether `parked drop` removed the note: the pass proves nothing of items discarded since it began."""
        return self._noted and self._retrying(lambda: last(self._both.checkpoints.read().entries)) is None

    def _finish(self) -> None:
        if self._stop.is_set():
            with contextlib.suppress(ReplicatorError):
                self._both.checkpoints.save(())
            return
        self._save(time.time())


def parked_items(entries: Sequence[Entry]) -> frozenset[str]:
    """The key texts of the parked items."""
    return frozenset(item_of(e.id) for e in entries if e.kind == "parked")


def positions_of(entries: Sequence[Entry], epoch: int, now: float) -> Positions:
    values: dict[str, dict[str, Any]] = {"pipeline": {}, "shard": {}, "pulse": {}}
    for e in entries:
        if e.kind in values:
            values[e.kind][e.id] = decode(e.kind, e.id, e.text)
    state, heartbeat = values["pipeline"].get(""), values["pulse"].get("")
    assert state is None or isinstance(state, PipelineState)
    assert heartbeat is None or isinstance(heartbeat, Heartbeat)
    shards: dict[str, ShardState] = values["shard"]
    return positions(state, epoch, shards, heartbeat, now)


def last(entries: Sequence[Entry]) -> Verified | None:
    """The last pass, ended or not."""
    found = [decode(e.kind, e.id, e.text) for e in entries if e.kind == "verified"]
    return next((v for v in found if isinstance(v, Verified)), None)
