"""A real Prometheus that scrapes one run every second."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replicator.testing.servers.programs import ServerMissing, await_ready, free_port
from tests.monitoring.client import get

PATIENCE = 60.0
FOLDER = Path(__file__).parents[2] / "docs" / "monitoring"
_CONFIG = """\
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
rule_files: [alerts.yml]
scrape_configs:
  - job_name: replicator
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


def program(name: str = "prometheus") -> str:
    path = shutil.which(name)
    if path is None:
        raise ServerMissing(f"alert rules and the dashboard need {name}: install Debian's package prometheus")
    return path


@dataclass(frozen=True)
class Prometheus:
    port: int

    def api(self, path: str, **parameters: str) -> Any:
        response = get(self.port, f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        assert response.status == 200, response.text
        return response.json["data"]

    def query(self, expression: str) -> list[Mapping[str, Any]]:
        """The series of an instant query. A query that Prometheus rejects is an assertion error."""
        result: list[Mapping[str, Any]] = self.api("query", query=expression)["result"]
        return result

    def firing(self) -> set[str]:
        alerts = self.api("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def eventually(self, holds: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < deadline, f"{what}: not within {PATIENCE:.0f} s; firing: {self.firing()}"
            time.sleep(0.2)


def impatient(rules: str) -> str:
    """The rules, with seconds instead of minutes, so that a test need not wait for them."""
    changed = re.sub(r"\[\d+m\]", "[4s]", re.sub(r"^( +for:) .*$", r"\1 0s", rules, flags=re.MULTILINE))
    assert changed != rules
    return changed


@contextmanager
def scraping(port: int, folder: Path) -> Iterator[Prometheus]:
    (folder / "prometheus.yml").write_text(_CONFIG.format(port=port))
    (folder / "alerts.yml").write_text(impatient((FOLDER / "alerts.yml").read_text()))
    own, log = free_port(), folder / "prometheus.log"
    options = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [program(), *options, f"--web.listen-address=127.0.0.1:{own}"], cwd=folder, stdout=out, stderr=out
        )
    try:
        await_ready("Prometheus", process, lambda: _ready(own), log.read_text, within=PATIENCE)
        yield Prometheus(own)
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)


def _ready(port: int) -> bool:
    try:
        return get(port, "/-/ready").status == 200
    except OSError:
        return False
