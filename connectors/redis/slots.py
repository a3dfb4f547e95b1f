"""Counts what each slot of a cluster has stored, since its primary may lose what it acknowledged.

A slot moves between primaries, and each of them may lose the end of its own history when a replica takes over. So the
count is in the slot itself, and in the same step as the write: where both were made, both are there, or neither is. On
the way to another primary they may part (see ``moves``).
"""

from __future__ import annotations

import functools
import hashlib
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from connectors.redis.cluster import SLOTS, slot_of, tags
from connectors.redis.connection import ScriptCall
from connectors.redis.layout import Layout
from connectors.redis.moves import Moves
from connectors.redis.options import RESERVED
from connectors.redis.routing import Cluster
from connectors.redis.scripts import NOTED, NOTHING, Script, counted
from connectors.redis.tally import Opened

_DAY = 86400.0  # seconds
_NEVER = 1 << 52  # more than is ever counted
_REFRESHED = 43200.0  # seconds, after which all slots are compared although nothing moved: their counts are in use

counting = functools.cache(counted)


@functools.lru_cache(maxsize=4)
def tallies(pipeline: str) -> Sequence[bytes]:
    """The key of the tally of each slot."""
    name = pipeline.encode()
    return [b"%bslot:{%b}:%b" % (RESERVED.encode(), tag, name) for tag in tags()]


def digest(cluster: Cluster, pipeline: str) -> str:
    """Another one if a tally is gone, or slots lack calls that were counted: then another one each time."""
    ids = cluster.keyed(*((b"HGET", key, b"id") for key in tallies(pipeline)))
    found = hashlib.sha1(b"\n".join(id or b"" for id in ids), usedforsecurity=False).hexdigest()
    return f"{found} {uuid.uuid4().hex}" if any(map(_is_marked, ids)) else found


def plan(cluster: Cluster, pipeline: str) -> list[str]:
    """The command that makes the first tally that is missing, and a comment on how many more like it there are."""
    keys = tallies(pipeline)
    there = cluster.keyed(*((b"EXISTS", key) for key in keys))
    missing = [key for key, found in zip(keys, there, strict=True) if not found]
    if not missing:
        return []
    first = f"HSETNX {missing[0].decode()} id {uuid.uuid4().hex[:16]}"
    return [
        first,
        f"# … and the same for {len(missing) - 1:,} other slots, of {SLOTS:,}: a hash with the count of each",
    ]


def _is_marked(id: bytes | None) -> bool:
    """Whether calls that the slot had counted were found to be missing, and no later epoch has begun since."""
    return id is not None and id.startswith((b"emptied", b"incomplete"))


@dataclass(slots=True)
class SlotTally:
    """How many calls each slot has counted. Every slot has a tally from the first epoch on, so one that is gone shows.

    By slot: ``ids`` of the tallies; ``batches``: how many calls are certainly counted; ``own``: of this process, which
    is told from others (repairs, retries) by its ``token``. ``staged``: counts of a batch that is not stored yet, and
    all of this process's own among them: if a primary is replaced meanwhile, all of it is sent again, so what it lost
    of it does not matter.
    ``complete``: False once calls are missing. ``doubtful``: slots that may lack documents, since a node that gave or
    received them was replaced; then it is not complete, either. ``certain``: False if calls of earlier runs may be
    missing. ``trusted``: the primaries lose nothing.
    No ``tables`` before they are opened: then nothing is counted.
    """

    tables: Sequence[Layout] = ()
    pipeline: str = ""
    epoch: int = 0
    token: str = ""
    complete: bool = True
    doubtful: frozenset[int] = frozenset()
    certain: bool = True
    trusted: bool = False
    ids: list[bytes] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    own: list[int] = field(default_factory=list)
    staged: dict[int, tuple[int, set[int]]] = field(default_factory=dict)
    _compared: tuple[int, float] = (-1, 0.0)
    _moves: Moves | None = None

    def prepare(self, cluster: Cluster, pipeline: str, epoch: int, *, begins: bool) -> None:
        """Read every slot's tally, and make those that are missing: if the epoch goes on, what they counted is lost.

        Before the tables are noted: a run that is killed in between makes them again. Their ids say that something was
        lost, for when only the response was.
        """
        self.pipeline, self.tables = pipeline, ()
        self.token, self.own, self.staged = uuid.uuid4().hex[:16], [0] * SLOTS, {}
        emptied = b"emptied %d " % epoch
        new = (b"" if begins else emptied) + self.token.encode()
        keys = tallies(pipeline)
        found = _read(cluster, keys)
        missing = [slot for slot, (id, _) in enumerate(found) if id is None or (begins and _is_marked(id))]
        cluster.keyed(*((b"HSET" if found[slot][0] else b"HSETNX", keys[slot], b"id", new) for slot in missing))
        for slot, one in zip(missing, _read(cluster, [keys[slot] for slot in missing]), strict=True):
            found[slot] = one
        self.ids, self.batches = [id or b"" for id, _ in found], [int(batches or 0) for _, batches in found]
        self.complete = begins or not any(id.startswith(emptied) for id in self.ids)
        self.doubtful = frozenset()
        self._compared = (-1, 0.0)

    def begin(
        self, cluster: Cluster, tables: Sequence[Layout], notes: Sequence[Opened], epoch: int, *, trusted: bool
    ) -> None:
        """Where slots have moved since the last run, count once: what is lost from now on shows."""
        self.epoch, self.trusted = epoch, trusted
        self.certain = all(note.certain for note in notes)
        standing = cluster.standing()
        if any(self.batches) and notes[0].slots != standing.digest:
            self._count(cluster, range(SLOTS))
        self._moves, self.tables = Moves.begin(standing), tables

    def _count(self, cluster: Cluster, slots: Iterable[int]) -> None:
        calls = [self.counted(slot, [], []) for slot in slots]
        for slot, (_, counts) in zip(slots, cluster.run_all(counting(NOTHING), calls), strict=True):
            self._read_at_once(slot, counts)

    def counted(self, slot: int, keys: Sequence[bytes], arguments: Sequence[bytes]) -> ScriptCall:
        """Keys and arguments of the ``counting`` script."""
        return self._call(slot, keys, arguments, b"1" if self.certain else b"own", b"%d" % int(time.time()))

    def _call(
        self, slot: int, keys: Sequence[bytes], given: Sequence[bytes], step: bytes, now: bytes, known: int = 0
    ) -> ScriptCall:
        counts = self.ids[slot], b"%d" % (known or self.batches[slot]), self.token.encode(), b"%d" % self.own[slot]
        return [*keys, tallies(self.pipeline)[slot]], [*given, *counts, now, step]

    def read(self, slot: int, response: Any) -> bool:
        """``response``: what the script returned of its counting.

        False if another call of the batch was counted under the same number: its primary was replaced in between, by
        one that lacks it.
        """
        if isinstance(response, int):
            self.complete = False
            return True
        batches, own = self.staged.get(slot, (0, set[int]()))
        self.staged[slot] = max(batches, response[0]), own | {response[1]}
        return response[1] not in own

    def commit(self) -> None:
        for slot, (batches, own) in self.staged.items():
            self.batches[slot], self.own[slot] = max(self.batches[slot], batches), max(self.own[slot], *own)
        self.staged.clear()

    def run_all(self, cluster: Cluster, script: Script, calls: Sequence[ScriptCall]) -> list[Any]:
        """The results of calls of a script, each on keys of one slot, and counted there."""
        if not self.tables:
            return cluster.run_all(script, calls)
        slots = [slot_of(keys[0]) for keys, _ in calls]
        made = [self.counted(slot, *one) for slot, one in zip(slots, calls, strict=True)]
        responses = cluster.run_all(counting(script), made)
        for slot, (_, counts) in zip(slots, responses, strict=True):
            self._read_at_once(slot, counts)
        return [result for result, _ in responses]

    def _read_at_once(self, slot: int, counts: Any) -> None:
        """Beside a batch whose counts are staged."""
        if isinstance(counts, int):
            self.complete = False
        else:
            self.batches[slot], self.own[slot] = max(self.batches[slot], counts[0]), max(self.own[slot], counts[1])

    def compare(self, cluster: Cluster, now: float) -> None:
        """Compare every slot's count if anything moved or restarted since the last time, else one of each primary's.

        Then note the primaries as those that have everything, if they do.
        """
        standing = cluster.standing(self._moves.last if self._moves is not None else None)
        arrived = self._moves.look(standing) if self._moves is not None else []
        of, at = self._compared
        is_full = of != cluster.opened or not 0 <= now - at < _REFRESHED
        of, servers = cluster.opened, cluster.serving.encode()
        self._compare(cluster, range(SLOTS) if is_full else _one_of_each(cluster), now)
        if self._moves is not None:
            self._doubt(cluster, self._moves.doubtful)
            self._count(cluster, arrived)
            self._moves.counted(arrived, standing)
        complete = servers if self.complete and self.certain else b""
        noted = [self.pipeline.encode(), b"%d" % self.epoch, complete, standing.digest.encode()]
        if -1 in cluster.run_all(NOTED, [([table.note], noted) for table in self.tables]):
            self.complete = False
        if is_full:
            self._compared = of, now

    def _doubt(self, cluster: Cluster, slots: set[int]) -> None:
        """What one of these slots may lack is missing for every later run, too."""
        if slots and not self.trusted:
            if self.complete:
                self.doubtful = frozenset(slots)
            self.complete = False
            calls = [self._call(slot, [], [], b"0", b"0", known=_NEVER) for slot in slots]
            cluster.run_all(counting(NOTHING), calls)
        slots.clear()

    def _compare(self, cluster: Cluster, slots: Iterable[int], now: float) -> None:
        """Read the counts; where some are missing, or have not been in use for a day, the script does the rest."""
        wanted, at, mine = list(slots), b"%d" % int(now), b"of:" + self.token.encode()
        keys = tallies(self.pipeline)
        found = _read(cluster, [keys[slot] for slot in wanted], mine)
        noticed = [slot for slot, one in zip(wanted, found, strict=True) if not self._is_there(slot, now, *one)]
        calls = [self._call(slot, [], [], b"0", at) for slot in noticed]
        for slot, (_, counts) in zip(noticed, cluster.run_all(counting(NOTHING), calls), strict=True):
            self._read_at_once(slot, counts)

    def _is_there(self, slot: int, now: float, id: bytes | None, batches: bytes | None, own: bytes | None) -> bool:
        count, _, used = (own or b"0 0").partition(b" ")
        is_used = count == b"0" or 0 <= now - int(used) < _DAY
        is_complete = int(batches or 0) >= self.batches[slot] and int(count) >= self.own[slot]
        return id == self.ids[slot] and is_complete and is_used


def _read(cluster: Cluster, keys: Sequence[bytes], *more: bytes) -> list[Any]:
    """The id and the count of each tally, and ``more`` fields."""
    return cluster.keyed(*((b"HMGET", key, b"id", b"batches", *more) for key in keys))


def _one_of_each(cluster: Cluster) -> list[int]:
    return list({place: first for first, _, place in cluster.view.ranges}.values())
