"""The names that replicator keeps for itself in an index, and beside it."""

from __future__ import annotations

from replicator.items.line_template import is_within

OURS = "replicator"
"""The object in each document with what is ours."""

WRITER = "-Replicator"
"""Behind an index's name: the alias that is written through, which is nobody else's.

The capital letter is what makes it safe: no index may have one in its name, so where the alias is gone the engine can
make no index of that name by itself. ``require_alias`` alone would not do, because deletes ignore it.
"""


def is_ours(name: object) -> bool:
    """Whether a field of this name is replicator's own, or inside it: the engines take a dot for an object."""
    return is_within(name, OURS)
