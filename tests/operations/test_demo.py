"""The demo ends with no differences, would notice one, and leaves nothing behind."""

from __future__ import annotations

import re
import signal
import tempfile
from decimal import Decimal
from itertools import takewhile
from pathlib import Path

import pytest

from replicator.errors import ConfigError
from replicator.operations import demo as demos
from replicator.testing.servers import ministack as ministacks
from replicator.testing.servers.ministack import MiniStack
from tests.cli.command_line import Shell, ministack

LISTENERS = Path("/proc/net/tcp")


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    for _ in ministack():
        pass


def leftovers() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("replicator-ministack-*")) | set(
        Path(tempfile.gettempdir()).glob("replicator-demo-*")
    )


def test_the_demo_ends_with_no_differences_and_leaves_nothing_behind() -> None:
    before = leftovers()
    code, out, err = Shell().run("demo", "--items", "3000")

    assert code == 0, err
    assert "] 3,000 items loaded" in out
    assert re.search(r"\] [\d,]+ puts, updates and deletes written so far, [\d,]+ of them during the backfill", out)
    assert re.search(r"\] verified [\d,]+ items against the rows in Postgres: 0 differences", out)
    assert out.endswith("To explore both sides, keep the servers running: replicator demo --keep\n")
    assert "psql" not in out, "the server is stopped by now"
    assert leftovers() <= before


def test_the_demo_keeps_its_servers_until_it_is_interrupted_and_says_how_to_look_at_them() -> None:
    before = leftovers()
    with Shell().start("demo", "--items", "100", "--keep") as process:
        assert process.stdout is not None
        lines = list(takewhile(lambda line: not line.startswith("Press Ctrl-C"), process.stdout))
        assert leftovers() > before
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert "psql postgresql://" in "".join(lines)
    assert leftovers() <= before


def test_a_difference_is_counted_on_either_side() -> None:
    items = {"1": {"id": "1", "n": Decimal("1.0")}, "2": {"id": "2"}, "3": {"id": "3", "n": Decimal(1)}}
    rows = {"1": {"id": "1", "n": Decimal(1)}, "3": {"id": "3", "n": Decimal(2)}, "4": {"id": "4"}}

    assert demos.differences(items, items) == 0
    assert demos.differences(items, rows) == 3  # 2 is missing, 3 differs, 4 should not be there


def test_a_demo_with_differences_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from replicator.cli import main

    monkeypatch.setattr(demos.Demo, "run", lambda self, keep: 3)
    assert CliRunner().invoke(main, ["demo"]).exit_code == 1


def test_without_ministack_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ministacks, "ENVIRONMENT", ".venv-that-is-not-there")
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ConfigError, match=r"Run: make install, or: python3 -m venv .*pip install ministack"):
        ministacks.program()


@pytest.mark.skipif(not LISTENERS.exists(), reason="only Linux tells who listens where")
def test_ministack_listens_on_loopback_and_ends_with_its_block() -> None:
    with MiniStack() as server:
        assert server.url.startswith("http://127.0.0.1:")
        process = server._process
        assert process is not None
        assert process.poll() is None
        listening = {line.split()[1] for line in LISTENERS.read_text().splitlines()[1:]}
        assert f"0100007F:{server.port:04X}" in listening
        assert f"00000000:{server.port:04X}" not in listening
    assert process.poll() is not None
