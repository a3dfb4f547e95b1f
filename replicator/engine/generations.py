"""Two generations of a pipeline's tables during a rebuild, each kept up to date by a pipeline of its own.

The first generation's pipeline has the name in the config, and the old config. The second one's has that name with
``SECOND`` appended, which no config can, and the new config, whose ``replaces`` names the old one. The generation that
is live has the tables' names; the other's tables have them with a suffix. Finishing a rebuild gives the second pipeline
the first one's name.

Where readers use an alias (``Aliased``), the second generation has a name of its own in its config, and so have its
tables; the rebuild is noted in its checkpoints. The alias alone tells which generation is live.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from replicator.config import settings
from replicator.config.settings import Config
from replicator.engine.assembly import ends
from replicator.engine.context import log_wait
from replicator.engine.retry import RetryPolicy, Stopped
from replicator.engine.several import PipelineRun
from replicator.errors import ConfigError, Fenced, ReplicatorError
from replicator.hooks import loading
from replicator.hooks.collisions import HookFile, collision, hook_file
from replicator.log import PIPELINE
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.state import Entry, Owner, Rebuild, decode
from replicator.target.contract import SECOND, UNKNOWN_KEYS, Aliased, Generation, Rebuilding

log = logging.getLogger("replicator")

BUILT, RETIRED = "_new", "_old"  # suffixes of tables: of the second generation until it is live, then of the first


@dataclass(frozen=True, slots=True)
class Generations:
    """The config of each generation. ``first`` None: no rebuild is in progress, so ``second`` is the only one.

    ``second`` None: the rebuild was canceled.
    """

    first: Config | None
    second: Config | None


def by_alias(config: Config) -> bool:
    """Whether the generations have names of their own, and an alias tells which one is live."""
    connector = config.target.connector
    return isinstance(connector, type) and issubclass(connector, Aliased)


def rebuild_entry(config: Config) -> Entry | None:
    """The entry of the rebuild in progress, as it is stored now."""
    with ends(config) as (_, checkpoints):
        return next((e for e in checkpoints.read().entries if e.kind == "rebuild"), None)


def decoded(entry: Entry | None) -> Rebuild | None:
    if entry is None:
        return None
    value = decode(entry.kind, entry.id, entry.text)
    assert isinstance(value, Rebuild)
    return value


def resolved(config: Config) -> Config:
    """The config as commands use it: during a rebuild, one with ``replaces`` is of the second generation, and the one
    that it replaces is of the first, whatever its tables are named now.
    """
    if config.replaces is None:
        return _retired(config)
    rebuild = decoded(rebuild_entry(config))
    if rebuild is None:
        return config
    if rebuild.canceled:
        raise ConfigError(
            f"the rebuild was canceled, so there is no copy with this config: use {config.replaces}, or start again "
            "with: replicator rebuild start CONFIG"
        )
    return second_of(config, rebuild)


def _retired(config: Config) -> Config:
    """The config of the old copy, for tables that a rebuild may have renamed or taken from their alias; or as it is.

    Checkpoints that cannot be read are reported by what needs them.
    """
    connector = config.target.connector
    if not isinstance(connector, type) or not issubclass(connector, (Rebuilding, Aliased)):
        return config
    rebuild = None
    with contextlib.suppress(ReplicatorError):
        rebuild = decoded(rebuild_entry(config))
    if rebuild is not None and rebuild.config:
        return _beside(config, rebuild.config)
    if rebuild is None or not rebuild.switched:
        return config
    _require_old(config)
    return replace(config, target=replace(config.target, suffix=RETIRED, generation=Generation.OLD))


def _beside(config: Config, successor: str) -> Config:
    """The config of the old copy, whose alias may lead to that of its ``successor``.

    As it is if that file was moved or changed; ConfigError if readers see the new copy, which only that file describes.
    """
    try:
        new = _counterpart(config, successor)
        if new.replaces is not None and (new.base / new.replaces).resolve() == config.path.resolve():
            return first_of(new, Rebuild(0.0))
        why = f"it has no replaces: {config.path.name}"
    except ConfigError as e:
        why = str(e)
    if _has_alias(config):
        return config
    raise ConfigError(
        f"a rebuild with {successor} is in progress, and readers see another copy than this one. Until replicator "
        f"rebuild finish, commands for the old copy need {successor} unchanged: restore it. Problem: {why}"
    )


def _has_alias(config: Config) -> bool:
    """Whether the readers' aliases lead to this copy, or where they lead cannot be told now."""
    with contextlib.suppress(ReplicatorError), ends(config) as (target, _):
        tables = config.target.wanted(UNKNOWN_KEYS, own_ids=False)
        return isinstance(target, Aliased) and len(target.seen(tables)) == len(tables)
    return True


def _require_old(config: Config) -> None:
    """ConfigError for the new config without its ``replaces``: its hook must not write to the old copy."""
    if config.transform is None:
        return
    given = loading.load(config.transform, config.base).fingerprint
    old, new = (_hook_of(name, config) for name in (config.pipeline, config.pipeline + SECOND))
    if given == new != old:
        raise ConfigError(
            "transform: a rebuild has switched to the copy that this hook made, so this config is the new one and "
            "needs replaces: until rebuild finish; commands for the old copy need the old config"
        )


def _hook_of(pipeline: str, config: Config) -> str | None:
    """The fingerprint of the hook that a pipeline was last run with."""
    with ends(replace(config, pipeline=pipeline)) as (_, checkpoints):
        state = CheckpointView(checkpoints.read()).pipeline
    return None if state is None else state.hook


def generations(config: Config, rebuild: Rebuild | None) -> Generations:
    """Both generations. ConfigError if the config that this one ``replaces`` cannot be loaded."""
    if rebuild is None:
        return Generations(None, config)
    first = None if rebuild.finishing else first_of(config, rebuild)
    return Generations(first, None if rebuild.canceled else second_of(config, rebuild))


def second_of(config: Config, rebuild: Rebuild) -> Config:
    new = replace(config.target, generation=Generation.NEW)
    if by_alias(config):
        return replace(config, target=replace(new, beside=replaced(config).target))
    suffix = "" if rebuild.switched else BUILT
    return replace(config, pipeline=config.pipeline + SECOND, target=replace(new, suffix=suffix))


def first_of(config: Config, rebuild: Rebuild) -> Config:
    """The old config. Without monitoring if it would listen where the new one does."""
    old = replaced(config)
    target = replace(old.target, generation=Generation.OLD)
    if by_alias(config):
        target = replace(target, beside=config.target)
    else:
        target = replace(target, suffix=RETIRED if rebuild.switched else "")
    same = old.monitoring is not None and config.monitoring is not None
    same = same and str(old.monitoring.address) == str(config.monitoring.address)  # type: ignore[union-attr]
    monitoring = None if same else old.monitoring
    return replace(old, target=target, monitoring=monitoring)


def replaced(config: Config, load: Callable[..., Sequence[Config]] = settings.load_each) -> Config:
    """The config that this one ``replaces``: in that file, of the target of the same name. ConfigError unless its
    pipeline has the name that it must have.
    """
    assert config.replaces is not None
    old = _counterpart(config, config.replaces, load)
    if by_alias(config):
        _check_names(config, old)
    elif old.pipeline != config.pipeline:
        raise ConfigError(
            f"replaces: {config.replaces} is of the pipeline {old.pipeline}, not of {config.pipeline}; a rebuild "
            "needs the config that the pipeline was last run with"
        )
    if old.path.resolve() == config.path.resolve() or old.replaces is not None:
        raise ConfigError(
            f"replaces: {config.replaces} must be the config that the pipeline was last run with, without replaces:"
        )
    return old


def _counterpart(config: Config, file: str, load: Callable[..., Sequence[Config]] = settings.load_each) -> Config:
    """The config of the same target in another file. ConfigError if there is none."""
    others = settings.load_counterpart(config.base / file, config.target_name, load)
    found = counterpart(config.target_name, others)
    if found is None:
        names = ", ".join(str(other.target_name) for other in others)
        wanted = f"no target {config.target_name}" if config.target_name else "several targets"
        raise ConfigError(f"{file} has {wanted}: it has {names}. The new config's target must have the old one's name")
    return found


def counterpart(target: str | None, others: Sequence[Config]) -> Config | None:
    """Of the configs of another file, that of the same target; the only one if either file has no names of targets."""
    same = next((other for other in others if other.target_name == target), None)
    if same is None and len(others) == 1 and None in (target, others[0].target_name):
        return others[0]
    return same


def hook_files(config: Config) -> list[HookFile]:
    """The files of the hooks that a run with this config loads: its own, and that of the config that it replaces."""
    configs = [config]
    if config.replaces is not None:
        with contextlib.suppress(ReplicatorError):  # once the rebuild has ended, the old config may be gone
            configs.append(replaced(config))
    files = [hook_file(str(c.path), c.transform, c.base) for c in configs if c.transform is not None]
    return [file for file in files if file is not None]


def collisions(configs: Sequence[Config]) -> Mapping[str, str]:
    """The pipelines whose hook could get a module of an earlier one's in the same process, each with the reason."""
    found: dict[str, str] = {}
    hooks: list[HookFile] = []
    for config in configs:
        own = hook_files(config)
        if problem := collision(own, beside=hooks):
            found[config.pipeline] = problem
        else:
            hooks += own
    return found


def _check_names(new: Config, old: Config) -> None:
    """ConfigError unless both generations can be kept side by side behind the same aliases."""
    if old.pipeline == new.pipeline:
        raise ConfigError(
            f"pipeline: {new.replaces} has the same name, {old.pipeline}; the new copy is a pipeline of its own and "
            f"keeps its name: choose another one, such as {old.pipeline}-2"
        )
    if old.target.type != new.target.type or set(old.target.tables) != set(new.target.tables):
        raise ConfigError(
            "target.tables: the new config must name the same tables, of the same type of target, as the one that it "
            f"replaces: {', '.join(sorted(old.target.tables))}. The indices behind them differ (index: NAME)"
        )


Work = Callable[[Config, Callable[[], None]], None]
"""Runs a pipeline: its config, and what must be called when the run owns it."""


Which = Literal["first", "second"]
Claims = dict[str, Which]
"""The generation that each run of this process has claimed, by the run's id in its ``Owner``."""


def runs(config: Config, work: Work, stop: threading.Event) -> list[PipelineRun]:
    """What a run with this config runs: one pipeline, or during a rebuild one for each generation."""
    if config.replaces is None:
        run = partial(work, config, lambda: None)
        return [PipelineRun(config.pipeline, run, config.hook_timeout, config.target_name)]
    claims: Claims = {}
    second = partial(follow, config, "second", work, stop, claims)
    first = partial(follow, config, "first", work, stop, claims)
    names = (config.replaces, config.pipeline) if by_alias(config) else (config.pipeline, config.pipeline + SECOND)
    both = zip(names, (first, second), strict=True)
    return [PipelineRun(name, run, config.hook_timeout, config.target_name) for name, run in both]


def follow(config: Config, which: Which, work: Work, stop: threading.Event, claims: Claims) -> None:
    """Run one of the generations; again under its new tables' names whenever a command has exchanged them.

    Returns when that generation has ended. A run that owns its pipeline is fenced off by the next exchange. One that
    read the tables' names before an exchange and claims its pipeline after it must not look at them: it would find the
    table gone, and record a gap. ``claims``: shared by both generations.
    """
    retrying = RetryPolicy(stop, log_wait, time.time, random.Random())  # spreads retries
    asked = partial(retrying, asks="checkpoints")
    read = partial(asked, partial(rebuild_entry, config))
    with contextlib.suppress(Stopped):
        entry = read()
        both = generations(config, decoded(entry))
        current = _of(both, which)
        while not stop.is_set() and current is not None:
            threading.current_thread().name = f"{PIPELINE} {current.pipeline}"
            try:
                work(current, partial(_confirm, read, entry, partial(_claimed, current, which, claims, asked)))
                return
            except ReplicatorError as e:
                latest = read()
                if latest == entry:
                    raise
                following = _of(generations(config, decoded(latest)), which)
                if latest is None and not _has_succeeded(config, both, decoded(entry), claims, asked):
                    if which == "second":
                        alone = f"the run follows the copy of {config.replaces} alone"
                        log.info("rebuild canceled", extra={"do": alone})
                        return
                    if not _is_of_exchange(e, decoded(entry), partial(_holder, config, claims, asked)):
                        raise  # the old copy's own failure: its pipeline has not ended
                    following = first_of(config, Rebuild(0.0))  # which has the tables' names again
                entry, current = latest, following
                both = generations(config, decoded(entry)) if entry is not None else both
            log.info(
                "tables switched; resuming",
                extra={"do": "nothing: the run resumes with the tables under their new names"},
            )


def _of(both: Generations, which: Which) -> Config | None:
    return both.first if which == "first" else both.second


Asked = Callable[[Callable[[], str | None]], str | None]


def _has_succeeded(config: Config, both: Generations, rebuild: Rebuild | None, claims: Claims, asked: Asked) -> bool:
    """Whether the new copy is the pipeline's, once a rebuild has ended; otherwise it was canceled.

    The run that owns the pipeline now tells, also if a switch or a rollback was missed: ``finish`` takes the owner
    along. If that is another process's, the hook that the pipeline has now. Where both configs have the same one, the
    rebuild as it was last read.
    """
    if rebuild is None:
        return True
    if (holder := _holder(config, claims, asked)) is not None:
        return holder == "second"
    stored = asked(partial(_hook_of, config.pipeline, config))
    old, new = (None if c is None else _fingerprint(c) for c in (both.first, both.second))
    return rebuild.switched if old == new or stored not in (old, new) else stored == new


def _is_of_exchange(error: ReplicatorError, before: Rebuild | None, holder: Callable[[], Which | None]) -> bool:
    """Whether exchanges of the tables that were missed may have ended the old copy's run, of a rebuild that is over.

    An exchange fences off a run, and does not change whose the pipeline is; another run does. ``before``: the rebuild
    when the run began. With other names of the tables any error may be of the exchange; one that is not comes again.
    """
    if isinstance(error, Fenced):
        return isinstance(error, _Exchanged) or holder() == "first"
    return before is not None and before.switched


def _holder(config: Config, claims: Claims, asked: Asked) -> Which | None:
    """The generation whose run, of this process, owns the pipeline now; None if that is another process's."""
    owner = asked(partial(_owner_of, config))
    return None if owner is None else claims.get(owner)


def _owner_of(config: Config) -> str | None:
    """The id of the run that owns the pipeline; None if none ever did."""
    with ends(config) as (_, checkpoints):
        entry = next((e for e in checkpoints.read().entries if (e.kind, e.id) == ("owner", "")), None)
    if entry is None:
        return None
    owner = decode(entry.kind, entry.id, entry.text)
    assert isinstance(owner, Owner)
    return owner.run


def _fingerprint(config: Config) -> str | None:
    """That of the config's hook, "" without one; None if it cannot be loaded (any more)."""
    if config.transform is None:
        return ""
    with contextlib.suppress(ReplicatorError, OSError):
        return loading.load(config.transform, config.base).fingerprint
    return None


class _Exchanged(Fenced):
    """A command has exchanged or removed tables between reading their names and claiming the pipeline."""


def _confirm(read: Callable[[], Entry | None], entry: Entry | None, claimed: Callable[[], None]) -> None:
    claimed()
    if read() != entry:
        raise _Exchanged("the tables were exchanged while the run started")


def _claimed(current: Config, which: Which, claims: Claims, asked: Asked) -> None:
    if (owner := asked(partial(_owner_of, current))) is not None:
        claims[owner] = which
