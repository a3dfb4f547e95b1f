"""Details of a running pipeline, without item values: its shards one by one, its parked items, what is in memory."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping
from typing import Literal

import msgspec

from replicator.pipeline.lineage import readable
from replicator.pipeline.parked import Held, item_of
from replicator.state import Owner, ShardState

MOST_SHARDS, MOST_PARKED = 200, 50  # that are listed; the rest is only counted


class ShardDetail(msgspec.Struct, frozen=True):
    """One shard. ``through``: every change before that time is stored; None if unknown, or if the shard is not read.
    ``records``: since the epoch began, its ancestors' included. ``blocked_by``: why it cannot be read at the moment.
    ``slot``: of the worker that reads it, in a run with several.
    """

    id: str
    parent: str | None
    state: Literal["open", "waiting", "ended"]
    through: float | None
    records: int
    blocked_by: str | None = None
    slot: str = ""


class ParkedDetail(msgspec.Struct, frozen=True):
    """One parked item. ``key``: as ``parked list`` prints it. ``since``: seconds since 1970."""

    key: str
    reason: str
    since: float | None


class Details(msgspec.Struct, frozen=True):
    """``shards``, ``parked``: the first ones, see MOST_SHARDS and MOST_PARKED; ``shards_total``: all of them.

    ``in_doubt_seconds``: how long writes may still be applied late, 0 if tombstones of such writes are left to purge,
    None if there are none. ``buffered``: changes read ahead; ``batches``: sent and not stored; ``requests``: to
    DynamoDB, in flight.
    """

    shards: tuple[ShardDetail, ...] = ()
    shards_total: int = 0
    parked: tuple[ParkedDetail, ...] = ()
    in_doubt_seconds: float | None = None
    buffered: int = 0
    batches: int = 0
    requests: int = 0
    stage: str = ""
    owner: Owner | None = None


def shard_details(
    shards: Mapping[str, ShardState], waiting_for: Mapping[str, str], most: int = MOST_SHARDS
) -> tuple[ShardDetail, ...]:
    """Parents before children. If there are more than ``most``, the ended shards without open children go first."""
    current = readable(shards)
    chosen = shards.keys() if len(shards) <= most else _most_important(shards, current, most)
    return tuple(_detail(id, shards, current, waiting_for) for id in _by_lineage(shards, chosen))


def _most_important(shards: Mapping[str, ShardState], current: Collection[str], most: int) -> set[str]:
    def rank(id: str) -> tuple[bool, bool, float]:
        state = shards[id]
        return (id not in current, state.ended, -(state.through or state.since))

    return set(heapq.nsmallest(most, shards, key=rank))


def _by_lineage(shards: Mapping[str, ShardState], chosen: Collection[str]) -> list[str]:
    """``chosen`` in the order of a tree: each shard is followed by its descendants."""
    children: dict[str | None, list[str]] = {}
    for id in sorted(chosen, reverse=True):
        parent = shards[id].parent
        children.setdefault(parent if parent in chosen else None, []).append(id)
    ordered, waiting = [], list(children.get(None, ()))
    while waiting:
        ordered.append(id := waiting.pop())
        waiting += children.get(id, ())
    return ordered


def _detail(
    id: str, shards: Mapping[str, ShardState], current: Collection[str], waiting_for: Mapping[str, str]
) -> ShardDetail:
    state = shards[id]
    is_open = id in current
    kind: Literal["open", "waiting", "ended"] = "open" if is_open else "ended" if state.ended else "waiting"
    through, blocked_by = state.through if is_open else None, waiting_for.get(f"shard:{id}")
    return ShardDetail(id, state.parent, kind, through, state.ordinal, blocked_by, "" if state.ended else state.slot)


def parked_details(parked: Collection[Held], most: int = MOST_PARKED) -> tuple[ParkedDetail, ...]:
    """The items that have been parked for longest."""
    oldest = heapq.nsmallest(most, parked, key=lambda held: (held.since is None, held.since or 0.0, held.id))
    return tuple(ParkedDetail(item_of(held.id), held.reason, held.since) for held in oldest)
