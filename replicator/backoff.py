"""Exponential backoff with jitter, for everything that retries."""

from __future__ import annotations

import random


def backoff(failures: int, random: random.Random, *, base: float, limit: float) -> float:
    """Seconds to wait after so many consecutive failures (1 or more).

    The ceiling doubles with each failure, from ``2 * base`` up to ``limit``. The wait is drawn from its upper half, so
    that it is never close to zero and clients that failed together do not retry together.
    """
    ceiling = min(limit, base * 2 ** min(failures, 10))
    return random.uniform(ceiling / 2, ceiling)
