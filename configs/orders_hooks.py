"""Turns an order into a row: totals from its lines; drafts are filtered out."""

from collections.abc import Mapping
from typing import Any


def order(item: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return one row per order; None filters it out, and removes it if it was stored."""
    if item.get("status") == "draft":
        return None
    return {
        "customer": item["customer"],
        "total": sum(line["price"] * line["count"] for line in item["lines"]),
        "paid": "paid_at" in item,
        "placed_at": item["placed_at"],  # ISO 8601 text, or seconds since 1970
        "tags": item.get("tags"),
        "address": item.get("address"),
    }
