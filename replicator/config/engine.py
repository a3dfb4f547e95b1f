"""The config's section ``engine``: what runs the pipeline, and its options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from replicator.config.monitoring import Address
from replicator.config.target import with_placeholders
from replicator.config.validation import suggestion, validated
from replicator.config.yaml_file import Problem
from replicator.options import Options

DEFAULT = "local"
LONGEST_FUNCTION = 64  # characters of its name
TARGET_NAME = "{target}"
_FUNCTION = re.compile(f"[A-Za-z0-9_-]{{1,{LONGEST_FUNCTION}}}")


class Local(Options):
    """One process, which reads, transforms and writes everything."""


def _address(text: str) -> str:
    with suppress(ValueError):
        return text if text == "auto" else str(Address.parsed(text))
    raise ValueError("must be auto, or have the form HOST:PORT, such as 10.0.0.5:6379")


class Ray(Options):
    """Several workers on a Ray cluster, or on the cores of this machine.

    See docs/scaling.md. Needs the extra `ray`.
    """

    address: Annotated[str, AfterValidator(_address)] | None = Field(
        default=None,
        description="a cluster that this machine is a node of: HOST:PORT, or auto to find it; by default, Ray is "
        "started on this machine for the run",
    )
    workers: int = Field(default=2, ge=1, le=512, description="processes that read and write, each on a CPU of its own")


def _function_name(name: str) -> str:
    if _FUNCTION.fullmatch(name.replace(TARGET_NAME, "x")) is None:
        raise ValueError("must be the name of a function: 1 to 64 letters, digits, _ or -")
    return name


LONGEST_TIMEOUT = 900.0  # seconds: the longest Timeout of a function
BESIDES = 10.0  # seconds of a timeout in which no hook is called: an invocation begins, and ends before Lambda ends it
CALLS = 2  # of a hook that never ends, for one change: its old and its new image
CALLS_FOR_HISTORY = 5  # the same with a history, which is told of both, and of an image that a parked entry keeps


def longest_hook(timeout: float, *, history: bool = False) -> float:
    """The longest ``hook_timeout`` with which an invocation parks an item whose hook never ends. ``timeout``: its
    function's. ``history``: of any table.
    """
    return (timeout - BESIDES) / _calls(history)


def shortest_timeout(hook_timeout: float, *, history: bool = False) -> float:
    return hook_timeout * _calls(history) + BESIDES


def _calls(history: bool) -> int:
    return CALLS_FOR_HISTORY if history else CALLS


class Lambda(Options):
    """AWS Lambda follows the stream; `replicator run --until backfilled` copies what exists. For the targets postgres,
    elasticsearch, opensearch and dynamodb; the last three need checkpoints in DynamoDB or Postgres. See docs/lambda.md.
    """

    function: Annotated[str, AfterValidator(_function_name)] | None = Field(
        default=None,
        description="name of the function: `lambda template` gives it this name, and `check` reads its settings and "
        "those of its event source mapping; with several targets, `{target}` in it stands for the target's name",
    )

    def of_target(self, name: str | None, targets: int) -> Lambda:
        """With the function of one of the config's targets. ValueError if all would have the same, or none has it."""
        if self.function is None or (name is not None and targets == 1 and TARGET_NAME not in self.function):
            return self
        if name is None and TARGET_NAME in self.function:
            raise ValueError(f"{TARGET_NAME} stands for the name of one of several targets, and this config has one")
        if name is not None and TARGET_NAME not in self.function:
            raise ValueError(
                f"each target has a function of its own: add its name, such as {self.function}-{TARGET_NAME}"
            )
        function = self.function.replace(TARGET_NAME, name or "")
        if len(function) > LONGEST_FUNCTION:
            raise ValueError(f"{function} has {len(function)} characters; a function's name has at most 64")
        return self.model_copy(update={"function": function})


Engine = Local | Ray | Lambda
"""The validated options of any engine."""

ENGINES: Mapping[str, type[Engine]] = {"local": Local, "ray": Ray, "lambda": Lambda}


def engine(given: object, instead: str | None = None) -> tuple[Engine, list[Problem]]:
    """The engine that the section describes, or all that is wrong with it; the default if there is no section.

    ``instead``: a type of engine to use whatever the section says. If it is of that type, its options hold.
    """
    if not isinstance(given, Mapping):
        given = {}  # reported by the model of the sections if it is not a mapping
    kind = given.get("type", DEFAULT)
    if instead is not None and kind != instead and kind in ENGINES:
        given, kind = {}, instead
    if not isinstance(kind, str) or kind not in ENGINES:
        return Local(), [Problem(("engine", "type"), f"unknown engine; {suggestion(kind, sorted(ENGINES))}")]
    rest = {name: value for name, value in given.items() if name != "type"}
    options, problems = validated(ENGINES[kind], rest, ("engine",))
    return options or Local(), problems


def with_engines(schema: dict[str, Any]) -> dict[str, Any]:
    """``schema``, the JSON Schema of a config, with the options of each engine."""
    choices = [_choice(name, model.model_json_schema()) for name, model in ENGINES.items()]
    properties = {**schema["properties"], "engine": with_placeholders({"oneOf": choices})}
    return {**schema, "properties": properties}


def _choice(name: str, options: dict[str, Any]) -> dict[str, Any]:
    return {
        **options,
        "properties": {"type": {"const": name}, **options.get("properties", {})},
        "required": [*([] if name == DEFAULT else ["type"]), *options.get("required", [])],
    }
