"""The kit for people's own hooks: it says yes to what is so, and what is different where it is not."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from replicator import Document, documents
from replicator.items.item import Item
from replicator.testing import hook_test

ORDER = {"id": "1", "status": "new", "lines": [{"price": Decimal("1.10"), "count": 3}]}
DRAFT = ORDER | {"status": "draft"}


def order(item: Item) -> Mapping[str, object] | None:
    if item["status"] == "draft":
        return None
    return {"status": item["status"], "total": sum(line["price"] * line["count"] for line in item["lines"])}


@documents
def rows(item: Item) -> Iterator[Document]:
    yield Document("order", {"status": item["status"]}, "orders")
    for n, line in enumerate(item["lines"]):
        yield Document(n, {"count": line["count"]}, "order_lines")


PLAIN = hook_test(order)
DECLARED = hook_test(rows, tables=("orders", "order_lines"))


def complaint(call: Any, *args: Any, **named: Any) -> str:
    with pytest.raises(AssertionError) as raised:
        call(*args, **named)
    return str(raised.value)


def test_a_plain_hook_gives_a_document() -> None:
    PLAIN.gives(ORDER, {"status": "new", "total": Decimal("3.30")})


def test_a_declared_hook_gives_documents() -> None:
    DECLARED.gives(ORDER, Document(0, {"count": 3}, "order_lines"), Document("order", {"status": "new"}, "orders"))


def test_the_only_table_need_not_be_named() -> None:
    hook_test(documents(lambda item: [Document(item["id"], {})])).gives({"id": "a"}, Document("a", {}))


def test_a_hook_sees_what_it_sees_in_a_run() -> None:
    seen: list[Mapping[str, object]] = []
    hook_test(lambda item: seen.append(item["a"])).drops({"a": {"n": 1, "s": {"x"}, "l": (b"\0", None)}})
    assert seen == [{"n": Decimal(1), "s": frozenset({"x"}), "l": [b"\0", None]}]
    assert type(seen[0]["n"]) is Decimal


def test_what_dynamodb_cannot_hold_is_no_item() -> None:
    with pytest.raises(TypeError, match="a float is not a DynamoDB value"):
        PLAIN.drops({"id": 1.5})


def test_a_hook_that_returns_the_item_gives_all_of_it() -> None:
    hook_test(lambda item: item).gives({"id": "a", "n": 1}, {"id": "a", "n": 1})


def test_every_difference_is_named() -> None:
    assert complaint(PLAIN.gives, {"id": "1", "status": "new", "lines": []}, {"total": 5, "paid": True}) == (
        "hook order returned something else for {'id': '1', 'status': 'new', 'lines': []}:\n"
        "  documents: paid is missing, expected True\n"
        "  documents: total is 0, expected 5\n"
        "  documents: status was not expected: 'new'"
    )


def test_every_document_that_is_missing_or_too_many_is_named() -> None:
    expected = [Document("order", {"status": "sent"}, "orders"), Document(1, {"count": 1}, "order_lines")]
    assert complaint(DECLARED.gives, ORDER, *expected).splitlines()[1:] == [
        "  orders 'order': status is 'new', expected 'sent'",
        "  order_lines '1': is missing, expected {'count': 1}",
        "  order_lines '0': was not expected: {'count': Decimal('3')}",
    ]


def test_nothing_expected_of_something_given_is_a_difference() -> None:
    assert "was not expected" in complaint(PLAIN.gives, ORDER)


def test_something_expected_of_nothing_given_is_a_difference() -> None:
    assert "documents: is missing, expected {'status': 'draft'}" in complaint(PLAIN.gives, DRAFT, {"status": "draft"})


def test_expectations_of_the_wrong_kind_are_refused() -> None:
    with pytest.raises(TypeError, match="expected must be one mapping, because the hook is plain"):
        PLAIN.gives(ORDER, Document("a", {}))
    with pytest.raises(TypeError, match="expected must be Documents, because the hook is declared"):
        DECLARED.gives(ORDER, {})


def test_what_a_hook_drops() -> None:
    PLAIN.drops(DRAFT)
    hook_test(documents(lambda item: [])).drops({"id": "a"})
    assert complaint(PLAIN.drops, ORDER | {"lines": []}).startswith(
        "hook order should drop {'id': '1', 'status': 'new'"
    )


def test_a_hook_that_fails_is_no_hook_that_drops() -> None:
    said = complaint(PLAIN.drops, {"id": "1"})
    assert "the item is parked: hook order raised KeyError at test_hooks.py:" in said
    assert "no attribute 'status'" in said
    assert "in order" in said  # the traceback


def test_what_is_parked() -> None:
    PLAIN.parks({"id": "1"})
    PLAIN.parks({"id": "1"}, "no attribute 'status'")
    DECLARED.parks({"id": "1"}, "raised KeyError")
    hook_test(lambda item: [], tables=("orders",)).parks({}, "a plain hook must return a mapping or None")
    assert "should fail for" in complaint(PLAIN.parks, DRAFT)
    assert "with another reason: hook order raised KeyError" in complaint(PLAIN.parks, {"id": "1"}, "ValueError")


def test_the_writes_of_a_plain_hook() -> None:
    stored = {"status": "new", "total": Decimal("3.30")}
    assert PLAIN.writes(new=ORDER) == [("upsert", "documents", None, stored)]
    assert PLAIN.writes(old=DRAFT, new=ORDER) == [("upsert", "documents", None, stored)]
    assert PLAIN.writes(old=ORDER, new=DRAFT) == [("delete", "documents", None)]
    assert PLAIN.writes(old=ORDER) == [("delete", "documents", None)]


def test_the_writes_of_a_declared_hook() -> None:
    no_lines = ORDER | {"lines": []}
    assert DECLARED.writes(old=ORDER, new=no_lines) == [
        ("upsert", "orders", "order", {"status": "new"}),
        ("delete", "order_lines", "0"),
    ]
    assert DECLARED.writes(old=no_lines) == [("delete", "orders", "order")]


def test_a_deterministic_hook_passes() -> None:
    PLAIN.is_pure_on([ORDER, DRAFT])
    DECLARED.is_pure_on([ORDER])


def test_a_hook_that_counts_is_not_deterministic() -> None:
    numbers = itertools.count()
    said = complaint(hook_test(lambda item: {"n": next(numbers)}).is_pure_on, [{"id": "a"}])
    assert said == (
        "hook <lambda> is not deterministic: two calls differ for {'id': 'a'}:\n  documents: n is 1, expected 0"
    )


def test_a_hook_that_remembers_other_items_is_not_deterministic() -> None:
    seen: set[str] = set()

    def first_of_its_kind(item: Item) -> Mapping[str, object] | None:
        if item["kind"] in seen:
            return None
        seen.add(item["kind"])
        return {"kind": item["kind"]}

    assert "is not deterministic" in complaint(hook_test(first_of_its_kind).is_pure_on, [{"kind": "a"}, {"kind": "b"}])


def test_the_documented_example_runs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "hooks.md").read_text()
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "hook_test" in block)
    names: dict[str, Any] = {}
    exec(example, names)  # noqa: S102
    tests = [run for name, run in names.items() if name.startswith("test_")]
    assert tests
    for run in tests:
        run()


def test_a_callable_object_can_be_tested_too() -> None:
    class Order:
        def __call__(self, item: Item) -> Mapping[str, object]:
            return {"id": item["id"]}

    hook_test(Order()).gives({"id": "a"}, {"id": "a"})
    assert "hook Order returned something else" in complaint(hook_test(Order()).gives, {"id": "a"}, {"id": "b"})
