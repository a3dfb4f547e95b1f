"""Distinguishes real differences from those that lag explains: keeps the candidates, and reads each of them again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from replicator.batch import DocumentId, Upsert
from replicator.key import Key, key_text
from replicator.verification.differences import (
    NO_ITEM,
    Candidate,
    Finding,
    Positions,
    Verdict,
    by_item,
    digest,
    is_due,
    looked_again,
    verdict,
)
from replicator.verification.examiner import Examiner, Image, Look, Place

MOST_PENDING = 10_000  # candidates in memory; no more is read until some of them are settled
PIECE = 200  # items that are read again in one go
UNKNOWN = b"unknown"  # the digest of an item as it was before a repair that came too late
_RESTLESS = "the item changes more often than the copy can follow; verify again when it is written to less often"
_HASHED = "the item's key is too long to be read from the document's id, so the item cannot be looked up"

Outcome = Literal["difference", "parked", "unconfirmed", "kept"]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a candidate. ``expected``: the write that stores the document; None if there must be none."""

    outcome: Outcome
    finding: Finding
    expected: Upsert | None = None
    reason: str = ""


@dataclass(slots=True)
class Verifier:
    """The candidates of one pass.

    ``read``: items by key, consistently. ``exists``: the same, with as little of each item as possible. ``now``: wall
    clock. ``monotonic``: for intervals. ``check_same``: raises unless what was read is of the pipeline's table.
    ``keeps_expired``: the copy keeps documents of items that expired. ``parked``: the key texts of parked items.
    """

    examiner: Examiner
    read: Callable[[Collection[Key]], Mapping[Key, Image]]
    exists: Callable[[Collection[Key]], Mapping[Key, Image]]
    now: Callable[[], float]
    monotonic: Callable[[], float]
    check_same: Callable[[], None] = lambda: None
    keeps_expired: bool = False
    parked: Collection[str] = frozenset()
    _pending: dict[Place, Candidate] = field(default_factory=dict)
    _told: set[Key] = field(default_factory=set)  # parked items that were reported
    _itemless: list[Finding] = field(default_factory=list)  # that had changed when they were repaired
    _through: float | None = None
    _moved_at: float | None = None
    _ahead: float = 0.0  # seconds by which the run's clock is ahead, as far as its heartbeats have shown
    _read: float = 0.0  # the latest time until which the run had read

    @property
    def pending(self) -> int:
        return len(self._pending) + len(self._itemless)

    @property
    def full(self) -> bool:
        return len(self._pending) >= MOST_PENDING

    def origins(self) -> set[str]:
        """The segments and tables that candidates are left of."""
        origins = {candidate.origin for candidate in self._pending.values()}
        return origins | {"repair"} if self._itemless else origins

    def scanned(self, items: Sequence[tuple[Key, Image]], at: float, origin: str) -> Iterator[Result]:
        """Compare items, which had been read at ``at``, with their documents."""
        findings = self.examiner.scanned(items)
        if findings:
            images = dict(items)
            yield from self._add(findings, images, at, origin)

    def unknown(self, table: str, ids: Sequence[DocumentId]) -> Sequence[DocumentId]:
        """Those of stored documents that the scan has not just compared: their items must be looked for."""
        return self.examiner.compared.others(table, ids)

    def walked(self, table: str, ids: Sequence[DocumentId], origin: str) -> Iterator[Result]:
        """Look for the items of stored documents."""
        images: dict[Key, Image] = {}
        at = [0.0]

        def read(keys: Collection[Key]) -> Mapping[Key, Image]:
            whole = self.examiner.mapping.hook is not None
            images.update(self.read(keys) if whole else self.exists(keys))
            at[0] = self._moment()
            return images

        findings = self.examiner.walked(self.examiner.tables[table], ids, read)
        yield from self._add(findings, images, at[0], origin)

    def look_at(self, key: Key, origin: str) -> Iterator[Result]:
        """Compare a single item with its documents; ``walked`` finds those that it should not have."""
        image = self.read([key]).get(key)
        at = self._moment()
        places = self.examiner.places(key, image)
        if image is None and not self.examiner.mapping.own_ids:
            places = [(self.examiner.mapping.tables[0], key)]
        findings = self.examiner.look(key, image, places).findings if places else {}
        if not places and image is not None:
            findings = {(f.table, f.id): f for f in self.examiner.scanned([(key, image)])}
        yield from self._add(findings.values(), {} if image is None else {key: image}, at, origin)

    def settle(self, positions: Positions) -> Iterator[Result]:
        """Look again at the candidates that are due. If no run advances, all are unconfirmed."""
        yield from self.wait(positions)
        due = [c for c in self._pending.values() if is_due(c, positions.through, self._ahead)]
        items = list(by_item(due).items())
        for start in range(0, len(items), PIECE):
            yield from self._looked(items[start : start + PIECE])

    def wait(self, positions: Positions) -> Iterator[Result]:
        """Look at no candidate yet, but at what no lag explains. If no run advances, all are unconfirmed."""
        yield from self._looked_at_itemless()
        self._ahead = max(self._ahead, positions.ahead)
        self._read = max(self._read, positions.through or 0.0)
        if self._pending and self._stands_still(positions):
            yield from self.give_up(positions.blocked_by or "the run makes no progress")

    def give_up(self, reason: str) -> Iterator[Result]:
        pending, self._pending = list(self._pending.values()), {}
        for candidate in pending:
            yield Result("unconfirmed", candidate.finding, reason=reason)

    def look_again(self, finding: Finding) -> None:
        """A repair came too late: the document had changed, and may differ again."""
        if finding.item == NO_ITEM:
            self._itemless.append(finding)
            return
        self._pending[finding.place] = Candidate(finding, UNKNOWN, self._moment(), "repair")

    def _looked_at_itemless(self) -> Iterator[Result]:
        findings, self._itemless = {finding.place: finding for finding in self._itemless}, []
        for place, version in self.examiner.versions(findings).items():
            if version is not None:
                yield Result("difference", replace(findings[place], version=version))

    def _moment(self) -> float:
        """Now, but nothing that was stored before: the clock may have been set back since."""
        return max(self.now(), self._read)

    def _stands_still(self, positions: Positions) -> bool:
        if positions.blocked_by:
            return True
        now = self.monotonic()
        if self._moved_at is None or positions.through != self._through:
            self._through, self._moved_at = positions.through, now
        return now - self._moved_at > positions.patience

    def _add(
        self, findings: Iterable[Finding], images: Mapping[Key, Image], at: float, origin: str
    ) -> Iterator[Result]:
        for finding in findings:
            item = finding.item
            if item is None:
                yield Result("unconfirmed", finding, reason=_HASHED)
            elif item == NO_ITEM:
                yield Result("difference", finding)
            elif key_text(item) in self.parked:
                yield from self._parked(finding)
            elif self._is_kept(finding, images.get(item)):
                yield Result("kept", finding)
            else:
                image = digest(_bytes(images.get(item)))
                self._pending[finding.place] = Candidate(finding, image, max(at, self._read), origin)

    def _looked(self, items: Sequence[tuple[Key, list[Candidate]]]) -> Iterator[Result]:
        before = self.examiner.versions([c.finding.place for _, candidates in items for c in candidates])
        images = self.read([key for key, _ in items])
        at = self._moment()
        self.check_same()  # before a difference is confirmed, which a repair may remove
        looks = self.examiner.looks((key, images.get(key), self._places(key, of, images.get(key))) for key, of in items)
        for key, candidates in items:
            yield from self._looked_at(candidates, images.get(key), looks[key], before, at)

    def _places(self, key: Key, candidates: Sequence[Candidate], image: Image | None) -> set[Place]:
        """The documents to look at: of an item on which the hook failed, none was compared before."""
        places = {c.finding.place for c in candidates}
        if any(c.finding.kind == "rejected" for c in candidates):
            places |= set(self.examiner.places(key, image))
        return places

    def _looked_at(
        self,
        candidates: Sequence[Candidate],
        image: Image | None,
        look: Look,
        versions: Mapping[Place, int | None],
        at: float,
    ) -> Iterator[Result]:
        """``versions``: of the documents before the item was read, at ``at``."""
        hashed, key = digest(_bytes(image)), candidates[0].finding.item
        assert key is not None, "candidates are kept by item"
        others = [f for place, f in look.findings.items() if place not in self._pending]
        for candidate in candidates:
            place = candidate.finding.place
            del self._pending[place]
            after = look.findings.get(place)
            found = verdict(candidate, after, hashed)
            if after is None:
                continue
            if found is Verdict.AGAIN:
                steady = versions.get(place) == after.version
                again = looked_again(candidate, after, hashed, at, steady=steady)
                if again.never_rests:
                    yield Result("unconfirmed", after, reason=_RESTLESS)
                else:
                    self._pending[place] = again
            else:
                yield from self._confirmed(after, image, look.expected.get(place))
        yield from self._add(others, {} if image is None else {key: image}, at, candidates[0].origin)

    def _confirmed(self, finding: Finding, image: Image | None, expected: Upsert | None) -> Iterator[Result]:
        assert finding.item is not None
        if finding.kind == "rejected" or key_text(finding.item) in self.parked:
            yield from self._parked(finding)
        elif self._is_kept(finding, image):
            yield Result("kept", finding)
        else:
            yield Result("difference", finding, expected)

    def _is_kept(self, finding: Finding, image: Image | None) -> bool:
        """Whether it is a document that ``ttl_deletes: ignore`` may keep: of an item that no longer exists."""
        return self.keeps_expired and finding.kind == "extra" and image is None

    def _parked(self, finding: Finding) -> Iterator[Result]:
        assert finding.item is not None
        if finding.item not in self._told:
            self._told.add(finding.item)
            yield Result("parked", finding, reason=finding.reason)


def with_version(write: Upsert, version: int) -> Upsert:
    return Upsert(write.table, write.id, write.body, version, write.item, 0)


def _bytes(image: Image | None) -> bytes | None:
    return None if image is None else bytes(image)
