"""Output of commands: text on a terminal, JSON otherwise, errors on standard error."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from replicator import files
from replicator.errors import ConfigError, GapFound, ReplicatorError
from replicator.escape import ascii_json, escaped, escaped_lines, escaped_paragraph
from replicator.log import TARGET, with_target

ERRORS_AS_JSON = "replicator.errors-as-json"  # key in a context's ``meta``: the result of ``errors_as_json``

_REPAIR = "The copy keeps what it has. To repair the copy: "

F = TypeVar("F", bound=Callable[..., Any])


def _chosen(_ctx: click.Context, _param: click.Parameter, target: str | None) -> str | None:
    """The target, which messages of this command name in other commands."""
    TARGET.set(target)
    return target


_target_option = click.option(
    "--target", metavar="NAME", callback=_chosen, help="Only this one of the config's targets."
)


def config_argument(command: F) -> F:
    """Adds ``config``, and ``target``: which of its targets is meant; None: not said."""
    return click.argument("config", type=click.Path(dir_okay=False))(_target_option(command))


def configs_argument(command: F) -> F:
    """One config, or several; otherwise like ``config_argument``."""
    paths = click.Path(dir_okay=False)
    return click.argument("configs", type=paths, nargs=-1, required=True, metavar="CONFIG...")(_target_option(command))


engine_option = click.option(
    "--engine",
    type=click.Choice(["local", "ray", "lambda"]),
    help="What runs the pipeline, instead of the config's engine: one process, workers on Ray, or AWS Lambda.",
)


def json_option(command: F) -> F:
    """Adds ``as_json``: the option if given, else True unless standard output is a terminal."""

    def chosen(_ctx: click.Context, _param: click.Parameter, option: bool | None) -> bool:
        return not sys.stdout.isatty() if option is None else option

    return click.option(
        "--json/--human",
        "as_json",
        default=None,
        callback=chosen,
        help="Output as JSON or as text.  [default: text on a terminal, else JSON]",
    )(command)


def errors_as_json(arguments: Sequence[str]) -> bool:
    """Whether errors are JSON: the last of --json and --human decides; without either, JSON if no stream is a terminal.

    Reads the raw arguments, so that it also applies to commands that click rejects.
    """
    options = itertools.takewhile(lambda a: a != "--", arguments)
    chosen = [option for option in options if option in ("--json", "--human")]
    if chosen:
        return chosen[-1] == "--json"
    return not (sys.stdout.isatty() or sys.stderr.isatty())


def say(text: str = "") -> None:
    """Print one line of text, unbuffered."""
    _out(escaped(with_target(text)))


def say_aside(text: str) -> None:
    """Print one line on standard error, where it does not mix with the output."""
    click.echo(escaped(with_target(text)), err=True)


def say_lines(text: str, indent: str = "") -> None:
    """Print text of several lines; its line ends are trusted."""
    _out(escaped_lines(text, indent))


def put(value: object) -> None:
    """Print a value as one line of JSON."""
    put_json(json.dumps(value, default=str))


def put_json(text: str) -> None:
    """Print encoded JSON."""
    _out(ascii_json(text))


def note(text: str) -> None:
    """Print one line about the output on standard error."""
    _out(escaped(with_target(text)), err=True)


def _out(text: str, *, err: bool = False) -> None:
    click.echo(text, err=err)
    sys.stdout.flush()


def write_new(path: str, text: str, mode: int) -> None:
    """Write a new file. ConfigError if it exists or cannot be written."""
    try:
        files.write_new(Path(path), text, mode)
    except FileExistsError as e:
        raise ConfigError(f"{path} exists already, and no file is overwritten; name another one") from e
    except OSError as e:
        raise ConfigError(f"{path} cannot be written: {e.strerror or type(e).__name__}") from e


def aside() -> contextlib.AbstractContextManager[object]:
    """Send what hooks print to standard error, so that it does not mix with our output."""
    return contextlib.redirect_stdout(sys.stderr)


def hang_up() -> None:
    """Discard further output: the reader of standard output has gone away (``| head``), which is not an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def report(error: ReplicatorError, *, as_json: bool = False) -> None:
    """Print an error on standard error: as text, or as one JSON object like a log event."""
    problems = with_target(list(error.problems) if isinstance(error, ConfigError) else [str(error)])
    advice = with_target(f"{_REPAIR}{error.repair}\n{error.caution}".rstrip()) if isinstance(error, GapFound) else ""
    if as_json:
        failed(type(error).__name__, error.exit_code, problems, **({"do": advice} if advice else {}))
        return
    shown = [escaped_paragraph(p, "    ") for p in problems if p] or [type(error).__name__]
    if len(shown) == 1:
        click.echo(f"error: {shown[0]}", err=True)
    else:
        click.echo("\n".join([f"{len(shown)} errors:", *(f"  {p}" for p in shown)]), err=True)
    if advice:
        click.echo(advice, err=True)


def failed(error: str, exit_code: int, problems: Sequence[str], **more: str) -> None:
    """Print the error that ends a command on standard error, as one JSON object like a log event."""
    event = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": "error", "event": "failed"}
    fields = {"error": error, "exit_code": exit_code, "problems": list(problems), **more}
    click.echo(json.dumps(event | fields), err=True)
