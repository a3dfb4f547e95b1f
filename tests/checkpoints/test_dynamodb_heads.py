"""Processes that meet at the heads of slots: claims, what parks changes, reads, and what was replaced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest

from replicator.aws.errors import AwsError
from replicator.checkpoints.dynamodb import snapshot
from replicator.checkpoints.dynamodb import store as store_module
from replicator.checkpoints.dynamodb.store import DynamodbCheckpoints
from replicator.errors import Fenced, TransientError
from replicator.state import Counts, Save, encode
from replicator.testing.checkpoints_contract import entries, owner, parked
from replicator.testing.dynamodb import DynamoDB
from tests.checkpoints.test_dynamodb import (
    Recording,
    Trouble,
    batch,
    made,
    read_of,
    shard,
    store,
    with_workers,
)


@pytest.fixture
def db() -> DynamoDB:
    return made()


class Before:
    """Calls ``happens`` before each request, with the operation, the sort key if there is one, and the request."""

    def __init__(self, db: DynamoDB, happens: Callable[[str, str, Mapping[str, Any]], None]) -> None:
        self._db, self._happens = db, happens

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        key = str(request.get("Key", request.get("Item", {})).get("entry", {}).get("S", ""))
        self._happens(operation, key, request)
        return self._db.call(operation, request)


def head(db: DynamoDB, slot: str = "") -> Mapping[str, Any]:
    key = f"h#{slot}" if slot else "h"
    return next(item for item in db.items("checkpoints") if item["entry"] == key)


def during_claim(act: Callable[[], object]) -> Callable[[str, str, Mapping[str, Any]], None]:
    """``act`` happens once a claim has been raised, and before the heads of slots have moved."""
    done = list[object]()

    def happens(operation: str, key: str, request: Mapping[str, Any]) -> None:
        if operation == "PutItem" and key.startswith("h#") and not done:
            done.append(True)
            act()

    return happens


def test_of_two_claims_at_once_the_later_one_owns(db: DynamoDB) -> None:
    """The earlier one must not claim again, as the later one would do the same, and so on."""
    with_workers(db, "0", "1")
    earlier, later = store(db), store(db)
    earlier._client = Before(db, during_claim(lambda: later.claim(owner("later"))))
    with pytest.raises(Fenced, match="another run owns this pipeline now: this run must stop"):
        earlier.claim(owner("earlier"))
    later.save([Save("pipeline", "", 0, "1")])
    assert head(db)["claim"] == 3


def test_a_command_that_saves_during_a_claim_does_not_make_it_begin_anew(db: DynamoDB) -> None:
    with_workers(db, "0", "1")
    run, moved = store(db), Counter[str]()

    def happens(operation: str, key: str, request: Mapping[str, Any]) -> None:
        moved[key] += operation == "PutItem"
        command(operation, key, request)

    command = during_claim(lambda: store(db).save([Save("request", "", 0, "1")]))
    run._client = Before(db, happens)
    assert run.claim(owner("later")).revision == 2
    assert (moved["h#0"], moved["h#1"]) == (1, 1)
    run.save([Save("pipeline", "", 0, "1")])


def test_a_worker_that_was_too_late_with_a_parked_change_heeds_that_its_head_is_held(db: DynamoDB) -> None:
    _, workers = with_workers(db, "0", "1")
    worker, held = workers["0"], list[bool]()

    def happens(operation: str, key: str, request: Mapping[str, Any]) -> None:
        if operation == "TransactWriteItems" and not held:
            held.append(True)
            store(db).save([Save("request", "", 0, "1")])  # moves the common head
            store(db)._states().hold(["0"], "someone")

    worker._client = Before(db, happens)
    save = partial(worker.save, [*batch("0", 2), Save("parked", "k", None, parked("k"))])
    for _ in range(store_module.HELD_TRIES):
        with pytest.raises(TransientError, match="another process is about to change this slot's checkpoints"):
            save()
    save()
    assert entries(store(db))["slot", "0"] == (2, "2")


def parks_during_reads(db: DynamoDB, workers: Mapping[str, DynamodbCheckpoints], reads: int) -> Before:
    """Each attempt of a read comes between a worker's parked change and its position, ``reads`` times."""
    revision = [2]

    def happens(operation: str, key: str, request: Mapping[str, Any]) -> None:
        if operation == "Query" and request["ExpressionAttributeValues"][":e"]["S"] == "c#" and revision[0] < 2 + reads:
            parks = Save("parked", f"k{revision[0]}", None, parked("k"))
            workers["0"].save([*batch("0", revision[0]), parks], {"shard:of 0": Counts(read=1, parked=1)})
            revision[0] += 1

    return Before(db, happens)


@pytest.mark.parametrize("reads", [2, snapshot.TRIES])
def test_a_read_that_finds_a_position_finds_what_was_parked_before_it(db: DynamoDB, reads: int) -> None:
    """Otherwise a cutover would see no reason against it: all was read up to its time, and nothing seems parked."""
    _, workers = with_workers(db, "0", "1")
    found = entries(store(parks_during_reads(db, workers, reads)))
    revision, _ = found["slot", "0"]
    assert {("parked", f"k{n}") for n in range(2, revision + 1)} <= found.keys()


def test_a_run_that_was_replaced_does_not_hold_the_heads_of_the_later_ones_slots(db: DynamoDB) -> None:
    coordinator, workers = with_workers(db, "0")
    steps = list[str]()

    def happens(operation: str, key: str, request: Mapping[str, Any]) -> None:
        if operation == "TransactWriteItems" and not steps:
            steps.append("refused")
            workers["0"].save(batch("0", 2))
        elif operation != "TransactWriteItems" and steps == ["refused"]:
            steps.append("paused")
            raise AwsError("ReadTimeout", "nothing came", 0)

    coordinator._client = Before(db, happens)
    taken = [Save("owner", "0", None, encode(owner("coordinator")))]
    with pytest.raises(TransientError):
        coordinator.save(taken)
    assert steps == ["refused", "paused"]
    new = store(db)
    new.claim_slot(owner("new worker"), "0", store(db).claim(owner("new run")).revision)
    before = head(db, "0")
    with pytest.raises(Fenced):
        coordinator.save(taken)
    assert head(db, "0") == before
    new.save(batch("0", 3))


def test_no_head_is_held_for_a_save_that_is_refused_nor_for_another_one(db: DynamoDB) -> None:
    coordinator, workers = with_workers(db, "0", "1")
    late = list[bool]()

    def happens(operation: str, key: str, request: Mapping[str, Any]) -> None:
        if operation == "TransactWriteItems" and not late:
            late.append(True)
            workers["0"].save(batch("0", 2))

    coordinator._client = Before(db, happens)
    with pytest.raises(Fenced):
        coordinator.save([Save("shard", "of 0", 2, shard("1")), Save("owner", "0", None, encode(owner("c")))])
    coordinator.save([Save("pulse", "", None, '"beat"')])
    assert not any("held" in item for item in db.items("checkpoints"))
    workers["0"].save(batch("0", 3))


def test_a_worker_waits_a_moment_for_who_completes_a_large_save_and_not_for_ever(db: DynamoDB) -> None:
    """Otherwise every worker would write all its items, at once."""
    coordinator, workers = with_workers(db, "0", "1")
    moved = list[bool]()

    def fate(call: int) -> str:
        return "lost" if moved and head(db, "0").get("journal") else "fine"

    coordinator._client = Trouble(db, fate)
    moved.append(True)
    given = [Save("segment", f"{n}", 0, '{"slot":"","x":1}') for n in range(120)]
    taken = [Save("owner", "1", None, encode(owner("c"))), Save("shard", "of 0", 2, shard("0", "7"))]
    with pytest.raises(TransientError):
        coordinator.save([*given, *taken])
    worker = workers["0"]
    worker._client = recording = Recording(db)
    save = partial(worker.save, [Save("slot", "0", 1, "2")], read_of("0"))
    for _ in range(store_module.HELD_TRIES):
        with pytest.raises(TransientError, match="another process is changing this slot's checkpoints"):
            save()
    assert not any("e#segment#1" in keys for keys in recording.transactions)
    save()
    assert any("e#segment#1" in keys for keys in recording.transactions)
    assert entries(store(db))["slot", "0"] == (2, "2")


def test_a_worker_completes_its_own_large_save_without_waiting(db: DynamoDB) -> None:
    _, workers = with_workers(db, "0")
    worker = workers["0"]
    worker._client = trouble = Trouble(db, lambda call: "lost" if head(db, "0").get("journal") else "fine")
    large = [*batch("0", 2), *(Save("shard", f"{n}", 0, shard("0")) for n in range(120))]
    with pytest.raises(TransientError):
        worker.save(large, read_of("0"))
    trouble._fate = lambda call: "fine"
    worker.save(large, read_of("0"))
    assert entries(store(db))["slot", "0"] == (2, "2")


def test_a_save_that_parks_a_change_reads_heads_and_the_parked_entry_only(db: DynamoDB) -> None:
    """What the worker's own head guards is as it remembers it, as long as that head has not moved."""
    coordinator, workers = with_workers(db, "0", "1")
    worker = workers["0"]
    more = [Save("shard", f"{n}", 0, shard("0")) for n in range(8)]
    worker.save([*batch("0", 2), *more])
    worker._client = recording = Recording(db)
    moved = [Save("shard", f"{n}", 1, shard("0", "2")) for n in range(8)]
    worker.save([*batch("0", 3), *moved, Save("parked", "k", None, parked("k"))])
    assert recording.calls == {"GetItem": 3, "Query": 1, "TransactWriteItems": 1}
    coordinator.save([Save("pulse", "", None, "1")])
    coordinator._client = recording = Recording(db)
    coordinator.save([Save("pulse", "", None, "2")])
    assert recording.calls == {"GetItem": 3, "Query": 1, "TransactWriteItems": 1}


def test_what_another_process_changed_of_the_own_slot_is_read_again_by_a_save_that_parks(db: DynamoDB) -> None:
    coordinator, workers = with_workers(db, "0")
    coordinator.save([], {"shard:of 0": Counts(parked=2)})
    workers["0"].save([Save("slot", "0", 1, "2"), Save("parked", "k", None, parked("k"))], read_of("0"))
    assert store(db).read().counts["shard:of 0"] == Counts(read=2, applied=2, parked=2)
