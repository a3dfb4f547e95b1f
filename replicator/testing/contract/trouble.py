"""Opening what is there, bad options, and connections that break."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from replicator.batch import Outcome
from replicator.config_target import destination
from replicator.errors import TransientError
from replicator.position import FIRST_EPOCH
from replicator.target import Target
from replicator.testing.contract.kit import (
    Contract,
    Stored,
    batch,
    built,
    described,
    put,
    sockets,
    table,
)


class Trouble(Contract):
    """Opening what is there, bad options, and connections that break."""

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

    # trouble

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
        before = threading.active_count(), sockets()
        target, lost = build(), built(unreachable)
        target.open([table()], FIRST_EPOCH)
        target.write(batch(put({"pk": "a"}, 1)))
        with pytest.raises(TransientError):
            lost.open([table()], FIRST_EPOCH)
        for closing in (target, lost, target, lost, built(unreachable)):
            closing.close()
        assert (threading.active_count(), sockets()) == before
