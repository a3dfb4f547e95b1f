"""Progress as a rich table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from replicator.duration import data_size, duration
from replicator.escape import escaped
from replicator.pipeline.progress import Backfill, Progress, Verifying, WorkerProgress
from replicator.state import FULL_SCOPE, HistoryReport, ResyncRequest, Verified

if TYPE_CHECKING:
    from replicator.operations.status import Reading

MOST_WORKERS = 12  # that are listed one by one
SILENT = 1.5  # seconds without a report from the run, after which it is shown as waiting
_COLORS = {"live": "green", "gap": "red", "stopped": "yellow"}


def as_table(progress: Progress, title: str = "", silent: float = 0.0) -> Table:
    """A table of names and values. ``silent``: seconds since the run last reported."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    if title:
        table.add_row("pipeline", Text(escaped(title)))
    for name, value in _rows(progress, silent):
        table.add_row(name, value)
    return table


def as_lines(pipelines: Mapping[str, tuple[Progress, float]]) -> Table:
    """A line for each pipeline: its progress, and the seconds since it last reported."""
    table = Table(box=None, pad_edge=False)
    for heading in ("pipeline", "phase", "lag", "retention left", "records", "parked", "backfill", "waiting for"):
        table.add_column(heading, header_style="bold", no_wrap=heading != "waiting for")
    for name, (p, silent) in pipelines.items():
        rows = dict(_rows(p, silent))
        table.add_row(
            Text(escaped(name), style="bold"),
            _phase(p, silent),
            *(rows[heading] for heading in ("lag", "retention left", "records", "parked")),
            _share(p.backfill),
            rows.get("waiting for", ""),
        )
    return table


def _share(b: Backfill | None) -> str:
    if b is None or b.segments_ended == b.segments:
        return ""
    done = b.items / b.estimate if b.estimate else b.segments_ended / b.segments
    return f"{min(done, 0.99):.0%}, {duration(b.eta_seconds)} left"


def _phase(p: Progress, silent: float) -> Text:
    """The phase; a run that is blocked must not look healthy."""
    waits = p.waiting_for is not None or silent >= SILENT
    style = "yellow" if waits and p.phase != "gap" else _COLORS.get(p.phase, "cyan")
    return Text(escaped(f"{p.phase}, waiting" if waits else p.phase), style=style)


def _rows(p: Progress, silent: float) -> Iterator[tuple[str, Any]]:
    yield "phase", _phase(p, silent)
    if p.stripped is not None:
        ended = "has removed" if p.stripped.ended is not None else "removes, and must be repeated to remove all of,"
        yield "stripped", f"replicator strip {ended} the versions in the target: this pipeline never runs again"
    if p.owner is not None:
        yield "owner", Text(escaped(p.owner.who))
    if p.backfill is not None:
        yield "backfill", _bar(p.backfill)
    yield "lag", duration(p.lag_seconds)
    yield "retention left", "unknown" if p.retention_left_hours is None else _hours(p.retention_left_hours)
    yield "records", "unknown" if p.rate is None else f"{p.rate:,.0f}/s"
    yield "shards", f"{p.shards.open} open, {p.shards.ended} ended, {p.shards.waiting} waiting"
    yield from _workers(p.workers)
    c = p.counts
    parts = f"{c.applied:,} applied + {c.superseded:,} superseded + {c.filtered:,} filtered + {c.parked:,} parked"
    yield "changes", f"{c.read:,} read = {parts}"
    yield "parked", Text(f"{p.parked:,}", style="yellow" if p.parked else "")
    yield "gaps", Text(str(len(p.gaps)), style="red" if p.gaps else "")
    for gap in p.gaps:
        place = f"shard {gap.shard or 'any'}, last position stored {gap.sequence or 'none'}"
        yield "", Text(escaped(f"{gap.reason} ({place})"), "red")
    if p.verified is not None:
        yield "verified", Text(verified(p.verified), style="red" if p.verified.known else "")
    if p.verifying is not None:
        yield "verifying", Text(verifying(p.verifying), style="red" if p.verifying.so_far.differences else "")
    yield from (("history", _history(history)) for history in p.histories)
    if p.request is not None:
        yield "resync", Text(escaped(requested(p.request)), style="yellow")
    if p.waiting_for:
        yield "waiting for", Text(escaped(p.waiting_for), style="red")
    elif silent >= SILENT:
        yield "waiting for", Text(f"no response from the source or the target for {silent:.0f} s", style="yellow")


def _workers(workers: Sequence[WorkerProgress]) -> Iterator[tuple[str, Any]]:
    """A summary, and a line for each worker; those that need attention first if there are many."""
    own = [worker for worker in workers if not worker.is_coordinator]
    if not workers:
        return
    up = [worker for worker in own if worker.is_up]
    nodes = len({worker.host for worker in workers if worker.host})
    summary = f"{len(up)} of {len(own)} up, on {nodes} node(s)"
    yield "workers", Text(summary, style="" if len(up) == len(own) else "yellow")
    listed = workers
    if len(workers) > MOST_WORKERS:
        listed = sorted(workers, key=lambda w: (w.is_up and w.waiting_for is None, not w.restarts))[:MOST_WORKERS]
    for worker in listed:
        blocked = worker.waiting_for is not None or not worker.is_up
        yield "", Text(escaped(worker_line(worker)), style="yellow" if blocked else "")
    if len(listed) < len(workers):
        yield "", f"and {len(workers) - len(listed)} more: status --json lists all"


def worker_line(worker: WorkerProgress) -> str:
    """A worker in one line: where it is, what it owns, and what it waits for."""
    parts = [f"{worker.host}, process {worker.pid}" if worker.host else "not claimed"]
    if not worker.is_coordinator:
        parts.append(f"{worker.shards} shard(s)" + (f", {worker.segments} segment(s)" if worker.segments else ""))
    if worker.restarts:
        parts.append(f"restarted {worker.restarts} time(s)")
    if worker.host and not worker.is_up:
        parts.append("no sign of it" if worker.silent is None else f"no sign of it for {duration(worker.silent)}")
    if worker.waiting_for is not None:
        parts.append(f"waiting for: {worker.waiting_for}")
    name = worker.slot if worker.is_coordinator else f"worker {worker.slot}"
    return f"{name}: {', '.join(parts)}"


def verified(last: Verified) -> str:
    """What the last verification pass found. It proves nothing of what was written after its start."""
    what = "" if last.scope == FULL_SCOPE else f", of a sample of {last.scope}"
    left = f", {last.parked:,} parked, {last.unconfirmed:,} unconfirmed" if last.parked or last.unconfirmed else ""
    repaired = f", {last.repaired:,} of them repaired" if last.repaired else ""
    until, ended = moment(last.started), moment(last.ended or last.updated)
    return f"up to {until}: {last.known:,} differences{repaired}{left}{what}; the pass ended {ended}"


def verifying(going: Verifying) -> str:
    """How far a verification pass is."""
    now = going.so_far
    by = "" if going.by == "run" else ", by replicator verify"
    return f"{now.done:.0%}, {now.items:,} items, {now.differences:,} differences{by}"


def _history(history: HistoryReport) -> Text:
    """Since when a history tells the table, or which part of it is gone."""
    if history.lost:
        return Text(escaped(f"{history.table}: {history.lost}"), "red")
    since = "tells no time yet" if history.since is None else f"since {moment(history.since)}"
    unknown = f" without {duration(history.unknown)} in between" if history.unknown else ""
    size = f"{data_size(history.bytes)} in {history.partitions} partition(s)"
    return Text(escaped(f"{history.table}: {since}{unknown}, {size}"))


def moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def requested(request: ResyncRequest) -> str:
    """What a pending request asks for."""
    return f"requested for {scope(request)}, since {moment(request.requested)}; no run has started it yet"


def scope(request: ResyncRequest) -> str:
    """Which items a request is for."""
    if request.whole:
        return "the whole table"
    counts = [(len(request.keys), "item(s)"), (len(request.where), "condition(s)")]
    return " and ".join(f"{count:,} {name}" for count, name in counts if count)


def overview(readings: Sequence[Reading], *, whole: bool = False) -> Table:
    """One line for each pipeline. ``whole``: whatever its length, as there is no terminal to fit."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("pipeline", "phase", "lag", "left", "records", "parked", "gaps", ""):
        shortened = name in ("pipeline", "")  # where the terminal is narrow; the others are never cut off
        table.add_column(name, no_wrap=not shortened, overflow="ellipsis", max_width=None if name or whole else 60)
    for reading in readings:
        table.add_row(*_cells(reading))
    return table


def _cells(reading: Reading) -> Iterator[Any]:
    values = reading.values
    which = {None: "", True: " (live)", False: " (not live)"}[reading.live]
    yield Text(escaped(reading.pipeline or reading.config) + which, no_wrap=True)
    if values is None:
        yield Text("unknown", "red")
        yield from [""] * 5
    else:
        waits = values["waiting_for"] is not None
        style = "yellow" if waits else _COLORS.get(values["phase"], "cyan")
        yield Text(escaped(values["phase"]), style)
        yield duration(values["lag_seconds"])
        left = values["retention_left_hours"]
        yield "unknown" if left is None else _hours(left)
        rate = values["records_per_second"]
        yield "unknown" if rate is None else f"{rate:,.0f}/s"
        yield Text(f"{values['parked']:,}", "yellow" if values["parked"] else "")
        yield Text(f"{values['gaps']}", "red" if values["gaps"] else "")
    yield Text(escaped(_remark(reading)), "red", no_wrap=True)


def _remark(reading: Reading) -> str:
    """What a person should know first: why nothing is known, what blocks it, differences, how far the backfill is."""
    values = reading.values
    if values is None:
        return reading.problems[0].splitlines()[0]
    if values["waiting_for"] is not None:
        return f"waiting for: {values['waiting_for']}"
    if reading.error is not None:
        return "reported by the run; the checkpoints cannot be read"
    v, b = values["verified"], values["backfill"]
    if v is not None and v["differences"] > v["repaired"]:
        return f"{v['differences'] - v['repaired']:,} differences: replicator verify"
    if b is not None and b["segments_ended"] < b["segments"]:
        return f"backfill: {b['items']:,} items, {duration(b['eta_seconds'])} left"
    return ""


def _bar(b: Backfill) -> Table:
    done = f"{b.items:,} items, {b.segments_ended} of {b.segments} segments"
    if b.segments_ended < b.segments:
        done += f", {'unknown rate' if b.rate is None else f'{b.rate:,.0f}/s'}, {duration(b.eta_seconds)} left"
    whole, part = (
        (1, 1)
        if b.segments_ended == b.segments
        else (b.estimate or b.segments, b.items if b.estimate else b.segments_ended)
    )
    row = Table.grid(padding=(0, 1))
    row.add_row(ProgressBar(total=whole, completed=min(part, whole), width=30), done)
    return row


def _hours(hours: float) -> Text:
    return Text(f"{hours:.1f} h", style="red" if hours < 6 else "")
