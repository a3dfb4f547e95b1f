"""What ``replicator estimate`` calculates: ranges that contain what a copy really takes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from replicator.aws.prices import PRICES
from replicator.config.engine import Lambda, Local
from replicator.config.settings import Config, Source
from replicator.config.target import Destination
from replicator.config.verification import Verify
from replicator.operations import estimate as estimates
from replicator.operations.estimate import (
    Facts,
    History,
    Limits,
    Range,
    calculated,
    estimate_each,
    idle_requests,
    limits_of,
)
from replicator.options import Options

FACTS = Facts(
    items=1_000_000,
    bytes=4 << 30,
    shards=4,
    per_item=1.0,
    document_bytes=4000,
    region="us-east-1",
    on_demand=True,
    keys_only=False,
    changes=Range(0, 0),
)
LIMITS = Limits("postgres", segments=4)


def test_a_scan_takes_a_unit_for_each_4_kb_and_at_most_one_more_for_each_page() -> None:
    e = calculated(FACTS, LIMITS, PRICES)

    assert e.read_units.low == (4 << 30) / 4096
    assert e.read_units.high == pytest.approx(1.1 * (4 << 30) / 4096 + 1.1 * 4096 + 4)
    assert e.backfill_reads is not None
    assert e.backfill_reads.low == pytest.approx(e.read_units.low * 0.125 / 1e6)


def test_an_export_takes_no_read_units_and_costs_by_the_gigabyte_unless_it_exists() -> None:
    e = calculated(FACTS, replace(LIMITS, exports=True), PRICES)

    assert (e.read_units, e.backfill_reads) == (Range(0, 0), Range(0, 0))
    assert e.export is not None
    assert (e.export.low, e.export.high) == pytest.approx((0.4, 0.44))
    assert calculated(FACTS, replace(LIMITS, exports=True, export_exists=True), PRICES).export == Range(0, 0)


def test_without_a_backfill_only_following_changes_costs() -> None:
    for limits in (Limits("dynamodb", 4, events=100), Limits("postgres", 4, exports=True)):
        e = calculated(FACTS, replace(limits, backfill=False), PRICES)
        none = [e.read_units, e.scan_requests, e.documents, e.seconds]
        none += [one for one in (e.write_units, e.posts, e.export, e.backfill_reads) if one is not None]
        assert {(one.low, one.high) for one in none} == {(0, 0)}
        assert e.month_requests == calculated(FACTS, limits, PRICES).month_requests
        assert e.limited_by == "backfill.enabled: false"


def test_a_read_limit_that_is_slower_than_everything_else_decides_the_duration() -> None:
    e = calculated(FACTS, replace(LIMITS, read_units=100.0), PRICES)

    assert (e.seconds.low, e.limited_by) == (e.read_units.low / 100, "backfill.read_units")
    assert calculated(FACTS, replace(LIMITS, read_units=1e9), PRICES).limited_by.startswith("the speed of reading")


@pytest.mark.parametrize("measured", [12_688, 24_684])
def test_the_measured_speeds_of_redis_are_within_the_estimated_ones(measured: float) -> None:
    """Of its hashes and its JSON documents, by the benchmarks."""
    e = calculated(FACTS, replace(LIMITS, target="redis"), PRICES)

    assert e.seconds.low <= FACTS.items / measured <= e.seconds.high
    assert e.seconds.high < calculated(FACTS, replace(LIMITS, target="dynamodb"), PRICES).seconds.high


def test_on_aws_lambda_there_is_no_polling_but_two_requests_for_a_batch_at_most() -> None:
    month, facts = 30 * 86_400, replace(FACTS, changes=Range(1, 10))
    e = calculated(facts, replace(LIMITS, function=True), PRICES)
    scheduled = 4 * month / 900 * 5
    assert e.month_requests.low == pytest.approx(month / 1000)
    assert e.month_requests.high == pytest.approx(2 * (4 * month + month / 100) + scheduled)
    still = calculated(FACTS, replace(LIMITS, function=True), PRICES).month_requests
    assert still.low == 0
    assert still.high == pytest.approx(scheduled)
    assert still.high < idle_requests(None, month).low


def test_the_engine_of_the_config_decides_what_the_stream_costs() -> None:
    def function(engine: Lambda | Local) -> bool:
        target = Destination("memory", None, None, {})  # type: ignore[arg-type]
        return limits_of(Config("orders", Source(table="orders", region="eu-west-1"), target, engine=engine)).function

    assert function(Lambda())
    assert not function(Local())


def test_each_function_on_aws_lambda_reads_the_stream_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    one = calculated(FACTS, LIMITS, PRICES)
    monkeypatch.setattr(estimates, "estimate", lambda *_: one)

    def requests(engine: Options) -> list[float]:
        configs: Any = [SimpleNamespace(engine=engine)] * 2
        return [each.month_requests.high for each in estimate_each(configs, Range(0, 0), PRICES)]

    assert requests(Lambda()) == [one.month_requests.high] * 2
    assert requests(Local()) == [one.month_requests.high, 0]


def test_a_write_limit_decides_where_the_target_is_dynamodb() -> None:
    e = calculated(FACTS, Limits("dynamodb", 4, read_units=1e6, write_units=10), PRICES)

    assert e.limited_by == "target.write_units"
    assert e.write_units is not None
    assert e.write_units.low <= 4_000_000 <= e.write_units.high, "4 KB is four units of 1 KB"
    assert e.seconds.high == pytest.approx(e.write_units.high / 10)


def test_idle_polls_are_charged_for_every_open_shard_and_the_free_ones_may_be_used_by_others() -> None:
    e = calculated(FACTS, LIMITS, PRICES)

    assert e.month_requests == idle_requests(None, 30 * 86_400).times(4)
    assert e.month_stream.low == pytest.approx((e.month_requests.low - 2_500_000) * 0.2 / 1e6)
    assert e.month_stream.high == pytest.approx(e.month_requests.high * 0.2 / 1e6)
    assert calculated(replace(FACTS, shards=1), LIMITS, PRICES).month_stream.low == 0


def test_the_passes_of_a_run_that_verifies_read_each_item_once_or_twice_but_no_more_than_they_may() -> None:
    scan = (4 << 30) / 4096
    daily = calculated(FACTS, replace(LIMITS, verify=Verify(every=86_400, read_units=1000)), PRICES)
    assert daily.month_verify_units is not None
    assert daily.month_verify is not None
    assert daily.month_verify_units.low == scan * 30
    assert 2 * scan * 30 < daily.month_verify_units.high < 5 * scan * 30
    assert daily.month_verify.low == pytest.approx(scan * 30 * 0.125 / 1e6)
    slow = calculated(FACTS, replace(LIMITS, verify=Verify(every=3600, read_units=5)), PRICES)
    assert slow.month_verify_units == Range(5 * 30 * 86_400, 5 * 30 * 86_400)
    assert calculated(FACTS, LIMITS, PRICES).month_verify_units is None
    provisioned = calculated(replace(FACTS, on_demand=False), replace(LIMITS, verify=Verify()), PRICES)
    assert provisioned.month_verify is None


def test_a_history_has_a_row_for_each_document_and_change_and_is_bounded_by_the_days_that_are_kept() -> None:
    changing = replace(FACTS, changes=Range(5, 50))
    kept = calculated(changing, replace(LIMITS, history=History(90)), PRICES)
    assert kept.history is not None
    assert kept.month_history is not None
    assert kept.history_thousand is not None
    assert kept.history_most is not None
    assert 1e6 * 1000 < kept.history.low < 1e6 * 4000 < kept.history.high < 1.1e6 * 6000
    assert 1000 * 1000 < kept.history_thousand.low < 1000 * 8000 < kept.history_thousand.high
    assert kept.month_history.high == pytest.approx(50 * 30 * 86.4 * kept.history_thousand.high)
    assert 3 * kept.month_history.low == pytest.approx(kept.history_most.low)
    assert 3 * kept.month_history.high < kept.history_most.high < 4 * kept.month_history.high
    for_good = calculated(changing, replace(LIMITS, history=History(None)), PRICES)
    assert (for_good.month_history, for_good.history_most) == (kept.month_history, None)
    none = calculated(changing, LIMITS, PRICES)
    assert (none.history, none.month_history, none.history_thousand, none.history_most) == (None, None, None, None)


def test_a_history_of_one_of_several_tables_may_have_nothing_of_the_changes_and_the_longest_is_kept() -> None:
    def limits(**tables: object) -> Limits:
        options = {name: {"history": kept} for name, kept in tables.items()}
        target = Destination("postgres", object, Options(), options)
        return limits_of(Config("orders", Source(table="orders", region="eu-west-1"), target))

    assert limits(a=None).history is None
    assert limits(a={"keep": "90d"}, b={"keep": "30d"}).history == History(90)
    assert limits(a={"keep": "90d"}, b={}).history == History(None)
    some = limits(a={"keep": "90d"}, b=None).history
    assert some == History(90, all_tables=False)
    estimated = calculated(replace(FACTS, changes=Range(5, 5)), replace(LIMITS, history=some), PRICES)
    assert estimated.month_history is not None
    assert estimated.month_history.low == 0 < estimated.month_history.high


@pytest.mark.parametrize(("target", "measured"), [("redis", 24_684), ("redis", 12_688), ("delta", 24_166)])
def test_the_rate_of_the_benchmarks_is_within_the_range(target: str, measured: float) -> None:
    seconds = calculated(FACTS, replace(LIMITS, target=target), PRICES).seconds
    assert seconds.low < FACTS.items / measured < seconds.high < 20 * FACTS.items / measured


def test_a_history_makes_the_backfill_take_longer() -> None:
    without, kept = (calculated(FACTS, replace(LIMITS, history=h), PRICES).seconds for h in (None, History(None)))
    assert without.low < without.low / 0.9 < kept.low
    assert without.high < without.high / 0.38 < kept.high, "0.38 of the rate was measured"


def test_a_webhook_gets_full_requests_at_best_and_one_for_each_event_at_worst() -> None:
    webhook = replace(LIMITS, target="webhook", events=500, event_bytes=1 << 20)
    changing = replace(FACTS, document_bytes=100, changes=Range(5, 50))
    estimated = calculated(changing, webhook, PRICES)
    assert estimated.posts == Range(1_000_000 / 500, 1_100_000)
    assert estimated.month_posts == Range(5 * 30 * 86_400 / 500, 50 * 30 * 86_400)
    large = calculated(replace(changing, document_bytes=40_000), webhook, PRICES).posts
    assert large is not None
    assert 1_000_000 / 110 < large.low < 1_000_000 / 90, "max_bytes allows fewer events"
    assert calculated(FACTS, LIMITS, PRICES).posts is None
    options = SimpleNamespace(max_events=7, max_bytes=2000)
    target: Any = SimpleNamespace(type="webhook", options=options, tables={})
    limits = limits_of(Config("orders", Source(table="orders", region="eu-west-1"), target))
    assert (limits.events, limits.event_bytes) == (7, 2000)


def test_a_shorter_poll_interval_costs_more_requests() -> None:
    usual, quick = idle_requests(None), idle_requests(0.1)

    assert quick.low > 4 * usual.high
    assert quick.high == 864_000


def test_a_change_costs_at_most_one_more_request_and_a_write() -> None:
    facts = replace(FACTS, changes=Range(5, 10))
    e, still = (calculated(f, Limits("dynamodb", 4), PRICES) for f in (facts, FACTS))

    assert e.month_requests.high - still.month_requests.high == pytest.approx(10 * 30 * 86_400)
    assert e.month_requests.low == still.month_requests.low
    assert e.month_writes is not None
    assert e.month_writes.low > 0


def test_provisioned_reads_are_not_charged_and_streams_of_keys_look_items_up() -> None:
    assert calculated(replace(FACTS, on_demand=False), LIMITS, PRICES).backfill_reads is None
    assert calculated(FACTS, LIMITS, PRICES).month_reads is None
    e = calculated(replace(FACTS, keys_only=True, changes=Range(1, 1)), LIMITS, PRICES)
    assert e.month_reads is not None
    assert e.month_reads.low == pytest.approx(2 * 30 * 86_400 * 0.125 / 1e6)


def test_another_region_makes_the_ranges_wider() -> None:
    here, there = (calculated(replace(FACTS, region=r), LIMITS, PRICES) for r in ("us-east-1", "eu-west-1"))

    assert here.backfill_reads is not None
    assert there.backfill_reads is not None
    assert there.backfill_reads.low == here.backfill_reads.low
    assert there.backfill_reads.high == pytest.approx(1.6 * here.backfill_reads.high)


def test_an_empty_table_takes_nothing_but_requests() -> None:
    e = calculated(replace(FACTS, items=0, bytes=0, shards=0, per_item=0.0), LIMITS, PRICES)

    assert (e.documents, e.month_requests, e.month_stream) == (Range(0, 0), Range(0, 0), Range(0, 0))
    assert e.scan_requests == Range(4, 4)


@pytest.mark.parametrize(("low", "high"), [(-1, 0), (2, 1), (float("nan"), 1)])
def test_a_range_begins_with_its_low_end(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="a range from"):
        Range(low, high)


def test_an_hours_gap_costs_by_the_size_of_its_changes() -> None:
    facts = replace(FACTS, changes=Range(10, 20))
    e = calculated(facts, replace(LIMITS, gap_exports=True), PRICES)

    assert e.gap_hour is not None
    assert e.gap_hour.low == pytest.approx(10 * 3600 * FACTS.bytes / FACTS.items / (1 << 30) * 0.1)
    assert e.gap_hour.high == pytest.approx(4 * e.gap_hour.low), "twice the changes, with both images"
    assert calculated(facts, LIMITS, PRICES).gap_hour is None
