"""Runs several pipelines in one process, each on its own thread. One that fails does not end the others."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from replicator.config.engine import Local
from replicator.config.settings import Config, Source
from replicator.errors import ConfigError, GapFound, ReplicatorError
from replicator.hooks.time_limit import HookWatch
from replicator.log import PIPELINE, TARGET
from replicator.source.sharing import SharedPages

log = logging.getLogger("replicator")

BUG = 1
SEVERITY = (BUG, 3, 2, 4, 5, 7, 6, 8, 0)  # exit codes, most severe first: a bug, lost records, what only a user can fix
CHECK_EVERY = 1.0  # seconds between two looks at what the hooks do


@dataclass(frozen=True, slots=True)
class PipelineRun:
    """``hook_timeout``: seconds after which a call of its hook is reported; None: never. ``target``: the name of its
    target, for messages.
    """

    name: str
    work: Callable[[], None]
    hook_timeout: float | None = None
    target: str | None = None


@dataclass(slots=True)
class Sharing:
    """The pages that the pipelines of one process share: those whose configs lead to the same table in the same way."""

    _pages: list[tuple[Source, SharedPages]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, source: Source) -> SharedPages:
        """The pages for this source. Logs what keeps it from sharing those of a table with the same name."""
        wanted = source.model_copy(update={"poll_interval": None})
        with self._lock:
            for known, pages in self._pages:
                if known == wanted:
                    return pages
            for known, _ in self._pages:
                if known.table.rpartition("/")[2] == wanted.table.rpartition("/")[2]:
                    _log_not_shared(known, wanted)
            self._pages.append((wanted, SharedPages()))
            return self._pages[-1][1]


def needs_own_process(configs: Sequence[Config]) -> str:
    """Why the pipelines of one file cannot run in one process with others; empty if they can."""
    if all(isinstance(config.engine, Local) for config in configs):
        return ""
    if any(config.replaces is not None for config in configs):
        return (
            "engine: only local runs both copies of a rebuild (replaces), in one process; add --engine local to "
            "replicator run until the rebuild has ended, or set engine.type: local"
        )
    if len(configs) > 1:
        how = "start a separate replicator run for each target, with --target NAME, or add --engine local"
        return f"engine: only local runs several targets in one process; {how}"
    return (
        "engine: only local runs several pipelines in one process; start a separate replicator run for this config, or "
        "add --engine local"
    )


def _log_not_shared(one: Source, other: Source) -> None:
    differing = [name for name in Source.model_fields if getattr(one, name) != getattr(other, name)]
    log.info(
        "reader not shared",
        extra={
            "table": other.table,
            "differing": differing,
            "do": "if it is the same table, make source: the same in these configs: otherwise each shard is read by "
            "more than one reader, and AWS throttles the third",
        },
    )


def worst(codes: Iterable[int]) -> int:
    """The most severe of these exit codes; 0 if there is none."""
    return min(codes, key=SEVERITY.index, default=0)


def run_each(runs: Iterable[PipelineRun], ended: Callable[[str, int], None], check_every: float = CHECK_EVERY) -> None:
    """Run all of them until each has ended. ``ended`` is called with the name and the exit code of each.

    Logs every error when it ends its pipeline. An exception that is not a ReplicatorError is a bug, which
    ``threading.excepthook`` shows.
    """

    def work(run: PipelineRun) -> None:
        code = BUG
        TARGET.set(run.target)  # of this thread
        try:
            run.work()
            code = 0
        except ReplicatorError as e:
            code = e.exit_code
            log_failure(e)
        finally:
            ended(run.name, code)

    threads = {run: threading.Thread(target=work, args=(run,), name=f"{PIPELINE} {run.name}") for run in runs}
    watches = {run: HookWatch(run.hook_timeout) for run in threads}
    for thread in threads.values():
        thread.start()
    for thread in threads.values():
        while thread.is_alive():
            thread.join(check_every)
            for run, watch in watches.items():
                if watch.is_overdue(threads[run].ident):
                    _log_slow_hook(run)


def _log_slow_hook(run: PipelineRun) -> None:
    log.error(
        "hook does not return",
        extra={
            "pipeline": run.name,
            "hook_timeout": run.hook_timeout,
            "do": "a hook can be interrupted, and its item parked, only where its pipeline is the only one in the "
            "process: start a separate replicator run for it",
        },
    )


def log_failure(error: ReplicatorError, **where: str) -> None:
    """Log an error that ends a pipeline while others continue."""
    problems = list(error.problems) if isinstance(error, ConfigError) else [str(error)]
    advice = {"do": f"{error.repair}\n{error.caution}".rstrip()} if isinstance(error, GapFound) else {}
    fields = {"error": type(error).__name__, "exit_code": error.exit_code, "problems": problems}
    log.error("pipeline failed", extra={**where, **fields, **advice})
