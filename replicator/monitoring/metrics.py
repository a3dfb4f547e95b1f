"""Metrics for Prometheus: counters that the run's events move, and gauges computed when they are scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from replicator import __version__
from replicator.pipeline.details import Details
from replicator.pipeline.progress import Progress

PHASES = ("starting", "backfill", "catching-up", "live", "gap")
CAUSES = ("source", "target", "checkpoints")
LATENCIES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds
SIZES = (1, 5, 10, 50, 100, 250, 500, 1000, 2000, 4000)  # changes in a batch

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Moment:
    """A run at the moment of a scrape. ``progressed_at``: wall clock, when it last made progress.

    ``verify_due``: when the next verification pass must have ended.
    """

    progress: Progress
    details: Details
    healthy: bool
    progressed_at: float
    verify_due: float | None = None


class Metrics:
    """The metrics of one pipeline. Counters may be moved by the run's thread while another one scrapes."""

    def __init__(self, pipeline: str, target: str, moment: Callable[[], Moment]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nothing needs
        self.registry = CollectorRegistry()
        self._pipeline = pipeline
        registry, names = self.registry, ["pipeline"]
        self._batches = Histogram(
            "replicator_batch_changes",
            "Changes in each batch that was stored.",
            names,
            buckets=SIZES,
            registry=registry,
        ).labels(pipeline)
        self._latency = Histogram(
            "replicator_target_write_seconds",
            "Seconds from sending a batch to the target until it was stored, retries included.",
            names,
            buckets=LATENCIES,
            registry=registry,
        ).labels(pipeline)
        self._retries = Counter(
            "replicator_retries",
            "Requests that failed and were repeated, by what was asked.",
            [*names, "cause"],
            registry=registry,
        )
        for cause in CAUSES:
            self._retries.labels(pipeline, cause)
        self._requests = Counter(
            "replicator_source_requests",
            "Requests to DynamoDB and its streams, by operation and outcome.",
            [*names, "operation", "outcome"],
            registry=registry,
        )
        self._pages = Counter(
            "replicator_shard_pages",
            "Pages of shards, by what read them: the reader that pipelines share, or the pipeline's own.",
            [*names, "reader"],
            registry=registry,
        )
        self._read_units = Counter(
            "replicator_read_units", "Read capacity units that scans consumed.", names, registry=registry
        ).labels(pipeline)
        self.registry.register(_Moments(pipeline, target, moment))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def stored(self, changes: int, seconds: float) -> None:
        self._batches.observe(changes)
        self._latency.observe(seconds)

    def retried(self, cause: str) -> None:
        self._retries.labels(self._pipeline, cause).inc()

    def responded(self, operation: str, outcome: str) -> None:
        self._requests.labels(self._pipeline, operation, outcome).inc()

    def paged(self, reader: str) -> None:
        self._pages.labels(self._pipeline, reader).inc()

    def scanned(self, read_units: float) -> None:
        self._read_units.inc(read_units)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _Moments(Collector):
    """Computes the gauges, and the counts that are stored with the positions, when they are scraped."""

    def __init__(self, pipeline: str, target: str, moment: Callable[[], Moment]) -> None:
        self._pipeline, self._target, self._moment = pipeline, target, moment

    def describe(self) -> list[Metric]:
        return []  # names nothing in advance: the first scrape computes everything

    def collect(self) -> Iterator[Metric]:
        moment = self._moment()
        info = InfoMetricFamily("replicator", "The version and the kind of target.", labels=["pipeline"])
        info.add_metric([self._pipeline], {"version": __version__, "target": self._target})
        yield info
        yield from self._state(moment)
        yield from self._backfill(moment.progress)
        yield from self._verification(moment)
        yield from self._work(moment)
        yield from self._workers(moment.progress)
        yield from self._histories(moment.progress)

    def _state(self, moment: Moment) -> Iterator[Metric]:
        p, name = moment.progress, "replicator_phase"
        phase = GaugeMetricFamily(name, "1 for the phase that the run is in.", labels=["pipeline", "phase"])
        for known in PHASES:
            phase.add_metric([self._pipeline, known], float(p.phase == known))
        yield phase
        yield self._gauge("healthy", "1 while the run makes progress, 0 if it is stalled.", float(moment.healthy))
        yield self._gauge("waiting", "1 while the run waits for a server.", float(p.waiting_for is not None))
        yield self._gauge("last_progress_timestamp_seconds", "When the run last made progress.", moment.progressed_at)
        yield self._gauge("lag_seconds", "Age of the newest time up to which everything is stored.", p.lag_seconds)
        left = None if p.retention_left_hours is None else p.retention_left_hours * 3600
        yield self._gauge("retention_left_seconds", "Time until the stream drops unread records.", left)
        yield self._gauge("gaps", "Gaps that are not repaired.", len(p.gaps))
        yield self._gauge("parked_items", "Items with a parked change.", p.parked)
        yield self._gauge("epoch", "The pipeline's epoch; each rescan begins one.", p.epoch)

    def _backfill(self, p: Progress) -> Iterator[Metric]:
        b = p.backfill
        if b is None:
            return
        yield self._gauge("backfill_items", "Items that the backfill has stored.", b.items)
        yield self._gauge("backfill_estimated_items", "DynamoDB's item count; it is hours old.", b.estimate)
        yield self._gauge("backfill_eta_seconds", "Estimated time until the backfill ends.", b.eta_seconds)
        yield self._gauge("backfill_segments", "Segments of the backfill.", b.segments)
        yield self._gauge("backfill_ended_segments", "Segments that are stored to their end.", b.segments_ended)

    def _verification(self, moment: Moment) -> Iterator[Metric]:
        last, current = moment.progress.verified, moment.progress.verifying
        if last is None and current is None and moment.verify_due is None:
            return
        text = "Documents found to differ and not repaired, by the last pass that ended and the current one."
        differences = GaugeMetricFamily("replicator_verify_differences", text, labels=["pipeline", "pass"])
        if last is not None:
            differences.add_metric([self._pipeline, "last"], last.unrepaired)
        if current is not None:
            differences.add_metric([self._pipeline, "current"], current.unrepaired(last))
        yield differences
        newest = last if current is None else current.so_far
        text = "Share of the newest pass that is done."
        yield self._gauge("verify_progress_ratio", text, None if newest is None else newest.done)
        if last is not None:
            yield self._gauge("verify_last_start_timestamp_seconds", "When the last pass began.", last.started)
            yield self._gauge("verify_last_end_timestamp_seconds", "When the last pass ended.", last.ended)
            text = "Documents that the last pass could not decide on."
            yield self._gauge("verify_unconfirmed", text, last.unconfirmed)
        text = "When the next pass of the run must have ended."
        yield self._gauge("verify_due_timestamp_seconds", text, moment.verify_due)

    def _work(self, moment: Moment) -> Iterator[Metric]:
        p, d = moment.progress, moment.details
        changes = CounterMetricFamily(
            "replicator_changes", "Changes by what became of them, over all runs.", labels=["pipeline", "fate"]
        )
        for fate in ("applied", "superseded", "filtered", "parked"):
            changes.add_metric([self._pipeline, fate], getattr(p.counts, fate))
        yield changes
        shards = GaugeMetricFamily("replicator_shards", "Shards by state.", labels=["pipeline", "state"])
        for state in ("open", "waiting", "ended"):
            shards.add_metric([self._pipeline, state], getattr(p.shards, state))
        yield shards
        yield self._gauge("buffered_changes", "Changes that were read ahead.", d.buffered)
        yield self._gauge("in_flight_batches", "Batches that are encoded or sent, and not stored.", d.batches)
        yield self._gauge("in_flight_requests", "Requests to DynamoDB without a response yet.", d.requests)
        yield self._gauge(
            "in_doubt_seconds", "Time for which writes without a response may be applied.", d.in_doubt_seconds
        )

    def _workers(self, p: Progress) -> Iterator[Metric]:
        """Of a run with several workers; its coordinator is one of them here."""
        if not p.workers:
            return
        labels = ["pipeline", "worker"]
        up = GaugeMetricFamily(
            "replicator_worker_up", "1 if the worker has given a sign of late.", labels=[*labels, "node"]
        )
        shards = GaugeMetricFamily("replicator_worker_shards", "Shards that the worker reads.", labels=labels)
        waiting = GaugeMetricFamily(
            "replicator_worker_waiting", "1 while the worker waits for a server.", labels=labels
        )
        restarts = CounterMetricFamily(
            "replicator_worker_restarts", "How often the run's worker was restarted.", labels=labels
        )
        for worker in p.workers:
            name = [self._pipeline, worker.slot]
            up.add_metric([*name, worker.host], float(worker.is_up))
            waiting.add_metric(name, float(worker.waiting_for is not None))
            restarts.add_metric(name, worker.restarts or 0)
            if not worker.is_coordinator:
                shards.add_metric(name, worker.shards)
        yield from (up, shards, waiting, restarts)

    def _histories(self, p: Progress) -> Iterator[Metric]:
        """Of tables that keep every change."""
        if not p.histories:
            return
        labels, name = ["pipeline", "table"], "replicator_history_"
        since = GaugeMetricFamily(f"{name}since_timestamp_seconds", "The oldest time that it tells.", labels=labels)
        unknown = GaugeMetricFamily(f"{name}unknown_seconds", "Time since then that it does not tell.", labels=labels)
        lost = GaugeMetricFamily(f"{name}lost", "1 while a part of it is gone.", labels=labels)
        size = GaugeMetricFamily(f"{name}bytes", "Its size on disk, with indexes.", labels=labels)
        partitions = GaugeMetricFamily(f"{name}partitions", "Its partitions.", labels=labels)
        for history in p.histories:
            of = [self._pipeline, history.table]
            if history.since is not None:
                since.add_metric(of, history.since)
            unknown.add_metric(of, history.unknown)
            lost.add_metric(of, float(bool(history.lost)))
            size.add_metric(of, history.bytes)
            partitions.add_metric(of, history.partitions)
        yield from (since, unknown, lost, size, partitions)

    def _gauge(self, name: str, text: str, value: float | None) -> Metric:
        """A gauge; without a sample if the value is unknown."""
        family = GaugeMetricFamily(f"replicator_{name}", text, labels=["pipeline"])
        if value is not None:
            family.add_metric([self._pipeline], value)
        return family
