"""Ids of gaps: none is recorded in place of another one."""

from replicator.pipeline.checkpoint_view import gap_id


def test_gaps_that_are_found_in_one_millisecond_have_ids_of_their_own_in_the_order_in_which_they_were_found() -> None:
    found: list[str] = []
    for _ in range(3):
        found.append(gap_id(1_700_000_000.0004, "", found))
    assert found == ["0001700000000.000", "0001700000000.001", "0001700000000.002"]
    assert gap_id(1_700_000_000.0004, "1", found) == f"{found[0]}@1"
