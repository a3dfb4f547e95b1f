"""The hooks of the simulation: each kind, deterministic, on items {"pk": …, "v": …}, and each in several editions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from replicator.hooks.hook import Document, Hook, documents
from replicator.items.item import Item

Function = Callable[[Item], Any]


def kept(hook_version: int) -> Function:
    """One document an item; a third of all values leave the filter."""

    def hook(item: Item) -> Mapping[str, object] | None:
        v = int(item["v"])
        return None if v % 3 == hook_version % 3 else {"v": v, "hook_version": hook_version}

    return hook


def rekeyed(hook_version: int) -> Function:
    """One document, whose id and table change with the value."""

    @documents
    def hook(item: Item) -> Iterator[Document]:
        v = int(item["v"])
        yield Document((v + hook_version) % 3, {"v": v}, "odd" if v % 2 else "even")

    return hook


def fanned(hook_version: int) -> Function:
    """As many documents as the value says."""

    @documents
    def hook(item: Item) -> Iterator[Document]:
        v = int(item["v"])
        for i in range((v + hook_version) % 4):
            yield Document(i, {"v": v}, "odd" if i % 2 else "even")

    return hook


def poisoned(hook_version: int) -> Function:
    """Fails on some values; a later value heals the item."""
    right = kept(hook_version)

    def hook(item: Item) -> Any:
        if int(item["v"]) % 5 == 0:
            raise ValueError("this value is poison")
        return right(item)

    return hook


def poisoned_fan(hook_version: int) -> Function:
    """Documents with ids of their own, from a hook that fails on some values."""
    right = fanned(hook_version)

    @documents
    def hook(item: Item) -> Any:
        if int(item["v"]) % 7 == 0:
            raise ValueError("this value is poison")
        return right(item)

    return hook


@dataclass(frozen=True, slots=True)
class Kind:
    """``fixed``: what the hook is once its author has fixed it, where it fails on some values."""

    make: Callable[[int], Function]
    own_ids: bool = False
    fixed: Callable[[int], Function] | None = None

    @property
    def poisons(self) -> bool:
        return self.fixed is not None


HOOKS: Mapping[str, Kind] = {
    "kept": Kind(kept),
    "rekeyed": Kind(rekeyed, own_ids=True),
    "fanned": Kind(fanned, own_ids=True),
    "poisoned": Kind(poisoned, fixed=kept),
    "poisoned fan": Kind(poisoned_fan, own_ids=True, fixed=fanned),
}


@lru_cache(maxsize=64)
def load(name: str, hook_version: int, *, fixed: bool = False) -> Hook:
    kind = HOOKS[name]
    if fixed and kind.fixed is not None:
        return Hook(name, kind.fixed(hook_version), f"{name} {hook_version} fixed", kind.own_ids)
    return Hook(name, kind.make(hook_version), f"{name} {hook_version}", kind.own_ids)
