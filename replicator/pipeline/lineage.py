"""Which shards there are, which may be read, which are missing: pure functions of listings and stored states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from replicator.change import Shard
from replicator.retention import RETENTION

KEPT = 2 * RETENTION  # after which no listing shows a shard any more


class Known(Protocol):
    """What the lineage needs to know of a stored shard."""

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
    """One entry a shard, whatever order and however often it was listed; closed wins over open."""
    found: dict[str, Shard] = {}
    for shard in listed:
        seen = found.get(shard.id)
        if seen is None or seen.open:
            found[shard.id] = shard
    return found


def readable(known: Mapping[str, Known]) -> set[str]:
    """The shards that may be read now: not ended, and the parent's end, if we know the parent, is durable."""
    return {
        id
        for id, shard in known.items()
        if not shard.ended and (shard.parent is None or shard.parent not in known or known[shard.parent].ended)
    }


def newcomers(known: Mapping[str, Known], listed: Mapping[str, Shard]) -> list[Shard]:
    """Listed shards that are new and whose place in the lineage is clear, parents before children."""
    placed: dict[str, Shard] = {}

    def clear(shard: Shard) -> bool:
        parent = shard.parent
        return parent is None or parent in known or parent in placed

    waiting = [s for s in listed.values() if s.id not in known]
    while ready := [s for s in waiting if clear(s)]:
        placed.update((s.id, s) for s in ready)
        waiting = [s for s in waiting if s.id not in placed]
    return list(placed.values())


def ancestors(shards: Iterable[str], parents: Mapping[str, str | None]) -> set[str]:
    """The shards that ``shards`` descend from, as far as ``parents`` tells."""
    found: set[str] = set()
    for shard in shards:
        parent = parents.get(shard)
        while parent is not None and parent not in found:
            found.add(parent)
            parent = parents.get(parent)
    return found


def orphans(known: Mapping[str, Known], listed: Mapping[str, Shard]) -> set[str]:
    """Listed shards whose parent neither we nor this listing ever saw: they wait for further listings."""
    placed = {s.id for s in newcomers(known, listed)}
    return {id for id in listed if id not in known and id not in placed}


def vanished(known: Mapping[str, Known], listed: Mapping[str, Shard]) -> set[str]:
    """Shards that a complete listing no longer shows though it should: unfinished ones, and ended ones whose children
    are not known. A shard is listed as long as something of it, or of its parent, can be read.
    """
    needed = {id for id, shard in known.items() if not shard.ended} | childless(known)
    return needed - listed.keys()


def childless(known: Mapping[str, Known]) -> set[str]:
    """Ended shards without a known child that are not known to have none: their children must be asked for."""
    parents = {shard.parent for shard in known.values()}
    return {id for id, shard in known.items() if shard.ended and not shard.leaf and id not in parents}


def heirless(known: Mapping[str, Known], listed: Mapping[str, Shard]) -> set[str]:
    """Shards that have ended, or are listed as closed, without a child anywhere: the listing is from before they did.

    A shard closes when others take over from it, unless it is known to be a leaf.
    """
    leaves = {id for id, shard in known.items() if shard.leaf}
    parents = {shard.parent for shard in known.values()} | {shard.parent for shard in listed.values()}
    ended = {id for id, shard in known.items() if shard.ended}
    return (ended | {id for id, shard in listed.items() if not shard.open}) - parents - leaves


def forgettable(known: Mapping[str, Known], listed: Mapping[str, Shard], now: float) -> set[str]:
    """Ended shards that nothing asks for any more: not listed, their children past their own start, and long past.

    One listing that leaves a shard out proves nothing. Forgotten too early, it would look like a new one when the next
    listing shows it again. A shard that stays keeps one of its children: without any it would be taken for one whose
    children no listing ever showed.
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
    """One child of each shard that stays and would have none left."""
    leaving: dict[str, str] = {}
    for id in sorted(gone):
        parent = known[id].parent
        if parent is not None and parent in known and parent not in gone:
            leaving.setdefault(parent, id)
    staying = {shard.parent for id, shard in known.items() if id not in gone}
    return {id for parent, id in leaving.items() if parent not in staying}
