"""Log events for people or for machines: one event a fact, its details as fields, no item's values among them."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from replicator.escape import escaped, escaped_lines

ROOT = "replicator"  # the logger whose events are shown; libraries keep theirs
# What they say holds credentials and items: headers, bodies, tracebacks with addresses. What it means is said by our
# errors. A hook that wants everything logged (``basicConfig(level=DEBUG)``) does not get that.
LIBRARIES = ("boto3", "botocore", "elastic_transport", "psycopg", "urllib3")
_SILENT = logging.CRITICAL + 1
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def fields(record: logging.LogRecord) -> Mapping[str, Any]:
    """What was passed as ``extra``."""
    return {name: value for name, value in vars(record).items() if name not in _OWN}


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, event, then the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Human(logging.Formatter):
    """``05:40:34+0200 shard ended  shard=shardId-000 records=12``."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S%z")
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        details = " ".join(_details(fields(record)))
        text = escaped(f"{time} {level}{record.getMessage()}{'  ' if details else ''}{details}")
        if not record.exc_info:
            return text
        return f"{text}\n{escaped_lines(self.formatException(record.exc_info), '    ')}"


def _details(fields: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """Fields for people: nested ones as ``counts.read=3``, numbers rounded, unknown and empty ones left out."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _details(value, f"{within}{name}.")
        elif value is not None and value != []:
            yield f"{within}{name}={round(value, 1) if isinstance(value, float) else value}"


class Events(logging.StreamHandler[TextIO]):
    """Prints events. Where the reader has gone (``| head``), the run is asked to stop, as SIGTERM would."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)
            return
        self.setStream(open(os.devnull, "w"))  # noqa: SIM115 - for the rest of the process
        os.kill(os.getpid(), signal.SIGTERM)


def start(formatter: logging.Formatter, stream: TextIO | None = None) -> logging.Handler:
    """Show the program's events from now on, on ``stream`` (standard output); calling it again replaces the last."""
    handler = Events(sys.stdout if stream is None else stream)
    handler.setFormatter(formatter)
    install(handler)
    return handler


def install(handler: logging.Handler) -> None:
    """Make ``handler`` the only one that the program's events go to."""
    logger = logging.getLogger(ROOT)
    for old in list(logger.handlers):
        logger.removeHandler(old)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def silence_libraries() -> None:
    """Keep libraries from logging anything, whatever the root's level is."""
    for name in [*LIBRARIES, *logging.root.manager.loggerDict]:
        library, dot, _ = name.partition(".")
        if library in LIBRARIES:
            logging.getLogger(name).setLevel(logging.NOTSET if dot else _SILENT)
