"""Writes encoded batches to a cluster: to each node one pipeline, with a call of the script for each slot."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from connectors.redis.cluster import slot_of
from connectors.redis.connection import call, is_late_since
from connectors.redis.encode import Encoded, Entry, grouped
from connectors.redis.routing import Cluster, Round, SlotCall
from connectors.redis.scripts import WRITE, Script
from connectors.redis.slots import SlotTally, counting
from connectors.redis.writer import MOST, MOST_BYTES, Result, VersionedWriter, head_of, script_call
from replicator.errors import ReplicatorError, TransientError, Unfinished
from replicator.target.in_doubt import TOO_LATE, InDoubtWindow

Group = tuple[int, Sequence[Entry]]
"""A slot, and writes in it."""


@dataclass(slots=True)
class _Sent:
    """``unsent``: why nothing was, or all must be sent again. ``counted``: whether the responses have counts."""

    groups: Sequence[Group]
    round: Round
    is_late: Callable[[], bool]
    counted: bool = True
    unsent: ReplicatorError | None = None


class ClusterWriter(VersionedWriter[_Sent]):
    """A batch is stored when every slot has counted it, on connections that stayed open since the first was."""

    def __init__(self, cluster: Cluster, in_doubt: InDoubtWindow, tally: SlotTally) -> None:
        super().__init__(str(cluster), in_doubt)
        self._cluster = cluster
        self._tally = tally
        self._opened = 0  # the connections on which writes were acknowledged

    def _start(self, encoded: Encoded, *, tombstones: bool) -> _Sent:
        is_late = is_late_since(time.time())
        if not encoded.entries:
            return _Sent((), Round((), None, []), is_late)
        try:
            self._cluster.connect()
        except ReplicatorError as e:
            return _Sent((), Round((), None, []), is_late, unsent=e)
        if self._cluster.opened != self._opened:  # a primary may have lost what it acknowledged of this batch
            self._acks.doubt()
            self._tally.staged.clear()
            self._opened = self._cluster.opened
        pending = self._acks.unfinished(encoded.entries, tombstones=tombstones)
        groups = [(slot, group) for slot, entries in _by_slot(pending) for group in grouped(entries, MOST, MOST_BYTES)]
        script, calls = self._calls(groups, head_of(encoded, tombstones=tombstones))
        return _Sent(groups, self._cluster.start(calls, script, is_late), is_late, counted=script is not WRITE)

    def _calls(self, groups: Sequence[Group], head: Sequence[bytes]) -> tuple[Script, list[SlotCall]]:
        made = [(slot, script_call(group, head)) for slot, group in groups]
        if not self._tally.tables:
            return WRITE, [SlotCall(slot, call(WRITE, *one)) for slot, one in made]
        script = counting(WRITE)
        return script, [SlotCall(slot, call(script, *self._tally.counted(slot, *one))) for slot, one in made]

    def _is_done(self, sent: _Sent) -> bool:
        return self._cluster.is_ready(sent.round)

    def _all_stored(self, sent: _Sent) -> bool:
        self._read(sent)
        stored = sent.unsent is None and all(type(r) is list and r.count(1) == len(r) for r in sent.round.responses)
        if stored:
            self._tally.commit()
        return stored

    def _read(self, sent: _Sent) -> None:
        """Read the responses, once; counts are put aside until the batch is stored."""
        if not sent.round.parts:
            return
        self._cluster.finish(sent.round, sent.is_late)
        if sent.counted:
            for index, ((slot, _), response) in enumerate(zip(sent.groups, sent.round.responses, strict=True)):
                if isinstance(response, list):
                    sent.round.responses[index], counts = response
                    if not self._tally.read(slot, counts):
                        sent.unsent = self._replaced(slot)

    def _replaced(self, slot: int) -> ReplicatorError:
        """All of the batch is sent again, on whichever connections."""
        self._opened = 0
        return TransientError(f"{self._cluster} replaced the primary of slot {slot} in the middle of a batch")

    def _results(self, sent: _Sent) -> list[Result]:
        self._read(sent)
        pairs = zip(sent.groups, sent.round.responses, strict=True)
        return list(chain.from_iterable(self._verdicts(group, response) for (_, group), response in pairs))

    def _failure(self, sent: _Sent, results: Sequence[Result]) -> ReplicatorError | None:
        error = super()._failure(sent, results) or sent.unsent
        if error is None:
            self._tally.commit()
            return None
        if str(error) == TOO_LATE:
            return Unfinished(f"{self._cluster}: {TOO_LATE}")
        self._cluster.renew(error)
        return error


def _by_slot(entries: Sequence[Entry]) -> Sequence[tuple[int, Sequence[Entry]]]:
    found: dict[int, list[Entry]] = {}
    for entry in entries:
        found.setdefault(slot_of(entry.keys[0]), []).append(entry)
    return list(found.items())
