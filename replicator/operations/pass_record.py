"""The durable record of a verification pass: how far it is, so that it can be resumed, and at its end what it found."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from replicator.checkpoints.contract import Checkpoints
from replicator.errors import Fenced
from replicator.state import BY_RUN, SAMPLE, UNFINISHED, Entry, Save, Verified, decode, encode

NAMES = {id: "pass of a run" if id == BY_RUN else "`replicator verify`" for id in UNFINISHED}


class Voided(Exception):
    """Parked changes were discarded: the pass proves nothing of their items, so it must not be recorded."""


@dataclass(slots=True)
class PassRecord:
    """One entry while the pass is in progress; its end replaces the last pass of the same kind, named by ``ends_as``.

    Passes of different kinds do not see each other. A pass that is taken over by a later one of its kind gets Fenced,
    and so does one of a run that no longer owns the pipeline: its tables may have been exchanged. ``owner``: the
    revision of that run's claim.

    What the replaced passes found is kept (``Verified.earlier``) until a pass over the whole table has ended.
    """

    checkpoints: Checkpoints
    ends_as: str
    owner: int | None = None
    _saved: list[Verified] = field(default_factory=list)  # the last of which may have been stored
    _earlier: int = 0  # differences that the replaced passes found
    _found: float | None = None  # the last of them

    @property
    def _id(self) -> str:
        return UNFINISHED[self.ends_as]

    def unfinished(self) -> Verified | None:
        """The pass that was interrupted."""
        entry = self._entry(self._id)
        return None if entry is None else _decoded(entry)

    def seen(self) -> tuple[float, ...]:
        """What is known to have been found by now, by any pass: see ``Verified.seen``."""
        passes = [_decoded(e) for e in self._entries() if e.kind == "verified"]
        return tuple(sorted({found for v in passes if (found := v.last_found) is not None}))

    def resume(self, stored: Verified) -> None:
        self._saved = [stored]

    def save(self, so_far: Verified) -> None:
        """Fenced if another pass of this kind has begun since, Voided if the entry was removed."""
        revision = self._revision()
        so_far = self._with_earlier(so_far)
        self._saved = [*self._saved[-1:], so_far]
        self._change([Save("verified", self._id, revision, encode(so_far))])
        self._saved = [so_far]

    def end(self, result: Verified) -> None:
        """Replace the last result, as ``save`` does."""
        result = self._with_earlier(result)
        if self.ends_as != SAMPLE:  # it has seen all that the passes before it had found
            result = replace(result, earlier=0, found=result.found if result.differences else None)
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
        entries = self._entries()
        entry = _of(entries, self._id)
        if not self._saved:
            self._begin(entries)
            return 0 if entry is None else entry.revision
        if entry is None:
            raise Voided
        if _decoded(entry) not in self._saved:
            raise Fenced(f"another {NAMES[self.ends_as]} of this pipeline has taken over; this one must stop")
        return entry.revision

    def _begin(self, entries: Sequence[Entry]) -> None:
        """Take over what the passes have found that this one replaces now or, as a sample, at its end."""
        ids = (self._id, self.ends_as) if self.ends_as == SAMPLE else (self._id,)  # the later one first
        replaced = [_decoded(entry) for id in ids if (entry := _of(entries, id)) is not None]
        self._earlier = sum(v.known for v in replaced)
        self._found = next((found for v in replaced if (found := v.last_found) is not None), None)

    def _with_earlier(self, so_far: Verified) -> Verified:
        if not self._earlier:
            return so_far
        return replace(so_far, earlier=self._earlier, found=self._found if so_far.found is None else so_far.found)

    def _entry(self, id: str) -> Entry | None:
        return _of(self._entries(), id)

    def _entries(self) -> Sequence[Entry]:
        entries = self.checkpoints.read().entries
        if self.owner is not None and self.owner != owner_of(entries):
            raise Fenced("another run owns this pipeline")
        return entries


def _of(entries: Sequence[Entry], id: str) -> Entry | None:
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
