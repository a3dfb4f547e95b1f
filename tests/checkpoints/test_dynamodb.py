"""The DynamoDB store fulfills the contract, in memory and on DynamoDB Local; a save is applied exactly once."""

from __future__ import annotations

import itertools
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from replicator.aws.client import Client
from replicator.aws.errors import AwsError
from replicator.checkpoints.contract import Noting
from replicator.checkpoints.dynamodb import snapshot
from replicator.checkpoints.dynamodb import store as store_module
from replicator.checkpoints.dynamodb.store import DynamodbCheckpoints, DynamodbOptions
from replicator.checkpoints.dynamodb.table import CheckpointTable
from replicator.errors import ConfigError, Fenced, NotPermitted, TransientError
from replicator.state import Counts, DamagedCheckpoint, ParkedItem, Save, ShardState, encode
from replicator.testing.checkpoints_contract import (
    Build,
    CheckpointsContract,
    SlottedContract,
    counts,
    entries,
    owner,
    parked,
)
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.memory import MemoryCheckpoints, MemoryDatabase
from tests.servers.dynamodb_local import DynamoDBLocal

TABLE = "arn:aws:dynamodb:us-east-1:*:table/checkpoints"


def store(client: Client, pipeline: str = "contract") -> DynamodbCheckpoints:
    one = DynamodbCheckpoints(DynamodbOptions(table="checkpoints", region="us-east-1"), pipeline, Path("/"))
    one._client = client
    return one


def made() -> DynamoDB:
    """A DynamoDB with a table for checkpoints."""
    database = DynamoDB(now=time.time, random=random.Random(1))
    store(database).create()
    return database


@pytest.fixture
def db() -> DynamoDB:
    return made()


class TestInMemory(CheckpointsContract, SlottedContract):
    @pytest.fixture
    def store(self, db: DynamoDB) -> Build:
        return lambda pipeline: store(db, pipeline)


_tables = itertools.count()


@pytest.fixture(scope="module")
def endpoint(tables_local: DynamoDBLocal) -> str:
    return tables_local.endpoint


@pytest.mark.dynamodb_local
class TestOnDynamoDBLocal(CheckpointsContract, SlottedContract):
    """Through boto3, with the options of a config."""

    @pytest.fixture
    def store(self, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Build:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")
        name = f"checkpoints{next(_tables)}"
        options = DynamodbOptions(table=name, region="us-east-1", endpoint_url=endpoint)
        maker = DynamodbCheckpoints(options, "", Path("/"))
        maker.create()
        maker.close()
        return lambda pipeline: DynamodbCheckpoints(options, pipeline, Path("/"))


class Trouble:
    """A wire that fails when ``fate`` says so: before the call is made, after it, or so that it is made later.

    A ``conflict`` is with another transaction on the same items, which may fail itself.
    """

    def __init__(self, db: DynamoDB, fate: Callable[[int], str]) -> None:
        self._db, self._fate, self.calls = db, fate, 0
        self.late: list[tuple[str, Mapping[str, Any]]] = []

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        self.calls += 1
        fate = self._fate(self.calls)
        answer = self._db.call(operation, request) if fate in ("fine", "unheard") else b""
        if fate == "late":
            self.late.append((operation, request))
        if fate == "conflict" and operation == "TransactWriteItems":
            reasons = {"CancellationReasons": [{"Code": "None"}, {"Code": "TransactionConflict"}]}
            raise AwsError("TransactionCanceledException", "others are at it", 400, reasons)
        if fate == "conflict" and operation == "PutItem":
            raise AwsError("TransactionConflictException", "others are at it", 400)
        if fate != "fine":
            raise AwsError("ReadTimeout", "nothing came", 0)
        return answer

    def arrive(self) -> None:
        """Requests that were given up are applied after all, or rejected."""
        for operation, request in self.late:
            try:
                self._db.call(operation, request)
            except AwsError as e:
                assert e.code in ("ConditionalCheckFailedException", "TransactionCanceledException")  # noqa: PT017


def retrying(act: Callable[[], Any]) -> Any:
    for _ in range(1000):
        try:
            return act()
        except TransientError:
            continue
    raise AssertionError("it never works")


SMALL = [Save("shard", "a", 1, '"2"'), Save("shard", "b", 1, None), Save("pulse", "", None, '"1"')]
LARGE = [
    *SMALL,
    Save("parked", "big", None, parked("big", image="x" * 300_000)),
    Save("parked", "gone", None, None),
    *(Save("shard", f"new{n}", 0, '"1"') for n in range(150)),
]
MORE = {"shard:a": Counts(read=4, applied=1, superseded=3)}


def begun(db: DynamoDB) -> DynamodbCheckpoints:
    one = store(db)
    one.claim(owner())
    big = parked("gone", image="y" * 300_000)
    one.save([Save("shard", "a", 0, '"1"'), Save("shard", "b", 0, '"1"'), Save("parked", "gone", None, big)])
    return one


def sight(db: DynamoDB) -> tuple[Any, ...]:
    one = store(db)
    return entries(one), counts(one), list(one.parked())


Fate = Callable[[int], str]


def only(number: int, fate: str) -> Fate:
    return lambda n: fate if n == number else "fine"


@pytest.mark.parametrize("saves", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("fate", ["lost", "unheard", "late", "conflict"])
def test_a_save_is_applied_once_whichever_call_fails(saves: list[Save], fate: str) -> None:
    db = made()
    (one := begun(db)).save(saves, MORE)
    one.save([Save("shard", "c", 0, '"1"')])
    right = sight(db)
    for failing in range(1, 1000):
        db = made()
        one = begun(db)
        one._client = trouble = Trouble(db, only(failing, fate))
        retrying(partial(one.save, saves, MORE))
        retrying(partial(one.save, [Save("shard", "c", 0, '"1"')]))
        trouble.arrive()
        assert sight(db) == right, f"call {failing}"
        if trouble.calls < failing:
            return
    raise AssertionError("a save that never ends")


@pytest.mark.parametrize("saves", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("fate", ["lost", "unheard"])
def test_a_save_interrupted_by_a_crash_is_stored_whole_or_not_at_all(saves: list[Save], fate: str) -> None:
    db = made()
    one = begun(db)
    before = sight(db)
    one.save(saves, MORE)
    after = sight(db)
    outcomes = []
    for failing in range(1, 1000):
        db = made()
        one = begun(db)
        one._client = trouble = Trouble(db, only(failing, fate))
        try:
            one.save(saves, MORE)
        except TransientError:
            pass
        else:
            assert trouble.calls < failing or sight(db) == after  # only what nothing refers to is left
        looked_through = sight(db)
        store(db).claim(owner("later"))
        outcomes.append(sight(db))
        assert outcomes[-1] in (before, after)
        assert looked_through == outcomes[-1], "who only reads sees the same"
        assert pieces(db) == pieces_of(outcomes[-1]), "and nothing is left lying about"
        if trouble.calls < failing:
            break
    assert after in outcomes
    assert before in outcomes or (saves, fate) == (SMALL, "unheard")


def pieces(db: DynamoDB) -> int:
    return sum(str(item["entry"]).startswith("b#") for item in db.items("checkpoints"))


def pieces_of(found: tuple[Any, ...]) -> int:
    """The number of pieces, of 90,000 characters each, that the texts of parked changes take."""
    texts = [len(encode(p)) for _, p in found[2]]
    return sum(-(-length // 90_000) for length in texts if length > 200_000)


@pytest.mark.parametrize("seed", range(6))
def test_any_history_with_any_failures_ends_as_it_would_in_memory(db: DynamoDB, seed: int) -> None:
    chance = random.Random(seed)
    one, model = store(db), MemoryCheckpoints(MemoryDatabase())
    one.claim(owner())
    model.claim(owner())
    one._client = trouble = Trouble(db, lambda _: chance.choices(["fine", "lost", "unheard", "late"], [12, 1, 1, 1])[0])
    for number in range(60):
        revisions = {id: revision for (_, id), (revision, _) in entries(model).items()}
        ids = chance.sample([f"{n}" for n in range(300)], chance.choice([1, 3, 120]))
        saves = [Save("shard", id, revisions.get(id, 0), f'"{number}"') for id in ids]
        more = {f"shard:{chance.randrange(3)}": Counts(read=1, superseded=1)}
        retrying(partial(one.save, saves, more))
        model.save(saves, more)
        if chance.random() < 0.2:
            trouble.arrive()
    assert (entries(store(db)), counts(store(db))) == (entries(model), counts(model))


def test_a_run_that_was_replaced_while_its_save_was_in_doubt_is_fenced(db: DynamoDB) -> None:
    one = begun(db)
    one._client = Trouble(db, only(1, "unheard"))
    with pytest.raises(TransientError):
        one.save(SMALL, MORE)
    store(db).claim(owner("later"))
    with pytest.raises(Fenced):
        one.save(SMALL, MORE)


def test_a_command_during_a_run_makes_the_run_read_the_entries_again(db: DynamoDB) -> None:
    """This includes a large save by a command: the run continues after it."""
    one = begun(db)
    one.save([Save("parked", f"{n}", None, parked(f"{n}")) for n in range(120)])
    store(db).save(
        [Save("parked", f"{n}", 1, None) for n in range(120)], {"shard:a": Counts(parked=-120, filtered=120)}
    )
    one.save(SMALL, MORE)
    found, totals, left = sight(db)
    assert (found["shard", "a"], [id for id, _ in left]) == ((2, '"2"'), ["gone"])
    assert totals == {"shard:a": Counts(read=4, applied=1, superseded=3, filtered=120, parked=-120)}


def test_what_is_read_without_a_claim_is_as_of_one_save_unless_others_save_all_the_time(db: DynamoDB) -> None:
    both = [
        Save("parked", "a", 0, parked("a")),
        Save("shard", "s", 0, encode(ShardState(None, "1", whole=True, since=0.0))),
    ]
    for found in read_while(db, [], both):
        assert ("parked" in found) == ("shard" in found)


def test_a_run_that_sees_what_a_retry_made_of_a_parked_entry_also_sees_its_note(
    db: DynamoDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are saved at once, between any two of the requests with which the run reads."""
    monkeypatch.setattr(snapshot, "EXACT_TRIES", 0)
    both = [Save("parked", "a", 1, parked("a", image="noted")), Save("retried", "1", None, '{"version":1}')]
    for found in read_while(db, [Save("parked", "a", 0, parked("a"))], both):
        assert found["parked"] == 1 or "retried" in found


def test_a_worker_that_sees_what_it_must_compare_to_park_an_item_also_sees_who_has_parked_it(
    db: DynamoDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the item gets a second entry, which every later run refuses."""
    monkeypatch.setattr(snapshot, "EXACT_TRIES", 0)
    both = [Save("parked", "a", 0, parked("a")), Save("item", "a", 0, encode(ParkedItem("a")))]
    for found in read_while(db, [], both):
        assert "parked" in found or "item" not in found


def read_while(db: DynamoDB, before: Sequence[Save], others: Sequence[Save]) -> Iterator[Mapping[str, int]]:
    """Revisions by kind of entry, as read while ``others`` are saved: before each of its requests in turn."""
    for moment in range(1, 14):
        pipeline = f"orders {moment}"
        one, command = store(db, pipeline), store(db, pipeline)
        one.claim(owner())
        one.save(before)

        class Beside(Trouble):
            def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
                if self.calls == moment - 1:  # noqa: B023
                    command.save(others)  # noqa: B023
                return super().call(operation, request)

        one._client = Beside(db, lambda n: "fine")
        yield {e.kind: e.revision for e in one.read().entries}


class Counting:
    """Counts calls by operation."""

    def __init__(self, db: DynamoDB) -> None:
        self._db, self.calls = db, Counter[str]()

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        self.calls[operation] += 1
        return self._db.call(operation, request)


def listed(db: DynamoDB, count: int, size: int) -> tuple[DynamodbCheckpoints, Counting]:
    """A store that has listed ``count`` parked entries, and counts its calls from then on."""
    one = store(db)
    one.claim(owner())
    for n in range(count):
        one.save([Save("parked", f"{n}", 0, parked(f"{n}", image="x" * size))])
    one._client = counting = Counting(db)
    one.read()
    counting.calls.clear()
    return one, counting


def test_a_few_of_many_large_parked_entries_are_read_individually(db: DynamoDB) -> None:
    one, counting = listed(db, 130, 90_000)
    assert len(list(one.parked(ids={f"{n}" for n in range(105)}))) == 105
    assert counting.calls == {"GetItem": 2 * 105}


def test_many_small_parked_entries_are_read_by_the_page(db: DynamoDB) -> None:
    one, counting = listed(db, 60, 100)
    assert len(list(one.parked(ids={f"{n}" for n in range(50)}))) == 50
    assert sum(counting.calls.values()) == 3


def test_large_texts_of_parked_entries_are_read_only_on_request(db: DynamoDB) -> None:
    one, counting = listed(db, 20, 300_000)
    wanted = {f"{n}" for n in range(12)}
    assert {id for id, _ in one.parked(ids=wanted)} == wanted
    assert counting.calls["GetItem"] <= 12 * 6 + 2


# heads of slots


class Recording:
    """Records what each transaction changes or checks, by sort key."""

    def __init__(self, db: DynamoDB) -> None:
        self._db, self.calls, self.transactions = db, Counter[str](), list[set[str]]()

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        self.calls[operation] += 1
        if operation == "TransactWriteItems":
            actions = [next(iter(one.values())) for one in request["TransactItems"]]
            self.transactions.append({str((a.get("Item") or a["Key"])["entry"]["S"]) for a in actions})
        return self._db.call(operation, request)


def shard(slot: str, position: str = "1") -> str:
    return encode(ShardState(None, position, whole=True, since=0.0, slot=slot))


def with_workers(db: DynamoDB, *slots: str) -> tuple[DynamodbCheckpoints, dict[str, DynamodbCheckpoints]]:
    """A coordinator, and workers that have a shard each, and have stored something of it."""
    store(db).claim(owner())
    coordinator, workers = store(db), {slot: store(db) for slot in slots}
    coordinator.claim_slot(owner("coordinator"), "coordinator", 1)
    for slot, worker in workers.items():
        worker.claim_slot(owner(f"worker of {slot}"), slot, 1)
    coordinator.save([Save("shard", f"of {slot}", 0, shard(slot)) for slot in slots])
    for slot, worker in workers.items():
        worker.save([Save("shard", f"of {slot}", 1, shard(slot, "2")), Save("slot", slot, 0, "1")], read_of(slot))
    return coordinator, workers


def read_of(slot: str) -> Mapping[str, Counts]:
    return {f"shard:of {slot}": Counts(read=1, applied=1)}


def batch(slot: str, revision: int) -> list[Save]:
    text = shard(slot, f"{revision}")
    return [
        Save("shard", f"of {slot}", revision, text),
        Save("slot", slot, revision - 1, f"{revision}"),
        Save("pulse", slot, None, f"{revision}"),
    ]


def test_workers_that_save_what_belongs_to_their_slots_have_no_item_in_common(db: DynamoDB) -> None:
    """Not one that is only checked, either: transactions that do that conflict as well."""
    _, workers = with_workers(db, "0", "1")
    recorded = {}
    for slot, worker in workers.items():
        worker.save(batch(slot, 2), read_of(slot))
        worker._client = recorded[slot] = Recording(db)
        worker.save(batch(slot, 3), read_of(slot))
        assert recorded[slot].calls == {"TransactWriteItems": 1}
        assert recorded[slot].transactions == [
            {f"h#{slot}", f"e#shard#of {slot}", f"e#slot#{slot}", f"e#pulse#{slot}", f"c#shard:of {slot}"}
        ]
    assert counts(store(db)) == {f"shard:of {slot}": Counts(read=3, applied=3) for slot in workers}


def test_one_process_has_one_head_also_after_a_run_with_workers(db: DynamoDB) -> None:
    with_workers(db, "0", "1")
    one = store(db)
    one.claim(owner("later"))
    one._client = recording = Recording(db)
    one.save([Save("shard", "of 0", 2, shard("0", "9")), Save("pipeline", "", 0, "1")], read_of("0"))
    assert recording.calls == {"TransactWriteItems": 1}
    assert recording.transactions == [{"h", "e#shard#of 0", "e#pipeline#", "c#shard:of 0"}]


def test_what_any_process_may_change_moves_the_common_head_too(db: DynamoDB) -> None:
    _, workers = with_workers(db, "0", "1")
    (worker, other) = workers.values()
    worker._client = recording = Recording(db)
    worker.save([*batch("0", 2), Save("parked", "k", 0, parked("k"))], {"shard:of 1": Counts(parked=-1, applied=1)})
    assert {key for key in recording.transactions[-1] if key[0] == "h"} == {"h", "h#0", "h#1"}
    other.save(batch("1", 2), read_of("1"))
    assert counts(store(db))["shard:of 1"] == Counts(read=2, applied=3, parked=-1)


def test_a_worker_whose_head_is_held_waits_a_moment_and_not_for_ever(db: DynamoDB) -> None:
    _, workers = with_workers(db, "0")
    worker = workers["0"]
    store(db)._states().hold(["0"], "someone")
    for _ in range(store_module.HELD_TRIES):
        with pytest.raises(TransientError, match="another process is about to change this slot's checkpoints"):
            worker.save(batch("0", 2))
    worker.save(batch("0", 2))
    worker.save(batch("0", 3))
    assert entries(store(db))["slot", "0"] == (3, "3")


def test_a_coordinator_takes_slots_away_whose_workers_save_all_the_time(db: DynamoDB) -> None:
    """They are made to wait; otherwise one of them would always have saved since it looked."""
    coordinator, workers = with_workers(db, *"0123")
    revisions, rests = dict.fromkeys(workers, 2), {slot: n for n, slot in enumerate(workers)}

    class Beside(Trouble):
        """Each worker saves once in four requests of the coordinator; after an error it pauses for forty."""

        def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
            for slot, worker in workers.items():
                rests[slot] -= 1
                if rests[slot] <= 0:
                    rests[slot] = 4 if saved(slot, worker) else 40
            return super().call(operation, request)

    def saved(slot: str, worker: DynamodbCheckpoints) -> bool:
        try:
            worker.save(batch(slot, revisions[slot]))
        except (TransientError, Fenced):
            return False
        revisions[slot] += 1
        return True

    coordinator._client = Beside(db, lambda n: "fine")
    taken = [Save("owner", slot, None, encode(owner("coordinator"))) for slot in workers]
    coordinator.save([*taken, Save("pipeline", "", 0, '"sweeping"')])
    for slot, worker in workers.items():
        with pytest.raises(Fenced, match=f"another worker owns slot {slot}"):
            retrying(partial(worker.save, batch(slot, revisions[slot])))
    assert min(revisions.values()) > 2


def test_more_slots_than_fit_in_a_transaction_share_the_common_head(db: DynamoDB) -> None:
    slots = [f"{n:03}" for n in range(120)]
    coordinator, workers = with_workers(db, *slots)
    for slot, worker in workers.items():
        worker.save(batch(slot, 2), read_of(slot))
    heads = [str(item["entry"]) for item in db.items("checkpoints") if str(item["entry"]).startswith("h#")]
    assert len(heads) == 90
    taken = [Save("owner", slot, None, encode(owner("coordinator"))) for slot in slots]
    coordinator.save([*taken, Save("pipeline", "", 0, '"sweeping"')])
    for slot in (slots[0], slots[-1]):
        with pytest.raises(Fenced, match=f"another worker owns slot {slot}"):
            workers[slot].save(batch(slot, 3))
    again = store(db)
    found = again.claim_slot(owner("again"), slots[-1], 1)
    assert (found.revision, found.counts[f"shard:of {slots[-1]}"]) == (3, Counts(read=2, applied=2))


def test_checkpoints_of_an_older_replicator_are_read_and_go_on(db: DynamoDB) -> None:
    """Format 1, with shards of slots, and the journal of a large save that a killed run has left."""
    one = begun(db)
    one.save([Save("shard", "of 0", 0, shard("0"))], read_of("0"))
    one._client = Trouble(db, lambda n: "fine" if n < 4 else "lost")  # two pieces of the journal, and the head
    with pytest.raises(TransientError):
        one.save(LARGE[:1] + LARGE[5:], MORE)
    (head,) = (item for item in db.items("checkpoints") if str(item["entry"]).startswith("h"))
    assert head.keys() == {"pipeline", "entry", "owner", "claim", "commit", "last", "journal", "format"}
    assert head["format"] == 1
    (later := store(db)).claim(owner("later"))
    worker = store(db)
    worker.claim_slot(owner("worker"), "0", 2)
    worker.save([Save("shard", "of 0", 1, shard("0", "2"))], read_of("0"))
    later.save([Save("shard", "a", 2, '"3"')], MORE)
    found = entries(store(db))
    assert (found["shard", "of 0"], found["shard", "a"]) == ((2, shard("0", "2")), (3, '"3"'))
    assert sum(id.startswith("new") for _, id in found) == 150
    assert counts(store(db))["shard:of 0"] == Counts(read=2, applied=2)


def test_the_format_is_that_of_older_replicators_until_a_slot_is_claimed(db: DynamoDB) -> None:
    def format() -> object:
        return next(item for item in db.items("checkpoints") if item["entry"] == "h")["format"]

    one = begun(db)
    one.save(LARGE, MORE)
    store(db).save([Save("request", "", 0, "1")])
    assert format() == 1
    store(db).claim_slot(owner("worker"), "0", 1)
    assert format() == 2
    store(db).claim(owner("later"))
    assert format() == 2


# the table


def test_check_says_how_to_create_the_table_and_create_creates_it() -> None:
    db = DynamoDB(now=time.time, random=random.Random(1))
    command = (
        "aws dynamodb create-table --table-name checkpoints --region us-east-1 --billing-mode PAY_PER_REQUEST "
        "--attribute-definitions AttributeName=pipeline,AttributeType=S AttributeName=entry,AttributeType=S "
        "--key-schema AttributeName=pipeline,KeyType=HASH AttributeName=entry,KeyType=RANGE"
    )
    one = store(db)
    make = "create it with: replicator check --create CONFIG"
    assert one.check() == [f"checkpoints.table: there is no {TABLE}; {make}, or: {command}"]
    needs = ", ".join(f"dynamodb:{a}" for a in ("GetItem", "Query", "PutItem", "DeleteItem", "ConditionCheckItem"))
    assert one.plan() == [f"{command}\n# permissions a run needs: {needs}, dynamodb:DescribeTable on {TABLE}"]
    for act in (one.read, partial(one.claim, owner())):
        with pytest.raises(ConfigError, match=re.escape(f"checkpoints.table: there is no {TABLE}; {make}")):
            act()
    one.create()
    one.create()
    assert (one.check(), one.plan()) == ([], [])
    assert db.items("checkpoints") == []


def test_check_says_that_a_global_table_does_not_carry_a_pipeline_to_another_region() -> None:
    db = DynamoDB(now=time.time, random=random.Random(1))
    one = store(db)
    assert isinstance(one, Noting)
    assert one.notes() == []
    one.create()
    assert one.notes() == []
    db._catalog.tables["checkpoints"].definition["Replicas"] = [{"RegionName": "eu-west-1"}]
    (warning,) = one.notes()
    assert warning.startswith("checkpoints.table: checkpoints is a global table, with replicas in eu-west-1.")
    assert one.check() == []


def test_a_table_with_other_keys_is_refused() -> None:
    db = DynamoDB(now=time.time, random=random.Random(1))
    db.create_table("checkpoints", keys={"id": "S"})
    (problem,) = store(db).check()
    assert problem == (
        "checkpoints.table: checkpoints has the keys id (HASH, S); they must be pipeline (HASH, S) and "
        "entry (RANGE, S). Use another table"
    )


@pytest.mark.parametrize(
    ("operation", "action"),
    [(o, o) for o in ("DescribeTable", "GetItem", "Query", "PutItem", "DeleteItem")]
    + [("TransactWriteItems", "ConditionCheckItem")],
)
def test_check_tests_every_permission_and_names_the_missing_one(db: DynamoDB, operation: str, action: str) -> None:
    db.fail(operation, "AccessDeniedException", times=None)
    with pytest.raises(NotPermitted, match=re.escape(f"dynamodb:{action} on {TABLE} is not permitted")) as caught:
        store(db).check()
    assert caught.value.action == f"dynamodb:{action}"
    assert "checkpoints.profile, checkpoints.role_arn" in str(caught.value)


def test_a_permission_that_a_transaction_lacks_is_named() -> None:
    class Refusing:
        def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
            raise AwsError("AccessDeniedException", "User: x is not authorized to perform: dynamodb:PutItem on r", 400)

    with pytest.raises(NotPermitted, match=re.escape(f"dynamodb:PutItem on {TABLE} is not permitted")):
        CheckpointTable(Refusing(), "checkpoints", TABLE, "p").transact([], [])


def test_throttled_requests_are_retried(db: DynamoDB) -> None:
    one = begun(db)
    db.fail("TransactWriteItems", "ThrottlingException", times=1)
    with pytest.raises(TransientError):
        one.save(SMALL, MORE)
    one.save(SMALL, MORE)
    assert counts(one) == MORE


def test_a_newer_format_and_a_modified_text_are_refused(db: DynamoDB) -> None:
    begun(db)
    head = next(item for item in db.items("checkpoints") if item["entry"] == "h")
    entry = next(item for item in db.items("checkpoints") if item["entry"] == "e#shard#a")
    db.put("checkpoints", {**entry, "text": '"7"'})
    with pytest.raises(
        DamagedCheckpoint, match="its entry shard 'a' does not match its checksum; something else changed"
    ):
        store(db).read()
    db.put("checkpoints", {**head, "format": 3})
    for act in (store(db).read, partial(store(db).claim, owner())):
        with pytest.raises(DamagedCheckpoint, match="have format 3, but this replicator reads up to 2: use a newer"):
            act()


def test_the_table_name_is_validated() -> None:
    with pytest.raises(ValidationError, match="must be a DynamoDB table name"):
        DynamodbOptions(table="no/such")
