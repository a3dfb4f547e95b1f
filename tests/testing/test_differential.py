"""The in-memory DynamoDB does what AWS's own DynamoDB Local does, but for the differences listed here."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import orjson
import pytest

from replicator.aws.errors import AwsError
from replicator.testing.dynamodb import LOCAL, DynamoDB
from replicator.testing.dynamodb.http import UnsignedClient
from tests.servers.dynamodb_fixtures import StartLocal
from tests.testing import conditions, script
from tests.testing.world import Observation, World, typed

pytestmark = pytest.mark.dynamodb_local

STEPS = {**script.STEPS, **conditions.STEPS}
BROKE_OFF = "broke off: "
_NOT_FOUND = "GetRecords: ResourceNotFoundException"
_EMPTY = {"records": [], "ended": False}
_NEWER = {
    "eventName": "INSERT",
    "eventSource": "aws:dynamodb",
    "eventVersion": "1.1",
    "Keys": typed({"id": "newer", "line": 1}),
    "NewImage": typed({"id": "newer", "line": 1}),
    "StreamViewType": "NEW_AND_OLD_IMAGES",
}


@dataclass(frozen=True)
class Difference:
    """Where the in-memory one keeps to AWS instead: what each of them answers, and why that is right."""

    in_memory: Observation
    local: Observation
    why: str


DIFFERENCES: Mapping[str, Difference] = {
    "a_sequence_number_that_is_none": Difference(
        "GetShardIterator: ValidationException",
        "GetShardIterator: InternalFailure",
        "a wrong parameter is the caller's fault, not the server's",
    ),
    "a_sequence_number_of_thirty_digits": Difference(
        _EMPTY,
        "GetShardIterator: InternalFailure",
        "AWS documents sequence numbers of up to 40 digits",
    ),
    "scan_pages_of_one_megabyte": Difference(
        [4, 4, 0],
        [4, 4],
        "AWS documents that LastEvaluatedKey does not mean that there is more",
    ),
    "what_a_transaction_costs": Difference(
        [{"TableName": "forms", "CapacityUnits": 4.0, "WriteCapacityUnits": 4.0}],
        [{"TableName": "forms", "CapacityUnits": 8.0, "WriteCapacityUnits": 8.0}],
        "AWS documents two units for each KB that a transaction writes; DynamoDB Local counts them twice",
    ),
    "closed_shards_that_are_wholly_trimmed": Difference(
        (1, []),
        (6, [_NOT_FOUND] * 5),
        "AWS removes a shard 24 hours after it closed; DynamoDB Local lists it for ever and does not know it",
    ),
    "an_open_shard_that_is_wholly_trimmed": Difference(
        (_EMPTY, {"records": [_NEWER], "ended": False}),
        ("GetRecords: TrimmedDataAccessException", {"records": [_NEWER], "ended": False}),
        "TRIM_HORIZON is the oldest record that is left, or the place of the next one",
    ),
}


def run(world: World) -> dict[str, Observation]:
    found: dict[str, Observation] = {}
    for name, step in STEPS.items():
        try:
            found[name] = step(world)
        except AwsError as e:
            found[name] = f"{BROKE_OFF}{e}"
    return found


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, minutes: float) -> None:
        self.now += 60 * minutes


@pytest.fixture(scope="module")
def in_memory() -> dict[str, Observation]:
    clock = Clock()
    database = DynamoDB(now=clock, random=random.Random(7), dialect=LOCAL)

    def roll() -> None:
        for name in orjson.loads(database.call("ListTables", {}))["TableNames"]:
            if database.stream_arn(name):
                database.roll_all(name)

    return run(World(database, roll, clock.advance))


@pytest.fixture(scope="module")
def local(dynamodb_local: StartLocal) -> dict[str, Observation]:
    server = dynamodb_local(clock=True)
    return run(World(UnsignedClient(server.endpoint), server.roll, lambda minutes: server.advance(minutes=minutes)))


@pytest.mark.parametrize("step", [name for name in STEPS if name not in DIFFERENCES])
def test_responds_as_dynamodb_local_does(
    step: str, in_memory: dict[str, Observation], local: dict[str, Observation]
) -> None:
    assert in_memory[step] == local[step]


@pytest.mark.parametrize("step", DIFFERENCES)
def test_differs_from_dynamodb_local_as_documented(
    step: str, in_memory: dict[str, Observation], local: dict[str, Observation]
) -> None:
    difference = DIFFERENCES[step]
    assert (in_memory[step], local[step]) == (difference.in_memory, difference.local)


def test_no_step_broke_off(in_memory: dict[str, Observation]) -> None:
    """Two endpoints that fail alike would agree, and prove nothing."""
    assert [name for name, found in in_memory.items() if str(found).startswith(BROKE_OFF)] == []
