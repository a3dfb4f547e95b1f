"""Redis Cluster: its address, which node has which slot according to its nodes, and keys of a given slot. Pure."""

from __future__ import annotations

import functools
from binascii import crc_hqx
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from connectors.redis.sentinel import place_of

PORT = 6379
SLOTS = 16384
_ENCRYPTED = {"redis+cluster": False, "rediss+cluster": True}

Place = tuple[str, int]
"""Host and port of a node."""
Range = tuple[int, int, Place]
"""First and last slot, and the primary that has them."""


@dataclass(frozen=True, slots=True)
class Seeds:
    """Nodes that are asked for the others."""

    hosts: tuple[Place, ...]
    encrypted: bool

    def __str__(self) -> str:
        return ", ".join(f"{host}:{port}" for host, port in self.hosts)


def is_of_cluster(url: str) -> bool:
    return url.partition("://")[0] in _ENCRYPTED


def seeds_of(url: str) -> Seeds | None:
    """Those of redis+cluster://HOST:PORT,HOST:PORT; None if the URL has another form."""
    scheme, _, rest = url.partition("://")
    places, _, path = rest.partition("/")
    hosts = [place_of(place, PORT) for place in places.split(",")]
    found = tuple(host for host in hosts if host is not None)
    if scheme not in _ENCRYPTED or len(found) < len(hosts) or path not in ("", "0"):
        return None
    return Seeds(found, _ENCRYPTED[scheme])


@dataclass(frozen=True, slots=True)
class View:
    """The cluster as its nodes see it. Slots in no range have no primary.

    ``epoch``: the highest of a configuration; each failover and each moved slot has a higher one. ``moving``: slots
    whose keys are on two nodes.
    """

    ranges: tuple[Range, ...]
    replicas: tuple[Place, ...]
    epoch: int
    moving: frozenset[int] = frozenset()

    @property
    def primaries(self) -> list[Place]:
        return sorted({place for _, _, place in self.ranges})

    def owners(self) -> list[Place | None]:
        """By slot."""
        found: list[Place | None] = [None] * SLOTS
        for first, last, place in self.ranges:
            found[first : last + 1] = [place] * (last + 1 - first)
        return found

    def unserved(self) -> int:
        return SLOTS - sum(last + 1 - first for first, last, _ in self.ranges)


def view(slots: Sequence[Any], nodes: str, host: str) -> View:
    """What a node returned to CLUSTER SLOTS and CLUSTER NODES. ``host``: of that node, which may not know its own."""
    ranges, replicas = [], set()
    for first, last, primary, *others in slots:
        ranges.append((int(first), int(last), _place(primary, host)))
        replicas |= {_place(other, host) for other in others}
    lines = [line.split() for line in nodes.splitlines()]
    epoch = max((int(fields[6]) for fields in lines if len(fields) > 6), default=0)
    moving = {_moving(field) for fields in lines for field in fields[8:] if field.startswith("[")}
    return View(tuple(sorted(ranges)), tuple(sorted(replicas)), epoch, frozenset(moving))


def _place(node: Sequence[Any], host: str) -> Place:
    name = bytes(node[0] or b"").decode()
    return name or host, int(node[1])


def _moving(field: str) -> int:
    """The slot of ``[77->-ID]`` or ``[77-<-ID]``."""
    return int(field.strip("[]").partition("-")[0])


def latest(views: Iterable[View]) -> View:
    """The view with the latest configuration: a node that is cut off still sees an earlier one.

    A node knows only of itself which slots are moving.
    """
    found = list(views)
    last = max(found, key=lambda one: one.epoch)
    moving = frozenset[int]().union(*(one.moving for one in found))
    return View(last.ranges, last.replicas, last.epoch, moving)


def slot_of(key: bytes) -> int:
    """As the servers compute it: of what is between the first braces, if anything is."""
    _, found, rest = key.partition(b"{")
    inner, closed, _ = rest.partition(b"}")
    return crc_hqx(inner if found and closed and inner else key, 0) % SLOTS


@functools.cache
def tags() -> Sequence[bytes]:
    """A text for each slot that, between braces, puts a key there."""
    found: list[bytes] = [b""] * SLOTS
    left, number = SLOTS, 0
    while left:
        text = b"%d" % number
        slot = crc_hqx(text, 0) % SLOTS
        if not found[slot]:
            found[slot] = text
            left -= 1
        number += 1
    return found
