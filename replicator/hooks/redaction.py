"""What is shown of an error that nobody foresaw: types, places and lines, but words only if they quote no value.

An error's words may quote what it stumbled over: an item's values, a password. They surely do not where the code that
raised it has these very words in it, as in ``raise ValueError("no total")``; words that are put together are left out.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, TracebackType

from replicator.escape import escaped, escaped_lines

UNSAID = "(message hidden: it may contain item data; --show-values shows it)"
_LED_TO = "\nThe exception above led to the following exception:\n\n"


@dataclass(frozen=True, slots=True)
class Trace:
    """An error in full. ``stack`` quotes no value; ``words`` is everything that was said, and may quote some."""

    stack: str = ""
    words: str = ""


def trace(error: BaseException) -> Trace:
    chain = _chain(error)
    words = [f"{type(e).__name__}: {_words(e)}" for e in chain]
    return Trace(storable(_LED_TO.join(_shown(e, _safe_words(e)) for e in chain)), storable("\n".join(words)))


def storable(text: str) -> str:
    """Text as every store takes it: halves of surrogate pairs, which no encoding has, are escaped."""
    return text.encode(errors="backslashreplace").decode()


def said(error: BaseException) -> str:
    """The error's words where the code that raised it has them just so, else nothing."""
    words = _words(error)
    return words if words in _constants(error.__traceback__) else ""


def _words(error: BaseException) -> str:
    try:
        return str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    except Exception:  # somebody's __str__
        return ""


def _constants(at: TracebackType | None) -> set[object]:
    found: set[object] = set()
    for frame, _ in traceback.walk_tb(at):
        found.update(_texts(frame.f_code))
    return found


def _texts(code: CodeType) -> Iterator[str]:
    return (constant for constant in code.co_consts if isinstance(constant, str))


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what led to it, the first one first."""
    found = [error]
    while (before := _before(found[-1])) is not None and not any(before is e for e in found):
        found.append(before)
    return found[::-1]


def _before(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _safe_words(error: BaseException) -> str:
    return said(error) or (UNSAID if _words(error) else "")


def _shown(error: BaseException, words: str) -> str:
    stack = "".join(traceback.format_tb(error.__traceback__))
    last = f"{type(error).__name__}{': ' if words else ''}{words}"
    return f"Traceback (most recent call last):\n{stack}{escaped(last)}\n"


def to_people(_error: BaseException, trace: str) -> None:
    print(escaped_lines(trace), end="", file=sys.stderr, flush=True)


def install(*, values: bool = False, tell: Callable[[BaseException, str], None] = to_people) -> None:
    """Show uncaught errors in this way from now on, those of threads too. ``values``: with everything that they say.

    ``tell`` shows an error and its traceback."""

    def show(_kind: object, error: BaseException, _at: object) -> None:
        shown = _LED_TO.join(_shown(e, _words(e) if values else _safe_words(e)) for e in _chain(error))
        tell(error, shown)

    def show_of_thread(given: threading.ExceptHookArgs) -> None:
        if given.exc_value is not None and not isinstance(given.exc_value, SystemExit):
            show(None, given.exc_value, None)

    sys.excepthook, threading.excepthook = show, show_of_thread
