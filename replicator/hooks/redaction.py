"""What is shown of unexpected exceptions: types, files and lines, but only messages that cannot contain data.

An exception's message may quote item data or a password. It certainly does not if it is a string constant in the code
that raised it, as in ``raise ValueError("no total")``. Every other message is hidden.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, TracebackType

from replicator.escape import escaped, escaped_lines

HIDDEN = "(message hidden: it may contain item data; --show-values shows it)"
_SEPARATOR = "\nThe exception above led to the following exception:\n\n"


@dataclass(frozen=True, slots=True)
class Trace:
    """Details of an exception. ``stack`` contains no data; ``words``, all messages in full, may."""

    stack: str = ""
    words: str = ""


def trace(error: BaseException) -> Trace:
    chain = _chain(error)
    messages = [f"{type(e).__name__}: {_message(e)}" for e in chain]
    return Trace(
        storable(_SEPARATOR.join(_formatted(e, _safe_or_hidden(e)) for e in chain)), storable("\n".join(messages))
    )


def storable(text: str) -> str:
    """Text that every checkpoint store accepts: halves of surrogate pairs are escaped."""
    return text.encode(errors="backslashreplace").decode()


def safe_message(error: BaseException) -> str:
    """The exception's message if it is a string constant in the code that raised it, else ""."""
    message = _message(error)
    return message if message in _constants(error.__traceback__) else ""


def _message(error: BaseException) -> str:
    try:
        return str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    except Exception:  # a custom __str__ that fails
        return ""


def _constants(at: TracebackType | None) -> set[object]:
    constants: set[object] = set()
    for frame, _ in traceback.walk_tb(at):
        constants.update(_texts(frame.f_code))
    return constants


def _texts(code: CodeType) -> Iterator[str]:
    return (constant for constant in code.co_consts if isinstance(constant, str))


def _chain(error: BaseException) -> list[BaseException]:
    """The exception and its causes, oldest first."""
    chain = [error]
    while (cause := _cause(chain[-1])) is not None and not any(cause is e for e in chain):
        chain.append(cause)
    return chain[::-1]


def _cause(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _safe_or_hidden(error: BaseException) -> str:
    return safe_message(error) or (HIDDEN if _message(error) else "")


def _formatted(error: BaseException, message: str) -> str:
    stack = "".join(traceback.format_tb(error.__traceback__))
    last = f"{type(error).__name__}{': ' if message else ''}{message}"
    return f"Traceback (most recent call last):\n{stack}{escaped(last)}\n"


def print_trace(_error: BaseException, trace: str) -> None:
    print(escaped_lines(trace), end="", file=sys.stderr, flush=True)


def install(*, values: bool = False, tell: Callable[[BaseException, str], None] = print_trace) -> None:
    """Show uncaught exceptions this way from now on, also those of threads.

    ``values``: with all messages in full. ``tell`` receives an exception and its formatted traceback.
    """

    def show(_kind: object, error: BaseException, _at: object) -> None:
        messages = [(e, _message(e) if values else _safe_or_hidden(e)) for e in _chain(error)]
        tell(error, _SEPARATOR.join(_formatted(e, message) for e, message in messages))

    def show_in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            show(None, args.exc_value, None)

    sys.excepthook, threading.excepthook = show, show_in_thread
