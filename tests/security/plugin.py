"""Checks across the whole test suite.

It calls AWS for what the documents permit, and for all of that. Nothing that is printed or logged shows a secret, or a
value that nobody asked for.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.security.policy import documented, permission
from tests.security.process import aws_calls
from tests.security.process.aws_calls import Note

_PROCESS = Path(__file__).parent / "process"
_ELSEWHERE = (
    *("es:", "aoss:"),  # no test reaches Amazon; test_permissions reads the methods in the source
    *("kms:", "s3:PutObjectAcl", "s3:ListBucket"),  # what DynamoDB and S3 ask for besides, as their documents say
)
_BY_OTHERS = (
    "arn:aws:s3:::LAKE"  # called by the client for Delta Lake, which is no Python; its documents say what it calls
)
_problems = pytest.StashKey[list[str]]()

aws_calls.install()  # now: the plugins that come next import what it wraps


def pytest_configure(config: pytest.Config) -> None:
    """Subprocesses and xdist workers inherit where to record calls."""
    config.stash[_problems] = []
    if aws_calls.FOLDER not in os.environ:
        os.environ[aws_calls.FOLDER] = tempfile.mkdtemp(prefix="replicator-calls-")
        paths = [str(_PROCESS), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(aws_calls.FOLDER), ignore_errors=True))


@pytest.fixture(autouse=True, scope="session")
def canaries() -> Iterator[None]:
    """Everything printed and logged is scanned; see ``canary``."""
    from tests.security import canary  # imports what the notes of calls wrap

    yield from canary.install()


def nothing_was_shown() -> None:
    canary = sys.modules.get("tests.security.canary")
    found = canary.taken() if canary is not None else []
    if found:
        pytest.fail("\n".join(found), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    yield
    nothing_was_shown()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    yield
    nothing_was_shown()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput"):
        return  # the controller looks at what all workers noted
    found = session.config.stash[_problems]
    noted = aws_calls.noted(Path(os.environ[aws_calls.FOLDER]))
    found += unlisted(noted)
    if _is_whole(session):
        found += never_made(noted)
    if found:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if problems := config.stash[_problems]:
        terminalreporter.section("calls to AWS and docs/permissions.md")
        terminalreporter.write_line("\n".join(problems), red=True)


def unlisted(noted: Mapping[Note, str]) -> Iterator[str]:
    """A sentence for each call that the documented policies do not permit."""
    permitted = documented()
    for note, test in sorted(noted.items()):
        if permission(note) not in permitted:
            yield f"FAILED: {permission(note)} is called (in {test}), and docs/permissions.md does not list it"


def never_made(noted: Mapping[Note, str]) -> Iterator[str]:
    """A sentence for each documented permission that nothing uses."""
    used = {permission(note) for note in noted}
    for wanted in sorted(documented().keys() - used):
        if not wanted.action.startswith(_ELSEWHERE) and not wanted.resource.startswith(_BY_OTHERS):
            yield f"FAILED: docs/permissions.md lists {wanted}, and no test calls it"


def _is_whole(session: pytest.Session) -> bool:
    """Whether every test ran."""
    option = session.config.option
    chosen = option.keyword or option.markexpr or getattr(option, "lf", False) or option.deselect
    everything = session.config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return everything and not chosen and not session.testsfailed and not option.collectonly
