"""Redis Cluster: its address, which node has which slot according to its nodes, and keys of a given slot. Pure."""

from __future__ import annotations

import functools
from binascii import crc_hqx
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
class Node:
    """``of``: the id of the primary that it replicates; empty if it is one itself. ``slots``: first and last of each
    range that it has. ``is_gone``: the others agree that it does not respond."""

    place: Place
    of: str
    slots: tuple[tuple[int, int], ...] = ()
    is_gone: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """The cluster as its nodes see it. Slots in no range have no primary.

    ``epoch``: the highest of a configuration; each failover has a higher one, and most slots that moved. ``moving``:
    slots whose keys are on two nodes. ``nodes``: by id. ``parties``: of each slot that is moving, the ids of the nodes.
    ``seer``: the id of the node that sees it so.
    """

    ranges: tuple[Range, ...]
    replicas: tuple[Place, ...]
    epoch: int
    moving: frozenset[int] = frozenset()
    nodes: Mapping[str, Node] = field(default_factory=dict, compare=False)
    parties: Mapping[int, frozenset[str]] = field(default_factory=dict, compare=False)
    seer: str = field(default="", compare=False)

    @property
    def primaries(self) -> list[Place]:
        return sorted({place for _, _, place in self.ranges})

    def owners(self) -> list[Place | None]:
        """By slot."""
        found: list[Place | None] = [None] * SLOTS
        for first, last, place in self.ranges:
            found[first : last + 1] = [place] * (last + 1 - first)
        return found

    def owner_ids(self) -> list[str]:
        """By slot; empty for none."""
        found = [""] * SLOTS
        for id, node in self.nodes.items():
            for first, last in node.slots:
                found[first : last + 1] = [id] * (last + 1 - first)
        return found

    @property
    def held(self) -> frozenset[tuple[str, tuple[tuple[int, int], ...]]]:
        """Which node has which slots."""
        return frozenset((id, node.slots) for id, node in self.nodes.items() if node.slots)

    def without_slots(self) -> list[Place]:
        """The primaries that have none, yet or any more, and respond to the others."""
        idle = [node.place for node in self.nodes.values() if not (node.of or node.slots or node.is_gone)]
        return sorted(set(idle) - set(self.primaries))

    def unserved(self) -> int:
        return SLOTS - sum(last + 1 - first for first, last, _ in self.ranges)


def view(slots: Sequence[Any], nodes: str, host: str) -> View:
    """What a node returned to CLUSTER SLOTS and CLUSTER NODES. ``host``: of that node, which may not know its own."""
    lines = [fields for fields in map(str.split, nodes.splitlines()) if len(fields) > 7]
    addresses = {fields[0]: _address(fields[1], host) for fields in lines}
    ranges, replicas = [], set()
    places: dict[str, Place] = {}
    for first, last, *members in slots:
        found = [_place(member, host, addresses) for member in members]
        ranges.append((int(first), int(last), found[0]))
        replicas |= set(found[1:])
        places |= {bytes(member[2]).decode(): place for member, place in zip(members, found, strict=True) if member[2:]}
    own = next((fields[0] for fields in lines if "myself" in fields[2]), "")
    open_slots = dict(_moving(text) for fields in lines for text in fields[8:] if text.startswith("["))
    return View(
        tuple(sorted(ranges)),
        tuple(sorted(replicas)),
        max((int(fields[6]) for fields in lines), default=0),
        frozenset(open_slots),
        {fields[0]: _node(fields, places.get(fields[0], addresses[fields[0]])) for fields in lines},
        {slot: frozenset({own, other}) for slot, other in open_slots.items()},
        own,
    )


def _address(text: str, host: str) -> Place:
    """Of ``IP:PORT@BUS,HOSTNAME``; that of the node itself, which may not know it, is the ``host``."""
    ip, _, port = text.partition("@")[0].rpartition(":")
    return ip or host, int(port or 0)


def _place(node: Sequence[Any], host: str, addresses: Mapping[str, Place]) -> Place:
    """``?``: the node was told to be named by a hostname, and has none."""
    name = bytes(node[0] or b"").decode()
    if name == "?":
        return addresses.get(bytes(node[2]).decode(), (host, 0))[0], int(node[1])
    return name or host, int(node[1])


def _node(fields: Sequence[str], place: Place) -> Node:
    """Of a line of CLUSTER NODES."""
    flags, held = fields[2].split(","), [text.partition("-") for text in fields[8:] if not text.startswith("[")]
    slots = tuple(sorted((int(first), int(last or first)) for first, _, last in held))
    is_gone = not {"fail", "noaddr", "handshake"}.isdisjoint(flags)
    return Node(place, "" if "master" in flags else fields[3], slots, is_gone)


def _moving(field: str) -> tuple[int, str]:
    """The slot of ``[77->-ID]`` or ``[77-<-ID]``, and the other node."""
    slot, _, rest = field.strip("[]").partition("-")
    return int(slot), rest[2:]


def latest(views: Iterable[View]) -> View:
    """The view with the latest configuration: a node that is cut off still sees an earlier one.

    A node knows only of itself which slots are moving.
    """
    found = list(views)
    last = max(found, key=lambda one: one.epoch)
    parties: dict[int, frozenset[str]] = {}
    for one in found:
        for slot, nodes in one.parties.items():
            parties[slot] = parties.get(slot, frozenset()) | nodes
    moving = frozenset[int]().union(*(one.moving for one in found))
    return replace(last, moving=moving, parties=parties)


def slot_of(key: bytes) -> int:
    """As the servers compute it: of what is between the first braces, if anything is."""
    _, found, rest = key.partition(b"{")
    inner, closed, _ = rest.partition(b"}")
    return crc_hqx(inner if found and closed and inner else key, 0) % SLOTS


def some(slots: Iterable[int]) -> str:
    """For messages: the first of them."""
    found = sorted(slots)
    return ", ".join(map(str, found[:5])) + (", …" if len(found) > 5 else "")


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
