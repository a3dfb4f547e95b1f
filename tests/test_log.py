"""Log events: one a line, details as fields; and the views of a run."""

from __future__ import annotations

import ast
import importlib
import io
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from rich.console import Console

from replicator import log
from replicator.cli import live_view
from replicator.cli.render import as_table
from replicator.operations.cutover import Reason
from replicator.operations.rebuild_checks import Outcome
from replicator.pipeline.progress import Backfill, Progress, Shards, Verifying, WorkerProgress
from replicator.state import Counts, Gap, HistoryReport, Verified

FULL = Progress(
    "gap",
    lag_seconds=90.0,
    retention_left_hours=5.2,
    backfill=Backfill(1, 4, 500, 2000, 100.0, 15.0),
    shards=Shards(3, 2, 1),
    rate=1234.0,
    gaps=(Gap("records were trimmed", 0.0, 1024, "shard-7", "17"),),
    parked=2,
    counts=Counts(10, 5, 3, 1, 1),
    waiting_for="the target does not answer",
    verified=Verified(100.0, 200.0, 1024, "full", 4, differences=2, parked=1, ended=200.0),
    verifying=Verifying(Verified(300.0, 400.0, 1024, "full", 4, items=1000, done=0.37), "run"),
    histories=(
        HistoryReport("orders", 100.0, 60.0, None, 4096, 3),
        HistoryReport("lines", None, 0.0, 50.0, 1, 0, "a part is gone"),
    ),
    workers=(
        WorkerProgress("coordinator", "near", 2, silent=1.0, restarts=1),
        WorkerProgress("0", "far", 7, silent=40.0, shards=2, segments=1, waiting_for="the target"),
        WorkerProgress("1", "near", 8, silent=1.0, shards=2),
    ),
)


@pytest.fixture
def logger() -> logging.Logger:
    return logging.getLogger("replicator.here")


def test_a_json_line_has_time_level_event_and_fields(logger: logging.Logger) -> None:
    stream = io.StringIO()
    log.start(log.JsonLines(), stream)
    logger.warning("shard %s", "ended", extra={"shard": "s-1", "records": 3, "reason": None})
    event = json.loads(stream.getvalue())

    assert event.pop("time").endswith("+00:00")
    assert event == {"level": "warning", "event": "shard ended", "shard": "s-1", "records": 3, "reason": None}


def test_a_human_line_leaves_out_what_is_none(logger: logging.Logger) -> None:
    stream = io.StringIO()
    log.start(log.Human(), stream)
    logger.info("shard ended", extra={"shard": "s-1", "reason": None})
    logger.warning("waits")

    first, second = stream.getvalue().splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d[+-]\d{4} shard ended  shard=s-1", first)  # with its zone
    assert second[13:] == " warning: waits"


@pytest.mark.parametrize("formatter", [log.JsonLines(), log.Human()])
def test_a_traceback_is_kept(logger: logging.Logger, formatter: logging.Formatter) -> None:
    stream = io.StringIO()
    log.start(formatter, stream)
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        logger.exception("bug")

    assert "ZeroDivisionError" in stream.getvalue()


def test_starting_again_replaces_what_was_there(logger: logging.Logger) -> None:
    first, second = io.StringIO(), io.StringIO()
    log.start(log.Human(), first)
    log.start(log.Human(), second)
    logger.info("once")

    assert (first.getvalue(), second.getvalue().count("once")) == ("", 1)


def test_progress_is_an_event_when_something_changed_and_every_ten_seconds(logger: logging.Logger) -> None:
    stream, now = io.StringIO(), [100.0]
    log.start(log.JsonLines(), stream)
    events = live_view.Events(clock=lambda: now[0])
    for at, progress in [
        (100.0, Progress("live")),
        (101.0, Progress("live")),
        (102.0, Progress("live", waiting_for="no answer")),
        (103.0, Progress("live")),
        (112.9, Progress("live")),
        (113.0, Progress("live")),
    ]:
        now[0] = at
        events(progress)

    levels = [json.loads(line)["level"] for line in stream.getvalue().splitlines()]
    assert levels == ["info", "warning", "info", "info"]


def test_a_progress_event_leaves_out_what_is_unknown(logger: logging.Logger) -> None:
    stream = io.StringIO()
    log.start(log.JsonLines(), stream)
    live_view.Events()(Progress("stopped"))

    assert "lag_seconds" not in json.loads(stream.getvalue())


def test_the_live_view_shows_everything() -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=160, force_terminal=False)
    console.print(as_table(FULL))
    text = shown.getvalue()

    for part in (
        "gap",
        "500 items, 1 of 4 segments, 100/s, 15 s left",
        "1 min 30 s",
        "5.2 h",
        "1,234/s",
        "3 open, 2 ended, 1 waiting",
        "10 read = 5 applied + 3 superseded + 1 filtered + 1 parked",
        "records were trimmed (shard shard-7, last position stored 17)",
        "the target does not answer",
        "up to 1970-01-01 00:01:40 UTC: 2 differences, 1 parked, 0 unconfirmed; the pass ended 1970-01-01 00:03:20 UTC",
        "37%, 1,000 items, 0 differences",
        "1 of 2 up, on 2 node(s)",
        "coordinator: near, process 2, restarted 1 time(s)",
        "worker 0: far, process 7, 2 shard(s), 1 segment(s), no sign of it for 40 s, waiting for: the target",
    ):
        assert part in text


def test_the_live_view_shows_unknown_and_never_zero() -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=160)
    console.print(as_table(Progress("live", backfill=Backfill(0, 4, 0, None, None, None))))
    text = shown.getvalue()

    assert text.count("unknown") == 5  # the backfill's rate and time to go, lag, hours, records


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def shown_by(view: live_view.LiveTable, width: int = 120) -> str:
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=True, color_system=None).print(view)
    return file.getvalue()


def test_the_live_view_names_pipeline_source_and_target_before_anything_is_known() -> None:
    text = shown_by(live_view.LiveTable("orders: DynamoDB orders -> postgres orders, lines"))
    assert "orders: DynamoDB orders -> postgres orders, lines" in text
    assert "starting" in text


def test_a_silent_run_is_not_shown_as_live() -> None:
    clock = Clock()
    view = live_view.LiveTable("orders", clock)
    view.observe(Progress("live"))
    assert "live, waiting" not in shown_by(view)
    clock.now += 2.0
    text = shown_by(view)
    assert "live, waiting" in text
    assert "no response from the source or the target for 2 s" in text
    view.observe(Progress("live", waiting_for="Postgres at far does not answer"))
    text = shown_by(view)
    assert "live, waiting" in text
    assert "Postgres at far does not answer" in text


def test_a_phase_that_waits_is_not_green() -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system="standard")
    console.print(as_table(Progress("live")))
    assert "\x1b[32mlive" in file.getvalue()
    console.print(as_table(Progress("live", waiting_for="the engine is silent")))
    assert "\x1b[33mlive, waiting" in file.getvalue()


def test_a_terminal_of_another_size_is_cleared_first() -> None:
    """It breaks the lines that are there anew, so how many to go back over is not known."""
    view = live_view.LiveTable("orders")
    assert "\x1b[2J" not in shown_by(view, 120) + shown_by(view, 120)
    assert "\x1b[2J\x1b[H" in shown_by(view, 60)
    assert "\x1b[2J" not in shown_by(view, 60)


def test_long_lines_above_the_live_view_wrap_between_words() -> None:
    file = io.StringIO()
    record = logging.LogRecord("replicator", logging.WARNING, "", 0, "waiting " + "for something else " * 8, (), None)
    live_view._Above(Console(file=file, width=50, force_terminal=False)).emit(record)
    words = set(file.getvalue().split())
    assert words >= {"waiting", "for", "something", "else"}
    assert len(words) == 6  # no part of a word; besides the time and the level


@contextmanager
def target_named(name: str) -> Iterator[None]:
    token = log.TARGET.set(name)
    try:
        yield
    finally:
        log.TARGET.reset(token)


@pytest.mark.parametrize("as_json", [False, True])
def test_the_report_of_a_rebuild_step_names_the_target_once(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    report = importlib.import_module("replicator.cli.rebuild")._report
    reason = Reason(7, "start one with: replicator rebuild start CONFIG")
    note = "to return: replicator rebuild rollback CONFIG --unchecked"
    with target_named("search"), pytest.raises(click.exceptions.Exit):
        report(click.Context(click.Command("switch")), Outcome([reason], notes=[note]), "switched", as_json)
    out = capsys.readouterr().out
    assert "replicator rebuild start CONFIG --target search" in out
    assert "replicator rebuild rollback CONFIG --target search --unchecked" in out
    assert out.count("--target") == 2


ADVISED = re.compile(
    rf"\b(with|run|then|again|afterwards|lost):? replicator ({'|'.join(log._OF_ONE_TARGET)})( --|[;,).]|$)"
)


def test_commands_that_need_a_target_are_advised_with_the_config_behind_which_it_is_named() -> None:
    root = Path(__file__).parents[1]
    without = []
    for path in (*(root / "replicator").rglob("*.py"), *(root / "connectors").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and ADVISED.search(node.value):
                without.append(f"{path.relative_to(root)}:{node.lineno}")
    assert without == []
