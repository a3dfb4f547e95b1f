"""Records that can no longer be read: said with exit code 3, kept, and repaired by a resync, deletes included."""

from __future__ import annotations

from tests.end_to_end.world import Copy, Ended, Source
from tests.servers.dynamodb_local import DynamoDBLocal

DOUBLED = """
def hook(item):
    return {"double": item["n"] * 2}
"""


def begun(copy: Copy) -> Copy:
    """A copy of a few items."""
    copy.source.fill(20)
    copy.caught_up()
    return copy


def change_unseen(source: Source) -> None:
    """Changes that no run reads before they are gone: new, changed and deleted items."""
    source.put("k1", n=-1)
    source.put("new", n=1)
    source.delete("k2")
    source.delete("k3")


def assert_gap(copy: Copy, ended: Ended, reason: str) -> None:
    """Exit code 3 with the reason, which status lists, and again however often one tries."""
    assert ended.code == 3, ended
    assert reason in ended.err
    assert "replicator resync" in ended.err
    status = copy.status()
    assert status["phase"] == "gap"
    assert status["gaps"] == 1
    assert reason in status["gap_list"][0]["reason"]
    again = copy.command("run", "--until", "caught-up")
    assert again.code == 3
    assert reason in again.err
    assert copy.status()["gaps"] == 1


def assert_repaired(copy: Copy, epoch: int = 1025) -> None:
    """Equal, and live again without a gap."""
    copy.assert_equal()
    status = copy.status()
    assert (status["gaps"], status["phase"], status["epoch"]) == (0, "stopped", epoch)
    gaps = copy.query("SELECT value FROM replicator.checkpoints WHERE kind = 'gap'")
    assert all(gap["value"]["repaired"] for gap in gaps)
    copy.source.put("after", n=1)
    copy.source.delete("k4")
    copy.caught_up()
    copy.assert_equal()
    copy.counts()


def test_a_trimmed_stream_is_a_gap_and_a_resync_repairs_it_deletes_included(
    clocked_copy: Copy, clocked: DynamoDBLocal
) -> None:
    copy = begun(clocked_copy)
    change_unseen(copy.source)
    clocked.roll()
    clocked.advance(hours=25)
    copy.source.put("k5", n=-5)

    assert_gap(copy, copy.command("run", "--until", "caught-up"), "no longer exists")
    assert copy.documents().keys() >= {"k2", "k3"}  # what was copied stays as it is
    copy.caught_up("resync")
    assert_repaired(copy)


def test_a_shard_trimmed_in_the_middle_is_repaired_in_the_same_run_where_that_is_wished(
    clocked_copy: Copy, clocked: DynamoDBLocal
) -> None:
    copy = begun(clocked_copy)
    change_unseen(copy.source)
    clocked.advance(hours=25)
    copy.source.put("k5", n=-5)
    copy.configure(on_gap="resync")
    ended = copy.caught_up()

    (gap,) = [line for line in ended.lines if line["event"] == "gap"]
    assert "trimmed" in gap["reason"]
    assert copy.query("SELECT count(*) AS n FROM replicator.checkpoints WHERE kind = 'gap'") == [{"n": 1}]
    assert_repaired(copy)


def test_expired_iterators_are_replaced_and_nothing_is_lost_or_read_twice(
    clocked_copy: Copy, clocked: DynamoDBLocal
) -> None:
    copy = begun(clocked_copy)
    before, written = copy.counts(), copy.source.records
    with copy.start() as run:
        run.until("resuming")
        for n in range(2):
            copy.source.put("k1", n=n, round=n)
            copy.source.put("new", n=n, round=n)
            run.eventually(copy.equal, "the run is live")
            clocked.advance(minutes=16)
        copy.source.put("k1", n=7)
        copy.source.delete("k2")
        run.eventually(copy.equal, "the run goes on")
        assert run.stop().code == 0

    after = copy.counts()
    assert after["read"] - before["read"] == copy.source.records - written
    assert after["applied"] - before["applied"] == copy.source.records - written


def test_a_disabled_stream_is_read_to_its_end_and_then_a_gap(copy: Copy, source: Source) -> None:
    begun(copy)
    with copy.start() as run:
        run.until("resuming")
        source.put("last", n=1)
        source.stream(enabled=False)
        ended = run.wait()
    assert copy.equal()
    assert_gap(copy, ended, "the stream was disabled")
    source.delete("k2")  # no record tells

    source.stream(enabled=True)
    assert copy.command("run").code == 3
    copy.caught_up("resync")
    assert_repaired(copy)


def test_a_stream_that_was_replaced_between_runs_is_a_gap(copy: Copy, source: Source) -> None:
    begun(copy)
    source.stream(enabled=False)
    source.delete("k2")
    source.stream(enabled=True)
    source.put("new", n=1)

    assert_gap(copy, copy.command("run"), "the stream was replaced")
    copy.caught_up("resync")
    assert_repaired(copy)


def test_a_table_dropped_between_runs_is_a_gap(copy: Copy) -> None:
    begun(copy)
    with copy.database.connect() as connection:
        connection.execute("DROP TABLE copy")

    assert_gap(copy, copy.command("run"), '"copy" is gone from the target since the last run')
    copy.caught_up("resync")
    assert_repaired(copy)


def test_lost_checkpoints_are_a_gap(copy: Copy, local: DynamoDBLocal, source: Source) -> None:
    begun(copy)
    source.delete("k2")
    local.roll()  # the record of the delete is in a shard that the resync does not read
    with copy.database.connect() as connection:
        connection.execute("DROP SCHEMA replicator CASCADE")

    assert_gap(copy, copy.command("run"), "checkpoints are lost")
    copy.caught_up("resync")
    assert_repaired(copy)


def test_a_table_dropped_under_a_run_ends_it_with_what_to_do(copy: Copy, source: Source) -> None:
    begun(copy)
    with copy.start() as run:
        run.until("resuming")
        with copy.database.connect() as connection:
            connection.execute("DROP TABLE copy")
        source.put("k1", n=-1)
        ended = run.wait()

    assert ended.code == 2
    assert "it was dropped or changed: run check" in ended.err


def test_a_changed_hook_needs_a_decision_and_either_one_goes_on(copy: Copy, source: Source) -> None:
    copy.configure("def hook(item):\n    return {'n': item['n']}\n")
    begun(copy)
    copy.configure(DOUBLED)
    refused = copy.command("run", "--until", "caught-up")
    source.put("k1", n=-1)
    copy.caught_up("run", "--accept-hook-change")
    accepted = copy.documents()
    copy.caught_up()
    copy.caught_up("resync")

    assert refused.code == 2
    assert "the hook changed since the last run" in refused.err
    assert "--accept-hook-change" in refused.err
    assert accepted["k1"] == {"double": -2}
    assert accepted["k7"] == {"n": 7}
    assert copy.documents() == {pk: {"double": item["n"] * 2} for pk, item in source.items().items()}
