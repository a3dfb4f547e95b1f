"""What a scan found and a run parked may be older than what the stream has brought since: the source tells.

A page of a scan that waits while its item changes comes behind the stream's change, and parks the item if its image is
refused. One document per item is safe then: its tombstone, or the newer document, turns a retry away. Documents of the
hook that refused the image, or of a later one, have no tombstones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import orjson

from replicator.items.attributes import Malformed
from replicator.key import Key
from replicator.state import Parked
from replicator.verification.differences import unordered
from replicator.version import epoch_of, version


@dataclass(frozen=True, slots=True)
class SourceItems:
    """The source table's items. ``read``: an item's image, or None, consistently. ``keeps_expired``: the copy keeps
    what expired there."""

    read: Callable[[Key], bytes | None]
    keeps_expired: bool = False


def is_scanned(parked: Parked) -> bool:
    """Whether the image is one that a scan found, so that the stream may have had a newer one before."""
    return parked.version == version(epoch_of(parked.version), 0)


def is_superseded(parked: Parked, source: SourceItems) -> bool:
    """Whether the stream has, or will have, a newer change of a parked item. Malformed: it cannot be told.

    What the stream brings from now on takes the parked entry away, so that a retry which began before loses.
    """
    image = source.read(parked.key)
    if image is None:  # perhaps it expired, which the stream's readers pass over where the copy keeps it
        return parked.new is not None and not source.keeps_expired
    return not _equal(parked.new, image.decode(errors="replace"))


def _equal(one: str | None, other: str) -> bool:
    """Whether two images are the same but for the order of attributes, and of elements in sets. Malformed: no JSON."""
    if one is None or one == other:
        return one == other
    try:
        return bool(unordered(orjson.loads(one)) == unordered(orjson.loads(other)))
    except orjson.JSONDecodeError as e:
        raise Malformed("not DynamoDB's typed JSON, so it cannot be compared with the source") from e
