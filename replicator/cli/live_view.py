"""What `run` shows while it works: a live table on a terminal, log events elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from replicator import log as logs
from replicator.cli.output import aside
from replicator.pipeline.progress import Progress, as_values, known

EVERY = 10.0  # seconds between two progress events of a run that nobody watches

Observe = Callable[[Progress], None]
log = logging.getLogger(__name__)


@contextmanager
def view(as_json: bool, title: str = "") -> Iterator[Observe]:
    """A function that shows progress, for as long as the run lasts. ``title``: what runs, from where to where."""
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


class Events:
    """Progress as log events: when the phase or the trouble changes, and now and then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: tuple[str, str | None] | None = None
        self._due = 0.0

    def __call__(self, progress: Progress) -> None:
        now, state = self._clock(), (progress.phase, progress.waiting_for)
        if state != self._last or now >= self._due:
            self._last, self._due = state, now + EVERY
            level = logging.WARNING if progress.waiting_for else logging.INFO
            log.log(level, "progress", extra=known(as_values(progress)))


@contextmanager
def _table(console: Any, title: str) -> Iterator[Observe]:
    from rich.live import Live

    logs.install(_Above(console))
    shown = Shown(title)
    with Live(shown, console=console, refresh_per_second=4, transient=False) as live:

        def observe(progress: Progress) -> None:
            shown.observe(progress)
            live.refresh()

        yield observe


class Shown:
    """The table as it is now: where nothing was heard of the run for a while, it says so by itself."""

    def __init__(self, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._title, self._clock = title, clock
        self._progress = Progress("starting")
        self._heard = clock()
        self._size: Any = None

    def observe(self, progress: Progress) -> None:
        self._progress, self._heard = progress, self._clock()

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.control import Control

        from replicator.cli.render import as_table

        before, self._size = self._size, options.size
        if before not in (None, options.size):  # the terminal broke the lines that are there anew
            yield Control.clear()
            yield Control.home()
        yield as_table(self._progress, self._title, self._clock() - self._heard)


class _Above(logging.Handler):
    """Log events above the live table."""

    def __init__(self, console: Any) -> None:
        super().__init__()
        self._console = console
        self.setFormatter(logs.Human())

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record), markup=False, highlight=False)
