"""What commands print: for people on a terminal, JSON otherwise, and errors on standard error."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from replicator.errors import ConfigError, GapFound, ReplicatorError
from replicator.escape import ascii_json, escaped, escaped_lines, escaped_paragraph

ERRORS_AS_JSON = "replicator.errors-as-json"  # in a context's ``meta``: what ``errors_as_json`` says

_REPAIR = "What was copied stays as it is. To make it whole again: replicator resync CONFIG"

F = TypeVar("F", bound=Callable[..., Any])


def config_argument(command: F) -> F:
    return click.argument("config", type=click.Path(dir_okay=False))(command)


def json_option(command: F) -> F:
    """``as_json``: what was asked for, or True where standard output is no terminal."""

    def chosen(_ctx: click.Context, _param: click.Parameter, asked: bool | None) -> bool:
        return not sys.stdout.isatty() if asked is None else asked

    return click.option(
        "--json/--human",
        "as_json",
        default=None,
        callback=chosen,
        help="JSON, or text for people.  [default: text on a terminal, else JSON]",
    )(command)


def errors_as_json(arguments: Sequence[str]) -> bool:
    """Whether errors are JSON: as the last of --json and --human says, else unless a terminal shows either stream.

    It goes by what was typed, so that a mistake in a command is told in the same way.
    """
    options = list(itertools.takewhile(lambda a: a != "--", arguments))
    asked = [option for option in options if option in ("--json", "--human")]
    if asked:
        return asked[-1] == "--json"
    return not (sys.stdout.isatty() or sys.stderr.isatty())


def say(text: str = "") -> None:
    """One line for people, at once."""
    _out(escaped(text))


def say_lines(text: str, indent: str = "") -> None:
    """Text of several lines, whose line ends are ours."""
    _out(escaped_lines(text, indent))


def put(value: object) -> None:
    """One JSON value on a line of its own."""
    put_json(json.dumps(value, default=str))


def put_json(text: str) -> None:
    """JSON that is text already."""
    _out(ascii_json(text))


def _out(text: str) -> None:
    click.echo(text)
    sys.stdout.flush()


def aside() -> contextlib.AbstractContextManager[object]:
    """While it lasts, what somebody else prints (a hook) goes to standard error, not between our lines."""
    return contextlib.redirect_stdout(sys.stderr)


def hang_up() -> None:
    """The reader of standard output has gone (``| head``): what is still printed goes nowhere, and is no error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def report(error: ReplicatorError, *, as_json: bool = False) -> None:
    """An error on standard error: as a person reads it, or as one JSON object like a log event."""
    problems = list(error.problems) if isinstance(error, ConfigError) else [str(error)]
    advice = _REPAIR if isinstance(error, GapFound) else ""
    if as_json:
        failed(type(error).__name__, error.exit_code, problems, **({"do": advice} if advice else {}))
        return
    shown = [escaped_paragraph(p, "    ") for p in problems if p] or [type(error).__name__]
    if len(shown) == 1:
        click.echo(f"error: {shown[0]}", err=True)
    else:
        click.echo("\n".join([f"error: {len(shown)} problems", *(f"  {p}" for p in shown)]), err=True)
    if advice:
        click.echo(advice, err=True)


def failed(error: str, exit_code: int, problems: Sequence[str], **more: str) -> None:
    """What ends a command, on standard error, as one JSON object like a log event."""
    event = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": "error", "event": "failed"}
    fields = {"error": error, "exit_code": exit_code, "problems": list(problems), **more}
    click.echo(json.dumps(event | fields), err=True)
