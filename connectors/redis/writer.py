"""Writes encoded batches: one pipeline for each, with a call of the script for each group of documents."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeVar

from connectors.redis.connection import ScriptCall, Sent, Server, call, is_late_since, loading
from connectors.redis.encode import Encoded, Entry, grouped
from connectors.redis.errors import ResponseLost, code_in, failure
from connectors.redis.scripts import WRITE
from connectors.redis.tally import Tally
from replicator.errors import ReplicatorError, Unfinished
from replicator.target import guarded_writes
from replicator.target.acks import AckTracker, Place, place
from replicator.target.guarded_writes import GuardedWriter
from replicator.target.in_doubt import TOO_LATE, InDoubtWindow

MOST = 64  # documents in one call of the script, during which the server does nothing else
MOST_BYTES = 1 << 17


@dataclass(frozen=True, slots=True)
class Verdict:
    """``version``: the one that is there, of a conflict."""

    kind: str
    error: ReplicatorError | None = None
    version: str = ""
    reason: str = ""


STORED = Verdict("stored")
Result = guarded_writes.Result[Entry, Verdict]


S = TypeVar("S")


class VersionedWriter(GuardedWriter[Entry, Verdict, Encoded, S]):
    """What the responses of the script mean. ``name``: of the server."""

    def __init__(self, name: str, in_doubt: InDoubtWindow) -> None:
        super().__init__(in_doubt, AckTracker())
        self._name = name

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
        return Verdict("failed", failure(*code_in(text[1:]), self._name))

    def _is_in_doubt(self, verdict: Verdict) -> bool:
        return verdict.kind == "unsure"

    def _own(self, conflicts: Sequence[Result]) -> set[Place]:
        places = ((place(entry.write), verdict.version) for entry, verdict, _ in conflicts)
        return {at for at, version in places if at in self._acks.lost and version == str(at[2])}


@dataclass(slots=True)
class _Sent:
    groups: Sequence[Sequence[Entry]]
    sent: Sent
    responses: list[Any] = field(default_factory=list)


class Writer(VersionedWriter[_Sent]):
    """Writes to one server. A batch is stored when the tally has counted it on the connection that stored all of it."""

    def __init__(self, server: Server, in_doubt: InDoubtWindow, tally: Tally) -> None:
        super().__init__(str(server), in_doubt)
        self._server = server
        self._tally = tally
        self._opened = 0  # the connection on which writes were acknowledged

    def _start(self, encoded: Encoded, *, tombstones: bool) -> _Sent:
        if not encoded.entries:
            return _Sent((), Sent(0))
        try:
            self._server.connect()
        except ReplicatorError as e:
            return _Sent((), Sent(0, e))
        if self._server.opened != self._opened:  # it may have lost what it acknowledged of this batch
            self._acks.doubt()
            self._opened = self._server.opened
        pending = self._acks.unfinished(encoded.entries, tombstones=tombstones)
        groups = list(grouped(pending, MOST, MOST_BYTES))
        head = head_of(encoded, tombstones=tombstones)
        calls = (call(WRITE, *script_call(group, head)) for group in groups)
        commands = [loading(WRITE), *calls, *self._tally.commands(self._server)]
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
        self._tally.read(sent.responses[2 + len(sent.groups) :])

    def _of_groups(self, sent: _Sent) -> Sequence[Any]:
        """The responses to the groups that were sent."""
        return sent.responses[1 : 1 + len(sent.groups)]

    def _error(self, sent: _Sent) -> ReplicatorError | None:
        """The error of the pipeline itself."""
        return next((r for r in sent.responses if isinstance(r, ReplicatorError)), None)

    def _results(self, sent: _Sent) -> list[Result]:
        self._read(sent)
        pairs = zip(sent.groups, self._of_groups(sent), strict=False)
        return list(chain.from_iterable(self._verdicts(group, response) for group, response in pairs))

    def _failure(self, sent: _Sent, results: Sequence[Result]) -> ReplicatorError | None:
        error = super()._failure(sent, results) or self._error(sent) or sent.sent.unsent
        if error is None:
            return None
        if str(error) == TOO_LATE:
            return Unfinished(f"{self._server}: {TOO_LATE}")
        self._server.renew(error)
        return error


def head_of(encoded: Encoded, *, tombstones: bool) -> Sequence[bytes]:
    """The first arguments of the script."""
    return b"1" if encoded.batch.replaces_same else b"0", b"1" if tombstones else b"0"


def script_call(group: Sequence[Entry], head: Sequence[bytes]) -> ScriptCall:
    keys = [key for entry in group for key in entry.keys]
    return keys, [*head, *(argument for entry in group for argument in entry.arguments)]
