"""Turns a product into the document that people search."""

from collections.abc import Mapping
from typing import Any


def product(item: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return one document per product; None filters out what is not sold, and removes it if it was stored."""
    if item.get("discontinued"):
        return None
    return {
        "title": item["title"],
        "description": item.get("description", ""),
        "category": item["category"],
        "price_cents": int(item["price"] * 100),  # whole cents sort exactly, a double might not
        "in_stock": item.get("stock", 0) > 0,
        "tags": sorted(item.get("tags", ())),
        "attributes": item.get("attributes", {}),  # kept and shown, not searched
    }
