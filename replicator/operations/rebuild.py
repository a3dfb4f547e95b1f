"""Builds a second generation of the tables beside the first, and exchanges them: start, switch, rollback, finish.

Each step is one transaction of the target, so a step that was killed has happened or not, and is safe to repeat.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from replicator.aws.boto import connect
from replicator.checkpoints.contract import Checkpoints, Claimed
from replicator.checkpoints.presence import check_known
from replicator.config.settings import Config
from replicator.engine import preexisting
from replicator.engine.assembly import ends, introduce, target_tables
from replicator.engine.generations import (
    BUILT,
    RETIRED,
    SECOND,
    decoded,
    first_of,
    replaced,
    second_of,
)
from replicator.engine.startup import RESUMING, start_mode
from replicator.errors import ConfigError
from replicator.hooks import loading
from replicator.operations.cutover import Criteria, Reason, Standing, incomplete, ready, standing
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.source.table import describe_table
from replicator.state import Entry, Rebuild, Save, Verified, decode_repair, encode
from replicator.target.contract import UNKNOWN_KEYS, Exchange, Rebuilding, Table, TablesBusy

ATTEMPTS = 60  # to lock the tables
PAUSE = 0.5  # seconds between two, in which readers get their turn
ABANDONED = 900.0  # seconds after which a verify pass that shows no progress counts as killed
INTERVAL = 2.0  # seconds between reads of the checkpoints, with --wait

_EXPIRED = ("expired items that the old copy keeps (ttl_deletes: ignore) are not in the new one",)
_START = "replicator rebuild start CONFIG"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step did. ``reasons``: why it did nothing. ``already``: it had been done before. ``notes``: sentences."""

    reasons: Sequence[Reason] = ()
    already: bool = False
    notes: Sequence[str] = ()


def start(config: Config, now: Callable[[], float] = time.time) -> Outcome:
    """Note the second generation and create its tables; a run with this config builds it."""
    with _opened(config) as (target, checkpoints):
        old = replaced(config)
        claimed = checkpoints.read()
        check_known(config.pipeline, checkpoints, claimed)
        if (entry := _entry(claimed)) is not None:
            _require_unswitched(entry)
            return Outcome(already=True)
        rebuild = Rebuild(now())
        live, new = _tables_of(old), _tables_of(second_of(config, rebuild))
        _check_alike(old, config, target)
        made = _wanted(second_of(config, rebuild))
        if problems := [*target.rebuild_problems(live, new), *target.check(made)]:  # type: ignore[attr-defined]
            raise ConfigError(*dict.fromkeys(problems))
        save = Save("rebuild", "", 0, encode(rebuild))
        notes = target.prepare(live, made, config.pipeline + SECOND, save)
        return Outcome(notes=[*notes, *(_EXPIRED if config.ttl_deletes == "ignore" else ())])


def built(config: Config, now: Callable[[], float] = time.time) -> Standing:
    """The standing of the second generation."""
    with ends(config) as (_, checkpoints):
        entry = _require(_entry(checkpoints.read()))
    rebuild = decoded(entry)
    assert rebuild is not None
    return _standing(second_of(config, rebuild), now())


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
    with _opened(config) as (target, checkpoints):
        claimed = checkpoints.read()
        entry, rebuild = _in_progress(claimed)
        if rebuild.switched:
            return Outcome(already=True)
        criteria = Criteria(now(), verified_within=verified_within)
        at = _standing(second_of(config, rebuild), now())
        found = [*ready(at, criteria, verified=not unverified), *_busy(claimed, at)]
        if found:
            return Outcome(sorted(found, key=lambda reason: reason.code))
        live = _tables_of(first_of(config, rebuild))
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
    with _opened(config) as (target, checkpoints):
        claimed = checkpoints.read()
        entry, rebuild = _in_progress(claimed)
        if not rebuild.switched:
            return Outcome(already=True)
        first, second = standing(claimed, now()), _standing(second_of(config, rebuild), now())
        checks = [*ready(first, Criteria(now()), verified=False), *_verifying(claimed, second)]
        found = [*_repairing(claimed), *([] if unchecked else checks)]
        if found:
            return Outcome(sorted(found, key=lambda reason: reason.code))
        live = _tables_of(second_of(config, rebuild))
        _exchange(target, config, live, (BUILT, RETIRED), entry, replace(rebuild, switched=False), pause)
        return Outcome()


def finish(config: Config, now: Callable[[], float] = time.time) -> Outcome:
    """Remove the first generation, unless the second is known not to equal the source: it may still be wanted.

    The second takes the pipeline's name.
    """
    with _opened(config) as (target, checkpoints):
        claimed = checkpoints.read()
        check_known(config.pipeline, checkpoints, claimed)
        entry = _entry(claimed)
        if entry is None:
            return Outcome(already=True)
        rebuild = decoded(entry)
        assert rebuild is not None
        if not rebuild.switched:
            raise ConfigError(
                "the new tables are not live, so the old ones are not removed. First: replicator rebuild switch "
                "CONFIG; or abandon the rebuild with: replicator rebuild cancel CONFIG"
            )
        with ends(second_of(config, rebuild)) as (_, of_second):
            second = of_second.read()
        found = [*incomplete(standing(second, now())), *_repairing(claimed), *_repairing(second)]
        if found:
            return Outcome(sorted(found, key=lambda reason: reason.code))
        retired = _tables_of(replace(config, target=replace(config.target, suffix=RETIRED)))
        save = Save(entry.kind, entry.id, entry.revision, None)
        target.succeed(retired, _tables_of(second_of(config, rebuild)), config.pipeline + SECOND, save)
        return Outcome()


def cancel(config: Config) -> Outcome:
    """Remove the second generation, which is not live."""
    with _opened(config) as (target, checkpoints):
        claimed = checkpoints.read()
        check_known(config.pipeline, checkpoints, claimed)
        entry = _entry(claimed)
        if entry is None:
            return Outcome(already=True)
        _require_unswitched(entry)
        rebuild = decoded(entry)
        assert rebuild is not None
        new = _tables_of(second_of(config, rebuild))
        target.discard(new, config.pipeline + SECOND, Save(entry.kind, entry.id, entry.revision, None))
        return Outcome()


@contextmanager
def _opened(config: Config) -> Iterator[tuple[Rebuilding, Checkpoints]]:
    """The target and the checkpoints of the first generation's pipeline."""
    if config.replaces is None:
        raise ConfigError(
            "replaces: is missing. Keep the config that the pipeline runs with, and its hook, under other names; then "
            "name it here, e.g. replaces: orders-old.yaml (docs/rebuilding.md)"
        )
    with ends(config) as (target, checkpoints):
        if not isinstance(target, Rebuilding):
            raise ConfigError(unsupported(config))
        yield target, checkpoints


def unsupported(config: Config) -> str:
    """Why there is no rebuild for this type of target, and what to do instead."""
    names = ", ".join(f"{name} and {name}-2" for name in config.target.tables)
    if config.target.type == "dynamodb":
        return (
            f"a DynamoDB table cannot be renamed, so applications must change the name that they read ({names}). Use a "
            "second config with another pipeline: and the new tables, run both, and verify the new one; when no "
            "application reads the old table any more, stop its run"
        )
    return (
        f"rebuild does not support {config.target.type} yet. Use a second config with another pipeline: and other "
        f"tables ({names}), run both, verify the new one, and move an alias of the readers' own to it, in one request "
        "(docs/rebuilding.md has the steps); or rebuild in place: replicator resync CONFIG"
    )


def _entry(claimed: Claimed) -> Entry | None:
    return next((e for e in claimed.entries if e.kind == "rebuild"), None)


def _require(entry: Entry | None) -> Entry:
    if entry is None:
        raise ConfigError(f"no rebuild is in progress; start one with: {_START}")
    return entry


def _in_progress(claimed: Claimed) -> tuple[Entry, Rebuild]:
    entry = _require(_entry(claimed))
    rebuild = decoded(entry)
    assert rebuild is not None
    return entry, rebuild


def _require_unswitched(entry: Entry) -> None:
    rebuild = decoded(entry)
    if rebuild is not None and rebuild.switched:
        raise ConfigError(
            "the new tables are live: end this rebuild first, with replicator rebuild finish CONFIG, or go back with "
            "replicator rebuild rollback CONFIG"
        )


def _tables_of(config: Config) -> tuple[Table, ...]:
    """The tables of one generation, of which only names and columns are needed."""
    return config.target.wanted(UNKNOWN_KEYS, own_ids=False)


def _wanted(config: Config) -> tuple[Table, ...]:
    """The same with their keys, which the source and the hook determine."""
    hook = loading.load(config.transform, config.base) if config.transform is not None else None
    return target_tables(config, describe_table(connect(config.source), config.source.table), hook)


def _check_alike(old: Config, new: Config, target: Rebuilding) -> None:
    """ConfigError or GapFound unless the old config could resume, and both have the same source and tables."""
    if set(old.target.tables) != set(new.target.tables):
        raise ConfigError(
            "target.tables: the new config must name the same tables as the one that it replaces: "
            f"{', '.join(sorted(old.target.tables))}"
        )
    hook = loading.load(old.transform, old.base) if old.transform is not None else None
    client = connect(old.source)
    source = describe_table(client, old.source.table)
    if source.arn != describe_table(connect(new.source), new.source.table).arn:
        raise ConfigError("source: the new config must read the same table as the one that it replaces")
    with ends(old) as (old_target, checkpoints):
        introduce(old, old_target, source, client)
        tables = target_tables(old, source, hook)
        places = preexisting.identities(old_target, tables)
        if places != preexisting.identities(target, tables):  # type: ignore[arg-type]
            raise ConfigError("target: the new config must name the same tables of the same server as the old one")
        view = CheckpointView(checkpoints.read())
        start_mode(preexisting.inspect(view, source, old_target, tables, hook), RESUMING)


def _standing(config: Config, now: float) -> Standing:
    with ends(config) as (_, checkpoints):
        return standing(checkpoints.read(), now)


def _busy(first: Claimed, second: Standing) -> Iterator[Reason]:
    """Commands that compare or repair tables under their present names."""
    yield from _repairing(first)
    yield from _verifying(first, second)


def _repairing(claimed: Claimed) -> Iterator[Reason]:
    if any(e.kind == "repair" and not decode_repair(e.text).ended for e in claimed.entries):
        yield Reason(7, "a verify --repair of these tables is in progress; wait for its end", passing=True)


def _verifying(first: Claimed, second: Standing) -> Iterator[Reason]:
    passes = (standing(first, second.at).verification, second.verification)
    if any(last is not None and _in_progress_pass(last, second.at) for last in passes):
        yield Reason(7, "a verify pass is in progress; wait for its end", passing=True)


def _in_progress_pass(last: Verified, now: float) -> bool:
    return last.ended is None and now - last.updated < ABANDONED


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
    """Exchange the tables, in several attempts while readers hold them."""
    for _ in range(ATTEMPTS - 1):
        try:
            exchange()
        except TablesBusy:
            pause(PAUSE)
        else:
            return
    exchange()
