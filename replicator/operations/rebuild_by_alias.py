"""The steps of a rebuild where readers use an alias: see ``Aliased``.

The new generation has a pipeline name and tables of its own, so nothing is ever renamed. The rebuild is noted in its
pipeline's checkpoints. Which generation is live is noted nowhere: the alias tells, and one request moves it. So a
switch that was killed has happened or not. What removes tables is noted first, and resumed by the same command.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from replicator.checkpoints.contract import Checkpoints, Claimed, Store
from replicator.checkpoints.presence import check_known
from replicator.config.settings import Config
from replicator.engine.assembly import ends
from replicator.engine.generations import decoded, first_of, replaced, second_of
from replicator.errors import ConfigError
from replicator.operations import resync
from replicator.operations.cutover import Criteria, incomplete, ready, standing
from replicator.operations.rebuild_checks import (
    EXPIRED,
    Outcome,
    busy,
    check_alike,
    check_resumes,
    complete_tables,
    in_progress,
    not_live,
    of_old,
    rebuild_of,
    refusing,
    repairing,
    require_replaces,
    rescanning,
    still_live,
    tables_of,
)
from replicator.operations.resync import Wanted
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.state import FENCES, Entry, Owner, Rebuild, Save, encode
from replicator.target.contract import Aliased, Table, Target

_AT_ONCE = 50  # entries removed in one save


@dataclass(frozen=True, slots=True)
class _Generations:
    """Both generations. ``checkpoints``: of the second pipeline, which has the note of the rebuild."""

    first: Config
    second: Config
    any_target: Target
    checkpoints: Checkpoints
    of_first: Checkpoints

    @property
    def target(self) -> Aliased:
        assert isinstance(self.any_target, Aliased)
        return self.any_target

    @property
    def old(self) -> Sequence[Table]:
        return tables_of(self.first)

    @property
    def new(self) -> Sequence[Table]:
        return tables_of(self.second)

    @property
    def pipelines(self) -> tuple[str, str]:
        return self.first.pipeline, self.second.pipeline

    def known(self) -> Claimed:
        """The second pipeline's entries. ConfigError if it has none."""
        claimed = self.checkpoints.read()
        check_known(self.second.pipeline, self.checkpoints, claimed)
        return claimed

    def note_first(self, rebuild: Rebuild | None) -> None:
        """Store in the first pipeline's checkpoints that it has a successor, for commands with its config."""
        entry = rebuild_of(self.of_first.read()) or Entry("rebuild", "", 0, "")
        if decoded(entry if entry.text else None) != rebuild:
            text = None if rebuild is None else encode(rebuild)
            self.of_first.save([Save(entry.kind, entry.id, entry.revision, text)])

    def forget_first(self) -> None:
        """Empty the first pipeline's checkpoints. Fences stay, the owner's renewed: no run of it saves more."""
        entries = self.of_first.read().entries
        others = [Save(e.kind, e.id, e.revision, None) for e in entries if e.kind not in FENCES]
        if others:
            self.of_first.save([Save(e.kind, e.id, e.revision, e.text) for e in entries if e.kind == "owner"])
        for at in range(0, len(others), _AT_ONCE):
            self.of_first.save(others[at : at + _AT_ONCE])

    def note(self, entry: Entry, rebuild: Rebuild | None) -> Entry:
        """Store the note of the rebuild; Fenced if another command has changed it."""
        text = None if rebuild is None else encode(rebuild)
        self.checkpoints.save([Save(entry.kind, entry.id, entry.revision, text)])
        return Entry(entry.kind, entry.id, entry.revision + 1, text or "")


def start(config: Config, now: Callable[[], float] = time.time) -> Outcome:
    """Note the second generation; a run with this config builds it.

    If its pipeline has positions of an earlier copy, as after ``cancel``, a rescan is requested, too.
    """
    with _opened(config) as both:
        if isinstance(both.checkpoints, Store):
            both.checkpoints.create()
        claimed = both.checkpoints.read()
        entry = rebuild_of(claimed)
        rebuild = decoded(entry)
        if rebuild is not None and not rebuild.canceled:
            if rebuild.finishing or _seen(both.target, both.new):
                raise still_live()
            check_resumes(both.second)
            return Outcome(already=True)
        check_alike(replaced(config), config, both.any_target)
        problems = both.target.rebuild_problems(both.old, both.new, both.pipelines)
        if problems := problems or both.any_target.check(complete_tables(both.second)):
            raise ConfigError(*dict.fromkeys(problems))
        if _has_stored(claimed):  # another copy, which is gone
            anew = Wanted(identity_change=True, schema_changes=True, remove_expired=True)
            resync.note(both.second, anew, now)
        both.checkpoints.claim(Owner(uuid.uuid4().hex, socket.gethostname(), os.getpid(), now()))
        both.note_first(Rebuild(0.0, config=os.path.relpath(config.path.resolve(), both.first.base)))
        both.note(entry or Entry("rebuild", "", 0, ""), Rebuild(now()))
        carried = [f"the alias {name} goes along with the switch" for name in both.target.carried(both.old)]
        return Outcome(notes=[*carried, *(EXPIRED if config.ttl_deletes == "ignore" else ())])


def switch(
    config: Config, *, verified_within: float, unverified: bool = False, now: Callable[[], float] = time.time
) -> Outcome:
    """Move the aliases to the second generation, if it is ready; the first is kept up to date beside it."""
    with _opened(config) as both:
        second = both.checkpoints.read()
        _require_open(second)
        if _seen(both.target, both.new) == _names(both.new):
            return Outcome(already=True)
        at = standing(second, now())
        criteria = Criteria(now(), verified_within=verified_within, ttl_deletes=config.ttl_deletes)
        reasons = [*ready(at, criteria, verified=not unverified), *busy(both.of_first.read(), at)]
        if reasons:
            return refusing(reasons)
        return Outcome(already=not both.target.point(both.old, both.new, both.pipelines))


def rollback(config: Config, *, unchecked: bool = False, now: Callable[[], float] = time.time) -> Outcome:
    """Move the aliases back to the first generation. ``unchecked``: even if it is behind."""
    with _opened(config) as both:
        second = both.checkpoints.read()
        _require_open(second)
        if _seen(both.target, both.old) == _names(both.old):
            return Outcome(already=True)
        claimed = both.of_first.read()
        first = standing(claimed, now())
        checks = [*ready(first, Criteria(now()), verified=False), *busy(claimed, standing(second, now()))]
        if reasons := [] if unchecked else checks:  # repairs go on in their index, whatever the aliases point to
            return of_old(reasons, config)
        pipelines = (both.second.pipeline, both.first.pipeline)
        return Outcome(already=not both.target.point(both.new, both.old, pipelines))


def finish(config: Config, now: Callable[[], float] = time.time) -> Outcome:
    """Remove the first generation, unless the second is known not to equal the source: it may still be wanted."""
    with _opened(config) as both:
        claimed = both.known()
        if rebuild_of(claimed) is None:
            return Outcome(already=True)
        entry, rebuild = in_progress(claimed)
        if not rebuild.finishing:
            if _seen(both.target, both.new) != _names(both.new):
                raise not_live()
            first = both.of_first.read()
            at = standing(claimed, now())
            reasons = [*incomplete(at), *rescanning(at), *repairing(first, now()), *repairing(claimed, now())]
            if reasons:
                return refusing(reasons)
            _require_droppable(both.target.drop_problems(both.old, both.first.pipeline))
            entry = both.note(entry, replace(rebuild, finishing=True))
        both.target.drop(both.old, both.first.pipeline)
        both.forget_first()
        both.note(entry, None)
        place = both.of_first.place if isinstance(both.of_first, Store) else "the database"
        return Outcome(notes=[f"the checkpoints of {both.first.pipeline} are emptied ({place})"])


def cancel(config: Config) -> Outcome:
    """Remove the second generation, which is not live. The note stays, so that no run builds it again."""
    with _opened(config) as both:
        claimed = both.known()
        entry = rebuild_of(claimed)
        rebuild = decoded(entry)
        if entry is None or rebuild is None:
            return Outcome(already=True)
        if rebuild.finishing or _seen(both.target, both.new):
            raise still_live()
        _require_droppable(both.target.drop_problems(both.new, both.second.pipeline))
        if not rebuild.canceled:
            both.note(entry, replace(rebuild, canceled=True))
        both.target.drop(both.new, both.second.pipeline)
        both.note_first(None)
        return Outcome(already=rebuild.canceled)


@contextmanager
def _opened(config: Config) -> Iterator[_Generations]:
    require_replaces(config)
    first, second = first_of(config, Rebuild(0.0)), second_of(config, Rebuild(0.0))
    with ends(second) as (target, checkpoints), ends(first) as (_, of_first):
        yield _Generations(first, second, target, checkpoints, of_first)


def _seen(target: Aliased, tables: Sequence[Table]) -> Collection[str]:
    return frozenset(target.seen(tables))


def _names(tables: Sequence[Table]) -> Collection[str]:
    return frozenset(table.name for table in tables)


def _require_open(claimed: Claimed) -> None:
    """ConfigError unless the aliases may still move."""
    _, rebuild = in_progress(claimed)
    if rebuild.finishing:
        raise ConfigError("the old copy is being removed; complete that with: replicator rebuild finish CONFIG")


def _require_droppable(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError(*problems)


def _has_stored(claimed: Claimed) -> bool:
    view = CheckpointView(claimed)
    streamed = any(shard.sequence is not None for shard in view.shards.values())
    return streamed or any(segment.cursor is not None or segment.ended for segment in view.segments.values())
