"""Reads a config file: YAML without its traps, placeholders expanded, and the line of every value."""

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
"""The path of a value: ``("target", "tables", "orders")``."""

_PLACEHOLDER = re.compile(r"\$\{([^}]*)(\}?)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DEEPEST = 40  # levels; nothing in a config is half as deep, and recursion stays far from its limit
_LARGEST = 1 << 20  # bytes
_LONGEST_NUMBER = 40  # digits
_NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}


@dataclass(frozen=True, slots=True)
class Problem:
    """A mistake: where it is, and what is wrong."""

    path: PathInFile
    text: str


@dataclass(frozen=True, slots=True)
class Unset(Problem):
    """A placeholder whose value this machine need not have: an environment variable, or a file outside the folder."""

    name: str = ""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A parsed file. ``values`` is None where nothing can be trusted; ``lines``: the line (from 1) of every path."""

    path: Path
    values: Any
    lines: Mapping[PathInFile, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    def line(self, problem: Problem) -> int:
        """The problem's line; for a missing value, that of the section it is missing from."""
        place = problem.path
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def sentence(self, problem: Problem) -> str:
        """The problem as ``orders.yaml:7: target.table: ...``."""
        dotted = ".".join(map(str, problem.path))
        return f"{self.path.name}:{self.line(problem)}: {dotted + ': ' if dotted else ''}{problem.text}"


NO_VALUES: Mapping[str, str] = {}


def read(path: Path, environ: Mapping[str, str], stand_ins: Mapping[str, str] = NO_VALUES) -> ConfigFile:
    """Read a file and expand its placeholders. ConfigError if it is not a YAML mapping.

    ``stand_ins``: the values of placeholders, by what is between their braces, wherever those come from otherwise.
    """
    node = _composed(path)
    lines: dict[PathInFile, int] = {}
    problems = list(_walk(node, (), lines))
    if problems:  # duplicate or non-string keys: their meaning is ambiguous
        return ConfigFile(path, None, lines, tuple(problems))
    values = _filled(_constructed(path, node), (), _Sources(path.parent, environ, stand_ins), problems)
    return ConfigFile(path, values, lines, tuple(problems))


def placeholders(path: Path, counts: Callable[[PathInFile], bool] = lambda _: True) -> list[str]:
    """What is between the braces of each placeholder of a file, once, of the texts whose place ``counts``."""
    found = (text for place, text in texts(path) if counts(place))
    return list(dict.fromkeys(m.group(1) for text in found for m in _PLACEHOLDER.finditer(text)))


def texts(path: Path) -> Iterator[tuple[PathInFile, str]]:
    """Every text of a file, with its path; placeholders are as written."""
    yield from _texts(_constructed(path, _composed(path)), ())


def _texts(value: Any, place: PathInFile) -> Iterator[tuple[PathInFile, str]]:
    match value:
        case dict():
            yield from (found for name, inner in value.items() for found in _texts(inner, (*place, name)))
        case list():
            yield from (found for at, inner in enumerate(value) for found in _texts(inner, (*place, at)))
        case str():
            yield place, value


def _composed(path: Path) -> yaml.MappingNode:
    text = _text(path)
    try:
        for problem in filter(None, map(_unwanted(), yaml.parse(text, yaml.SafeLoader))):
            raise ConfigError(f"{path.name}{problem}")
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else 1
        raise ConfigError(f"{path.name}:{line}: invalid YAML: {_unquoted(e)}") from e
    except (yaml.YAMLError, RecursionError, ValueError) as e:
        raise ConfigError(f"{path.name}: invalid YAML: {type(e).__name__}") from e
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path.name}:1: a config must be a mapping that starts like this: `pipeline: orders`")
    return node


def _unwanted() -> Callable[[yaml.Event], str]:
    """A check of each parser event, before anything is built from it: no aliases, no deep nesting."""
    depth = 0

    def look(event: yaml.Event) -> str:
        nonlocal depth
        if isinstance(event, yaml.AliasEvent):
            return f":{_line(event)}: YAML aliases (*name) are not supported; repeat the value"
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            return f":{_line(event)}: is nested more than {_DEEPEST} levels deep"
        return ""

    return look


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def _unquoted(error: yaml.MarkedYAMLError) -> str:
    """PyYAML's message. It may quote tags, and ``password: !abc`` is one, so those messages are replaced."""
    text = str(error.problem or error.context)
    if "tag" in text:
        return "a value that starts with ! is a tag in YAML; put it in quotes"
    return text


def _text(path: Path) -> str:
    try:
        return read_regular(path, _LARGEST).decode()
    except FileNotFoundError as e:
        raise ConfigError(f"config file {path} not found") from e
    except OSError as e:
        raise ConfigError(f"cannot read config file {path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"config file {path} is not UTF-8 text") from e


def _walk(node: yaml.Node, path: PathInFile, lines: dict[PathInFile, int]) -> Iterator[Problem]:
    """Record the line of every path in ``lines``; yield mistakes that YAML would accept silently."""
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
    if name.tag == "tag:yaml.org,2002:merge":
        yield Problem(path, f"YAML merge keys (<<, on line {line}) are not supported; repeat the options")
        return
    if not isinstance(name, yaml.ScalarNode) or name.tag != "tag:yaml.org,2002:str":
        yield Problem(path, f"the key on line {line} is not a string in YAML; put it in quotes")
        return
    place = (*path, name.value)
    if place in lines:
        yield Problem(place, f"duplicate key, on lines {lines[place]} and {line}")
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
        raise ConfigError(f"{path.name}: a value is not valid for the type YAML infers for it; put it in quotes") from e
    finally:
        loader.dispose()


class _NoValue(LookupError):
    """The value is this machine's to provide; the config itself may be fine."""


@dataclass(frozen=True, slots=True)
class _Sources:
    """The sources of placeholder values."""

    base: Path
    environ: Mapping[str, str]
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    left: list[int] = field(default_factory=lambda: [_LARGEST])  # remaining bytes for all values together

    def find(self, name: str) -> str:
        """The value of a placeholder; LookupError says what is missing."""
        if self.left[0] < 0:
            return ""  # already reported
        value = self._value(name)
        self.left[0] -= len(value)
        if self.left[0] < 0:
            raise LookupError(f"the values of all ${{…}} exceed {_LARGEST:,} bytes")
        return value

    def _value(self, name: str) -> str:
        if name in self.stand_ins:
            return self.stand_ins[name]
        if name.startswith("file:"):
            return self._file(name.removeprefix("file:"))
        if _VARIABLE.fullmatch(name) is None:
            raise LookupError("contains a ${…} that is neither ${VARIABLE} nor ${file:path}")
        if name not in self.environ:
            raise _NoValue(f"environment variable {name} is not set")
        if not self.environ[name]:
            raise _NoValue(f"environment variable {name} is empty")
        return self.environ[name]

    def _file(self, name: str) -> str:
        try:
            return read_regular(self.base / name, _LARGEST).decode().removesuffix("\n")
        except OSError as e:
            missing = _NoValue if isinstance(e, FileNotFoundError) and Path(name).is_absolute() else LookupError
            raise missing(f"cannot read file {name}: {e.strerror or type(e).__name__}") from e
        except ValueError as e:  # not UTF-8, or a NUL in its name
            raise LookupError(f"file {name} is not UTF-8 text") from e


def _filled(value: Any, path: PathInFile, sources: _Sources, problems: list[Problem]) -> Any:
    """``value`` with its placeholders expanded. Expansion is not recursive."""
    match value:
        case dict():
            return {name: _filled(inner, (*path, name), sources, problems) for name, inner in value.items()}
        case list():
            return [_filled(inner, (*path, at), sources, problems) for at, inner in enumerate(value)]
        case str():
            return _PLACEHOLDER.sub(lambda match: _expand(match, path, sources, problems), value)
    return value


def _expand(match: re.Match[str], path: PathInFile, sources: _Sources, problems: list[Problem]) -> str:
    name, closed = match.groups()
    try:
        if not closed:
            raise LookupError("contains a ${ without a closing }")
        return sources.find(name)
    except _NoValue as e:
        problems.append(Unset(path, str(e.args[0]), name))
    except LookupError as e:
        problems.append(Problem(path, str(e.args[0])))
    return ""
