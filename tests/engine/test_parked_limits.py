"""Logging of parked changes, and the limits that end a run."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, cast

import pytest

from replicator.engine import parked_limits
from replicator.engine.delivery import Delivery
from replicator.engine.parked_limits import IDLE_INTERVAL, LOG_INTERVAL, ParkedWatch
from replicator.errors import ConfigError
from replicator.pipeline.parked import Held, Move, ParkedItems
from replicator.pipeline.pipeline import Pipeline
from replicator.state import Counts, PipelineState
from replicator.version import version


class Parking:
    """A fake pipeline and delivery with the parked items that a test sets."""

    def __init__(self) -> None:
        self.parked = ParkedItems()
        self.total = Counts()
        self.state: PipelineState | None = None
        self.reasons: dict[str, int] = {}
        self.looked = 0

    def parked_now(self) -> dict[str, int]:
        reasons, self.reasons = self.reasons, {}
        return reasons

    def settle(self) -> None:
        pass

    flush = settle

    def know_parked(self) -> None:
        self.looked += 1


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def watch(parking: Parking, clock: Clock, limit: int = 10) -> ParkedWatch:
    return ParkedWatch(cast(Pipeline, parking), cast(Delivery, parking), limit, clock)


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, Any]]:
    found = [(r.reason, r.changes) for r in caplog.records if r.message == "parked"]  # type: ignore[attr-defined]
    caplog.clear()
    return found


def test_each_reason_is_logged_once_and_then_with_its_count_at_intervals(caplog: pytest.LogCaptureFixture) -> None:
    parking, clock = Parking(), Clock()
    found = watch(parking, clock)
    for reasons in ({"a": 1}, {"a": 5}, {"a": 2, "b": 1}):
        parking.reasons = reasons
        found.check()
    assert told(caplog) == [("a", 1), ("a", 8), ("b", 1)]
    parking.reasons = {"a": 1}
    found.check()
    assert told(caplog) == []
    clock.now += LOG_INTERVAL
    found.check()
    assert told(caplog) == [("a", 9)]


def test_reasons_beyond_the_limit_are_logged_as_one(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parked_limits, "MAX_REASONS", 2)
    parking = Parking()
    found = watch(parking, Clock())
    parking.reasons = {"a": 1, "b": 1, "c": 1, "d": 1}
    found.check()
    assert told(caplog) == [("a", 1), ("b", 1), ("other reasons", 2)]


@pytest.mark.parametrize(("parked", "loud"), [(5, True), (4, False)])
def test_a_run_that_parked_most_of_its_changes_logs_an_error(
    caplog: pytest.LogCaptureFixture, parked: int, loud: bool
) -> None:
    parking = Parking()
    found = watch(parking, Clock())
    parking.total = Counts(read=10, applied=10 - parked, parked=parked)
    found.end()
    errors = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert [r.message for r in errors] == ["most changes in this run were parked"] * loud


def test_parked_entries_are_reread_every_ten_seconds_while_there_are_any() -> None:
    parking, clock = Parking(), Clock()
    found = watch(parking, clock)
    found.check()
    assert parking.looked == 0
    parking.parked = ParkedItems.of([Held("a@1")])
    for now in (0.0, 9.0, 10.0, 11.0):
        clock.now = now
        found.check()
    assert parking.looked == 2


def test_parked_entries_are_reread_also_while_nothing_is_parked() -> None:
    """A suspended retry may have written after the run healed its item."""
    parking, clock = Parking(), Clock()
    found = watch(parking, clock)
    for now in (0.0, IDLE_INTERVAL - 1, IDLE_INTERVAL, IDLE_INTERVAL + 1, 2 * IDLE_INTERVAL):
        clock.now = now
        found.check()
    assert parking.looked == 2


def test_too_many_documents_of_one_parked_item_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parked_limits, "MAX_LEAVES", 2)
    parking = Parking()
    leaves = frozenset(("t", str(n)) for n in range(3))
    parking.parked = ParkedItems.of([Held(f"a@{version(1024, 1):019d}", leaves=leaves)])
    with pytest.raises(ConfigError, match="the changes of one parked item name more than 2 documents"):
        watch(parking, Clock()).check()


def held(item: str, epoch: int, leaves: int = 0) -> Held:
    return Held(f"{item}@{version(epoch, 1):019d}", leaves=frozenset(("t", str(n)) for n in range(leaves)))


def test_what_was_parked_before_a_scan_of_all_items_began_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scan reads those items again. Otherwise no run could ever repair a copy most of whose items are parked."""
    monkeypatch.setattr(parked_limits, "MAX_LEAVES", 2)
    parking = Parking()
    parking.state = PipelineState(1025, "stream", "table", "id", "scanning", started=0.0)
    parking.parked = ParkedItems.of([held(f"i{n}", 1024, leaves=3) for n in range(5)])
    watch(parking, Clock(), limit=3).check()
    parking.state = replace(parking.state, full=1024)  # a scan of chosen items leaves the others as they are
    with pytest.raises(ConfigError, match="more than 3 items are parked"):
        watch(parking, Clock(), limit=3).check()
    parking.state = replace(parking.state, full=0)
    for n in range(4):  # parked again by the scan, each in the place of the earlier entry
        parking.parked.apply(Move("parked", held(f"i{n}", 1024), held(f"i{n}", 1025)))
    with pytest.raises(ConfigError, match="more than 3 items are parked"):
        watch(parking, Clock(), limit=3).check()
    parking.parked.undo(Move("parked", held("i0", 1024), held("i0", 1025)))
    watch(parking, Clock(), limit=3).check()
    parking.parked.apply(Move("parked", None, held("i9", 1025, leaves=3)))
    with pytest.raises(ConfigError, match="the changes of one parked item name more than 2 documents"):
        watch(parking, Clock(), limit=4).check()
