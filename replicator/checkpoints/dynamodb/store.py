"""Checkpoints in a DynamoDB table, for runs that may start on different machines. A later run takes over."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from replicator.aws import boto
from replicator.aws.client import Client
from replicator.checkpoints.compare_and_set import Row, saved_already
from replicator.checkpoints.contract import NO_COUNTS, Claimed
from replicator.checkpoints.dynamodb import layout as layout
from replicator.checkpoints.dynamodb import setup as setup
from replicator.checkpoints.dynamodb.layout import Head, Known
from replicator.checkpoints.dynamodb.setup import DynamodbOptions as DynamodbOptions
from replicator.checkpoints.dynamodb.snapshot import TRIES, States
from replicator.checkpoints.dynamodb.table import Changed, CheckpointTable
from replicator.errors import Fenced, TransientError
from replicator.state import (
    Counts,
    Entry,
    Owner,
    Parked,
    PipelineState,
    Save,
    counted,
    decode_parked,
    decode_pipeline,
    encode,
)

_PER_PAGE = 10  # parked entries to read one by one rather than read a page of all of them, which is 1 MB


class DynamodbCheckpoints:
    """``Checkpoints`` of one pipeline in a table, whatever their size.

    Every save is conditional on the number of the save before it, so it happens once, in turn, or not at all.
    """

    Options = DynamodbOptions

    def __init__(self, options: DynamodbOptions, pipeline: str, base: Path) -> None:
        self._options, self._pipeline = options, pipeline
        self._client: Client | None = None
        self._claim: int | None = None
        self._parked_pages = 1  # that all parked entries made when they were last listed
        self._known: Known | None = None  # everything, as this run's last save left it
        self._unsure: tuple[list[Save], Mapping[str, Counts], str] | None = None

    @property
    def place(self) -> str:
        return f"the DynamoDB table {self._options.table} ({self._options.region or 'the usual region'})"

    def check(self) -> Sequence[str]:
        return setup.problems(self._connected(), self._options, self._pipeline)

    def plan(self) -> Sequence[str]:
        return setup.plan(self._connected(), self._options)

    def create(self) -> None:
        setup.create(self._connected(), self._options)

    def claim(self, owner: Owner) -> Claimed:
        states = self._states()
        for _ in range(TRIES):
            head, pieces = states.settled_head(), states.pieces()
            try:
                self._claim, self._unsure = states.take_over(head, encode(owner)).claim, None
            except Changed:
                continue
            known, texts = self._everything(states)
            states.collect_garbage(pieces, known)
            return _claimed(known, texts)
        raise self._busy()

    def save(self, saves: Sequence[Save], counts: Mapping[str, Counts] = NO_COUNTS) -> None:
        states = self._states()
        for _ in range(TRIES):
            known = self._current(states, saves, counts)
            if not (saves or counts):
                return
            if self._is_made(known, saves, counts):
                self._unsure = None
                return
            if self._claim is None:
                counts = counted(counts, partial(_is_known, known))
            if self._saved(states, known, saves, counts):
                return
        raise self._busy()

    def read(self) -> Claimed:
        states = self._states()
        found = _claimed(*states.all(settled=False))
        self._parked_pages = states.parked_pages
        return found

    def pipeline(self) -> PipelineState | None:
        text = self._states().text("pipeline", "")
        return None if text is None else decode_pipeline(text)

    def request(self) -> Entry | None:
        return self._states().entry("request", "")

    def parked(self, prefix: str = "", ids: Collection[str] | None = None) -> Iterator[tuple[str, Parked]]:
        states = self._states()
        few = ids is not None and len(ids) <= _PER_PAGE * self._parked_pages
        found = states.parked_among(sorted(ids or ())) if few else states.parked(prefix, ids)
        for id, text in found:
            if id.startswith(prefix):
                yield id, decode_parked(id, text)

    def close(self) -> None:
        client, self._client = self._client, None
        self._known = self._claim = None
        if isinstance(client, boto.Boto):
            client.close()

    def _current(self, states: States, saves: Sequence[Save], counts: Mapping[str, Counts]) -> Known:
        """The state that the save builds on: the remembered one if it is certain, otherwise the table's."""
        if self._claim is None:
            return states.touched(states.settled_head(), saves, counts)
        if self._known is not None and (saves or counts) and self._unsure is None and _fits(self._known, saves):
            return self._known
        if not (saves or counts):  # only checks the ownership
            return Known(self._mine(states.settled_head()))
        return self._everything(states)[0]

    def _everything(self, states: States) -> tuple[Known, Mapping[layout.Place, str]]:
        self._known, texts = states.all(settled=True)
        self._mine(self._known.head)
        return self._known, texts

    def _mine(self, head: Head) -> Head:
        if head.claim != self._claim:
            self._known = None
            raise Fenced("another run owns this pipeline now: this run must stop")
        return head

    def _is_made(self, known: Known, saves: Sequence[Save], counts: Mapping[str, Counts]) -> bool:
        """Whether this save was already made: the last one, whose response was lost, or judging by its entries."""
        if self._unsure is not None and self._claim is not None:
            before, more, token = self._unsure
            if known.head.last == token and (before, more) == (list(saves), counts):
                return True
        rows = known.rows()
        found = {(s.kind, s.id): rows.get((s.kind, s.id), Row()) for s in saves}
        summed = [Save(s.kind, s.id, s.expected, None if s.text is None else layout.text_sum(s.text)) for s in saves]
        return saved_already(summed, found, known.head.claim, self._claim)

    def _saved(self, states: States, known: Known, saves: Sequence[Save], counts: Mapping[str, Counts]) -> bool:
        """Try the save; False if another process saved first."""
        token = uuid.uuid4().hex
        mine = self._claim is not None
        again = self._unsure is not None and (self._unsure[0], self._unsure[1]) == (list(saves), counts)
        name = self._unsure[2] if self._unsure is not None and again else token
        self._unsure = (list(saves), counts, name) if mine else None
        remembered, self._known = self._known, None
        try:
            known = states.commit(known, saves, counts, (token, name if mine else known.head.last))
        except Changed:
            return False
        self._known, self._unsure = (known if remembered is not None else None), None
        return True

    def _states(self) -> States:
        options = self._options
        table = CheckpointTable(self._connected(), options.table, setup.resource(options), self._pipeline)
        return States(table, self.place)

    def _connected(self) -> Client:
        if self._client is None:
            self._client = boto.connect(self._options, "checkpoints")
        return self._client

    def _busy(self) -> TransientError:
        return TransientError(f"the checkpoints in {self.place} keep being changed by other processes")


def _fits(known: Known, saves: Sequence[Save]) -> bool:
    """Whether each entry has the revision that its save expects.

    Where one has not, a command changed it (a requested resync), which the remembered state does not show.
    """
    rows = known.rows()
    return all(s.expected in (None, rows.get((s.kind, s.id), Row()).revision) for s in saves)


def _is_known(known: Known, shard: str) -> bool:
    return ("shard", shard) in known.entries


def _claimed(known: Known, texts: Mapping[layout.Place, str]) -> Claimed:
    head: Head = known.head
    owner = [Entry("owner", "", head.claim, head.owner)] if head.claim else []
    places = sorted(known.entries.items())
    entries = [Entry(*place, stored.revision, texts.get(place, "")) for place, stored in places]
    return Claimed(head.claim, [*owner, *entries], known.counts)
