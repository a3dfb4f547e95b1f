"""Shard lineage: which shards are new, readable, missing or forgettable. Pure functions of listings and states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from replicator.change import Shard
from replicator.retention import RETENTION

KEPT = 2 * RETENTION  # seconds after which no listing can show a shard any more


class Known(Protocol):
    """The part of a stored shard's state that the lineage depends on."""

    @property
    def parent(self) -> str | None: ...
    @property
    def ended(self) -> bool: ...
    @property
    def leaf(self) -> bool: ...
    @property
    def since(self) -> float: ...
    @property
    def through(self) -> float | None: ...


def merged(listed: Iterable[Shard]) -> dict[str, Shard]:
    """One entry per shard, regardless of order and duplicates; closed takes precedence over open."""
    shards: dict[str, Shard] = {}
    for shard in listed:
        seen = shards.get(shard.id)
        if seen is None or seen.open:
            shards[shard.id] = shard
    return shards


def readable(known: Mapping[str, Known]) -> set[str]:
    """The shards that may be read: not ended, and with a parent that is stored to its end (or unknown)."""
    return {
        id
        for id, shard in known.items()
        if not shard.ended and (shard.parent is None or shard.parent not in known or known[shard.parent].ended)
    }


def newcomers(known: Mapping[str, Known], listed: Mapping[str, Shard]) -> list[Shard]:
    """New listed shards whose ancestors are known or listed, parents before children."""
    placed: dict[str, Shard] = {}

    def parent_placed(shard: Shard) -> bool:
        parent = shard.parent
        return parent is None or parent in known or parent in placed

    waiting = [s for s in listed.values() if s.id not in known]
    while ready := [s for s in waiting if parent_placed(s)]:
        placed.update((s.id, s) for s in ready)
        waiting = [s for s in waiting if s.id not in placed]
    return list(placed.values())


def ancestors(shards: Iterable[str], parents: Mapping[str, str | None]) -> set[str]:
    """All ancestors of ``shards`` that ``parents`` leads to."""
    seen: set[str] = set()
    for shard in shards:
        parent = parents.get(shard)
        while parent is not None and parent not in seen:
            seen.add(parent)
            parent = parents.get(parent)
    return seen


def orphans(known: Mapping[str, Known], listed: Mapping[str, Shard]) -> set[str]:
    """Listed shards with a parent that is neither known nor listed: they wait for further listings."""
    placed = {s.id for s in newcomers(known, listed)}
    return {id for id in listed if id not in known and id not in placed}


def vanished(known: Mapping[str, Known], listed: Mapping[str, Shard]) -> set[str]:
    """Shards missing from a complete listing although they are needed: unfinished ones, and ended ones without known
    children. A shard is listed as long as any record in it, or in its parent, can be read.
    """
    needed = {id for id, shard in known.items() if not shard.ended} | childless(known)
    return needed - listed.keys()


def childless(known: Mapping[str, Known]) -> set[str]:
    """Ended shards without a known child, except known leaves: their children must be looked up."""
    parents = {shard.parent for shard in known.values()}
    return {id for id, shard in known.items() if shard.ended and not shard.leaf and id not in parents}


def heirless(known: Mapping[str, Known], listed: Mapping[str, Shard]) -> set[str]:
    """Shards that have ended or are listed as closed, without a known or listed child; known leaves excepted.

    A shard normally closes because its children take over, so such a listing predates them.
    """
    leaves = {id for id, shard in known.items() if shard.leaf}
    parents = {shard.parent for shard in known.values()} | {shard.parent for shard in listed.values()}
    ended = {id for id, shard in known.items() if shard.ended}
    return (ended | {id for id, shard in listed.items() if not shard.open}) - parents - leaves


def forgettable(known: Mapping[str, Known], listed: Mapping[str, Shard], now: float) -> set[str]:
    """Ended shards whose entries may be removed: not listed, no longer needed by a child, and older than KEPT.

    One listing without a shard proves nothing, and a shard forgotten too early would look new in the next listing. A
    shard that is kept also keeps one child; otherwise it would look like one whose children were never listed.
    """
    needed = {shard.parent for shard in known.values() if not shard.ended} | childless(known)
    long_past = now - KEPT
    gone = {
        id
        for id, shard in known.items()
        if shard.ended and id not in listed and id not in needed and (shard.through or shard.since) < long_past
    }
    while kept := _last_children(known, gone):
        gone -= kept
    return gone


def _last_children(known: Mapping[str, Known], gone: set[str]) -> set[str]:
    """One child of each kept shard that would have none left."""
    leaving: dict[str, str] = {}
    for id in sorted(gone):
        parent = known[id].parent
        if parent is not None and parent in known and parent not in gone:
            leaving.setdefault(parent, id)
    staying = {shard.parent for id, shard in known.items() if id not in gone}
    return {id for parent, id in leaving.items() if parent not in staying}
