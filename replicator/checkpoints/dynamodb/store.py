"""Checkpoints in a DynamoDB table, for runs that may start on different machines. A later run takes over."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from replicator.aws import boto
from replicator.aws.client import Client
from replicator.checkpoints.compare_and_set import Row, check_owned, saved_already
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
        self._claims: dict[str, int] = {}
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
                self._claims, self._unsure = {"": states.take_over(head, encode(owner)).claim}, None
            except Changed:
                continue
            known, texts = self._everything(states)
            states.collect_garbage(pieces, known)
            return _claimed(known, texts)
        raise self._busy()

    def claim_slot(self, owner: Owner, slot: str, run: int) -> Claimed:
        states = self._states()
        for _ in range(TRIES):
            known, texts = states.all(settled=True)
            check_owned(_owners(known, [""]), {"": run})
            place = ("owner", slot)
            revision, text = known.rows().get(place, Row()).revision, encode(owner)
            claim = [Save(*place, revision, text)]
            try:
                self._known = states.commit(known, claim, NO_COUNTS, (uuid.uuid4().hex, known.head.last))
            except Changed:
                continue
            self._claims, self._unsure = {"": run, slot: revision + 1}, None
            return replace(_claimed(self._known, {**texts, place: text}), revision=revision + 1)
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
            if not self._claims:
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
        self._known, self._claims = None, {}
        if isinstance(client, boto.Boto):
            client.close()

    def _current(self, states: States, saves: Sequence[Save], counts: Mapping[str, Counts]) -> Known:
        """The state that the save builds on: the remembered one if it is certain, otherwise the table's."""
        if not self._claims:
            return states.touched(states.settled_head(), saves, counts)
        if self._known is not None and (saves or counts) and self._unsure is None and _fits(self._known, saves):
            return self._known
        if not (saves or counts):  # only checks the ownership
            return self._mine(self._owned(states))
        return self._everything(states)[0]

    def _everything(self, states: States) -> tuple[Known, Mapping[layout.Place, str]]:
        self._known, texts = states.all(settled=True)
        return self._mine(self._known), texts

    def _owned(self, states: States) -> Known:
        """The owner entries of what this process claimed, and nothing else."""
        owners = [Save("owner", slot, None, "") for slot in self._claims if slot]
        return states.touched(states.settled_head(), owners, ())

    def _mine(self, known: Known) -> Known:
        try:
            check_owned(_owners(known, self._claims), self._claims)
        except Fenced:
            self._known = None
            raise
        return known

    def _is_made(self, known: Known, saves: Sequence[Save], counts: Mapping[str, Counts]) -> bool:
        """Whether this save was already made: the last one, whose response was lost, or judging by its entries."""
        if self._unsure is not None and self._claims:
            before, more, token = self._unsure
            if known.head.last == token and (before, more) == (list(saves), counts):
                return True
        rows = known.rows()
        found = {(s.kind, s.id): rows.get((s.kind, s.id), Row()) for s in saves}
        summed = [Save(s.kind, s.id, s.expected, None if s.text is None else layout.text_sum(s.text)) for s in saves]
        return saved_already(summed, found, _owners(known, self._claims), self._claims)

    def _saved(self, states: States, known: Known, saves: Sequence[Save], counts: Mapping[str, Counts]) -> bool:
        """Try the save; False if another process saved first."""
        token = uuid.uuid4().hex
        mine = bool(self._claims)
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


def _owners(known: Known, slots: Iterable[str]) -> dict[str, int]:
    rows = known.rows()
    return {slot: rows.get(("owner", slot), Row()).revision if slot else known.head.claim for slot in slots}


def _is_known(known: Known, shard: str) -> bool:
    return ("shard", shard) in known.entries


def _claimed(known: Known, texts: Mapping[layout.Place, str]) -> Claimed:
    head: Head = known.head
    owner = [Entry("owner", "", head.claim, head.owner)] if head.claim else []
    places = sorted(known.entries.items())
    entries = [Entry(*place, stored.revision, texts.get(place, "")) for place, stored in places]
    return Claimed(head.claim, [*owner, *entries], known.counts)
