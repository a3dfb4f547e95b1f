"""Which records a run lost, and which it only says it lost: kept beside the source, which forgets them."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from replicator.errors import GapFound
from replicator.pipeline.lineage import ancestors
from replicator.state import PipelineState, ShardState
from replicator.testing.dynamodb.reads import position
from tests.simulation import truth

if TYPE_CHECKING:
    from tests.simulation.world import Universe

HOUR = 3600.0
RETENTION = 24 * HOUR  # that AWS promises
SKEWED = HOUR  # by which the clock may be behind that an epoch is dated with: its scan has what came until then
UNEVEN = HOUR / 4  # by which a run's clock may be wrong when it says how far it came
BOUND = 20 * HOUR  # that replicator promises: a copy that was live may be away for so long, whatever its shards do


class Records:
    """Every record of the table's stream, by shard, as (sequence, created). ``live``: when a run was, last."""

    def __init__(self) -> None:
        self.by_shard: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self.opened: dict[str, float] = {}
        self.parents: dict[str, str | None] = {}
        self._ended: set[tuple[float, str]] = set()  # what an epoch, by its start, read to its end: it may forget it
        self.live = self._excused = 0.0

    def note(self, universe: Universe) -> None:
        """Remember the newest record of each shard, and which shards were read to their end."""
        if not (universe.scenario.months and universe.streaming):
            return
        shards, state = _stored(universe)
        if state is not None:
            self._ended |= {(state.started, id) for id, shard in shards.items() if shard.ended}
        for shard in universe.source.shards(universe.TABLE):
            self.opened[shard.id] = shard.opened
            self.parents[shard.id] = shard.parent
            known = self.by_shard[shard.id]
            if shard.sequences and (not known or known[-1][0] < shard.sequences[-1]):
                known.append((shard.sequences[-1], shard.created[-1]))

    def told_live(self, universe: Universe, at: float) -> None:
        """A run was up to date then. What an absence before it may have cost shows within a day."""
        self._check_stored(universe, at - UNEVEN)
        if at - self.live > BOUND:
            self._excused = at + RETENTION
        self.live = max(self.live, at)

    def _check_stored(self, universe: Universe, before: float) -> None:
        """Nothing older is unread in the unknown shards that follow one which was read to its end.

        In a shard that is known there may be: a few empty pages look like its end.
        """
        if not universe.scenario.months:
            return
        shards, state = _stored(universe)
        if state is None:
            return
        lonely = shards.keys() - {shard.parent for shard in shards.values()}
        since = state.started + SKEWED
        for id in (id for id, parent in self.parents.items() if id not in shards and parent in lonely):
            unread = (created for _, created in self._unread_of(id, shards, state))
            late = sum(since <= created < before for created in unread)
            assert not late, f"live as of {before:.0f}, and {late} older records of {id} are not stored"

    def told_later(self, universe: Universe) -> bool:
        """Whether the next complete listing is a gap: listings that omitted shards had an old one taken for a new one.

        Until then its records may be stored after those of the shards behind it.
        """
        shards, _ = _stored(universe)
        parents = {shard.id: shard.parent for shard in universe.source.shards(universe.TABLE)}
        older = ancestors([id for id, shard in shards.items() if not shard.whole], parents)
        hidden = ancestors(older - shards.keys(), parents)
        old = [(id, shard) for id, shard in shards.items() if id in older and (shard.whole or id in hidden)]
        return any(not shard.ended or shard.anchor is not None or shard.sequence is not None for _, shard in old)

    def judge(self, universe: Universe, gap: GapFound) -> None:
        """A gap is reported only if a needed record is gone, or if the copy was away for longer than promised.

        A shard that was read, empty or not, up to some time was not away before that, where nothing is trimmed before
        its time and no listing lies. How far one that ended was read says nothing of the shards after it.
        """
        if gap.shard is None or "mistaken" in str(gap):
            return  # of another table, stream or target; or changes may have been read in the wrong order
        if "changes since the export" in str(gap):  # whether it has any, only reading it could tell
            assert universe.scenario.existing, f"a gap though every change is in the export or newer: {gap}"
            return
        if not universe.scenario.months:
            young = universe.clock.now - universe.began < RETENTION - SKEWED
            assert universe.trimmed_early or not young, f"a gap though nothing is lost: {gap}"
            return
        shard = _stored(universe)[0].get(gap.shard or "")
        honest = "brink" in universe.scenario.rates  # else the months have the acts of other worlds
        reading = shard is not None and not shard.ended and not gap.gone
        read = shard.through or 0.0 if shard is not None and reading and honest else 0.0
        away = universe.clock.now - max(self.live, read)
        lost = any(created < universe.clock.now - RETENTION for _, created in self._unread(universe))
        excused = away > BOUND or universe.clock.now < self._excused
        assert lost or excused, f"a gap after {away / HOUR:.1f} hours, though nothing is lost: {gap}"

    def _unread(self, universe: Universe) -> Iterator[tuple[int, int]]:
        """Records that this epoch needs and has not stored."""
        shards, state = _stored(universe)
        if state is not None:
            for id in self.by_shard:
                yield from self._unread_of(id, shards, state)

    def _unread_of(self, id: str, shards: Mapping[str, ShardState], state: PipelineState) -> Iterator[tuple[int, int]]:
        shard = shards.get(id)
        if (shard is None and self.opened[id] < state.started) or (shard and shard.ended):
            return
        if shard is None and (state.started, id) in self._ended:
            return
        position = int(shard.sequence) if shard is not None and shard.sequence is not None else -1
        yield from ((s, created) for s, created in self.by_shard[id] if s > position and created >= state.started)

    def check_complete(self, universe: Universe) -> None:
        """A copy that caught up read every record of its epoch: what a shard counts is what there was."""
        shards, state = _stored(universe)
        if not universe.scenario.months or state is None:
            return
        for id, shard in shards.items():
            parent = shards.get(shard.parent or "")
            if parent is None and (shard.parent is not None or shard.whole):
                continue  # nothing says any more where its ordinals began
            passed = shard.ordinal - (parent.ordinal if parent is not None else 0) if shard.sequence is not None else 0
            there = sum(created >= state.started + SKEWED for _, created in self.by_shard[id])
            assert passed >= there, f"{there} records of {id} were needed, {passed} were read"


class Blanks:
    """Which pages the source may leave empty: as AWS does, whose shards stay open for four hours.

    An unread record that is older keeps a page from being empty. One that was read before, at which a reader resumes,
    does not. A page with something to return is left empty MOST times at most.
    """

    MOST = 9  # less than shard_reader.PROOF_PAGES is in the simulation

    def __init__(self) -> None:
        self._left_empty: Counter[tuple[str, int]] = Counter()

    def may_be_empty(self, universe: Universe, request: Mapping[str, Any]) -> bool:
        place = id, after = position(request["ShardIterator"])
        shards = [shard for shard in universe.source.shards(universe.TABLE) if shard.id == id]
        follows = bisect_right(shards[0].sequences, after) if shards else 0
        if not shards or follows == len(shards[0].sequences):
            return True
        sequence, created = shards[0].sequences[follows], shards[0].created[follows]
        if sequence not in _read(universe, id) and universe.clock.now - created > RETENTION - BOUND:
            return False
        self._left_empty[place] += 1
        return self._left_empty[place] <= self.MOST


def _read(universe: Universe, id: str) -> set[int]:
    """The last record of a shard that is stored, or its anchor: where a reader resumes."""
    state = _stored(universe)[0].get(id)
    return {int(at) for at in (state.sequence, state.anchor) if at is not None} if state is not None else set()


def _stored(universe: Universe) -> tuple[dict[str, ShardState], PipelineState | None]:
    entries = universe.database.entries
    shards = {id: truth.decoded(kind, text) for (kind, id), (_, text) in entries.items() if kind == "shard"}
    state = truth.decoded("pipeline", entries["pipeline", ""][1]) if ("pipeline", "") in entries else None
    assert state is None or isinstance(state, PipelineState)
    return {id: s for id, s in shards.items() if isinstance(s, ShardState)}, state
