"""Builds a second generation of the tables beside the first, and exchanges them: start, switch, rollback, finish.

Here for targets that rename tables: each step is one transaction of the target, so a step that was killed has happened
or not, and is safe to repeat. ``rebuild_by_alias`` has the same steps for those whose readers use an alias.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from replicator.checkpoints.contract import Checkpoints, Claimed
from replicator.checkpoints.presence import check_known
from replicator.config.settings import Config
from replicator.engine import preexisting
from replicator.engine.assembly import ends
from replicator.engine.generations import (
    BUILT,
    RETIRED,
    by_alias,
    decoded,
    first_of,
    replaced,
    second_of,
)
from replicator.errors import ConfigError
from replicator.operations import history, rebuild_by_alias
from replicator.operations.cutover import Criteria, Standing, incomplete, ready, standing
from replicator.operations.rebuild_checks import (
    EXPIRED,
    Outcome,
    busy,
    check_alike,
    check_continues,
    check_resumes,
    complete_tables,
    in_progress,
    not_live,
    of_old,
    rebuild_of,
    refusing,
    repairing,
    require_replaces,
    required,
    rescanning,
    standing_of,
    still_live,
    tables_of,
    with_old,
)
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.state import Entry, Rebuild, Save, encode
from replicator.target.contract import SECOND, Exchange, Rebuilding, Table, TablesBusy, can_rebuild, without_rebuild

ATTEMPTS = 60  # to lock the tables
PAUSE = 0.5  # seconds between two, in which readers get their turn
INTERVAL = 2.0  # seconds between reads of the checkpoints, with --wait


def start(config: Config, now: Callable[[], float] = time.time) -> Outcome:
    """Note the second generation and create its tables; a run with this config builds it."""
    if by_alias(config):
        return rebuild_by_alias.start(config, now)
    with _opened(config) as (target, checkpoints):
        old = replaced(config)
        claimed = checkpoints.read()
        check_known(config.pipeline, checkpoints, claimed)
        if (entry := rebuild_of(claimed)) is not None:
            _require_unswitched(entry)
            noted = decoded(entry)
            assert noted is not None
            check_resumes(second_of(config, noted))
            return Outcome(already=True)
        rebuild = Rebuild(now())
        live, new = tables_of(old), tables_of(second_of(config, rebuild))
        check_alike(old, config, target)  # type: ignore[arg-type]
        made = complete_tables(second_of(config, rebuild))
        if problems := [*target.rebuild_problems(live, new, _retired(config)), *target.check(made)]:  # type: ignore[attr-defined]
            raise ConfigError(*dict.fromkeys(problems))
        save = Save("rebuild", "", 0, encode(rebuild))
        notes = target.prepare(live, made, config.pipeline + SECOND, save)
        return Outcome(notes=[*notes, *(EXPIRED if config.ttl_deletes == "ignore" else ())])


def built(config: Config, now: Callable[[], float] = time.time) -> Standing:
    """The standing of the second generation."""
    with ends(config) as (_, checkpoints):
        entry = required(rebuild_of(checkpoints.read()))
    rebuild = decoded(entry)
    assert rebuild is not None
    return standing_of(second_of(config, rebuild), now())


def await_built(config: Config, tell: Callable[[str], None], pause: Callable[[float], object] = time.sleep) -> None:
    """Wait until a run has built the second generation. ConfigError once it cannot go on by itself."""
    told = ""
    while (at := built(config)).progress.phase != "live":
        if at.progress.gaps:
            raise ConfigError(f"the build stopped: {at.progress.gaps[0].reason}; see: replicator status CONFIG")
        phase = "no run is up: start it with: replicator run CONFIG" if at.progress.phase == "stopped" else ""
        if phase and phase != told:
            tell(phase)
        told = phase
        pause(INTERVAL)


def switch(
    config: Config,
    *,
    verified_within: float,
    unverified: bool = False,
    now: Callable[[], float] = time.time,
    pause: Callable[[float], object] = time.sleep,
) -> Outcome:
    """Give the tables' names to the second generation, if it is ready; the first is kept up to date beside it."""
    if by_alias(config):
        return rebuild_by_alias.switch(config, verified_within=verified_within, unverified=unverified, now=now)
    with _opened(config) as (target, checkpoints):
        claimed = checkpoints.read()
        entry, rebuild = in_progress(claimed)
        if rebuild.switched:
            return Outcome(already=True)
        criteria = Criteria(now(), verified_within=verified_within, ttl_deletes=config.ttl_deletes)
        at = standing_of(second_of(config, rebuild), now())
        found = [*ready(at, criteria, verified=not unverified), *busy(claimed, at)]
        if found:
            return refusing(found)
        check_continues(second_of(config, rebuild), first_of(config, rebuild))
        live = tables_of(first_of(config, rebuild))
        _exchange(target, config, live, (RETIRED, BUILT), entry, replace(rebuild, switched=True), pause)
        return Outcome()


def rollback(
    config: Config,
    *,
    unchecked: bool = False,
    now: Callable[[], float] = time.time,
    pause: Callable[[float], object] = time.sleep,
) -> Outcome:
    """Give the tables' names back to the first generation. ``unchecked``: even if it is behind."""
    if by_alias(config):
        return rebuild_by_alias.rollback(config, unchecked=unchecked, now=now)
    with _opened(config) as (target, checkpoints):
        claimed = checkpoints.read()
        entry, rebuild = in_progress(claimed)
        if not rebuild.switched:
            return Outcome(already=True)
        first, second = standing(claimed, now()), standing_of(second_of(config, rebuild), now())
        if not unchecked:  # a command that repairs the tables all the same is fenced off by the exchange
            found = [*ready(first, Criteria(now()), verified=False), *busy(claimed, second)]
            if found:
                return of_old(found, config)
            check_continues(first_of(config, rebuild))
        live = tables_of(second_of(config, rebuild))
        _exchange(target, config, live, (BUILT, RETIRED), entry, replace(rebuild, switched=False), pause)
        return Outcome()


def finish(
    config: Config, now: Callable[[], float] = time.time, pause: Callable[[float], object] = time.sleep
) -> Outcome:
    """Remove the first generation, unless the second is known not to equal the source: it may still be wanted.

    The second takes the pipeline's name.
    """
    if by_alias(config):
        return rebuild_by_alias.finish(config, now)
    with _opened(config) as (target, checkpoints):
        claimed = checkpoints.read()
        check_known(config.pipeline, checkpoints, claimed)
        entry = rebuild_of(claimed)
        if entry is None:
            return Outcome(already=True)
        rebuild = decoded(entry)
        assert rebuild is not None
        if not rebuild.switched:
            raise not_live()
        with ends(second_of(config, rebuild)) as (_, of_second):
            second = of_second.read()
        at = standing(second, now())
        found = [*incomplete(at), *rescanning(at), *repairing(claimed, now()), *repairing(second, now())]
        if found:
            return refusing(found)
        check_continues(second_of(config, rebuild))
        _require_histories(target, config, rebuild, claimed, second)
        save, live = Save(entry.kind, entry.id, entry.revision, None), tables_of(second_of(config, rebuild))
        continued = history.continued(claimed, second, history.whole_since(target, live))
        second_name, retired = config.pipeline + SECOND, _retired(config)
        exchanged(lambda: target.succeed(retired, live, second_name, save, continued), pause)
        return Outcome()


def _require_histories(target: object, config: Config, rebuild: Rebuild, first: Claimed, second: Claimed) -> None:
    """ConfigError if a part of either history is lost: what is left of both would be taken for all changes."""
    old, new = tables_of(first_of(config, rebuild)), tables_of(second_of(config, rebuild))
    before = preexisting.history_losses(CheckpointView(first), target, old)
    after = preexisting.history_losses(CheckpointView(second), target, new)
    if lost := [*(with_old(text, config) for text in before), *after]:
        raise ConfigError(*lost)


def cancel(config: Config, pause: Callable[[float], object] = time.sleep) -> Outcome:
    """Remove the second generation, which is not live."""
    if by_alias(config):
        return rebuild_by_alias.cancel(config)
    with _opened(config) as (target, checkpoints):
        claimed = checkpoints.read()
        check_known(config.pipeline, checkpoints, claimed)
        entry = rebuild_of(claimed)
        if entry is None:
            return Outcome(already=True)
        _require_unswitched(entry)
        rebuild = decoded(entry)
        assert rebuild is not None
        new = tables_of(second_of(config, rebuild))
        save = Save(entry.kind, entry.id, entry.revision, None)
        exchanged(lambda: target.discard(new, config.pipeline + SECOND, save), pause)
        return Outcome()


@contextmanager
def _opened(config: Config) -> Iterator[tuple[Rebuilding, Checkpoints]]:
    """The target and the checkpoints of the first generation's pipeline."""
    if not can_rebuild(config.target.connector):
        raise ConfigError(without_rebuild(config.target.type, list(config.target.tables)))
    require_replaces(config)
    with ends(config) as (target, checkpoints):
        assert isinstance(target, Rebuilding)
        yield target, checkpoints


def _retired(config: Config) -> Sequence[Table]:
    """The first generation's tables, as they are named while the second one is live."""
    return tables_of(replace(config, target=replace(config.target, suffix=RETIRED)))


def _require_unswitched(entry: Entry) -> None:
    rebuild = decoded(entry)
    if rebuild is not None and rebuild.switched:
        raise still_live()


def _exchange(
    target: Rebuilding,
    config: Config,
    live: Sequence[Table],
    suffixes: tuple[str, str],
    entry: Entry,
    rebuild: Rebuild,
    pause: Callable[[float], object],
) -> None:
    away, here = suffixes
    pipelines = (config.pipeline, config.pipeline + SECOND)
    save = Save(entry.kind, entry.id, entry.revision, encode(rebuild))
    exchanged(lambda: target.exchange(Exchange(live, away, here, pipelines, save)), pause)


def exchanged(exchange: Callable[[], None], pause: Callable[[float], object]) -> None:
    """Exchange or remove the tables, in several attempts while readers hold them."""
    for _ in range(ATTEMPTS - 1):
        try:
            exchange()
        except TablesBusy:
            pause(PAUSE)
        else:
            return
    exchange()
