"""Which epoch tells the state at a time, and what is said of times that none tells."""

from __future__ import annotations

import re
from datetime import datetime

import pytest

from replicator.errors import ConfigError
from replicator.operations.history import Known, epochs
from replicator.state import HistorySpan
from replicator.target.past import Extent

NOON = 1_796_000_400.0
SPANS = {1024: HistorySpan(NOON + 0.25), 1025: HistorySpan(NOON + 60.75, NOON + 60.25)}
KNOWN = Known(SPANS, NOON + 3600)


def times_in(text: str) -> list[float]:
    return [datetime.fromisoformat(f"{found}+00:00").timestamp() for found in re.findall(r"\d+-\d+-\d+ [\d:]+", text)]


def refusal(at: float, extent: Extent) -> list[float]:
    """The times that are named."""
    with pytest.raises(ConfigError) as raised:
        epochs(KNOWN, "orders", extent, at)
    return times_in(str(raised.value))


def test_a_time_that_a_refusal_names_as_the_first_one_is_answered() -> None:
    (begins,) = refusal(NOON, Extent(1024))
    assert epochs(KNOWN, "orders", Extent(1024), begins) == (1024, 1025)
    kept = Extent(1024, since=NOON + 30.5)
    (kept_since,) = refusal(NOON + 30.25, kept)
    assert epochs(KNOWN, "orders", kept, kept_since) == (1024, 1025)


def test_the_times_between_two_epochs_are_named_so_that_those_outside_are_answered() -> None:
    since, until = refusal(NOON + 60.5, Extent(1024))
    assert since < until
    assert epochs(KNOWN, "orders", Extent(1024), since - 1)[0] == 1024
    assert epochs(KNOWN, "orders", Extent(1024), until)[0] == 1025
