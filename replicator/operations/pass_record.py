"""The durable record of a verification pass: how far it is, so that it can be resumed, and at its end what it found."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from replicator.checkpoints.contract import Checkpoints
from replicator.errors import Fenced
from replicator.state import BY_RUN, UNFINISHED, Entry, Save, Verified, decode, encode

NAMES = {id: "pass of a run" if id == BY_RUN else "`replicator verify`" for id in UNFINISHED}


class Voided(Exception):
    """Parked changes were discarded: the pass proves nothing of their items, so it must not be recorded."""


@dataclass(slots=True)
class PassRecord:
    """One entry while the pass is in progress; its end replaces the last pass of the same kind, named by ``ends_as``.

    Passes of different kinds do not see each other. A pass that is taken over by a later one of its kind gets Fenced,
    and so does one of a run that no longer owns the pipeline: its tables may have been exchanged. ``owner``: the
    revision of that run's claim.
    """

    checkpoints: Checkpoints
    ends_as: str
    owner: int | None = None
    _saved: list[Verified] = field(default_factory=list)  # the last of which may have been stored

    @property
    def _id(self) -> str:
        return UNFINISHED[self.ends_as]

    def unfinished(self) -> Verified | None:
        """The pass that was interrupted."""
        entry = self._entry(self._id)
        return None if entry is None else _decoded(entry)

    def resume(self, stored: Verified) -> None:
        self._saved = [stored]

    def save(self, so_far: Verified) -> None:
        """Fenced if another pass of this kind has begun since, Voided if the entry was removed."""
        revision = self._revision()
        self._saved = [*self._saved[-1:], so_far]
        self._change([Save("verified", self._id, revision, encode(so_far))])
        self._saved = [so_far]

    def end(self, result: Verified) -> None:
        """Replace the last result, as ``save`` does."""
        if (last := self._entry(self.ends_as)) is not None and _decoded(last) == result:
            return  # whose response was lost
        removal = Save("verified", self._id, self._revision(), None)
        self._change([Save("verified", self.ends_as, None, encode(result)), removal])

    def _change(self, saves: Sequence[Save]) -> None:
        try:
            self.checkpoints.save(saves)
        except Fenced:
            self._revision()  # says why
            raise

    def _revision(self) -> int:
        """The revision of the entry, if it is still this pass's own; 0 if there is none yet."""
        entry = self._entry(self._id)
        if not self._saved:
            return 0 if entry is None else entry.revision
        if entry is None:
            raise Voided
        if _decoded(entry) not in self._saved:
            raise Fenced(f"another {NAMES[self.ends_as]} of this pipeline has taken over; this one must stop")
        return entry.revision

    def _entry(self, id: str) -> Entry | None:
        entries = self.checkpoints.read().entries
        if self.owner is not None and self.owner != owner_of(entries):
            raise Fenced("another run owns this pipeline")
        return next((e for e in entries if (e.kind, e.id) == ("verified", id)), None)


def owner_of(entries: Sequence[Entry]) -> int:
    """The revision of the run's claim; 0 if there never was one."""
    return next((e.revision for e in entries if (e.kind, e.id) == ("owner", "")), 0)


def _decoded(entry: Entry) -> Verified:
    value = decode(entry.kind, entry.id, entry.text)
    assert isinstance(value, Verified)
    return value


class Piece(NamedTuple):
    """What was read in one go. ``cursor``: where the next piece begins. ``items``, ``documents``: how many it has."""

    origin: str
    cursor: str | None
    items: int = 0
    documents: int = 0


@dataclass(slots=True)
class Part:
    """A segment or a table that is being read, piece by piece. ``cursor``: what is before it is done.

    A piece is done when no candidate of it is left, and all pieces before it are done.
    """

    name: str
    cursor: str | None = None
    ended: bool = False
    _pieces: deque[Piece] = field(default_factory=deque)
    _number: int = 0

    @property
    def next_origin(self) -> str:
        """Names the next piece; see ``Candidate.origin``."""
        return f"{self.name}#{self._number}"

    def read(self, cursor: str | None, items: int = 0, documents: int = 0) -> None:
        """The piece named ``next_origin`` was read. No ``cursor``: it is the last one."""
        self._pieces.append(Piece(self.next_origin, cursor, items, documents))
        self._number += 1
        self.ended = cursor is None

    def take_done(self, open_origins: Collection[str]) -> Sequence[Piece]:
        """The pieces that are done now. ``open_origins``: of the candidates that are left."""
        done = []
        while self._pieces and self._pieces[0].origin not in open_origins:
            piece = self._pieces.popleft()
            self.cursor = piece.cursor
            done.append(piece)
        return done

    @property
    def done(self) -> bool:
        return self.ended and not self._pieces
