"""A real run is asked over HTTP."""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path

import orjson

from replicator.monitoring.metrics import Metrics, Moment
from replicator.pipeline.details import Details
from replicator.pipeline.progress import Progress
from replicator.testing.servers.programs import free_port
from tests.cli.command_line import World
from tests.monitoring.client import get, monitored
from tests.monitoring.phases import monitor, stories
from tests.security.canary import VALUE


def fill(world: World, items: int = 20) -> None:
    world.db.create_table("orders")
    for n in range(items):
        world.db.put("orders", {"id": str(n)})


def metrics(text: str) -> dict[str, float]:
    """The samples of the text format, by their names and labels."""
    lines = [line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def types(text: str) -> set[tuple[str, str]]:
    """Each metric of the text format with its type."""
    return set(re.findall(r"^# TYPE (replicator_\w+) (\w+)$", text, re.MULTILINE))


def test_a_live_run_answers_all_routes(world: World) -> None:
    fill(world)
    with monitored(world) as run:
        run.live()
        for path, kind in {
            "/": "text/html; charset=utf-8",
            "/fragment": "text/html; charset=utf-8",
            "/metrics": "text/plain; version=0.0.4; charset=utf-8",
            "/healthz": "application/json",
            "/readyz": "application/json",
            "/status.json": "application/json",
            "/page.css": "text/css; charset=utf-8",
            "/page.js": "text/javascript; charset=utf-8",
            "/icon.svg": "image/svg+xml",
        }.items():
            response = run.get(path)
            assert (response.status, response.headers["content-type"]) == (200, kind), path
            assert VALUE not in response.text
        samples = metrics(run.get("/metrics").text)
        counts = run.get("/status.json").json["counts"]
        for fate in ("applied", "superseded", "filtered", "parked"):
            assert samples[f'replicator_changes_total{{fate="{fate}",pipeline="orders"}}'] == counts[fate]
        assert samples['replicator_phase{phase="live",pipeline="orders"}'] == 1
        assert samples['replicator_healthy{pipeline="orders"}'] == 1
        assert samples['replicator_batch_changes_sum{pipeline="orders"}'] == counts["read"] >= 20
        assert samples['replicator_read_units_total{pipeline="orders"}'] > 0
        assert samples['replicator_source_requests_total{operation="Scan",outcome="ok",pipeline="orders"}'] >= 4
        assert run.get("/healthz").json == {"ok": True, "reason": "progress is made"}
        assert re.fullmatch("live, lag .*", run.get("/readyz").json["reason"])


def test_pages_of_shards_are_counted_by_their_reader() -> None:
    counted = Metrics("orders", "postgres", lambda: Moment(Progress("live"), Details(), True, 0.0))
    for reader in ("own", "shared", "shared"):
        counted.paged(reader)
    samples = metrics(counted.text().decode())
    assert samples['replicator_shard_pages_total{pipeline="orders",reader="shared"}'] == 2
    assert samples['replicator_shard_pages_total{pipeline="orders",reader="own"}'] == 1


def test_every_metric_is_documented_and_no_other(world: World) -> None:
    text = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    documented = {
        (name, kind)
        for row, kind in re.findall(r"^\| (`replicator_.*?) \| (\w+) \|", text, re.MULTILINE)
        for name in re.findall(r"`(replicator_\w+)`", row)
    }
    world.change("target:", "verify: {every: 1h, read_units: 1000}\ntarget:")
    fill(world)
    with monitored(world) as run:
        run.live()
        run.eventually(lambda: run.get("/status.json").json["verified"], "the run verifies its copy")
        exported = types(run.get("/metrics").text)
    of_workers = types(monitor(stories()["workers"]).metrics.text().decode())

    assert {metric for metric in exported if "worker" in metric[0]} == set()
    of_histories = types(monitor(stories()["history"]).metrics.text().decode())
    assert exported | of_workers | of_histories == documented


def test_status_json_has_the_fields_and_values_of_status(world: World) -> None:
    fill(world)
    with monitored(world) as run:
        run.live()
        run.eventually(lambda: world.lines("status", world.config)[0]["phase"] == "live", "the heartbeat is stored")
        served = run.get("/status.json").json
        (printed,) = world.lines("status", world.config)

    assert served.keys() == printed.keys()
    for values in (served, printed):
        for rate in ("lag_seconds", "retention_left_hours", "records_per_second"):
            del values[rate]
        del values["backfill"]["items_per_second"]
    assert served == printed


def test_the_config_alone_makes_a_run_serve(world: World) -> None:
    fill(world)
    port = free_port()
    world.change("target:", f"monitoring: {{listen: '127.0.0.1:{port}'}}\ntarget:")
    with world.shell.start("run", world.config) as process:
        assert process.stdout is not None
        events = (orjson.loads(line) for line in process.stdout)
        url = next(event["url"] for event in events if event["event"] == "monitoring")
        assert next(event for event in events if event.get("phase") == "live")
        assert get(port, "/readyz").status == 200
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)

    assert (process.returncode, err) == (0, "")
    assert url == f"http://127.0.0.1:{port}/"


def test_check_says_that_the_port_is_in_use_by_whatever_it_is(world: World) -> None:
    fill(world)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        world.change("target:", f"monitoring: {{listen: '{address}'}}\ntarget:")
        code, out, err = world.shell.run("check", world.config)
    assert code == 0, out + err
    assert (
        f"{address} is in use: by this pipeline's run, if that is up; if not, a run would end with exit code 2" in out
    )
    assert f"http://{address}/" not in out


def test_a_port_in_use_is_said_before_anything_is_read(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, out, err = world.shell.run("run", world.config, "--listen", f"127.0.0.1:{taken.getsockname()[1]}")

    assert code == 2
    assert "is in use by another process, perhaps another run: give each pipeline its own port" in err
    assert "snapshot started" not in out
