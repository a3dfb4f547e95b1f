"""The differential script for writes with conditions, transactions, queries and filters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import orjson

from replicator.aws.errors import AwsError
from replicator.items.attributes import from_python
from tests.testing.world import Observation, World, typed, unordered

Step = Callable[[World], Observation]
STEPS: dict[str, Step] = {}
GUARD = {"ConditionExpression": "attribute_not_exists(#v) OR #v < :v", "ExpressionAttributeNames": {"#v": "_v"}}


def step(function: Step) -> Step:
    STEPS[function.__name__] = function
    return function


def values(**given: object) -> dict[str, Any]:
    return {"ExpressionAttributeValues": {f":{name}": from_python(v) for name, v in given.items()}}


def answer(world: World, operation: str, **request: Any) -> Observation:
    """What a call answers: its body, or its error with all that it says besides the wording.

    Not what it cost: DynamoDB Local says that unasked, for some deletes.
    """
    try:
        found = world.ask(operation, **request)
    except AwsError as e:
        return e.code, unordered(without_words(e.details))
    return unordered({name: value for name, value in found.items() if name != "ConsumedCapacity"})


def without_words(details: Any) -> Any:
    if isinstance(details, Mapping):
        return {name: without_words(v) for name, v in details.items() if name != "Message"}
    return [without_words(v) for v in details] if isinstance(details, list) else details


@step
def a_guarded_history(world: World) -> Observation:
    world.create("guarded", None, pk="S", sk="N")
    found = []
    for version in (5, 4, 5, 6, Decimal("5.5"), 10, 9):
        item = typed({"pk": "a", "sk": 1, "_v": version, "text": f"at {version}"})
        found.append(answer(world, "PutItem", TableName="guarded", Item=item, **GUARD, **values(v=version)))
    got = world.ask("GetItem", TableName="guarded", Key=typed({"pk": "a", "sk": 1}), ConsistentRead=True)
    return found, got


@step
def a_failed_condition_shows_the_item(world: World) -> Observation:
    shows = {"ReturnValuesOnConditionCheckFailure": "ALL_OLD"}
    item = typed({"pk": "a", "sk": 1, "_v": 1})
    key = typed({"pk": "a", "sk": 1})
    return [
        answer(world, "PutItem", TableName="guarded", Item=item, **GUARD, **values(v=1), **shows),
        answer(world, "DeleteItem", TableName="guarded", Key=key, **GUARD, **values(v=1), **shows),
        answer(world, "DeleteItem", TableName="guarded", Key=key, **GUARD, **values(v=1)),
        answer(world, "DeleteItem", TableName="guarded", Key=key, ReturnValues="ALL_OLD", **GUARD, **values(v=99)),
        answer(world, "DeleteItem", TableName="guarded", Key=key, **GUARD, **values(v=1), **shows),
    ]


@step
def conditions_of_each_form(world: World) -> Observation:
    """For each item, which of the conditions a put would meet: tried by a put that changes nothing."""
    world.create("forms", None)
    items: list[dict[str, object]] = [
        {"n": 5, "s": "ab", "b": b"ab"},
        {"n": "5", "s": "b"},
        {},
        {"n": None, "s": {"a", "b"}},
    ]
    forms = [
        "attribute_exists(n)",
        "attribute_not_exists(n)",
        "attribute_exists(absent) OR n = :n",
        "n = :n",
        "n <> :n",
        "n < :n",
        "n <= :n",
        "n > :n",
        "n >= :n",
        "s < :s",
        "b >= :b",
        "begins_with(s, :s)",
        "begins_with(b, :b)",
        "NOT n = :n",
        "NOT (n = :n AND s = :s) AND attribute_exists(s)",
        "attribute_exists(n) AND n < :n OR attribute_exists(s)",
        "attribute_not_exists(n) or not attribute_exists(n)",
        "s = :set",
    ]
    given = {"n": 5, "s": "a", "b": b"a", "set": {"b", "a"}}
    return [[_tried(world, item, form, given) for form in forms] for item in items]


def _tried(world: World, item: Mapping[str, object], form: str, given: Mapping[str, object]) -> Observation:
    world.put("forms", id="x", **item)
    used = {name: v for name, v in given.items() if f":{name}" in form.replace("(", " ").replace(")", " ").split()}
    used |= {name: v for name, v in given.items() if f", :{name})" in form}
    request: dict[str, Any] = {"Item": typed({"id": "x", **item}), "ConditionExpression": form}
    return world.refusal("PutItem", TableName="forms", **request, **(values(**used) if used else {}))


@step
def expressions_that_are_refused(world: World) -> Observation:
    item = {"Item": typed({"id": "x"})}
    bad: list[dict[str, Any]] = [
        {"ConditionExpression": "attribute_exists(n"},
        {"ConditionExpression": "n ="},
        {"ConditionExpression": "n = :n"},
        {"ConditionExpression": "#n = :n", **values(n=1)},
        {"ConditionExpression": "attribute_exists(n)", **values(n=1)},
        {"ConditionExpression": "attribute_exists(n)", "ExpressionAttributeNames": {"#n": "n"}},
        {"ConditionExpression": "n < :n", **values(n=True)},
        {"ConditionExpression": "begins_with(n, :n)", **values(n=1)},
        {"ConditionExpression": "n = :n n = :n", **values(n=1)},
    ]
    return [world.refusal("PutItem", TableName="forms", **item, **one) for one in bad]


@step
def updates_with_a_condition(world: World) -> Observation:
    world.put("forms", id="u", n=1)
    update = {
        "TableName": "forms",
        "Key": typed({"id": "u"}),
        "UpdateExpression": "SET #n = :new",
        "ConditionExpression": "#n = :old",
        "ExpressionAttributeNames": {"#n": "n"},
    }
    found = [answer(world, "UpdateItem", **update, **values(new=2, old=old)) for old in (1, 1)]
    return found, world.ask("GetItem", TableName="forms", Key=typed({"id": "u"}))


@step
def a_transaction(world: World) -> Observation:
    world.create("moves", None, pk="S", sk="S")
    for sk in ("kept", "checked"):
        world.put("moves", pk="p", sk=sk, n=1)
    fresh = {"TableName": "moves", "Item": typed({"pk": "p", "sk": "new", "n": 1})}
    is_one = {"TableName": "moves", "ConditionExpression": "n = :n", **values(n=1)}
    whole: list[dict[str, Any]] = [
        {"Put": fresh | {"ConditionExpression": "attribute_not_exists(pk)"}},
        {"Delete": is_one | {"Key": typed({"pk": "p", "sk": "kept"})}},
        {"ConditionCheck": is_one | {"Key": typed({"pk": "p", "sk": "checked"})}},
    ]
    found = [answer(world, "TransactWriteItems", TransactItems=whole) for _ in range(2)]
    shown = [
        {kind: {**w, "ReturnValuesOnConditionCheckFailure": "ALL_OLD"} for kind, w in one.items()} for one in whole
    ]
    return found, answer(world, "TransactWriteItems", TransactItems=shown), rows(world, "moves")


@step
def a_transaction_that_comes_again(world: World) -> Observation:
    """The same token changes nothing; with other writes it is refused."""
    again = {"ClientRequestToken": "a-token-of-our-own", "TransactItems": [_moved("again", 1)]}
    first = answer(world, "TransactWriteItems", **again)
    world.delete("moves", pk="p", sk="again")
    second = answer(world, "TransactWriteItems", **again)
    other = {**again, "TransactItems": [_moved("again", 2)]}
    return first, second, rows(world, "moves"), world.refusal("TransactWriteItems", **other)


def _moved(sk: str, n: int) -> dict[str, Any]:
    return {"Put": {"TableName": "moves", "Item": typed({"pk": "p", "sk": sk, "n": n})}}


def rows(world: World, table: str) -> Observation:
    return in_order(world.ask("Scan", TableName=table, ConsistentRead=True)["Items"])


def in_order(items: list[Any]) -> list[Any]:
    return sorted(map(unordered, items), key=lambda item: orjson.dumps(item, option=orjson.OPT_SORT_KEYS))


@step
def transactions_that_are_refused(world: World) -> Observation:
    bad: list[list[dict[str, Any]]] = [
        [],
        [_moved("a", 1), _moved("a", 2)],
        [_moved(f"n{n}", 1) for n in range(101)],
        [{"Put": {"TableName": "nowhere", "Item": typed({"pk": "p"})}}],
        [{"ConditionCheck": {"TableName": "moves", "Key": typed({"pk": "p", "sk": "a"})}}],
    ]
    return [world.refusal("TransactWriteItems", TransactItems=one) for one in bad], rows(world, "moves")


@step
def queries(world: World) -> Observation:
    world.create("threads", None, pk="S", sk="S")
    for pk, sk in (("a", "shard/2"), ("a", "gap/1"), ("a", "shard/1"), ("b", "shard/1"), ("a", "shard/10"), ("a", "É")):
        world.put("threads", pk=pk, sk=sk, n=len(sk))
    forms: list[tuple[str, dict[str, Any]]] = [
        ("pk = :p", {"p": "a"}),
        ("pk = :p AND begins_with(sk, :s)", {"p": "a", "s": "shard/"}),
        ("pk = :p AND sk > :s", {"p": "a", "s": "shard/1"}),
        ("pk = :p AND sk = :s", {"p": "b", "s": "shard/1"}),
        ("pk = :p", {"p": "nobody"}),
    ]
    found = [answer(world, "Query", TableName="threads", KeyConditionExpression=f, **values(**v)) for f, v in forms]
    key = {"KeyConditionExpression": "pk = :p", **values(p="a")}
    backwards = answer(world, "Query", TableName="threads", ScanIndexForward=False, ConsistentRead=True, **key)
    return found, backwards, _paged(world, key), _paged(world, {**key, "ScanIndexForward": False})


def _paged(world: World, request: Mapping[str, Any]) -> list[Observation]:
    pages: list[Observation] = []
    after: dict[str, Any] = {}
    while True:
        page = world.ask("Query", TableName="threads", Limit=2, **request, **after)
        pages.append([item["sk"]["S"] for item in page["Items"]])
        if "LastEvaluatedKey" not in page or len(pages) > 9:
            return pages
        after = {"ExclusiveStartKey": page["LastEvaluatedKey"]}


@step
def queries_that_are_refused(world: World) -> Observation:
    bad: list[dict[str, Any]] = [
        {"KeyConditionExpression": "sk = :s", **values(s="a")},
        {"KeyConditionExpression": "pk > :p", **values(p="a")},
        {"KeyConditionExpression": "pk = :p OR sk = :s", **values(p="a", s="b")},
        {"KeyConditionExpression": "pk = :p", **values(p=1)},
    ]
    return [world.refusal("Query", TableName="threads", **one) for one in bad]


@step
def filters_and_projections(world: World) -> Observation:
    wanted = {"FilterExpression": "n < :n", **values(n=7)}
    names = {"ProjectionExpression": "pk, #s", "ExpressionAttributeNames": {"#s": "sk"}}
    pages = [answer(world, "Scan", TableName="threads", ConsistentRead=True, **more) for more in (wanted, names)]
    for page in pages:
        page["Items"] = in_order(page["Items"])
    short = answer(world, "Scan", TableName="threads", Limit=2, **wanted)
    queried = answer(
        world,
        "Query",
        TableName="threads",
        KeyConditionExpression="pk = :p",
        FilterExpression="n < :n",
        **values(p="a", n=7),
    )
    key = typed({"pk": "a", "sk": "gap/1"})
    return pages, short["ScannedCount"], queried, answer(world, "GetItem", TableName="threads", Key=key, **names)


@step
def what_writes_cost(world: World) -> Observation:
    """One unit a KB of the larger of what was there and what is there now."""
    found = []
    counted = {"ReturnConsumedCapacity": "TOTAL"}
    for size in (10, 3000, 10):
        item = typed({"id": "cost", "text": "x" * size})
        found.append(world.ask("PutItem", TableName="forms", Item=item, **counted)["ConsumedCapacity"])
    found.append(world.ask("DeleteItem", TableName="forms", Key=typed({"id": "cost"}), **counted)["ConsumedCapacity"])
    found.append(world.ask("DeleteItem", TableName="forms", Key=typed({"id": "cost"}), **counted)["ConsumedCapacity"])
    return found


@step
def what_a_transaction_costs(world: World) -> Observation:
    put = [{"Put": {"TableName": "forms", "Item": typed({"id": "cost", "text": "x" * 1500})}}]
    asked = {"TransactItems": put, "ReturnConsumedCapacity": "TOTAL"}
    return world.ask("TransactWriteItems", **asked)["ConsumedCapacity"]
