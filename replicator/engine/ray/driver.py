"""The process of ``replicator run`` with Ray: claims the pipeline, starts the actors, shows what they do, ends them.

It is no part of the pipeline's work: while the coordinator is restarted, workers go on, and while this process is busy,
all of them do. Ray ends the actors with it.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from msgspec import structs

from replicator.checkpoints.contract import Slotted
from replicator.config.engine import Ray
from replicator.engine.context import Environment, RunContext
from replicator.engine.coordinator import COORDINATOR, check_supported
from replicator.engine.ray.actors import Asking, CoordinatorActor, WorkerActor
from replicator.engine.ray.cluster import cluster, incarnation
from replicator.engine.ray.reports import Ended, FromCoordinator, Heard, Plan, Unlogged, Where
from replicator.engine.retry import RetryPolicy, Stopped
from replicator.engine.run import Beside, Until, naming_the_owner
from replicator.engine.startup import Allowed
from replicator.errors import ConfigError, Fenced, TransientError
from replicator.pipeline.progress import CURRENT, Progress, WorkerProgress, aged
from replicator.state import Owner

log = logging.getLogger("replicator")

POLL_INTERVAL = 0.25  # seconds between two looks at what the actors report
WORKER_CPUS = 0.99  # the rest is the coordinator's: as many workers as CPUs fit, and a head without CPUs runs nothing
STARTING = 15.0  # seconds after which a worker that has not started is reported
AGAIN = 2.0  # seconds after which a worker that was fenced begins again
UNHEARD = 10.0  # seconds without a sign of an actor after which that is reported
HANGS = 30.0  # seconds without a response of the coordinator after which it is replaced
HOOKLESS = 300.0  # the same of a worker, if hooks have no time limit
STUCK = 300.0  # seconds without any activity, its own or the target's, after which an actor that responds is replaced
RESTARTING = 60.0  # seconds that a new process gets before it, too, may be replaced
GIVEN_UP = 120.0  # seconds after which the run ends without a coordinator
DRAINING = 4.5  # seconds that the workers get to store what is in flight, once they are told to end
ENDING = 2.0  # seconds that the coordinator then gets


def follow(
    context: RunContext, owner: Owner, environment: Environment, until: Until, allowed: Allowed, beside: Beside
) -> int:
    """Replicate on a Ray cluster; see ``engine.run.Follow``. Stopped if that is asked for before the claim."""
    engine = context.config.engine
    assert isinstance(engine, Ray)
    check_supported(context.target, context.checkpoints)
    with cluster(engine) as ray:
        if environment.stop.is_set():  # while Ray started: what another run does meanwhile goes on
            raise Stopped
        retrying = RetryPolicy(environment.stop, environment.waiting, environment.now, environment.random)
        claimed = retrying(lambda: context.checkpoints.claim(owner), asks="checkpoints")
        environment.confirm()
        assert isinstance(context.checkpoints, Slotted)
        slots = tuple(str(n) for n in range(engine.workers))
        hook = context.hook.fingerprint if context.hook is not None else ""
        plan = Plan(context.config, claimed.revision, slots, until, allowed, hook)
        with naming_the_owner(context.checkpoints), beside(context.hook):
            return Run(ray, plan, environment).work()


@dataclass(slots=True)
class Processes:
    """Those of one actor that were heard of, and how often it was ``restarted``."""

    heard: set[str] = field(default_factory=set)
    restarted: int = 0

    def hear(self, where: Where, incarnation: int | None) -> bool:
        """Whether it was restarted for this process, which was not heard of before. Ray knows of one that was killed
        before anything was heard of it; ``incarnation``: see ``cluster.incarnation``.
        """
        self.heard.add(where.id)
        self.restarted = max(self.restarted, len(self.heard) - 1, incarnation or 0)
        return self.restarted > 0


@dataclass(slots=True)
class Work:
    """What a worker's actor does. ``call``: ends with its work. ``where``: the process that does it, if that is known.

    ``heard``: when that was last known to be up. ``begun``: when it was started, or replaced.
    """

    actor: Any
    call: Any
    begun: float
    where: Where | None = None
    incarnation: int | None = None  # of that process
    heard: float = 0.0
    processes: Processes = field(default_factory=Processes)  # that have done it
    not_before: float = 0.0  # when it may be replaced, or begin again


class Run:
    """The actors of one run, from their start to their end. ``incarnation``: see ``cluster.incarnation``."""

    def __init__(
        self,
        ray: Any,
        plan: Plan,
        environment: Environment,
        incarnation: Callable[[Any], int | None] = incarnation,
    ) -> None:
        self._incarnation = incarnation
        self._id = secrets.token_hex(8)  # another pipeline of the cluster may have the same name and revision
        self._ray, self._plan, self._environment = ray, plan, environment
        self._now, self._limit = environment.monotonic, unheard(plan.config.hook_timeout)
        self._logged: dict[str, int] = {}  # by process, the number of its last event that was logged
        self._coordinator = self._placed(CoordinatorActor, "coordinator", cpus=1 - WORKER_CPUS, calls=8).remote(plan)
        self._works = {slot: self._begun(slot) for slot in plan.slots}
        self._asked: Any = None  # a call of the coordinator that has not returned yet
        self._progress, self._progressed = Progress("starting"), self._now()
        self._coordinated_by, self._coordinated_since, self._heard = "", self._now(), self._now()
        self._coordinators = Processes()
        self._replace_after = math.inf  # when the coordinator may be replaced
        self._coordinator_incarnation: int | None = None

    def _placed(self, actor: type, name: str, *, cpus: float, calls: int) -> Any:
        """An actor class that Ray restarts for ever, away from others of its kind where there are several nodes."""
        options = {"num_cpus": cpus, "max_restarts": -1, "max_concurrency": calls, "scheduling_strategy": "SPREAD"}
        return self._ray.remote(actor).options(name=self._name(name), **options)

    def _name(self, name: str) -> str:
        return f"{self._plan.config.pipeline}/{self._plan.run}/{self._id}/{name}"

    def _begun(self, slot: str) -> Work:
        actor = self._placed(WorkerActor, f"worker {slot}", cpus=WORKER_CPUS, calls=1)
        actor = actor.remote(self._plan, slot, Asking(self._name("coordinator")))
        return Work(actor, self._called(actor), self._now())

    def _called(self, actor: Any) -> Any:
        return actor.run.options(max_task_retries=-1).remote()  # a restarted worker does it again

    def work(self) -> int:
        """Until stopped, caught up, or something is wrong. Returns how many items are parked."""
        ended: Ended | None = None
        while ended is None and not self._environment.stop.wait(POLL_INTERVAL):
            report = self._report()
            ended = self._ended_worker() or (None if report is None else report.ended)
            if report is not None and report.caught_up:
                break
        return self._end(ended)

    # What the actors do

    def _report(self, timeout: float = POLL_INTERVAL) -> FromCoordinator | None:
        """What the coordinator tells; None if it does not respond in time."""
        if self._asked is None:
            self._asked = self._coordinator.report.remote(dict(self._logged), self._restarts())
        if not self._ray.wait([self._asked], timeout=timeout)[0]:
            self._unheard("it does not respond")
            return None
        asked, self._asked = self._asked, None
        errors = self._ray.exceptions
        try:
            report: FromCoordinator = self._ray.get(asked)
        except errors.RayTaskError:  # it responds, with a fault of ours
            raise
        except errors.RayError as e:  # it is being restarted, or its node is gone with the report
            self._unheard(_first_line(e))
            return None
        self._heard = self._now()
        self._show(report)
        return report

    def _restarts(self) -> dict[str, int]:
        """How often each actor was restarted, by its slot."""
        workers = {slot: work.processes.restarted for slot, work in self._works.items()}
        return {COORDINATOR: self._coordinators.restarted, **workers}

    def _unheard(self, why: str) -> None:
        silent = self._now() - self._heard
        if silent > GIVEN_UP:
            raise TransientError(f"engine: Ray does not run the coordinator: {why}")
        if silent > UNHEARD:
            self._observe("Ray: the coordinator does not respond")
        if silent > HANGS:
            self._replace_coordinator(silent)

    def _replace_coordinator(self, seconds: float) -> None:
        """Have Ray start another one, which claims the coordinator's entry: the checkpoints fence this one."""
        if self._now() < self._replace_after:
            return
        self._replace_after = self._now() + RESTARTING
        before, self._coordinator_incarnation = self._coordinator_incarnation, self._incarnation(self._coordinator)
        if self._coordinator_incarnation is None or self._coordinator_incarnation != before:
            return  # Ray has noticed, and starts another one
        log.error("coordinator does not respond", extra={"seconds": round(seconds)})
        self._ray.kill(self._coordinator, no_restart=False)

    def _show(self, report: FromCoordinator) -> None:
        for slot, unlogged in report.logs:
            self._log(slot, unlogged)
        measurements = self._environment.measurements
        for measured in report.measured:
            measured.replay(measurements)
        if report.details is not None:
            details = report.details
            measurements.detailed(lambda: details)
        self._look_at_coordinator(report)
        for slot, work in self._works.items():
            self._look_at(slot, work, report.workers.get(slot))
        if report.progress is None:
            measurements.waiting(report.waiting_for)
            return
        self._progress, self._progressed = self._with_workers(report.progress, report), self._now() - report.age
        self._observe(report.progress.waiting_for or report.waiting_for or self._blocked(report))

    def _with_workers(self, progress: Progress, report: FromCoordinator) -> Progress:
        """With what the workers say themselves: while they wait for the target, they cannot store it there."""
        restarts = self._restarts()

        def current(worker: WorkerProgress) -> WorkerProgress:
            work, heard = self._works.get(worker.slot), report.workers.get(worker.slot)
            worker = structs.replace(worker, restarts=restarts.get(worker.slot, 0))
            if work is None or heard is None or heard.where != work.where:
                return worker
            waiting_for, where = heard.waiting_for or worker.waiting_for, heard.where
            return structs.replace(worker, host=where.host, pid=where.pid, silent=heard.silent, waiting_for=waiting_for)

        return structs.replace(progress, workers=tuple(map(current, progress.workers)))

    def _observe(self, waiting_for: str | None) -> None:
        """Show the last known progress; what is older than a moment is shown as that: its lag grows."""
        age = self._now() - self._progressed
        progress = self._progress if age < CURRENT else aged(self._progress, age)
        self._environment.observe(structs.replace(progress, waiting_for=waiting_for))

    def _log(self, slot: str, unlogged: Unlogged) -> None:
        """Log the events that were not logged yet; they are sent until that is confirmed."""
        last = self._logged.get(unlogged.process, 0)
        for number, event in enumerate(unlogged.events, unlogged.first):
            if number > last:
                event.log(**({"worker": slot} if slot else {}))
                self._logged[unlogged.process] = number

    def _look_at_coordinator(self, report: FromCoordinator) -> None:
        if report.where.id != self._coordinated_by:
            self._coordinated_by, self._coordinated_since = report.where.id, self._now()
            self._coordinator_incarnation, self._replace_after = self._incarnation(self._coordinator), self._now()
            if self._coordinators.hear(report.where, self._coordinator_incarnation):
                log.warning("coordinator restarted", extra={"host": report.where.host, "pid": report.where.pid})
        hangs = report.stuck > STUCK and not report.at_work
        if hangs and report.progress is not None:  # its start may take as long as an index takes
            self._replace_coordinator(report.stuck)

    def _look_at(self, slot: str, work: Work, heard: Heard | None) -> None:
        if heard is not None and heard.where.id not in work.processes.heard:
            work.where, work.incarnation = heard.where, self._incarnation(work.actor)
            if work.processes.hear(heard.where, work.incarnation):
                where = {"host": heard.where.host, "pid": heard.where.pid}
                log.warning("worker restarted", extra={"worker": slot, **where})
        stuck = 0.0
        if heard is not None and heard.where == work.where:
            work.heard = max(work.heard, self._now() - heard.silent)
            stuck = 0.0 if heard.at_work else heard.stuck
        if not work.processes.heard or self._now() < work.not_before:
            return
        silent = self._silent(work)
        if silent > self._limit or stuck > max(STUCK, self._limit):
            self._replace(slot, work, max(silent, stuck))

    def _replace(self, slot: str, work: Work, seconds: float) -> None:
        """Have Ray start another process, unless it does so already; the checkpoints fence this one."""
        work.where, work.begun, work.not_before = None, self._now(), self._now() + RESTARTING
        before, work.incarnation = work.incarnation, self._incarnation(work.actor)
        if work.incarnation is not None and work.incarnation == before:
            log.error("worker does not respond", extra={"worker": slot, "seconds": round(seconds)})
            self._ray.kill(work.actor, no_restart=False)

    def _silent(self, work: Work) -> float:
        """Seconds without a sign of a worker. A restarted coordinator has not heard any, and they tell it soon."""
        return self._now() - max(work.heard, self._coordinated_since)

    def _blocked(self, report: FromCoordinator) -> str | None:
        """What actors wait for, or why nothing is known of them."""
        if report.stuck > UNHEARD:
            return f"Ray: the coordinator makes no progress for {report.stuck:.0f} s"
        for worker in self._progress.workers:
            if worker.waiting_for is not None and not worker.is_coordinator:
                return f"worker {worker.slot}: {worker.waiting_for}"
        for slot, work in self._works.items():
            if work.where is not None and self._silent(work) > UNHEARD:
                return f"Ray: worker {slot} does not respond"
            heard_of = report.workers.get(slot)
            if heard_of is not None and heard_of.where == work.where and heard_of.stuck > UNHEARD:
                return f"Ray: worker {slot} makes no progress for {heard_of.stuck:.0f} s"
        return self._missing()

    def _missing(self) -> str | None:
        """What to say of workers that Ray has not started yet."""
        missing = sum(w.where is None and self._now() - w.begun > STARTING for w in self._works.values())
        if not missing:
            return None
        return f"Ray: {missing} of {len(self._works)} workers have not started: no CPU is free, or nodes are slow"

    def _ended_worker(self) -> Ended | None:
        """How a worker ended that must not be started again; those that were fenced are."""
        calls = {work.call: (slot, work) for slot, work in self._works.items() if work.call is not None}
        done = self._ray.wait(list(calls), num_returns=len(calls), timeout=0)[0] if calls else ()
        for call in done:
            slot, work = calls[call]
            ended = self._result(slot, call)
            if ended.log is not None:
                self._log(slot, ended.log)
            if ended.bug or not (ended.failure is None or isinstance(ended.failure, Fenced)):
                return ended
            work.call = None
            work.not_before = self._now() + AGAIN  # by then, the coordinator says so if another run has taken over
        for work in self._works.values():
            if work.call is None and self._now() >= work.not_before:
                work.call = self._called(work.actor)
        return None

    def _result(self, slot: str, call: Any) -> Ended:
        """How a worker's call ended. Its process cannot start if its creation fails: replicator is missing on its node.
        Ray ends an actor for good also when the raylet of this machine is gone: then the run can be started again.
        """
        errors = self._ray.exceptions
        try:
            ended: Ended = self._ray.get(call)
        except (errors.ObjectLostError, errors.OutOfMemoryError, errors.NodeDiedError, errors.WorkerCrashedError) as e:
            log.warning("worker result lost", extra={"worker": slot, "reason": _first_line(e)})
            return Ended(Fenced(f"engine: worker {slot} was lost: {_first_line(e)}"))  # it begins again
        except errors.RayError as e:
            if isinstance(e, errors.RayTaskError) or getattr(e, "actor_init_failed", False):
                return Ended(ConfigError(f"engine: worker {slot} cannot start: {_last_line(e)}"))
            return Ended(
                TransientError(f"engine: Ray has lost worker {slot}, and does not restart it: {_first_line(e)}")
            )
        return ended

    # The end

    def _end(self, ended: Ended | None) -> int:
        """Have the workers store what is in flight, then the coordinator. Raises what ended the run."""
        self._drain(self._now() + DRAINING)
        self._log_rest()
        report = self._finished(self._now() + ENDING)
        if ended is None and report is not None:
            ended = report.ended
        if ended is not None and ended.bug:
            log.error("bug", extra={"traceback": ended.bug})
            raise RuntimeError("a process of the run failed unexpectedly; see its traceback in the log")
        if ended is not None and ended.failure is not None:
            raise ended.failure
        return self._progress.parked if report is None or report.ended is None else report.parked

    def _drain(self, deadline: float) -> None:
        calls = [work.call for work in self._works.values() if work.call is not None]
        asked = self._coordinator.drain.remote()
        while calls and self._now() < deadline:
            self._report(0.0)
            if self._ray.wait([asked], timeout=0)[0] and self._failed(asked):
                asked = self._coordinator.drain.remote()
            calls = self._ray.wait(calls, num_returns=len(calls), timeout=POLL_INTERVAL)[1]
        if calls:
            log.warning("workers did not end in time", extra={"workers": len(calls)})

    def _log_rest(self) -> None:
        """The last events of the workers that have ended."""
        calls = {work.call: slot for slot, work in self._works.items() if work.call is not None}
        for call in self._ray.wait(list(calls), num_returns=len(calls), timeout=0)[0] if calls else ():
            ended = self._result(calls[call], call)
            if ended.log is not None:
                self._log(calls[call], ended.log)

    def _finished(self, deadline: float) -> FromCoordinator | None:
        asked = self._coordinator.end.remote()
        report = None
        while (report is None or report.ended is None) and self._now() < deadline:
            report = self._report(0.1) or report
            if self._ray.wait([asked], timeout=0.05)[0] and self._failed(asked):
                asked = self._coordinator.end.remote()
        return report

    def _failed(self, call: Any) -> bool:
        try:
            self._ray.get(call)
        except self._ray.exceptions.RayError:
            return True
        return False


def unheard(hook_timeout: float | None) -> float:
    """Seconds without a sign of a worker after which it is replaced. A hook may keep it from giving one."""
    return HOOKLESS if hook_timeout is None else hook_timeout + UNHEARD


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _last_line(error: Exception) -> str:
    """Of an error that Ray raises again: below its traceback."""
    return next(iter(reversed(str(error).strip().splitlines())), type(error).__name__)
