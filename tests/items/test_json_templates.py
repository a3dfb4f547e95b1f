"""Templates agree with the exact path byte for byte, whatever comes in, and mostly without decoding."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import msgspec
import orjson
import pytest

from replicator.items import json_templates
from replicator.items.attributes import image
from replicator.items.extraction import Image
from replicator.items.json_templates import MAX_TEMPLATES, JsonTemplates
from replicator.items.to_json import plain_image

TEXTS = (
    "", "a", "Grüße 🐘", "a\nb", "\t", "\b\f\r", 'q"uote', "back\\slash", "\0", "\x1f", "\x7f", "\u2028", "/", "{",
    "}", "[", "]", ",", ":", '{"S":"', '"}', "},", "%s %b %",
    "S", "SS", '{"SS":["0"]}', '["0-0"]', "0", "00", "true", "x" * 500,
)  # fmt: skip
NUMBERS = (
    "0", "-0", "1", "-1.5", "10", "9", "9" * 38, f"-0.{'9' * 38}", "1E-130", "9.99E+125", "1e5", "0E+3", "+1", "007",
    ".5", "5.", "-.5", "1E999999", "NaN", "Infinity", "", "1 ", "٣", "1_0", "0x1",
)  # fmt: skip
BINARIES = ("", "AA==", "/w==", "AP8=", "not base64")
WRONG: tuple[Any, ...] = (5, None, True, "a", ["a"], [1, "a"], [["a"]], {"S": "a"}, {"N": "1"}, [{"N": "1"}], {}, [])
NAMES = ("id", "a", "b", "Ünï", "S", "N", "SS", "NS", "M", "L", "NULL", "BOOL", "", "%", "%b", 'q"', "\\", "{", "\n")
SPELLINGS: tuple[Callable[[Any], bytes], ...] = (
    orjson.dumps,
    orjson.dumps,
    lambda found: json.dumps(found, separators=(",", ":")).encode(),
    lambda found: json.dumps(found).encode(),
)


def leaf(kind: str, source: random.Random) -> dict[str, Any]:
    """An attribute of this kind; rarely an invalid one."""
    if source.random() < 0.01:
        return {kind: source.choice(WRONG)}
    pool = {"S": TEXTS, "N": NUMBERS[: 12 if source.random() < 0.9 else None], "B": BINARIES}
    match kind:
        case "BOOL":
            return {"BOOL": source.random() < 0.5}
        case "NULL":
            return {"NULL": True}
        case "SS" | "NS" | "BS":
            return {kind: [source.choice(pool[kind[0]]) for _ in range(source.randrange(5))]}
    return {kind: source.choice(pool[kind])}


LEAVES = ("S", "S", "S", "N", "N", "B", "BOOL", "NULL", "SS", "NS", "BS")


def attribute(source: random.Random, depth: int = 0) -> dict[str, Any]:
    kind = source.choice((*LEAVES, "M", "L") if depth < 3 else LEAVES)
    match kind:
        case "M":
            return {kind: {source.choice(NAMES): attribute(source, depth + 1) for _ in range(source.randrange(4))}}
        case "L":
            return {kind: [attribute(source, depth + 1) for _ in range(source.randrange(4))]}
    return leaf(kind, source)


def alike(typed: Any, source: random.Random) -> Any:
    """An attribute of the same shape with other values; sometimes with one of another kind."""
    ((kind, inner),) = typed.items()
    if kind == "M" and isinstance(inner, dict):
        return {kind: {name: alike(v, source) for name, v in inner.items()}}
    if kind == "L" and isinstance(inner, list):
        return {kind: [alike(v, source) for v in inner]}
    if kind not in LEAVES:
        return typed
    return leaf(source.choice(LEAVES) if source.random() < 0.05 else kind, source)


def outcome(convert: Callable[[Image], bytes], given: Image) -> bytes | str:
    try:
        return convert(given)
    except (ValueError, TypeError) as e:
        return f"{type(e).__name__}: {e}"


def assert_same(found: JsonTemplates, given: bytes) -> None:
    assert outcome(found, given) == outcome(plain_image, given), given
    try:
        raw = msgspec.json.decode(given, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    assert outcome(found, raw) == outcome(plain_image, raw), given


@pytest.fixture
def soon_hot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_templates, "FAST_AFTER", 3)
    monkeypatch.setattr(json_templates, "BULK_SIZE", 4)


@pytest.mark.usefixtures("soon_hot")
@pytest.mark.parametrize("seed", range(8))
def test_templates_agree_with_the_exact_path_for_items_of_every_kind(seed: int) -> None:
    source = random.Random(seed)
    for _ in range(60):
        found = JsonTemplates(plain_image)
        shapes = [{"M": {n: attribute(source) for n in source.sample(NAMES, source.randrange(6))}} for _ in range(2)]
        for _ in range(25):
            item = alike(source.choice(shapes), source)["M"]
            assert_same(found, source.choice(SPELLINGS)(item))


def raw(given: bytes) -> msgspec.Raw:
    return msgspec.json.decode(given, type=msgspec.Raw)


def exactly(images: list[msgspec.Raw]) -> list[bytes] | str:
    try:
        return [plain_image(i) for i in images]
    except (ValueError, TypeError) as e:
        return f"{type(e).__name__}: {e}"


@pytest.mark.usefixtures("soon_hot")
@pytest.mark.parametrize("seed", range(8))
def test_bulk_conversion_agrees_with_the_exact_path(seed: int) -> None:
    source = random.Random(seed)
    for _ in range(40):
        found = JsonTemplates(plain_image)
        shapes = [{"M": {n: attribute(source) for n in source.sample(NAMES, 1 + n % 4)}} for n in range(2)]
        for _ in range(12):
            some = [alike(source.choices(shapes, (1, 30))[0], source)["M"] for _ in range(source.randrange(1, 13))]
            images = [raw(source.choice(SPELLINGS[:3])(item)) for item in some]
            try:
                made: list[bytes] | str = list(found.all(images))
            except (ValueError, TypeError) as e:
                made = f"{type(e).__name__}: {e}"
            assert made == exactly(images)


@pytest.mark.usefixtures("soon_hot")
@pytest.mark.parametrize(
    "odd",
    [
        b'{"a":{"S":"x"}} ',
        b'{"a":\n{"S":"x"}}',
        b'{"b":{"M":{"a":{"S":"x"}}\n}}',
        b'{"a":{"S":"x"},"b":{"NULL":true}}',
        b'{"a":{"S":"\xff"}}',
        b'{"a":{"S":"\\n"}}',
        b'{"a":{"S":"\\""}}',
        b'{"a":{"N":"1"}}',
    ],
)
def test_one_odd_image_among_many(odd: bytes) -> None:
    found, usual = JsonTemplates(plain_image), raw(b'{"a":{"S":"x"}}')
    for _ in range(3):
        assert list(found.all([usual] * 12)) == [b'{"a":"x"}'] * 12
    assert found.bulk([usual] * 4) is not None
    for given in ([raw(odd), usual], [usual, raw(odd)], [usual, raw(odd), usual, usual]):
        for _ in range(3):
            list(found.all([usual] * 12))
        assert found.bulk([usual]) is not None
        wanted = exactly(given)
        assert found.bulk([bytes(i) for i in given]) is None  # not validated by msgspec
        if isinstance(wanted, list):
            assert list(found.all(given)) == wanted
        else:
            with pytest.raises(ValueError, match="not DynamoDB's"):
                list(found.all(given))


FRAGMENTS = (
    b'"', b'"}', b"}", b"{", b"]", b"[", b",", b":", b"\\", b'\\"', b"\\n", b"\\u0030", b"\n", b"\xff", b"\xc3", b" ",
    b'{"S":"', b'{"SS":["', b'{"NS":["1","', b'{"N":"', b'{"S":"0"}', b'{"SS":["0-0"]}', b'"0"', b'{"NULL":',
    b'{"M":{', b"\0",
)  # fmt: skip


def damaged(given: bytes, source: random.Random) -> bytes:
    """With a piece removed, inserted or duplicated."""
    start = source.randrange(len(given) + 1)
    end = min(len(given), start + source.choice((0, 0, 1, 2, 8)))
    piece = given[start : start + source.randrange(30)] if source.random() < 0.3 else source.choice(FRAGMENTS)
    return given[:start] + piece + given[end:]


@pytest.mark.usefixtures("soon_hot")
@pytest.mark.parametrize("seed", range(8))
def test_templates_agree_with_the_exact_path_for_damaged_images(seed: int) -> None:
    source = random.Random(seed)
    for _ in range(60):
        found = JsonTemplates(plain_image)
        typed = {"M": {n: attribute(source) for n in source.sample(NAMES, 4)}}
        broken = [damaged(orjson.dumps(alike(typed, source)["M"]), source) for _ in range(6)]
        for given in source.choices(broken, k=24):
            assert_same(found, given)
            assert_same(found, orjson.dumps(alike(typed, source)["M"]))


@pytest.mark.usefixtures("soon_hot")
@pytest.mark.parametrize(
    ("usual", "odd"),
    [
        ('{"a":{"SS":["x"]}}', '{"a":{"SS":{"S":"x"}}}'),
        ('{"a":{"M":{"SS":{"S":"x"}}}}', '{"a":{"M":{"SS":["x"]}}}'),
        ('{"a":{"L":[{"S":"x"}]}}', '{"a":{"SS":[{"S":"x"}]}}'),
        ('{"a":{"BOOL":{"S":"x"}}}', '{"a":{"BOOL":{"N":"1"}}}'),
        ('{"a":{"S":"x"},"b":{"S":"y"}}', '{"a":{"S":"x"},"a":{"S":"y"}}'),
        ('{"a":{"S":"x"},"a":{"S":"y"}}', '{"a":{"S":"y"},"a":{"S":"z"}}'),
        ('{"a":{"NULL":{"S":"x"}},"b":{"S":"\\u0030"}}', '{"a":{"NULL":{"S":"y"}},"b":{"S":"\\u0030"}}'),
        ('{"a":{"S":"x","N":"1"}}', '{"a":{"S":"y","N":"1"}}'),
        ('{"a":{"SS":["b","a"]}}', '{"a":{"NS":["10","9"]}}'),
        ('{"a":{"S":"x"}}', '{"a":{"S":"x"}} '),
        ('{"b":{"L":[]},"a":{"S":"x"},"b":{"S":"y"}}', '{"b":{"L":[]},"a":{"S":"y"},"b":{"S":"z"}}'),
        ('{"a":{"BOOL":["0-0"]},"b":{"S":"x"}}', '{"a":{"BOOL":["0-0"]},"b":{"S":"y"}}'),
        ('{"a\\n":{"S":"x"},"b":{"L":[]}}', '{"a\\n":{"S":"y\\n"},"b":{"L":[]}}'),
    ],
)
def test_images_that_resemble_a_known_shape_are_told_apart(usual: str, odd: str) -> None:
    found = JsonTemplates(plain_image)
    for given in [usual] * 6 + [odd] * 6 + [usual, odd] * 3:
        assert_same(found, given.encode())


def item(number: int, **more: object) -> bytes:
    return image({"id": f"ü{number}", "n": number, "tags": {"b", f"a{number}"}, "m": {"l": [number, None]}, **more})


class Counted:
    """The exact path, counting its calls."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, given: Image) -> bytes:
        self.images += 1
        return plain_image(given)


def test_items_of_few_shapes_are_hardly_ever_decoded() -> None:
    exact = Counted()
    found = JsonTemplates(exact)
    for n in range(3000):
        found(item(n) if n % 3 else item(n, more="x"))
    assert exact.images == 2 * 2  # each shape when it is seen first, and when its template is made


def test_shapes_that_never_recur_are_soon_left_to_the_exact_path() -> None:
    exact = Counted()
    found = JsonTemplates(exact)
    for n in range(1000):
        found(item(n, **{f"name{n}": 1}))
    assert exact.images == 1000
    for n in range(100):
        found(item(n))
    assert exact.images < 1100  # shapes that recur get templates again


def test_memory_is_bounded_whatever_comes() -> None:
    found = JsonTemplates(plain_image)
    for n in range(3 * MAX_TEMPLATES):
        for _ in range(3):
            found(item(n, **{f"name{n}": 1}))
    for n in range(20 * MAX_TEMPLATES):
        found._template((b"{", b"%d}" % n))
    assert len(found._templates) <= MAX_TEMPLATES
    assert len(found._seen_once) <= 16 * MAX_TEMPLATES
    large = orjson.dumps({f"a{n}": {"S": "x"} for n in range(10_000)})
    for _ in range(5):
        assert found(large) == plain_image(large)
    assert all(sum(map(len, gaps)) <= json_templates.MAX_SHAPE_BYTES for gaps in found._templates)


@pytest.mark.usefixtures("soon_hot")
@pytest.mark.parametrize(
    "hostile",
    [
        image({"a": "{[" * 500_000}),
        orjson.dumps({"a": {"L": [{"SS": ["a", "b"]}] * 50_000}}),
        orjson.dumps({"a": {"SS": ["a"] * 200_000, "x": 1}}),
        orjson.dumps({"a": {"NS": ["1"] * 200_000 + ["x"]}}),
        orjson.dumps({"a": {"N": "1" * 1_000_000 + "x"}}),
        orjson.dumps({"a": {"N": "0." + "1" * 1_000_000}}),
        orjson.dumps({f"a{n}": {"S": "x", "N": "1"} for n in range(50_000)}),
    ],
    ids=["text", "sets", "no set", "no numbers", "no number", "digits", "no leaves"],
)
def test_hostile_images_of_a_megabyte_take_linear_time(hostile: bytes) -> None:
    """With backtracking they would take hours."""
    found = JsonTemplates(plain_image)
    for _ in range(5):
        assert outcome(found, hostile) == outcome(plain_image, hostile)
