"""Structured log events, as JSON lines or human-readable text. Fields never contain item values."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

from replicator.escape import escaped, escaped_lines

ROOT = "replicator"  # the logger whose events are shown
PIPELINE = "pipeline"  # names of threads begin with it, a space and the name of the pipeline that runs there
# Their messages contain credentials and items (headers, bodies, addresses), and our errors say what they mean. So they
# stay silent, even if a hook calls ``basicConfig(level=DEBUG)``.
LIBRARIES = ("asyncio", "boto3", "botocore", "elastic_transport", "psycopg", "urllib3", "uvicorn")
TARGET: ContextVar[str | None] = ContextVar("target", default=None)
"""The name of the target that messages are about; None: its config has one target, or they are about all."""
_OF_ONE_TARGET = (
    *("resync", "verify", "preview", "cutover", "strip", "infer", "parked list", "parked retry", "parked drop"),
    *("rebuild start", "rebuild switch", "rebuild rollback", "rebuild finish", "rebuild cancel"),
)
_BACKFILL = "--until backfilled"  # with which a run is one target's
_SILENT = logging.CRITICAL + 1
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def fields(record: logging.LogRecord) -> Mapping[str, Any]:
    """The fields passed as ``extra``, without those that libraries add to every record (``_…``)."""
    return {name: with_target(value) for name, value in vars(record).items() if name not in _OWN and name[:1] != "_"}


def with_target(value: Any) -> Any:
    """A value for users, in whose texts the commands that need it name the ``TARGET``."""
    target = TARGET.get()
    if target is None:
        return value
    if isinstance(value, list):
        return list(map(with_target, value))
    if isinstance(value, dict):
        return {name: with_target(inner) for name, inner in value.items()}
    if not isinstance(value, str) or "CONFIG" not in value:
        return value
    for config in ("CONFIG", "OLD_CONFIG", "NEW_CONFIG"):
        for command in _OF_ONE_TARGET:
            given = f"replicator {command} {config}"
            value = value.replace(given, f"{given} --target {target}")
        value = value.replace(f"run {config} {_BACKFILL}", f"run {config} --target {target} {_BACKFILL}")
    return value


class JsonLines(logging.Formatter):
    """One JSON object per line: time, level, event, then the event's fields."""

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
    """Fields as text: nested ones as ``counts.read=3``, floats rounded, None and empty lists left out."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _details(value, f"{within}{name}.")
        elif value is not None and value != []:
            yield f"{within}{name}={round(value, 1) if isinstance(value, float) else value}"


class NamesPipeline(logging.Filter):
    """Adds to an event the pipeline on whose thread it happened: see ``PIPELINE``."""

    def filter(self, record: logging.LogRecord) -> bool:
        thread, _, pipeline = (record.threadName or "").partition(" ")
        if thread == PIPELINE and not hasattr(record, "pipeline"):
            record.pipeline = pipeline
        return True


class Events(logging.StreamHandler[TextIO]):
    """Prints events. When the reader has closed the pipe (``| head``), stops the run as SIGTERM would."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)
            return
        self.setStream(open(os.devnull, "w"))  # noqa: SIM115 - until the process ends
        os.kill(os.getpid(), signal.SIGTERM)


def start(formatter: logging.Formatter, stream: TextIO | None = None) -> logging.Handler:
    """Print the program's events to ``stream`` (default: standard output). Replaces a previous handler."""
    handler = Events(sys.stdout if stream is None else stream)
    handler.setFormatter(formatter)
    install(handler)
    return handler


def install(handler: logging.Handler) -> None:
    """Make ``handler`` the only handler of the program's events."""
    logger = logging.getLogger(ROOT)
    for old in list(logger.handlers):
        logger.removeHandler(old)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def silence_libraries() -> None:
    """Keep libraries from logging, whatever the root logger's level."""
    for name in [*LIBRARIES, *logging.root.manager.loggerDict]:
        library, dot, _ = name.partition(".")
        if library in LIBRARIES:
            logging.getLogger(name).setLevel(logging.NOTSET if dot else _SILENT)
