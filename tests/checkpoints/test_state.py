"""Stored entries: which formats this version reads, and which it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from replicator.state import FORMAT, DamagedCheckpoint, Parked, PipelineState, decode, encode

STATE = PipelineState(1024, "stream", "table", "id", "following")


@pytest.mark.parametrize("format", [FORMAT, FORMAT - 1])
def test_the_current_and_older_formats_are_read(format: int) -> None:
    state = replace(STATE, format=format)
    assert decode("pipeline", "", encode(state)) == state


def test_a_newer_format_is_refused_and_the_message_says_what_to_do() -> None:
    with pytest.raises(DamagedCheckpoint) as found:
        decode("pipeline", "", encode(replace(STATE, format=FORMAT + 1)))
    assert str(found.value) == (
        f"the checkpoints have format {FORMAT + 1}, but this replicator reads up to {FORMAT}: use a newer one"
    )
    assert found.value.exit_code == 3


def test_a_parked_entry_keeps_the_counts_of_the_changes_it_replaces() -> None:
    value = Parked(("a",), 7, "no", 1.0, changes={"shard:s": 3}, leaves=(("orders", "x"),), base="{}")
    assert decode("parked", "a@7", encode(value)) == value
