"""What a wrong design is, and how one is written down: as a function that patches the production code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import pytest

from tests.simulation.mutants.scenarios import Shape, Where, anywhere, as_drawn

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mutant:
    """``rule``: the one of the design that it breaks. ``where``: the only scenarios that can show it.

    ``seeds``: how many it may take at most, all counted. ``shape``: for what shows too rarely otherwise, scenarios in
    which it shows more often.
    """

    name: str
    rule: int
    apply: Callable[[Patch], None]
    where: Where = anywhere
    seeds: int = 2000
    shape: Shape = as_drawn


def mutant(
    name: str, rule: int, where: Where = anywhere, seeds: int = 2000, shape: Shape = as_drawn
) -> Callable[[Callable[[Patch], None]], Mutant]:
    return lambda apply: Mutant(name, rule, apply, where, seeds, shape)


def among(*modules: ModuleType) -> list[Mutant]:
    """The mutants that stand in these modules."""
    return [found for module in modules for found in vars(module).values() if isinstance(found, Mutant)]
