"""Hooks import files beside them, and every such file counts as part of the hook."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replicator.errors import ConfigError
from replicator.hooks.loading import load
from replicator.items.attributes import image
from replicator.items.item import Item

ITEM = Item(image({"id": "a"}))
HOOK = "from helpers import value\n\ndef hook(item):\n    return {'v': value()}\n"

Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a file may change within its time stamp's resolution

    def write(name: str, source: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def fingerprint(folder: Path, spec: str = "hooks.py:hook") -> str:
    return load(spec, folder).fingerprint


def test_a_hook_imports_a_file_beside_it(tmp_path: Path, write: Write) -> None:
    write("helpers.py", "def value():\n    return 1\n")
    write("hooks.py", HOOK)

    assert load("hooks.py:hook", tmp_path).one(ITEM) == {"v": 1}


def test_a_changed_file_is_imported_anew_and_changes_the_fingerprint(tmp_path: Path, write: Write) -> None:
    write("helpers.py", "def value():\n    return 1\n")
    write("hooks.py", HOOK)
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before
    write("helpers.py", "def value():\n    return 2\n")

    assert fingerprint(tmp_path) != before
    assert load("hooks.py:hook", tmp_path).one(ITEM) == {"v": 2}


@pytest.mark.parametrize(
    "statement",
    [
        "import inner",
        "import package.inner",
        "from package import inner",
        "from package.inner import thing",
        "import package",
        "from package import thing",
        "def lazily():\n    import inner\n",
        "try:\n    import inner\nexcept ImportError:\n    pass",
    ],
)
def test_the_fingerprint_covers_what_is_imported_in_any_way_and_indirectly(
    tmp_path: Path, write: Write, statement: str
) -> None:
    write("hooks.py", "import between\n\ndef hook(item):\n    return {}\n")
    write("between.py", statement + "\n")
    for name in ("inner.py", "package/inner.py", "package/__init__.py"):
        write(name, "thing = 1\n")
    before = fingerprint(tmp_path)
    for name in ("inner.py", "package/inner.py", "package/__init__.py"):
        write(name, "thing = 2\n")

    assert fingerprint(tmp_path) != before


def test_relative_imports_of_a_package_are_covered(tmp_path: Path, write: Write) -> None:
    write("shop_r/__init__.py", "")
    write("shop_r/rules/__init__.py", "from .. import prices\n")
    write("shop_r/prices.py", "from .rules import deep\n")
    write("shop_r/rules/deep.py", "x = 1\n")
    write("shop_r/hooks.py", "def hook(item):\n    from .rules import deep\n    return {}\n")
    before = fingerprint(tmp_path, "shop_r.hooks:hook")
    write("shop_r/prices.py", "from .rules import deep\ny = 1\n")
    between = fingerprint(tmp_path, "shop_r.hooks:hook")
    write("shop_r/rules/deep.py", "x = 2\n")

    assert len({before, between, fingerprint(tmp_path, "shop_r.hooks:hook")}) == 3


def test_files_that_it_does_not_import_and_installed_packages_do_not_count(tmp_path: Path, write: Write) -> None:
    write("hooks.py", "import json\nimport lib\n\ndef hook(item):\n    return {}\n")
    write("lib.py", "")
    write("other.py", "x = 1\n")
    write(".venv/site-packages/lib2.py", "x = 1\n")
    before = fingerprint(tmp_path)
    write("other.py", "x = 2\n")
    write(".venv/site-packages/lib2.py", "x = 2\n")

    assert fingerprint(tmp_path) == before


def test_a_hook_that_imports_nothing_has_the_fingerprint_that_it_always_had(tmp_path: Path, write: Write) -> None:
    write("hooks.py", "def hook(item):\n    return {}\n")

    expected = hashlib.sha256(b"def hook(item):\n    return {}\n\0hook").hexdigest()
    assert fingerprint(tmp_path) == expected


def test_each_folder_has_its_own_file_of_a_name(tmp_path: Path, write: Write) -> None:
    hooks = []
    for folder in ("a", "b"):
        write(f"{folder}/helpers.py", f"def value():\n    return {folder!r}\n")
        write(f"{folder}/hooks.py", HOOK)
        hooks.append(load("hooks.py:hook", tmp_path / folder))

    assert [hook.one(ITEM) for hook in hooks] == [{"v": "a"}, {"v": "b"}]
    assert load("hooks.py:hook", tmp_path / "a").one(ITEM) == {"v": "a"}


def test_a_file_does_not_replace_a_module_of_the_standard_library(tmp_path: Path, write: Write) -> None:
    write("json.py", "raise ValueError\n")
    write("hooks.py", "import json\n\ndef hook(item):\n    return {'v': json.loads('1')}\n")

    assert load("hooks.py:hook", tmp_path).one(ITEM) == {"v": 1}


def test_a_mistake_in_a_file_beside_is_named_with_its_line(tmp_path: Path, write: Write) -> None:
    write("helpers.py", "x = 1\ny = undefined\n")
    write("hooks.py", HOOK)

    with pytest.raises(
        ConfigError, match=r"hooks.py cannot be imported: NameError: name 'undefined' .*hooks.py, line 1\)"
    ):
        load("hooks.py:hook", tmp_path)
