"""Writes encoded batches: one pipeline for each, with a call of the script for each group of documents."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from connectors.redis.connection import Sent, Server, call, is_late_since, loading
from connectors.redis.encode import Encoded, Entry, grouped
from connectors.redis.errors import ResponseLost, failure
from connectors.redis.layout import TABLES, Layout
from connectors.redis.scripts import MARK, WRITE
from replicator.errors import ReplicatorError, Unfinished
from replicator.target import guarded_writes
from replicator.target.acks import AckTracker, Place, place
from replicator.target.guarded_writes import GuardedWriter
from replicator.target.in_doubt import TOO_LATE, InDoubtWindow

_MOST = 64  # documents in one call of the script, during which the server does nothing else
_MOST_BYTES = 1 << 17


@dataclass(frozen=True, slots=True)
class Verdict:
    """``version``: the one that is there, of a conflict."""

    kind: str
    error: ReplicatorError | None = None
    version: str = ""
    reason: str = ""


STORED = Verdict("stored")
Result = guarded_writes.Result[Entry, Verdict]


@dataclass(slots=True)
class _Sent:
    groups: Sequence[Sequence[Entry]]
    sent: Sent
    responses: list[Any] = field(default_factory=list)


@dataclass(slots=True)
class Tally:
    """How many batches the server has counted in the note of the first of ``tables``, which has this ``id``.

    The server counts each batch behind its writes. It loses what it loses from the end: the last second before a crash,
    or what a replica had not received when it took over. So if it counts less than before, batches are missing, and
    otherwise none is. ``complete``: False once batches are missing.
    """

    tables: Sequence[Layout]
    id: str
    pipeline: str
    epoch: int
    batches: int = 0
    complete: bool = True

    def command(self, server: str) -> bytes:
        own = self.id.encode(), b"%d" % self.batches, server.encode(), self.pipeline.encode(), b"%d" % self.epoch
        keys = [*(table.note for table in self.tables), TABLES]
        return call(MARK, keys, [*own, *(table.prefix for table in self.tables)])

    def counted(self, batches: int) -> None:
        self.complete = self.complete and batches > 0
        self.batches = max(self.batches, batches)


class Writer(GuardedWriter[Entry, Verdict, Encoded, _Sent]):
    """Writes to one server. ``tally``: None before the tables are opened."""

    def __init__(self, server: Server, in_doubt: InDoubtWindow) -> None:
        super().__init__(in_doubt, AckTracker())
        self._server = server
        self.tally: Tally | None = None

    def _start(self, encoded: Encoded, *, tombstones: bool) -> _Sent:
        pending = self._acks.unfinished(encoded.entries, tombstones=tombstones)
        groups = list(grouped(pending, _MOST, _MOST_BYTES))
        if not groups:
            return _Sent(groups, Sent(0))
        try:
            self._server.connect()
        except ReplicatorError as e:
            return _Sent(groups, Sent(0, e))
        head = b"1" if encoded.batch.replaces_same else b"0", b"1" if tombstones else b"0"
        commands = [loading(WRITE), loading(MARK), *(_call(group, head) for group in groups)]
        if self.tally is not None:
            commands.append(self.tally.command(self._server.run_id))
        return _Sent(groups, self._server.start(commands, is_late_since(time.time())))

    def _is_done(self, sent: _Sent) -> bool:
        return sent.sent.left == 0 or self._server.is_ready()

    def _all_stored(self, sent: _Sent) -> bool:
        self._read(sent)
        if sent.sent.unsent is not None:
            return False
        return all(type(r) is list and r.count(1) == len(r) for r in self._of_groups(sent)) and not self._error(sent)

    def _read(self, sent: _Sent) -> None:
        """Read the responses; where there is none, or an error, the error is in its place."""
        while sent.sent.left:
            sent.sent.left -= 1
            try:
                sent.responses.append(self._server.receive())
            except ReplicatorError as e:
                sent.responses.append(e)
        if self.tally is not None and sent.groups and len(sent.responses) == len(sent.groups) + 3:
            counted = sent.responses[-1]
            if isinstance(counted, int):
                self.tally.counted(counted)

    def _of_groups(self, sent: _Sent) -> Sequence[Any]:
        """The responses to the groups that were sent."""
        return sent.responses[2 : 2 + len(sent.groups)]

    def _error(self, sent: _Sent) -> ReplicatorError | None:
        """The error of the pipeline itself."""
        return next((r for r in sent.responses if isinstance(r, ReplicatorError)), None)

    def _results(self, sent: _Sent) -> list[Result]:
        self._read(sent)
        pairs = zip(sent.groups, self._of_groups(sent), strict=False)
        return list(chain.from_iterable(self._verdicts(group, response) for group, response in pairs))

    def _verdicts(self, group: Sequence[Entry], response: Any) -> Sequence[Result]:
        if isinstance(response, ReplicatorError):
            verdicts = [Verdict("unsure" if isinstance(response, ResponseLost) else "failed", response)] * len(group)
        else:
            verdicts = [self._verdict(one) for one in response]
        return [guarded_writes.Result(entry, verdict) for entry, verdict in zip(group, verdicts, strict=True)]

    def _verdict(self, response: Any) -> Verdict:
        if response == 1:
            return STORED
        text = bytes(response).decode(errors="replace")
        if text[0] == "V":
            return Verdict("conflict", version=text[1:])
        code, _, rest = text[1:].partition(" ")
        return Verdict("failed", failure(code.lstrip("-"), rest, str(self._server)))

    def _is_in_doubt(self, verdict: Verdict) -> bool:
        return verdict.kind == "unsure"

    def _own(self, conflicts: Sequence[Result]) -> set[Place]:
        places = ((place(entry.write), verdict.version) for entry, verdict, _ in conflicts)
        return {at for at, version in places if at in self._acks.lost and version == str(at[2])}

    def _failure(self, sent: _Sent, results: Sequence[Result]) -> ReplicatorError | None:
        error = super()._failure(sent, results) or self._error(sent) or sent.sent.unsent
        if error is None:
            return None
        if str(error) == TOO_LATE:
            return Unfinished(f"{self._server}: {TOO_LATE}")
        self._server.renew(error)
        return error


def _call(group: Sequence[Entry], head: Sequence[bytes]) -> bytes:
    keys = [key for entry in group for key in entry.keys]
    return call(WRITE, keys, [*head, *(argument for entry in group for argument in entry.arguments)])
