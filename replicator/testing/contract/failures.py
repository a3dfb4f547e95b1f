"""Opening existing tables, invalid options, and broken connections."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from replicator.batch import Outcome
from replicator.config.target import destination
from replicator.errors import ConfigError, TransientError
from replicator.target.contract import Inspectable, Target, Transactional
from replicator.testing.contract.kit import (
    Contract,
    Stored,
    batch,
    built,
    described,
    put,
    remove,
    sockets,
    table,
)
from replicator.version import FIRST_EPOCH


class Failures(Contract):
    """Opening existing tables, invalid options, and broken connections."""

    def test_opening_what_is_there_keeps_it(self, opened: Target, build: Callable[[], Target], stored: Stored) -> None:
        opened.write(batch(put({"pk": "a"}, 1)))
        opened.close()
        later = build()
        assert (later.check([table()]), later.plan([table()])) == ([], [])
        later.open([table()], FIRST_EPOCH)
        assert set(stored(table())) == {("a",)}

    def test_checking_changes_nothing(self, target: Target) -> None:
        assert list(target.check([table()])) == []
        assert target.epoch([table()]) is None
        assert len(target.plan([table()])) >= 1

    def test_remembers_the_epoch(self, target: Target, build: Callable[[], Target]) -> None:
        target.open([table()], FIRST_EPOCH + 3)
        assert build().epoch([table()]) == FIRST_EPOCH + 3
        target.open([table(), table("later")], FIRST_EPOCH + 4)
        assert build().epoch([table(), table("later")]) == FIRST_EPOCH + 4
        assert build().epoch([table(), table("never")]) is None

    def test_an_earlier_epoch_never_takes_the_place_of_a_later_ones_note(
        self, target: Target, build: Callable[[], Target]
    ) -> None:
        """A command opens the tables with the epoch it has read, while a resync starts the next one."""
        target.open([table()], FIRST_EPOCH + 1)
        with contextlib.suppress(ConfigError):
            build().open([table()], FIRST_EPOCH)
        assert build().epoch([table()]) == FIRST_EPOCH + 1

    def test_says_which_tables_are_empty(self, target: Target, build: Callable[[], Target]) -> None:
        if not isinstance(target, Inspectable):
            pytest.skip("this target does not tell")
        assert target.empty([]) == []
        assert target.empty([table()]) == []
        target.open([table()], FIRST_EPOCH)
        assert target.empty([table(), table("never")]) == [table().name]
        target.write(batch(put({"pk": "a"}, 1)))
        assert build().empty([table()]) == []  # type: ignore[attr-defined]
        target.write(batch(remove("a", 2)))
        assert target.empty([table()]) == [table().name]
        target.write(batch(remove("b", 3), tombstones=True))
        kept_there = not isinstance(target, Transactional)  # a late delete's tombstone counts as content
        assert target.empty([table()]) == ([] if kept_there else [table().name])

    def test_recovers_from_a_cut_connection(self, opened: Target, sever: Callable[[], None], stored: Stored) -> None:
        """TransientError once, then the same write succeeds."""
        opened.write(batch(put({"pk": "a"}, 1)))
        sever()
        with pytest.raises(TransientError):
            opened.write(batch(put({"pk": "b"}, 2)))
        assert opened.write(batch(put({"pk": "b"}, 2))) == Outcome()
        assert set(stored(table())) == {("a",), ("b",)}

    def test_an_unreachable_address_is_a_transient_error(
        self, unreachable: Mapping[str, Any], build: Callable[[Mapping[str, Any]], Target]
    ) -> None:
        target = build(unreachable)
        with pytest.raises(TransientError):
            target.check([table()])
        with pytest.raises(TransientError):
            target.open([table()], FIRST_EPOCH)
        target.close()

    def test_each_missing_or_unknown_option_is_named(self, config: Mapping[str, Any]) -> None:
        _, problems = destination({**config, "table": "contract", "no_such_option": 1})
        assert [p.path for p in problems] == [("target", "no_such_option")]
        connector = described(config).connector
        for name, field in connector.Options.model_fields.items():
            if field.is_required():
                rest = {option: value for option, value in config.items() if option != name}
                assert [p.path for p in destination({**rest, "table": "contract"})[1]] == [("target", name)]

    def test_closing_leaves_no_thread_and_no_socket(
        self, build: Callable[[], Target], unreachable: Mapping[str, Any]
    ) -> None:
        def opened_and_closed() -> tuple[set[threading.Thread], int]:
            target, lost = build(), built(unreachable)
            target.open([table()], FIRST_EPOCH)
            target.write(batch(put({"pk": "a"}, 1)))
            with pytest.raises(TransientError):
                lost.open([table()], FIRST_EPOCH)
            for closing in (target, lost, target, lost, built(unreachable)):
                closing.close()
            return set(threading.enumerate()), sockets()

        threads, open_then = opened_and_closed()  # libraries keep what they open at their first use
        threads_now, open_now = opened_and_closed()
        assert threads_now - threads == set()
        assert open_now <= open_then, "what others have closed meanwhile is none of it"
