"""The production driver, pipeline and readers in a simulated world, one run after the other and one beside the other.

What the target holds at the end is compared with what the hook gives for each item.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from replicator.aws.errors import AwsError
from replicator.batch import Batch
from replicator.config.settings import Backfill, Config, Source
from replicator.config.target import Destination
from replicator.engine import preexisting
from replicator.engine.binding import check_start
from replicator.engine.context import Environment, RunContext
from replicator.engine.gap_repair import WAITING
from replicator.engine.local import Driver
from replicator.engine.startup import Allowed
from replicator.errors import ConfigError, Fenced, GapFound, TransientError
from replicator.hooks.hook import Hook
from replicator.hooks.time_limit import HookTimeout
from replicator.items.item import Item
from replicator.key import KeyAttribute, KeySchema
from replicator.pipeline.progress import Progress
from replicator.source.table import SourceTable, describe_table
from replicator.state import Owner
from replicator.target.contract import OWN_IDS, Table
from replicator.target.in_doubt import WINDOW
from replicator.testing.dynamodb import DynamoDB
from tests.simulation import requests, truth
from tests.simulation.clock import VirtualStop
from tests.simulation.schedule import SeededSteps
from tests.simulation.targets import Killed, Unreliable, UnreliableIndex, UnreliableStore

if TYPE_CHECKING:
    from tests.simulation.identities import Slip
    from tests.simulation.world import Universe

Wrong = Literal["run", "resync", "retry"]
PATIENCE = 2000  # turns within which a run that nothing disturbs must be live
TURNS_A_SHARD = (
    100  # with more than twenty open ones: each poll is a turn, and an unlisted parent is awaited for minutes
)


class NeverSettled(AssertionError):
    """Faults stopped, and still the run did not catch up."""


class Touched:
    """The source's wire: the process may die before each call, and a clock that is wrong signs nothing."""

    def __init__(self, universe: Universe, slip: Slip | None = None) -> None:
        self._universe = universe
        self._source = universe.source if slip is None else slip.source
        self.server = universe.SERVER if slip is None else slip.server

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        self._universe.effect(operation)
        if self._universe.clock.refuses():
            raise AwsError("InvalidSignatureException", "Signature expired: 1 is now earlier than 2", 400)
        response = self._source.call(operation, request)
        if operation == "Scan" and self._source is self._universe.source:
            self._universe.scans.answered(self._universe, request, response)
        return response


class Described:
    """The source as it is described before anything goes wrong."""

    def __init__(self, client: Touched, source: DynamoDB) -> None:
        self.server, self.call = client.server, source.call


def described(client: Described, name: str) -> SourceTable:
    """The table, after as many attempts as it takes."""
    while True:
        with suppress(TransientError):
            return describe_table(client, name)


def copy_in(universe: Universe, slip: Slip | None = None) -> RunContext:
    """What a run works with: as it should be, or with a slip in its config."""
    name = universe.TABLE if slip is None else slip.table
    destinations = universe.tables if slip is None else slip.tables
    config = Config(
        "simulated",
        Source(table=name),
        Destination("memory", None, None, destinations),  # type: ignore[arg-type]
        backfill=backfill_in(universe),
        on_gap="export" if universe.scenario.repairs_gaps else "resync",
        ttl_deletes="ignore" if universe.scenario.keeps_expired else "apply",
    )
    hook, target = strained(universe, universe.hook()), universe.target(universe)
    if slip is not None and slip.database is not None:
        assert isinstance(target, UnreliableIndex)
        target.lead(slip.database, slip.place)
    store = target.checkpoints if isinstance(target, Unreliable) else UnreliableStore(universe)
    client = Touched(universe, slip)
    table = described(Described(client, client._source), name)
    tables = tuple(Table(name, keys_of(universe), dict(options)) for name, options in destinations.items())
    return RunContext(config, client, target, store, hook, table, tables)


def backfill_in(universe: Universe) -> Backfill:
    segments = universe.scenario.segments
    if not universe.scenario.exports:
        bucket = "exports" if universe.scenario.repairs_gaps else None
        return Backfill(segments=segments, bucket=bucket)
    existing = universe.exported() if universe.scenario.existing else ""
    where = {"export": existing} if existing not in ("", "-") else {"bucket": "exports"}
    return Backfill.model_validate({"from": "export", "segments": segments, **where})


def strained(universe: Universe, hook: Hook | None) -> Hook | None:
    """The hook, on a machine that is busy now and then."""
    if hook is None or "strain" not in universe.scenario.rates:
        return hook
    right = hook.function

    def function(item: Item) -> object:
        if universe.take("strain"):
            raise HookTimeout(10.0)
        return right(item)

    return replace(hook, function=function)


def admitted(universe: Universe, slip: Slip | None = None, *, resync: bool = False) -> RunContext:
    """What a run works with, once it was looked at as before any run."""
    copy = copy_in(universe, slip)
    check_start(
        copy.checkpoints,
        lambda view: preexisting.inspect(view, copy.table, copy.target, copy.tables, copy.hook),
        Allowed(resync=resync, hook_change=universe.fixed, schema_changes=universe.scenario.columns),
        lambda request: preexisting.check_new_epoch(copy.target, copy.tables, request),
    )
    return copy


def driver_in(universe: Universe, copy: RunContext) -> Driver:
    world = Environment(
        VirtualStop(universe.clock),  # type: ignore[arg-type]
        partial(_told, universe, universe.runs),
        universe.clock.wall,
        universe.random,
        lambda client: SeededSteps(universe, client),
        universe.clock,
    )
    driver = Driver(copy, Owner(f"run{universe.runs}", "here", 1, universe.clock()), world)
    _slow_hook(universe, driver)
    _judge_gaps(universe, driver)
    return driver


def _judge_gaps(universe: Universe, driver: Driver) -> None:
    """Each gap that the run reports must be one."""
    inner = driver._gap

    def judged(gap: GapFound) -> None:
        if not driver.pipeline.view.has_gap(gap):
            universe.records.judge(universe, gap)
        inner(gap)

    driver._gap = judged  # type: ignore[method-assign]


def keys_of(universe: Universe) -> KeySchema:
    """What the target's tables are filed under."""
    hook = universe.hook()
    return OWN_IDS if hook is not None and hook.declared else KeySchema((KeyAttribute("pk", "S"),))


def _told(universe: Universe, run: int, progress: Progress) -> None:
    if progress.lag_seconds is not None and progress.phase == "live":
        universe.records.told_live(universe, universe.clock.now - progress.lag_seconds)
    if run == universe.runs:  # one that was replaced, and does not know it yet, may be wrong
        truth.check_told(universe.database, progress)


def go(universe: Universe, turns: int, until: Literal["caught-up"] | None = "caught-up") -> None:
    """One run, for so many turns at most; it may be killed, or fenced off by another one."""
    universe.depth += 1
    universe.runs += 1
    run = universe.runs
    resync = universe.resync_ordered
    universe.note("run", run, "begins", "with a resync" if resync else "")
    began = universe.clock.now
    if universe.leaks:
        universe.armed["leak"] = 1
    turned: list[float] = []
    try:
        copy = admitted(universe, resync=resync)
        if universe.during_start is not None:
            _interrupt_start(universe, copy)
        driver = driver_in(universe, copy)
        limit_turns(driver, turns, lambda left: _turns(universe, driver, turned))
        epoch = truth.epoch_of(universe.database.entries)
        extends = universe.scenario.columns
        driver.run(until=until, allowed=Allowed(resync, universe.fixed, schema_changes=extends))
        universe.caught_up = True
        truth.check_swept(universe, epoch, turned[-1] - turned[0] if turned else 0.0)
        universe.records.told_live(universe, began)
    except Fenced:
        assert run < universe.runs, "a run was fenced off that no other run had replaced"
    except ConfigError as e:
        _refused_export(universe, str(e))
    except GapFound as e:  # ended with exit code 3; a person starts it again
        if "on_gap: export cannot repair that" in str(e):
            _rescan(universe)
    except Killed:
        pass
    finally:
        universe.note("run", run, "ended")
        universe.depth -= 1


def _turns(universe: Universe, driver: Driver, turned: list[float]) -> None:
    """Note when a run turns. One that waits for nothing but time to repair a gap need not wait for long."""
    turned.append(universe.clock.now)
    waiting = driver._fetcher.waiting_for.values() if driver._fetcher is not None else ()
    if any("to export all changes until then" in reason for reason in waiting):
        universe.clock.now += 30.0
    elif any(reason.startswith(WAITING) for reason in waiting):
        universe.clock.now += 1.0


def _refused_export(universe: Universe, reason: str) -> None:
    """A run was refused, which must have a reason: people restore files that were overwritten, and have a new export
    made instead of one that exists, and resync where the fixed hook must not read the rest of one.
    """
    spoiled = universe.spoils > 0 and "is damaged" in reason
    too_old = universe.existing not in ("", "-") and "backfill.export: the export is of" in reason
    another = universe.fixed and "changed while the backfill reads an export" in reason
    if another:
        _rescan(universe)
    assert spoiled or too_old or another or not universe.streaming, (
        f"a run was refused though nothing is wrong: {reason}"
    )
    universe.restore_files()
    universe.existing = "-" if too_old else universe.existing


def _rescan(universe: Universe) -> None:
    """People order a resync, because nothing less helps."""
    universe.rescans += 1
    universe.order_resync()


def _interrupt_start(universe: Universe, copy: RunContext) -> None:
    """Let a command get between the requests with which a run begins."""
    wait = universe.during_start_after

    def call(request: Callable[..., Any], *given: Any, **named: Any) -> Any:
        nonlocal wait
        wait -= 1
        if wait < 0 and universe.during_start is not None:
            interrupt, universe.during_start = universe.during_start, None
            interrupt()
        return request(*given, **named)

    for end, names in ((copy.checkpoints, ("claim", "read", "parked", "save")), (copy.target, ("open", "write"))):
        for name in names:
            setattr(end, name, partial(call, getattr(end, name)))


def _slow_hook(universe: Universe, driver: Driver) -> None:
    """Time passes in the hook; what a batch may do then is done by the production code before each call."""
    take = driver.pipeline.take

    def slow(now: float, before_hook: Callable[[bool], None]) -> Batch | None:
        def before(divisible: bool) -> None:
            universe.ponder()
            before_hook(divisible)

        return take(now, before)

    if "ponder" in universe.scenario.rates:
        driver.pipeline.take = slow  # type: ignore[method-assign, assignment]


def refused(universe: Universe, slip: Slip, command: Wrong = "run") -> None:
    """A command with a slip in its config: it must be refused, whatever lives beside it, and change nothing."""
    universe.note("slip", slip.what, "in", command)
    before = deepcopy(universe.database)
    assert "--accept-identity-change" in _refusal(universe, slip, command), (slip.what, command)
    assert universe.database == before, f"a slip in the config of {command} ({slip.what}) changed what is stored"


def _refusal(universe: Universe, slip: Slip, command: Wrong) -> str:
    universe.depth += 1
    try:
        copy = admitted(universe, slip, resync=command == "resync")
        if command != "retry":  # which goes no further than this before it opens the tables
            driver = driver_in(universe, copy)
            limit_turns(driver, 30)
            driver.run(until="caught-up", allowed=Allowed(command == "resync", universe.fixed))
    except ConfigError as e:
        return str(e)
    except GapFound as e:
        return f"a gap: {e}"
    finally:
        universe.depth -= 1
    return "nothing: it was accepted"


def settle(universe: Universe) -> None:
    """Runs one after the other until the world has done its worst; then one that must catch up."""
    while not universe.over:
        universe.between_runs()
        if universe.over:
            break  # commands ran beyond it: all that follows is the run that must catch up
        caught_up = universe.random.random() < 0.2 or universe.scenario.cron
        go(universe, 10_000, "caught-up" if caught_up else None)
        if universe.scenario.cron:
            universe.lapse(universe.scenario.rest * universe.answers.random())
        with suppress(Killed):
            universe.happen()
    universe.between_runs()
    universe.restore_files()
    requests.renew(universe)
    universe.caught_up = False
    before = universe.existing, universe.rescans
    shards = universe.source.open_shards(universe.TABLE) if universe.streaming else []
    turns = max(PATIENCE, TURNS_A_SHARD * len(shards))
    go(universe, turns)
    if before != (universe.existing, universe.rescans):  # it was refused, and people have a new one made, or resync
        go(universe, turns)
    if not universe.caught_up:
        raise NeverSettled(f"the last run did not catch up within {turns} turns")
    if universe.scenario.index:
        _outlive(universe, _has_doubt)
    if "repair" in universe.scenario.rates:
        _outlive(universe, _has_repair)


def _has_doubt(universe: Universe, driver: Driver) -> bool:
    in_doubt = driver._in_doubt
    return in_doubt is not None and (bool(in_doubt) or in_doubt.over)


def _has_repair(universe: Universe, driver: Driver) -> bool:
    """Whether a command repairs, or was killed while it did, or the tombstones that it needed are left to purge."""
    repairs = universe.repairer is not None or ("repair", "") in universe.database.entries
    return repairs or bool(universe.late) or _has_doubt(universe, driver)


def _outlive(universe: Universe, lasts: Callable[[Universe, Driver], bool]) -> None:
    """A run that continues until no request can be applied late any more, and cleanup is done: until nothing ``lasts``.

    A command that repairs is given time to end before hours pass.
    """
    driver = driver_in(universe, copy_in(universe))

    def passes(left: int) -> None:
        if universe.repairer is not None:
            universe.clock.now += 1.0
        elif left % 100 == 85:  # again, because a run that resyncs begins to doubt anew
            universe.clock.now += WINDOW
            universe.arrive()
        if left < 985 and not lasts(universe, driver):
            raise Killed

    limit_turns(driver, 1000, passes)
    with suppress(Killed):
        driver.run(until=None, allowed=Allowed(hook_change=universe.fixed))
    assert not universe.late


def limit_turns(driver: Driver, turns: int, before: Callable[[int], None] = lambda left: None) -> None:
    """Kill the run after so many turns. ``before`` each one, it is told how many are left."""
    left, inner = turns, driver._turn

    def turn() -> None:
        nonlocal left
        before(left)
        left -= 1
        if left < 0:
            raise Killed
        inner()

    driver._turn = turn  # type: ignore[method-assign]
