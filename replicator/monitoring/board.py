"""The monitors of several pipelines of one process, which are served together at one address."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from replicator.monitoring.health import Verdict
from replicator.monitoring.monitor import Monitor

OURS = "replicator"  # what the names of a pipeline's own metrics start with; others are of the process


class Board:
    """Shows the monitor of each run until it ends, and after that if it failed. Each runs on its own thread."""

    def __init__(self) -> None:
        self._monitors: dict[object, Monitor] = {}  # by thread; replaced as a whole
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def running(self, monitor: Monitor) -> Iterator[None]:
        """Show this thread's run: at first by this monitor, then by those that ``show`` gets."""
        thread = threading.current_thread()  # not its number, which a later thread may get
        self.show(monitor)
        try:
            yield
        except BaseException:
            self._monitors[thread].fail()
            raise
        with self._lock:
            self._monitors = {of: shown for of, shown in self._monitors.items() if of != thread}

    def show(self, monitor: Monitor) -> None:
        """Show this monitor in place of the one that this thread's run had before, as after a step of a rebuild."""
        self._put(threading.current_thread(), monitor)

    def refused(self, monitor: Monitor) -> None:
        """Show a pipeline that could not be started."""
        monitor.fail()
        self._put(monitor, monitor)

    def _put(self, of: object, monitor: Monitor) -> None:
        with self._lock:
            self._monitors = {**self._monitors, of: monitor}

    @property
    def monitors(self) -> Sequence[Monitor]:
        """In the order of their pipelines' names."""
        return sorted(self._monitors.values(), key=lambda monitor: monitor.subject.pipeline)

    def find(self, pipeline: str) -> Monitor | None:
        return next((monitor for monitor in self.monitors if monitor.subject.pipeline == pipeline), None)

    def health(self) -> Verdict:
        """Of all pipelines: good if each one's is."""
        return _together(self.monitors, Monitor.health)

    def readiness(self) -> Verdict:
        return _together(self.monitors, Monitor.readiness)

    def status(self) -> Mapping[str, Any]:
        return {"pipelines": [monitor.status() for monitor in self.monitors]}

    def metrics(self) -> bytes:
        """All metrics in Prometheus' text format; those of the process once."""
        registry = CollectorRegistry()
        registry.register(_Together([monitor.metrics.registry for monitor in self.monitors]))
        return generate_latest(registry)


def _together(monitors: Sequence[Monitor], verdict: Callable[[Monitor], Verdict]) -> Verdict:
    verdicts = [(monitor.subject.pipeline, verdict(monitor)) for monitor in monitors]
    bad = [(pipeline, one) for pipeline, one in verdicts if not one.ok]
    reasons = "; ".join(f"{pipeline}: {one.reason}" for pipeline, one in bad or verdicts)
    return Verdict(not bad, reasons or "no pipeline has started yet")


class _Together(Collector):
    """The metrics of several registries, each name once."""

    def __init__(self, registries: Sequence[CollectorRegistry]) -> None:
        self._registries = registries

    def describe(self) -> list[Metric]:
        return []  # names nothing in advance: each scrape computes everything

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for registry in self._registries:
            for family in registry.collect():
                known = families.setdefault(family.name, family)
                if known is not family and family.name.startswith(OURS):
                    known.samples = [*known.samples, *family.samples]
        yield from families.values()
