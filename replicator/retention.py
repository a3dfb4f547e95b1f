"""For how long a record can be read, and for how long that is certain."""

from __future__ import annotations

RETENTION = 24 * 3600.0  # seconds for which AWS keeps each record at least


SAFE_AGE = RETENTION - 30 * 60  # two clocks that AWS tolerates, five minutes wrong each, and calls that take long


SAFE_SILENCE = RETENTION - 4 * 3600  # a few empty pages may be wrong, at AWS for the 4 hours that a shard is open
