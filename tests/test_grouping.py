"""Tests that share a server run in one process, so that it is started once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_tests_of_one_file_are_kept_together() -> None:
    """A pytest in which xdist cannot name the groups would spread them, and start servers in every process."""
    command = ("-m", "pytest", "-v", "-p", "no:cacheprovider", "-n", "1", "--dist", "loadgroup", "tests/test_marks.py")
    done = subprocess.run([sys.executable, *command], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "@tests/test_marks.py" in done.stdout, done.stdout
