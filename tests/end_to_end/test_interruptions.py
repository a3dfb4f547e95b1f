"""Whatever interrupts a run: nothing is lost, and nothing that was stored is applied again."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.end_to_end.targets import Lake
from tests.end_to_end.world import Copy, Load, Run, Source, eventually
from tests.servers.dynamodb_local import DynamoDBLocal
from tests.servers.postgres_fixtures import Database

KILLS = int(os.environ.get("REPLICATOR_KILLS", "50" if os.environ.get("REPLICATOR_PROVE") else "10"))
ON_THE_NEWEST = pytest.mark.parametrize("postgres_server", ["wheel"], indirect=True)


@pytest.fixture
def copy(tmp_path: Path, source: Source, postgres: Database) -> Copy:
    """A finished backfill of a few items, on each Postgres."""
    copy = Copy(tmp_path, source, postgres).configure()
    source.fill(30)
    copy.caught_up()
    return copy


def assert_all_once(copy: Copy, before: dict[str, int], written: int) -> None:
    """Equal, and each record written since was read, and applied, exactly once."""
    copy.assert_equal()
    after = copy.counts()
    assert after["read"] - before["read"] == written
    assert after["applied"] - before["applied"] == written
    assert after["superseded"] == before["superseded"]


def goes_on(copy: Copy, run: Run, more: int = 1) -> None:
    """Until the run has stored so many more records."""
    goal = stored(copy) + more
    run.eventually(lambda: stored(copy) >= goal, "the run stores something")


def stored(copy: Copy) -> int:
    return int(copy.query("SELECT sum(read) AS n FROM replicator.counts")[0]["n"])


@pytest.mark.timeout(60 + 30 * KILLS)
def test_after_kills_at_random_moments_nothing_is_lost_and_nothing_applied_again(
    copy: Copy, source: Source, local: DynamoDBLocal
) -> None:
    chance = random.Random(4)
    before, written = copy.counts(), source.records

    def roll(done: int) -> None:
        if done % 150 == 75:
            local.roll()

    with Load(source, seed=5, every=roll):
        for _ in range(KILLS):
            with copy.start() as run:
                goes_on(copy, run, more=chance.randrange(1, 60))
                run.kill()
    copy.caught_up()

    assert_all_once(copy, before, source.records - written)


@ON_THE_NEWEST
def test_a_run_ends_within_ten_seconds_of_sigterm_and_the_next_applies_nothing_again(
    copy: Copy, source: Source
) -> None:
    before, written = copy.counts(), source.records
    with Load(source, seed=6) as load:
        for _ in range(2):
            with copy.start() as run:
                goes_on(copy, run)
                assert run.stop(within=10.0).code == 0
                assert run.events("stopped")
        load.wait(10)
    copy.caught_up()

    assert_all_once(copy, before, source.records - written)
    assert copy.status()["phase"] == "stopped"


@ON_THE_NEWEST
def test_a_run_whose_target_hangs_still_ends_within_ten_seconds_of_sigterm(copy: Copy, source: Source) -> None:
    with copy.database.connect() as blocker, copy.start() as run:
        hang(copy, blocker, run)
        ended = run.stop(within=10.0)
        blocker.execute("ROLLBACK")
    copy.caught_up()

    assert ended.code == 0
    copy.assert_equal()


SLOW = """
import hashlib, pathlib

def hook(item):
    pathlib.Path(__file__).with_name("called").touch()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 30_000)  # some 10 ms, so that a page takes 20 s
    return dict(item)
"""


def test_a_run_that_makes_a_large_batch_with_a_slow_hook_ends_within_ten_seconds_of_sigterm(
    tmp_path: Path, source: Source
) -> None:
    lake = Lake(tmp_path, source, tmp_path / "lake").configure(SLOW)
    source.fill(2000)
    with lake.start() as run:
        run.eventually((tmp_path / "called").exists, "the hook is called")
        assert run.stop(within=10.0).code == 0
        assert run.events("stopped")
    assert lake.status()["phase"] == "stopped"
    assert lake.documents() == {}


@ON_THE_NEWEST
def test_a_second_sigterm_ends_a_run_at_once(copy: Copy, source: Source) -> None:
    with copy.database.connect() as blocker, copy.start() as run:
        hang(copy, blocker, run)
        eventually(lambda: again(run), "the second signal ends the run", within=5.0)
        blocker.execute("ROLLBACK")
    copy.caught_up()

    assert run.ended().code == 128 + signal.SIGTERM
    copy.assert_equal()


def hang(copy: Copy, blocker: psycopg.Connection, run: Run) -> None:
    """Let the run wait for a lock in the middle of a batch."""
    run.until("resuming")
    blocker.execute("BEGIN; LOCK TABLE copy")
    copy.source.put("k2", n=-2)
    run.eventually(lambda: blocked(copy), "the run waits for the lock")


def blocked(copy: Copy) -> bool:
    with copy.database.connect() as connection:
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        return bool(connection.execute(waiting).fetchall())


def again(run: Run) -> bool:
    """Signals that arrive together are one signal: ask until it is gone."""
    run.process.send_signal(signal.SIGTERM)
    return run.process.poll() is not None


@pytest.mark.parametrize(
    ("postgres_server", "how"), [("debian", "stopped"), ("wheel", "killed")], indirect=["postgres_server"]
)
def test_a_run_waits_for_a_postgres_that_is_down_says_so_and_goes_on(copy: Copy, source: Source, how: str) -> None:
    before, written = copy.counts(), source.records
    server = copy.database.server
    with Load(source, seed=7) as load, copy.start() as run:
        goes_on(copy, run)
        if how == "stopped":
            server.stop("fast")
        else:
            server.kill()
        waiting = run.until("waiting")
        load.wait(30)
        server.start()
        run.until("resuming after a wait")
        load.wait(10)
        goes_on(copy, run)
        assert run.stop().code == 0
    copy.caught_up()

    assert "Postgres at 127.0.0.1" in waiting["reason"]
    assert "next attempt in" in waiting["reason"]
    assert 23 < waiting["retention_left_hours"] <= 24
    assert_all_once(copy, before, source.records - written)


@ON_THE_NEWEST
def test_a_run_may_be_started_before_postgres_is(copy: Copy, source: Source) -> None:
    source.put("k1", n=-1)
    copy.database.server.stop()
    with copy.start("run", "--until", "caught-up") as run:
        waiting = run.until("waiting")
        copy.database.server.start()
        assert run.wait().code == 0

    assert "cannot be reached" in waiting["reason"]
    copy.assert_equal()


@ON_THE_NEWEST
def test_a_second_run_takes_over_and_the_first_stops_with_exit_code_5(copy: Copy, source: Source) -> None:
    before, written = copy.counts(), source.records
    with Load(source, seed=8) as load, copy.start() as first:
        goes_on(copy, first)
        with copy.start() as second:
            second.until("resuming")
            ended = first.wait(within=15.0)
            load.wait(30)
            assert second.stop().code == 0
    copy.caught_up()

    assert ended.code == 5
    assert "another run owns this pipeline" in ended.err
    assert_all_once(copy, before, source.records - written)


@ON_THE_NEWEST
def test_a_run_that_has_nothing_to_do_notices_a_second_one_too(copy: Copy) -> None:
    with copy.start() as first:
        first.until("progress", phase="live")
        with copy.start() as second:
            second.until("resuming")
            assert first.wait(within=15.0).code == 5
            assert second.stop().code == 0


@ON_THE_NEWEST
def test_a_run_that_waits_for_postgres_ends_cleanly_on_sigterm(copy: Copy) -> None:
    with copy.start() as run:
        run.until("progress", phase="live")
        copy.database.server.stop()
        run.until("waiting")
        assert run.stop(within=10.0).code == 0
    with copy.start() as run:
        run.until("waiting")
        assert run.stop(within=10.0).code == 0


@ON_THE_NEWEST
def test_a_postgres_that_lost_its_last_commits_is_repaired_by_reading_again_from_its_positions(
    copy: Copy, source: Source
) -> None:
    """A standby that was behind, a restored backup: positions and rows are from one moment, and go on from there."""
    before, written = copy.counts(), source.records
    behind = f"{copy.database.name}_behind"
    admin = copy.database.server.url()
    with psycopg.connect(admin, autocommit=True) as client:
        client.execute(clone(behind, copy.database.name))
    with Load(source, seed=9, keys=30) as load:
        load.wait(40)
    copy.caught_up()
    with psycopg.connect(admin, autocommit=True) as client:
        client.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(copy.database.name)))
        client.execute(clone(copy.database.name, behind))
        client.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(behind)))
    copy.caught_up()

    assert_all_once(copy, before, source.records - written)


def clone(new: str, of: str) -> sql.Composed:
    return sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(new), sql.Identifier(of))
