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


def saved_already(
    saves: Sequence[Save], found: Mapping[tuple[str, str], Row], owners: Mapping[str, int], claims: Mapping[str, int]
) -> bool:
    """True if this process has already made exactly these saves. Fenced if they must not be made.

    ``claims``: the revisions of the owner entries that this process claimed, by id; none for a command. ``owners``: as
    they are stored.
    """
    check_owned(owners, claims)
    compared = [(save, found[save.kind, save.id]) for save in saves if save.expected is not None]
    telling = [save for save, _ in compared if save.expected or save.text is not None]
    if claims and telling and all(_is_made(save, row) for save, row in compared):
        return True
    for save, row in compared:
        if save.expected != row.revision:
            raise Fenced(
                f"the entry {save.kind} {save.id!r} has revision {row.revision} instead of {save.expected}: "
                "another process changed this pipeline's checkpoints"
            )
    return False


def check_owned(owners: Mapping[str, int], claims: Mapping[str, int]) -> None:
    """Fenced unless what is stored is what was claimed."""
    for slot, revision in claims.items():
        if owners[slot] != revision:
            what, who = (f"slot {slot}", "worker") if slot else ("this pipeline", "run")
            raise Fenced(f"another {who} owns {what} now: this {who} must stop")


def _is_made(save: Save, row: Row) -> bool:
    if save.text is None:
        return row.revision == 0
    return row == Row((save.expected or 0) + 1, save.text)
