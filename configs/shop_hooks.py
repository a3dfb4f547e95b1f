"""Splits the items of a single-table design by what their keys say they are."""

from collections.abc import Iterator, Mapping
from typing import Any

from replicator import Document, documents


@documents
def rows(item: Mapping[str, Any]) -> Iterator[Document]:
    """A customer is one row; an order is one row and a row for each of its lines; anything else is filtered out."""
    if item["sk"] == "PROFILE":
        yield Document(id=item["pk"], table="customers", body={"name": item["name"], "email": item.get("email")})
    elif item["sk"].startswith("ORDER#"):
        yield from _order(item)


def _order(item: Mapping[str, Any]) -> Iterator[Document]:
    lines = item["lines"]
    total = sum(line["price"] * line["count"] for line in lines)
    order = item["sk"]
    yield Document(id=order, table="orders", body={"customer": item["pk"], "status": item["status"], "total": total})
    for line in lines:
        body = {"order": order, "sku": line["sku"], "count": line["count"], "price": line["price"]}
        yield Document(id=f"{order}/{line['sku']}", table="order_lines", body=body)
