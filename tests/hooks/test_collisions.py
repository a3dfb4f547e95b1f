"""Hooks that would get each other's files in one process are told apart from those that would not."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator.hooks.collisions import collision, hook_file

TOP = "import rules\n\ndef hook(item):\n    return {}\n"
LATE = "def hook(item):\n    import rules\n    return {}\n"
PLAIN = "def hook(item):\n    return {}\n"
BETWEEN = "def hook(item):\n    import between\n    return {}\n"

Files = dict[str, str]


def found(folder: Path, one: Files, other: Files, *specs: str) -> str:
    """What is said about two hooks, each in a folder with these files."""
    hooks = []
    for name, files, spec in zip("ab", (one, other), specs or ("hooks.py:hook",) * 2, strict=True):
        for file, source in files.items():
            path = folder / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        hooks.append(hook_file(f"{name}.yaml", spec, folder / name))
    return collision([hook for hook in hooks if hook is not None])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"hooks.py": LATE, "rules.py": "x = 1"}, {"hooks.py": LATE, "rules.py": "x = 2"}),
        ({"hooks.py": TOP, "rules.py": "x = 1"}, {"hooks.py": LATE, "rules.py": "x = 2"}),
        ({"hooks.py": LATE, "rules.py": "x = 1"}, {"hooks.py": PLAIN, "rules.py": "x = 2"}),
        ({"hooks.py": LATE, "rules.py": "x = 1"}, {"hooks.py": PLAIN, "rules/__init__.py": ""}),
        ({"hooks.py": BETWEEN, "between.py": TOP, "rules.py": "x = 1"}, {"hooks.py": PLAIN, "rules.py": "x = 2"}),
    ],
    ids=["both late", "one late", "not even imported", "a package", "late by another file"],
)
def test_a_file_that_a_function_imports_collides_with_another_of_its_name(
    tmp_path: Path, one: Files, other: Files
) -> None:
    text = found(tmp_path, one, other)

    assert str(tmp_path / "a" / "rules.py") in text or str(tmp_path / "b" / "rules.py") in text
    assert "different files of one name, and Python has one module of a name in a process" in text
    assert "move the import from the function to the top of the file" in text


def test_both_files_and_both_configs_are_named(tmp_path: Path) -> None:
    files = {"hooks.py": LATE, "rules.py": "x = 1"}
    text = found(tmp_path, files, {**files, "rules.py": "x = 2"})

    assert text == (
        f"transform: {tmp_path}/a/rules.py, which the hook of a.yaml imports, and {tmp_path}/b/rules.py, beside that "
        "of b.yaml, are different files of one name, and Python has one module of a name in a process. Rename one of "
        "them, move the import from the function to the top of the file, or run each pipeline in a process of its own"
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"hooks.py": TOP, "rules.py": "x = 1"}, {"hooks.py": TOP, "rules.py": "x = 2"}),
        ({"hooks.py": LATE, "rules.py": "x = 1"}, {"hooks.py": LATE, "rules.py": "x = 1"}),
        ({"hooks.py": LATE, "rules.py": "x = 1"}, {"hooks.py": PLAIN, "others.py": "x = 2"}),
        ({"hooks.py": LATE.replace("rules", "json"), "json.py": "x = 1"}, {"hooks.py": PLAIN, "json.py": "x = 2"}),
    ],
    ids=["at the top of the file", "equal files", "other names", "the standard library"],
)
def test_hooks_that_get_their_own_files_do_not_collide(tmp_path: Path, one: Files, other: Files) -> None:
    assert found(tmp_path, one, other) == ""


@pytest.mark.parametrize(
    ("one", "other", "specs"),
    [
        ({"shop.py": "x = 1"}, {"shop.py": "x = 2"}, ("shop:hook", "shop:hook")),
        (
            {"shop/hooks.py": TOP, "rules.py": "x = 1"},
            {"my/hooks.py": TOP, "rules.py": ""},
            ("shop.hooks:h", "my.hooks:h"),
        ),
        (
            {"shop.py": TOP, "rules.py": "x = 1"},
            {"hooks.py": PLAIN, "rules.py": "x = 2"},
            ("shop:hook", "hooks.py:hook"),
        ),
        (
            {"shop.py": PLAIN, "rules.py": "x = 1"},
            {"hooks.py": TOP, "rules.py": "x = 2"},
            ("shop:hook", "hooks.py:hook"),
        ),
    ],
    ids=["the same module", "an imported one", "beside a file", "a file beside a module"],
)
def test_all_that_a_module_imports_collides(tmp_path: Path, one: Files, other: Files, specs: tuple[str, str]) -> None:
    text = found(tmp_path, one, other, *specs)

    assert "different files of one name" in text
    assert "top of the file" not in text


def test_an_installed_module_collides_with_none(tmp_path: Path) -> None:
    assert hook_file("a.yaml", "installed.package:hook", tmp_path) is None


def test_configs_of_one_folder_share_its_files(tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(LATE)
    (tmp_path / "rules.py").write_text("x = 1")
    hooks = [hook_file(name, "hooks.py:hook", tmp_path) for name in ("a.yaml", "b.yaml")]

    assert collision([hook for hook in hooks if hook is not None]) == ""
