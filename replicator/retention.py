"""How long stream records stay readable, and for how long that is certain."""

from __future__ import annotations

RETENTION = 24 * 3600.0  # seconds that AWS keeps each record, at least

CLOCKS = 10 * 60.0  # seconds between two clocks, each five minutes off, as AWS tolerates

SAFE_AGE = RETENTION - 30 * 60  # allows for two clocks, each five minutes off (AWS tolerates that), and slow requests

SAFE_SILENCE = RETENTION - 4 * 3600  # empty pages may be wrong for as long as a shard is open, 4 hours at AWS


def complete(since: float, through: float | None, now: float) -> bool:
    """Whether all records of a shard can still be read that were created after ``since`` and are not stored.

    ``through``: until when it was read, perhaps as empty pages; None: unknown.
    """
    return now - since < SAFE_AGE or (through is not None and now - through < SAFE_SILENCE)
