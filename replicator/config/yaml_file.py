"""A config file as plain values that remember their lines: YAML without its traps, and placeholders filled in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from replicator.errors import ConfigError
from replicator.files import read_regular

PathInFile = tuple[str | int, ...]
"""Where a value stands: ``("target", "tables", "orders")``."""

_PLACEHOLDER = re.compile(r"\$\{([^}]*)(\}?)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DEEPEST = 40  # levels; nothing in a config is half as deep, and recursion stays far from its limit
_LARGEST = 1 << 20  # bytes
_LONGEST_NUMBER = 40  # digits
_NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: where it is, and what to do about it."""

    path: PathInFile
    text: str


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What a file says. ``lines`` has the line (from 1) of every path; ``problems`` what is wrong already."""

    path: Path
    values: Any
    lines: Mapping[PathInFile, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    def line(self, problem: Problem) -> int:
        """Where to look: a missing value's line is that of the part it is missing from."""
        place = problem.path
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def sentence(self, problem: Problem) -> str:
        """The problem as ``orders.yaml:7: target.table: ...``."""
        dotted = ".".join(map(str, problem.path))
        return f"{self.path.name}:{self.line(problem)}: {dotted + ': ' if dotted else ''}{problem.text}"


def read(path: Path, environ: Mapping[str, str]) -> ConfigFile:
    """The file with its placeholders filled in; ConfigError if it is no YAML mapping at all."""
    node = _composed(path)
    lines: dict[PathInFile, int] = {}
    problems = list(_walk(node, (), lines))
    if problems:  # what a doubled or odd key means is anybody's guess: nothing below could be trusted
        return ConfigFile(path, None, lines, tuple(problems))
    values = _filled(_constructed(path, node), (), _Sources(path.parent, environ), problems)
    return ConfigFile(path, values, lines, tuple(problems))


def _composed(path: Path) -> yaml.MappingNode:
    text = _text(path)
    try:
        for problem in filter(None, map(_unwanted(), yaml.parse(text, yaml.SafeLoader))):
            raise ConfigError(f"{path.name}{problem}")
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else 1
        raise ConfigError(f"{path.name}:{line}: this is not YAML: {_unquoted(e)}") from e
    except (yaml.YAMLError, RecursionError, ValueError) as e:
        raise ConfigError(f"{path.name}: this is not YAML: {type(e).__name__}") from e
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path.name}:1: a config is a mapping that begins like this: `pipeline: orders`")
    return node


def _unwanted() -> Callable[[yaml.Event], str]:
    """What is wrong with each event in turn, before anything is built of them: nothing grows or nests without end."""
    depth = 0

    def look(event: yaml.Event) -> str:
        nonlocal depth
        if isinstance(event, yaml.AliasEvent):
            return ": YAML aliases (*name) are not used in configs; write the value out"
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            line = event.start_mark.line + 1 if event.start_mark else 1
            return f":{line}: is nested more than {_DEEPEST} levels deep"
        return ""

    return look


def _unquoted(error: yaml.MarkedYAMLError) -> str:
    """What is wrong. Tags are all that PyYAML quotes of a file, and ``password: !abc`` is one to it."""
    text = str(error.problem or error.context)
    if "tag" in text:
        return "a value that begins with ! is a tag to YAML; put it in quotes"
    return text


def _text(path: Path) -> str:
    try:
        return read_regular(path, _LARGEST).decode()
    except FileNotFoundError as e:
        raise ConfigError(f"there is no config file {path}") from e
    except OSError as e:
        raise ConfigError(f"the config file {path} cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"the config file {path} is not UTF-8 text") from e


def _walk(node: yaml.Node, path: PathInFile, lines: dict[PathInFile, int]) -> Iterator[Problem]:
    """Note every path's line; yield what YAML would pass over in silence."""
    if len(path) > _DEEPEST:
        yield Problem(path[:3], f"is nested more than {_DEEPEST} levels deep")
    elif isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
        yield Problem(path, f"is a number of more than {_LONGEST_NUMBER} digits; if it is text, put it in quotes")
    elif isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield from _walk_entry(name, value, path, lines)
    elif isinstance(node, yaml.SequenceNode):
        for at, value in enumerate(node.value):
            lines[*path, at] = value.start_mark.line + 1
            yield from _walk(value, (*path, at), lines)


def _walk_entry(name: yaml.Node, value: yaml.Node, path: PathInFile, lines: dict[PathInFile, int]) -> Iterator[Problem]:
    line = name.start_mark.line + 1
    if not isinstance(name, yaml.ScalarNode) or name.tag != "tag:yaml.org,2002:str":
        yield Problem(path, f"a name in line {line} is not text to YAML; put it in quotes")
        return
    place = (*path, name.value)
    if place in lines:
        yield Problem(place, f"is written twice, in lines {lines[place]} and {line}")
        return
    lines[place] = line
    yield from _walk(value, place, lines)


def _constructed(path: Path, node: yaml.MappingNode) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else 1
        raise ConfigError(f"{path.name}:{line}: {_unquoted(e)}") from e
    except (yaml.YAMLError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as e:
        raise ConfigError(f"{path.name}: a value is not what its form promises to YAML; put it in quotes") from e
    finally:
        loader.dispose()


@dataclass(frozen=True, slots=True)
class _Sources:
    """Where placeholders take their values from."""

    base: Path
    environ: Mapping[str, str]
    left: list[int] = field(default_factory=lambda: [_LARGEST])  # bytes that all values together may still have

    def find(self, name: str) -> str:
        """The value behind a placeholder; LookupError says what is missing."""
        if self.left[0] < 0:
            return ""  # said already
        found = self._found(name)
        self.left[0] -= len(found)
        if self.left[0] < 0:
            raise LookupError(f"the values of ${{…}} are longer than {_LARGEST:,} bytes together")
        return found

    def _found(self, name: str) -> str:
        if name.startswith("file:"):
            return self._file(name.removeprefix("file:"))
        if _VARIABLE.fullmatch(name) is None:
            raise LookupError("a ${…} in it is neither ${VARIABLE} nor ${file:path}")
        if name not in self.environ:
            raise LookupError(f"the environment variable {name} is not set")
        if not self.environ[name]:
            raise LookupError(f"the environment variable {name} is set, but empty")
        return self.environ[name]

    def _file(self, name: str) -> str:
        try:
            return read_regular(self.base / name, _LARGEST).decode().removesuffix("\n")
        except OSError as e:
            raise LookupError(f"the file {name} cannot be read: {e.strerror or type(e).__name__}") from e
        except ValueError as e:  # not UTF-8, or a NUL in its name
            raise LookupError(f"the file {name} is not UTF-8 text") from e


def _filled(value: Any, path: PathInFile, sources: _Sources, problems: list[Problem]) -> Any:
    """``value`` with its placeholders replaced, once: what a variable holds is never looked into."""
    match value:
        case dict():
            return {name: _filled(inner, (*path, name), sources, problems) for name, inner in value.items()}
        case list():
            return [_filled(inner, (*path, at), sources, problems) for at, inner in enumerate(value)]
        case str():
            return _PLACEHOLDER.sub(lambda found: _looked_up(found, path, sources, problems), value)
    return value


def _looked_up(found: re.Match[str], path: PathInFile, sources: _Sources, problems: list[Problem]) -> str:
    name, closed = found.groups()
    try:
        if not closed:
            raise LookupError("a ${ is not closed by }")
        return sources.find(name)
    except LookupError as e:
        problems.append(Problem(path, str(e.args[0])))
        return ""
