"""A commit or a compaction that takes long: the run is heard of meanwhile, and nothing is done twice."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from connectors.delta.maintenance import Maintenance
from connectors.delta.target import Delta
from connectors.delta.walk import TableWalk
from connectors.delta.writer import TableWriter
from replicator.batch import Outcome
from replicator.config.target import destination
from replicator.errors import Postponed, TransientError, Unfinished
from replicator.pipeline.progress import HEARTBEAT_TIMEOUT
from replicator.target.background import Background
from replicator.testing.contract import batch, put, table
from replicator.version import FIRST_EPOCH


class Held:
    """A function that waits until it may go on, and counts its calls."""

    def __init__(self, does: Callable[..., Any]) -> None:
        self.may_go_on, self.calls, self.does = threading.Event(), 0, does

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.calls += 1
        assert self.may_go_on.wait(60)
        return self.does(*given, **named)


@pytest.fixture
def target(tmp_path: Any) -> Delta:
    found, problems = destination({"type": "delta", "path": str(tmp_path), "table": "contract", "compact_hours": 1e-9})
    assert found is not None, problems
    target = found.build("contract")
    assert isinstance(target, Delta)
    target.open([table()], FIRST_EPOCH)
    return target


def test_the_run_is_heard_of_long_before_its_heartbeat_is_missed() -> None:
    patience = Background().patience
    assert patience is not None
    assert patience < HEARTBEAT_TIMEOUT / 2


def test_a_commit_that_takes_long_lets_the_run_save_a_heartbeat_and_is_made_once(
    target: Delta, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, own = Held(TableWriter._store), target._background
    monkeypatch.setattr(TableWriter, "_store", lambda *given: held(*given))
    own.patience = 0.0
    written = batch(put({"pk": "a"}, 1))
    for _ in range(3):
        with pytest.raises(Unfinished, match="a commit goes on"):
            target.write(written)
    held.may_go_on.set()
    own.patience = None
    assert target.write(written) == Outcome()
    assert held.calls == 1
    assert target.write(written) == Outcome(), "what is stored is not stored again"
    assert held.calls == 1


def test_a_compaction_that_takes_long_is_waited_for_by_the_next_batch_and_made_once(
    target: Delta, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, own = Held(lambda *_: None), target._background
    monkeypatch.setattr(Maintenance, "run", lambda *given: held(*given))
    own.patience = 0.0
    for _ in range(3):
        with pytest.raises(Unfinished, match=r"the compaction in .* goes on"):
            target.recheck([table()])
    threading.Timer(0.0, held.may_go_on.set).start()
    own.patience = None
    assert target.write(batch(put({"pk": "a"}, 1))) == Outcome()
    assert held.calls == 1


def test_a_run_writes_on_while_a_piece_of_a_walk_takes_long_and_reads_it_once(
    target: Delta, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.write(batch(put({"pk": "a"}, 1)))
    held, own = Held(TableWalk.piece), target._walking
    monkeypatch.setattr(TableWalk, "piece", lambda *given: held(*given))
    own.patience = 0.0
    for n in range(2, 4):
        with pytest.raises(Postponed, match=r"reading .*contract goes on"):
            target.walk(table(), None)
        assert target.write(batch(put({"pk": "b"}, n))) == Outcome()
    held.may_go_on.set()
    own.patience = None
    assert set(target.walk(table(), None).ids) == {("a",), ("b",)}
    assert held.calls == 1
    assert target.walk(table(), None, ("a",)).ids == [("a",)]


@pytest.mark.parametrize("name", ["epoch", "identities", "empty", "check", "plan", "close"])
def test_nothing_else_uses_the_table_while_a_commit_goes_on(
    target: Delta, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    held, own = Held(TableWriter._store), target._background
    monkeypatch.setattr(TableWriter, "_store", lambda *given: held(*given))
    own.patience = 0.0
    with pytest.raises(Unfinished):
        target.write(batch(put({"pk": "a"}, 1)))
    thread = own._thread
    assert thread is not None
    threading.Timer(0.0, held.may_go_on.set).start()
    getattr(target, name)(*([] if name == "close" else [[table()]]))
    assert not thread.is_alive()


def test_an_error_is_raised_once_and_the_work_is_begun_again() -> None:
    background, calls = Background(None), list[int]()

    def fails() -> NoReturn:
        calls.append(1)
        raise TransientError("the disk is full")

    of = object()
    for _ in range(2):
        with pytest.raises(TransientError, match="full"):
            background.result(of, fails, "it")
    assert len(calls) == 2
    assert background.result(of, lambda: 7, "it") == 7
