"""``replicator estimate``: facts of a live table, and ranges that a real run stays within."""

from __future__ import annotations

import base64
import random
from typing import Any

import orjson
import pytest

from tests.cli.command_line import World, pristine
from tests.connectors.postgres.history_kit import keep_history


def estimated(world: World, *arguments: str) -> dict[str, Any]:
    (result,) = world.lines("estimate", world.config, *arguments)
    return dict(result)


def filled(world: World, count: int = 50, size: int = 5000) -> None:
    world.db.create_table("orders")
    for n in range(count):
        world.db.put("orders", {"id": str(n), "text": "x" * size})


def test_a_real_backfill_stays_within_the_estimate(world: World) -> None:
    filled(world)
    e = estimated(world)
    units: list[float] = []
    asked = world.db.call

    def noting(operation: str, request: Any) -> bytes:
        body = asked(operation, request)
        if operation == "Scan":
            units.append(orjson.loads(body)["ConsumedCapacity"]["CapacityUnits"])
        return body

    world.db.call = noting  # type: ignore[method-assign]
    world.catch_up()

    assert e["items"] == 50
    assert units, "the scan was noted"
    assert e["backfill_documents"][0] <= 50 <= e["backfill_documents"][1]
    assert e["backfill_scan_requests"][0] - 1 <= len(units) <= e["backfill_scan_requests"][1] + 1
    assert e["backfill_read_units"][0] * 0.9 <= sum(units) <= e["backfill_read_units"][1] + 4


def test_the_text_says_what_it_is_based_on_and_what_is_missing(world: World) -> None:
    filled(world, 3)
    code, out, _ = world.call("estimate", world.config, "--human", "--changes", "5-50")

    assert code == 0
    assert "table      about 3 items, 15 KB (DynamoDB's statistics, up to 6 hours old)" in out
    assert "1 open shard, 5 to 50 changes per second" in out
    assert (
        "prices     US dollars, list prices of us-east-1 as noted in 2025-07 (https://aws.amazon.com/dynamodb/pri"
        in out
    )
    assert "check them against your bill; --price replaces them" in out
    assert "not included: a target that is not DynamoDB, data transfer" in out


def test_the_passes_of_a_run_that_verifies_are_part_of_the_month(world: World) -> None:
    filled(world)
    world.change("target:", "verify: {every: 7d}\ntarget:")
    e = estimated(world)
    assert 50 * 5000 / 4096 * 4 < e["month_verify_read_units"][0] < e["month_verify_read_units"][1]
    _, out, _ = world.call("estimate", world.config, "--human")
    assert "read units of the run's own passes: " in out


def test_limits_of_the_config_decide_and_a_hook_that_filters_counts(world: World) -> None:
    filled(world, 10)
    world.hook("def hook(item):\n    return item if int(item['id']) % 2 else None\n")
    world.change("target:", "backfill: {read_units: 1}\ntarget:")
    e = estimated(world)

    assert e["limited_by"] == "backfill.read_units"
    assert e["backfill_seconds"][0] == pytest.approx(e["backfill_read_units"][0])
    assert e["backfill_documents"][0] == 5


def test_a_dynamodb_target_costs_write_units(world: World) -> None:
    filled(world, 3)
    pristine(world)
    e = estimated(world, "--changes", "1")

    assert e["backfill_write_units"][0] <= 3 * 5 <= e["backfill_write_units"][1]
    assert e["month_writes_usd"][0] > 0


def test_a_table_without_a_stream_is_said(world: World) -> None:
    world.db.create_table("orders", view=None)
    code, out, _ = world.call("estimate", world.config, "--human")

    assert (code, "the stream is off, so its shards are not known" in out) == (0, True)


@pytest.mark.parametrize("changes", ["many", "-1", "5-1", "1e99", "5-", ""])
def test_a_foolish_rate_is_a_plain_error(world: World, changes: str) -> None:
    code, out, err = world.call("estimate", world.config, f"--changes={changes}")

    assert (code, out) == (2, "")
    assert f"--changes: {changes} must be a number per second, or a range such as 5-50" in err


def test_own_prices_replace_the_list_prices_without_an_allowance_for_the_region(world: World) -> None:
    filled(world, 3)
    listed, own = (
        estimated(world, "--changes", "100"),
        estimated(world, "--changes", "100", "--price", "stream-reads=2"),
    )
    assert own["month_stream_requests"] == listed["month_stream_requests"]
    low, high = own["month_stream_requests"]
    assert own["month_stream_usd"] == pytest.approx([max(0.0, low - 2.5e6) * 2 / 1e6, high * 2 / 1e6])


@pytest.mark.parametrize("text", ["reads", "reads=x", "storage=1", "stream_reads=0.2"])
def test_a_foolish_price_is_a_plain_error(world: World, text: str) -> None:
    code, _, err = world.call("estimate", world.config, "--price", text)
    assert code == 2
    assert f"--price: {text} must be reads, writes, stream-reads or exports, and dollars" in err


def test_a_real_history_is_as_large_as_estimated(world: World) -> None:
    chance, items = random.Random(1), 400
    keep_history(world, "history: {keep: 90d}")
    world.db.create_table("orders", view="NEW_AND_OLD_IMAGES")

    def put(n: int) -> None:
        words = {f"field{i}": f"{chance.getrandbits(80):x}" for i in range(1 + n % 20)}
        world.db.put("orders", {"id": str(n), "n": n, **words})

    def there() -> tuple[int, int]:
        """Bytes and rows of the history."""
        query = "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class WHERE relname LIKE 'orders_history%'"
        ((size,),), ((rows,),) = (
            world.rows(f"{query} AND relkind = 'r'"),
            world.rows("SELECT count(*) FROM orders_history"),
        )
        return int(size), int(rows)

    world.catch_up()
    empty, _ = there()
    for n in range(items):
        put(n)
    world.catch_up()
    size, rows = there()
    estimate = estimated(world, "--changes", "1")
    low, high = (total / items for total in estimate["backfill_history_bytes"])
    assert low < (size - empty) / rows < high
    for _ in range(5):
        for n in range(items):
            put(n)
    world.catch_up()
    later, _ = there()
    low, high = estimate["history_bytes_per_1000_changes"]
    assert low < (later - size) / 5 / items * 1000 < high
    _, out, _ = world.call("estimate", world.config, "--changes", "1", "--human")
    assert "kept for 90 days, so" in out
    assert "per 1,000 changes" in out


def test_the_requests_to_the_receiver_of_a_webhook_are_counted(world: World) -> None:
    filled(world, 3)
    secret = "whsec_" + base64.b64encode(b"0" * 32).decode()
    receiver = f"type: webhook\n  url: https://example.com/hook\n  secret: {secret}\n  max_events: 10\n  table: orders"
    world.change(f"type: postgres\n  url: {world.postgres.url}\n  table: orders", receiver)
    estimate = estimated(world, "--changes", "1")
    assert estimate["backfill_posts"] == pytest.approx([0.3, 3.3])
    assert estimate["month_posts"] == [30 * 86_400 / 10, 30 * 86_400]
    _, out, _ = world.call("estimate", world.config, "--changes", "1", "--human")
    assert "posts          260,000 to 2.6 million requests to the receiver" in out
