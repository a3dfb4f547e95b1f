"""What targets say of the notes that they keep beside their tables: which pipeline wrote last, and in which epoch."""

from __future__ import annotations


def superseding(place: str, later: int, epoch: int) -> str:
    """That a run of ``epoch`` writes to ``place`` in vain, since ``later`` wrote there after the run had opened it."""
    return (
        f"{place} was written by epoch {later} since this run, of epoch {epoch}, opened it: by a run of this pipeline "
        "whose checkpoints are stored elsewhere. What this run writes is superseded there. Let only one of them run"
    )
