"""The entries of a pipeline as this run sees them: what is stored, and what will be once the batches under way are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from replicator.checkpoints.contract import Claimed
from replicator.identity import UNKNOWN, Definition
from replicator.pipeline.parked import RETRIED, Retries
from replicator.state import (
    VALUES,
    Gap,
    Heartbeat,
    PipelineState,
    Save,
    SegmentState,
    ShardState,
    Spared,
    decode,
    encode,
)

Place = tuple[str, str]  # kind, id
Undo = tuple[Place, int, Any]  # what the entry was: revision 0 and None for nothing

_UNREAD = ("owner", "parked", "dropped")  # the store checks the one; the others are changed by commands, too


class CheckpointView:
    """Entries by kind and id. ``put`` assumes that the save will succeed; ``undo`` takes that back."""

    def __init__(self, claimed: Claimed) -> None:
        self._revisions: dict[Place, int] = {}
        self._values: dict[str, dict[str, Any]] = {kind: {} for kind in VALUES}
        for e in claimed.entries:
            if e.kind not in _UNREAD:
                self._revisions[e.kind, e.id] = e.revision
                self._values[e.kind][e.id] = decode(e.kind, e.id, e.text)

    def in_doubt_until(self, now: float) -> None:
        """Forget how far shards were read, and when they were listed, where that lies in the future.

        A clock that was set back since says nothing about it: what was read up to then has to be seen again.
        """
        shards, heartbeat = self._values["shard"], self.heartbeat
        for id, state in shards.items():
            if state.through is not None and state.through > now:
                shards[id] = replace(state, through=None)
        if heartbeat is not None and (heartbeat.listed or 0.0) > now:
            self._values["pulse"][""] = replace(heartbeat, listed=None)

    def put(self, kind: str, id: str, value: object | None, earlier: Save | None = None) -> tuple[Save, Undo]:
        """The save that makes ``value`` (None: nothing) the entry's value, and what ``undo`` needs.

        It takes the place of an ``earlier`` save of this entry in the same batch: no store is asked to change an entry
        twice at once.
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

    @property
    def segments(self) -> Mapping[str, SegmentState]:
        return self._values["segment"]

    @property
    def gaps(self) -> Mapping[str, Gap]:
        return self._values["gap"]

    @property
    def spared(self) -> Mapping[str, Spared]:
        return self._values["spared"]

    @property
    def retries(self) -> Retries:
        return Retries.of((id, revision) for (kind, id), revision in self._revisions.items() if kind == RETRIED)

    @property
    def heartbeat(self) -> Heartbeat | None:
        return self._values["pulse"].get("")

    @property
    def definition(self) -> Definition:
        """What the pipeline is bound to; UNKNOWN where an earlier version of replicator stored it."""
        found: Definition = self._values["definition"].get("", UNKNOWN)
        return found

    @property
    def pipeline(self) -> PipelineState | None:
        return self._values["pipeline"].get("")
