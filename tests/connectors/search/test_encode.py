"""Lines and ids that are encoded together equal, byte for byte, those encoded one by one."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence, Set
from datetime import date
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import msgspec
import orjson
import pytest

from connectors.search import encode as encoding
from connectors.search.encode import TableEncoder
from connectors.search.layout import LONGEST_ID, Layout, index_id, index_ids, layouts
from replicator.batch import Delete, DocumentId, Rejection, Upsert, Write
from replicator.items import json_templates, to_json
from replicator.items.attributes import image
from replicator.items.item import Amended, Item
from replicator.items.line_template import LineTemplate
from replicator.items.to_json import DocumentText, Unfit
from replicator.target.contract import OWN_IDS, Table
from replicator.testing.contract.kit import PAIR, PK, at

MAPPED = {"mapping": {"properties": {"title": {"type": "text"}}}}
TABLES = (
    Table("contract", PK),
    Table("contract", PK, MAPPED),
    Table("contract", PAIR, MAPPED),
    Table("contract", PAIR, {**MAPPED, "routing": "sk"}),
    Table("contract", PAIR, {**MAPPED, "routing": "before(pk, '#')"}),
    Table("contract", OWN_IDS, {"routing": "_item"}),
    Table("contract", PAIR, {"keys": True}),
)
PARTS = (
    "a", "b", "order#1", "#", "Grüße", "漢字", "", "|", "%", "a|b", "100%", "%7C", "sha256:", "sha256:a", '["a"]',
    "back\\", "\n", "},\n,{", '",\n,"', "x" * 128, "x" * 129, "é" * 100, "é" * 256, "é" * 257, "\ud800",
)  # fmt: skip
LIMIT = 4  # documents that are looked at together here


def layout(table: Table) -> Layout:
    return layouts([table])["contract"]


def expected(write: Upsert, of: Layout) -> bytes | str:
    """The expected lines, built in the simplest way, or the reason for a rejection."""
    routing = {} if of.routed_by is None else {"routing": write.id[of.routed_by]}
    if of.routed_before:  # one that is empty would be refused
        routing = {"routing": write.id[0].split("#")[0] or write.id[0]}
    action = {"index": {"_id": "", "version": write.version, "version_type": "external", **routing}}
    ours = {"version": write.version, **dict(zip(of.parts, write.id, strict=True))}
    try:
        action["index"]["_id"] = index_id(write.id)
        before = orjson.dumps(action) + b"\n" + orjson.dumps({"replicator": ours})[:-1]
    except (UnicodeEncodeError, TypeError):
        return "the key contains half of a surrogate pair, which is not valid text"
    try:
        body = to_json._of_amended(write.body) if type(write.body) is Amended else DocumentText()(write.body)
    except Unfit as e:
        return f"the document {e}"
    if of.whole:
        return before + b',"document":' + body + b"}\n"
    if any(name == "replicator" or name.startswith("replicator.") for name in write.body):
        return (
            "the document has a field named replicator or replicator.…, which is where replicator keeps version and key"
        )
    return before + (b"," + body[1:] if body != b"{}" else b"}") + b"\n"


def made(encoder: TableEncoder, writes: Sequence[Write]) -> dict[DocumentId, bytes | str]:
    rejections: list[Rejection] = []
    found: dict[DocumentId, bytes | str] = {e.write.id: e.lines for e in encoder.entries(writes, "s", rejections)}
    return found | {r.write.id: r.reason for r in rejections}


def value(source: random.Random, depth: int = 0) -> Any:
    """A value that a hook may return, mostly a common one."""
    usual = ("x", "Grüße 🐘", 'q"uote', "back\\slash", "null", "},\n,{", "\0\x7f\u2028", True, 7, -1.5, 1e300)
    exact = (Decimal("1.10"), Decimal("-0"), Decimal("1E+3"), Decimal("9" * 38), Decimal(7))
    sets: tuple[Set[object], ...] = (
        frozenset(),
        {"b", "a", "ü"},
        frozenset({Decimal(10), Decimal(9)}),
        frozenset({b"\xff", b"\0", b"a"}),
    )
    odd = (
        None, b"\0", date(2026, 1, 2), 2**64, -(2**70), float("nan"), Decimal("NaN"), Decimal("-Infinity"),
        {"a", b"a"}, frozenset({b"a", Decimal(1)}), "\ud800", object(), {1: "a"}, {"a\ud800": 1}, {"replicator": 1},
    )  # fmt: skip
    if source.random() < 0.03:
        return source.choice(odd)
    if depth < 2 and source.random() < 0.2:
        nested = [value(source, depth + 1) for _ in range(source.randrange(3))]
        return source.choice([nested, tuple(nested), dict(zip("ab", nested, strict=False))])
    return source.choice((*usual, *exact, *sets))


NAMES = ("id", "a", "Ünï", "%b", 'q"', "\n", "", "null", "replicators", "a.replicator")
RESERVED = ("replicator", "replicator.deleted", "replicator.version", "replicator.")


def document(source: random.Random) -> Mapping[str, Any]:
    found = {name: value(source) for name in source.sample(NAMES, source.randrange(5))}
    return found | ({source.choice(RESERVED): 1} if source.random() < 0.02 else {})


def items(source: random.Random) -> list[Item]:
    """Items of one shape, with an occasional exception."""
    names = source.sample(NAMES, source.randrange(1, 5)) + ([source.choice(RESERVED)] if source.random() < 0.1 else [])
    kinds = [source.choice(("S", "N", "SS", "NS", "BOOL", "M")) for _ in names]

    def attribute(kind: str) -> Any:
        texts = ["x", "Grüße 🐘", "a\nb", "%b", 'q"uote' if source.random() < 0.02 else "q", ""]
        numbers = [Decimal("1.10"), Decimal(-7), Decimal("1E+3")]
        match kind:
            case "S":
                return source.choice(texts)
            case "N":
                return source.choice(numbers)
            case "SS":
                return set(source.sample(texts[:5], source.randrange(1, 4)))
            case "NS":
                return set(source.sample(numbers, source.randrange(1, 4)))
            case "BOOL":
                return source.random() < 0.5
        return {"replicator": source.choice(texts), "0": [source.choice(numbers)]}

    def one() -> Item:
        found = image({name: attribute(kind) for name, kind in zip(names, kinds, strict=True)})
        odd = source.choice([b"{}", b'{"pk":1}', b'{"replicator":{"S":"x"}}', b'{"pk":{"S":"\xff"}}'])
        return Item(msgspec.json.decode(found if source.random() < 0.98 else odd, type=msgspec.Raw))

    return [one() for _ in range(40)]


def documents(source: random.Random) -> Sequence[Mapping[str, Any]]:
    return [document(source) for _ in range(40)]


def amended(source: random.Random) -> Sequence[Mapping[str, Any]]:
    """Items with changed attributes: the same names, later others, with exceptions; some exist in the item."""
    found = items(source)
    names = [*NAMES, "replicator", *(name for name in found[0] if name != "pk")]
    usual = [source.sample(names, source.randrange(1, 4)) for _ in range(2)]
    odd: list[Amended] = [Item(b'{"a":1,"b":{"S":"x"}}') | {"a": 2}, found[0] | {}, found[0] | {"replicator": 1}]

    def one(n: int, of: Item) -> Amended:
        changed = usual[n * 2 // len(found)] if source.random() < 0.98 else NAMES
        return of | (MappingProxyType if source.random() < 0.05 else dict)({name: value(source) for name in changed})

    return [one(n, of) if source.random() < 0.98 else source.choice(odd) for n, of in enumerate(found)]


def mixed(source: random.Random) -> Sequence[Mapping[str, Any]]:
    """Results of a hook that sometimes returns its item, or a mapping that is not a dict."""
    own = [
        Item(image({"b": {b"\xff", b"\0"}})) | {"c": 1},
        MappingProxyType({"a": {"b", "a"}}),
        Item(b'{"n":{"N":"1e5"}}'),
    ]
    pool = (*items(source)[:4], *documents(source), *own)
    return [source.choice(pool) for _ in range(40)]


def key(source: random.Random, of: Layout, number: int) -> DocumentId:
    pool = PARTS[: 5 if source.random() < 0.9 else None]
    return (*(source.choice(pool) for _ in of.parts[1:]), f"{source.choice(pool)}{number}")


@pytest.fixture
def few_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_templates, "FAST_AFTER", 3)
    monkeypatch.setattr(json_templates, "BULK_SIZE", LIMIT)
    monkeypatch.setattr(encoding, "BULK_SIZE", LIMIT)


@pytest.mark.usefixtures("few_together")
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("seed", range(12))
def test_lines_encoded_together_equal_those_encoded_one_by_one(table: Table, seed: int) -> None:
    source, of = random.Random(seed), layout(table)
    encoder = TableEncoder(of)
    for _ in range(20):
        bodies = source.choice((items, documents, amended, mixed))(source)
        keys = [key(source, of, n) for n in range(len(bodies))]
        writes = [Upsert("contract", k, body, at(n), k) for n, (k, body) in enumerate(zip(keys, bodies, strict=True))]
        assert made(encoder, writes) == {w.id: expected(w, of) for w in writes}


@pytest.mark.usefixtures("few_together")
@pytest.mark.parametrize("table", TABLES)
def test_deletes_between_upserts_keep_their_place(table: Table) -> None:
    of = layout(table)
    encoder = TableEncoder(of)
    for body in ({"a": "x"}, Item(msgspec.json.decode(image({"a": "x"}), type=msgspec.Raw))):
        puts = [Upsert("contract", (str(n),) * len(of.parts), body, at(n), (str(n),)) for n in range(40)]
        writes: list[Write] = [Delete("contract", p.id, at(n), p.id) if n % 3 == 0 else p for n, p in enumerate(puts)]
        entries = list(encoder.entries(writes, "s", []))
        assert [entry.write for entry in entries] == writes
        for entry in entries:
            if type(entry.write) is Upsert:
                assert entry.lines == expected(entry.write, of)
            else:
                assert entry.plain is not None


@pytest.mark.usefixtures("few_together")
def test_the_same_documents_fit_other_line_templates() -> None:
    text, item = DocumentText(), Item(msgspec.json.decode(image({"a": "x"}), type=msgspec.Raw))
    given = [(b"1",), (b"2",)]
    for _ in range(20):
        text(item)
    for frame in (LineTemplate(b"%b:", b";"), LineTemplate(b"<%b ", b">"), LineTemplate(b"<%b ", b">", "a")):
        before, after = frame.before.partition(b"%b")[2], frame.after
        for bodies, fields in (([item] * 2, b'"a":"x"'), ([item | {"b": 1}] * 2, b'"a":"x","b":1')):
            opening = frame.before.removesuffix(b"%b" + before)
            found = [opening + n + before + fields + after for (n,) in given]
            assert text.framed(frame, given, bodies) == (None if frame.reserved else found)


def test_sets_are_ordered_by_their_members_json() -> None:
    sets = {"b": frozenset({b"\xff", b"a", b"\0"}), "n": {Decimal(10), Decimal(9)}, "s": frozenset({"ü", "z", "a"})}
    for body in (sets, Item(msgspec.json.decode(image(sets), type=msgspec.Raw))):
        ((_, line),) = made(TableEncoder(layout(TABLES[0])), [Upsert("contract", ("a",), body, at(1), ("a",))]).items()
        assert isinstance(line, bytes)
        assert line.endswith(b',"document":{"b":["/w==","AA==","YQ=="],"n":[9,10],"s":["a","z","\xc3\xbc"]}}\n')


class Counted:
    """Counts how many documents are encoded one by one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.documents = 0
        self._alone = to_json.DocumentText.__call__
        monkeypatch.setattr(to_json.DocumentText, "__call__", lambda text, body: self._counted(text, body))

    def _counted(self, text: to_json.DocumentText, body: Mapping[str, object]) -> bytes:
        self.documents += 1
        return self._alone(text, body)


@pytest.mark.parametrize("table", TABLES)
def test_documents_of_one_shape_are_rarely_encoded_one_by_one(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, of = Counted(monkeypatch), layout(table)
    documents: Sequence[Mapping[str, Any]] = [
        {"a": f"ü{n}", "n": Decimal(n), "s": {"b", f"a{n}"}, "m": {"l": [n, None]}} for n in range(10_000)
    ]
    images = [Item(msgspec.json.decode(image(d), type=msgspec.Raw)) for d in documents]
    for bodies, most in ((documents, 0), (images, 1000), ([item | {"a": 1, "b": 2} for item in images], 1000)):
        encoder, counted.documents = TableEncoder(of), 0
        keys = [(f"ü{n}",) * len(of.parts) for n in range(len(bodies))]
        writes = [Upsert("contract", k, body, at(1), k) for k, body in zip(keys, bodies, strict=True)]
        assert len(list(encoder.entries(writes, "s", []))) == len(writes)
        assert counted.documents <= most


def ids(source: random.Random) -> list[DocumentId]:
    pool = PARTS[: -1 if source.random() < 0.5 else 5]
    parts = source.randrange(1, 3)
    return [tuple(source.choice(pool) for _ in range(parts)) for _ in range(source.randrange(4))]


def test_ids_encoded_together_equal_those_encoded_one_by_one() -> None:
    source = random.Random(1)
    for _ in range(3000):
        given = ids(source)
        assert list(index_ids(given)) == [index_id(id) for id in given]
    for text in ("é" * 64, "é" * 65, "é" * (LONGEST_ID // 2), "漢" * 128, "🐘" * 128, "🐘" * 129, "x" * 512, "x" * 513):
        assert list(index_ids([("a",), (text,)])) == ["a", index_id((text,))]
        assert list(index_ids([("a", "b"), (text, "b")])) == ["a|b", index_id((text, "b"))]
