"""What the steps of a rebuild check and say, whatever the target: see ``rebuild`` and ``rebuild_by_alias``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from replicator.aws.boto import connect
from replicator.checkpoints.contract import Claimed
from replicator.config.settings import Config
from replicator.engine import preexisting
from replicator.engine.assembly import ends, introduce, target_tables
from replicator.engine.cleanup import ABANDONED
from replicator.engine.generations import decoded, hook_files
from replicator.engine.startup import RESUMING, start_mode, with_request
from replicator.errors import ConfigError, GapFound
from replicator.hooks import loading
from replicator.hooks.collisions import collision
from replicator.log import with_target
from replicator.operations.cutover import Reason, Standing, standing
from replicator.pipeline import stages
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.source.table import describe_table
from replicator.state import Entry, Rebuild, decode_repair
from replicator.target.contract import UNKNOWN_KEYS, Table, Target

EXPIRED = ("expired items that the old copy keeps (ttl_deletes: ignore) are not in the new one",)
_KILLED = f"; a run forgets one that was killed {ABANDONED / 60:.0f} minutes after it starts: replicator run CONFIG"
_START = "replicator rebuild start CONFIG"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step did. ``reasons``: why it did nothing. ``already``: it had been done before. ``notes``: sentences."""

    reasons: Sequence[Reason] = ()
    already: bool = False
    notes: Sequence[str] = ()


def refusing(reasons: Sequence[Reason]) -> Outcome:
    """Nothing was done, for these reasons; the most severe one comes first."""
    return Outcome(sorted(reasons, key=lambda reason: reason.code))


def of_old(reasons: Sequence[Reason], config: Config) -> Outcome:
    """Why there is no rollback. What repairs the old copy needs the old config; a run needs the new one."""
    named = [r if r.code == 7 else replace(r, text=with_old(r.text, config)) for r in reasons]
    lossy = any(reason.code in (3, 6) for reason in reasons)
    notes = ("to go back to the old copy as it is: replicator rebuild rollback CONFIG --unchecked",) if lossy else ()
    return replace(refusing(named), notes=notes)


def with_old(text: str, config: Config) -> str:
    """The text, whose commands are for the copy of the old config."""
    return with_target(text).replace("CONFIG", str(config.replaces))  # type: ignore[no-any-return]


def rebuild_of(claimed: Claimed) -> Entry | None:
    return next((e for e in claimed.entries if e.kind == "rebuild"), None)


def required(entry: Entry | None) -> Entry:
    rebuild = decoded(entry)
    if entry is None or rebuild is None or rebuild.canceled:
        raise ConfigError(f"no rebuild is in progress; start one with: {_START}")
    return entry


def in_progress(claimed: Claimed) -> tuple[Entry, Rebuild]:
    entry = required(rebuild_of(claimed))
    rebuild = decoded(entry)
    assert rebuild is not None
    return entry, rebuild


def still_live() -> ConfigError:
    """The new tables cannot be built or removed, as readers see them."""
    return ConfigError(
        "the new tables are live: end this rebuild first, with replicator rebuild finish CONFIG, or go back with "
        "replicator rebuild rollback CONFIG"
    )


def not_live() -> ConfigError:
    """The old tables cannot be removed, as readers see them."""
    return ConfigError(
        "the new tables are not live, so the old ones are not removed. First: replicator rebuild switch "
        "CONFIG; or abandon the rebuild with: replicator rebuild cancel CONFIG"
    )


def tables_of(config: Config) -> tuple[Table, ...]:
    """The tables of one generation, of which only names and columns are needed."""
    return config.target.wanted(UNKNOWN_KEYS, own_ids=False)


def complete_tables(config: Config) -> tuple[Table, ...]:
    """The same with their keys, which the source and the hook determine."""
    hook = loading.load(config.transform, config.base) if config.transform is not None else None
    return target_tables(config, describe_table(connect(config.source), config.source.table), hook)


def check_alike(old: Config, new: Config, target: Target) -> None:
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
    if problem := collision(hook_files(new)):
        raise ConfigError(problem)
    with ends(old) as (old_target, checkpoints):
        introduce(old, old_target, source, client)
        tables = target_tables(old, source, hook)
        places = preexisting.identities(old_target, tables)
        if places != preexisting.identities(target, tables):
            raise ConfigError("target: the new config must name the same tables of the same server as the old one")
        view = CheckpointView(checkpoints.read())
        start_mode(preexisting.inspect(view, source, old_target, tables, hook), RESUMING)


def check_resumes(config: Config) -> None:
    """ConfigError if the hook or the tables changed since a run of this config. Gaps are for the run to handle."""
    hook = loading.load(config.transform, config.base) if config.transform is not None else None
    client = connect(config.source)
    source = describe_table(client, config.source.table)
    with ends(config) as (target, checkpoints), contextlib.suppress(GapFound):
        introduce(config, target, source, client)
        view = CheckpointView(checkpoints.read())
        found = preexisting.inspect(view, source, target, target_tables(config, source, hook), hook)
        start_mode(found, with_request(RESUMING, view.request, found))


def check_continues(*configs: Config) -> None:
    """ConfigError unless a run could go on with these copies: an exchange ends what it does, and it starts anew."""
    for config in configs:
        try:
            check_resumes(config)
        except ConfigError as e:
            said = f"nothing was changed, as a run could not continue the copy of {config.path.name} afterwards: "
            raise ConfigError(*(said + problem for problem in e.problems)) from e


def standing_of(config: Config, now: float) -> Standing:
    with ends(config) as (_, checkpoints):
        return standing(checkpoints.read(), now)


def busy(first: Claimed, second: Standing) -> Iterator[Reason]:
    """Commands that compare or repair the tables."""
    yield from repairing(first)
    yield from verifying(first, second)


def repairing(claimed: Claimed, now: float | None = None) -> Iterator[Reason]:
    """``now``: for steps that need no run, to say what one is needed for if none is up."""
    if any(e.kind == "repair" and not decode_repair(e.text).ended for e in claimed.entries):
        stopped = now is not None and standing(claimed, now).progress.phase == "stopped"
        text = "a verify --repair of these tables is in progress; wait for its end"
        yield Reason(7, text + _KILLED if stopped else text, passing=True)


def rescanning(at: Standing) -> Iterator[Reason]:
    """A resync of the new copy, perhaps because something was wrong with it: the old one may still be wanted."""
    if at.requested or (at.state is not None and at.state.stage in (stages.SCANNING, stages.SWEEPING)):
        yield Reason(7, "a resync of the new copy is requested or in progress; wait for its end", passing=True)


def verifying(first: Claimed, second: Standing) -> Iterator[Reason]:
    """A command's pass would compare the wrong tables from then on; a run, and its own pass, end with the exchange."""
    passes = (standing(first, second.at).progress.verifying, second.progress.verifying)
    if any(going is not None and going.by == "command" for going in passes):
        yield Reason(7, "a verify pass is in progress; wait for its end", passing=True)


def require_replaces(config: Config) -> None:
    if config.replaces is None:
        raise ConfigError(
            "replaces: is missing. Keep the config that the pipeline runs with, and its hook, under other names; then "
            "name it here, e.g. replaces: orders-old.yaml (docs/rebuilding.md)"
        )
