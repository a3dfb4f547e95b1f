"""Compares items with their documents, at one moment: what the hook returns, and what the target stores."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import NamedTuple

import msgspec
import orjson

from replicator import version as versions
from replicator.batch import DocumentId, Upsert
from replicator.hooks.hook import DocumentMapping, Poison
from replicator.items.attributes import Malformed
from replicator.items.item import Item
from replicator.key import Key, KeySchema, key_text
from replicator.marks import unmarked
from replicator.target.contract import Table, marks_of
from replicator.target.verification import VERSION_FIELD, Comparison, Expiring, Verifiable
from replicator.verification.compared_ids import ComparedIds
from replicator.verification.differences import NO_ITEM, Finding

Image = msgspec.Raw | bytes
Place = tuple[str, DocumentId]
AT_ONCE = 2000  # documents that are compared in one call


class Look(NamedTuple):
    """An item's findings by document, and the writes that would repair each of them (None: a delete)."""

    findings: Mapping[Place, Finding]
    expected: Mapping[Place, Upsert]


NOTHING = Look({}, {})


@dataclass(frozen=True, slots=True)
class Floor:
    """The versions that documents may have. After a scan of the whole table none is lower; none of a later epoch than
    ``epoch`` exists. (A resync of some items takes an epoch, too.)"""

    lowest: int
    epoch: int

    def is_wrong(self, version: int) -> bool:
        """Whether it is one, and not among them. Negative: the target keeps none."""
        return version >= 0 and not self.lowest <= version < self.above

    @property
    def above(self) -> int:
        return self.epoch + 1 << versions.ORDINAL_BITS


@dataclass(slots=True)
class Examiner:
    """Compares items with the documents in ``tables`` of ``target``. ``limit``: of the hook's time.

    ``compared``: documents that the scan compared, as far as they fit. ``hashed``: all of those of items whose keys are
    too long to be part of an id, as hashes: such items cannot be looked up by the document. ``keys``: of the source's
    table, which tell what items there can be.
    """

    mapping: DocumentMapping
    tables: Mapping[str, Table]
    target: Verifiable
    floor: Floor
    limit: AbstractContextManager[object] = field(default_factory=nullcontext)
    documents: int = 0
    hashed: set[bytes] = field(default_factory=set)
    compared: ComparedIds = field(default_factory=ComparedIds)
    forgot_hashed: bool = False  # an earlier part of the pass came across such documents
    keys: KeySchema | None = None

    def scanned(self, items: Sequence[tuple[Key, Image]]) -> list[Finding]:
        """The findings about the documents that these items must have."""
        expected, findings = self._expected(items)
        if self.mapping.own_ids:
            self._remember(expected)
        for table, writes in _in_tables(expected).items():
            findings += self._compared_in(table, writes)
            self.compared.add(table, [write.id for write in writes])
        self.documents += len(expected)
        return findings

    def walked(
        self, table: Table, ids: Sequence[DocumentId], read: Callable[[Collection[Key]], Mapping[Key, Image]]
    ) -> list[Finding]:
        """The findings about stored documents whose items are gone, or have no such document any more.

        Items that the pass has read, and that required their documents then, are not read again.
        """
        ids = self.compared.others(table.name, ids)
        if not ids:
            return []
        keys = {id: self.item_of(id) for id in ids}
        images = read({key for key in keys.values() if key})
        expected = self._places(images)
        extra = [id for id in ids if not self._is_expected(table, id, keys[id], expected)]
        stored = zip(extra, self.target.versions(table, extra) if extra else (), strict=True)
        return [Finding("extra", table.name, id, keys[id], version) for id, version in stored if version is not None]

    def look(self, key: Key, image: Image | None, places: Collection[Place]) -> Look:
        """What is found about the documents at ``places``, which may be an item's, and what must be there."""
        return self.looks([(key, image, places)])[key]

    def looks(self, items: Iterable[tuple[Key, Image | None, Collection[Place]]]) -> dict[Key, Look]:
        """The same of many items, in few requests."""
        looks: dict[Key, Look] = {}
        wanted: dict[Place, Upsert] = {}
        others: dict[Place, Key] = {}
        for key, image, places in items:
            expected, rejected = ([], []) if image is None else self._expected([(key, image)])
            if rejected:
                looks[key] = Look({at: replace(rejected[0], table=at[0], id=at[1]) for at in places}, {})
                continue
            own = {(w.table, w.id): w for w in expected if (w.table, w.id) in places}
            looks[key] = Look({}, own)
            wanted |= own
            others |= dict.fromkeys((place for place in places if place not in own), key)
        found = self._compared(list(wanted.values()))
        expiring = self._past(list(others))
        for (table, id), version in self.versions(list(others)).items():
            if version is not None and (table, id) not in expiring:
                found[table, id] = Finding("extra", table, id, others[table, id], version)
        for place, finding in found.items():
            key = wanted[place].item if place in wanted else others[place]
            looks[key] = Look({**looks[key].findings, place: finding}, looks[key].expected)
        return looks

    def versions(self, places: Collection[Place]) -> dict[Place, int | None]:
        """The version of each stored document; None if there is none."""
        found: dict[Place, int | None] = {}
        for name, ids in _by_table(places).items():
            for id, version in zip(ids, self.target.versions(self.tables[name], ids), strict=True):
                found[name, id] = version
        return found

    def _past(self, places: Collection[Place]) -> set[Place]:
        """Those of the stored documents that the target's own time to live may remove."""
        if not isinstance(self.target, Expiring):
            return set()
        found: set[Place] = set()
        for name, ids in _by_table(places).items():
            past = self.target.past(self.tables[name], ids)
            found.update((name, id) for id, gone in zip(ids, past, strict=True) if gone)
        return found

    def places(self, key: Key, image: Image | None) -> list[Place]:
        """The documents that an item must have."""
        return [] if image is None else [(w.table, w.id) for w in self._expected([(key, image)])[0]]

    @property
    def has_hashed(self) -> bool:
        return bool(self.hashed) or self.forgot_hashed

    def item_of(self, id: DocumentId) -> Key | None:
        """The key of a document's item; None if the id only has its hash, ``NO_ITEM`` if no item can have the id."""
        if not self.mapping.own_ids:
            return id if self.keys is None or self.keys.allows(id) else NO_ITEM
        if id[0].startswith("sha256:"):
            return None
        try:
            key = orjson.loads(id[0])
        except ValueError:
            return NO_ITEM
        possible = isinstance(key, list) if self.keys is None else self.keys.allows(key)
        return tuple(key) if possible and key_text(key) == id[0] else NO_ITEM

    def _expected(self, items: Iterable[tuple[Key, Image]]) -> tuple[list[Upsert], list[Finding]]:
        """The documents of these items, and a finding for each on which the hook fails."""
        expected: list[Upsert] = []
        rejected: list[Finding] = []
        marks, version = marks_of(self.target), versions.version(self.floor.epoch, 0)
        with self.limit:
            for key, image in items:
                try:
                    if (plain := unmarked(marks, bytes(image))) is not None:
                        expected += self._documents(key, plain, version)
                except (Poison, Malformed) as e:
                    id = (key_text(key), "") if self.mapping.own_ids else key
                    rejected.append(Finding("rejected", self.mapping.tables[0], id, key, reason=str(e)))
        return expected, rejected

    def _documents(self, key: Key, image: bytes, version: int) -> list[Upsert]:
        hook = self.mapping.hook
        if hook is not None and hook.declared:
            text = key_text(key)
            placed = hook.many(Item(image, hook.profile), self.mapping.tables)
            return [Upsert(table, (text, id), body, version, key, 0) for (table, id), body in placed.items()]
        body = Item(image) if hook is None else hook.one(Item(image, hook.profile))
        return [] if body is None else [Upsert(self.mapping.tables[0], key, body, version, key, 0)]

    def _compared(self, expected: Sequence[Upsert]) -> dict[Place, Finding]:
        tables = _in_tables(expected).items()
        return {finding.place: finding for name, writes in tables for finding in self._compared_in(name, writes)}

    def _compared_in(self, name: str, writes: Sequence[Upsert]) -> Iterator[Finding]:
        table, lowest, above = self.tables[name], self.floor.lowest, self.floor.above
        for start in range(0, len(writes), AT_ONCE):
            piece = writes[start : start + AT_ONCE]
            for write, comparison in zip(piece, self.target.compare(table, piece), strict=True):
                version = comparison.version
                if not (comparison.fields or comparison.refused or version is None) and lowest <= version < above:
                    continue  # as nearly all of them
                if (finding := self._finding(write, comparison)) is not None:
                    yield finding

    def _finding(self, write: Upsert, comparison: Comparison) -> Finding | None:
        version, fields = comparison.version, comparison.fields
        if comparison.refused:
            return Finding("rejected", write.table, write.id, write.item, version, reason=comparison.refused)
        if version is None:
            return Finding("missing", write.table, write.id, write.item)
        if self.floor.is_wrong(version):
            fields = (*fields, VERSION_FIELD)
        return Finding("different", write.table, write.id, write.item, version, fields) if fields else None

    def _places(self, images: Mapping[Key, Image]) -> Mapping[Key, set[Place] | None]:
        """The documents of each item; None where the hook fails, because then they are unknown."""
        if self.mapping.hook is None:
            marks, table = marks_of(self.target), self.mapping.tables[0]
            return {key: {(table, key)} for key, image in images.items() if unmarked(marks, bytes(image)) is not None}
        expected, rejected = self._expected(images.items())
        placed: dict[Key, set[Place]] = {key: set() for key in images}
        for write in expected:
            placed[write.item].add((write.table, write.id))
        failing = {finding.item for finding in rejected}
        return {key: None if key in failing else places for key, places in placed.items()}

    def _is_expected(
        self, table: Table, id: DocumentId, key: Key | None, expected: Mapping[Key, set[Place] | None]
    ) -> bool:
        if key is None:
            return self.forgot_hashed or _hash(table.name, id) in self.hashed
        places = expected.get(key, set())
        return places is None or (table.name, id) in places

    def _remember(self, expected: Sequence[Upsert]) -> None:
        self.hashed.update(_hash(w.table, w.id) for w in expected if not w.id[0].startswith("["))


def _hash(table: str, id: DocumentId) -> bytes:
    return blake2b(repr((table, id)).encode(errors="surrogatepass"), digest_size=16).digest()


def _in_tables(writes: Iterable[Upsert]) -> dict[str, list[Upsert]]:
    tables: dict[str, list[Upsert]] = {}
    for write in writes:
        tables.setdefault(write.table, []).append(write)
    return tables


def _by_table(places: Iterable[Place]) -> dict[str, list[DocumentId]]:
    tables: dict[str, list[DocumentId]] = {}
    for table, id in places:
        tables.setdefault(table, []).append(id)
    return tables
