"""What tells that an item which a scan found, and a run parked, has changed since."""

from __future__ import annotations

import pytest

from replicator.items.attributes import Malformed
from replicator.operations.scanned import SourceItems, is_scanned, is_superseded
from replicator.state import Parked
from replicator.version import version

IMAGE = '{"id":{"S":"a"},"n":{"N":"1"},"deep":{"M":{"SS":{"SS":["x","y"]},"l":{"L":[{"S":"1"},{"NS":["1","2"]}]}}}}'


def parked(image: str = IMAGE, ordinal: int = 0) -> Parked:
    return Parked(("a",), version(1024, ordinal), "broken", 0.0, image)


def source(image: str | None, *, keeps_expired: bool = False) -> SourceItems:
    return SourceItems(lambda key: None if image is None else image.encode(), keeps_expired)


def test_only_ordinal_zero_is_of_a_scan() -> None:
    assert is_scanned(parked())
    assert not is_scanned(parked(ordinal=1))


@pytest.mark.parametrize(
    "image",
    [
        IMAGE,
        '{"n":{"N":"1"},"deep":{"M":{"l":{"L":[{"S":"1"},{"NS":["2","1"]}]},"SS":{"SS":["y","x"]}}},"id":{"S":"a"}}',
    ],
)
def test_the_order_of_attributes_and_in_sets_says_nothing(image: str) -> None:
    assert not is_superseded(parked(), source(image))


@pytest.mark.parametrize(
    "image",
    [
        None,
        IMAGE.replace('"N":"1"', '"N":"2"'),
        IMAGE.replace('"x","y"', '"x"'),
        IMAGE.replace('{"S":"1"},{"NS":["1","2"]}', '{"NS":["1","2"]},{"S":"1"}'),
        IMAGE.replace('"n":{"N":"1"},', ""),
    ],
)
def test_an_item_that_is_another_by_now_or_gone_is_superseded(image: str | None) -> None:
    assert is_superseded(parked(), source(image))


def test_a_copy_that_keeps_what_expires_stores_an_item_that_is_gone() -> None:
    """Nothing tells one that expired from one that was removed."""
    assert not is_superseded(parked(), source(None, keeps_expired=True))
    assert is_superseded(parked(), source("{}", keeps_expired=True))


def test_an_image_that_is_no_json_decides_nothing() -> None:
    with pytest.raises(Malformed, match="cannot be compared with the source"):
        is_superseded(parked("{"), source(IMAGE))
