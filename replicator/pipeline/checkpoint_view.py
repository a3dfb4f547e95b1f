"""A run's view of the checkpoint entries: as stored, plus the changes of the batches in flight."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from replicator.checkpoints.contract import Claimed
from replicator.errors import GapFound
from replicator.identity import UNKNOWN, Definition
from replicator.pipeline.parked import RETRIED, Retries
from replicator.state import (
    VALUES,
    Entry,
    Gap,
    Heartbeat,
    HistorySpan,
    ParkedItem,
    PipelineState,
    ResyncRequest,
    Save,
    SegmentState,
    ShardState,
    Slot,
    Spared,
    Stripped,
    decode,
    decode_request,
    encode,
)

Place = tuple[str, str]  # kind, id
Undo = tuple[Place, int, Any]  # the entry's previous revision and value; 0 and None if there was none

# The store checks the owner; ParkedItems tracks parked and dropped entries and repairs; commands write the last.
_UNREAD = ("owner", "parked", "dropped", "repair", "verified", "rebuild")


class CheckpointView:
    """Entries by kind and id. ``put`` assumes that the save will succeed; ``undo`` reverts it."""

    def __init__(self, claimed: Claimed, before: CheckpointView | None = None) -> None:
        """``before``: an earlier view, from which unchanged shards are taken: there may be thousands."""
        self._revisions: dict[Place, int] = {}
        self._values: dict[str, dict[str, Any]] = {kind: {} for kind in VALUES}
        for e in claimed.entries:
            if e.kind not in _UNREAD:
                known = before.shards.get(e.id) if before is not None and e.kind == "shard" else None
                same = known is not None and before is not None and before._revisions["shard", e.id] == e.revision
                self._revisions[e.kind, e.id] = e.revision
                self._values[e.kind][e.id] = known if same else decode(e.kind, e.id, e.text)

    def discard_times_after(self, now: float) -> None:
        """Discard read and listing times that lie after ``now``: the clock was set back, so they prove nothing."""
        shards, heartbeat = self._values["shard"], self.heartbeat
        for id, state in shards.items():
            if state.through is not None and state.through > now:
                shards[id] = replace(state, through=None)
        if heartbeat is not None and (heartbeat.listed or 0.0) > now:
            self._values["pulse"][""] = replace(heartbeat, listed=None)

    def put(self, kind: str, id: str, value: object | None, earlier: Save | None = None) -> tuple[Save, Undo]:
        """Set the entry to ``value`` (None: remove it); return the save, and the argument for ``undo``.

        The save replaces an ``earlier`` one of the same entry in the batch, so that a batch saves each entry once.
        """
        place, values = (kind, id), self._values[kind]
        undo = (place, self._revisions.get(place, 0), values.get(id))
        revision = undo[1] if earlier is None else earlier.expected or 0
        if value is None:
            self._revisions.pop(place, None)
            values.pop(id, None)
        else:
            self._revisions[place], values[id] = revision + 1, value
        return Save(kind, id, revision, None if value is None else encode(value)), undo

    def undo(self, undo: Undo) -> None:
        (kind, id), revision, value = undo
        if value is None:
            self._revisions.pop((kind, id), None)
            self._values[kind].pop(id, None)
        else:
            self._revisions[kind, id], self._values[kind][id] = revision, value

    @property
    def shards(self) -> Mapping[str, ShardState]:
        return self._values["shard"]

    def learn(self, entry: Entry) -> object:
        """Take over an entry that another process has stored."""
        value = decode(entry.kind, entry.id, entry.text)
        self._revisions[entry.kind, entry.id], self._values[entry.kind][entry.id] = entry.revision, value
        return value

    def relearn(self, kind: str, entries: Iterable[Entry]) -> None:
        """Take over all entries of a kind, as others have stored them."""
        for id in list(self._values[kind]):
            self._revisions.pop((kind, id), None)
        self._values[kind].clear()
        for entry in entries:
            if entry.kind == kind:
                self.learn(entry)

    @property
    def items(self) -> Mapping[str, ParkedItem]:
        return self._values["item"]

    @property
    def histories(self) -> Mapping[str, HistorySpan]:
        """What a history of the tables knows, by epoch."""
        return self._values["history"]

    @property
    def histories_by_epoch(self) -> Mapping[int, HistorySpan]:
        """The same by the epoch's number."""
        return {int(epoch): span for epoch, span in self.histories.items()}

    @property
    def slots(self) -> Mapping[str, Slot]:
        return self._values["slot"]

    @property
    def segments(self) -> Mapping[str, SegmentState]:
        return self._values["segment"]

    @property
    def gaps(self) -> Mapping[str, Gap]:
        return self._values["gap"]

    def has_gap(self, gap: GapFound) -> bool:
        """Whether it is recorded, and not repaired."""
        return any(g.repaired is None and (g.reason, g.shard) == (gap.reason, gap.shard) for g in self.gaps.values())

    @property
    def last_gap(self) -> float | None:
        """When the last gap was found of those that are not repaired."""
        return max((gap.found for gap in self.gaps.values() if gap.repaired is None), default=None)

    @property
    def spared(self) -> Mapping[str, Spared]:
        return self._values["spared"]

    @property
    def retries(self) -> Retries:
        return Retries.of((id, revision) for (kind, id), revision in self._revisions.items() if kind == RETRIED)

    @property
    def request(self) -> ResyncRequest | None:
        """The rescan that a command requested, as last read."""
        return self._values["request"].get("")

    def reread_request(self, entry: Entry | None) -> None:
        """Take over the request's entry as it is stored now: commands change it during a run."""
        self._revisions.pop(("request", ""), None)
        self._values["request"].clear()
        if entry is not None:
            self._revisions["request", ""] = entry.revision
            self._values["request"][""] = decode_request(entry.text)

    @property
    def heartbeats(self) -> Mapping[str, Heartbeat]:
        """Of each process by its slot, "" for the run or its coordinator."""
        return {id: beat for id, beat in self._values["pulse"].items() if isinstance(beat, Heartbeat)}

    @property
    def heartbeat(self) -> Heartbeat | None:
        return self._values["pulse"].get("")

    @property
    def stripped(self) -> Stripped | None:
        """What `strip` has done; None unless it began."""
        return self._values["stripped"].get("")

    @property
    def definition(self) -> Definition:
        """What the pipeline is bound to; UNKNOWN if it was stored by an earlier version of replicator."""
        definition: Definition = self._values["definition"].get("", UNKNOWN)
        return definition

    @property
    def pipeline(self) -> PipelineState | None:
        return self._values["pipeline"].get("")


def gap_id(now: float, slot: str, taken: Collection[str]) -> str:
    """The id of a gap found ``now``: none of those ``taken``, of gaps that were found in the same millisecond.

    ``slot``: of who found it, as two may find one at the same time; empty for a run of one process.
    """
    milliseconds = round(now * 1000)
    while True:
        at = f"{milliseconds / 1000:017.3f}"
        id = f"{at}@{slot}" if slot else at
        if id not in taken:
            return id
        milliseconds += 1
