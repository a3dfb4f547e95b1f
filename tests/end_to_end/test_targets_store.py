"""Checkpoints in a file beside the config, for a target that keeps none: one run at a time, no silent fresh start."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end import targets
from tests.end_to_end.targets import MAPPING, Index
from tests.end_to_end.world import Load, Source
from tests.servers.search_fixtures import Search

pytestmark = pytest.mark.search


@pytest.fixture
def index(tmp_path: Path, source: Source, one_search: Search) -> Index:
    """A pipeline that has caught up, with its checkpoints in ``copy.checkpoints``."""
    index = Index(tmp_path, source, one_search, options={"mapping": MAPPING})
    index.configured()
    source.fill(30)
    index.caught_up()
    return index


def saved(index: Index) -> list[Path]:
    """The store's files."""
    return sorted(index.folder.glob("copy.checkpoints*"))


def test_a_second_run_is_told_who_has_the_pipeline_and_the_first_continues(index: Index, source: Source) -> None:
    with index.start() as first:
        first.until("progress", phase="live")
        second = index.command("run")
        source.put("k1", n=1001)
        first.eventually(lambda: index.documents()["k1"]["n"] == 1001, "the first run goes on")
        assert first.stop().code == 0

    assert second.code == 5
    assert f"another run has locked this pipeline: process {first.process.pid} on " in second.err
    assert "Stop that one first" in second.err


def test_the_files_of_a_killed_run_block_no_one(index: Index, source: Source) -> None:
    with index.start() as first:
        first.until("progress", phase="live")
        first.kill()
    source.delete("k1")
    index.caught_up()

    assert index.documents() == targets.through_the_hook(source.items().values())


def test_on_a_full_disk_a_run_waits_and_says_so_and_no_position_moves(index: Index, source: Source) -> None:
    """The disk is full for this process: a limit of the system's on the size of what it writes."""
    with index.start() as run:
        run.until("progress", phase="live")
        wal = index.folder / "copy.checkpoints-wal"
        _, most = resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE)
        run.eventually(lambda: wal.stat().st_size > 2 * run.size, "the log beside it stays within the limit")
        before = index.status()["counts"]["read"]
        resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (wal.stat().st_size, most))
        source.put("k1", n=1001)
        waiting = run.until("waiting")
        meanwhile = index.status()
        resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (most, most))
        run.until("resuming after a wait")
        run.eventually(lambda: index.status()["counts"]["read"] == before + 1, "the change counts as read")
        assert run.stop().code == 0

    assert f"the checkpoints in {index.folder / 'copy.checkpoints'} cannot be saved" in waiting["reason"]
    assert meanwhile["counts"]["read"] == before
    assert index.documents() == targets.through_the_hook(source.items().values())


def test_status_and_check_work_beside_a_run(index: Index) -> None:
    with index.start() as run:
        run.until("progress", phase="live")
        assert index.status()["phase"] == "live"
        assert index.command("check").code == 0
        assert run.stop().code == 0


def test_without_its_file_a_run_stops_with_exit_code_3_and_begins_anew_only_when_told_to(
    index: Index, source: Source
) -> None:
    for file in saved(index):
        file.unlink()
    stopped = index.command("run", "--until", "caught-up")
    source.delete("k1")
    index.caught_up("resync")

    assert stopped.code == 3
    assert "of a pipeline whose checkpoints are lost" in stopped.err
    assert "replicator resync" in stopped.err
    assert index.documents() == targets.through_the_hook(source.items().values())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]), "cannot be trusted"),
        (lambda file: file.write_bytes(b""), "it is empty"),
        (lambda file: file.unlink(), "whose checkpoints are lost"),
    ],
    ids=["truncated", "empty", "removed alone"],
)
def test_a_damaged_file_stops_the_run_before_anything_is_written(
    index: Index, source: Source, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(index.folder / "copy.checkpoints")
    source.put("k1", n=1001)
    stopped = index.command("run", "--until", "caught-up")

    assert stopped.code == 3
    assert words in stopped.err
    assert index.documents()["k1"]["n"] == 1


def test_an_older_file_stops_the_run(index: Index, source: Source) -> None:
    older = {file: file.with_name(f"older-{file.name}") for file in saved(index) if not file.name.endswith(".lock")}
    for file, copy in older.items():
        shutil.copy(file, copy)
    with Load(source, seed=14, keys=30) as load:
        load.wait(30)
    index.caught_up()
    for file, copy in older.items():
        shutil.copy(copy, file)
    stopped = index.command("run", "--until", "caught-up")

    assert stopped.code == 3
    assert "it is older than the last run left it" in stopped.err
