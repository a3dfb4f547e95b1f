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

_MARGIN = 2.0  # seconds by which the start of a process, which is told in whole ones, may be off


@dataclass(frozen=True, slots=True)
class Standing:
    """A cluster at one moment. Nodes are named by their ids.

    ``owners``: the primary of each slot; empty for none. ``runs``: the run id of each primary: another one after a
    restart. ``replicas``: the primary of each. ``promoted``: primaries that were replicas before. ``moving``: by slot
    that is moving, the two nodes. ``histories``: the replication id of each primary: another one after each takeover;
    ``before``: the one that it had before that. ``continued``: by former primary that lives on as a replica, the
    primary that has everything that it had. ``at``: wall clock; ``born``: when the process of each primary began.
    """

    owners: Sequence[str]
    runs: Mapping[str, str]
    replicas: Mapping[str, str] = field(default_factory=dict)
    promoted: frozenset[str] = frozenset()
    moving: Mapping[int, frozenset[str]] = field(default_factory=dict)
    histories: Mapping[str, str] = field(default_factory=dict)
    before: Mapping[str, str] = field(default_factory=dict)
    continued: Mapping[str, str] = field(default_factory=dict)
    at: float = 0.0
    born: Mapping[str, float] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Another one if another primary has a slot, or another slot is moving."""
        text = repr((list(self.owners), sorted(self.moving)))
        return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def is_replaced(self, node: str, run: str, before: Standing) -> bool:
        """Whether a node that was a primary ``before`` has restarted, or a replica has taken its place, if only for a
        time. Not if it has only left."""
        if node in self.runs:
            was_away = node in before.runs and self.before.get(node, "") not in ("", before.before.get(node, ""))
            return self.runs[node] != run or was_away
        return any(of == node and replica in self.runs for replica, of in before.replicas.items())

    def has_kept(self, owner: str, was: str, since: Standing) -> bool:
        """Whether a slot that the primary ``was`` had is not moved: its ``owner`` is the same, or has taken over from
        that one. Not if it has taken over from another one, to which the slot may have moved before."""
        previous = self.before.get(owner, "")
        if owner == was and previous == since.before.get(owner, ""):
            return True
        if previous and any(previous == history for id, history in since.histories.items() if id != was):
            return False
        if owner == was:
            return True
        took_over = since.replicas.get(owner) == was or (previous != "" and previous == since.histories.get(was))
        return took_over and was not in self.runs


@dataclass(frozen=True, slots=True)
class Party:
    """A node that gave or received a slot. ``run``: its run id; empty until it has said so. ``seen``: since when it is
    known to take part."""

    run: str
    seen: float


@dataclass(slots=True)
class Moves:
    """What happened to each slot since it was last counted where it is.

    ``since``: by slot, the cluster at that time. ``parties``: of slots that were seen moving since, each node that took
    part. ``doubtful``: slots that may lack documents.
    """

    since: list[Standing]
    last: Standing
    parties: dict[int, dict[str, Party]] = field(default_factory=dict)
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
        if moving is None and slot not in self.parties and now.has_kept(owner, was, since):
            self.since[slot] = now
            return False
        known = self.parties.setdefault(slot, {})
        for node in {was, owner, *(moving or ())} - known.keys() - {""}:
            known[node] = self._joined(slot, node, now)
        if any(self._is_replaced(node, known, now) for node in list(known)):
            self.doubtful.add(slot)
        return moving is None

    def _joined(self, slot: int, node: str, now: Standing) -> Party:
        """With the run id that it must still have."""
        since = self.since[slot]
        if node in since.runs:
            return Party(since.runs[node], now.at)
        is_another = node in since.replicas or node in now.promoted
        if is_another and node not in now.continued.values():  # another one received the keys
            self.doubtful.add(slot)
        return Party(now.runs.get(node, ""), now.at)

    def _is_replaced(self, node: str, known: dict[str, Party], now: Standing) -> bool:
        party = known[node]
        if not party.run and node in now.runs:  # it could not be asked before
            known[node] = Party(now.runs[node], party.seen)
            return now.born.get(node, now.at) > party.seen + _MARGIN
        if (successor := now.continued.get(node)) is not None and node not in now.runs:
            del known[node]
            known[successor] = Party(now.runs.get(successor, ""), now.at)
            return False
        return now.is_replaced(node, party.run, self.last)

    def counted(self, slots: Iterable[int], now: Standing) -> None:
        """The slots that ``look`` returned were counted since."""
        for slot in slots:
            self.since[slot] = now
            self.parties.pop(slot, None)
