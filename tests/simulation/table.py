"""The table of wrong designs in docs/guarantees.md: ``python -m tests.simulation.table`` measures it and writes it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from tests.simulation import scenario
from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.simulate import FAILURES, simulate

DOCUMENT = Path(__file__).parents[2] / "docs" / "guarantees.md"
BEGIN, END = "<!-- wrong designs -->", "<!-- end of wrong designs -->"


def first_catch(mutant: Mutant, seeds: Iterable[int]) -> int | None:
    """The first of these seeds that notices the wrong design; None if none does."""
    with pytest.MonkeyPatch.context() as patch:
        mutant.apply(patch)
        for seed in seeds:
            drawn = scenario.draw(seed)
            if mutant.where(drawn):
                try:
                    simulate(seed, mutant.shape(drawn))
                except FAILURES:
                    return seed
    return None


def listed() -> Mapping[str, int]:
    """The seed that caught each wrong design when the table was written."""
    lines = DOCUMENT.read_text().split(BEGIN)[1].split(END)[0].splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("| ")]
    return {name: int(count.replace(",", "")) - 1 for _, _, name, count, _ in rows[1:] if count != "not caught"}


def row(mutant: Mutant, seed: int | None) -> str:
    return f"| {mutant.rule} | {mutant.name} | {'not caught' if seed is None else f'{seed + 1:,}'} |"


def main() -> None:
    logging.getLogger("replicator").setLevel(logging.CRITICAL)
    rows = [row(m, first_catch(m, range(m.seeds))) for m in sorted(MUTANTS, key=lambda m: m.rule)]
    text = DOCUMENT.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    head = ["| rule | wrong design | seeds to the first catch |", "|---|---|---|"]
    DOCUMENT.write_text(before + "\n".join([BEGIN, "", *head, *rows, "", END]) + after)


if __name__ == "__main__":
    main()
