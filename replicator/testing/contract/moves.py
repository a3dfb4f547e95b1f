"""What others do to the place that a target writes to: its name is led elsewhere, or it is made anew."""

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
    """Nothing that replicator did not make is ever written, and a place that was made anew is not the old one.

    Two more fixtures: ``diverted`` (leads the name that people know a table by to a place with other documents of the
    ids a and b, and returns a function that reads everything there) and ``remade`` (removes what is behind the name and
    makes it anew, empty, with everything else as it was).
    """

    @pytest.fixture
    def diverted(self) -> Diverted:
        pytest.skip("NOT TESTED: names of this target's tables cannot be led elsewhere")

    @pytest.fixture
    def remade(self) -> Remade:
        pytest.skip("NOT TESTED: this target's tests cannot make a table anew")

    def test_a_name_that_leads_elsewhere_takes_no_write_with_it(self, opened: Target, diverted: Diverted) -> None:
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

    def test_a_table_that_was_made_anew_is_not_gone_on_with(
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
