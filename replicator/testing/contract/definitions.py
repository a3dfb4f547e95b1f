"""The identity of a table, and the definition that decides what it stores: see Identifying and Defining."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from replicator.identity import changes, other_tables, recreated_tables
from replicator.target.contract import Defining, Identifying, Table, Target
from replicator.testing.contract.kit import PK, Contract, batch, put, table
from replicator.testing.contract.moves import Remade
from replicator.version import FIRST_EPOCH


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a table: a base, one with an addition that does not affect documents, and one that does."""

    some: Mapping[str, Any]
    undecided: Mapping[str, Any]
    more: Mapping[str, Any]


class Definitions(Contract):
    """A table's identity does not depend on the address, and only what affects its documents is its definition.

    Three more fixtures: ``otherwise`` (a config that reaches the destination at another address), ``recreated``
    (``remade`` unless a target has its own) and ``options``.
    """

    @pytest.fixture
    def otherwise(self) -> Mapping[str, Any]:
        pytest.skip("NOT TESTED: this destination has only one address")

    @pytest.fixture
    def recreated(self, remade: Remade) -> Remade:
        return remade

    @pytest.fixture
    def options(self) -> Options:
        pytest.skip("nothing can be added to a table of this target")

    def test_a_table_is_the_same_however_it_is_reached(
        self, target: Target, build: Callable[..., Target], otherwise: Mapping[str, Any]
    ) -> None:
        there, same = identifying(target), identifying(build(otherwise))
        absent = there.identities([table()])
        assert absent[table().name].id == ""
        assert target.epoch([table()]) is None
        assert not absent[table().name].known or other_tables(absent, same.identities([table()])) is None
        target.open([table()], FIRST_EPOCH)
        made = there.identities([table()])
        assert made[table().name].id != ""
        assert made[table().name].known
        assert not absent[table().name].known or other_tables(absent, made) is None
        assert same.identities([table()])[table().name].id == made[table().name].id
        assert other_tables(made, same.identities([table()])) is None

    def test_another_table_is_another_one_also_while_it_is_absent(self, opened: Target) -> None:
        was = identifying(opened).identities([table()])
        now = identifying(opened).identities([table("other")])
        told = other_tables(was, now)
        assert told is not None
        assert told[0] != told[1]

    def test_a_recreated_table_is_told_from_the_old_one(
        self, opened: Target, build: Callable[[], Target], recreated: Remade
    ) -> None:
        opened.write(batch(put({"pk": "a"}, 1)))
        was = identifying(opened).identities([table()])
        opened.close()
        recreated(table())
        now = identifying(build()).identities([table()])
        assert other_tables(was, now) is None
        assert list(recreated_tables(was, now)) == [now[table().name].place]

    def test_what_defines_a_table_is_known_without_a_server(
        self, target: Target, build: Callable[..., Target], unreachable: Mapping[str, Any]
    ) -> None:
        parts = defining(target).parts(table())
        assert parts
        assert all(parts.values())
        assert defining(build(unreachable)).parts(table()) == parts

    def test_only_what_decides_what_is_stored_defines_a_table(self, target: Target, options: Options) -> None:
        of = defining(target)
        some, undecided, more = (
            of.parts(Table("contract", PK, o)) for o in (options.some, options.undecided, options.more)
        )
        assert some == undecided
        assert all(change.added for change in changes({"contract": some}, {"contract": more}))
        assert some != more

    def test_what_was_added_is_added_to_a_table_that_is_there(
        self, target: Target, build: Callable[[], Target], options: Options
    ) -> None:
        before, after = (Table("contract", PK, given) for given in (options.some, options.more))
        target.open([before], FIRST_EPOCH)
        later = build()
        of = defining(later)
        added = changes({"contract": of.parts(before)}, {"contract": of.parts(after)})
        assert later.check([after]) != []
        assert of.additions([after], added)
        for _ in range(2):  # a run that was killed afterwards repeats it
            of.extend([after], added)
            assert later.check([after]) == []
        assert later.epoch([after]) == FIRST_EPOCH
        later.open([after], FIRST_EPOCH + 1)
        assert build().epoch([after]) == FIRST_EPOCH + 1

    def test_what_was_taken_out_or_changed_is_no_addition(self, target: Target, options: Options) -> None:
        of = defining(target)
        less, more = (of.parts(Table("contract", PK, given)) for given in (options.some, options.more))
        assert not all(change.added for change in changes({"contract": more}, {"contract": less}))


def identifying(target: Target) -> Identifying:
    if not isinstance(target, Identifying):
        pytest.skip("this target identifies tables by name only")
    return target


def defining(target: Target) -> Defining:
    if not isinstance(target, Defining):
        pytest.skip("this target reports no definition")
    return target
