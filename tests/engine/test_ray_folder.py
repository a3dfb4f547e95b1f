"""The folder of a run's own Ray. With real Ray: tests/end_to_end/test_ray.py."""

from __future__ import annotations

import contextlib
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.engine.ray.folder import LOCK, own_folder, remove_left_over

RUN = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from replicator.engine.ray.folder import own_folder
with own_folder() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@contextlib.contextmanager
def another_run(temporary: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process, and the folder that it has made."""
    command = [sys.executable, "-c", RUN, str(temporary)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip()).parent


def test_a_runs_folder_is_its_users_alone_and_is_gone_when_it_ends(temporary: Path) -> None:
    with own_folder() as folder:
        assert stat.S_IMODE(Path(folder).parent.stat().st_mode) == 0o700, "Ray lets all users into the one within"
        Path(folder).mkdir()
        assert Path(folder).parent.parent == temporary
    assert list(temporary.iterdir()) == []


def test_the_folder_of_a_run_that_was_killed_is_removed_by_the_next_one_and_that_of_one_that_is_up_is_not(
    temporary: Path,
) -> None:
    with another_run(temporary) as (up, folder), another_run(temporary) as (killed, left):
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        (left / "r").mkdir()
        (left / "r" / "raylet.out").write_text("a log")
        with own_folder() as own:
            assert {path.name for path in temporary.iterdir()} == {folder.name, Path(own).parent.name}
        assert folder.exists()
        up.communicate()
    assert list(temporary.iterdir()) == []


def test_folders_of_other_programs_and_those_that_others_can_write_to_stay(temporary: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    names = ("ray-program", "ray-shared", "elsewhere")
    for name in names:
        (temporary / name).mkdir(mode=0o700)
    (temporary / "ray-program" / "data").write_text("of another program")
    for name in ("ray-shared", "elsewhere"):
        (temporary / name / LOCK).write_text("")
    (temporary / "ray-shared").chmod(0o777)
    (temporary / "ray-link").symlink_to(elsewhere)
    (temporary / "ray-file").write_text("")
    remove_left_over()
    assert {path.name for path in temporary.iterdir()} == {*names, "ray-link", "ray-file"}
    assert (elsewhere / LOCK).exists()
