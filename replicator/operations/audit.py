"""A run audits itself: verification passes beside the stream, on a thread and connections of their own.

A pass is the same as that of ``replicator verify`` over the whole table. It reads only while the run is live, so that a
run with a backlog has the processor and the target to itself, and is resumed where it was whenever it had to stop.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from replicator.config.settings import Config
from replicator.config.verification import Verify
from replicator.engine.context import Environment
from replicator.engine.retry import Stopped
from replicator.errors import ConfigError, Fenced, ReplicatorError, TransientError
from replicator.hooks.hook import Hook
from replicator.hooks.loading import use_exact_decimals
from replicator.hooks.time_limit import HookTimeout, HookWatch, interrupt
from replicator.key import key_text
from replicator.log import PIPELINE, TARGET
from replicator.operations.pass_record import PassRecord, owner_of
from replicator.operations.verify import (
    Ends,
    Paused,
    Progress,
    Request,
    Tally,
    Unconfirmed,
    Watch,
    examine,
    not_resumable,
    opened,
)
from replicator.pipeline import progress as pipeline_progress
from replicator.pipeline.progress import passes_of, with_passes
from replicator.state import BY_RUN, FULL_SCOPE, Entry, PipelineState, Verified
from replicator.verification.differences import Finding, Positions
from replicator.verification.verifier import Result

log = logging.getLogger("replicator")

LOOK_INTERVAL = 1.0  # seconds between looks at the phase of the run
PATIENCE = 600.0  # seconds that a pass keeps its place and its connections while the run is not live
PAUSE = 10.0  # seconds before a pass that had to stop is resumed
LONGEST_REST = 600.0  # seconds between looks at the checkpoints: a command may have verified in the meantime
RETRY_AFTER = 300.0  # seconds after a failure
LEAVES_WITHIN = 2.0  # seconds that a run waits for its pass when it ends
MOST_LOGGED = 100  # differences of one pass that are logged

Observe = Callable[[pipeline_progress.Progress], None]


def due_in(
    passes: Mapping[str, Verified], state: PipelineState, every: float, now: float, ttl_deletes: str = "apply"
) -> float:
    """Seconds until the next pass should begin: ``every`` seconds after the beginning of the last one that ended.

    A pass of an earlier epoch, hook or ``ttl_deletes`` says nothing of the copy as it is now.
    """
    current = [v for v in passes.values() if v.ended is not None and v.scope == FULL_SCOPE]
    wanted = (state.epoch, state.hook, ttl_deletes)
    started = [v.started for v in current if (v.epoch, v.hook, v.ttl_deletes) == wanted]
    return min(every, max(0.0, max(started) + every - now)) if started else 0.0


@dataclass(slots=True)
class Audit:
    """The verification passes of one run. ``stop`` ends them, and nothing else."""

    config: Config
    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    random: random.Random = field(default_factory=random.Random)
    stop: threading.Event = field(default_factory=threading.Event)
    environment: Callable[..., Environment] = Environment
    _live: bool = False
    _passes: Mapping[str, Verified] = field(default_factory=dict)
    _thread: threading.Thread | None = None
    _watch: HookWatch = field(init=False)

    def __post_init__(self) -> None:
        self._watch = HookWatch(self.config.hook_timeout, self.monotonic)

    @contextmanager
    def beside(self, hook: Hook | None) -> Iterator[None]:
        """Verify on a thread of its own until the block ends. ``hook``: the run's own."""
        name = f"{PIPELINE} {self.config.pipeline}"
        self._thread = threading.Thread(target=self._work, args=(hook,), name=name, daemon=True)
        self._thread.start()
        try:
            yield
        finally:
            self.stop.set()
            self._thread.join(LEAVES_WITHIN)

    def observing(self, observe: Observe) -> Observe:
        """``observe``, with what is verified. It is called on the thread of the run, several times a second."""

        def both(progress: pipeline_progress.Progress) -> None:
            self._live = progress.phase == "live"
            self._interrupt_hook()
            observe(with_passes(progress, self._passes, self.now()))

        return both

    def _interrupt_hook(self) -> None:
        """A hook that never returns would take half of the processor from the run, and a pass would never end."""
        ident = None if self._thread is None else self._thread.ident
        if ident is not None and self._watch.is_overdue(ident):
            interrupt(ident, self.config.hook_timeout or 0.0)

    def _work(self, hook: Hook | None) -> None:
        TARGET.set(self.config.target_name)  # of this thread
        use_exact_decimals()
        while not self.stop.is_set():
            with suppress(HookTimeout):  # it may arrive when the hook has just returned
                self.stop.wait(self.turn(hook))

    def turn(self, hook: Hook | None) -> float:
        """Begin or resume a pass if one is due and the run is live. Returns the seconds until the next turn.

        Whatever fails here is no reason for the run to end.
        """
        if not self._live:
            return LOOK_INTERVAL
        try:
            with opened(self.config, hook) as both:
                return self._verified(both)
        except (Paused, Stopped, Unconfirmed, Fenced, HookTimeout) as e:
            log.info("verify paused", extra={"reason": str(e) or type(e).__name__})
            return PAUSE
        except TransientError as e:
            log.warning("verify waiting", extra={"reason": str(e)})
            return PAUSE
        except ReplicatorError as e:
            problems = list(e.problems) if isinstance(e, ConfigError) else [str(e)]
            log.error("verify failed", extra={"error": type(e).__name__, "problems": problems})
        except Exception as e:  # a bug; its message may contain item data
            log.error("verify failed", extra={"error": type(e).__name__, "at": _place(e)})
        return RETRY_AFTER

    def _verified(self, both: Ends) -> float:
        entries = both.checkpoints.read().entries
        self._passes = passes_of(entries)
        record = PassRecord(both.checkpoints, BY_RUN, owner_of(entries))
        resume = not not_resumable(record.unfinished(), both, FULL_SCOPE, self.now())
        rest = due_in(self._passes, both.state, self._options.every, self.now(), self.config.ttl_deletes)
        if rest > 0 and not resume:
            return min(rest, LONGEST_REST)
        log.info("verify resumed" if resume else "verify started", extra={"read_units": self._options.read_units})
        request = Request(resume=resume, read_units=self._options.read_units)
        environment = self.environment(
            self.stop, lambda _: None, now=self.now, random=self.random, monotonic=self.monotonic
        )
        tally = examine(both, request, Log(), environment, record, _RunWatch(self, owner_of(entries)))
        self._passes = passes_of(both.checkpoints.read().entries)
        if not self.stop.is_set():
            log.log(logging.WARNING if tally.exit_code else logging.INFO, "verify ended", extra=_summary(tally))
        return LOOK_INTERVAL

    @property
    def _options(self) -> Verify:
        assert self.config.verify is not None
        return self.config.verify

    def looked(self, entries: Sequence[Entry], current: Positions) -> None:
        """Show what the checkpoints say. Wait while the run is not live; Paused if that takes long."""
        self._passes = passes_of(entries)
        if current.blocked_by:
            raise Paused(current.blocked_by)
        until = self.monotonic() + PATIENCE
        while not self._live and not self.stop.wait(LOOK_INTERVAL):
            if self.monotonic() >= until:
                raise Paused("the run is not live")


@dataclass(slots=True)
class _RunWatch(Watch):
    """``owner``: the revision of the run's claim, when the pass began."""

    audit: Audit
    owner: int

    def looked(self, entries: Sequence[Entry], current: Positions) -> None:
        if owner_of(entries) != self.owner:
            raise Paused("another run owns this pipeline")
        self.audit.looked(entries, current)

    def voided(self) -> None:
        raise Paused("parked changes were discarded, so the pass begins anew")


@dataclass(slots=True)
class Log:
    """Logs what a pass of a run finds: each difference by its key, never by its values."""

    _logged: int = 0
    _waits: bool = False

    def result(self, result: Result) -> None:
        if result.outcome != "difference" or self._logged > MOST_LOGGED:
            return
        self._logged += 1
        if self._logged > MOST_LOGGED:
            log.warning("more differences", extra={"do": "replicator verify CONFIG lists all"})
            return
        found = result.finding
        log.warning(
            "difference",
            extra={
                "kind": found.kind,
                "table": found.table,
                "id": key_text(found.id),
                "item": key_text(found.item) if found.item else None,
                "fields": list(found.fields),
            },
        )

    def progress(self, progress: Progress) -> None:
        """What is recorded is shown."""

    def repair(self, finding: Finding, reason: str) -> None:
        """A run repairs nothing: the difference may be the symptom of something that a person must know of."""

    def waiting(self, reason: str | None) -> None:
        if reason is not None and not self._waits:
            log.warning("verify waiting", extra={"reason": reason})
        self._waits = reason is not None


def _summary(tally: Tally) -> Mapping[str, object]:
    fields = ("items", "documents", "differences", "missing", "extra", "different", "parked", "unconfirmed", "kept")
    advice = {"do": "replicator verify CONFIG --repair, and look for the cause"} if tally.differences else {}
    return {**{name: getattr(tally, name) for name in fields}, **advice}


def _place(error: Exception) -> str:
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return "" if at is None else f"{at.tb_frame.f_code.co_filename}:{at.tb_lineno}"
