"""What monitoring costs: client CPU per change with it and without, in pairs, each once first; and of its thread."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import data, destination, product, source
from benchmarks.counting import ratio

MONITORED = "monitoring, scraped every second"


def lines(rounds: int, changes: int, url: str, alone: Callable[..., Any]) -> Iterator[str]:
    """The result table, from ``rounds`` pairs. ``alone`` calls a function in a separate process."""
    works = {"without": product.copy, MONITORED: product.monitored_apart}
    costs: dict[str, list[float]] = {name: [] for name in works}
    shares: list[float] = []
    with source.endpoint("--changes", str(changes)) as endpoint:
        for number in range(rounds):
            for name in sorted(works, reverse=number % 2 == 0):
                destination.reset(url, data.TABLE)
                result = alone(works[name], endpoint, url, product.TYPED, None, changes)
                if name == MONITORED:
                    result, served = result
                    shares.append(served / result.cpu)
                costs[name].append(result.cpu / result.changes * 1e6)
    base = costs["without"]
    yield "| | client CPU, us/change | x without |"
    yield "|---|---|---|"
    for name, found in costs.items():
        yield f"| {name} | {statistics.median(found):.2f} | {ratio(found, base)} |"
    yield ""
    yield f"the thread that serves: {statistics.median(shares):.1%} of the CPU [{min(shares):.1%}-{max(shares):.1%}]"
