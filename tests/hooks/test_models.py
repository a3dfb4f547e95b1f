"""Hooks may return dataclasses and pydantic models: their fields are the document."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from replicator.hooks.hook import Document, Hook, Poison, documents
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.testing.hooks import hook_test

ITEM = {"id": "1", "total": Decimal("1.50"), "tags": frozenset({"a"})}


@dataclass
class Line:
    sku: str
    n: int = 1


@dataclass(frozen=True, slots=True)
class Order:
    total: Decimal
    lines: list[Line] = field(default_factory=list)
    extra: Any = None


class Price(BaseModel):
    amount: Decimal
    tags: frozenset[str] = frozenset()


class Named(BaseModel):
    model_config = ConfigDict(serialize_by_alias=True)

    type_: str = Field(alias="type")
    line: Line | None = None


LINE = {"sku": "b", "n": 1}


@pytest.mark.parametrize(
    ("result", "document"),
    [
        (Line("a"), {"sku": "a", "n": 1}),
        (Order(Decimal(1), [Line("a")]), {"total": Decimal(1), "lines": [{"sku": "a", "n": 1}], "extra": None}),
        (Order(Decimal(1), extra={"p": (Line("b"), 2)}), {"total": 1, "lines": [], "extra": {"p": [LINE, 2]}}),
        (Price(amount=Decimal("1.10"), tags=frozenset({"x"})), {"amount": Decimal("1.10"), "tags": frozenset({"x"})}),
        (Named(type="t", line=Line("b")), {"type": "t", "line": {"sku": "b", "n": 1}}),
    ],
)
def test_the_fields_are_the_document(result: object, document: dict[str, Any]) -> None:
    hook_test(lambda item: result).gives(ITEM, document)


def test_the_body_of_a_document_may_be_one_too() -> None:
    @documents
    def hook(item: Item) -> Any:
        yield Document(id="a", body=Line("x"))
        yield Document(id="b", body=Price(amount=item["total"]))

    hook_test(hook).gives(
        ITEM,
        Document(id="a", body={"sku": "x", "n": 1}),
        Document(id="b", body={"amount": Decimal("1.50"), "tags": frozenset()}),
    )


class Breaking(BaseModel):
    def model_dump(self, **_: Any) -> dict[str, Any]:
        raise OSError("secret")


@dataclass
class Endless:
    inner: Any = None


def endless() -> Endless:
    result = Endless()
    result.inner = [result]
    return result


@pytest.mark.parametrize(("result", "error"), [(Breaking(), "OSError"), (endless(), "RecursionError")])
def test_a_model_that_cannot_be_read_parks_the_item(result: object, error: str) -> None:
    hook_test(lambda item: result).parks(ITEM, f"raised {error}")

    @documents
    def hook(item: Item) -> Any:
        yield Document(id="a", body=result)

    hook_test(hook).parks(ITEM, f"raised {error}")


@pytest.mark.parametrize("result", [Line, Price, Document("a", {}), object(), 1])
def test_classes_and_other_objects_are_no_documents(result: object) -> None:
    hook = Hook("hook", lambda item: result, "", declared=False)
    with pytest.raises(Poison, match="a plain hook must return a mapping or None"):
        hook.one(Item(image(ITEM)))
