"""Checkpoints in a DynamoDB table, for runs that may start on different machines. A later run takes over."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from replicator.aws import boto
from replicator.aws.client import Client
from replicator.checkpoints.compare_and_set import Row, check_owned, saved_already
from replicator.checkpoints.contract import NO_COUNTS, Claimed
from replicator.checkpoints.dynamodb import layout as layout
from replicator.checkpoints.dynamodb import setup as setup
from replicator.checkpoints.dynamodb.layout import Known
from replicator.checkpoints.dynamodb.setup import DynamodbOptions as DynamodbOptions
from replicator.checkpoints.dynamodb.snapshot import TRIES, Name, States, heads_of, journals_of
from replicator.checkpoints.dynamodb.table import Changed, CheckpointTable
from replicator.errors import Fenced, TransientError
from replicator.state import (
    FORGOTTEN,
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


HELD_TRIES = 3  # attempts of a save, with pauses, for which a worker heeds that its head is held or has a journal


class DynamodbCheckpoints:
    """``Checkpoints`` of one pipeline in a table, whatever their size.

    Every save is conditional on the number of the last save of what it changes (``layout``), so it happens once, in
    turn, or not at all.
    """

    Options = DynamodbOptions

    def __init__(self, options: DynamodbOptions, pipeline: str, base: Path) -> None:
        self._options, self._pipeline = options, pipeline
        self._client: Client | None = None
        self._claims: dict[str, int] = {}
        self._own: str | None = None  # the slot whose head names this process' saves; "": that of the run
        self._parked_pages = 1  # that all parked entries made when they were last listed
        self._known: Known | None = None  # what the own head guards, as this process' last save left it
        self._unsure: tuple[list[Save], Mapping[str, Counts], str] | None = None
        self._wide = False  # whether the last attempt of a save moved more than the own head, and was too late
        self._in_the_way: set[str] = set()  # slots whose workers have saved before this process could
        self._heeded = ("", 0)  # by what the own head is held, or which journal it has, and how often that was heeded

    @property
    def place(self) -> str:
        return f"the DynamoDB table {self._options.table} ({self._options.region or 'the usual region'})"

    def check(self) -> Sequence[str]:
        return setup.problems(self._connected(), self._options, self._pipeline)

    def plan(self) -> Sequence[str]:
        return setup.plan(self._connected(), self._options)

    def notes(self) -> Sequence[str]:
        return setup.notes(self._connected(), self._options)

    def create(self) -> None:
        setup.create(self._connected(), self._options)

    def claim(self, owner: Owner) -> Claimed:
        states = self._states()
        for _ in range(TRIES):
            head, pieces = states.settled_head(), states.pieces()
            try:
                head = states.take_over(head, encode(owner))
            except Changed:
                continue
            self._begin({"": head.claim}, "")
            self._known, texts = states.all(settled=True)
            self._check_owned(states, self._known)
            states.collect_garbage(pieces, self._known)
            return _claimed(self._known, texts)
        raise self._busy()

    def claim_slot(self, owner: Owner, slot: str, run: int) -> Claimed:
        states = self._states()
        place = ("owner", slot)
        for _ in range(TRIES):
            # The slot's head before the run's claim: a later run first claims the pipeline, and then moves that head.
            head = states.settled_head(slot)
            known = states.begin("")
            states.fill(known, [Save(*place, None, "")], ())
            check_owned({"": known.heads[""].claim}, {"": run})
            revision = known.rows().get(place, Row()).revision
            try:
                own = states.take_slot(known.heads[""], head, slot, Save(*place, revision, encode(owner)), known)
            except Changed:
                continue
            self._begin({"": run, slot: revision + 1}, own)
            known, texts = states.all(settled=True, own=own)
            # Where the slot was taken away since, the first save is refused. The run's claim is read after the head,
            # which a later run moves after its claim: what is remembered of a head is saved without another look.
            if known.rows()[place].revision == revision + 1 and states.head().claim == run:
                self._remember(known)
            return replace(_claimed(known, texts), revision=revision + 1)
        raise self._busy()

    def _begin(self, claims: dict[str, int], own: str) -> None:
        self._claims, self._own = claims, own
        self._known, self._unsure = None, None
        self._wide, self._in_the_way = False, set()

    def save(self, saves: Sequence[Save], counts: Mapping[str, Counts] = NO_COUNTS) -> None:
        states = self._states()
        if not (saves or counts):
            return self._check_owned(states, states.begin("")) if self._claims else None
        try:
            return self._save(states, saves, counts)
        except Fenced:  # given up: what was in the way of this save need not be in that of the next one
            self._wide, self._in_the_way = False, set()
            raise

    def _save(self, states: States, saves: Sequence[Save], counts: Mapping[str, Counts]) -> None:
        for _ in range(TRIES):
            known = self._current(states, saves, counts)
            try:
                made = self._is_made(known, saves, counts)
            except Fenced:
                if self._claims and states.have_moved(known, heads_of(known, saves, counts, self._own)):
                    continue  # what was read is of several saves, perhaps of this one, which was applied late
                raise
            if made:
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
        self._known, self._claims, self._own = None, {}, None
        if isinstance(client, boto.Boto):
            client.close()

    def _current(self, states: States, saves: Sequence[Save], counts: Mapping[str, Counts]) -> Known:
        """The state that the save builds on: the remembered one if it is certain and enough, otherwise the table's."""
        kept = self._remembered(states, saves, counts)
        self._known = None
        if self._own and kept is None and not self._wide:
            kept = states.begin(self._own, self._heed)
            self._check_owned(states, kept)
            states.fill(kept, saves, counts)
        if kept is not None and self._is_enough(kept, saves, counts):
            return kept
        known = self._all_heads(states, saves, counts, kept)
        in_the_way = self._in_the_way & set(heads_of(known, saves, counts, self._own))
        if in_the_way and self._is_new(known, saves, counts):
            states.hold(sorted(in_the_way), uuid.uuid4().hex)
            known = self._all_heads(states, saves, counts, kept)
        return known

    def _remembered(self, states: States, saves: Sequence[Save], counts: Mapping[str, Counts]) -> Known | None:
        """What is remembered, and what else the save may depend on; None if it is uncertain or outdated."""
        if self._known is None or self._unsure is not None:
            return None
        states.fill(self._known, saves, counts)
        return self._known if _fits(self._known, saves) else None

    def _all_heads(
        self, states: States, saves: Sequence[Save], counts: Mapping[str, Counts], kept: Known | None
    ) -> Known:
        """All heads, and what the save may depend on. What the own one guards is that of ``kept`` if that still holds.

        Fenced before anything of another slot is changed, if this process was replaced.
        """
        known = states.begin(None, self._heed if self._own else None)
        if kept is not None and self._own is not None:
            known = layout.with_guarded(known, kept, self._own)
        if self._claims:
            self._check_owned(states, known)
        states.fill(known, saves, counts if self._claims else (*counts, FORGOTTEN))
        return known

    def _is_enough(self, known: Known, saves: Sequence[Save], counts: Mapping[str, Counts]) -> bool:
        """Whether the heads that the save moves are known."""
        return known.heads.keys() >= set(heads_of(known, saves, counts, self._own))

    def _heed(self, heads: layout.Heads) -> None:
        """TransientError if another process is about to change what is this slot's, or is completing a large save.

        Otherwise each worker would write the items of that save as well. But that process may have been killed, so
        this one does not wait for ever.
        """
        own = heads.get(self._own or "", layout.Head())
        mine = self._unsure is not None and own.last == self._unsure[2]
        journals = [] if mine else journals_of(heads)
        by = own.held or (journals[0].token if journals else "")
        before, tries = self._heeded
        self._heeded = (by, tries + 1 if by == before else 1)
        if by and self._heeded[1] <= HELD_TRIES:
            does = "is about to change" if own.held else "is changing"
            raise TransientError(f"another process {does} this slot's checkpoints in {self.place}")

    def _check_owned(self, states: States, known: Known) -> None:
        """Fenced unless this process still owns what it claimed. ``known``: read before, if that was changed since."""
        slots = [Save("owner", slot, None, "") for slot in self._claims if slot]
        states.fill(known, slots, ())
        rows, head = known.rows(), known.heads.get("") or states.head()
        owners = {slot: rows.get(("owner", slot), Row()).revision if slot else head.claim for slot in self._claims}
        try:
            check_owned(owners, self._claims)
        except Fenced:
            self._known = None
            raise

    def _is_made(self, known: Known, saves: Sequence[Save], counts: Mapping[str, Counts]) -> bool:
        """Whether this save was already made: the last one, whose response was lost, or judging by its entries."""
        if self._unsure is not None and self._own is not None:
            before, more, token = self._unsure
            if known.heads[self._own].last == token and (before, more) == (list(saves), counts):
                return True
        rows = known.rows()
        found = {(s.kind, s.id): rows.get((s.kind, s.id), Row()) for s in saves}
        summed = [Save(s.kind, s.id, s.expected, None if s.text is None else layout.text_sum(s.text)) for s in saves]
        return saved_already(summed, found, self._claims, self._claims)

    def _is_new(self, known: Known, saves: Sequence[Save], counts: Mapping[str, Counts]) -> bool:
        """Whether the save is neither made nor refused."""
        try:
            return not self._is_made(known, saves, counts)
        except Fenced:
            return False

    def _saved(self, states: States, known: Known, saves: Sequence[Save], counts: Mapping[str, Counts]) -> bool:
        """Try the save; False if another process saved first."""
        token = uuid.uuid4().hex
        mine = self._own is not None
        again = self._unsure is not None and (self._unsure[0], self._unsure[1]) == (list(saves), counts)
        name = self._unsure[2] if self._unsure is not None and again else token
        self._unsure = (list(saves), counts, name) if mine else None
        self._known = None
        slots = set(heads_of(known, saves, counts, self._own))
        try:
            known = states.commit(known, saves, counts, Name(token, name if mine else ""), self._own)
        except Changed:
            self._wide, self._in_the_way = slots != {self._own}, slots - {"", self._own}
            return False
        self._remember(known)
        self._unsure, self._wide, self._in_the_way = None, False, set()
        return True

    def _remember(self, known: Known) -> None:
        """Keep what the own head guards; a command keeps nothing."""
        if self._own is None:
            self._known = None
        else:
            self._known = known if known.heads.keys() == {self._own} else layout.guarded_by(known, self._own)

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
    head = known.heads[""]
    owner = [Entry("owner", "", head.claim, head.owner)] if head.claim else []
    places = sorted(known.entries.items())
    entries = [Entry(*place, stored.revision, texts.get(place, "")) for place, stored in places]
    return Claimed(head.claim, [*owner, *entries], known.counts)
