"""Marks: how a pipeline's own writes to a DynamoDB table are told from those of applications.

Two opposite pipelines between two tables would copy each other's writes back and forth forever. So with ``loops: true``
each write leaves a version and a mark with the item, and the opposite pipeline passes over writes that a pipeline made.

A write is a pipeline's own if and only if it raised the version. The mark is a digest of the item's key, and a version
beside any other mark counts as none:

* UpdateItem of an application keeps both attributes, so the version is not raised.
* PutItem of an application without them removes the version; with those of an item that it read before, the version
  stays or falls; with those of another item, the mark does not fit the key.

The guard of a write also looks at the mark: an item that is a copy of a newer one must not turn away its own writes.

A pipeline deletes an item by a tombstone with a mark before the item disappears, so the removal of an item that is no
tombstone is an application's.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import msgspec

from replicator.items.attributes import DECODE_ERRORS
from replicator.key import Key

Raw = msgspec.Raw | bytes

_raws = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _Number(msgspec.Struct):
    N: str


class _Text(msgspec.Struct):
    S: str


_number, _text = msgspec.json.Decoder(_Number), msgspec.json.Decoder(_Text)


def mark_of(key: Key) -> str:
    """The mark of the item with this ``key``."""
    return blake2b(repr(key).encode(errors="surrogatepass"), digest_size=9).hexdigest()


@dataclass(frozen=True, slots=True)
class Marked:
    """An image without what pipelines add (``image``), and what they added. ``deleted``: it is a tombstone."""

    image: Raw
    version: int | None = None
    mark: str | None = None
    deleted: bool = False

    def is_own(self, key: Key, old: Marked | None) -> bool:
        """Whether a pipeline made this image of ``old``, rather than an application."""
        expected = mark_of(key)
        if self.version is None or self.mark != expected:
            return False
        return old is None or old.version is None or old.mark != expected or self.version > old.version


@dataclass(frozen=True, slots=True)
class Marks:
    """The names of the attributes that opposite pipelines add to items, the same on both sides."""

    version: str
    deleted: str
    mark: str

    @property
    def names(self) -> tuple[str, str, str]:
        return self.version, self.deleted, self.mark

    def read(self, image: Raw) -> Marked:
        """An image apart from its marks. What is not DynamoDB's JSON has none; its item will be parked."""
        text = bytes(image)
        if b"\\u" not in text and not any(msgspec.json.encode(name) in text for name in self.names):
            return Marked(image)
        try:
            attributes = _raws.decode(text)
        except DECODE_ERRORS:
            return Marked(image)
        version, deleted, mark = (attributes.pop(name, None) for name in self.names)
        if version is None and deleted is None and mark is None:
            return Marked(image)
        return Marked(msgspec.json.encode(attributes), _version(version), _mark(mark), deleted is not None)


def unmarked(marks: Marks | None, image: bytes) -> bytes | None:
    """An item's image as a hook sees it: without marks; None for a tombstone."""
    if marks is None:
        return image
    marked = marks.read(image)
    return None if marked.deleted else bytes(marked.image)


def _version(raw: msgspec.Raw | None) -> int | None:
    """None also for a value that no pipeline stores."""
    try:
        return None if raw is None else int(_number.decode(raw).N)
    except (*DECODE_ERRORS, ValueError):
        return None


def _mark(raw: msgspec.Raw | None) -> str | None:
    try:
        return None if raw is None else _text.decode(raw).S
    except DECODE_ERRORS:
        return None
