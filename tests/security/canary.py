"""Marker words that tests use as secrets and values. Showing one fails the test.

Production code knows nothing of it. Looked at are: everything that a command of the tests prints, in a process of its
own or in this one, and every event that a handler of logging gets.
"""

from __future__ import annotations

import base64
import functools
import logging
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

from click.testing import CliRunner

from replicator import log
from replicator.hooks import redaction
from tests.forked import Forked

SECRET = "s3cr3tk4n4r13"
"""Used in logins, keys and tokens: must never be shown."""
VALUE = "v4luek4n4r13"
"""Used in items: shown only by commands that are asked for values."""

_leaks: list[str] = []
looked = {"commands": 0, "events": 0}


def look(text: str, where: str, *, values: bool = False) -> None:
    """Record the markers in ``text``. ``values``: whether item values were requested."""
    for token in (SECRET,) if values else (SECRET, VALUE):
        for form in _forms(token):
            if form in text:
                at = text.index(form)
                _leaks.append(f"{where} shows {token}: …{text[max(0, at - 200) : at + 60]}…")
                break


def look_at_command(text: str, arguments: Sequence[str]) -> None:
    looked["commands"] += 1
    asked = "preview" in arguments or "history" in arguments or "--show-values" in arguments
    look(text, f"replicator {' '.join(arguments)}", values=asked)


def taken() -> list[str]:
    """What was recorded since the last call."""
    found = list(_leaks)
    _leaks.clear()
    return found


@functools.cache
def _forms(token: str) -> tuple[str, ...]:
    """A marker in its plain and encoded forms: base64 at each of three offsets, hexadecimal, quoted."""
    data = token.encode()
    middles = (base64.b64encode(b"x" * n + data).decode()[4 * bool(n) :] for n in range(3))
    return (token, *(middle.rstrip("=")[:-2] for middle in middles), data.hex(), quote(token))


class _Watching(subprocess.Popen[str]):
    def communicate(self, *given: Any, **named: Any) -> tuple[str, str]:
        out, err = super().communicate(*given, **named)
        look_at_command(f"{out}{err}", [str(a) for a in self.args][3:])  # type: ignore[union-attr]
        return out, err


class Watched(_Watching, Forked):
    """A command in a process of its own; its output is scanned once it has been read completely."""


class WatchedInterpreter(_Watching):
    """The same in a new interpreter."""


def _commands(invoke: Any) -> Any:
    @functools.wraps(invoke)
    def watched(self: Any, cli: Any, args: Any = None, *given: Any, **named: Any) -> Any:
        result = invoke(self, cli, args, *given, **named)
        bug = result.exception if not isinstance(result.exception, SystemExit) else None
        shown = result.output + ("" if bug is None else redaction.trace(bug).stack)
        look_at_command(shown, [args] if isinstance(args, str) else list(args or ()))
        return result

    return watched


def _events(handle: Any) -> Any:
    formatters = (log.JsonLines(), log.Human())

    @functools.wraps(handle)
    def watched(self: logging.Logger, record: logging.LogRecord) -> None:
        looked["events"] += 1
        for formatter in formatters:
            look(formatter.format(record), f"the log {record.name}")
        handle(self, record)

    return watched


def install() -> Iterator[None]:
    """Scan from now on, until the generator resumes."""
    invoke, handle = CliRunner.invoke, logging.Logger.handle
    CliRunner.invoke, logging.Logger.handle = _commands(invoke), _events(handle)  # type: ignore[method-assign]
    yield
    CliRunner.invoke, logging.Logger.handle = invoke, handle  # type: ignore[method-assign]
