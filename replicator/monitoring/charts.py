"""Curves over time, as SVG paths. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from replicator.monitoring.history import EVERY, SPAN, Sample

WIDTH, HEIGHT = 600.0, 120.0  # of a chart, in its own units
SHORTEST = 300.0  # seconds that a chart covers at least
STEPS = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Curve:
    """``line`` and ``area`` are the ``d`` of SVG paths; unknown values leave holes. ``name``: a CSS class."""

    name: str
    line: str
    area: str


@dataclass(frozen=True, slots=True)
class Band:
    """A stretch of time that the run spent in one phase: its left end and width, in the chart's units."""

    phase: str
    x: float
    width: float


def covered(samples: Sequence[Sample]) -> float:
    """Seconds that charts cover: as long as there are samples, between five minutes and an hour."""
    if not samples:
        return SHORTEST
    return min(SPAN, max(SHORTEST, samples[-1].at - samples[0].at))


def ceiling(highest: float, least: float) -> float:
    """The top of a scale: a round number that is not below ``highest`` nor below ``least``."""
    highest = max(highest, least)
    unit = 10.0 ** math.floor(math.log10(highest))
    return next(unit * step for step in STEPS if unit * step >= highest * 0.999)


TIMES = (10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 21600.0, 43200.0, 86400.0, 172800.0)


def time_ceiling(longest: float) -> float:
    """The top of a scale of durations, in seconds."""
    return next((top for top in TIMES if top >= longest), longest)


def curve(
    name: str, samples: Sequence[Sample], value: Callable[[Sample], float | None], top: float, span: float
) -> Curve:
    line, area, run = [], [], list[tuple[float, float]]()
    for sample in [*samples, None]:
        known = value(sample) if sample is not None else None
        if sample is not None and known is not None:
            height = HEIGHT - min(known, top) / top * HEIGHT
            run.append((place(sample.at, samples[-1].at, span), height))
            continue
        if run:
            line.append(_path(run))
            area.append(f"{_path([(run[0][0], HEIGHT), *run, (run[-1][0], HEIGHT)])}Z")
        run = []
    return Curve(name, "".join(line), "".join(area))


def place(at: float, last: float, span: float) -> float:
    """Where a time is on the axis: the last sample is at its right end."""
    return round(WIDTH - (last - at) / span * WIDTH, 1)


def _path(points: Sequence[tuple[float, float]]) -> str:
    (x, y), *rest = points
    if not rest:
        rest = [(x + 0.1, y)]  # a single point would not be drawn
    return f"M{x:g} {y:.1f}" + "".join(f"L{x:g} {y:.1f}" for x, y in rest)


def bands(samples: Sequence[Sample], span: float) -> tuple[Band, ...]:
    """The phases over time. Waiting counts as a phase."""
    found: list[tuple[str, float, float]] = []
    for sample in samples:
        phase, end = _phase(sample), place(sample.at, samples[-1].at, span)
        begin = max(0.0, place(sample.at - EVERY, samples[-1].at, span))
        if found and found[-1][0] == phase:
            found[-1] = (phase, found[-1][1], end)
        else:
            found.append((phase, found[-1][2] if found else begin, end))
    return tuple(Band(phase, begin, round(max(0.5, end - begin), 1)) for phase, begin, end in found if end >= 0)


def _phase(sample: Sample) -> str:
    return "waiting" if sample.waiting and sample.phase != "gap" else sample.phase
