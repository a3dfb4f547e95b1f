"""Claims about checkpoints in DynamoDB with a head for each slot: no seed fails, and every wrong design is noticed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from replicator.checkpoints.dynamodb import layout, snapshot, store
from replicator.checkpoints.dynamodb.layout import Action, Heads, Known
from replicator.checkpoints.dynamodb.snapshot import Journal, States
from replicator.checkpoints.dynamodb.table import CheckpointTable, portions
from replicator.state import Counts, Save
from tests.simulation.heads import simulate

SEEDS = int(os.environ.get("REPLICATOR_SEEDS", "400")) // 20
MOST = 300  # seeds that may pass until a wrong design is noticed
Patch = pytest.MonkeyPatch
Apply = Callable[[Patch], None]


@pytest.mark.timeout(60 + 5 * SEEDS)
def test_whatever_happens_to_processes_each_save_is_stored_once_or_refused() -> None:
    for seed in range(SEEDS):
        simulate(seed)


def test_a_seed_is_the_same_when_it_is_run_again() -> None:
    first, second = list[str](), list[str]()
    simulate(3, trace=first)
    simulate(3, trace=second)
    assert first == second


def heads_kept_by_a_claim(patch: Patch) -> None:
    """A new run's claim does not move the heads of slots: their workers save behind it."""
    patch.setattr(States, "_depose", lambda self, slot: None)


def only_the_own_head(patch: Patch) -> None:
    """A coordinator that changes an entry of a slot, or takes the slot away, does not move the slot's head."""

    def heads_of(known: Known, saves: Sequence[Save], counts: Mapping[str, Counts], own: str | None) -> list[str]:
        return [own or ""]

    patch.setattr(snapshot, "heads_of", heads_of)
    patch.setattr(store, "heads_of", heads_of)


def counts_unguarded(patch: Patch) -> None:
    """Counts of another slot's shard are changed without moving its head."""
    right = layout.guards
    patch.setattr(layout, "guards", lambda known, saves, counts: right(known, saves, {}))


def journal_of_one_head(patch: Patch) -> None:
    """The heads of other slots do not refer to a large save that changes what they guard."""

    def committed(self: States, before: Heads, new: Heads, actions: Sequence[Action], token: str) -> Heads:
        (first, *more) = portions(actions, len(new))
        if not more:
            self._table.transact(self._moved(before, new), first)
            return new
        slots = [next(iter(new))]
        content = msgspec.json.encode(Journal(slots, list(actions))).decode()
        journal = self._table.write_blob(f"{token}-journal", content)
        self._move(
            before, {slot: replace(head, journal=journal if slot in slots else None) for slot, head in new.items()}
        )
        self.finish(journal)
        return new

    patch.setattr(States, "_committed", committed)


def journal_applied_late(patch: Patch) -> None:
    """A large save's items are written whether it is still pending or not."""
    right = CheckpointTable.transact

    def transact(self: CheckpointTable, first: Sequence[Mapping[str, Any]], actions: Sequence[Action] = ()) -> None:
        kept = [one for one in first if "ConditionCheck" not in one]
        if kept or actions:
            right(self, kept, actions)

    patch.setattr(CheckpointTable, "transact", transact)


def reads_of_several_saves(patch: Patch) -> None:
    """A read beside workers takes what it finds: parked changes as they were before the positions behind them."""
    patch.setattr(snapshot, "COMMON_TRIES", 0)
    patch.setattr(States, "_with_parked", lambda self, known: known)


WRONG: Mapping[Apply, int] = {
    heads_kept_by_a_claim: 7,
    only_the_own_head: 0,
    counts_unguarded: 2,
    journal_of_one_head: 102,
    journal_applied_late: 44,
    reads_of_several_saves: 7,
}
"""Each with the seed that notices it: after a change of the code another one may be the first."""


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_every_wrong_design_is_noticed(wrong: Apply, monkeypatch: Patch) -> None:
    wrong(monkeypatch)
    assert noticed_by(WRONG[wrong]) is not None


def noticed_by(first: int) -> int | None:
    """The seed that notices what is patched now: ``first``, or one of the first ones."""
    for seed in (first, *range(MOST)):
        try:
            simulate(seed)
        except AssertionError:
            return int(seed)
    return None
