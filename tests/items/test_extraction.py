"""Bulk extraction: the worked examples of the docstrings, and when a batch is left to the exact path."""

from __future__ import annotations

import msgspec
import pytest

from replicator.items.extraction import MAX_BULK_BYTES, ValueExtractor, leaf_layout
from replicator.items.json_templates import JsonTemplates, _pieces
from replicator.items.to_json import plain_image

IMAGE = b'{"id":{"S":"a"},"n":{"N":"12"},"tags":{"SS":["y","x"]}}'


def raw(image: bytes) -> msgspec.Raw:
    return msgspec.json.decode(image, type=msgspec.Raw)


def test_the_worked_example_of_extraction_is_right() -> None:
    layout = leaf_layout(IMAGE)
    assert layout.gaps == [b'{"id":', b',"n":', b',"tags":', b"}"]
    assert layout.kinds == [b"S", b"N", b"SS"]
    assert ValueExtractor(layout)([raw(IMAGE)]) == [(b'"a"', b"12", b'["x","y"]', b"")]
    assert ValueExtractor(layout, {1})([raw(IMAGE)] * 2) == [(b"12", b"")] * 2


def test_the_worked_example_of_json_templates_is_right() -> None:
    seen: list[bytes] = []

    def exact(image: bytes | msgspec.Raw) -> bytes:
        seen.append(bytes(image))
        return plain_image(image)

    templates = JsonTemplates(exact)
    assert {templates(IMAGE) for _ in range(4)} == {b'{"id":"a","n":12,"tags":["x","y"]}'}
    assert seen == [IMAGE, b'{"id":{"SS":["0-0"]},"n":{"SS":["0-1"]},"tags":{"SS":["0-2"]}}']
    pieces = _pieces(tuple(leaf_layout(IMAGE).gaps), plain_image)
    assert pieces == [b'{"id":', b',"n":', b',"tags":', b"}"]


@pytest.mark.parametrize(
    "other",
    [
        b'{"id":{"S":"a"},"n":{"N":"12"},"tags":{"SS":["y","x"]},"more":{"S":"b"}}',
        b'{"id":{"S":"\\u0041"},"n":{"N":"12"},"tags":{"SS":["y","x"]}}',
        b'{"id":{"S":"\xff"},"n":{"N":"12"},"tags":{"SS":["y","x"]}}',
        b'{"id":{"S":"a"},"n":{"N":"12"},"tags":{"SS":["\\n","x"]}}',
        b'{"id":{"S":"' + b"a" * MAX_BULK_BYTES + b'"},"n":{"N":"12"},"tags":{"SS":["y","x"]}}',
    ],
    ids=["another shape", "an escape", "invalid UTF-8", "an escape in a set", "too large"],
)
def test_one_image_that_takes_the_exact_path_takes_its_whole_batch_along(other: bytes) -> None:
    extract = ValueExtractor(leaf_layout(IMAGE))
    assert extract([raw(IMAGE), raw(other), raw(IMAGE)]) is None
    assert extract([raw(IMAGE)] * 2) is not None


def test_bytes_that_msgspec_has_not_validated_take_the_exact_path() -> None:
    assert ValueExtractor(leaf_layout(IMAGE))([IMAGE]) is None
