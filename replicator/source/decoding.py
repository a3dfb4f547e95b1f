"""Decodes stream records and keys from response bodies; images stay raw bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import Any, TypeVar

import msgspec

from replicator.change import Record
from replicator.errors import TransientError
from replicator.items.attributes import DECODE_ERRORS, Malformed, canonical_number
from replicator.key import Key, KeySchema
from replicator.source.table import SourceTable

T = TypeVar("T")
Image = TypeVar("Image", msgspec.Raw, bytes)


def _known(shape: type[T]) -> type[T]:
    """The type after its first use: msgspec crashes if two threads decode it for the first time at once."""
    msgspec.json.Decoder(shape)
    return shape


# Structs rather than dictionaries: they read a record's key in half the time.
_VALUES = {kind: _known(msgspec.defstruct(kind, [(kind, str)], gc=False)) for kind in ("S", "N", "B")}


def _has_unsupported_name(keys: KeySchema) -> bool:
    """Whether a name contains a character that msgspec does not allow in field names."""
    return any(re.search(r'["\\\x00-\x1f]', name) for name in keys.names)


@lru_cache(maxsize=64)  # defining a struct costs more than decoding a page with it
def key_shape(keys: KeySchema) -> Any:
    """The type that a key in typed JSON is decoded to: a struct, or a dictionary if a name is unsupported."""
    if _has_unsupported_name(keys):
        return dict[str, msgspec.Raw]
    by_field = {f"k{i}": a for i, a in enumerate(keys.attributes)}
    fields = [(field, _VALUES[a.kind]) for field, a in by_field.items()]
    return _known(msgspec.defstruct("Keys", fields, rename={field: a.name for field, a in by_field.items()}, gc=False))


@lru_cache(maxsize=64)
def _line_shape(keys: KeySchema) -> Any:
    """The type of a line of an export with nothing but an item, of which only the key is decoded."""
    return _known(msgspec.defstruct("Line", [("Item", key_shape(keys))], forbid_unknown_fields=True, gc=False))


def _texts(keys: KeySchema) -> Callable[[Any], Any]:
    """A function from a key decoded to ``key_shape`` to its values as text: one by itself, two as a tuple."""
    if not _has_unsupported_name(keys):
        return attrgetter(*(f"k{i}.{a.kind}" for i, a in enumerate(keys.attributes)))
    decoders = [(a.name, msgspec.json.Decoder(_VALUES[a.kind]), attrgetter(a.kind)) for a in keys.attributes]

    def texts(decoded: Mapping[str, msgspec.Raw]) -> Any:
        values = tuple(text(decoder.decode(decoded[name])) for name, decoder, text in decoders)
        return values if len(values) > 1 else values[0]

    return texts


class KeyReader:
    """Reads the key from typed JSON (a record's Keys, or a whole image) without decoding the rest."""

    def __init__(self, keys: KeySchema) -> None:
        self.shape = key_shape(keys)
        self.in_lines = msgspec.json.Decoder(_line_shape(keys))
        self._decoder = msgspec.json.Decoder(self.shape)
        self._texts = _texts(keys)
        self._kinds = tuple(a.kind for a in keys.attributes)

    def key(self, decoded: Any) -> Key:
        """The key from a value of type ``shape``. Malformed for a number that DynamoDB cannot hold."""
        texts: Key = self._texts(decoded) if len(self._kinds) > 1 else (self._texts(decoded),)
        if "N" not in self._kinds:
            return texts
        return tuple(canonical_number(t) if k == "N" else t for k, t in zip(self._kinds, texts, strict=True))

    def each(self, decoded: Iterable[Any]) -> list[Key]:
        """The keys from values of type ``shape``. Malformed as of ``key``."""
        if "N" in self._kinds:
            return [*map(self.key, decoded)]
        texts = map(self._texts, decoded)
        return [*texts] if len(self._kinds) > 1 else [(text,) for text in texts]

    def of(self, image: bytes | msgspec.Raw) -> Key:
        """The key of an image. Malformed if it has none."""
        try:
            return self.key(self._decoder.decode(image))
        except (*DECODE_ERRORS, KeyError) as e:
            raise Malformed(f"no key in an image: {e}") from e

    def keyed(self, images: Iterable[Image], operation: str) -> list[tuple[Key, Image]]:
        """Images with their keys. TransientError if one has none: then the response is not DynamoDB's."""
        try:
            return [(self.of(image), image) for image in images]
        except Malformed as e:
            raise TransientError(f"the response to {operation} is not DynamoDB JSON: {e}") from e


@dataclass(frozen=True, slots=True)
class Records:
    """A decoded GetRecords response.

    ``removals``: indices of the REMOVE records. ``next``: the next iterator, None at the shard's end. ``size``: of the
    body, in bytes. ``requested``: when, if another pipeline requested it earlier; in seconds since 1970.
    """

    records: Sequence[Record]
    removals: frozenset[int]
    next: str | None
    size: int
    requested: float = math.inf


_ABSENT = msgspec.Raw(b"null")  # an image that is missing or null


@lru_cache(maxsize=64)
def _page_shape(keys: KeySchema) -> Any:
    """The struct of a GetRecords response: keys are decoded, images stay raw bytes. Null means absent.

    ``Records`` is required: otherwise any JSON object would look like the end of a shard.
    """
    stored = msgspec.defstruct(
        "Stored",
        [
            ("SequenceNumber", str),
            ("Keys", key_shape(keys)),
            ("ApproximateCreationDateTime", float | None, None),
            ("NewImage", msgspec.Raw, _ABSENT),
            ("OldImage", msgspec.Raw, _ABSENT),
        ],
        gc=False,
    )
    record = msgspec.defstruct(
        "StreamRecord",
        [
            ("dynamodb", stored),
            ("eventName", str | None, None),
            ("userIdentity", dict[str, str | None] | None, None),
        ],
        gc=False,
    )
    page = msgspec.defstruct(
        "RecordsPage",
        [("Records", list[record] | None), ("NextShardIterator", str | None, None)],  # type: ignore[valid-type]
    )
    return _known(page)


class RecordsDecoder:
    """Decodes a GetRecords body. TransientError if it is not DynamoDB's.

    ``images``: whether the stream's view includes new images. Then eventName decides what is a removal, and any other
    record without a new image is an error too: it must not remove the item, and a retry may bring the image.
    """

    def __init__(self, keys: KeySchema, *, images: bool = True) -> None:
        self._images = images
        self._key = KeyReader(keys)
        self._decoder = msgspec.json.Decoder(_page_shape(keys))

    def __call__(self, body: bytes | Records) -> Records:
        if isinstance(body, Records):
            return body  # of another pipeline, which has decoded it
        try:
            page: Any = self._decoder.decode(body)
            key, records = self._key.key, page.Records or ()
            decoded = [
                Record(
                    key(d.Keys),
                    d.SequenceNumber,
                    d.ApproximateCreationDateTime or 0.0,
                    None if r.eventName == "REMOVE" or d.NewImage == _ABSENT else d.NewImage,
                    None if d.OldImage == _ABSENT else d.OldImage,
                    r.userIdentity is not None and _expired(r.userIdentity),
                )
                for r in records
                for d in (r.dynamodb,)
            ]
        except (*DECODE_ERRORS, KeyError, ValueError) as e:
            raise TransientError(f"the response to GetRecords is not DynamoDB JSON: {e}") from e
        removals = frozenset(i for i, r in enumerate(records) if r.eventName == "REMOVE")
        if self._images and any(r.new is None and i not in removals for i, r in enumerate(decoded)):
            raise TransientError(
                "GetRecords returned a change that has no NewImage and is not a removal (eventName REMOVE), "
                "although the stream's view includes new images. Nothing of it was applied; retrying"
            )
        return Records(decoded, removals, page.NextShardIterator, len(body))


def decoder_of(table: SourceTable) -> RecordsDecoder:
    return RecordsDecoder(table.keys, images=table.view != "KEYS_ONLY")


def _expired(identity: Mapping[str, str | None]) -> bool:
    return identity.get("PrincipalId", identity.get("principalId")) == "dynamodb.amazonaws.com"
