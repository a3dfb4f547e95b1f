"""Whether a save may be made, was made already, or is refused: the same decision for every store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from replicator.errors import Fenced
from replicator.state import Save


class Row(msgspec.Struct, frozen=True):
    """An entry as it is stored; revision 0 is none."""

    revision: int = 0
    text: str | None = None


def saved_already(saves: Sequence[Save], found: Mapping[tuple[str, str], Row], owner: int, mine: int | None) -> bool:
    """True if this run has made exactly these saves before; Fenced if they may not be made.

    ``owner``: the stored owner's revision; ``mine``: the one that this run claimed with, None for a command beside it.
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
                "somebody else changed this pipeline's checkpoints"
            )
    return False


def _is_made(save: Save, row: Row) -> bool:
    if save.text is None:
        return row.revision == 0
    return row == Row((save.expected or 0) + 1, save.text)
