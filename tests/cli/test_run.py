"""``replicator run``, ``resync`` and ``status`` as processes: events, signals, and what status reads by itself."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson
import pytest

from replicator.config import settings
from replicator.engine.assembly import ends
from replicator.operations.status import health_code
from replicator.pipeline.progress import Progress, as_values
from replicator.state import Owner
from tests.cli.command_line import World
from tests.security.canary import VALUE, look_at_command

SECRET = VALUE


def await_that(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited for a minute"
        time.sleep(0.05)


def phase(world: World) -> str:
    status = world.lines("status", world.config)
    return str(status[0]["phase"]) if status else "nothing is stored yet"


def fill(world: World, items: int = 20) -> None:
    world.db.create_table("orders")
    for n in range(items):
        world.db.put("orders", {"id": str(n), "note": SECRET})


def test_status_of_a_run_that_has_not_begun_to_copy_is_unknown_not_zero(world: World) -> None:
    with ends(settings.load(world.config)) as (_, checkpoints):
        checkpoints.claim(Owner("run", "here", 1, 0.0))
    (status,) = world.lines("status", world.config)

    assert status["phase"] == "stopped"
    assert [status[k] for k in ("lag_seconds", "retention_left_hours", "backfill", "records_per_second")] == [None] * 4
    assert "unknown" in world.call("status", world.config, "--human")[1]


def test_status_reports_what_a_run_has_stored(world: World) -> None:
    fill(world)
    world.catch_up()
    (status,) = world.lines("status", world.config)

    assert status["phase"] == "stopped"
    assert status["lag_seconds"] < 60
    assert 23.9 < status["retention_left_hours"] <= 24
    backfill = status["backfill"]
    assert (backfill["segments"], backfill["segments_ended"], backfill["items"], backfill["eta_seconds"]) == (
        4,
        4,
        20,
        0,
    )
    assert status["shards"] == {"open": 1, "ended": 0, "waiting": 0}
    assert (status["gaps"], status["parked"]) == (0, 0)
    counts = status["counts"]
    assert counts["read"] == counts["applied"] + counts["superseded"] + counts["filtered"] + counts["parked"] >= 20
    human = world.call("status", world.config, "--human")[1]
    assert "20 items, 4 of 4 segments" in human


def test_status_reports_an_unreachable_target(world: World) -> None:
    world.change(world.postgres.url, "postgresql://me@127.0.0.1:1/none")
    code, out, err = world.call("status", world.config)

    assert (code, out) == (8, "")
    assert "cannot be reached" in err


def test_events_are_json_lines_without_values(world: World) -> None:
    fill(world)
    code, out, err = world.shell.run("run", world.config, "--until", "caught-up")
    events = [orjson.loads(line) for line in out.splitlines()]

    assert (code, err) == (0, "")
    assert [events[0]["event"], events[-1]["event"]] == ["starting", "caught up"]
    assert all({"time", "level", "event"} <= set(e) for e in events)
    assert {"progress", "stopped"} <= {e["event"] for e in events}
    assert SECRET not in out


def test_progress_events_and_status_count_the_same_under_the_same_names(world: World) -> None:
    fill(world)
    _, out, _ = world.shell.run("run", world.config, "--until", "caught-up")
    events = [orjson.loads(line) for line in out.splitlines()]
    last = [e for e in events if e["event"] == "progress"][-1]
    _, text, _ = world.shell.run("status", world.config, "--json")
    status = orjson.loads(text)

    assert (
        {"phase", "shards", "gaps", "parked", "counts", "epoch"}
        <= last.keys() - {"time", "level", "event"}
        <= status.keys()
    )
    same = ("shards", "gaps", "gap_list", "parked", "counts", "epoch")
    assert {name: last[name] for name in same} == {name: status[name] for name in same}
    assert {name: last["backfill"][name] for name in ("segments", "segments_ended", "items")} == {
        name: status["backfill"][name] for name in ("segments", "segments_ended", "items")
    }
    assert last["counts"]["read"] >= 20


def test_a_terminal_shows_a_live_table(world: World) -> None:
    fill(world)
    screen, terminal = os.openpty()
    command = [sys.executable, "-m", "replicator", "run", world.config, "--until", "caught-up"]
    environ = {**os.environ, **world.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environ) as process:
        os.close(terminal)
        shown = b"".join(iter(lambda: _read(screen), b"")).decode()
    os.close(screen)

    assert process.returncode == 0, shown
    assert shown.startswith("replicator ")
    for part in ("phase", "live", "backfill", "20 items, 4 of 4 segments", "lag", "shards", "1 open", "parked", "gaps"):
        assert part in shown
    look_at_command(shown, ["run"])
    assert SECRET not in shown


def _read(screen: int) -> bytes:
    try:
        return os.read(screen, 65536)
    except OSError:  # the terminal was closed
        return b""


def test_human_readable_events_are_lines_of_text(world: World) -> None:
    fill(world)
    code, out, _ = world.shell.run("run", world.config, "--until", "caught-up", "--human")

    assert code == 0
    assert out.startswith("replicator ")
    assert "progress  phase=" in out
    assert SECRET not in out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_cleanly_within_ten_seconds(world: World, number: signal.Signals) -> None:
    fill(world)
    with world.shell.start("run", world.config) as process:
        await_that(lambda: phase(world) == "live", process)
        process.send_signal(number)
        began = time.monotonic()
        out, err = process.communicate(timeout=30)

    assert process.returncode == 0, err
    assert time.monotonic() - began < 10
    assert orjson.loads(out.splitlines()[-1])["event"] == "stopped"
    assert phase(world) == "stopped"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", [("run",), ("resync", "--now")])
def test_a_run_that_is_stopped_before_it_caught_up_does_not_exit_with_0(
    world: World, number: signal.Signals, command: Sequence[str]
) -> None:
    fill(world)
    world.catch_up()
    name, *options = command
    world.postgres.server.stop("immediate")
    with world.shell.start(name, world.config, *options, "--until", "caught-up") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if orjson.loads(line)["event"] == "waiting":
                break
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    world.postgres.server.start()

    assert process.returncode == 7, err
    again = "If the event snapshot started was not logged, the resync has not begun: repeat this command. Otherwise, to"
    then = "To" if name == "run" else again
    assert (
        f"stopped before it had caught up, so the copy is not complete. {then} continue: replicator run CONFIG" in err
    )
    world.catch_up()


def test_a_second_signal_ends_it_at_once_and_the_next_run_loses_nothing(world: World) -> None:
    fill(world, 300)
    with world.shell.start("run", world.config) as process:
        await_that(lambda: phase(world) != "stopped", process)
        world.postgres.server.stop("immediate")  # so that the first signal finds something to wait for
        process.send_signal(signal.SIGTERM)
        time.sleep(0)  # the two are two signals, not one
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
        _, err = process.communicate(timeout=30)
    # One more may come while Python ends, when nothing handles it any more.
    assert process.returncode in (128 + signal.SIGTERM, -signal.SIGTERM, 0), err

    world.postgres.server.start()
    world.catch_up()
    assert world.rows("SELECT count(*) FROM orders") == [(300,)]


def test_a_signal_that_lands_inside_the_handler_of_the_first_ends_it_at_once() -> None:
    """Setting an event takes time, in which the next signal can come."""
    code = """
import signal
from replicator.engine import stop_event
class Interrupted(stop_event.Stop):
    def set(self):
        signal.raise_signal(signal.SIGTERM)
        super().set()
stop_event.Stop = Interrupted
from replicator.cli.run import stop_on_signals
stop_on_signals()
signal.raise_signal(signal.SIGTERM)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, process.stderr[-500:]


def test_a_hook_that_takes_too_long_parks_its_item_and_others_are_stored(world: World) -> None:
    fill(world)
    world.hook("def hook(item):\n    while item['id'] == '7':\n        pass\n    return {'n': 1}\n")
    world.change("target:", "hook_timeout: 0.3\ntarget:")
    world.shell.run("run", world.config, "--until", "caught-up")
    (item,) = world.lines("parked", "list", world.config)

    assert item["item"] == '["7"]'
    assert "hook hook took longer than 0.3 s (hook_timeout) and was interrupted at hooks.py:" in item["reason"]
    assert world.rows("SELECT count(*) FROM orders") == [(19,)]
    world.hook("def hook(item):\n    return {'n': 1}\n")
    world.call("parked", "retry", world.config, "--all")
    assert world.rows("SELECT count(*) FROM orders") == [(20,)]


def test_heartbeats_of_a_run_with_a_slow_hook_leave_the_batch_in_flight_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one batch is stored, the hook makes the next one."""
    monkeypatch.setattr("replicator.engine.making.HEARTBEAT_INTERVAL", 0.05)
    world.db.create_table("orders")
    for n in range(200):
        world.db.put("orders", {"id": f"{n:03}", "n": n})
    world.hook("import time\ndef hook(item):\n    time.sleep(0.005)\n    return {'n': int(item['n'])}\n")

    code, out, err = world.call("run", world.config, "--until", "caught-up")
    assert code == 0, out + err
    assert world.rows("SELECT count(*) FROM orders") == [(200,)]


SLOW_WHILE_BUSY = """
from pathlib import Path
from replicator import Document, documents

@documents
def hook(item):
    while "slow" in item and Path(__file__).with_name("busy").exists():
        pass
    return [Document(id=tag, body={"tag": tag}) for tag in item["tags"]]
"""


def test_documents_of_an_old_image_that_takes_the_hook_too_long_are_removed_later_not_left(world: World) -> None:
    """The machine is busy, say: the hook had made documents of that image before."""
    world.db.create_table("orders")
    world.db.put("orders", {"id": "gone", "tags": ["a"], "slow": 1})
    world.db.put("orders", {"id": "changed", "tags": ["x"], "slow": 1})
    world.hook(SLOW_WHILE_BUSY)
    world.change("target:", "hook_timeout: 0.3\ntarget:")
    world.catch_up()
    assert world.rows("SELECT _id FROM orders ORDER BY 1") == [("a",), ("x",)]
    world.db.delete("orders", {"id": "gone"})
    world.db.put("orders", {"id": "changed", "tags": ["y"]})
    busy = world.folder / "busy"
    busy.touch()
    world.catch_up()
    reasons = {item["reason"] for item in world.lines("parked", "list", world.config)}
    assert all("an earlier image of the item, whose documents must be removed: hook hook took" in r for r in reasons)
    assert world.lines("status", world.config)[0]["parked"] == 2
    busy.unlink()
    assert world.call("parked", "retry", world.config, "--all")[0] == 0
    assert world.rows("SELECT _id FROM orders ORDER BY 1") == [("y",)]


def test_a_hanging_hook_does_not_keep_a_signal_from_ending_the_run(world: World) -> None:
    """The next run delivers its item and everything after it."""
    fill(world)
    begun = world.folder / "begun"
    hangs = f"import time\ndef hook(item):\n    open({str(begun)!r}, 'w').close()\n    time.sleep(3600)\n"
    world.hook(hangs)
    with world.shell.start("run", world.config) as process:
        await_that(begun.exists, process)
        process.terminate()
        _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (0, "")
    world.hook("def hook(item):\n    return {'n': 1}\n")
    world.catch_up("--accept-hook-change")
    assert world.rows("SELECT count(*) FROM orders") == [(20,)]


def test_a_hook_that_kills_the_process_loses_nothing(world: World) -> None:
    """Out of memory, or a crash in a library: what was stored stays, and the next run resumes there."""
    fill(world)
    world.hook("import os\ndef hook(item):\n    os.abort()\n")
    code, _, _ = world.shell.run("run", world.config)
    world.hook("def hook(item):\n    return {'n': 1}\n")
    world.catch_up("--accept-hook-change")

    assert code == -signal.SIGABRT
    assert world.rows("SELECT count(*) FROM orders") == [(20,)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells how much memory a process ever had")
def test_a_run_of_items_of_400_kb_from_many_shards_takes_less_than_256_mb(world: World) -> None:
    """It scans 100 MB and streams them again."""
    world.db.create_table("orders", shards=16)
    for n in range(250):
        world.db.put("orders", {"id": str(n), "note": "x" * 390_000})
    with world.shell.start("run", world.config) as process:
        await_that(lambda: phase(world) == "live", process)
        (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        process.terminate()
        process.communicate(timeout=60)
    assert world.rows("SELECT count(*) FROM orders") == [(250,)]
    assert int(peak) < 256 * 1024


def test_a_run_whose_output_pipe_is_closed_stops_cleanly_and_quietly(world: World) -> None:
    """``replicator run orders.yaml | head``."""
    fill(world)
    with world.shell.start("run", world.config) as process:
        await_that(lambda: phase(world) == "live", process)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        world.db.put("orders", {"id": "one more"})
        assert process.wait(60) == 0
        assert process.stderr.read() == ""
    assert phase(world) == "stopped"


def test_a_later_run_takes_over_and_the_earlier_one_ends_with_exit_code_5(world: World) -> None:
    fill(world)
    with world.shell.start("run", world.config) as first:
        await_that(lambda: phase(world) == "live", first)
        with world.shell.start("run", world.config) as second:
            _, err = first.communicate(timeout=60)
            assert first.returncode == 5
            assert f"It is owned by process {second.pid} on " in err  # who replaced it
            (status,) = world.lines("status", world.config)
            assert status["owner"]["pid"] == second.pid
            assert f"process {second.pid} on " in world.call("status", world.config, "--human")[1]
            await_that(lambda: phase(world) == "live", second)
            second.terminate()
            out, _ = second.communicate(timeout=30)
    assert second.returncode == 0
    (event,) = [e for e in map(orjson.loads, out.splitlines()) if e["event"] == "replacing another run"]
    assert event["replaced"].startswith(f"process {first.pid} on ")
    assert world.rows("SELECT count(*) FROM orders") == [(20,)]


@pytest.mark.parametrize("command", ["run", "resync --now"])
def test_a_second_pipeline_into_the_same_table_is_refused_and_removes_nothing(world: World, command: str) -> None:
    fill(world)
    world.catch_up()
    world.change("pipeline: orders", "pipeline: second")
    code, _, err = world.shell.run(*command.split(), world.config, "--until", "caught-up")

    assert code == 2
    assert "is written by the pipeline orders; two copies in one table would overwrite each other" in err
    assert world.rows("SELECT count(*) FROM orders") == [(20,)]


def test_a_gap_ends_a_run_with_exit_code_3_and_a_resync_repairs_it(world: World) -> None:
    fill(world)
    world.catch_up()
    world.db.disable_stream("orders")
    world.db.delete("orders", {"id": "0"})
    world.db.enable_stream("orders")
    code, _, err = world.shell.run("run", world.config, "--until", "caught-up")

    assert code == 3
    assert "the stream was replaced" in err
    assert "replicator resync CONFIG" in err
    (status,) = world.lines("status", world.config)
    assert (status["phase"], status["gaps"]) == ("gap", 1)
    assert "the stream was replaced" in status["gap_list"][0]["reason"]
    assert "the stream was replaced" in world.call("status", world.config, "--human")[1]

    code, _, err = world.shell.run("resync", world.config, "--now", "--until", "caught-up")
    assert code == 0, err
    (after,) = world.lines("status", world.config)
    assert (after["phase"], after["gaps"], after["epoch"]) == ("stopped", 0, status["epoch"] + 1)
    assert world.rows("SELECT count(*) FROM orders") == [(19,)]


def test_a_changed_hook_needs_a_decision(world: World) -> None:
    fill(world)
    world.hook("def hook(item):\n    return {'n': 1}\n")
    world.catch_up()
    world.hook("def hook(item):\n    return {'n': 2}\n")
    code, _, err = world.shell.run("run", world.config, "--until", "caught-up")

    assert code == 2
    assert "the hook changed since the last run" in err
    world.catch_up("--accept-hook-change")
    world.db.put("orders", {"id": "0"})
    world.catch_up()
    assert world.rows("SELECT count(*), document->>'n' FROM orders GROUP BY 2 ORDER BY 2") == [(19, "1"), (1, "2")]

    code, _, err = world.shell.run("resync", world.config, "--now", "--until", "caught-up")
    assert code == 0, err
    assert world.rows("SELECT count(*), document->>'n' FROM orders GROUP BY 2") == [(20, "2")]


def test_a_run_that_parks_items_catches_up_with_exit_code_6_and_so_does_status(world: World) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "good", "total": 1})
    world.db.put("orders", {"id": "bad"})
    world.hook("def hook(item):\n    return {'total': item['total']}\n")
    code, out, err = world.shell.run("run", world.config, "--until", "caught-up")

    assert code == 6
    assert "caught up, except for 1 item(s) that are parked because the hook or the target refused them" in err
    events = [orjson.loads(line) for line in out.splitlines() if '"event":' in line]
    counts = [e["changes"] for e in events if e["event"] == "parked"]
    assert counts
    assert counts == sorted(set(counts)), "each reason with its count so far"
    assert counts[-1] <= 2, "scanned, and streamed"
    assert "most changes in this run were parked" in out
    code, _, err = world.shell.run("run", world.config, "--until", "caught-up")
    assert (code, "except for 1 item(s) that are parked" in err) == (6, True), "parked by an earlier run"
    assert world.call("status", world.config)[0] == 7
    assert world.call("status", world.config, "--no-exit-code")[0] == 0


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (Progress("live"), 0),
        (Progress("backfill"), 0),
        (Progress("gap", parked=1), 3),
        (Progress("stopped", parked=1), 7),
        (Progress("live", waiting_for="the target cannot be reached"), 7),
        (Progress("live", parked=1), 6),
    ],
)
def test_status_exits_with_the_most_severe_problem(found: Progress, code: int) -> None:
    assert health_code(as_values(found)) == code
