"""The config's section ``targets``: several copies of one table. It is expanded into the sections that a config for
each target alone would have, so that everything else knows configs with one target only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from replicator.config.validation import suggestion
from replicator.config.yaml_file import PathInFile, Problem

TARGET, TARGETS = "target", "targets"
SHARED = ("source", "engine")  # sections that hold for all targets
OF_A_TARGET = (
    "pipeline",
    "transform",
    "checkpoints",
    "backfill",
    "on_gap",
    "ttl_deletes",
    "hook_timeout",
    "parked_limit",
    "replaces",
    "verify",
    "monitoring",
)
"""What a target may set for itself; what it does not set is as at the top level."""

WITH_DEFAULT = ("pipeline", "backfill", "on_gap", "ttl_deletes", "parked_limit")
"""Sections for which null means their default, whatever the top level says. For the others null is a value: none."""

LONGEST = 63  # letters of a pipeline's name
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
"""No dots: the last one of a pipeline's name precedes the target's."""


@dataclass(frozen=True, slots=True)
class TargetSections:
    """The sections that a config for one target alone would have. ``name``: the target's; None: of ``target``.

    ``own``: the sections that the target sets for itself.
    """

    name: str | None
    values: Mapping[str, Any]
    own: frozenset[str] = frozenset()

    def place(self, path: PathInFile) -> PathInFile:
        """Where a path of the sections is in the file."""
        if self.name is None or not path:
            return path
        if path[0] == TARGET:
            return (TARGETS, self.name, *path[1:])
        return (TARGETS, self.name, *path) if path[0] in self.own else path

    def problem(self, problem: Problem) -> Problem:
        """A problem of the sections as one of the file; for an unknown key, with what a target may set for itself."""
        text = problem.text
        if self.name is not None and problem.path[:1] == (TARGET,):
            if len(problem.path) == 2 and text.startswith("unknown key"):
                close = suggestion(problem.path[1], OF_A_TARGET)
                text = f"unknown key; {close}" if close.startswith("did you mean") else text
            text = text.replace(f"{TARGET}.", f"{TARGETS}.{self.name}.")
        return Problem(self.place(problem.path), text)

    def consequence(self, problem: Problem) -> Problem:
        """Like ``problem``, of a section that is right in itself: names the target if the section is that of all."""
        found = self.problem(problem)
        if self.name is None or found.path[:1] == (TARGETS,):
            return found
        return Problem(found.path, f"for the target {self.name}: {found.text}")


def expanded(values: Mapping[str, Any]) -> tuple[Sequence[TargetSections], Sequence[Problem]]:
    """The sections of each target of a file, and what is wrong with their names; one with a wrong name is left out."""
    top = {name: value for name, value in values.items() if name != TARGETS}
    if TARGETS not in values:
        if values.get(TARGET) is not None:
            return [TargetSections(None, top)], []
        text = f"is missing: it says where documents are stored; for several targets, {TARGETS}: {{NAME: …}}"
        return [], [Problem((TARGET,), text)]
    if TARGET in values:
        return [], [Problem((TARGETS,), f"the config has both {TARGET} and {TARGETS}; keep one")]
    given = values[TARGETS]
    if not isinstance(given, Mapping) or not given:
        return [], [Problem((TARGETS,), "must be a mapping from names of targets to their options, at least one")]
    found: list[TargetSections] = []
    problems: list[Problem] = []
    for name, options in given.items():
        wrong = list(_mistakes(name, options))
        if not wrong:
            one = _sections(top, name, options)
            wrong = list(_mistaken_name(one, top.get("pipeline"), found))
            found += [] if wrong else [one]
        problems += wrong
    return found, problems


def _mistakes(name: str, options: object) -> Sequence[Problem]:
    place = (TARGETS, name)
    if _NAME.fullmatch(name) is None:
        return [Problem(place, "must be 1 to 32 letters, digits, _ or -, and start with a letter or digit")]
    if not isinstance(options, Mapping):
        return [Problem(place, "must be a mapping (name: value, one per line)")]
    text = "is the same for all targets; move it to the top level"
    return [Problem((*place, key), text) for key in SHARED if key in options]


def _sections(top: Mapping[str, Any], name: str, options: Mapping[str, Any]) -> TargetSections:
    own = {key: value for key, value in options.items() if key in OF_A_TARGET}
    target = {key: value for key, value in options.items() if key not in OF_A_TARGET}
    default = {key for key in WITH_DEFAULT if key in own and own[key] is None}
    own = {key: value for key, value in own.items() if key not in default}
    pipeline = top.get("pipeline")
    top = {key: value for key, value in top.items() if key not in default}
    named = {"pipeline": f"{pipeline}.{name}"} if isinstance(pipeline, str) else {}
    return TargetSections(name, {**top, **named, **own, TARGET: target}, frozenset(own))


def _mistaken_name(one: TargetSections, pipeline: object, earlier: Sequence[TargetSections]) -> Sequence[Problem]:
    """What is wrong with the pipeline's name that the names of the config and the target make together."""
    name = one.values.get("pipeline")
    if not isinstance(name, str) or not name:
        return []  # reported by the model of the sections, or as a placeholder without a value
    assert one.name is not None
    twin = next((other.name for other in earlier if other.values.get("pipeline") == name), None)
    if twin is not None:
        text = f"its pipeline is named {name}, like that of the target {twin}; names must differ"
        return [Problem((TARGETS, one.name), text)]
    if "pipeline" not in one.own and isinstance(pipeline, str) and len(pipeline) <= LONGEST < len(name):
        text = f"its pipeline would be named {name}, and {LONGEST} letters are the most: choose a shorter name"
        return [Problem((TARGETS, one.name), text)]
    return []


def with_targets(schema: dict[str, Any]) -> dict[str, Any]:
    """``schema``, the JSON Schema of a config whose ``target`` is described, with ``targets`` in place of it."""
    properties = schema["properties"]
    own = {key: properties[key] for key in OF_A_TARGET}
    own |= {key: {"anyOf": [properties[key], {"type": "null"}]} for key in WITH_DEFAULT}
    choices = [{**one, "properties": {**one["properties"], **own}} for one in properties[TARGET]["oneOf"]]
    several = {
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"pattern": f"^{_NAME.pattern}$"},
        "additionalProperties": {"oneOf": choices},
        "description": properties[TARGETS]["description"],
    }
    either = [{"required": [TARGET]}, {"required": [TARGETS]}]
    return {**schema, "properties": {**properties, TARGETS: several}, "oneOf": either}


def unknown_target(file: str, name: str, known: Sequence[str]) -> str:
    """Why no target of a config has this name."""
    if not known:
        return f"--target: {file} has one target, which has no name (target:); leave out --target"
    return f"--target: {file} has no target {name}; {suggestion(name, known)}"


def choice(file: str, known: Sequence[str]) -> str:
    """What to say where one target must be named."""
    return f"{file} has several targets: choose one, --target NAME, of {', '.join(known)}"


def is_of_a_target(name: str, pipeline: str) -> bool:
    """Whether a target of a config has a pipeline with this ``name``, unless it names it otherwise."""
    return name.startswith(f"{pipeline}.") and _NAME.fullmatch(name[len(pipeline) + 1 :]) is not None
