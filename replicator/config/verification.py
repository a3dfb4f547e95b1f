"""The config's section ``verify``: how often a run compares its copy with the source by itself, and at what pace."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from replicator.options import Options

SHORTEST, LONGEST = 60.0, 366 * 86_400.0  # seconds
_DURATION = re.compile(r"(?P<number>[0-9]{1,6}(\.[0-9]{1,6})?) ?(?P<unit>[smhd])")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def _seconds(given: object) -> object:
    """Seconds of a duration such as 24h or 7d; a number is seconds already."""
    if not isinstance(given, str):
        return given
    match = _DURATION.fullmatch(given)
    if match is None:
        raise ValueError("must be a duration such as 12h, 24h or 7d")
    return float(match["number"]) * _UNITS[match["unit"]]


def _possible(seconds: float) -> float:
    if not SHORTEST <= seconds <= LONGEST:
        raise ValueError("must be from 1m to 366d")
    return seconds


Every = Annotated[float, BeforeValidator(_seconds, json_schema_input_type=float | str), AfterValidator(_possible)]


class Verify(Options):
    """Verification passes that a run makes while it is live. See docs/verifying.md."""

    every: Every = Field(default=86_400.0, description="from the beginning of one pass to that of the next, e.g. 24h")
    read_units: float = Field(
        default=50.0, ge=5, description="read capacity units per second that a pass may use on the source"
    )
