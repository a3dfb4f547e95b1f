"""Several pipelines of one process, served at one address."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from replicator.config.monitoring import Address
from replicator.config.settings import load
from replicator.errors import ConfigError
from replicator.monitoring.board import Board
from replicator.monitoring.monitor import FAILED, Monitor
from replicator.monitoring.server import serving_several, subject_of
from replicator.operations.status import read_each
from replicator.pipeline.progress import Progress
from replicator.testing.servers.programs import free_port
from tests.monitoring.client import get
from tests.monitoring.phases import SUBJECT
from tests.monitoring.test_run import metrics


def monitor(name: str, phase: str) -> Monitor:
    shown = Monitor(replace(SUBJECT, pipeline=name))
    shown.observe(Progress(phase, lag_seconds=1.0))
    return shown


def put_up(board: Board, shown: Monitor, error: Exception | None = None) -> None:
    """Run a pipeline to its end on a thread of its own, with this ``error`` or without one."""

    def work() -> None:
        with pytest.raises(ConfigError) if error else ExitStack(), board.running(shown):
            if error:
                raise error

    thread = Thread(target=work)
    thread.start()
    thread.join()


@pytest.fixture
def port() -> Iterator[int]:
    """Of a process with one pipeline that is live, and one that has failed."""
    address = Address("127.0.0.1", free_port())
    with serving_several(address) as board, board.running(monitor("shop.a", "live")):
        put_up(board, monitor("shop.b", "live"), ConfigError("its table is gone"))
        put_up(board, monitor("shop.c", "live"))
        yield address.port


def test_each_has_its_page_and_the_first_one_leads_to_all(port: int) -> None:
    overview = get(port, "/").text

    assert ('href="shop.a/"' in overview, 'href="shop.b/"' in overview) == (True, True)
    assert "shop.c" not in overview, "it has ended without an error"
    for path in ("", "fragment", "metrics", "healthz", "readyz", "status.json", "page.css", "page.js", "icon.svg"):
        assert get(port, f"/shop.a/{path}").status == 200, path
    assert "<h1>shop.a</h1>" in get(port, "/shop.a/").text
    assert get(port, "/shop.a/status.json").json["pipeline"] == "shop.a"
    assert {get(port, path).status for path in ("/shop.c/", "/nothing/", "/shop.a/nothing")} == {404}
    assert {get(port, path, "POST").status for path in ("/", "/metrics", "/shop.a/", "/shop.a/metrics")} == {405}
    assert get(port, "/", Host="evil.example").status == 400


def test_one_that_failed_makes_all_of_them_unhealthy_until_the_process_is_restarted(port: int) -> None:
    assert get(port, "/shop.a/healthz").status == 200
    for path in ("/healthz", "/readyz"):
        response = get(port, path)
        assert (response.status, response.json) == (503, {"ok": False, "reason": f"shop.b: {FAILED}"})


def test_metrics_have_the_label_of_each_pipeline_and_each_name_once(port: int) -> None:
    text = get(port, "/metrics").text
    samples = metrics(text)

    assert samples['replicator_healthy{pipeline="shop.a"}'] == 1
    assert samples['replicator_healthy{pipeline="shop.b"}'] == 0
    heads = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(heads) == len(set(heads))
    assert text.count("\npython_info{") == 1
    ours = [line for line in text.splitlines() if line.startswith("replicator_")]
    assert {line.partition('pipeline="')[2].partition('"')[0] for line in ours} == {"shop.a", "shop.b"}
    assert set(map(str, heads)) == {
        line for line in get(port, "/shop.a/metrics").text.splitlines() if line.startswith("# TYPE")
    }


def test_status_is_that_of_each(port: int) -> None:
    found = get(port, "/status.json").json["pipelines"]
    assert [(one["pipeline"], one["phase"]) for one in found] == [("shop.a", "live"), ("shop.b", "stopped")]


def test_the_commands_on_the_page_of_a_target_name_it(tmp_path: Path) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text(
        "pipeline: shop\nsource: {table: orders}\n"
        "targets:\n  a: {type: postgres, url: 'postgresql://127.0.0.1:1/x', table: a}\n"
    )
    assert subject_of(load(path, {}), "shop.yaml").config == "shop.yaml --target a"


def test_a_thread_that_goes_on_as_another_pipeline_is_shown_as_that_one_only() -> None:
    """As after the steps of a rebuild."""
    board = Board()
    with board.running(monitor("shop@new", "starting")):
        board.show(monitor("shop@new", "live"))
        board.show(monitor("shop", "live"))
        assert [shown.subject.pipeline for shown in board.monitors] == ["shop"]
        assert board.health().ok
    assert board.monitors == []


def test_one_that_could_not_be_started_is_shown_as_failed() -> None:
    board = Board()
    with board.running(monitor("shop.a", "live")):
        board.refused(monitor("shop.b", "starting"))
        assert [shown.subject.pipeline for shown in board.monitors] == ["shop.a", "shop.b"]
        assert board.health().reason == f"shop.b: {FAILED}"


def test_while_their_database_is_down_each_target_is_asked_for_its_status(tmp_path: Path) -> None:
    address = Address("127.0.0.1", free_port())
    table = "type: postgres, url: 'postgresql://127.0.0.1:1/x', table:"
    (tmp_path / "shop.yaml").write_text(
        "pipeline: shop\nsource: {table: products}\n"
        f"monitoring: {{listen: '{address}'}}\ntargets:\n  a: {{{table} a}}\n  b: {{{table} b}}\n  c: {{{table} c}}\n"
    )
    with serving_several(address) as board, board.running(monitor("shop.a", "live")):
        put_up(board, monitor("shop.b", "gap"), ConfigError("records are lost"))
        readings = read_each(str(tmp_path / "shop.yaml"), 0.0)

    phases = [None if reading.values is None else reading.values["phase"] for reading in readings]
    assert [reading.target for reading in readings] == ["a", "b", "c"]
    assert phases == ["live", "gap", None]
