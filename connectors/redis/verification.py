"""Compares documents with expected ones by value, and repairs them on condition of their version."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec

from connectors.redis.cleanup import Guards, chunks, pages, read
from connectors.redis.encode import Encoder, fields_of
from connectors.redis.layout import Layout, guard_of
from connectors.redis.scripts import REPAIR
from connectors.redis.store import Store, Tallying
from replicator.batch import Delete, DocumentId, Upsert
from replicator.errors import TransientError
from replicator.items.attributes import Malformed
from replicator.items.to_json import Unfit
from replicator.target.verification import CHANGED, UNVERSIONED, Comparison, CursorExpired, Walked

_VERSION = re.compile(rb"([0-9]+)(?:([de])[0-9]*)?")
_PIECE = 5000  # ids
_raws = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class TableVerification:
    """Comparison and repair of one table. ``now``: wall clock."""

    store: Store
    layout: Layout
    encoder: Encoder
    tally: Tallying
    now: Callable[[], float] = time.time

    def compare(self, expected: Sequence[Upsert]) -> list[Comparison]:
        ids = [write.id for write in expected]
        stored = self._read(ids, b"HGETALL" if self.layout.hashes else b"GET")
        found = [self._comparison(write, *stored.get(write.id, (None, None))) for write in expected]
        if not self.layout.expires:
            return found
        expiries = self._read(ids, b"EXPIRY")
        return [self._with_expiry(one, write, expiries) for one, write in zip(found, expected, strict=True)]

    def _with_expiry(
        self, found: Comparison, write: Upsert, expiries: Mapping[DocumentId, tuple[int, bytes]]
    ) -> Comparison:
        """Others may have given a document another time to live, which its value does not show."""
        version, expiry = expiries.get(write.id, (None, b""))
        if found.refused or version is None or version != found.version or self.layout.expires in found.fields:
            return found
        wanted = self.encoder.expires(write, self.now())
        if _is_when(expiry, wanted):
            return found
        return Comparison(found.version, (*found.fields, self.layout.expires))

    def _comparison(self, write: Upsert, version: int | None, document: Any) -> Comparison:
        try:
            values, expires = self.encoder.values(write), self.encoder.expires(write, self.now())
        except (Unfit, Malformed) as e:
            return Comparison(version, refused=f"the document {e}")
        if version is None:
            is_due = expires != b"" and int(expires) <= self.now()
            return Comparison(UNVERSIONED if is_due else None)
        if self.layout.hashes:
            return Comparison(version, _differing_fields(document, self.encoder, write))
        return Comparison(version, _differing(document, values[0]))

    def versions(self, ids: Sequence[DocumentId]) -> list[int | None]:
        stored = self._read(ids, b"EXISTS")
        return [stored[id][0] if id in stored else None for id in ids]

    def walk(self, cursor: str | None, within: DocumentId) -> Walked:
        """By SCAN: its cursors are valid as long as the server runs, and as no keys move in a cluster."""
        self.store.settle()
        reached, scan = b"0", self.store.scan_id
        if cursor is not None:
            of, _, text = cursor.partition(" ")
            if of != scan:
                raise CursorExpired
            reached = text.encode()
        try:
            pattern = self.layout.guards(within)
        except UnicodeEncodeError:
            return Walked((), None)
        found: list[DocumentId] = []
        for guards, after in pages(self.store, pattern, reached):
            found += self._live(guards)
            if self.store.scan_id != scan:
                raise TransientError(f"{self.store} was reconnected while its keys were scanned; starting again")
            if len(found) >= _PIECE and after != b"0":
                return Walked(found, f"{scan} {after.decode()}")
        return Walked(list(dict.fromkeys(found)), None)

    def _live(self, guards: Guards) -> list[DocumentId]:
        """The ids of the documents with these guards that are there."""
        ids = [id for guard in guards if (id := self.layout.id(guard)) is not None]
        stored = self._read(ids, b"EXISTS")
        return [id for id in ids if id in stored]

    def replace(self, writes: Sequence[Upsert]) -> list[str]:
        return [self._replaced(write) for write in writes]

    def _replaced(self, write: Upsert) -> str:
        try:
            values, expires = self.encoder.values(write), self.encoder.expires(write, self.now())
            key = self.layout.key(write.id)
        except (Unfit, Malformed, UnicodeEncodeError) as e:
            return f"the document {e}"
        what = b"hash" if self.layout.hashes else b"json"
        return self._repaired(key, [b"%d" % write.version, what, expires, *values])

    def remove(self, writes: Sequence[Delete]) -> list[str]:
        return [self._repaired(self.layout.key(write.id), [b"%d" % write.version, b"delete", b""]) for write in writes]

    def _repaired(self, key: bytes, arguments: Sequence[bytes]) -> str:
        (done,) = self.tally.run_all(self.store, REPAIR, [([key, guard_of(key)], arguments)])
        return "" if done == 1 else CHANGED

    def _read(self, ids: Sequence[DocumentId], how: bytes) -> dict[DocumentId, tuple[int, Any]]:
        """Version and content of the documents that are there, with a guard: others are not replicator's."""
        keys = {guard_of(key): id for id in ids if (key := self._key(id)) is not None}
        found: dict[DocumentId, tuple[int, Any]] = {}
        for some in chunks(list(keys)):
            for guard, value, document in read(self.store, some, how):
                known = _VERSION.fullmatch(value or b"")
                if known is not None and known[2] != b"d" and document is not None:
                    found[keys[guard]] = int(known[1]), document
        return found

    def _key(self, id: DocumentId) -> bytes | None:
        try:
            return self.layout.key(id)
        except UnicodeEncodeError:
            return None


_CLOCK = 2000  # milliseconds between the two readings of the server's clock that tell when a document expires


def _is_when(expiry: bytes, wanted: bytes) -> bool:
    """``expiry``: milliseconds since 1970, or "never"; ``wanted``: seconds, empty for never."""
    if expiry == b"never" or not wanted:
        return expiry == b"never" and not wanted
    return abs(int(expiry) - int(wanted) * 1000) <= _CLOCK


_OTHER_TYPE = ("(type)",)  # the key holds something else than a string, or than a hash


def _differing(stored: bytes, expected: bytes) -> tuple[str, ...]:
    if stored == expected:
        return ()
    wanted, was = _exact(expected), _exact(stored)
    if not isinstance(was, dict):
        return _OTHER_TYPE
    return tuple(n for n in sorted(was.keys() | wanted.keys()) if was.get(n, ...) != wanted.get(n, ...))


def _differing_fields(stored: Any, encoder: Encoder, write: Upsert) -> tuple[str, ...]:
    if not isinstance(stored, list):
        return _OTHER_TYPE
    was: Mapping[bytes, bytes] = dict(zip(stored[::2], stored[1::2], strict=True))
    raws = {name.encode(): bytes(raw) for name, raw in _raws.decode(encoder.text(write)).items()}
    wanted = fields_of(encoder.text(write))
    names = was.keys() | wanted.keys()
    differing = [n for n in names if not _equal(was.get(n), wanted.get(n), raws.get(n, b""))]
    return tuple(sorted(name.decode(errors="replace") for name in differing))


def _equal(was: bytes | None, wanted: bytes | None, raw: bytes) -> bool:
    """``raw``: what is wanted, as JSON: text is compared as it is, everything else as a value."""
    if was == wanted or was is None or wanted is None or raw.startswith(b'"'):
        return was == wanted
    return bool(_exact(was) == _exact(wanted))


def _exact(text: bytes) -> Any:
    try:
        return json.loads(text, parse_float=Decimal)
    except ValueError:
        return text
