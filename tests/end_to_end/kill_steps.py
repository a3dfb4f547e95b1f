"""The steps at which a run can be ended: for each name the production function it sits in, and which passages count.

A step's function differs where targets and stores do the same thing in different places.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from replicator.batch import Batch


def begins_an_epoch(batch: Batch) -> bool:
    """Segments to scan are saved, though nothing of them was scanned."""
    return not batch.parts and any(save.kind == "segment" for save in batch.saves)


@dataclass
class Scene:
    """What a run is at: the batch that the target got last, how many of its writes were answered, the cleanup."""

    batch: Batch = field(default_factory=Batch)
    answered: int = 0
    cleanup: str | None = None

    @property
    def scans(self) -> bool:
        return self._holds("segment:")

    @property
    def streams(self) -> bool:
        return self._holds("shard:")

    @property
    def sweeps(self) -> bool:
        return self._holds("sweep")

    @property
    def begins(self) -> bool:
        """Whether the batch's entries begin an epoch."""
        return begins_an_epoch(self.batch)

    def _holds(self, source: str) -> bool:
        return any(part.source.startswith(source) and part.writes for part in self.batch.parts)


@dataclass(frozen=True)
class Passage:
    """A call of a step's function: its arguments, and what it returned (None before it)."""

    scene: Scene
    arguments: tuple[Any, ...]
    found: Any = None


@dataclass(frozen=True)
class Step:
    """``function``: ``module:Class.method``. ``counts``: whether a passage is one of this step."""

    function: str
    moment: Literal["before", "after"]
    counts: Callable[[Passage], bool]


def _commits(passage: Passage) -> bool:
    """The statements before COMMIT are on their way to the server, which carries them out."""
    _, connection, statement = passage.arguments
    if statement.sql != b"COMMIT":
        return False
    connection.flush()
    return True


def _queues_rows(passage: Passage) -> bool:
    """The positions are on their way, the rows are not."""
    _, connection, statement = passage.arguments
    connection.flush()
    return b"replicator.advance" in statement.sql


def _in_a_hook(passage: Passage) -> bool:
    return sys._getframe(3).f_code.co_name == "hook"


def _ends_a_shard(passage: Passage) -> bool:
    batch = passage.arguments[1]
    ends = any(save.kind == "shard" and '"ended":true' in (save.text or "") for save in batch.saves)
    return ends and not begins_an_epoch(batch)


def _begins(passage: Passage) -> bool:
    return passage.scene.begins and passage.arguments[1] is passage.scene.batch


def _in_part(passage: Passage) -> bool:
    """Some requests of a bulk batch are answered."""
    return 0 < passage.scene.answered < passage.scene.batch.size


def _in_flight(passage: Passage) -> bool:
    """Some requests to a table are answered, others are not."""
    work = passage.arguments[1]
    return bool(work.queue) or work.in_flight > 0


def _of_several(passage: Passage) -> bool:
    """One of several messages of a batch is answered."""
    return 0 < len(passage.arguments[1].events) < passage.scene.batch.size


COMMON: Mapping[str, Step] = {
    "after positions": Step("replicator.pipeline.pipeline:Pipeline.stored", "after", _begins),
    "after GetRecords": Step(
        "replicator.source.stream:RecordsDecoder.__call__", "after", lambda p: bool(p.found.records)
    ),
    "inside a hook": Step("replicator.items.item:Item.__getitem__", "after", _in_a_hook),
    "at a shard's end": Step("replicator.pipeline.pipeline:Pipeline.stored", "after", _ends_a_shard),
}
_QUEUE = "connectors.postgres.session:Session._queue"
_DELIVER = "connectors.search.bulk:Bulk._deliver"
_ANSWERED = "connectors.dynamodb.sender:Sender._take"
_POSTED = "connectors.webhook.client:Client.send"
_TRANSMIT = "connectors.redis.connection:Server._transmit"  # sent, and not answered: the server carries it out later
_SCRIPT = "connectors.redis.connection:Server.run_all"
_COMMIT = "connectors.delta.writer:TableWriter._store"  # writes files, and commits
COLLECT: Mapping[str, str] = {
    "postgres": "connectors.postgres.target:Postgres.collect",
    "search": "connectors.search.target:SearchTarget.collect",
    "dynamodb": "connectors.dynamodb.target:DynamoDB.collect",
    "webhook": "connectors.webhook.target:Webhook.write",
    "redis": "connectors.redis.target:Redis.collect",
    "redis-cluster": "connectors.redis.target:Redis.collect",
    "delta": "connectors.delta.target:Delta.write",
}


def _stored(target: str) -> dict[str, Step]:
    """Where the target has stored a batch, and nobody has noted it."""
    return {
        "scan stored, cursor not": Step(COLLECT[target], "after", lambda p: p.scene.scans),
        "stored, checkpoint not": Step(COLLECT[target], "after", lambda p: p.scene.streams),
    }


TARGETS: Mapping[str, Mapping[str, Step]] = {
    "postgres": {
        **_stored("postgres"),
        "mid scan batch": Step(_QUEUE, "before", lambda p: p.scene.scans and _commits(p)),
        "between requests of a batch": Step(_QUEUE, "after", lambda p: p.scene.streams and _queues_rows(p)),
        "during the checkpoint": Step(
            "connectors.postgres.session:Session.send", "after", lambda p: p.scene.streams and p.scene.cleanup is None
        ),
        "during the epoch's rise": Step(_QUEUE, "before", lambda p: p.scene.begins and _commits(p)),
        "during sweep": Step(_QUEUE, "before", lambda p: p.scene.sweeps and _commits(p)),
        "during purge": Step(_QUEUE, "before", lambda p: p.scene.cleanup == "purge" and _commits(p)),
    },
    "search": {
        **_stored("search"),
        "mid scan batch": Step(_DELIVER, "after", lambda p: p.scene.scans and _in_part(p)),
        "between requests of a batch": Step(_DELIVER, "after", lambda p: p.scene.streams and _in_part(p)),
        "during sweep": Step(_DELIVER, "after", lambda p: p.scene.cleanup == "sweep"),
        "during purge": Step(_DELIVER, "after", lambda p: p.scene.cleanup == "purge"),
    },
    "dynamodb": {
        **_stored("dynamodb"),
        "mid scan batch": Step(_ANSWERED, "after", lambda p: p.scene.scans and _in_flight(p)),
        "between requests of a batch": Step(_ANSWERED, "after", lambda p: p.scene.streams and _in_flight(p)),
        "during sweep": Step(_ANSWERED, "after", lambda p: p.scene.cleanup == "sweep"),
        "during purge": Step(_ANSWERED, "after", lambda p: p.scene.cleanup == "purge"),
    },
    "webhook": {
        **_stored("webhook"),
        "mid scan batch": Step(_POSTED, "after", lambda p: p.scene.scans and _of_several(p)),
        "between requests of a batch": Step(_POSTED, "after", lambda p: p.scene.streams and _of_several(p)),
        "during sweep": Step(_POSTED, "after", lambda p: p.scene.cleanup == "sweep"),
        "during purge": Step(_POSTED, "after", lambda p: p.scene.cleanup == "purge"),
    },
    "redis": {
        **_stored("redis"),
        "mid scan batch": Step(_TRANSMIT, "after", lambda p: p.scene.scans),
        "between requests of a batch": Step(_TRANSMIT, "after", lambda p: p.scene.streams),
        "during sweep": Step("connectors.redis.tally:Tally.run_all", "after", lambda p: p.scene.cleanup == "sweep"),
        "during purge": Step(_SCRIPT, "after", lambda p: p.scene.cleanup == "purge"),
    },
    "redis-cluster": {
        **_stored("redis-cluster"),
        "mid scan batch": Step(_TRANSMIT, "after", lambda p: p.scene.scans),  # to one of the nodes
        "between requests of a batch": Step(_TRANSMIT, "after", lambda p: p.scene.streams),
        "during sweep": Step("connectors.redis.slots:SlotTally.run_all", "after", lambda p: p.scene.cleanup == "sweep"),
        "during purge": Step("connectors.redis.routing:Cluster.run_all", "after", lambda p: p.scene.cleanup == "purge"),
    },
    "delta": {
        **_stored("delta"),
        "mid scan batch": Step(_COMMIT, "after", lambda p: p.scene.scans),
        "between requests of a batch": Step(_COMMIT, "before", lambda p: p.scene.streams),
        "during sweep": Step(
            "connectors.delta.tombstones:Tombstones.add", "after", lambda p: p.scene.cleanup == "sweep"
        ),
        "during purge": Step(
            "connectors.delta.tombstones:Tombstones._replace", "after", lambda p: p.scene.cleanup == "purge"
        ),
    },
}
_CHANGES = "replicator.checkpoints.sqlite.transaction:Changes.end"
_TRANSACT = "replicator.checkpoints.dynamodb.table:CheckpointTable.transact"
STORES: Mapping[str, Mapping[str, Step]] = {
    "target": {},
    "sqlite": {
        "during the checkpoint": Step(_CHANGES, "after", lambda p: p.scene.streams),
        "during the epoch's rise": Step(_CHANGES, "after", lambda p: p.scene.begins),
    },
    "postgres": {
        "during the checkpoint": Step(_QUEUE, "before", lambda p: p.scene.streams and _commits(p)),
        "during the epoch's rise": Step(_QUEUE, "before", lambda p: p.scene.begins and _commits(p)),
    },
    "dynamodb": {
        "during the checkpoint": Step(_TRANSACT, "after", lambda p: p.scene.streams),
        "during the epoch's rise": Step(_TRANSACT, "after", lambda p: p.scene.begins),
    },
}
SENDS = {
    "postgres": "Postgres.send",
    "search": "SearchTarget.send",
    "dynamodb": "DynamoDB.send",
    "redis": "Redis.send",
    "redis-cluster": "Redis.send",
    "webhook": "Webhook.write",
    "delta": "Delta.write",
}
"""The method that is given a batch, encoded or not."""


def steps(target: str, store: str) -> dict[str, Step]:
    """Every step of a pipeline, by name."""
    return {**COMMON, **TARGETS[target], **STORES[store]}
