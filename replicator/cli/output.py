"""What commands print: for people on a terminal, JSON otherwise, and errors on standard error."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from replicator.errors import GapFound, ReplicatorError

F = TypeVar("F", bound=Callable[..., Any])


def config_argument(command: F) -> F:
    return click.argument("config", type=click.Path(dir_okay=False))(command)


def json_option(command: F) -> F:
    """``as_json``: what was asked for, or True where nobody looks at a terminal."""
    return click.option(
        "--json/--human",
        "as_json",
        default=None,
        callback=lambda _ctx, _param, asked: not sys.stdout.isatty() if asked is None else asked,
        help="JSON, or text for people.  [default: text on a terminal, else JSON]",
    )(command)


def say(text: str = "") -> None:
    """One line for people, at once."""
    click.echo(text)
    sys.stdout.flush()


def put(value: object) -> None:
    """One JSON value on a line of its own."""
    say(json.dumps(value, default=str, ensure_ascii=False))


def aside() -> contextlib.AbstractContextManager[object]:
    """While it lasts, what somebody else prints (a hook) goes to standard error, not between our lines."""
    return contextlib.redirect_stdout(sys.stderr)


def report(error: ReplicatorError) -> None:
    """An error as a person reads it."""
    problems = str(error).splitlines() or [type(error).__name__]
    if len(problems) == 1:
        click.echo(f"error: {problems[0]}", err=True)
    else:
        click.echo("\n".join([f"error: {len(problems)} things to put right", *(f"  {p}" for p in problems)]), err=True)
    if isinstance(error, GapFound):
        click.echo("What was copied stays as it is. To make it whole again: replicator resync CONFIG", err=True)
