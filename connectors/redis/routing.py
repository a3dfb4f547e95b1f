"""Sends commands to the nodes of a Redis Cluster that have their keys, and follows the keys where they go.

Without the client's RedisCluster: it sends again by itself after a lost connection, so what may be applied late, and
whether another run has taken over meanwhile, would be unknown here; and its pipeline waits for responses.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import RedisError, ResponseError

from connectors.redis.cluster import SLOTS, Place, Seeds, View, latest, slot_of, some, view
from connectors.redis.connection import (
    Address,
    ScriptCall,
    Sent,
    Server,
    call,
    loading,
    packed,
    previous_history,
    refused_again,
)
from connectors.redis.errors import Redirected, failure, unanswered
from connectors.redis.moves import Standing
from connectors.redis.options import RedisOptions
from connectors.redis.scripts import Script
from replicator.errors import ConfigError, Postponed, ReplicatorError, TransientError
from replicator.options import is_loopback
from replicator.target.in_doubt import TOO_LATE

log = logging.getLogger("replicator")

_FOLLOWING = 2.0  # seconds for which keys that move are followed, before the engine retries
_PAUSE = 0.02
_ASKING = 5.0  # seconds to wait for a former primary at most
_VIEW = packed(b"CLUSTER", b"SLOTS"), packed(b"CLUSTER", b"NODES")


@dataclass(frozen=True, slots=True)
class SlotCall:
    """A packed command whose keys are all in one slot."""

    slot: int
    command: bytes


@dataclass(slots=True)
class Round:
    """Calls that were sent. ``parts``: to each node, which of them. ``responses``: errors among them are not raised."""

    calls: Sequence[SlotCall]
    script: Script | None
    responses: list[Any]
    parts: list[tuple[Server, Sequence[int], Sent]] = field(default_factory=list)


class Cluster:
    """The primaries of a cluster, a connection to each; opened at first use and again after a failure."""

    def __init__(self, options: RedisOptions, seeds: Seeds) -> None:
        self._options = options
        self._seeds = seeds
        self._nodes: dict[Place, Server] = {}
        self._idle: dict[Place, Server] = {}  # primaries without slots
        self._view: View | None = None
        self._seen: Sequence[View] = ()  # what nodes saw when they were asked last
        self._owners: list[Place | None] = [None] * SLOTS
        self._primaries: Sequence[Place] = ()
        self._is_stale = True
        self._changes = 0
        self.was_accepted = False  # the login, by every primary

    def __str__(self) -> str:
        return f"Redis Cluster at {self._seeds}"

    @property
    def place(self) -> str:
        return str(self)

    @property
    def name(self) -> str:
        """No other cluster has it; noted with a table, since the node may leave: the smallest id of a node."""
        return min(self.view.nodes, default="")

    @property
    def node_ids(self) -> list[str]:
        return sorted(self.view.nodes)

    @property
    def trusts_restarts(self) -> bool:
        return self._options.trust_restarts

    # which nodes there are

    @property
    def opened(self) -> int:
        """Changes when a connection is opened, a slot has moved, or another node has become the primary."""
        return self._changes + sum(node.opened for node in self._nodes.values())

    @property
    def run_id(self) -> str:
        """Of all primaries that have slots."""
        return ",".join(sorted(node.run_id for node in self.nodes()))

    @property
    def serving(self) -> str:
        return ",".join(sorted(node.serving for node in self.nodes()))

    @property
    def scan_id(self) -> str:
        """A scan may go on as long as it is the same: which primary has which slots, and since when."""
        known = self._view
        text = repr((known.ranges, known.epoch, self.run_id) if known is not None else ())
        return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    @property
    def view(self) -> View:
        assert self._view is not None, "not connected yet"
        return self._view

    def nodes(self) -> Sequence[Server]:
        """The primaries that have slots, in a fixed order."""
        return [self._node(place) for place in self._primaries]

    def connect(self) -> None:
        """Connect to every primary, also where a connection was closed meanwhile. No response may be awaited."""
        if self._is_stale:
            self.refresh()
        try:
            for node in self.nodes():
                node.connect()
        except TransientError:
            self._is_stale = True
            raise
        self.was_accepted = True

    def refresh(self) -> None:
        """Ask the nodes which of them has which slots."""
        views: list[View] = []
        for node in self.nodes():
            try:
                views.append(_seen_by(node))
            except TransientError:
                break
        if not views or len(views) < len(self._nodes):
            views = self._own(self._discovered())
        self._adopt(latest(views))
        self._seen = views
        for node in self._without_slots():
            with contextlib.suppress(ReplicatorError):  # then it is not open
                self._seen = [*self._seen, _seen_by(node)]
        if len(self._seen) > len(views):
            self._adopt(latest(self._seen))

    def _without_slots(self) -> Sequence[Server]:
        """Primaries that respond to the others and have no slots: one of these may be about to receive some."""
        places = self.view.without_slots()
        for place in self._idle.keys() - set(places):
            self._idle.pop(place).close()
        for place in places:
            if place not in self._idle:
                self._idle[place] = self._made(place)
        return [self._idle[place] for place in places]

    def _own(self, views: Sequence[View]) -> list[View]:
        """Without those of another cluster, to which a node's address may have been given."""
        own = self._view or latest([view for view in views if view.ranges] or views)
        found = [view for view in views if not own.nodes.keys().isdisjoint(view.nodes)]
        if self._view is None and any(view.ranges for view in views if view not in found):
            raise ConfigError(f"target.url names nodes of different clusters ({self._seeds}); name those of one")
        if len(found) < len(views):
            log.warning("node moved to another cluster", extra={"cluster": str(self)})
        if not found:
            raise TransientError(f"all nodes of {self} that respond belong to another cluster now")
        return found

    def _discovered(self) -> list[View]:
        """What all nodes that respond see: those of the url, and those that are known. ReplicatorError if none does."""
        known = [*self._view.primaries, *self._view.replicas] if self._view is not None else []
        places = list(dict.fromkeys([*self._seeds.hosts, *known]))
        with ThreadPoolExecutor(min(len(places), 16)) as pool:
            answers = list(pool.map(self._answer, places))
        views = [answer for answer in answers if isinstance(answer, View)]
        if not views:
            errors = [answer for answer in answers if isinstance(answer, ReplicatorError)]
            error = next((e for e in errors if not isinstance(e, ConfigError)), errors[0])
            raise error if self._view is None else refused_again(error, str(self))
        return views

    def _answer(self, place: Place) -> View | ReplicatorError:
        """What one node sees, or why it does not say."""
        address = Address(self._options, place)
        try:
            connection = address.connection()
            try:
                connection.connect()
                connection.send_packed_command([b"".join(_VIEW)], check_health=False)
                return _view_of([connection.read_response(), connection.read_response()], place)
            finally:
                connection.disconnect()
        except ResponseError as e:
            if "cluster support disabled" in str(e):
                return ConfigError(f"{address} is not a node of a cluster; write url: redis://… or rediss://… for it")
            return unanswered(e, str(address), sent=False)
        except (RedisError, OSError) as e:
            return unanswered(e, str(address), sent=False)

    def follow(self, seen: View) -> None:
        """What another connection to the same cluster has learned."""
        if self._view is not None and (seen.ranges, seen.epoch) != (self._view.ranges, self._view.epoch):
            self._adopt(seen)

    def _adopt(self, seen: View) -> None:
        for place in [*seen.primaries, *seen.replicas]:
            self._require_encrypted(place)
        if self._view is None or (seen.ranges, seen.epoch) != (self._view.ranges, self._view.epoch):
            self._changes += 1
        for place in self._nodes.keys() - set(seen.primaries):
            node = self._nodes.pop(place)
            self._changes += node.opened
            node.close()
        self._view, self._owners, self._primaries = seen, seen.owners(), seen.primaries
        for node in self._nodes.values():
            node.known = frozenset(seen.nodes)
        self._is_stale = False

    def _require_encrypted(self, place: Place) -> None:
        if not (self._seeds.encrypted or self._options.insecure or is_loopback(place[0])):
            raise ConfigError(
                f"{self} has a node at {place[0]}, and without TLS items would be sent there unencrypted; use "
                "rediss+cluster://, or set insecure: true"
            )

    def _node(self, place: Place) -> Server:
        if place not in self._nodes:
            self._nodes[place] = self._made(place)
        return self._nodes[place]

    def _made(self, place: Place) -> Server:
        self._require_encrypted(place)
        known = frozenset(self._view.nodes if self._view else ())
        return Server(Address(self._options, place), known=known, was_accepted=self.was_accepted)

    def standing(self, last: Standing | None = None) -> Standing:
        """As of the last refresh. ``last``: the one before. Connects."""
        self.connect()
        ids = {node.place: id for id, node in self.view.nodes.items() if not node.of}
        primaries = [*self.nodes(), *(node for node in self._idle.values() if _is_informed(node))]
        found = {id: node for node in primaries if (id := ids.get(node.address.node or ("", 0))) is not None}
        before = {id: previous for id, node in found.items() if (previous := previous_history(node.info))}
        histories = {id: node.info.get("master_replid", "") for id, node in found.items()}
        continued = self._continued(last, histories, before) if last is not None else {}
        found = {id: node for id, node in found.items() if id not in continued}
        now = time.time()
        return Standing(
            self.view.owner_ids(),
            {id: node.run_id for id, node in found.items()},
            {id: node.of for id, node in self.view.nodes.items() if node.of},
            frozenset(before.keys() & found.keys()),
            self.view.parties,
            histories,
            before,
            continued,
            now,
            {id: now - float(node.info.get("uptime_in_seconds", "0")) for id, node in found.items()},
        )

    def _continued(self, last: Standing, now: Mapping[str, str], before: Mapping[str, str]) -> dict[str, str]:
        """The primaries of ``last`` that live on as replicas, and whose successor has everything that they had.

        ``now``, ``before``: the replication ids of each primary.
        """
        successors = {history: id for id, history in before.items() if last.before.get(id) != history}
        return {
            id: successor
            for id, history in last.histories.items()
            if (successor := successors.get(history)) is not None
            and (node := self.view.nodes.get(id)) is not None
            and not node.is_gone
            and self._is_continued(node.place, last.runs[id], history, now[successor])
        }

    def _is_continued(self, place: Place, run: str, history: str, after: str) -> bool:
        """Asks a former primary, which may have yet to notice, or to connect to its successor."""
        options, known = self._within(_ASKING), frozenset(self.view.nodes)
        node, until = Server(Address(options, place), is_replica=True, known=known), time.monotonic() + _ASKING
        try:
            while time.monotonic() < until:
                node.connect()
                node.inform()
                if node.run_id != run:
                    return False
                if (decided := has_continued(node.info, history, after)) is not None:
                    return decided
                time.sleep(_PAUSE)
            return False
        except ReplicatorError:  # then it is not known
            return False
        finally:
            node.close()

    def _within(self, seconds: float) -> RedisOptions:
        """The options, with a shorter time to wait for each response."""
        return self._options.model_copy(update={"timeout": min(seconds, self._options.timeout)})

    def replicas(self, within: float | None = None) -> Sequence[Server]:
        """Not connected, and not to be kept. ``within``: seconds to wait for each response at most."""
        options, known = self._within(within or self._options.timeout), frozenset(self.view.nodes)
        return [Server(Address(options, place), is_replica=True, known=known) for place in self.view.replicas]

    def renew(self, error: BaseException) -> None:
        """Ask the nodes again after an error that another primary would not return."""
        if isinstance(error, TransientError):
            self._is_stale = True

    def close(self) -> None:
        for node in [*self._nodes.values(), *self._idle.values()]:
            node.close()

    # commands

    def start(
        self, calls: Sequence[SlotCall], script: Script | None = None, is_late: Callable[[], bool] = lambda: False
    ) -> Round:
        """Send calls, of one ``script``, to the nodes that have their slots, without waiting for responses."""
        sent = Round(calls, script, [None] * len(calls))
        by_place: dict[Place, list[int]] = {}
        for index, one in enumerate(calls):
            place = self._owners[one.slot]
            if place is None:
                sent.responses[index] = failure("CLUSTERDOWN", "", str(self))
            else:
                by_place.setdefault(place, []).append(index)
        head = [] if script is None else [loading(script)]
        for place, indexes in by_place.items():
            node = self._node(place)
            commands = [*head, *(calls[index].command for index in indexes)]
            late = Sent(0, TransientError(TOO_LATE)) if sent.parts and is_late() else None
            sent.parts.append((node, indexes, late or node.start(commands, is_late)))
        return sent

    def is_ready(self, sent: Round) -> bool:
        """Whether a response of each node has begun to arrive."""
        return all(part.left == 0 or node.is_ready() for node, _, part in sent.parts)

    def finish(self, sent: Round, is_late: Callable[[], bool] = lambda: False) -> None:
        """Wait for the responses, and send to other nodes what has moved there, unless it ``is_late``."""
        for node, indexes, part in sent.parts:
            _receive(sent, node, indexes, part)
        sent.parts.clear()
        until = time.monotonic() + _FOLLOWING
        while moved := [i for i, response in enumerate(sent.responses) if isinstance(response, Redirected)]:
            if time.monotonic() > until or is_late():
                break
            self._follow(sent, moved)
        if any(isinstance(response, TransientError) for response in sent.responses):
            self._is_stale = True

    def _follow(self, sent: Round, moved: Sequence[int]) -> None:
        errors: dict[int, Redirected] = {index: sent.responses[index] for index in moved}
        if any(error.place is None for error in errors.values()):
            time.sleep(_PAUSE)
        for index, error in errors.items():
            if error.place is not None and not error.once:
                self._owners[sent.calls[index].slot], self._is_stale = error.place, True
        asking = [index for index, error in errors.items() if error.once]
        for place in {error.place for error in errors.values() if error.once and error.place is not None}:
            self._ask(sent, place, [index for index in asking if errors[index].place == place])
        again = [index for index in moved if not errors[index].once]
        if again:
            other = self.start([sent.calls[index] for index in again], sent.script)
            for node, indexes, part in other.parts:
                _receive(other, node, indexes, part)
            for index, response in zip(again, other.responses, strict=True):
                sent.responses[index] = response

    def _ask(self, sent: Round, place: Place, indexes: Sequence[int]) -> None:
        """Send calls to the node to which their slot is being moved, one by one: this is rare."""
        node = self._node(place)
        head = [] if sent.script is None else [loading(sent.script)]
        for index in indexes:
            part = node.start([*head, packed(b"ASKING"), sent.calls[index].command])
            received = [_response(node) for _ in range(part.left)]
            refused = next((one for one in received[:-1] if isinstance(one, ReplicatorError)), None)
            sent.responses[index] = part.unsent or refused or received[-1]

    def _all(self, calls: Sequence[SlotCall], script: Script | None = None) -> list[Any]:
        """The responses. The first error is raised."""
        self.connect()
        sent = self.start(calls, script)
        self.finish(sent)
        for response in sent.responses:
            if isinstance(response, ReplicatorError):
                self.renew(response)
                raise response
        return sent.responses

    def keyed(self, *commands: Sequence[bytes]) -> list[Any]:
        """The responses to commands, each with a key as its second part."""
        return self._all([SlotCall(slot_of(command[1]), packed(*command)) for command in commands])

    def run(self, script: Script, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Any:
        (result,) = self.run_all(script, [(keys, arguments)])
        return result

    def run_all(self, script: Script, calls: Sequence[ScriptCall]) -> list[Any]:
        """The results of calls of a script, each on keys of one slot."""
        return self._all([SlotCall(slot_of(keys[0]), call(script, keys, given)) for keys, given in calls], script)

    # scans

    def settle(self) -> None:
        """Connect, and learn of every change. Postponed while keys move: a scan could miss them."""
        self.refresh()
        self.connect()
        if self.view.moving:
            self._changes += 1
            raise Postponed(
                f"{self} is moving slots (now {some(self.view.moving)}): what goes through all keys waits until that "
                "is done. If no resharding runs, one was interrupted: end it with redis-cli --cluster fix HOST:PORT"
            )
        if (why := self._undecided()) is not None:
            self._changes += 1
            raise Postponed(f"{self}: {why}; what goes through all keys waits")

    def _undecided(self) -> str | None:
        """Why it is not certain which primary has which slots, or that none is moving."""
        silent = [str(node) for node in self._idle.values() if not node.is_open]
        if silent:
            return f"{silent[0]}, a primary without slots, does not say whether it is receiving some"
        primaries = {id for id, node in self.view.nodes.items() if not node.of}
        if len({view.held for view in self._seen if view.seer in primaries}) > 1:
            return "its primaries do not agree yet which of them has which slots"
        return None

    def scan(self, pattern: bytes, cursor: bytes, count: bytes) -> tuple[Sequence[bytes], bytes]:
        """Keys that match on one of the nodes, and the cursor behind them; b"0" at the beginning and the end."""
        at, _, within = cursor.partition(b":")
        nodes, index = self.nodes(), int(at)
        if index >= len(nodes):
            raise TransientError(f"{self} has fewer primaries than when the scan began; starting again")
        node = nodes[index]
        ((after, keys),) = node.ask(packed(b"SCAN", within or b"0", b"MATCH", pattern, b"COUNT", count))
        if after != b"0":
            return keys, b"%d:%b" % (index, after)
        if index + 1 < len(nodes):
            return keys, b"%d:0" % (index + 1)
        self.settle()
        return keys, b"0"

    def divided(self, guards: Sequence[bytes]) -> Iterable[Sequence[bytes]]:
        """Groups of guards, each in one slot."""
        found: dict[int, list[bytes]] = {}
        for guard in guards:
            found.setdefault(slot_of(guard), []).append(guard)
        return list(found.values())


def has_continued(info: Mapping[str, str], history: str, after: str) -> bool | None:
    """Whether the primary that took over has everything that this node had; None if that is not decided yet.

    Only then is a partial resynchronization possible: the node keeps what it has, and the ``history`` to which that
    belongs as its previous one, before that of the new primary (``after``). A full one, which drops what the new
    primary lacks, leaves no previous one.
    """
    if info.get("role") != "slave" or info.get("master_replid") == history:
        return None if info.get("master_sync_in_progress", "0") == "0" else False
    return previous_history(info) == history and info.get("master_replid") == after


def _is_informed(node: Server) -> bool:
    """Whether a primary without slots says what it is at present."""
    with contextlib.suppress(ReplicatorError):
        if node.is_open:
            node.inform()
            return True
    return False


def _seen_by(node: Server) -> View:
    return _view_of(node.ask(*_VIEW), node.address.node or ("", 0))


def _view_of(responses: Sequence[Any], place: Place) -> View:
    slots, nodes = responses
    return view(slots, bytes(nodes).decode(errors="replace"), place[0])


def _response(node: Server) -> Any:
    try:
        return node.receive()
    except ReplicatorError as e:
        return e


def _receive(sent: Round, node: Server, indexes: Sequence[int], part: Sent) -> None:
    """Read the responses of one node; the reason for one that is missing is in its place."""
    received = []
    while part.left:
        part.left -= 1
        received.append(_response(node))
    head = received.pop(0) if sent.script is not None and received else None
    if isinstance(head, ReplicatorError):
        received = [head] * len(received)
    missing = [part.unsent] * (len(indexes) - len(received))
    for index, response in zip(indexes, [*received, *missing], strict=True):
        sent.responses[index] = response
