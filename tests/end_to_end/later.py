"""The function's handler in a container whose clock is ahead, by as many seconds as its environment says."""

from __future__ import annotations

import os
import time

AHEAD = "SECONDS_AHEAD"


if AHEAD in os.environ:
    _clock, _seconds = time.time, float(os.environ[AHEAD])
    time.time = lambda: _clock() + _seconds

from replicator.engine.aws_lambda import handler  # noqa: E402  # takes the clock as it is imported

__all__ = ["AHEAD", "handler"]
