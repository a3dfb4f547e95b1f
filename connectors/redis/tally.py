"""Counts what a server has stored, since it may lose what it acknowledged."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from connectors.redis.connection import ScriptCall, Server, call, loading
from connectors.redis.layout import TABLES, Layout
from connectors.redis.scripts import MARK, Script


@dataclass(frozen=True, slots=True)
class Opened:
    """A table that an epoch begins or goes on in. ``batches``: how many are counted.

    ``certain``: False if some that were counted may be missing: the server is not the one that counted them.
    ``slots``: which slots were where in a cluster when they had everything.
    """

    id: str
    batches: int
    certain: bool
    slots: str = ""


@dataclass(slots=True)
class Tally:
    """How many batches the server has counted in the note of the first of ``tables``, which has this ``id``.

    The server counts each batch behind its writes, on the same connection; a piece of a sweep and a repair count as
    one, too. It loses what it loses from the end: the last second before a crash, or what a replica had not received
    when it took over. So if it counts less than before, batches are missing, and otherwise none is.

    Other processes may count there, too (repairs, retries), also after a loss that this one has not seen yet. So the
    server counts those of this ``token`` apart.

    ``batches``: how many are certainly counted; ``own``: of this process.
    ``complete``: False once batches are missing. ``certain``: False if
    batches of earlier runs may be: then the server is not noted as the one that has them. No ``tables`` before they are
    opened: then nothing is counted.
    """

    tables: Sequence[Layout] = ()
    id: str = ""
    pipeline: str = ""
    epoch: int = 0
    batches: int = 0
    token: str = ""
    own: int = 0
    complete: bool = True
    certain: bool = True

    def begin(self, tables: Sequence[Layout], notes: Sequence[Opened], pipeline: str, epoch: int) -> None:
        self.tables, self.pipeline, self.epoch = tables, pipeline, epoch
        self.id, self.batches = notes[0].id, notes[0].batches
        self.token, self.own = uuid.uuid4().hex, 0
        self.complete, self.certain = True, all(note.certain for note in notes)

    def commands(self, server: Server, step: int = 1) -> list[bytes]:
        """What counts ``step`` batches; 0 to compare only."""
        if not self.tables:
            return []
        counts = self.id.encode(), b"%d" % self.batches, b"%d" % step
        of = self.pipeline.encode(), b"%d" % self.epoch, server.serving.encode() if self.certain else b""
        own = self.token.encode(), b"%d" % self.own, b"%d" % (time.time_ns() // 1_000_000_000)
        keys = [*(table.note for table in self.tables), TABLES]
        return [loading(MARK), call(MARK, keys, [*counts, *of, *own, *(table.prefix for table in self.tables)])]

    def read(self, responses: Sequence[Any]) -> None:
        """``responses``: to the commands, where there are any."""
        match responses:
            case [*_, int()]:
                self.complete = False
            case [*_, [int(batches), int(own)]]:
                self.batches, self.own = max(self.batches, batches), max(self.own, own)

    def run_all(self, server: Any, script: Script, calls: Sequence[ScriptCall]) -> list[Any]:
        """The results of calls of a script, which are counted once, behind all of them."""
        server.connect()
        commands = [call(script, *each) for each in calls]
        responses = server.ask(loading(script), *commands, *self.commands(server))
        self.read(responses[1 + len(calls) :])
        results: list[Any] = responses[1 : 1 + len(calls)]
        return results
