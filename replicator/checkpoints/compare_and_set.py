"""The compare-and-set decision shared by all stores: whether a save is new, already made, or refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from replicator.errors import Fenced
from replicator.state import Save


class Row(msgspec.Struct, frozen=True):
    """A stored entry; revision 0 means that there is none."""

    revision: int = 0
    text: str | None = None


def saved_already(saves: Sequence[Save], found: Mapping[tuple[str, str], Row], owner: int, mine: int | None) -> bool:
    """True if this run has already made exactly these saves. Fenced if they must not be made.

    ``owner``: revision of the stored owner entry. ``mine``: the revision that this run claimed; None for a command.
    """
    if mine is not None and owner != mine:
        raise Fenced("another run owns this pipeline now: this run must stop")
    compared = [(save, found[save.kind, save.id]) for save in saves if save.expected is not None]
    telling = [save for save, _ in compared if save.expected or save.text is not None]
    if mine is not None and telling and all(_is_made(save, row) for save, row in compared):
        return True
    for save, row in compared:
        if save.expected != row.revision:
            raise Fenced(
                f"the entry {save.kind} {save.id!r} has revision {row.revision} instead of {save.expected}: "
                "another process changed this pipeline's checkpoints"
            )
    return False


def _is_made(save: Save, row: Row) -> bool:
    if save.text is None:
        return row.revision == 0
    return row == Row((save.expected or 0) + 1, save.text)
