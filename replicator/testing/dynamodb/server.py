"""The in-memory DynamoDB: a ``Client``, plus controls for tests and simulations."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from replicator.items import attributes
from replicator.items.item import Item
from replicator.testing.dynamodb.calls import CALLS, check
from replicator.testing.dynamodb.catalog import ACCOUNT, Catalog
from replicator.testing.dynamodb.exports import Exports
from replicator.testing.dynamodb.faults import AWS, Dialect, Distortion, Faults, Misreport
from replicator.testing.dynamodb.items import Items
from replicator.testing.dynamodb.reads import StreamReads
from replicator.testing.dynamodb.rows import Table
from replicator.testing.dynamodb.sequences import Numbering
from replicator.testing.dynamodb.shards import Shard
from replicator.testing.dynamodb.streams import Stream
from replicator.testing.dynamodb.writes import Writes


class DynamoDB:
    """Tables and streams in memory, behind the ``Client`` interface.

    It never sleeps and does nothing in the background: ``now`` is the clock for creation times, the 24 hours of
    retention and the 15 minutes of iterators; ``random`` generates ids and numbers. Thread-safe.

    Methods take tables by name. ``shards``: shards of a new stream; ``numbering``: the format of sequence numbers;
    ``exports``: to S3.
    ``dialect``: what this endpoint supports; ``calls``: call counts by operation. A closed shard stays listed for up
    to ``lingering`` seconds after its last record can be trimmed. ``account``: in the ARNs.
    """

    def __init__(
        self,
        *,
        now: Callable[[], float],
        random: random.Random,
        numbering: Numbering | None = None,
        dialect: Dialect = AWS,
        shards: int = 1,
        region: str = "us-east-1",
        lingering: float = 0.0,
        account: str = ACCOUNT,
    ) -> None:
        self.calls: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._faults = Faults()
        self._catalog = Catalog(now, random, numbering or Numbering(), shards, region, lingering, account)
        self._items = Items(self._catalog, self._faults)
        self._writes = Writes(self._catalog)
        self._reads = StreamReads(self._catalog, self._faults, dialect)
        self.exports = Exports(self._catalog)
        self._operations = {name: self._operation(name) for name in CALLS}

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        """The JSON body of the response; AwsError for an error response."""
        check(operation, request)
        with self._lock:
            self.calls[operation] += 1
            self._faults.refuse(operation, request, self._reads.shard_of(operation, request))
            return self._operations[operation](request)

    def create_table(
        self,
        name: str,
        *,
        keys: Mapping[str, str] | None = None,
        view: str | None = "NEW_AND_OLD_IMAGES",
        shards: int | None = None,
    ) -> str:
        """Create a table and return its stream's ARN, "" without a stream (``view`` None).

        ``keys``: the types (S, N, B) of the key attributes, partition key first; default ``{"id": "S"}``.
        """
        names = dict(keys or {"id": "S"})
        request: dict[str, Any] = {
            "TableName": name,
            "AttributeDefinitions": [{"AttributeName": n, "AttributeType": kind} for n, kind in names.items()],
            "KeySchema": [{"AttributeName": n, "KeyType": t} for n, t in zip(names, ("HASH", "RANGE"), strict=False)],
            "BillingMode": "PAY_PER_REQUEST",
        }
        if view is not None:
            request["StreamSpecification"] = {"StreamEnabled": True, "StreamViewType": view}
        with self._lock:
            usual = self._catalog.shards
            self._catalog.shards = shards or usual
            try:
                self.call("CreateTable", request)
            finally:
                self._catalog.shards = usual
            return self.stream_arn(name)

    def put(self, table: str, item: Mapping[str, object]) -> None:
        """Put an item of plain Python values (as hooks see them; numbers are int or Decimal)."""
        with self._lock:
            self._catalog.table(table).put({name: attributes.from_python(v) for name, v in item.items()})

    def delete(self, table: str, key: Mapping[str, object]) -> None:
        with self._lock:
            found = self._catalog.table(table)
            found.remove(_key(found, key))

    def expire(self, table: str, key: Mapping[str, object]) -> None:
        """Delete an item as time to live does."""
        with self._lock:
            found = self._catalog.table(table)
            found.remove(_key(found, key), expired=True)

    def items(self, table: str) -> list[dict[str, Any]]:
        """All items in plain Python values, in no particular order."""
        with self._lock:
            return [dict(Item(image)) for image in self._catalog.table(table).images()]

    def stream_arn(self, table: str) -> str:
        """The ARN of the table's latest stream, "" if it never had one."""
        stream = self._catalog.table(table).latest_stream
        return "" if stream is None else stream.origin.arn

    def streaming(self, table: str) -> bool:
        """Whether the table has an enabled stream."""
        return self._catalog.table(table).stream is not None

    def shards(self, table: str) -> list[Shard]:
        """All existing shards of the table's latest stream, oldest first. Read-only."""
        with self._lock:
            return self._stream(table).shards

    def open_shards(self, table: str) -> list[str]:
        return [shard.id for shard in self.shards(table) if shard.open]

    def split(self, table: str, shard: str) -> tuple[str, str]:
        """Close a shard and open two children, each for half of its keys; return their ids."""
        with self._lock:
            return self._stream(table).split(shard)

    def roll(self, table: str, shard: str) -> str:
        """Close a shard and open one child for all of its keys; return its id."""
        with self._lock:
            return self._stream(table).roll(shard)

    def roll_all(self, table: str) -> list[str]:
        with self._lock:
            return [self.roll(table, shard) for shard in self.open_shards(table)]

    def wither(self, table: str, shard: str) -> str:
        """Roll a shard over, with a second child that closes at once and never has children; return the child's id."""
        with self._lock:
            return self._stream(table).wither(shard)

    def trim(self, table: str, shard: str, count: int) -> None:
        """Trim the ``count`` oldest records of a shard now, as if they were 24 hours old."""
        with self._lock:
            self._stream(table).shard(shard).trim(count)

    def enable_stream(self, table: str, view: str = "NEW_AND_OLD_IMAGES", enabling: float = 0.0) -> str:
        """Enable a new stream; return its ARN. It begins ``enabling`` seconds later: changes until then are lost."""
        specification = {"StreamEnabled": True, "StreamViewType": view}
        with self._lock:
            self._catalog.enabling = enabling
            try:
                self.call("UpdateTable", {"TableName": table, "StreamSpecification": specification})
            finally:
                self._catalog.enabling = 0.0
            return self.stream_arn(table)

    def disable_stream(self, table: str) -> None:
        self.call("UpdateTable", {"TableName": table, "StreamSpecification": {"StreamEnabled": False}})

    def fail(
        self,
        operation: str,
        code: str = "ProvisionedThroughputExceededException",
        *,
        message: str = "",
        times: int | None = 1,
        shard: str | None = None,
        when: Callable[[Mapping[str, Any]], bool] | None = None,
    ) -> None:
        """Fail the next ``times`` calls of ``operation`` (None: all) on ``shard``, or for which ``when`` is true.

        To simulate a third reader on a shard: ``fail("GetRecords", "LimitExceededException", shard=...)``.
        """
        with self._lock:
            self._faults.add(operation, (code, message), times, shard, when)

    def blank(
        self,
        *,
        times: int | None = 1,
        shard: str | None = None,
        when: Callable[[Mapping[str, Any]], bool] | None = None,
    ) -> None:
        """Return an empty page that does not advance for the next ``times`` GetRecords (None: all)."""
        with self._lock:
            self._faults.add("blank", True, times, shard, when)

    def unprocessed(self, *, at_most: int = 0, times: int | None = 1) -> None:
        """Look up at most ``at_most`` keys in the next BatchGetItem calls; return the others as UnprocessedKeys."""
        with self._lock:
            self._faults.add("unprocessed", at_most, times)

    def lag_reads(self, table: str) -> None:
        """From now on, eventually consistent reads miss the last write of each item."""
        with self._lock:
            self._catalog.table(table).lag()

    def misreport(self, *how: Misreport, times: int | None = None) -> None:
        """Falsify the listings of the next ``times`` DescribeStream calls (None: all), with each of ``how`` in turn."""

        def changed(shards: Any) -> Any:
            for one in how:
                shards = one(shards)
            return shards

        with self._lock:
            self._faults.add("listing", changed, times)

    def distort(self, how: Distortion, *, times: int | None = 1, shard: str | None = None) -> None:
        """Falsify the records of the next ``times`` GetRecords (None: all) with ``how``."""
        with self._lock:
            self._faults.add("records", how, times, shard)

    def page_sizes(self, *, shards: int = 100, records: int = 1000, items: int | None = None) -> None:
        """Set page sizes smaller than AWS's, for DescribeStream, GetRecords and Scan."""
        with self._lock:
            self._reads.page_shards, self._reads.page_records, self._items.page_items = shards, records, items

    def heal(self) -> None:
        """Clear all faults and let lagging reads catch up. Page sizes stay."""
        with self._lock:
            self._faults.clear()
            for table in self._catalog.tables.values():
                table.catch_up()

    def _operation(self, name: str) -> Callable[[Mapping[str, Any]], bytes]:
        method = "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
        for owner in (self._reads, self._items, self._writes, self._catalog, self.exports):
            if hasattr(owner, method):
                found: Callable[[Mapping[str, Any]], bytes] = getattr(owner, method)
                return found
        raise AttributeError(method)

    def _stream(self, table: str) -> Stream:
        stream = self._catalog.table(table).latest_stream
        if stream is None:
            raise ValueError(f"table {table} has no stream")
        return stream


def _key(table: Table, given: Mapping[str, object]) -> tuple[str, ...]:
    return table.key({name: attributes.from_python(v) for name, v in given.items()})
