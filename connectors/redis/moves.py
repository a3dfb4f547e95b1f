"""Which slots moved between primaries, and whether one of these may have lost some of their keys. Pure.

The keys of a slot move one by one, its count like any other. A node that is lost while they arrive may have passed the
count on to its replica, and not the documents. So a count that is there proves something only where it was counted:
after a move it is counted once more, and until then the nodes themselves must not have been replaced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from connectors.redis.cluster import SLOTS


@dataclass(frozen=True, slots=True)
class Standing:
    """A cluster at one moment. Nodes are named by their ids.

    ``owners``: the primary of each slot; empty for none. ``runs``: the run id of each primary: another one after a
    restart. ``replicas``: the primary of each. ``promoted``: primaries that were replicas before. ``moving``: by slot
    that is moving, the two nodes.
    """

    owners: Sequence[str]
    runs: Mapping[str, str]
    replicas: Mapping[str, str] = field(default_factory=dict)
    promoted: frozenset[str] = frozenset()
    moving: Mapping[int, frozenset[str]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Another one if another primary has a slot, or another slot is moving."""
        text = repr((list(self.owners), sorted(self.moving)))
        return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def is_replaced(self, node: str, run: str, before: Standing) -> bool:
        """Whether a node that was a primary ``before`` has restarted, or a replica has taken its place. Not if it has
        only left."""
        if node in self.runs:
            return self.runs[node] != run
        return any(of == node and replica in self.runs for replica, of in before.replicas.items())


@dataclass(slots=True)
class Moves:
    """What happened to each slot since it was last counted where it is.

    ``since``: by slot, the cluster at that time. ``parties``: of slots that were seen moving since, each node that took
    part, and its run id. ``doubtful``: slots that may lack documents.
    """

    since: list[Standing]
    last: Standing
    parties: dict[int, dict[str, str]] = field(default_factory=dict)
    doubtful: set[int] = field(default_factory=set)

    @classmethod
    def begin(cls, now: Standing) -> Moves:
        moves = cls([now] * SLOTS, now)
        moves.look(now)
        return moves

    def look(self, now: Standing) -> list[int]:
        """The slots that have arrived elsewhere, or back, and must be counted there."""
        arrived = [slot for slot in range(SLOTS) if self._has_arrived(slot, now)]
        self.last = now
        return arrived

    def _has_arrived(self, slot: int, now: Standing) -> bool:
        since, moving = self.since[slot], now.moving.get(slot)
        was, owner = since.owners[slot], now.owners[slot]
        if moving is None and slot not in self.parties and (was == owner or since.replicas.get(owner) == was):
            self.since[slot] = now
            return False
        known = self.parties.setdefault(slot, {})
        for node in {was, owner, *(moving or ())} - known.keys() - {""}:
            known[node] = self._run_of(slot, node, now)
        if any(now.is_replaced(node, run, self.last) for node, run in known.items()):
            self.doubtful.add(slot)
        return moving is None

    def _run_of(self, slot: int, node: str, now: Standing) -> str:
        """The run id that a node must still have."""
        since = self.since[slot]
        if node in since.runs:
            return since.runs[node]
        if node in since.replicas or node in now.promoted:  # another one received the keys
            self.doubtful.add(slot)
        return now.runs.get(node, "")

    def counted(self, slots: Iterable[int], now: Standing) -> None:
        """The slots that ``look`` returned were counted since."""
        for slot in slots:
            self.since[slot] = now
            self.parties.pop(slot, None)
