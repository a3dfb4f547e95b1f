"""The hooks of the simulation: each kind, deterministic, on items {"pk": …, "v": …}."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from replicator.attributes import Item
from replicator.transform import Document, Hook, documents


def kept(item: Item) -> Mapping[str, object] | None:
    """One document an item; a third of all values leave the filter."""
    return None if int(item["v"]) % 3 == 0 else {"v": int(item["v"])}


@documents
def rekeyed(item: Item) -> Iterator[Document]:
    """One document, whose id and table change with the value."""
    v = int(item["v"])
    yield Document(v % 3, {"v": v}, "odd" if v % 2 else "even")


@documents
def fanned(item: Item) -> Iterator[Document]:
    """As many documents as the value says."""
    v = int(item["v"])
    for i in range(v % 4):
        yield Document(i, {"v": v}, "odd" if i % 2 else "even")


def poisoned(item: Item) -> Mapping[str, object] | None:
    """Fails on some values; a later value heals the item."""
    if int(item["v"]) % 5 == 0:
        raise ValueError("this value is poison")
    return kept(item)


@documents
def poisoned_fan(item: Item) -> Iterator[Document]:
    if int(item["v"]) % 7 == 0:
        raise ValueError("this value is poison")
    yield from fanned(item)


def hook(function: Callable[..., object]) -> Hook:
    declared = getattr(function, "__replicator_documents__", False)
    return Hook(function.__name__, function, function.__name__, declared)
