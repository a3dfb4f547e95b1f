"""The SQLite store fulfills the contract; damage is always noticed, and no completed save is lost."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from replicator.checkpoints.sqlite import file
from replicator.checkpoints.sqlite.store import SqliteCheckpoints, SqliteOptions
from replicator.errors import ConfigError, Fenced, TransientError
from replicator.state import Counts, DamagedCheckpoint, Save
from replicator.testing.checkpoints_contract import Build, CheckpointsContract, SlottedContract, owner, parked

Sight = tuple[list[Any], dict[str, Counts], list[Any]]


class TestSqlite(CheckpointsContract, SlottedContract):
    takes_over = False

    @pytest.fixture
    def store(self, tmp_path: Path) -> Build:
        return lambda pipeline: SqliteCheckpoints(SqliteOptions(), pipeline, tmp_path)


def store(folder: Path, pipeline: str = "orders") -> SqliteCheckpoints:
    return SqliteCheckpoints(SqliteOptions(), pipeline, folder)


def filled(folder: Path) -> SqliteCheckpoints:
    """A run in the middle of its work: part of what it saved is still in the write-ahead log."""
    one = store(folder)
    one.claim(owner())
    one.save([Save("shard", f"s{n}", 0, f'"{"x" * n}"') for n in range(60)], {"shard:1": Counts(read=60, applied=60)})
    one.save([Save("parked", f"k{n}", None, parked("k", image="i" * 6000)) for n in range(8)])
    one.save([Save("shard", f"s{n}", 1, '"again"') for n in range(9)], {"shard:2": Counts(read=9, superseded=9)})
    return one


def left(folder: Path, *, killed: bool) -> Path:
    """The files that a run leaves in ``folder``: closed cleanly, or as they were when it was killed."""
    with contextlib.closing(filled(folder)):
        if killed:
            shutil.copytree(folder, folder / "killed", ignore=shutil.ignore_patterns("killed"))
    return folder / "killed" if killed else folder


def seen(folder: Path) -> Sight:
    with contextlib.closing(store(folder)) as one:
        state = one.read()
        return [e for e in state.entries if e.kind != "owner"], dict(state.counts), list(one.parked())


def claimed(folder: Path) -> Sight:
    with contextlib.closing(store(folder)) as one:
        state = one.claim(owner("later"))
        return [e for e in state.entries if e.kind != "owner"], dict(state.counts), list(one.parked())


# ownership


def test_a_second_run_is_refused_and_told_which_process_holds_the_lock(tmp_path: Path) -> None:
    with contextlib.closing(filled(tmp_path)), pytest.raises(Fenced) as caught:
        store(tmp_path).claim(owner("second"))
    assert str(caught.value) == (
        "another run has locked this pipeline: process 4711 on far-away, since 2023-11-14 22:13:20 UTC. "
        f"Stop that one first; two runs cannot share {tmp_path}/orders.checkpoints.lock"
    )
    claimed(tmp_path)


def test_removing_the_lock_file_of_a_live_run_fences_it_off(tmp_path: Path) -> None:
    with contextlib.closing(filled(tmp_path)) as early, contextlib.closing(store(tmp_path)) as late:
        (tmp_path / "orders.checkpoints.lock").unlink()
        late.claim(owner("late"))
        with pytest.raises(Fenced, match="another run owns this pipeline now"):
            early.save([])


_SAVING = """
import sys
from pathlib import Path
from replicator.state import Counts, Save
from replicator.checkpoints.sqlite.store import SqliteCheckpoints, SqliteOptions
from replicator.testing.checkpoints_contract import owner

one = SqliteCheckpoints(SqliteOptions(), "orders", Path(sys.argv[1]))
found = {e.id: e for e in one.claim(owner()).entries if e.kind == "shard"}
revision = found["a"].revision if found else 0
while True:
    saves = [Save("shard", id, revision, f'"{revision + 1}"') for id in "abcdef"]
    one.save(saves, {"shard:a": Counts(read=1)})
    revision += 1
    print(revision, flush=True)
"""


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_run_loses_nothing_that_was_reported_as_saved(tmp_path: Path, seed: int) -> None:
    chance, reported = random.Random(seed), 0
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", _SAVING, str(tmp_path)], stdout=subprocess.PIPE) as run:
            assert run.stdout is not None
            for _ in range(chance.randrange(1, 300)):
                reported = int(run.stdout.readline())
            run.send_signal(signal.SIGKILL)
            reported = max([reported, *map(int, run.stdout.read().split())])
        entries, counts, _ = seen(tmp_path)
        (revision,) = {e.revision for e in entries}
        assert (len(entries), counts["shard:a"].read) == (6, revision)
        assert revision in (reported, reported + 1)


# damage


def flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size))


def blank(path: Path, chance: random.Random) -> None:
    """A sector that was never written."""
    content = bytearray(path.read_bytes())
    at = chance.randrange(len(content)) // 512 * 512
    content[at : at + 512] = bytes(len(content[at : at + 512]))
    path.write_bytes(content)


def swap(path: Path, chance: random.Random) -> None:
    """Swap two pages."""
    content = path.read_bytes()
    pages = [content[at : at + 4096] for at in range(0, len(content), 4096)]
    first, second = chance.sample(range(len(pages)), 2)
    pages[first], pages[second] = pages[second], pages[first]
    path.write_bytes(b"".join(pages))


@pytest.mark.parametrize("damage", [flip, truncate, blank, swap])
@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_no_damage_goes_unnoticed(tmp_path: Path, damage: Callable[[Path, random.Random], None], suffix: str) -> None:
    """Either an error reports it, or everything is as it was saved."""
    (tmp_path / "run").mkdir()
    source = left(tmp_path / "run", killed=bool(suffix))
    right = seen(shutil.copytree(source, tmp_path / "right"))
    noticed = 0
    for seed in range(80):
        chance, folder = random.Random(seed), tmp_path / f"{seed}"
        shutil.copytree(source, folder)
        damage(folder / f"orders.checkpoints{suffix}", chance)
        for look in (seen, claimed):
            try:
                assert look(folder) == right, f"seed {seed}"
            except DamagedCheckpoint:
                noticed += 1
        shutil.rmtree(folder)
    assert noticed > 20


def test_the_message_about_damage_says_what_to_do(tmp_path: Path) -> None:
    path = left(tmp_path, killed=False) / "orders.checkpoints"
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(DamagedCheckpoint) as caught:
        claimed(tmp_path)
    assert str(caught.value).startswith(f"the checkpoints in {path} cannot be trusted: ")
    assert str(caught.value).endswith(
        "Nothing was changed. Restore the file as the last run left it; or move it away together with "
        "orders.checkpoints-wal and orders.checkpoints.lock, and start over with: replicator resync CONFIG --now"
    )


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"something else\n" * 500])
def test_a_file_that_is_not_a_checkpoint_file_is_left_unchanged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "orders.checkpoints"
    path.write_bytes(content)
    for look in (seen, claimed):
        with pytest.raises(DamagedCheckpoint):
            look(tmp_path)
    assert path.read_bytes() == content


def test_another_applications_database_is_refused(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "orders.checkpoints")) as other:
        other.execute("CREATE TABLE pets (name TEXT)")
    with pytest.raises(DamagedCheckpoint, match="it is not a checkpoint file"):
        claimed(tmp_path)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM entries WHERE id = 's7'",
        "DELETE FROM counts WHERE source = 'shard:2'",
        "UPDATE entries SET text = '\"more\"' WHERE id = 's7'",
        "UPDATE entries SET revision = revision + 1 WHERE id = 's7'",
        "UPDATE entries SET id = 'k99' WHERE id = 'k1'",
        "UPDATE entries SET text = NULL WHERE id = 'k1'",
        "UPDATE counts SET read = read + 1, applied = applied + 1",
        "UPDATE counts SET read = 'many'",
        "UPDATE store SET pipeline = 'customers'",
        "DELETE FROM store",
        "INSERT INTO store (one) VALUES (2)",
        "DROP TABLE counts",
        "ALTER TABLE entries ADD COLUMN more TEXT",
    ],
)
def test_a_row_modified_by_hand_is_noticed(tmp_path: Path, statement: str) -> None:
    left(tmp_path, killed=False)
    with contextlib.closing(sqlite3.connect(tmp_path / "orders.checkpoints")) as hand:
        hand.execute(statement)
        hand.commit()
    for look in (seen, claimed):
        with pytest.raises(DamagedCheckpoint):
            look(tmp_path)


def test_rows_reverted_to_an_earlier_state_are_noticed(tmp_path: Path) -> None:
    """As a lost write to one page would leave them: each row is valid by itself."""
    with contextlib.closing(filled(tmp_path)) as one:
        with contextlib.closing(sqlite3.connect(tmp_path / "orders.checkpoints")) as hand:
            earlier = hand.execute("SELECT * FROM entries WHERE id = 's3'").fetchone()
        one.save([Save("shard", "s3", 2, '"later"')])
    with contextlib.closing(sqlite3.connect(tmp_path / "orders.checkpoints")) as hand:
        hand.execute("REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?)", earlier)
        hand.commit()
    with pytest.raises(DamagedCheckpoint, match="entries are missing, or older than others"):
        seen(tmp_path)


def test_an_older_file_is_noticed(tmp_path: Path) -> None:
    path = left(tmp_path, killed=False) / "orders.checkpoints"
    backup = path.read_bytes()
    with contextlib.closing(store(tmp_path)) as one:
        one.claim(owner("later"))
        one.save([Save("shard", "s0", 2, '"later"')])
    path.write_bytes(backup)
    for look in (seen, claimed):
        with pytest.raises(DamagedCheckpoint, match=r"it is older than the last run left it \(4 saves instead of 6\)"):
            look(tmp_path)


def test_an_older_file_is_noticed_after_a_run_whose_workers_saved_what_it_lacks(tmp_path: Path) -> None:
    """With Ray, the process that has claimed the pipeline saves nothing itself."""
    path, backup = left(tmp_path, killed=False) / "orders.checkpoints", tmp_path / "backup"
    with contextlib.ExitStack() as processes:
        run, *workers = (processes.enter_context(contextlib.closing(store(tmp_path))) for _ in range(3))
        revision = run.claim(owner("run")).revision
        for n, worker in enumerate(workers):
            worker.claim_slot(owner(f"worker {n}"), str(n), revision)
        with contextlib.closing(sqlite3.connect(path)) as hand, contextlib.closing(sqlite3.connect(backup)) as copy:
            hand.backup(copy)
        for worker in workers:
            worker.save([Save("shard", f"of {id(worker)}", 0, '"new"')])
    backup.replace(path)
    for look in (seen, claimed):
        with pytest.raises(DamagedCheckpoint, match="it is older than the last run left it"):
            look(tmp_path)


def test_an_older_file_is_accepted_once_the_lock_file_is_removed(tmp_path: Path) -> None:
    """It is rarely harmful: the target ignores replays, and records that the stream has dropped are a gap."""
    path = left(tmp_path, killed=False) / "orders.checkpoints"
    backup, right = path.read_bytes(), seen(tmp_path)
    claimed(tmp_path)
    path.write_bytes(backup)
    (tmp_path / "orders.checkpoints.lock").unlink()
    assert claimed(tmp_path) == right


def test_a_file_of_a_newer_replicator_is_refused(tmp_path: Path) -> None:
    left(tmp_path, killed=False)
    with contextlib.closing(sqlite3.connect(tmp_path / "orders.checkpoints", isolation_level=None)) as newer:
        newer.execute("ALTER TABLE entries ADD COLUMN more TEXT")
        file.write_head(newer, file.Head("orders", format=2))
    with pytest.raises(
        DamagedCheckpoint, match="its format is 2, but this replicator reads 1; use the version that made it"
    ):
        claimed(tmp_path)


def test_a_file_of_another_pipeline_is_refused(tmp_path: Path) -> None:
    left(tmp_path, killed=False)
    other = SqliteCheckpoints(SqliteOptions(path="orders.checkpoints"), "customers", tmp_path)
    with contextlib.closing(other), pytest.raises(ConfigError, match=r"belongs to pipeline 'orders'.*'customers'"):
        other.claim(owner())


def test_a_file_that_vanishes_or_is_replaced_ends_the_run(tmp_path: Path) -> None:
    path = tmp_path / "orders.checkpoints"
    with contextlib.closing(filled(tmp_path)) as one:
        path.rename(tmp_path / "away")
        with pytest.raises(DamagedCheckpoint, match="removed or replaced while this run used it"):
            one.save([])
        shutil.copy(tmp_path / "away", path)
        with pytest.raises(DamagedCheckpoint, match="removed or replaced while this run used it"):
            one.save([Save("shard", "new", 0, "1")])


def test_after_the_file_is_lost_a_new_one_starts_empty(tmp_path: Path) -> None:
    """The run itself stops: the target's epoch shows that there was a file (see replicator.engine.startup)."""
    path = left(tmp_path, killed=True) / "orders.checkpoints"
    assert path.with_name(path.name + "-wal").stat().st_size > 0
    path.unlink()
    assert seen(path.parent) == ([], {}, [])
    assert claimed(path.parent) == ([], {}, [])


def test_a_path_that_cannot_hold_a_file_is_reported(tmp_path: Path) -> None:
    nowhere = SqliteCheckpoints(SqliteOptions(path="no/such.db"), "orders", tmp_path)
    assert nowhere.check() == [f"checkpoints.path: there is no folder {tmp_path}/no; create it"]
    with pytest.raises(ConfigError, match="there is no folder"):
        nowhere.claim(owner())
    (tmp_path / "orders.checkpoints").mkdir()
    with pytest.raises(ConfigError, match=r"cannot be written: .*checkpoints: \{type: sqlite, path: ...\}"):
        claimed(tmp_path)


@contextlib.contextmanager
def full(one: SqliteCheckpoints) -> Iterator[None]:
    """The file cannot grow by a single page."""
    connection = one._open()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    yield
    connection.execute("PRAGMA max_page_count = 1000000")


@pytest.mark.parametrize(
    ("free", "said"), [(0, "disk I/O error (its disk is full); positions"), (1 << 20, "disk I/O error; positions")]
)
def test_a_full_disk_is_named_even_if_sqlite_only_reports_an_io_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, said: str
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_frsize=1, f_bavail=free))
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR
    with pytest.raises(TransientError) as caught, file.guarded(tmp_path / "kept"):
        raise error
    assert said in str(caught.value)


def test_on_a_full_disk_nothing_counts_as_saved_until_space_is_free(tmp_path: Path) -> None:
    large = [Save("parked", f"new{n}", None, parked("new", image="i" * 60_000)) for n in range(4)]
    with contextlib.closing(filled(tmp_path)) as one:
        before = seen(tmp_path)
        with full(one):
            for _ in range(2):
                with pytest.raises(
                    TransientError, match=r"cannot be saved: database or disk is full; positions do not advance"
                ):
                    one.save([Save("shard", "s9", 1, '"again"'), *large], {"shard:2": Counts(read=1, superseded=1)})
            assert seen(tmp_path) == before
        one.save([Save("shard", "s9", 1, '"again"'), *large], {"shard:2": Counts(read=1, superseded=1)})
    entries, counts, parked_entries = seen(tmp_path)
    assert (len(entries), counts["shard:2"].read, len(parked_entries)) == (60 + 8 + 4, 10, 12)


def test_a_read_only_file_is_reported_with_what_to_do(tmp_path: Path) -> None:
    with contextlib.closing(filled(tmp_path)) as one:
        one._open().execute("PRAGMA query_only = ON")
        with pytest.raises(
            ConfigError, match=r"cannot be written: attempt to write a readonly database. Allow this user"
        ):
            one.save([Save("shard", "new", 0, "1")])


@pytest.mark.skipif(not Path("/sys").is_dir(), reason="Linux has a folder in which no user can create files")
def test_a_folder_that_not_even_root_can_write_to_is_reported(tmp_path: Path) -> None:
    nowhere = SqliteCheckpoints(SqliteOptions(path="/sys/orders.checkpoints"), "orders", tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be written: .*(Permission denied|Read-only file system)"):
        nowhere.claim(owner())


def test_a_system_without_file_locks_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(ConfigError, match=r"needs file locks \(Linux or macOS\).*use dynamodb or postgres"):
        store(tmp_path).claim(owner())
    assert not (tmp_path / "orders.checkpoints").exists()


def test_check_reads_the_whole_file_and_creates_nothing(tmp_path: Path) -> None:
    one = store(tmp_path)
    assert (one.check(), one.plan()) == ([], [f"create the file {tmp_path}/orders.checkpoints"])
    one.create()
    assert list(tmp_path.iterdir()) == []
    path = left(tmp_path, killed=False) / "orders.checkpoints"
    assert (one.check(), one.plan(), one.place) == ([], [], f"the file {path}")
    one.close()
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DamagedCheckpoint):
        one.check()


# permissions and symbolic links


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_only_the_owner_can_read_the_files(tmp_path: Path) -> None:
    """Parked changes hold whole items."""
    with contextlib.closing(filled(tmp_path)) as one:
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
        assert modes.keys() >= {f"orders.checkpoints{end}" for end in ("", "-wal", "-shm", ".lock")}
        assert set(modes.values()) == {0o600}, modes
        assert one.warnings() == []


def test_files_accessible_to_other_users_are_named_with_what_to_do(tmp_path: Path) -> None:
    with contextlib.closing(filled(tmp_path)) as one:
        (tmp_path / "orders.checkpoints").chmod(0o644)
        (tmp_path / "orders.checkpoints-wal").chmod(0o620)
        tmp_path.chmod(0o777)
        file, log, folder = one.warnings()
        tmp_path.chmod(0o1777)
        assert len(one.warnings()) == 2
    assert "(mode 0644); chmod 600 " in file
    assert "orders.checkpoints-wal (mode 0620); chmod 600 " in log
    assert f"other users may replace files in the folder {tmp_path}; chmod go-w {tmp_path}" in folder


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_named(tmp_path: Path) -> None:
    with contextlib.closing(filled(tmp_path)) as one:
        os.chown(tmp_path / "orders.checkpoints.lock", 65534, -1)
        assert ["belongs to another user (id 65534)" in text for text in one.warnings()] == [True]


@pytest.mark.parametrize("ending", ["", ".lock", "-wal", "-shm", "-journal"])
def test_a_symbolic_link_in_place_of_a_file_is_refused_and_its_target_unchanged(tmp_path: Path, ending: str) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    if ending:
        left(folder, killed=False)
    victim = tmp_path / "victim"
    victim.write_text("not ours")
    place = folder / f"orders.checkpoints{ending}"
    place.unlink(missing_ok=True)
    place.symlink_to(victim)

    with pytest.raises(ConfigError, match=f"orders.checkpoints{ending} is a symbolic link, which replicator does not"):
        claimed(folder)
    assert victim.read_text() == "not ours"


def test_a_symbolic_link_created_after_the_check_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "check_links", lambda path: None)
    victim = tmp_path / "victim"
    victim.write_text("not ours")
    (tmp_path / "orders.checkpoints.lock").symlink_to(victim)

    with pytest.raises(ConfigError, match="cannot be written"):
        claimed(tmp_path)
    assert victim.read_text() == "not ours"


def test_a_symbolic_link_at_the_temporary_path_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (tmp_path / "orders.checkpoints.new").symlink_to(victim)
    left(tmp_path, killed=False)
    assert not victim.exists()


def test_a_pipe_in_place_of_the_lock_file_does_not_block(tmp_path: Path) -> None:
    left(tmp_path, killed=False)
    (tmp_path / "orders.checkpoints.lock").unlink()
    os.mkfifo(tmp_path / "orders.checkpoints.lock")
    assert seen(tmp_path)
    with pytest.raises(ConfigError, match="cannot be written"):
        claimed(tmp_path)
