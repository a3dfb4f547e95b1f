"""One seed, to its end; and what is left of a seed that fails when everything is dropped that it can do without."""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from types import ModuleType

from replicator.errors import ReplicatorError
from replicator.pipeline import batching, discovery, gap_repair
from replicator.source import chosen, export, keys_only, shard_reader
from replicator.testing import memory
from tests.simulation import plan, repairing, runs, scenario, truth
from tests.simulation.plan import Plan
from tests.simulation.scenario import Scenario
from tests.simulation.world import Universe

TWICE = 100
PROOF_PAGES = 12  # more than retention.Blanks.MOST
SETTLED = 60.0  # seconds; none of the world's listings is older
FAILURES = (AssertionError, ReplicatorError)


@dataclass(frozen=True, slots=True)
class Failure:
    """A seed that did not hold, with the acts that it took and what happened then."""

    seed: int
    reason: str
    acts: Plan
    trace: Sequence[str]

    def __str__(self) -> str:
        acts = [f"  at step {act.at}: {act.what} {act.luck}" for act in self.acts]
        return "\n".join(
            [
                f"seed {self.seed}: {self.reason}",
                f"{scenario.draw(self.seed)}",
                f"what it takes ({len(acts)} acts):",
                *acts,
                "and what happens then:",
                *self.trace[-200:],
                f"repeat it with: python -m tests.simulation --seed {self.seed}",
            ]
        )


def simulate(seed: int, found: Scenario | None = None) -> Universe:
    """One seed, to its end. AssertionError, or an error of the run itself, says what did not hold."""
    found = found or scenario.draw(seed)
    return play(seed, found, plan.draw(seed, found))


@contextlib.contextmanager
def sizes(found: Scenario) -> Iterator[None]:
    """Sizes that a scenario has in small."""
    with (
        _set(batching, "BATCH_ROWS", found.batch_rows),
        _set(keys_only, "PAGE_BYTES", found.looked_up_bytes),
        _set(chosen, "AT_ONCE", found.items_a_page),
        _set(memory, "_PIECE", found.items_a_page if found.gap_exports else memory._PIECE),
        _set(export, "POLL", 1.0),
        _set(gap_repair, "APART", 1.0),
        _set(export, "SETTLED", 1.0),
        _set(export, "ENABLING", 0.0),  # no stream takes time that is followed from an existing export
        _set(export, "CHUNK", 64),
        _set(export, "PAGE", 80),
        _set(shard_reader, "PROOF_PAGES", PROOF_PAGES),
        _set(discovery, "SETTLED", SETTLED),
        _set(discovery, "ORPHAN_TIME", SETTLED),
        _set(batching, "MOST_SECONDS", 1.0 if "ponder" in found.rates else batching.MOST_SECONDS),
    ):
        yield


def play(seed: int, found: Scenario, acts: Plan, trace: list[str] | None = None) -> Universe:
    """A seed with these acts. ``trace`` takes a line for everything that happens."""
    with sizes(found):
        universe = Universe(seed, found, acts, trace)
        try:
            runs.settle(universe)
        finally:
            repairing.end(universe)
        truth.check_end(universe)
    return universe


@contextlib.contextmanager
def _set(module: ModuleType, name: str, value: float) -> Iterator[None]:
    """Another size of something than outside, where a seed is too short for that one."""
    outside = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, outside)


def traced(seed: int) -> list[str]:
    """Everything that happens in a seed, line by line, also if it fails."""
    trace: list[str] = []
    found = scenario.draw(seed)
    _reason(seed, found, plan.draw(seed, found), trace)
    return trace


def failure(seed: int) -> Failure | None:
    """Why a seed does not hold, with the fewest acts that still show it; None if it does. One in TWICE runs again."""
    found = scenario.draw(seed)
    acts = plan.draw(seed, found)
    first: list[str] | None = [] if seed % TWICE == 0 else None
    if _reason(seed, found, acts, first) is None:
        return None if first is None else _differing(seed, acts, first)
    acts = _fewest(seed, found, acts)
    trace: list[str] = []
    return Failure(seed, _reason(seed, found, acts, trace) or "", acts, trace)


def _differing(seed: int, acts: Plan, first: Sequence[str]) -> Failure | None:
    """A failure if a second run of the seed is not, line by line, like the first."""
    second = traced(seed)
    if first == second:
        return None
    at = next(n for n, (one, other) in enumerate(zip_longest(first, second)) if one != other)
    return Failure(seed, f"run again, line {at} of its trace is another", acts, [*first[:at], *second[at:]])


def _reason(seed: int, found: Scenario, acts: Plan, trace: list[str] | None = None) -> str | None:
    try:
        play(seed, found, acts, trace)
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    return None


def _fewest(seed: int, found: Scenario, acts: Plan) -> Plan:
    """Drop ever smaller pieces of the plan while the seed still fails."""
    piece = len(acts) // 2
    while piece:
        at = 0
        while at < len(acts):
            fewer = acts[:at] + acts[at + piece :]
            if _reason(seed, found, fewer) is not None:
                acts = fewer
            else:
                at += piece
        piece //= 2
    return acts


def prepare() -> None:
    """Make a process ready for thousands of seeds: what lives for ever is left out of garbage collections, which come
    seldom, and what a protocol asks for is looked up once, as Python does by itself since 3.12.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    if sys.version_info < (3, 12):
        members = "_get_protocol_attrs"
        setattr(typing, members, lru_cache(getattr(typing, members)))


def failing(seeds: Sequence[int]) -> list[Failure]:
    """The failures among these seeds."""
    logging.getLogger("replicator").setLevel(logging.CRITICAL)
    return [found for seed in seeds if (found := failure(seed)) is not None]
