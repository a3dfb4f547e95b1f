"""What is noted in the database about each table, and what about the server rules it out as a target."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

from connectors.redis.cleanup import pages
from connectors.redis.connection import Server, is_still, packed
from connectors.redis.errors import IN_CLUSTER, failure
from connectors.redis.layout import TABLES, Layout, note_of, overlapping
from connectors.redis.routing import Cluster
from connectors.redis.scripts import NOTE, WRITE
from connectors.redis.store import Store
from connectors.redis.tally import Opened
from replicator.errors import ConfigError, ReplicatorError, TransientError
from replicator.identity import Identity

log = logging.getLogger("replicator")

_ASKING = 5.0  # seconds to wait for a replica at most
_OLDEST = (6, 2)  # SET with EXAT


@dataclass(frozen=True, slots=True)
class Note:
    """``server``: which one it was when the last batch was stored: see ``is_still``. ``place``: tells clusters apart,
    whatever happens to the ``id``; empty if there is none.
    """

    pipeline: str
    epoch: int
    id: str
    server: str
    place: str = ""

    @property
    def is_marked(self) -> bool:
        """Something was lost, and no later epoch has begun to replace what is there."""
        return self.id.startswith("emptied") or self.id.endswith("incomplete")


def read(store: Store, layouts: Sequence[Layout]) -> list[Note | None]:
    commands = [(b"HMGET", layout.note, b"pipeline", b"epoch", b"id", b"server", b"place") for layout in layouts]
    return [_note(fields) for fields in store.keyed(*commands)]


def _note(fields: Sequence[bytes | None]) -> Note | None:
    pipeline, epoch, id, run, place = (None if field is None else field.decode() for field in fields)
    return None if pipeline is None or epoch is None else Note(pipeline, int(epoch), id or "", run or "", place or "")


def write(store: Store, layout: Layout, pipeline: str, epoch: int, *, trusted: bool, found: str = "") -> Opened:
    """Note the epoch, unless a later one is noted. ConfigError if another pipeline's note is there.

    ``trusted``: the server loses nothing. ``found``: the id of the table when a run that resumes has inspected it.
    """
    store.connect()
    new, now = uuid.uuid4().hex.encode(), b"%d" % (time.time_ns() // 1_000_000_000)
    (noted_server,) = store.keyed((b"HGET", layout.note, b"server"))
    is_noted = noted_server is not None and is_still(noted_server.decode(), store.serving)
    run, trust = noted_server if is_noted else store.serving.encode(), b"1" if trusted else b"0"
    store.keyed((b"SADD", TABLES, layout.prefix))  # one without a note counts for nothing
    place = store.name.encode() if isinstance(store, Cluster) else b""
    given = [pipeline.encode(), b"%d" % epoch, new, run, trust, now, place, found.encode()]
    owner, *noted = store.run(NOTE, [layout.note], given)
    if owner.decode() != pipeline:
        raise ConfigError(taken(layout, owner.decode()))
    id, batches, certain, slots = noted
    return Opened(id.decode(), batches, certain == 1, slots.decode())


def identity(store: Store, layout: Layout, note: Note | None, *, trusted: bool, tallies: str = "") -> Identity:
    """A table whose server has restarted since the last batch is another one: its last writes may be missing.

    It has another id each time, so it stays another one until a run has confirmed, or begins to replace, what is there.
    So does one that is marked: it was found to have lost something, also if that process ended before it could tell.

    Not if the server counted a batch after its restart: then it was found to have all earlier ones. ``trusted``: the
    server loses nothing. ``tallies``: what tells those of a cluster apart.
    """
    place = f"{layout.prefix.decode()}* in {store.place}"
    names = tuple(_in_cluster(layout, id) for id in store.node_ids) if isinstance(store, Cluster) else ()
    if note is None:
        return Identity(place, known=False, names=names)
    is_named = isinstance(store, Cluster) and note.place  # whichever nodes url names
    at = _in_cluster(layout, note.place) if is_named else ""
    restarted = not trusted and not is_still(note.server, store.serving)
    id = f"{note.id} {tallies}".rstrip()
    if restarted or note.is_marked:
        id += f" {'after a restart' if restarted else 'after a loss'} {uuid.uuid4().hex}"
    return Identity(place, id, at=at, names=names)


def _in_cluster(layout: Layout, name: str) -> str:
    return f"{layout.prefix.decode()}* in the cluster {name}"


def taken(layout: Layout, owner: str) -> str:
    return (
        f"the keys {layout.prefix.decode()}* are written by the pipeline {owner}, according to {layout.note.decode()}; "
        "two copies under the same keys would overwrite each other. If this config belongs to that pipeline, correct "
        "its pipeline: key; if not, set another prefix under target.tables, or delete those keys and that one if the "
        "other pipeline no longer exists"
    )


def server_problems(store: Store, layouts: Sequence[Layout]) -> Iterator[str]:
    """Why this server, or a node of this cluster, cannot keep the guarantee. Connects."""
    store.connect()
    for node in store.nodes():
        node.inform()
        yield from _node_problems(node, layouts, in_cluster=isinstance(store, Cluster))
        if node.info.get("role") == "slave":
            yield f"{node} is a read-only replica; name its primary in target.url"
    if isinstance(store, Cluster):
        if missing := store.view.unserved():
            yield f"{store} has no primary for {missing} of its slots; redis-cli --cluster check HOST:PORT says why"
        for node in store.replicas():
            with suppress(TransientError):  # it is none now
                yield from _replica_problems(node, layouts)


def _node_problems(node: Server, layouts: Sequence[Layout], *, in_cluster: bool) -> Iterator[str]:
    version = node.info.get("redis_version", "0")
    if tuple(map(int, version.split(".")[:2])) < _OLDEST:
        yield f"{node} has version {version}; this target needs Redis 6.2 or newer, or Valkey"
    if node.info.get("cluster_enabled") == "1" and not in_cluster:
        yield f"{node} {IN_CLUSTER}"
    yield from eviction(node, node.info, layouts)


def _replica_problems(node: Server, layouts: Sequence[Layout]) -> list[str]:
    """It may become the primary."""
    try:
        node.connect()
        return list(_node_problems(node, layouts, in_cluster=True))
    finally:
        node.close()


def _replicas_problems(replicas: Sequence[Server], layouts: Sequence[Layout]) -> Iterator[str]:
    """Those of all replicas, which are asked at once. One that does not respond, or refuses the login, is no problem at
    present: no documents depend on it."""

    def problems(node: Server) -> list[str]:
        try:
            return _replica_problems(node, layouts)
        except TransientError:
            return []
        except ReplicatorError as e:
            log.warning("replica unreachable", extra={"reason": str(e)})
            return []

    if replicas:
        with ThreadPoolExecutor(min(len(replicas), 16)) as pool:
            yield from chain.from_iterable(pool.map(problems, replicas))


def removals(store: Store, layouts: Sequence[Layout]) -> Iterator[str]:
    """Why a server may remove keys by now. TransientError if it became a replica, even one that accepts writes."""
    for server in store.nodes():
        server.inform()
        if server.info.get("role") == "slave":
            error = failure("READONLY", "", str(server))
            server.renew(error)
            store.renew(error)
            raise error
        yield from eviction(server, server.info, layouts)
    if isinstance(store, Cluster):
        yield from _replicas_problems(store.replicas(within=_ASKING), layouts)


def eviction(server: Server, info: Mapping[str, str], layouts: Sequence[Layout]) -> Iterator[str]:
    """Why the server's policy may remove keys: a lost tombstone brings documents back, a lost document is missing."""
    policy = info.get("maxmemory_policy", "noeviction")
    expiring = any(layout.expires for layout in layouts)
    if policy == "noeviction" or info.get("maxmemory") == "0" or (policy.startswith("volatile-") and not expiring):
        return
    yield (
        f"{server} removes keys when its memory is full (maxmemory-policy {policy}), documents and tombstones "
        "included, so the copy would lose documents and bring deleted ones back. Set maxmemory-policy to noeviction"
        + ("" if expiring else ", or to a volatile- policy, which spares keys without expiry")
    )


def problems(store: Store, layouts: Sequence[Layout], pipeline: str) -> list[str]:
    """Everything that rules these tables out. Changes nothing."""
    found = list(server_problems(store, layouts))
    if found:
        return found
    for node in store.nodes():  # whether they may be run
        node.run(WRITE, [], [b"0", b"0"])
        node.ask(packed(b"TIME"))  # which scripts ask for
        if isinstance(store, Cluster):
            node.ask(packed(b"ASKING"))  # which a slot that moves asks for
    for layout, note in zip(layouts, read(store, layouts), strict=True):
        if note is not None and note.pipeline != pipeline:
            found.append(taken(layout, note.pipeline))
        elif note is None and (other := next(_others(store, layout), None)) is not None:
            found.append(
                f"{store} has keys that begin with {layout.prefix.decode()} and that no pipeline is noted for (one of "
                f"them: {other.decode(errors='replace')[:100]!r}); replicator would overwrite them. Delete them, or "
                "set another prefix under target.tables"
            )
    prefixes = [layout.prefix for layout in layouts]
    for one, other in overlapping(prefixes, [*_noted(store), *prefixes]):
        found.append(
            f"the prefixes {one.decode()} and {other.decode()} of two tables overlap: keys of both could be the same. "
            "Set another prefix under target.tables"
        )
    return found


def _noted(store: Store) -> list[bytes]:
    """The prefixes of all tables that still have a note."""
    members: Sequence[bytes]
    (members,) = store.keyed((b"SMEMBERS", TABLES))
    there = store.keyed(*((b"EXISTS", note_of(prefix)) for prefix in members))
    return [prefix for prefix, found in zip(members, there, strict=True) if found]


def _others(store: Store, layout: Layout) -> Iterator[bytes]:
    for pattern in (layout.documents, layout.guards()):
        for keys, _ in pages(store, pattern):
            yield from keys
