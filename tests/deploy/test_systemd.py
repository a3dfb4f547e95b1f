"""deploy/replicator@.service: verified by systemd, and its command carried out as the unit says."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.cli.command_line import World
from tests.deploy.page import blocks, table
from tests.deploy.runs import await_live, dynamodb_config

UNIT = Path(__file__).parents[2] / "deploy" / "replicator@.service"
PROGRAMS = Path(sys.executable).parent
LATER = {"RestartSteps", "RestartMaxDelaySec"}  # systemd 254


def settings(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def analyze(unit: Path, *command: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    assert program, "install Debian's package systemd"
    environ = {"SYSTEMD_UNIT_PATH": f"{unit.parent}:", "PATH": "/usr/bin:/bin"}
    return subprocess.run([program, *command, unit], capture_output=True, text=True, env=environ)


def installed(folder: Path, instance: str) -> Path:
    """The unit with this machine's ``replicator``, because systemd looks whether it exists."""
    unit = folder / f"replicator@{instance}.service"
    unit.write_text(UNIT.read_text().replace("/opt/replicator/bin", str(PROGRAMS)))
    return unit


def complaints(unit: Path) -> list[str]:
    """What systemd says about the unit, except that an older one does not know what the unit says it does not."""
    said = analyze(unit, "verify", "--man=no").stderr.splitlines()
    return [line for line in said if not any(f"Unknown key '{key}'" in line for key in LATER)]


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    unit = installed(tmp_path, "orders")

    assert complaints(unit) == []
    unit.write_text(unit.read_text().replace("UMask=0077", "UMask=nonsense\nUMusk=0077"))
    assert len(complaints(unit)) >= 2, "or the claim could not fail"


def test_a_unit_for_all_configs_is_understood_too(tmp_path: Path) -> None:
    (text,) = blocks("ini")
    place, _, lines = text.partition("\n")
    folder = tmp_path / Path(place.removeprefix("# ")).parent.name
    folder.mkdir()
    (folder / "command.conf").write_text(lines.replace("/opt/replicator/bin", str(PROGRAMS)))
    unit = installed(tmp_path, "all")
    shown = analyze(unit, "verify", "--man=no")

    assert Path(place).parent.name == f"{unit.name}.d"
    assert complaints(unit) == [], shown.stderr
    (command,) = re.findall(r"^ExecStart=(.+)$", lines, re.MULTILINE)
    assert shlex.split(command)[:2] == ["/bin/sh", "-c"]


def test_the_process_can_reach_little_of_the_machine(tmp_path: Path) -> None:
    rated = analyze(installed(tmp_path, "orders"), "security", "--offline=yes", "--no-pager", "--threshold=20")

    assert rated.returncode == 0, rated.stdout


def test_restarts_are_those_of_the_page() -> None:
    restarts = {int(code): answer.partition(",")[0] for code, answer, _ in table("## Exit codes and restarts")}
    (never,) = settings("RestartPreventExitStatus")

    assert settings("Restart") == ["always"]
    assert {code for code, answer in restarts.items() if answer == "no"} == {int(code) for code in never.split()}
    assert settings("StartLimitIntervalSec") == ["0"]


def test_its_command_copies_a_table_and_stops_on_sigterm(world: World, tmp_path: Path) -> None:
    (tmp_path / "orders.yaml").write_text(dynamodb_config(world))
    (command,) = settings("ExecStart")
    command = command.replace("/opt/replicator/bin", str(PROGRAMS)).replace("/etc/replicator", str(tmp_path))
    with subprocess.Popen(
        shlex.split(command.replace("%i", "orders")), env=dict(world.environ), stdout=subprocess.PIPE, text=True
    ) as process:
        await_live(process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)

    assert process.returncode == 0
    assert [item["id"] for item in world.db.items("copy")] == ["1"]
