"""The Redis target: implements the target contract."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from connectors.redis import notes
from connectors.redis.cleanup import Cleanup
from connectors.redis.connection import Address, Server
from connectors.redis.encode import Encoded, Encoder, encode
from connectors.redis.layout import Layout, layout, layouts
from connectors.redis.options import RedisOptions, RedisTable
from connectors.redis.tally import Tally
from connectors.redis.verification import TableVerification
from connectors.redis.writer import Writer
from replicator.batch import Batch, DocumentId, Outcome, Part, Rejection, Write
from replicator.errors import ConfigError, GapFound, TransientError
from replicator.identity import Change, Identity, Parts
from replicator.target.contract import Table
from replicator.target.in_doubt import InDoubtWindow
from replicator.target.verification import ComparesByTable


class Redis(ComparesByTable):
    """Tables in one database of a server. A script compares each document's version and stores it in one step."""

    Options = RedisOptions
    TableOptions = RedisTable

    def __init__(self, options: RedisOptions, pipeline: str) -> None:
        self._options = options
        self._pipeline = pipeline
        address = Address(options)
        self._batches, self._server = Server(address), Server(address)  # a batch may be in flight on the first
        self._in_doubt = InDoubtWindow()
        self._tally = Tally()
        self._writer = Writer(self._batches, self._in_doubt, self._tally)
        self._cleanup = Cleanup(self._server, self._in_doubt, self._tally)
        self._encoders: Mapping[str, Encoder] = {}

    @property
    def in_doubt(self) -> InDoubtWindow:
        return self._in_doubt

    def check(self, tables: Sequence[Table]) -> Sequence[str]:
        return notes.problems(self._server, self._wanted(tables), self._pipeline)

    def plan(self, tables: Sequence[Table]) -> Sequence[str]:
        wanted = self._wanted(tables)
        pairs = zip(wanted, notes.read(self._server, wanted), strict=True)
        return [f"HSET {of.note.decode()} pipeline {self._pipeline}" for of, note in pairs if note is None]

    def refusals(self, tables: Sequence[Table], writes: Sequence[Write]) -> Sequence[Rejection]:
        return encode(Batch([Part("", writes)]), _encoders(tables), time.time()).rejections

    def epoch(self, tables: Sequence[Table]) -> int | None:
        wanted = self._wanted(tables)
        found = notes.read(self._server, wanted)
        others = [
            (of, note) for of, note in zip(wanted, found, strict=True) if note and note.pipeline != self._pipeline
        ]
        if others:
            raise ConfigError(*(notes.taken(of, note.pipeline) for of, note in others))
        epochs = [note.epoch for note in found if note is not None]
        return max(epochs, default=0) if len(epochs) == len(wanted) else None

    def identities(self, tables: Sequence[Table]) -> Mapping[str, Identity]:
        wanted, trusted = self._wanted(tables), self._options.trust_restarts
        pairs = zip(wanted, notes.read(self._server, wanted), strict=True)
        return {of.name: notes.identity(self._server, of, note, trusted=trusted) for of, note in pairs}

    def parts(self, table: Table) -> Parts:
        of = layout(table)
        expires = {"expires": of.expires} if of.expires else {}
        return {"prefix": of.prefix.decode(), "store": "hash" if of.hashes else "json", **expires}

    def additions(self, tables: Sequence[Table], changes: Sequence[Change]) -> Sequence[str] | None:
        """Always None: there are no columns to add."""
        return None

    def extend(self, tables: Sequence[Table], changes: Sequence[Change]) -> None:
        raise AssertionError("additions are never offered")

    def open(self, tables: Sequence[Table], epoch: int) -> None:
        wanted = self._wanted(tables)
        if problems := notes.problems(self._server, wanted, self._pipeline):
            raise ConfigError(*problems)
        trusted = self._options.trust_restarts
        opened = [notes.write(self._server, one, self._pipeline, epoch, trusted=trusted) for one in wanted]
        self._tally.begin(wanted, opened, self._pipeline, epoch)
        self._encoders = _encoders(tables)

    def recheck(self, tables: Sequence[Table]) -> Sequence[str]:
        """What would drop keys by now. GapFound if the server has lost batches, or everything.

        If it restarted and has lost nothing, it is noted as the server that has everything. TransientError if Sentinels
        know another primary, which the next call and all writes go to.
        """
        self._server.connect()
        primary = self._server.address.moved_to()
        if self._batches.is_elsewhere(primary):
            self._batches.close()
        if self._server.is_elsewhere(primary):
            self._server.close()
            raise TransientError(f"{self._server} has another primary now; connecting to it")
        problems = list(notes.removals(self._server, self._wanted(tables)))
        self._server.connect()
        self._tally.read(self._server.ask(*self._tally.commands(self._server, 0)))
        if not self._tally.complete:
            raise GapFound(
                f"{self._server} has lost changes that it had stored: it was emptied, it restarted without its last "
                "writes (appendfsync, save), or a replica without them took over",
                of_target=True,
            )
        if not self._tally.certain:
            raise GapFound(
                f"{self._server} restarted while this run began, and may have lost the last changes of the run before; "
                "trust_restarts: true if it cannot",
                of_target=True,
            )
        return problems

    def write(self, batch: Batch) -> Outcome:
        self.send(self.encode(batch))
        return self.collect()

    def encode(self, batch: Batch) -> Encoded:
        return encode(batch, self._encoders, time.time())

    def send(self, encoded: Encoded) -> None:
        self._writer.send(encoded)

    def ready(self) -> bool:
        return self._writer.ready()

    def collect(self) -> Outcome:
        return self._writer.collect()

    def sweep(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
        return self._cleanup.sweep(layout(table), below, spare)

    def purge(self, table: Table, below: int, spare: Sequence[DocumentId] = ()) -> int:
        return self._cleanup.purge(layout(table), below, spare)

    @property
    def unrepairable(self) -> str:
        return ""

    def _verification(self, table: Table) -> TableVerification:
        of = layout(table)
        return TableVerification(self._server, of, Encoder(of), self._tally)

    def close(self) -> None:
        self._writer.drop()
        self._batches.close()
        self._server.close()

    def _wanted(self, tables: Sequence[Table]) -> list[Layout]:
        return list(layouts(tables).values())


def _encoders(tables: Sequence[Table]) -> dict[str, Encoder]:
    return {name: Encoder(of) for name, of in layouts(tables).items()}
