"""A repair never makes things worse, whatever is written meanwhile: from seeds, with writes between any two calls.

Wrong designs of a repair are noticed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from replicator.batch import Delete, Upsert
from replicator.errors import Fenced
from replicator.operations.repair import REFRESH
from replicator.state import Repair, Save, encode
from replicator.target.contract import Table
from replicator.target.verification import HISTORY_FIELD
from replicator.testing.memory import MemoryRows, body
from replicator.verification.differences import Finding
from replicator.verification.verifier import Result
from replicator.version import FIRST_EPOCH, version
from tests.verification.world import NAME, World

SEEDS = 300
WRONG_SEEDS = 3000


def corrupted(world: World) -> None:
    """Documents that were changed, removed and added behind replicator's back."""
    chance, rows = random.Random(world.seed), world.database.rows[NAME]
    for n in range(world.keys):
        world.put(f"k{n}", n=n)
    world.catch_up()
    for n in range(world.keys):
        id, act = (f"k{n}",), chance.randrange(4)
        if act == 0:
            del rows[id]
        elif act == 1:
            rows[id] = rows[id][0], body({"pk": f"k{n}", "n": -1})
        elif act == 2:
            world.delete(f"k{n}")  # whose removal the target loses
            world.backlog.pop()


def repair(world: World) -> None:
    """One repair beside writes; then everything is applied."""
    corrupted(world)
    with world.repairs() as repairs:
        world.verified(world.verifier(), repairs)
    world.catch_up()
    world.notice()


def outcome(world: World) -> str:
    """Empty if the copy equals the source after a repair, and takes the next change of every item."""
    repair(world)
    if world.documents != world.wanted:
        return "differs"
    for n in range(world.keys):
        world.put(f"k{n}", n=99)
    world.catch_up()
    return "" if world.documents == world.wanted else "takes no change"


@pytest.mark.parametrize("transactional", [True, False])
def test_after_a_repair_beside_writes_the_copy_equals_the_source(transactional: bool) -> None:
    for seed in range(SEEDS):
        world = World(seed, transactional)
        assert outcome(world) == "", f"seed {seed}"
        assert not world.database.tombstones[NAME], f"seed {seed}"


def blind_writes(patch: pytest.MonkeyPatch) -> None:
    def replaced(self: MemoryRows, table: Table, write: Upsert) -> str:
        self._database.rows[table.name][write.id] = write.version, body(write.body)
        return ""

    def removed(self: MemoryRows, table: Table, write: Delete) -> str:
        self._database.rows[table.name].pop(write.id, None)
        return ""

    patch.setattr(MemoryRows, "_replaced", replaced)
    patch.setattr(MemoryRows, "_removed", removed)


def inserts_without_tombstones(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(World, "leaves_tombstones", property(lambda _: False, lambda _, __: None))


def versions_bumped_by_one(patch: pytest.MonkeyPatch) -> None:
    original = MemoryRows._replaced

    def replaced(self: MemoryRows, table: Table, write: Upsert) -> str:
        result = original(self, table, write)
        if not result:
            at, stored = self._database.rows[table.name][write.id]
            self._database.rows[table.name][write.id] = at + 1, stored
        return result

    patch.setattr(MemoryRows, "_replaced", replaced)


@pytest.mark.parametrize("break_it", [blind_writes, inserts_without_tombstones, versions_bumped_by_one])
def test_a_wrong_design_is_noticed(monkeypatch: pytest.MonkeyPatch, break_it: Callable[[Any], None]) -> None:
    break_it(monkeypatch)
    worlds = (World(seed, seed % 2 == 0, keys=1 + seed % 4) for seed in range(WRONG_SEEDS))
    assert any(failed(world) for world in worlds)


def failed(world: World) -> bool:
    try:
        return outcome(world) != ""
    except AssertionError:
        return True


def lacking_one() -> World:
    """A copy that lacks its only document, in which nothing happens by itself."""
    world = World(pauses=True)
    world.put("k0", n=1)
    world.catch_up()
    del world.database.rows[NAME]["k0",]
    return world


def test_nothing_is_repaired_before_the_run_leaves_tombstones() -> None:
    world = lacking_one()
    with world.repairs() as repairs:
        verifier = world.verifier()
        with pytest.raises(AssertionError, match="1 candidates"):
            world.verified(verifier, repairs, rounds=5)
        assert repairs.waits
        world.notice()
        world.now += 10
        for _ in range(7):
            world._take(verifier.settle(world.positions) if not repairs.waits else (), repairs)
            repairs.flush(verifier)
            world.now += 10
    assert world.documents == world.wanted
    assert [reason for _, reason in world.repaired] == [""]


def test_an_insert_fails_once_the_run_has_given_the_repair_up() -> None:
    """In the transaction that would insert the row: the command may have been suspended for hours."""
    world = lacking_one()
    with world.repairs() as repairs:
        verifier = world.verifier()
        world.notice()
        repairs.flush(verifier)
        world.verified_until_offered(verifier, repairs)
        original = repairs._read_entry

        def suspended() -> tuple[Repair, int] | None:
            found = original()
            world.checkpoints.save([Save("repair", "", None, None)])
            return found

        repairs._read_entry = suspended  # type: ignore[method-assign]
        repairs.flush(verifier)
        assert world.documents == {}
        assert repairs.waits


def test_nothing_is_removed_once_the_run_has_given_the_repair_up() -> None:
    """The run has purged, so the tombstone of a removal would stay."""
    world = World(pauses=True)
    world.database.rows[NAME]["extra",] = version(FIRST_EPOCH, 0), b"{}"
    with world.repairs() as repairs:
        verifier = world.verifier()
        world.notice()
        repairs.flush(verifier)
        world._take(verifier.walked(NAME, [("extra",)], "table:t"), repairs)
        world.verified_until_offered(verifier, repairs)
        world.checkpoints.save([Save("repair", "", None, None)])
        repairs.flush(verifier)
        assert ("extra",) in world.database.rows[NAME]
        assert not world.database.tombstones[NAME]


@pytest.mark.parametrize("refreshing", [False, True])
def test_an_insert_confirmed_before_an_epoch_fails_and_is_made_once_it_is_confirmed_again(refreshing: bool) -> None:
    """It could come behind the epoch's sweep. The run saves the entry again as the epoch begins."""
    world = lacking_one()
    with world.repairs() as repairs:
        verifier = world.verifier()
        world.notice()
        repairs.flush(verifier)
        world.verified_until_offered(verifier, repairs)
        original = repairs._read_entry

        def suspended() -> tuple[Repair, int] | None:
            (entry,) = (e for e in world.checkpoints.read().entries if e.kind == "repair")
            world.checkpoints.save([Save("repair", "", entry.revision, entry.text)])
            repairs._read_entry = original  # type: ignore[method-assign]
            return original()

        if refreshing:  # the command is about to show that it is at work
            repairs._refreshed_at = -REFRESH
        repairs._read_entry = suspended  # type: ignore[method-assign]
        repairs.flush(verifier)
        assert world.documents == {}
        for _ in range(7):
            repairs.flush(verifier)
            world.now += 10
            world._take(verifier.settle(world.positions) if not repairs.waits else (), repairs)
        assert world.documents == world.wanted


def test_another_repair_takes_over() -> None:
    world = World(pauses=True)
    with world.repairs() as repairs:
        world.checkpoints.save([Save("repair", "", None, encode(Repair("other")))])
        with pytest.raises(Fenced, match="another `replicator verify --repair`"):
            repairs.flush(world.verifier())
    assert world.checkpoints.read().entries[-1].text == encode(Repair("other"))


def test_a_version_of_a_later_epoch_is_reported_and_left_alone() -> None:
    world = World(pauses=True)
    world.put("k0", n=1)
    world.catch_up()
    stored = world.database.rows[NAME]["k0",]
    later = version(FIRST_EPOCH + 1, 1), stored[1]
    world.database.rows[NAME]["k0",] = later
    with world.repairs() as repairs:
        verifier = world.verifier()
        world.notice()
        repairs.flush(verifier)
        world.verified_until_offered(verifier, repairs)
        repairs.flush(verifier)
    assert world.found() == {"k0": "different"}
    assert world.database.rows[NAME]["k0",] == later
    assert [reason.partition(",")[0] for _, reason in world.repaired] == [
        "its version is of a later epoch than the pipeline's"
    ]


def test_of_a_history_that_differs_it_is_said_what_makes_it_equal_and_it_is_not_repaired() -> None:
    world = World(pauses=True)
    world.put("k0", n=1)
    world.catch_up()
    at, stored = world.database.rows[NAME]["k0",]
    expected = Upsert(NAME, ("k0",), {"pk": "k0", "n": 2}, at, ("k0",), 0)
    finding = Finding("different", NAME, ("k0",), ("k0",), at, (HISTORY_FIELD,))
    with world.repairs() as repairs:
        world.notice()
        repairs.offer(Result("difference", finding, expected))
        repairs.flush(world.verifier())
        assert repairs.repaired == 0
    assert world.database.rows[NAME]["k0",] == (at, stored)
    ((told, reason),) = world.repaired
    assert "replicator resync" in reason, told
