"""deploy/Containerfile: linted, and carried out in a plain folder, because a test has no container runtime."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from replicator.testing.servers.programs import free_port
from tests.cli.command_line import World
from tests.deploy.runs import await_live, dynamodb_config
from tests.test_wheel import OFFLINE

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "Containerfile"

pytestmark = pytest.mark.xdist_group("wheel")


def instructions() -> list[tuple[str, str]]:
    """(INSTRUCTION, rest), with continued lines joined and comments left out."""
    lines = [line for line in FILE.read_text().splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def last(instruction: str) -> str:
    return [rest for name, rest in instructions() if name == instruction][-1]


@dataclass
class Folder:
    """A folder instead of a container's root: absolute paths of the file are inside of it."""

    root: Path
    here: Path = field(default_factory=Path)
    environ: dict[str, str] = field(default_factory=dict)

    def inside(self, text: str) -> str:
        return re.sub(r"(?<![\w.])/(opt|var|build|etc)/", rf"{self.root}/\1/", text)

    def carry_out(self, name: str, rest: str) -> None:
        """One instruction. The rest of them are not about files, or the tests below read them."""
        match name:
            case "WORKDIR":
                self.here = Path(self.inside(f"{rest}/"))
                self.here.mkdir(parents=True, exist_ok=True)
            case "COPY" if not rest.startswith("--from"):
                self.copy(shlex.split(rest))
            case "ENV":
                pairs = (pair.partition("=") for pair in shlex.split(rest) if not pair.startswith("PIP_NO_CACHE"))
                self.environ |= {name: self.inside(value) for name, _, value in pairs}
            case "RUN":
                self.run(self.inside(rest))

    def copy(self, paths: list[str]) -> None:
        *sources, destination = paths
        for source in sources:
            place = self.here / destination / (source.split("/")[-1] if destination.endswith("/") else "")
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, place)

    def run(self, command: str) -> None:
        """As a container's shell would; chown needs root, and compiling takes long and changes nothing here."""
        environ = {
            **os.environ,
            **self.environ,
            "PIP_NO_COMPILE": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        given = command if os.geteuid() == 0 else command.replace("chown ", ": ")
        done = subprocess.run(["sh", "-ec", given], cwd=self.here, env=environ, capture_output=True, text=True)
        output = done.stdout + done.stderr
        if done.returncode and any(sign in output for sign in OFFLINE) and not os.environ.get("CI"):
            pytest.skip(f"NOT TESTED: packages cannot be downloaded: {output[-500:]}")
        assert done.returncode == 0, output[-3000:]

    def files(self) -> set[Path]:
        return {path for path in self.root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder(tmp_path_factory.mktemp("image"))
    for name, rest in instructions():
        folder.carry_out(name, rest)
    return folder


def test_the_linter_has_nothing_to_say() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, FILE], capture_output=True, text=True)

    assert (done.stdout, done.returncode) == ("", 0)


def test_it_runs_without_root_and_without_a_shell_that_would_keep_signals() -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last("USER"))
    assert json.loads(last("ENTRYPOINT")) == ["replicator"]
    assert isinstance(json.loads(last("CMD")), list)


def test_no_start_compiles_a_module_again(built: Folder) -> None:
    assert "PYTHONDONTWRITEBYTECODE=1" in last("ENV"), "so what is not compiled in the image never is"
    for package in ("replicator", "connectors", "msgspec"):
        (cache,) = built.root.glob(f"opt/replicator/lib/python*/site-packages/{package}/__pycache__")
        assert any(cache.glob("__init__.*.pyc"))


def test_everything_that_is_copied_is_sent_to_the_builder() -> None:
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [shlex.split(rest)[:-1] for name, rest in instructions() if name == "COPY" and "--from" not in rest]

    assert sent[0] == "*"
    for source in (source for sources in copied for source in sources):
        assert f"!{source.split('/')[0]}" in sent, source


def test_what_is_installed_to_build_is_pinned_with_hashes() -> None:
    installs = [
        part for name, rest in instructions() if name == "RUN" for part in rest.split("&&") if "install" in part
    ]

    assert installs
    for step in installs:
        assert "--require-hashes" in step or "--no-index" in step, step


@pytest.fixture
def environ(built: Folder, world: World) -> dict[str, str]:
    return {**built.environ, **world.environ, "PATH": built.environ["PATH"].replace("$PATH", os.environ["PATH"])}


@pytest.fixture
def running(built: Folder, world: World, environ: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The file's ENTRYPOINT and CMD, once the copy is live, and the port of its monitoring."""
    port, section = free_port(), "checkpoints: {type: sqlite, path: /var/lib/replicator/orders.checkpoints}"
    config = dynamodb_config(world, built.inside(section), f"monitoring: {{listen: 127.0.0.1:{port}}}")
    (built.here / "orders.yaml").write_text(config)
    command = [*json.loads(last("ENTRYPOINT")), *json.loads(last("CMD")), "--json"]
    program = shutil.which(command[0], path=environ["PATH"])
    assert program == str(built.root / "opt/replicator/bin/replicator")
    with subprocess.Popen(
        [program, *command[1:]], cwd=built.here, env=environ, stdout=subprocess.PIPE, text=True
    ) as process:
        await_live(process)
        yield process, port
        process.kill()


def test_the_image_copies_a_table_is_healthy_and_stops_on_sigterm(
    built: Folder, world: World, environ: dict[str, str], request: pytest.FixtureRequest
) -> None:
    before = built.files()
    process, port = request.getfixturevalue("running")
    check = json.loads(last("HEALTHCHECK").partition("CMD ")[2].replace("9464", str(port)))

    assert [item["id"] for item in world.db.items("copy")] == ["1"]
    assert subprocess.run(check, env=environ).returncode == 0
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert subprocess.run(check, env=environ, capture_output=True).returncode != 0
    written = {str(path.relative_to(built.root)) for path in built.files() - before}
    assert written - {"etc/replicator/orders.yaml"} == {
        f"var/lib/replicator/orders.checkpoints{end}" for end in ("", ".lock")
    }, "and nothing else, so the root may be read-only"
