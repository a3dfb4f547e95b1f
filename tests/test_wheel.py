"""The wheel, installed into an empty environment of each supported Python: it has what users need, and it works."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator import __version__
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import UnsignedClient, served

ROOT = Path(__file__).parents[1]
SUPPORTED = [f"3.{minor}" for minor in range(11, 15)]
RUNNING = "{}.{}".format(*sys.version_info)
EXTRAS = "postgres,elasticsearch,opensearch,dynamodb,webhook"
CONFIG = """\
pipeline: orders
source: {{table: orders, region: us-east-1, endpoint_url: "{endpoint}"}}
target: {{type: dynamodb, region: us-east-1, endpoint_url: "{endpoint}", create: true, table: orders-copy}}
"""
OFFLINE = ("NewConnectionError", "ConnectTimeoutError", "Temporary failure in name resolution", "from versions: none")

pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("wheel")]


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run outside of this environment and its working directory."""
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run([*map(str, command)], cwd=cwd, env=outside | (env or {}), capture_output=True, text=True)


def with_packages(*command: str | Path, cwd: Path) -> None:
    """Run a command that downloads packages. Skips where there is no package index, except in CI."""
    done = run(*command, cwd=cwd)
    output = done.stdout + done.stderr
    if done.returncode != 0 and any(sign in output for sign in OFFLINE) and not os.environ.get("CI"):
        pytest.skip(f"NOT TESTED: packages cannot be downloaded: {output[-500:]}")
    assert done.returncode == 0, output[-5000:]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    with_packages(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def python(version: str) -> Path | None:
    """An interpreter of that version that runs: this one, one on the PATH, or one of pyenv's."""
    if version == RUNNING:
        return Path(sys.executable)
    on_path = shutil.which(f"python{version}")
    of_pyenv = (Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python")
    for path in ([Path(on_path)] if on_path else []) + sorted(of_pyenv):
        reported = subprocess.run(
            [path, "-c", "import sys; print(*sys.version_info[:2], sep='.')"], capture_output=True
        )
        if reported.stdout.decode().strip() == version:  # a shim of pyenv exists, but may not run
            return path
    return None


@pytest.fixture(params=SUPPORTED)
def environment(request: pytest.FixtureRequest, wheel: Path, tmp_path: Path) -> Path:
    """The bin folder of an environment with nothing but the wheel and its dependencies."""
    interpreter = python(request.param)
    if interpreter is None:
        pytest.skip(f"NOT TESTED: Python {request.param} is not installed")
    run(interpreter, "-m", "venv", tmp_path / "env", cwd=tmp_path).check_returncode()
    bin = tmp_path / "env" / "bin"
    with_packages(
        bin / "python", "-m", "pip", "install", "-q", f"replicator[{EXTRAS}] @ {wheel.as_uri()}", cwd=tmp_path
    )
    return bin


def test_the_running_python_is_supported_and_never_skipped() -> None:
    assert RUNNING in SUPPORTED
    assert python(RUNNING) == Path(sys.executable)


def test_the_wheel_has_the_packages_and_nothing_for_development(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    assert {name.partition("/")[0] for name in names} == {
        "replicator",
        "connectors",
        f"replicator-{__version__}.dist-info",
    }
    assert {"replicator/py.typed", "connectors/py.typed"} <= set(names)
    pages = {f"replicator/monitoring/pages/{path.name}" for path in (ROOT / "replicator/monitoring/pages").iterdir()}
    assert {"replicator/monitoring/pages/page.css"} <= pages <= set(names)
    shipped = {name for name in names if name.startswith("replicator/testing/servers/")}
    assert {Path(name).stem for name in shipped} == {"__init__", "programs", "postgres", "ministack"}


@pytest.fixture
def endpoint() -> Iterator[str]:
    db = DynamoDB(now=time.time, random=random.Random(1))
    db.create_table("orders")
    for n in range(20):
        db.put("orders", {"id": f"order#{n}", "total": n})
    with served(db) as url:
        yield url


def test_an_installed_wheel_checks_and_copies_a_table(environment: Path, endpoint: str, tmp_path: Path) -> None:
    credentials = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}
    (tmp_path / "orders.yaml").write_text(CONFIG.format(endpoint=endpoint))

    def replicator(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run(environment / "replicator", *arguments, cwd=tmp_path, env=credentials)

    version = replicator("--version")
    assert (version.returncode, version.stdout) == (0, f"{__version__}\n"), version.stderr
    demo = run(environment / "python", "-c", "import replicator.operations.demo", cwd=tmp_path)
    assert demo.returncode == 0, demo.stderr
    check = replicator("check", "orders.yaml", "--json")
    assert check.returncode == 0, check.stdout + check.stderr
    copied = replicator("run", "orders.yaml", "--until", "caught-up", "--json")
    assert copied.returncode == 0, copied.stdout + copied.stderr
    copies = json.loads(UnsignedClient(endpoint).call("Scan", {"TableName": "orders-copy"}))["Items"]
    assert {item["id"]["S"] for item in copies} == {f"order#{n}" for n in range(20)}
