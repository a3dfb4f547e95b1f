"""The lists of versions beside pyproject.toml: the oldest that are allowed, and those that an image installs."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.audit import verdict

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ("postgres", "elasticsearch", "opensearch", "dynamodb", "redis", "webhook", "web")
DECLARED = [
    Requirement(text)
    for text in [
        *PROJECT["dependencies"],
        *(text for extra in EXTRAS for text in PROJECT["optional-dependencies"][extra]),
    ]
]
OLDEST = (ROOT / "requirements" / "oldest.txt").read_text()
LOCK = (ROOT / "requirements" / "lock.txt").read_text()


def pinned(text: str) -> dict[str, Version]:
    lines = re.findall(r"^([A-Za-z0-9_.-]+)(?:\[\w+\])?==([^\s;\\]+)", text, re.MULTILINE)
    return {name.lower(): Version(version) for name, version in lines}


@pytest.mark.parametrize("declared", DECLARED, ids=str)
def test_the_oldest_version_that_is_allowed_is_the_one_that_is_tested(declared: Requirement) -> None:
    (lower,) = [s.version for s in declared.specifier if s.operator == ">="]
    assert pinned(OLDEST)[declared.name] == Version(lower)


def test_nothing_else_is_held_back() -> None:
    assert pinned(OLDEST).keys() == {declared.name for declared in DECLARED}


@pytest.mark.parametrize("declared", DECLARED, ids=str)
def test_the_lock_has_a_version_that_is_allowed(declared: Requirement) -> None:
    assert pinned(LOCK)[declared.name] in declared.specifier


def test_every_locked_package_has_hashes_and_nothing_says_where_it_is_from() -> None:
    packages = re.split(r"^(?=[A-Za-z0-9])", LOCK, flags=re.MULTILINE)[1:]
    assert len(packages) == len(pinned(LOCK))
    assert all("--hash=sha256:" in package for package in packages)
    assert "://" not in LOCK


@pytest.mark.parametrize(
    ("report", "error", "code", "said"),
    [
        (
            {"dependencies": [{"name": "a", "version": "1", "vulns": []}]},
            "",
            0,
            "no known vulnerabilities in 1 packages",
        ),
        (
            {"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "X-1", "fix_versions": ["2"]}]}]},
            "",
            1,
            "a 1: X-1, fixed in 2",
        ),
        (None, "Traceback\nConnectionError: no", 3, "nothing was checked: .*cannot be reached.*ConnectionError: no"),
        (None, "", 3, "nothing was checked"),
    ],
)
def test_an_audit_says_what_it_found_or_that_it_could_not_ask(report: object, error: str, code: int, said: str) -> None:
    found, sentence = verdict("" if report is None else json.dumps(report), error)
    assert found == code
    assert re.search(said, sentence)
