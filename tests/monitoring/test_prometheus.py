"""The alert rules and the dashboard, with a real Prometheus that scrapes a real run."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from replicator.testing.proxy import Proxy
from replicator.testing.servers.programs import ServerMissing
from tests.cli.command_line import World
from tests.connectors.postgres.history_kit import keep_history
from tests.monitoring.client import monitored
from tests.monitoring.prometheus import FOLDER, program, scraping
from tests.monitoring.test_run import fill
from tests.servers.starting import not_tested

ALERTS = [rule["alert"] for rule in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]]
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    """Without Prometheus a loud skip, and a failure where CI promises it."""
    try:
        program("prometheus"), program("promtool")
    except ServerMissing as e:
        not_tested(str(e))


def promtool(*arguments: str, folder: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program("promtool"), *arguments], cwd=folder, capture_output=True, text=True)


def test_the_rules_and_the_example_are_valid() -> None:
    for what, file in (("rules", "alerts.yml"), ("config", "prometheus.yml")):
        checked = promtool("check", what, file)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_fires_when_it_should_and_not_before() -> None:
    tested = promtool("test", "rules", "alerts_test.yml")
    cases = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
    firing = {case["alertname"] for test in cases for case in test["alert_rule_test"] if case.get("exp_alerts")}
    silent = {case["alertname"] for test in cases for case in test["alert_rule_test"] if not case.get("exp_alerts")}

    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert firing == silent == set(ALERTS)


def test_a_rule_that_never_fires_would_be_noticed(tmp_path: Path) -> None:
    rules = (FOLDER / "alerts.yml").read_text()
    (tmp_path / "alerts.yml").write_text(rules.replace("replicator_parked_items > 0", "replicator_parked_item > 0"))
    (tmp_path / "alerts_test.yml").write_text((FOLDER / "alerts_test.yml").read_text())
    tested = promtool("test", "rules", "alerts_test.yml", folder=tmp_path)

    assert tested.returncode == 1
    assert "ReplicatorItemsParked" in tested.stdout + tested.stderr


def queries() -> list[str]:
    """Every query of the dashboard, as Grafana would send it."""
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [e.replace("$pipeline", ".*").replace("$__rate_interval", "1m") for e in expressions]


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"\breplicator_\w+", expression))


@pytest.fixture
def proxied(world: World) -> Iterator[tuple[World, Proxy]]:
    """A run that verifies and keeps a history, behind a proxy before Postgres, and whose hook rejects one item."""
    port = int(re.findall(r":(\d+)/", world.postgres.url)[0])
    with Proxy("127.0.0.1", port) as proxy:
        keep_history(world)
        world.change(f":{port}/", f":{proxy.port}/")
        world.change("target:", "verify: {every: 1h, read_units: 1000}\ntarget:")
        world.hook(
            "def hook(item):\n    if item['id'] == '7':\n        raise ValueError('no')\n    return {'id': '1'}\n"
        )
        fill(world)
        yield world, proxy


def test_prometheus_scrapes_a_run_every_panel_has_data_and_what_goes_wrong_fires(
    proxied: tuple[World, Proxy], tmp_path: Path
) -> None:
    world, proxy = proxied
    with monitored(world) as run, scraping(run.port, tmp_path) as prometheus:
        run.live()
        prometheus.eventually(lambda: all(prometheus.query(q) for q in queries()), "every panel has data")
        exported = set(prometheus.api("label/__name__/values"))
        assert {m for q in [*queries(), *expressions()] for m in metrics_in(q)} <= exported
        prometheus.eventually(lambda: "ReplicatorItemsParked" in prometheus.firing(), "the parked item is noticed")
        assert prometheus.firing() == {"ReplicatorItemsParked"}

        proxy.swallow()
        began = time.monotonic()
        run.eventually(lambda: run.get("/healthz").status == 503, "the stalled run is unhealthy")
        assert time.monotonic() - began < 30
        assert re.match(r"no progress for \d+ s", run.get("/healthz").json["reason"])
        assert run.get("/readyz").status == 503
        prometheus.eventually(lambda: "ReplicatorStalled" in prometheus.firing(), "the stalled run is noticed")

        proxy.heal()
        proxy.cut()
        run.eventually(lambda: run.get("/healthz").status == 200, "the run is healthy again")
        prometheus.eventually(lambda: "ReplicatorStalled" not in prometheus.firing(), "that is noticed")

        run.process.terminate()
        run.process.communicate(timeout=60)
        prometheus.eventually(lambda: "ReplicatorDown" in prometheus.firing(), "the run that is gone is noticed")


def expressions() -> list[str]:
    groups: Any = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]
