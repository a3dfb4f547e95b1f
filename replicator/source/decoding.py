"""Decodes stream records and keys from response bodies."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import Any

import msgspec

from replicator.change import Record
from replicator.errors import TransientError
from replicator.items.attributes import DECODE_ERRORS, Malformed, canonical_number
from replicator.key import Key, KeySchema

# Structs, not dictionaries: a record's key is read in half the time.
_VALUES = {kind: msgspec.defstruct(kind, [(kind, str)], gc=False) for kind in ("S", "N", "B")}


def _unspellable(keys: KeySchema) -> bool:
    """Whether a name has something in it that msgspec takes in no field's."""
    return any(re.search(r'["\\\x00-\x1f]', name) for name in keys.names)


@lru_cache(maxsize=64)  # making the struct costs more than reading a page with it
def key_shape(keys: KeySchema) -> Any:
    """The type that a key in raw typed JSON is decoded to: a struct, or a dictionary where no struct has such names."""
    if _unspellable(keys):
        return dict[str, msgspec.Raw]
    named = [(f"k{i}", a) for i, a in enumerate(keys.attributes)]
    fields = [(name, _VALUES[a.kind]) for name, a in named]
    return msgspec.defstruct("Keys", fields, rename={name: a.name for name, a in named}, gc=False)


def _texts(keys: KeySchema) -> Callable[[Any], Any]:
    """What takes the texts out of a key that was decoded to its shape: one alone, several as a tuple."""
    if not _unspellable(keys):
        return attrgetter(*(f"k{i}.{a.kind}" for i, a in enumerate(keys.attributes)))
    decoders = [(a.name, msgspec.json.Decoder(_VALUES[a.kind]), attrgetter(a.kind)) for a in keys.attributes]

    def texts(found: Mapping[str, msgspec.Raw]) -> Any:
        values = tuple(text(decoder.decode(found[name])) for name, decoder, text in decoders)
        return values if len(values) > 1 else values[0]

    return texts


class KeyReader:
    """Takes the key out of raw typed JSON (a record's Keys, or a whole image) without parsing the rest."""

    def __init__(self, keys: KeySchema) -> None:
        self.shape = key_shape(keys)
        self._decoder = msgspec.json.Decoder(self.shape)
        self._texts = _texts(keys)
        self._kinds = tuple(a.kind for a in keys.attributes)

    def key(self, found: Any) -> Key:
        """The key in a decoded ``shape``."""
        texts: Key = self._texts(found) if len(self._kinds) > 1 else (self._texts(found),)
        if "N" not in self._kinds:
            return texts
        return tuple(canonical_number(t) if k == "N" else t for k, t in zip(self._kinds, texts, strict=True))

    def of(self, image: bytes | msgspec.Raw) -> Key:
        """The key in an image; Malformed if there is none."""
        try:
            return self.key(self._decoder.decode(image))
        except (*DECODE_ERRORS, KeyError) as e:
            raise Malformed(f"no key in an image: {e}") from e

    def keyed(self, images: Iterable[msgspec.Raw], operation: str) -> list[tuple[Key, msgspec.Raw]]:
        """Images with their keys; TransientError if one has none, for then it is no answer of DynamoDB's."""
        try:
            return [(self.of(image), image) for image in images]
        except Malformed as e:
            raise TransientError(f"the response to {operation} is not DynamoDB JSON: {e}") from e


@dataclass(frozen=True, slots=True)
class Records:
    """A decoded GetRecords answer. ``removals`` holds the indices of records that say REMOVE."""

    records: Sequence[Record]
    removals: frozenset[int]
    next: str | None
    size: int


_ABSENT = msgspec.Raw(b"null")  # an image that is not there, whether it is left out or written so


@lru_cache(maxsize=64)
def _page_shape(keys: KeySchema) -> Any:
    """The struct of a GetRecords answer: keys are read, images stay raw bytes.

    A null stands for an absent value. Records must be there: without it anything in JSON would say that a shard ended.
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
    return msgspec.defstruct(
        "RecordsPage",
        [("Records", list[record] | None), ("NextShardIterator", str | None, None)],  # type: ignore[valid-type]
    )


class RecordsDecoder:
    """Turns a GetRecords body into records whose images stay raw bytes.

    ``images``: the stream's view has new images. Then the event decides whether a record removes its item, and one that
    neither removes it nor has an image is no answer of DynamoDB's: TransientError, for a repeat may bring it whole.
    """

    def __init__(self, keys: KeySchema, *, images: bool = True) -> None:
        self._images = images
        self._key = KeyReader(keys)
        self._decoder = msgspec.json.Decoder(_page_shape(keys))

    def __call__(self, body: bytes) -> Records:
        try:
            page: Any = self._decoder.decode(body)
            key, records = self._key.key, page.Records or ()
            found = [
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
        if self._images and any(r.new is None and i not in removals for i, r in enumerate(found)):
            raise TransientError(
                "GetRecords returned a change that has no NewImage and is not a removal (eventName REMOVE), "
                "although the stream's view includes new images. Nothing of it was applied; retrying"
            )
        return Records(found, removals, page.NextShardIterator, len(body))


def _expired(identity: Mapping[str, str | None]) -> bool:
    return identity.get("PrincipalId", identity.get("principalId")) == "dynamodb.amazonaws.com"
