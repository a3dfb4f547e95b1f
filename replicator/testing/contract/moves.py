"""Changes by others to a target's table: its name is redirected, or it is recreated."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from replicator.errors import ConfigError, GapFound, TransientError
from replicator.target.contract import Table, Target
from replicator.testing.contract.kit import Contract, at, batch, put, remove, table
from replicator.version import FIRST_EPOCH

Diverted = Callable[[Table], Callable[[], Any]]
Remade = Callable[[Table], None]


class Moves(Contract):
    """Documents of others are never written, and a recreated table is not taken for the old one.

    Two more fixtures: ``diverted`` (redirects a table's public name to other documents with the ids a and b, and
    returns a function that reads them) and ``remade`` (drops the table and recreates it empty, otherwise unchanged).
    """

    @pytest.fixture
    def diverted(self) -> Diverted:
        pytest.skip("NOT TESTED: this target's table names cannot be redirected")

    @pytest.fixture
    def remade(self) -> Remade:
        pytest.skip("NOT TESTED: this target's tests cannot recreate a table")

    def test_a_redirected_name_receives_no_write(self, opened: Target, diverted: Diverted) -> None:
        opened.write(batch(put({"pk": "a"}, 1), put({"pk": "b"}, 1)))
        read = diverted(table())
        before = read()
        later = at(0, FIRST_EPOCH + 1)
        for act in (
            lambda: opened.write(batch(put({"pk": "a"}, 5), remove("b", 6))),
            lambda: opened.write(batch(remove("a", 7), tombstones=True)),
            lambda: opened.sweep(table(), later, []),
            lambda: opened.purge(table(), later + 1),
        ):
            with contextlib.suppress(ConfigError, TransientError):
                act()
            assert read() == before

    def test_a_recreated_table_is_not_resumed(
        self, opened: Target, build: Callable[[], Target], remade: Remade
    ) -> None:
        opened.write(batch(put({"pk": "a"}, 1)))
        opened.close()
        remade(table())
        later = build()
        if later.epoch([table()]) is not None:
            with pytest.raises((ConfigError, GapFound)):
                later.open([table()], FIRST_EPOCH)
        later.open([table()], FIRST_EPOCH + 1)
        assert build().epoch([table()]) == FIRST_EPOCH + 1
