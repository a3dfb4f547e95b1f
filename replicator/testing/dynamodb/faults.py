"""Faults to inject: rejected calls, empty pages, wrong listings, and endpoints that differ from AWS."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import structs

from replicator.testing.dynamodb.refusals import refusal


@dataclass(frozen=True, slots=True)
class Dialect:
    """What an endpoint supports.

    ``starts``: AT_SEQUENCE_NUMBER accepts a shard's starting number even if its first record has another one.
    ``refuses_early``: GetShardIterator rejects trimmed positions; otherwise GetRecords does.
    """

    at_timestamp: bool = True
    shard_filter: bool = True
    starts: bool = True
    refuses_early: bool = True


AWS = Dialect()
LOCAL = Dialect(at_timestamp=False, shard_filter=False, starts=False, refuses_early=False)  # as DynamoDB Local 2.6.1


class Listed(msgspec.Struct, frozen=True):
    """A shard in the listing of DescribeStream; ``end`` None: shown open."""

    id: str
    parent: str | None
    start: str
    end: str | None


Misreport = Callable[[Sequence[Listed]], Sequence[Listed]]
"""Falsifies a listing. It must be deterministic, or the pages of a listing would not fit together."""


def duplicated(shards: Sequence[Listed]) -> list[Listed]:
    """Every shard twice; a closed one is shown open first."""
    return [copy for shard in shards for copy in (structs.replace(shard, end=None), shard)]


def unordered(shards: Sequence[Listed]) -> list[Listed]:
    """In an order unrelated to age."""
    return sorted(shards, key=lambda shard: hashlib.md5(shard.id.encode(), usedforsecurity=False).digest())


def children_first(shards: Sequence[Listed]) -> list[Listed]:
    return list(reversed(shards))


def stale(shards: Sequence[Listed]) -> list[Listed]:
    """Closed shards without the children that took over from them."""
    listed = {shard.id for shard in shards}
    return [shard for shard in shards if shard.parent not in listed]


def reopened(shards: Sequence[Listed]) -> list[Listed]:
    """Parents shown open beside their children."""
    parents = {shard.parent for shard in shards}
    return [structs.replace(shard, end=None) if shard.id in parents else shard for shard in shards]


def parentless(shards: Sequence[Listed]) -> list[Listed]:
    """Children whose parents are left out."""
    parents = {shard.parent for shard in shards}
    return [shard for shard in shards if shard.id not in parents]


Distortion = Callable[[dict[str, Any]], dict[str, Any]]
"""Falsifies a decoded record; may modify its argument."""


def lingering(record: dict[str, Any]) -> dict[str, Any]:
    """A removal that still has a new image."""
    stored = record["dynamodb"]
    if record["eventName"] == "REMOVE" and record["dynamodb"]["StreamViewType"] in _WITH_NEW:
        stored["NewImage"] = stored.get("OldImage", stored["Keys"])
    return record


def nulls(record: dict[str, Any]) -> dict[str, Any]:
    """Absent values are written as null."""
    stored = record["dynamodb"]
    record["dynamodb"] = {"NewImage": None, "OldImage": None, **stored}
    return {"userIdentity": None, **record}


def imageless(record: dict[str, Any]) -> dict[str, Any]:
    """A change without its new image."""
    if record["eventName"] != "REMOVE":
        record["dynamodb"].pop("NewImage", None)
    return record


_WITH_NEW = ("NEW_IMAGE", "NEW_AND_OLD_IMAGES")


@dataclass(slots=True, eq=False)
class _Fault:
    """A fault for the next ``times`` matching calls (None: all)."""

    operation: str
    effect: Any
    times: int | None
    shard: str | None
    when: Callable[[Mapping[str, Any]], bool] | None

    def fits(self, operation: str, request: Mapping[str, Any], shard: str | None) -> bool:
        return (
            self.times != 0
            and self.operation == operation
            and self.shard in (None, shard)
            and (self.when is None or self.when(request))
        )


class Faults:
    """The active faults. The first matching one applies, until it has applied ``times`` times."""

    def __init__(self) -> None:
        self._faults: list[_Fault] = []

    def add(
        self,
        operation: str,
        effect: Any,
        times: int | None,
        shard: str | None = None,
        when: Callable[[Mapping[str, Any]], bool] | None = None,
    ) -> None:
        self._faults.append(_Fault(operation, effect, times, shard, when))

    def clear(self) -> None:
        self._faults.clear()

    def take(self, operation: str, request: Mapping[str, Any], shard: str | None = None) -> Any:
        """The effect of the first matching fault, or None."""
        for fault in self._faults:
            if fault.fits(operation, request, shard):
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times == 0:
                        self._faults.remove(fault)
                return fault.effect
        return None

    def refuse(self, operation: str, request: Mapping[str, Any], shard: str | None) -> None:
        """Raise the error injected for this call, if any."""
        effect = self.take(operation, request, shard)
        if effect is not None:
            raise refusal(*effect)
