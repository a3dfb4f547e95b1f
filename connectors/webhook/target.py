"""The webhook target: implements the target contract on top of a receiver that compares versions."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from connectors.webhook.accepted import Accepted, Answered
from connectors.webhook.client import TOO_LARGE, Client, Response, ResponseLost
from connectors.webhook.messages import (
    FRAME,
    Encoder,
    Event,
    Frame,
    Message,
    chunked,
    halves,
    note,
    text_of,
    timestamp,
)
from connectors.webhook.options import WebhookOptions, WebhookTable
from replicator.batch import Batch, DocumentId, Outcome, Part, Rejection, Write
from replicator.errors import ConfigError, NotPermitted, TransientError, Unfinished
from replicator.identity import Identity
from replicator.target.background import Background
from replicator.target.contract import Denied, Table
from replicator.target.in_doubt import TOO_LATE, InDoubtWindow, is_late

_UNSEEN = (
    "webhook: events are sent at least once, and only the receiver can compare versions. A receiver that does not may "
    "end with an older state of an item after a retry, a restart or a timeout"
)
_SUSPECTS = 3  # events; if no other is accepted before so many are rejected, the receiver is at fault
_FORGETS = (
    "; state_requests is false, so lost checkpoints and an emptied receiver go unnoticed; then run: "
    "replicator resync CONFIG"
)


@dataclass(slots=True)
class _Attempt:
    """A batch that is being sent. ``messages``: those not answered yet, in order.

    ``answered``: the events that were accepted, now or in an earlier batch. ``accepted``: the last message that was, or
    one with such an event. ``suspects``: rejected messages of one event, with the status, while it is open whether the
    receiver accepts anything. ``probes``: messages that are sent before all others to find that out.
    """

    batch: Batch
    frame: Frame
    messages: deque[Message]
    answered: list[Answered] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    accepted: Message | None = None
    suspects: list[tuple[Message, int]] = field(default_factory=list)
    probes: deque[Message] = field(default_factory=deque)
    probed: int = 0  # status of the last one

    def acquit(self) -> None:
        """Let the suspects be sent again: after a failure, what they were rejected for may be over."""
        self.messages.extendleft(message for message, _ in reversed(self.suspects))
        self.suspects = []
        self.probes.clear()

    def reject(self) -> None:
        """Reject the suspects: the receiver accepts other messages."""
        for message, status in self.suspects:
            self.rejections.append(Rejection(message.events[0].write, _reason(status)))
        self.suspects = []
        self.probes.clear()

    @property
    def outcome(self) -> Outcome:
        if self.rejections:
            return Outcome(self.rejections)
        superseded: dict[str, int] = {}
        for event, had in self.answered:
            if had and event.write.weight:
                superseded[event.source] = superseded.get(event.source, 0) + event.write.weight
        return Outcome(superseded=superseded)


class Webhook:
    """A receiver at one address. Messages are sent one after the other, so an item's events arrive in order."""

    Options = WebhookOptions
    TableOptions = WebhookTable
    incomparable = "what is at the receiver cannot be read: compare there, by version (docs/targets/webhook.md)"

    def __init__(
        self,
        options: WebhookOptions,
        pipeline: str,
        client: Client | None = None,
        now: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: f"msg_{uuid.uuid4().hex}",
    ) -> None:
        self._options = options
        self._pipeline = pipeline
        self._client = Client(options) if client is None else client
        self._now = now
        self._new_id = new_id
        self._in_doubt = InDoubtWindow()
        self._encoder = Encoder((), options.max_bytes)
        self._attempt: _Attempt | None = None
        self._accepted = Accepted()
        self._background = Background(name="webhook")
        self._largest = options.max_bytes  # of a body; smaller once the receiver has said that one is too large
        self._is_open = False  # the receiver has accepted a begin
        self._marks: dict[str, str] = {}  # by table: what the last purge marked there

    @property
    def in_doubt(self) -> InDoubtWindow:
        return self._in_doubt

    @property
    def reduced_guarantee(self) -> str:
        return _UNSEEN if self._options.state_requests else _UNSEEN + _FORGETS

    @property
    def knows_epochs(self) -> bool:
        return self._options.state_requests

    def check(self, tables: Sequence[Table]) -> Sequence[str]:
        try:
            if self._options.state_requests:
                self._epochs(tables)
            else:
                self._client.connect()
        except NotPermitted as e:
            return [Denied(str(e))]
        except ConfigError as e:
            return e.problems
        return []

    def plan(self, tables: Sequence[Table]) -> Sequence[str]:
        epochs = self._epochs(tables) if self._options.state_requests else {}
        new = [table.name for table in tables if epochs.get(table.name) is None]
        return [f"POST {self._client.server}: replicator.begin for {', '.join(new)}"] if new else []

    def epoch(self, tables: Sequence[Table]) -> int | None:
        """0 if the receiver is not asked."""
        if not self._options.state_requests:
            return 0
        epochs = list(self._epochs(tables).values())
        return None if None in epochs else max((e for e in epochs if e is not None), default=0)

    def identities(self, tables: Sequence[Table]) -> Mapping[str, Identity]:
        """By the address, whose path is not shown."""
        digest = hashlib.sha256(self._options.url.get_secret_value().encode()).hexdigest()[:16]
        place = f"at {self._client.server}"
        return {table.name: Identity(f"{table.name} {place}", at=f"{table.name} {digest}") for table in tables}

    def refusals(self, tables: Sequence[Table], writes: Sequence[Write]) -> Sequence[Rejection]:
        return Encoder(tables, self._options.max_bytes).encode(Batch([Part("", writes)]))[1]

    def open(self, tables: Sequence[Table], epoch: int) -> None:
        self._note("begin", {"epoch": epoch, "tables": [table.name for table in tables]})
        self._is_open = True
        self._encoder = Encoder(tables, self._options.max_bytes)
        self._attempt = None
        self._accepted.clear()

    def write(self, batch: Batch) -> Outcome:
        attempt = self._attempt
        if attempt is None or attempt.batch is not batch:
            events, rejections = self._encoder.encode(batch)
            if rejections:
                return Outcome(rejections)
            attempt = self._attempt = self._begun(batch, events)
        self._send_all(attempt)
        self._attempt = None
        if attempt.rejections:
            self._accepted.came_back(attempt.answered, tombstones=attempt.frame.tombstones)
        else:
            self._accepted.stored([event for event, _ in attempt.answered])
        return attempt.outcome

    def sweep(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
        found = self._note("sweep", {"table": table.name, "below": text_of(below), "spare": [list(id) for id in spare]})
        return _number(found.json.get("removed"))

    def purge(self, table: Table, below: int, spare: Sequence[DocumentId] = ()) -> int:
        """Let the receiver remove what the last call marked, and mark what the next one removes."""
        mark = self._new_id()
        data = {"table": table.name, "below": text_of(below), "spare": [list(id) for id in spare], "mark": mark}
        found = self._note("purge", {**data, "remove": self._marks.get(table.name, "")})
        self._marks[table.name] = mark
        return _number(found.json.get("marked"))

    def close(self) -> None:
        self._attempt = None
        self._client.close()

    def _begun(self, batch: Batch, events: Sequence[Event]) -> _Attempt:
        tombstones = batch.tombstones or bool(self._in_doubt)
        frame = Frame(self._pipeline, timestamp(self._now()), tombstones, batch.replaces_same)
        before = [] if batch.replaces_same else self._accepted.spared(events, tombstones=tombstones)
        known = {id(event) for event in before}
        pieces = chunked([e for e in events if id(e) not in known], self._options.max_events, self._largest)
        return _Attempt(
            batch,
            frame,
            deque(frame.message(self._new_id(), piece) for piece in pieces),
            [(event, self._accepted.superseded(event, False)) for event in before],
            accepted=frame.message(self._new_id(), before[-1:]) if before else None,
        )

    def _send_all(self, attempt: _Attempt) -> None:
        began = self._now()
        try:
            while attempt.messages or attempt.probes:
                if is_late(began, self._now()):
                    raise Unfinished(TOO_LATE)
                if attempt.probes:
                    self._probe(attempt)
                else:
                    self._send_next(attempt)
        except Unfinished:
            raise
        except TransientError:
            attempt.acquit()
            raise

    def _send_next(self, attempt: _Attempt) -> None:
        """Send the next message. One that may have been carried out stays the next one, with the same id and body."""
        message = attempt.messages[0]
        self._accepted.sending(message.events)
        response = self._sent(message)
        if response.accepted:
            attempt.messages.popleft()
            attempt.accepted = message
            attempt.reject()
            self._count(attempt, message, response)
        elif len(message.events) > 1:
            self._divide(attempt, message, response.status)
        else:
            attempt.messages.popleft()
            attempt.suspects.append((message, response.status))
            self._suspect(attempt)

    def _sent(self, message: Message) -> Response:
        """The response to a message of a batch. Unfinished while it is awaited: the next call must be for the same one.

        So the run saves a heartbeat and confirms its ownership while a receiver takes long.
        """
        if not self._background.is_for(message):
            self._settle()
        try:
            what = f"the wait for a response of {self._client.server}"
            response: Response = self._background.result(message, lambda: self._client.send(message), what)
        except ResponseLost:
            self._in_doubt.begin()
            raise
        return response

    def _settle(self) -> None:
        """Wait for the response to a message of another batch, of which only matters whether it was lost."""
        if isinstance(self._background.settle(), ResponseLost):
            self._in_doubt.begin()

    def _divide(self, attempt: _Attempt, message: Message, status: int) -> None:
        """Halve a message that was rejected, until each one left is either accepted or has one event."""
        if status == TOO_LARGE:
            self._largest = max(len(message.body) // 2, FRAME)
        attempt.messages.popleft()
        for events in reversed(halves(message.events)):
            attempt.messages.appendleft(attempt.frame.message(self._new_id(), events))

    def _suspect(self, attempt: _Attempt) -> None:
        """Find out whether the receiver rejects this event or everything, as many do that cannot verify a signature.

        It is asked with a message without events, and with one that it accepted before.
        """
        if attempt.accepted is not None or len(attempt.suspects) == 1:
            empty = Frame(self._pipeline, timestamp(self._now())).message(self._new_id(), ())
            attempt.probes.extend([empty] if attempt.accepted is None else [empty, attempt.accepted])
        else:
            self._require_others(attempt)

    def _probe(self, attempt: _Attempt) -> None:
        response = self._sent(attempt.probes[0])
        if response.accepted:
            attempt.reject()
            return
        attempt.probes.popleft()
        attempt.probed = response.status
        if not attempt.probes:
            self._require_others(attempt)

    def _require_others(self, attempt: _Attempt) -> None:
        """TransientError unless there are other events of the batch that the receiver may accept."""
        if attempt.accepted is not None or len(attempt.suspects) == _SUSPECTS or not attempt.messages:
            raise TransientError(
                f"{self._client.server} rejects everything (status {attempt.suspects[-1][1]} for an event, "
                f"{attempt.probed} for none). Does it have the same secret (target.secret) and the right time, and "
                "does it accept an empty list of events?"
            )

    def _count(self, attempt: _Attempt, message: Message, response: Response) -> None:
        """Note what the receiver says it had already."""
        places = response.json.get("superseded")
        had = {one for one in places if type(one) is int} if isinstance(places, list) else set()
        for place, event in enumerate(message.events):
            attempt.answered.append((event, self._accepted.superseded(event, place in had)))

    def _epochs(self, tables: Sequence[Table]) -> Mapping[str, int | None]:
        """What the receiver has noted. ConfigError if it does not say."""
        names = [table.name for table in tables]
        found = self._note("state", {"tables": names}).json.get("epochs")
        if not isinstance(found, dict) or not all(_is_epoch(found.get(name, ...)) for name in names):
            raise ConfigError(
                f"{self._client.server} answers a replicator.state request without the epoch of each table, which is "
                "how lost checkpoints are noticed. Let it answer as docs/targets/webhook.md shows, or set "
                "target.state_requests: false if it keeps no versions"
            )
        return {name: found[name] for name in names}

    def _note(self, kind: str, data: Mapping[str, Any]) -> Response:
        """Send a message that is not about changes. ConfigError if the receiver rejects it.

        TransientError if it rejects a sweep or a purge, or anything once it has accepted a begin in this run.
        """
        self._settle()
        message = note(self._new_id(), kind, self._now(), {"pipeline": self._pipeline, **data})
        response = self._client.send(message)
        if response.accepted:
            return response
        if response.status == 409:
            raise ConfigError(
                f"{self._client.server} refuses a replicator.{kind} message (status 409): its tables have a later "
                "epoch, or belong to another pipeline. If the checkpoints were lost, copy everything again with: "
                "replicator resync CONFIG. If the pipeline was renamed, remove what is noted of the other name"
            )
        text = f"{self._client.server} rejects a replicator.{kind} message (status {response.status}). "
        if response.status == TOO_LARGE and data.get("spare"):
            raise TransientError(
                f"{text}It names all parked items ({len(message.body):,} bytes): retry or discard them (replicator "
                "parked CONFIG), or let the receiver accept larger requests"
            )
        text += (
            "Does it have the same secret (target.secret), and does it accept messages of types that it does not know?"
        )
        if self._is_open or kind in ("sweep", "purge"):
            raise TransientError(f"{text} It accepted requests before, so this may be temporary")
        raise ConfigError(text)


def _is_epoch(found: object) -> bool:
    return found is None or (isinstance(found, int) and not isinstance(found, bool) and found >= 0)


def _number(found: object) -> int:
    return found if type(found) is int and found > 0 else 0


def _reason(status: int) -> str:
    if status == TOO_LARGE:
        return "the receiver says that the event alone is too large (status 413)"
    return f"the receiver rejects the event (status {status})"
