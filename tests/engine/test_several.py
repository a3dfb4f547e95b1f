"""Several pipelines in one process: how each ends, and what that makes of the exit code."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from replicator.config.settings import Source
from replicator.engine.imports import reporting
from replicator.engine.several import SEVERITY, PipelineRun, Sharing, run_each, worst
from replicator.errors import ConfigError, Fenced, GapFound, ReplicatorError
from replicator.hooks.hook import Hook
from replicator.hooks.loading import load
from replicator.hooks.time_limit import HookWatch
from replicator.items.item import Item


def failing(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def codes_of(runs: Sequence[PipelineRun]) -> dict[str, int]:
    codes: dict[str, int] = {}
    run_each(runs, codes.__setitem__)
    return codes


ACCESS = {"table": "orders", "role_arn": "arn:aws:iam::123456789012:role/one", "region": "eu-west-1"}
ARN = "arn:aws:dynamodb:eu-west-1:123456789012:table/orders"


@pytest.mark.parametrize(
    ("other", "differing"),
    [
        ({}, None),
        ({"poll_interval": "50ms"}, None),
        ({"table": "users"}, None),
        ({"table": ARN}, ["table"]),
        ({"region": "us-east-1"}, ["region"]),
        ({"profile": "other"}, ["profile"]),
        ({"role_arn": "arn:aws:iam::123456789012:role/other"}, ["role_arn"]),
        ({"external_id": "other"}, ["external_id"]),
        ({"endpoint_url": "https://other.example", "timeout": 5}, ["endpoint_url", "timeout"]),
    ],
)
def test_pages_are_shared_by_the_same_access_only_and_what_differs_is_said(
    other: dict[str, object], differing: list[str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    """A role that may not read the stream must get nothing by way of another one."""
    logging.getLogger("replicator").propagate = True
    caplog.set_level(logging.INFO, "replicator")
    sharing = Sharing()
    pages = sharing.of(Source.model_validate(ACCESS))
    found = sharing.of(Source.model_validate(ACCESS | other))

    assert (found is pages) == (other.keys() <= {"poll_interval"})
    said = [vars(r)["differing"] for r in caplog.records if r.getMessage() == "reader not shared"]
    assert [sorted(names) for names in said] == ([] if differing is None else [differing])


def test_each_has_its_own_exit_code() -> None:
    runs = [
        PipelineRun("fine", lambda: None),
        PipelineRun("lost records", failing(GapFound("trimmed"))),
        PipelineRun("replaced", failing(Fenced("another run owns it"))),
    ]
    assert codes_of(runs) == {"fine": 0, "lost records": 3, "replaced": 5}


def test_a_bug_ends_only_its_own_pipeline_and_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, object]] = []
    monkeypatch.setattr(threading, "excepthook", lambda a: shown.append((a.thread.name, a.exc_value)))
    bug = RuntimeError("a bug")
    assert codes_of([PipelineRun("broken", failing(bug)), PipelineRun("fine", lambda: None)]) == {
        "broken": 1,
        "fine": 0,
    }
    assert shown == [("pipeline broken", bug)]


def test_each_error_is_logged_with_every_problem(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("replicator").propagate = True
    codes_of([PipelineRun("wrong", failing(ConfigError("no table", "no target")))])
    (record,) = [r for r in caplog.records if r.getMessage() == "pipeline failed"]
    assert vars(record)["problems"] == ["no table", "no target"]
    assert (vars(record)["error"], vars(record)["exit_code"]) == ("ConfigError", 2)


def test_the_most_severe_failure_decides() -> None:
    assert worst([]) == 0
    assert worst([0, 0]) == 0
    assert worst([0, 6, 8]) == 6
    assert worst([2, 6, 3, 0]) == 3
    assert worst([3, 1]) == 1


def test_every_exit_code_has_its_severity() -> None:
    def codes(of: type[ReplicatorError]) -> set[int]:
        return {of.exit_code}.union(*(codes(kind) for kind in of.__subclasses__()))

    assert codes(ReplicatorError) <= set(SEVERITY)


def test_an_import_that_hangs_is_reported_with_its_pipeline_while_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("replicator").propagate = True
    gate, codes = threading.Event(), dict[str, int]()
    monkeypatch.setattr(sys, "hang", gate.wait, raising=False)
    (tmp_path / "hooks.py").write_text("import sys\nsys.hang()\ndef hook(item):\n    return item\n")

    class Ending(logging.Handler):
        """Lets the import go on once it was reported."""

        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "hook is not imported":
                gate.set()

    handler = Ending()
    logging.getLogger().addHandler(handler)  # after caplog's, which then has the record before the import goes on

    def hanging() -> None:
        with reporting("hanging", 0.0):
            load("hooks.py:hook", tmp_path)

    runs = [PipelineRun("other", lambda: None), PipelineRun("hanging", hanging)]
    run_each(runs, codes.__setitem__, check_every=0.001)
    logging.getLogger().removeHandler(handler)

    assert codes == {"other": 0, "hanging": 0}
    (record,) = [r for r in caplog.records if r.getMessage() == "hook is not imported"]
    assert (vars(record)["pipeline"], vars(record)["seconds"]) == ("hanging", 0.0)
    assert "code outside of functions that waits or loops" in vars(record)["do"]


class TestHookWatch:
    """A watch that is asked at times of a clock of its own about a thread in a hook."""

    @pytest.fixture
    def ident(self) -> int:
        return threading.get_ident()

    def overdue(self, watch: HookWatch, ident: int, clock: list[float], *at: float) -> list[bool]:
        """Whether the thread is in an overdue call at these times, during one call of a hook."""
        overdue: list[bool] = []

        def hook(_: object) -> dict[str, int]:
            for clock[0] in at:
                overdue.append(watch.is_overdue(ident))
            return {}

        Hook("hook", hook, "", False).one(Item(b'{"v":{"S":"a"}}'))
        return overdue

    def test_a_call_is_overdue_once(self, ident: int) -> None:
        clock = [0.0]
        watch = HookWatch(10.0, lambda: clock[0])
        assert self.overdue(watch, ident, clock, 0.0, 9.0, 10.0, 11.0, 99.0) == [False, False, True, False, False]

    def test_many_short_calls_are_not(self, ident: int) -> None:
        clock = [0.0]
        watch = HookWatch(10.0, lambda: clock[0])
        assert [self.overdue(watch, ident, clock, at) for at in (0.0, 9.0, 18.0, 27.0)] == [[False]] * 4

    def test_nothing_is_without_a_limit_outside_of_hooks_or_before_the_thread_starts(self, ident: int) -> None:
        clock = [0.0]
        assert self.overdue(HookWatch(None, lambda: clock[0]), ident, clock, 0.0, 1e9) == [False, False]
        watch = HookWatch(10.0, lambda: clock[0])
        assert [watch.is_overdue(ident), watch.is_overdue(None)] == [False, False]
        clock[0] = 1e9
        assert [watch.is_overdue(ident), watch.is_overdue(None)] == [False, False]
