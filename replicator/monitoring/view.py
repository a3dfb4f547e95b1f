"""What the page shows, computed from a monitor: texts and curves, no HTML."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from replicator import __version__
from replicator.duration import data_size, duration
from replicator.monitoring import charts
from replicator.monitoring.charts import Band, Curve
from replicator.monitoring.health import Verdict
from replicator.monitoring.history import Sample
from replicator.monitoring.monitor import Monitor
from replicator.pipeline.details import MOST_PARKED, ShardDetail
from replicator.pipeline.progress import Backfill, Progress, WorkerProgress
from replicator.state import FULL_SCOPE, Counts, Gap, HistoryReport, Verified

LOW_RETENTION = 6.0  # hours
DEEPEST = 8  # level of the shard tree that is still indented further
_ZERO = re.compile(r" 0 (s|min|h)$")
_LABELS = {"catching-up": "catching up"}


@dataclass(frozen=True, slots=True)
class Fact:
    """A figure with its unit and a line of explanation. ``tone``: a CSS class: "", good, warn or bad."""

    name: str
    value: str
    note: str = ""
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves over time. ``points``: for each sample its x and its text, as JSON would have them."""

    title: str
    value: str
    top: str
    since: str
    curves: tuple[Curve, ...]
    points: tuple[tuple[float, str], ...]
    names: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """A shard in the tree. ``depth``: number of ancestors that are shown."""

    id: str
    depth: int
    state: str
    text: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker, or the coordinator: its name and node, what it has, and what it waits for. ``state``: a CSS class."""

    name: str
    node: str
    state: str
    text: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Fate:
    """A share of all changes: its place in a bar of width 100."""

    name: str
    count: str
    x: float
    width: float


@dataclass(frozen=True, slots=True)
class Scan:
    """The backfill. ``percent``: None if the total is unknown."""

    percent: float
    ended: bool
    items: str
    rest: str


@dataclass(frozen=True, slots=True)
class Verification:
    """Verification passes: of the one in progress its ``percent`` (None: there is none), and the last that ended."""

    percent: float | None
    current: str
    last: str
    tone: str


@dataclass(frozen=True, slots=True)
class Kept:
    """The history of a table: the times that it tells, and its size."""

    table: str
    since: str
    size: str
    tone: str


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something a person should know: a sentence and, if there is one, the command that helps."""

    tone: str
    title: str
    text: str
    command: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """Everything on the page."""

    pipeline: str
    route: str
    phase: str
    label: str
    headline: str
    healthy: bool
    facts: tuple[Fact, ...]
    alarms: tuple[Alarm, ...]
    scan: Scan | None
    verification: Verification | None
    histories: tuple[Kept, ...]
    charts: tuple[Chart, ...]
    bands: tuple[Band, ...]
    phases: tuple[tuple[str, str], ...]
    since: str
    fates: tuple[Fate, ...]
    read: str
    shards: tuple[Row, ...]
    shards_note: str
    workers: tuple[WorkerRow, ...]
    workers_note: str
    parked: tuple[tuple[str, str, str], ...]
    parked_note: str
    config: str
    footer: tuple[str, ...]
    at: str


def view(monitor: Monitor) -> View:
    progress, samples, now = monitor.progress(), monitor.history.samples(), monitor.now()
    samples = (*samples, Sample.of(progress, now))
    span, details, verdict = charts.covered(samples), monitor.details, monitor.health()
    phase = _phase(progress, verdict)
    bands = charts.bands(samples, span)
    return View(
        pipeline=monitor.subject.pipeline,
        route=f"{monitor.subject.source} → {monitor.subject.target} {', '.join(monitor.subject.tables)}",
        phase=phase,
        label=_label(progress, phase),
        headline=headline(progress, verdict, details.stage),
        healthy=verdict.ok,
        facts=tuple(_facts(progress)),
        alarms=tuple(_alarms(monitor, progress)),
        scan=_scan(progress.backfill),
        verification=_verification(monitor, progress, now),
        histories=tuple(map(_kept, progress.histories)),
        charts=tuple(_charts(samples, span)),
        bands=bands,
        phases=tuple((b, _LABELS.get(b, b)) for b in dict.fromkeys(band.phase for band in bands)),
        since=_ago(span),
        fates=_fates(progress.counts),
        read=f"{progress.counts.read:,}",
        shards=_rows(details.shards, now),
        shards_note=_shards_note(progress, len(details.shards), details.shards_total),
        workers=tuple(map(_worker, progress.workers)),
        workers_note=_workers_note(progress.workers),
        parked=tuple((p.key, p.reason or "unknown", _age(p.since, now)) for p in details.parked),
        parked_note=f"the {MOST_PARKED} oldest of {progress.parked:,}" if progress.parked > MOST_PARKED else "",
        config=monitor.subject.config,
        footer=tuple(_footer(monitor, progress)),
        at=_clock(now),
    )


def _phase(progress: Progress, verdict: Verdict) -> str:
    """The phase as a CSS class; a run that waits or is stalled must not look healthy."""
    if progress.phase == "gap":
        return "gap"
    if progress.waiting_for is not None:
        return "waiting"
    return progress.phase if verdict.ok else "stalled"


def _label(progress: Progress, phase: str) -> str:
    label = _LABELS.get(progress.phase, progress.phase)
    if phase in ("waiting", "stalled"):
        return f"{label}, {phase}"
    return f"{label}, verifying" if phase == "live" and progress.verifying is not None else label


def headline(progress: Progress, verdict: Verdict, stage: str = "") -> str:
    """The state of the copy in one sentence."""
    lag = brief(progress.lag_seconds)
    if progress.phase == "gap":
        return "Records can no longer be read. The copy keeps what it has until it is rescanned."
    if progress.waiting_for is not None:
        own = [worker for worker in progress.workers if not worker.is_coordinator]
        if any(worker.is_up and worker.waiting_for is None for worker in own):
            return "A part of the changes is not stored at the moment. That continues by itself once it can."
        return "Nothing is stored at the moment. The run continues by itself once it can."
    if not verdict.ok:
        return "The run is up, but makes no progress."
    if progress.phase == "backfill":
        if stage in ("sweeping", "purging"):
            return "Every item is copied; what no longer exists is being removed."
        return "Existing items are being copied, and changes are followed at the same time."
    return {
        "live": f"The copy has every change up to {lag} ago.",
        "catching-up": f"The copy is {lag} behind and catching up.",
        "starting": "The run is starting: it looks at the table, its stream and the target.",
    }.get(progress.phase, "")


def brief(seconds: float | None) -> str:
    """Like ``duration``, with tenths of a second where they matter and without units that are zero."""
    if seconds is not None and 0 < seconds < 9.95:
        return f"{seconds:.1f} s"
    text = duration(seconds)
    return _ZERO.sub("", text) if " 0 " in text else text


def _facts(p: Progress) -> Iterator[Fact]:
    unknown = p.lag_seconds is None
    tone = "" if unknown else "good" if p.phase == "live" else "warn" if p.phase == "catching-up" else ""
    yield Fact("Lag", "–" if unknown else brief(p.lag_seconds), "unknown yet" if unknown else "behind the table", tone)
    yield Fact("Changes", "–" if p.rate is None else f"{p.rate:,.0f}/s", f"{p.counts.read:,} read in all")
    hours = p.retention_left_hours
    low = hours is not None and hours < LOW_RETENTION
    yield Fact(
        "Retention left",
        "–" if hours is None else brief(hours * 3600),
        "until changes are lost",
        "bad" if low else "",
    )
    yield Fact("Parked", f"{p.parked:,}", "items that were rejected", "warn" if p.parked else "")
    yield Fact("Gaps", f"{len(p.gaps)}", "ranges that cannot be read", "bad" if p.gaps else "")


def _alarms(monitor: Monitor, p: Progress) -> Iterator[Alarm]:
    verdict, config = monitor.health(), monitor.subject.config
    for gap in p.gaps:
        yield Alarm("bad", "Gap", _gap(gap), f"replicator resync {config}")
    if p.waiting_for is not None:
        yield Alarm("warn", "Waiting", p.waiting_for)
    if not verdict.ok and p.waiting_for is None:
        yield Alarm("bad", "Stalled", verdict.reason)
    if p.parked:
        text = "Fix the hook or the table, then store them again. Other items are not held up."
        yield Alarm("warn", f"{p.parked:,} parked", text, f"replicator parked retry {config} --all")
    for history in p.histories:
        if history.lost:
            yield Alarm("bad", "History lost", history.lost)
    if found := _unrepaired(p):
        text = "Documents differ from what their items require, and lag does not explain it: look for the cause first."
        yield Alarm("bad", f"{found:,} differences", text, f"replicator verify {config} --repair")
    doubt = monitor.details.in_doubt_seconds
    if doubt:
        text = f"For {duration(doubt)} writes without a response may still be applied; versions keep them harmless."
        yield Alarm("info", "In-doubt window", text)
    if monitor.reduced_guarantee:
        yield Alarm("info", "Reduced guarantee", monitor.reduced_guarantee)


def _gap(gap: Gap) -> str:
    return (
        f"{gap.reason} (shard {gap.shard or 'any'}, last position stored {gap.sequence or 'none'}; {_clock(gap.found)})"
    )


def _scan(b: Backfill | None) -> Scan | None:
    if b is None:
        return None
    if b.segments_ended == b.segments:
        return Scan(100.0, True, f"{b.items:,} items", "done")
    known = b.estimate is not None and b.estimate > b.items
    percent = 100 * b.items / b.estimate if known and b.estimate else 100 * b.segments_ended / b.segments
    of = f" of about {b.estimate:,}" if known else ""
    rate = "rate unknown yet" if b.rate is None else f"{b.rate:,.0f}/s"
    eta = "" if b.eta_seconds is None else f", about {duration(b.eta_seconds)} left"
    return Scan(round(percent, 1), False, f"{b.items:,}{of} items", f"{rate}{eta}")


def _unrepaired(p: Progress) -> int:
    """Documents that differ, by the last pass that ended or by the current one, whichever found more."""
    last = 0 if p.verified is None else p.verified.unrepaired
    return max(last, 0 if p.verifying is None else p.verifying.unrepaired(p.verified))


def _verification(monitor: Monitor, p: Progress, now: float) -> Verification | None:
    last, going, due = p.verified, p.verifying, monitor.verify_due()
    if last is None and going is None and due is None:
        return None
    percent, current = None, "the next pass is due" if due is not None and last is None else ""
    if going is not None:
        percent, so_far = round(100 * going.so_far.done, 1), going.so_far
        by = "" if going.by == "run" else " by replicator verify"
        current = f"verifying{by}: {percent:.0f} %, {so_far.items:,} items, {so_far.differences:,} differences"
    overdue = due is not None and now > due
    tone = "bad" if _unrepaired(p) else "warn" if overdue else ""
    return Verification(percent, current, _last_pass(last, now), tone)


def _last_pass(last: Verified | None, now: float) -> str:
    if last is None or last.ended is None:
        return "never verified"
    rest = f", {last.parked:,} parked" if last.parked else ""
    rest += f", {last.unconfirmed:,} unconfirmed" if last.unconfirmed else ""
    scope = "" if last.scope == FULL_SCOPE else f" in a sample of {last.scope}"
    found = f"{last.known:,} differences{scope}{rest}, {brief(max(0.0, now - last.ended))} ago"
    return f"verified up to {_day(last.started)} {_clock(last.started)}: {found}"


def _kept(history: HistoryReport) -> Kept:
    since = "tells no time yet"
    if history.since is not None:
        since = f"tells the table since {_day(history.since)} {_clock(history.since)}"
    if history.unknown:
        since += f", without {brief(history.unknown)} in between"
    if history.removed is not None:
        since += "; earlier changes are removed"
    size = f"{data_size(history.bytes)} in {_count(history.partitions, 'partition')}"
    return Kept(history.table, since, size, "bad" if history.lost else "")


def _charts(samples: Sequence[Sample], span: float) -> Iterator[Chart]:
    since, last = _ago(span), samples[-1]
    lags = [s.lag for s in samples if s.lag is not None]
    top = charts.time_ceiling(max(lags, default=0.0))
    curve = charts.curve("lag", samples, lambda s: s.lag, top, span)
    points = _points(samples, span, lambda s: brief(s.lag))
    yield Chart("Lag", brief(last.lag), brief(top), since, (curve,), points)
    rates = [r for s in samples for r in (s.rate, s.scan_rate) if r is not None]
    top = charts.ceiling(max(rates, default=0.0), 10.0)
    stream = charts.curve("rate", samples, lambda s: s.rate, top, span)
    scanned = charts.curve("scan", samples, lambda s: s.scan_rate, top, span)
    curves = (stream, *((scanned,) if scanned.line else ()))
    names = (("rate", "all changes"), ("scan", "scanned items")) if scanned.line else ()
    points = _points(samples, span, lambda s: _rate(s.rate))
    yield Chart("Changes", _rate(last.rate), f"{top:,.0f}/s", since, curves, points, names)
    hours = charts.curve("retention", samples, lambda s: s.retention_left, 86400.0, span)
    points = _points(samples, span, lambda s: brief(s.retention_left))
    yield Chart("Retention left", brief(last.retention_left), "24 h", since, (hours,), points)


def _rate(rate: float | None) -> str:
    return "unknown" if rate is None else f"{rate:,.0f}/s"


def _points(samples: Sequence[Sample], span: float, text: Callable[[Sample], str]) -> tuple[tuple[float, str], ...]:
    last = samples[-1].at
    return tuple((charts.place(s.at, last, span), f"{text(s)} at {_clock(s.at)}") for s in samples)


def _fates(counts: Counts) -> tuple[Fate, ...]:
    found, x = [], 0.0
    for name in ("applied", "superseded", "filtered", "parked"):
        count = getattr(counts, name)
        width = 100 * count / counts.read if counts.read else 0.0
        found.append(Fate(name, f"{count:,}", round(x, 2), round(max(width, 0.4 if count else 0.0), 2)))
        x += width
    return tuple(found)


def _rows(shards: Sequence[ShardDetail], now: float) -> tuple[Row, ...]:
    depths: dict[str, int] = {}
    rows = []
    for shard in shards:
        depths[shard.id] = depths[shard.parent] + 1 if shard.parent in depths else 0
        state = "blocked" if shard.blocked_by is not None else shard.state
        rows.append(
            Row(shard.id, min(depths[shard.id], DEEPEST), state, _shard_text(shard, now), shard.blocked_by or "")
        )
    return tuple(rows)


def _shard_text(shard: ShardDetail, now: float) -> str:
    if shard.state == "ended":
        return "read to its end"
    if shard.state == "waiting":
        return "waits for its parent"
    lag = "lag unknown" if shard.through is None else f"lag {brief(max(0.0, now - shard.through))}"
    return f"worker {shard.slot}, {lag}" if shard.slot else lag


def _shards_note(p: Progress, shown: int, total: int) -> str:
    counts = f"{p.shards.open} open, {p.shards.waiting} waiting, {p.shards.ended} ended"
    return counts if shown >= total else f"{counts}; the {shown} most important are listed"


def _worker(worker: WorkerProgress) -> WorkerRow:
    parts = [] if worker.is_coordinator else [_count(worker.shards, "shard")]
    parts += [_count(worker.segments, "segment")] if worker.segments else []
    parts += [_count(worker.restarts, "restart")] if worker.restarts else []
    note = f"waiting for: {worker.waiting_for}" if worker.waiting_for is not None else ""
    if worker.host and not worker.is_up:
        note = note or ("no sign of it" if worker.silent is None else f"no sign of it for {brief(worker.silent)}")
    state = "open" if worker.is_up and not worker.waiting_for else "blocked" if worker.host else "waiting"
    return WorkerRow(
        name=worker.slot if worker.is_coordinator else f"worker {worker.slot}",
        node=f"{worker.host}, process {worker.pid}" if worker.host else "no process has claimed it",
        state=state,
        text=", ".join(parts),
        note=note,
    )


def _workers_note(workers: Sequence[WorkerProgress]) -> str:
    own = [worker for worker in workers if not worker.is_coordinator]
    nodes = len({worker.host for worker in workers if worker.host})
    return f"{sum(worker.is_up for worker in own)} of {len(own)} up, on {_count(nodes, 'node')}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _age(since: float | None, now: float) -> str:
    return "unknown" if since is None else duration(max(0.0, now - since))


def _ago(span: float) -> str:
    return f"{span / 60:.0f} min ago"


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S UTC")


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


def _footer(monitor: Monitor, p: Progress) -> Iterator[str]:
    yield f"replicator {__version__}"
    yield f"run up for {duration(max(0.0, monitor.now() - monitor.began))}"
    if p.owner is not None:
        yield f"process {p.owner.pid} on {p.owner.host}"
    if p.epoch is not None:
        yield f"epoch {p.epoch}"
