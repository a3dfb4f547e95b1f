"""What differs between one server and a cluster: connections, counting, and what a run asks each minute."""

from __future__ import annotations

import time
from collections.abc import Sequence

from connectors.redis.cluster import Seeds
from connectors.redis.cluster_writer import ClusterWriter
from connectors.redis.connection import Address, Server
from connectors.redis.layout import Layout
from connectors.redis.options import RedisOptions
from connectors.redis.routing import Cluster
from connectors.redis.slots import SlotTally, digest, plan
from connectors.redis.tally import Opened, Tally
from connectors.redis.writer import Writer
from replicator.errors import TransientError
from replicator.target.in_doubt import InDoubtWindow


class OneServer:
    """A server, or the primary that Sentinels name. ``batches``: a batch may be in flight there."""

    def __init__(self, options: RedisOptions) -> None:
        address = Address(options)
        self.batches, self.store = Server(address), Server(address)
        self.tally = Tally()

    def writer(self, in_doubt: InDoubtWindow) -> Writer:
        return Writer(self.batches, in_doubt, self.tally)

    def digest(self, pipeline: str) -> str:
        """What tells tallies apart: a table's note has its own."""
        return ""

    def plan(self, pipeline: str) -> Sequence[str]:
        """What counts batches is in the tables' notes."""
        return ()

    def prepare(self, pipeline: str, epoch: int, *, begins: bool) -> None:
        """``begins``: whether the epoch does. A table's note is its tally."""

    def begin(self, tables: Sequence[Layout], notes: Sequence[Opened], pipeline: str, epoch: int) -> None:
        """Counted once at once: if the server loses the end of what was there before, it loses this, too."""
        self.tally.begin(tables, notes, pipeline, epoch)
        self.store.connect()
        self.tally.read(self.store.ask(*self.tally.commands(self.store)))

    def locate(self) -> None:
        """TransientError if Sentinels know another primary."""
        self.store.connect()
        primary = self.store.address.moved_to()
        if self.batches.is_elsewhere(primary):
            self.batches.close()
        if self.store.is_elsewhere(primary):
            self.store.close()
            raise TransientError(f"{self.store} has another primary now; connecting to it")

    def compare(self) -> None:
        """No batch may be in flight."""
        self.store.connect()
        if self.batches.is_open and self.batches.serving != self.store.serving:
            self.batches.close()  # what it notes with each batch is of before
        self.tally.read(self.store.ask(*self.tally.commands(self.store, 0)))

    @property
    def doubtful(self) -> frozenset[int]:
        """One server has no slots."""
        return frozenset()

    def close(self) -> None:
        self.batches.close()
        self.store.close()


class OnCluster:
    """A cluster. ``batches``: a batch may be in flight there."""

    def __init__(self, options: RedisOptions, seeds: Seeds) -> None:
        self.batches, self.store = Cluster(options, seeds), Cluster(options, seeds)
        self.tally = SlotTally()

    def writer(self, in_doubt: InDoubtWindow) -> ClusterWriter:
        return ClusterWriter(self.batches, in_doubt, self.tally)

    def digest(self, pipeline: str) -> str:
        return digest(self.store, pipeline)

    def plan(self, pipeline: str) -> Sequence[str]:
        return plan(self.store, pipeline)

    def prepare(self, pipeline: str, epoch: int, *, begins: bool) -> None:
        self.tally.prepare(self.store, pipeline, epoch, begins=begins)

    def begin(self, tables: Sequence[Layout], notes: Sequence[Opened], pipeline: str, epoch: int) -> None:
        self.tally.begin(self.store, tables, notes, epoch, trusted=self.store.trusts_restarts)

    def locate(self) -> None:
        """Let batches go where the slots are by now, also if a primary does not know that it was replaced."""
        self.store.refresh()
        self.store.connect()
        self.batches.follow(self.store.view)
        self.batches.was_accepted = self.store.was_accepted

    def compare(self) -> None:
        self.tally.compare(self.store, time.time())

    @property
    def doubtful(self) -> frozenset[int]:
        """Slots that may lack documents, and nothing is known to be missing."""
        return self.tally.doubtful

    def close(self) -> None:
        self.batches.close()
        self.store.close()
