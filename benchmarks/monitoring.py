"""What monitoring costs: client CPU per change with it and without, in pairs, each once first."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

from benchmarks import data, destination, product, source
from benchmarks.counting import ratio
from benchmarks.product import Result


def lines(rounds: int, changes: int, url: str, alone: Callable[..., Result]) -> Iterator[str]:
    """The result table, from ``rounds`` pairs. ``alone`` calls a function in a separate process."""
    works = {"without": product.copy, "monitoring, scraped every second": product.monitored}
    costs: dict[str, list[float]] = {name: [] for name in works}
    with source.endpoint("--changes", str(changes)) as endpoint:
        for number in range(rounds):
            for name in sorted(works, reverse=number % 2 == 0):
                destination.reset(url, data.TABLE)
                result = alone(works[name], endpoint, url, product.TYPED, None, changes)
                costs[name].append(result.cpu / result.changes * 1e6)
    base = costs["without"]
    yield "| | client CPU, us/change | x without |"
    yield "|---|---|---|"
    for name, found in costs.items():
        yield f"| {name} | {statistics.median(found):.2f} | {ratio(found, base)} |"
