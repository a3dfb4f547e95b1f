"""The output of ``run`` while it works: a live table on a terminal, log events elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from msgspec import structs

from replicator import log as logs
from replicator.cli.output import aside
from replicator.pipeline.progress import Progress, as_values, known

EVERY = 10.0  # seconds between progress events

Observe = Callable[[Progress], None]
log = logging.getLogger(__name__)


@contextmanager
def view(as_json: bool, title: str = "") -> Iterator[Observe]:
    """Yields the function that shows progress. ``title`` names the pipeline, its source and its target."""
    from rich.console import Console

    console = Console()
    if as_json:
        with aside():
            yield Events()
    elif console.is_terminal:
        with _table(console, title) as observe:
            yield observe
    else:
        logs.start(logs.Human())
        with aside():
            yield Events()


@contextmanager
def several(as_json: bool) -> Iterator[Callable[[str], Observe]]:
    """Yields what makes, for each pipeline, the function that shows its progress.

    Events name the pipeline on whose thread they happen.
    """
    from rich.console import Console

    console = Console()
    if as_json or not console.is_terminal:
        if not as_json:
            logs.start(logs.Human())
        _name_pipelines()
        with aside():
            yield lambda _: Events()
        return
    from rich.live import Live

    logs.install(_Above(console))
    _name_pipelines()
    table = PipelinesTable()
    with Live(table, console=console, refresh_per_second=4, transient=False):
        yield table.observer


def _name_pipelines() -> None:
    for handler in logging.getLogger(logs.ROOT).handlers:
        handler.addFilter(logs.NamesPipeline())


class PipelinesTable:
    """Renders the latest progress of several pipelines, a line each."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._latest: dict[str, tuple[Progress, float]] = {}

    def observer(self, pipeline: str) -> Observe:
        """Shows the progress of this pipeline."""

        def observe(progress: Progress) -> None:
            self._latest[pipeline] = progress, self._clock()

        observe(Progress("starting"))
        return observe

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from replicator.cli.render import as_lines

        now = self._clock()
        yield as_lines({name: (progress, now - at) for name, (progress, at) in self._latest.items()})


class Events:
    """Progress as log events: when the phase or ``waiting_for`` changes, and every ``EVERY`` seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: tuple[str, str | None] | None = None
        self._due = 0.0

    def __call__(self, progress: Progress) -> None:
        now, state = self._clock(), (progress.phase, progress.waiting_for)
        if state != self._last or now >= self._due:
            self._last, self._due = state, now + EVERY
            level = logging.WARNING if progress.waiting_for else logging.INFO
            values = as_values(structs.replace(progress, workers=()))  # a list for each worker would be too long here
            log.log(level, "progress", extra=known(values))


@contextmanager
def _table(console: Any, title: str) -> Iterator[Observe]:
    from rich.live import Live

    logs.install(_Above(console))
    table = LiveTable(title)
    with Live(table, console=console, refresh_per_second=4, transient=False) as live:

        def observe(progress: Progress) -> None:
            table.observe(progress)
            live.refresh()

        yield observe


class LiveTable:
    """Renders the latest progress. If the run has reported nothing for a while, the table shows that it is waiting."""

    def __init__(self, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._title, self._clock = title, clock
        self._progress = Progress("starting")
        self._reported = clock()
        self._size: Any = None

    def observe(self, progress: Progress) -> None:
        self._progress, self._reported = progress, self._clock()

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.control import Control

        from replicator.cli.render import as_table

        before, self._size = self._size, options.size
        if before not in (None, options.size):  # the terminal has re-wrapped the lines on screen
            yield Control.clear()
            yield Control.home()
        yield as_table(self._progress, self._title, self._clock() - self._reported)


class _Above(logging.Handler):
    """Prints log events above the live table."""

    def __init__(self, console: Any) -> None:
        super().__init__()
        self._console = console
        self.setFormatter(logs.Human())

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record), markup=False, highlight=False)
