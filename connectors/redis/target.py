"""The Redis target: implements the target contract."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from connectors.redis import notes
from connectors.redis.cleanup import Cleanup
from connectors.redis.cluster import seeds_of, some
from connectors.redis.deployment import OnCluster, OneServer
from connectors.redis.encode import Encoded, Encoder, encode
from connectors.redis.layout import Layout, layout, layouts
from connectors.redis.options import RedisOptions, RedisTable
from connectors.redis.store import Store
from connectors.redis.verification import TableVerification
from replicator.batch import Batch, DocumentId, Outcome, Part, Rejection, Write
from replicator.errors import ConfigError, GapFound
from replicator.identity import Change, Identity, Parts
from replicator.target.contract import Table
from replicator.target.in_doubt import InDoubtWindow
from replicator.target.verification import ComparesByTable


class Redis(ComparesByTable):
    """Tables in one database of a server, or in a cluster. A script compares a document's version and stores it."""

    Options = RedisOptions
    TableOptions = RedisTable

    def __init__(self, options: RedisOptions, pipeline: str) -> None:
        self._options = options
        self._pipeline = pipeline
        self._in_doubt = InDoubtWindow()
        seeds = seeds_of(options.url)
        self._on: OneServer | OnCluster = OneServer(options) if seeds is None else OnCluster(options, seeds)
        self._writer = self._on.writer(self._in_doubt)
        self._cleanup = Cleanup(self._on.store, self._in_doubt, self._on.tally)
        self._encoders: Mapping[str, Encoder] = {}
        self._seen: Mapping[str, notes.Note] = {}  # by table, when identities were read last

    @property
    def _server(self) -> Store:
        return self._on.store

    @property
    def in_doubt(self) -> InDoubtWindow:
        return self._in_doubt

    def check(self, tables: Sequence[Table]) -> Sequence[str]:
        return notes.problems(self._server, self._wanted(tables), self._pipeline)

    def plan(self, tables: Sequence[Table]) -> Sequence[str]:
        wanted = self._wanted(tables)
        pairs = zip(wanted, notes.read(self._server, wanted), strict=True)
        made = [of for of, note in pairs if note is None]
        statements = [f"HSET {of.note.decode()} pipeline {self._pipeline}" for of in made]
        return [*statements, *(self._on.plan(self._pipeline) if made else ())]

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
        found = notes.read(self._server, wanted)
        self._seen = {of.name: note for of, note in zip(wanted, found, strict=True) if note is not None}
        tallies = self._on.digest(self._pipeline) if any(found) else ""
        return {
            of.name: notes.identity(self._server, of, note, trusted=trusted, tallies=tallies)
            for of, note in zip(wanted, found, strict=True)
        }

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
        trusted, first = self._options.trust_restarts, notes.read(self._server, wanted[:1])[0]
        resumed = {name: note for name, note in self._seen.items() if note.epoch == epoch}
        seen_ids = {name: note.id for name, note in resumed.items()}
        begins = not resumed and (first is None or first.epoch < epoch)
        self._on.prepare(self._pipeline, epoch, begins=begins)
        opened = [
            notes.write(self._server, one, self._pipeline, epoch, trusted=trusted, found=seen_ids.get(one.name, ""))
            for one in wanted
        ]
        self._on.begin(wanted, opened, self._pipeline, epoch)
        ids = {of.name: note.id for of, note in zip(wanted, opened, strict=True)}
        if any(ids.get(name, id) != id for name, id in seen_ids.items()):  # emptied, or set back, since it was seen
            self._on.tally.complete = False
        self._encoders = _encoders(tables)

    def recheck(self, tables: Sequence[Table]) -> Sequence[str]:
        """What would drop keys by now. GapFound if the server has lost batches, or everything.

        If it restarted and has lost nothing, it is noted as the server that has everything. TransientError if Sentinels
        know another primary, which the next call and all writes go to.
        """
        self._on.locate()
        problems = list(notes.removals(self._server, self._wanted(tables)))
        self._on.compare()
        if self._on.doubtful:
            raise GapFound(
                f"{self._server} may have lost documents: a node that gave or received slots "
                f"({some(self._on.doubtful)}) restarted, or was replaced by a replica, before the run had counted them "
                "where they are now, so some of their keys may be missing. Set trust_restarts: true if the nodes never "
                "lose writes",
                of_target=True,
            )
        if not self._on.tally.complete:
            raise GapFound(
                f"{self._server} has lost changes that it had stored: it was emptied, it restarted without its last "
                "writes (appendfsync, save), or a replica without them took over",
                of_target=True,
            )
        if not self._on.tally.certain:
            raise GapFound(
                f"{self._server} restarted while this run began, and may have lost the last writes of the previous "
                "run. Set trust_restarts: true if it never loses writes",
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
        return TableVerification(self._server, of, Encoder(of), self._on.tally)

    def close(self) -> None:
        self._writer.drop()
        self._on.close()

    def _wanted(self, tables: Sequence[Table]) -> list[Layout]:
        return list(layouts(tables).values())


def _encoders(tables: Sequence[Table]) -> dict[str, Encoder]:
    return {name: Encoder(of) for name, of in layouts(tables).items()}
