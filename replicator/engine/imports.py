"""Reports a hook that takes long to import. The run waits for it: nothing can be copied without the hook."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

log = logging.getLogger("replicator")

IMPORT_TIMEOUT = 30.0  # seconds; large libraries take several to load


@contextlib.contextmanager
def reporting(pipeline: str, after: float) -> Iterator[None]:
    """Log once that the hook is not imported yet if the block takes longer than ``after`` seconds."""
    timer = threading.Timer(after, _report, (pipeline, after))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _report(pipeline: str, seconds: float) -> None:
    log.error(
        "hook is not imported",
        extra={
            "pipeline": pipeline,
            "seconds": seconds,
            "do": "the pipeline starts when the file that transform names, and all that it imports, has been executed: "
            "look there for code outside of functions that waits or loops",
        },
    )
