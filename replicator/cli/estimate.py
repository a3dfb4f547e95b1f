"""``replicator estimate``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from replicator.cli.output import aside, config_argument, json_option, put, say
from replicator.errors import ConfigError

if TYPE_CHECKING:
    from replicator.aws.prices import Prices
    from replicator.operations.estimate import Estimate, Range

_PRICE = re.compile(r"(?P<name>reads|writes|stream-reads|exports)=(?P<usd>\d{1,6}(\.\d{1,6})?)")
_CHANGES = re.compile(r"(?P<low>\d{1,9}(\.\d{1,6})?)(-(?P<high>\d{1,9}(\.\d{1,6})?))?")


@click.command
@config_argument
@click.option("--changes", default="0", show_default=True, help="Changes per second, e.g. 20 or 5-50.")
@click.option(
    "--price",
    "given",
    multiple=True,
    metavar="NAME=USD",
    help="Your price per million of reads, writes or stream-reads, e.g. stream-reads=0.20; exports: per GB.",
)
@json_option
def estimate(config: str, target: str | None, changes: str, given: tuple[str, ...], as_json: bool) -> None:
    """Estimate what a copy costs and how long it takes.

    From the table's size, its open shards and 100 sampled items: read units, stream requests, writes to the target,
    duration at the configured limits, and money by a table of list prices, as ranges. Of several targets, one after the
    other; the stream's requests are counted for the first one, as one run reads it for all; on AWS Lambda, for each.
    Writes nothing.
    """
    from replicator.aws.prices import PRICES
    from replicator.config import settings as configs
    from replicator.config.engine import Lambda
    from replicator.operations.estimate import estimate_each

    rate, prices = _rate(changes), _prices(given, PRICES)
    loaded = configs.load_each(config, target=target)
    with aside():
        results = estimate_each(loaded, rate, prices)
    each_reads = any(isinstance(one.engine, Lambda) for one in loaded)
    for at, (one, result) in enumerate(zip(loaded, results, strict=True)):
        if as_json:
            put(({} if one.target_name is None else {"target": one.target_name}) | _as_json(result))
            continue
        if at:
            say()
        if one.target_name is not None:
            say(f"target {one.target_name}")
        for line in lines(result, prices, shared=loaded[0].target_name if at and not each_reads else None):
            say(line)


def _rate(text: str) -> Range:
    from replicator.operations.estimate import Range

    match = _CHANGES.fullmatch(text)
    if match is None or float(match["high"] or match["low"]) < float(match["low"]):
        raise ConfigError(f"--changes: {text} must be a number per second, or a range such as 5-50")
    return Range(float(match["low"]), float(match["high"] or match["low"]))


def _prices(given: tuple[str, ...], listed: Prices) -> Prices:
    """The list prices, with those that are given in their place."""
    own: dict[str, float] = {}
    for text in given:
        match = _PRICE.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"--price: {text} must be reads, writes, stream-reads or exports, and dollars: e.g. reads=0.125"
            )
        own[match["name"].replace("-", "_")] = float(match["usd"])
    return replace(listed, **own, given=frozenset(own))  # type: ignore[arg-type]


def lines(e: Estimate, prices: Prices, shared: str | None = None) -> Iterator[str]:
    """The estimate as text, two significant digits a number. ``shared``: the target whose reader of the stream this one
    shares, if it does.
    """
    from replicator.aws.prices import AS_OF, SOURCE

    f = e.facts
    yield f"table      about {f.items:,} items, {_size(f.bytes)} (DynamoDB's statistics, up to 6 hours old)"
    yield f"documents  {f.per_item:.2g} per item in the sample"
    yield from _backfill(e)
    yield from _month(e, shared)
    yield f"prices     US dollars, list prices of {prices.region} as noted in {AS_OF} ({SOURCE})"
    yield "           check them against your bill; --price replaces them"
    if f.region != prices.region:
        yield f"           {f.region or 'another region'} may cost about {prices.factor:g} times as much: included"
    yield "not included: a target that is not DynamoDB, data transfer between regions, the machine that runs replicator"


def _backfill(e: Estimate) -> Iterator[str]:
    if not e.backfill:
        yield "backfill         none (backfill.enabled: false)"
        return
    provisioned = "no charge beyond the table's provisioned capacity"
    reads = provisioned if e.backfill_reads is None else _span(e.backfill_reads, _money)
    yield "backfill"
    yield f"  duration       {_span(e.seconds, _time)}, limited by {e.limited_by}"
    if e.export is None:
        yield f"  read units     {_span(e.read_units, _count)} in {_span(e.scan_requests, _count)} requests: {reads}"
    else:
        yield f"  export         {_span(e.export, _money)}, and no read units; S3's storage and requests come on top"
    yield f"  documents      {_span(e.documents, _count)} written"
    if e.posts is not None:
        yield f"  posts          {_span(e.posts, _count)} requests to the receiver"
    if e.history is not None:
        yield f"  history        {_span(e.history, _size)} on disk, a row for each document"
    if e.write_units is not None:
        cost = _span(e.backfill_writes, _money)
        yield f"  write units    {_span(e.write_units, _count)}, and more for indexes: {cost} if on demand"


def _month(e: Estimate, shared: str | None) -> Iterator[str]:
    f = e.facts
    shards = f"{f.shards} open shard{'s' * (f.shards != 1)}"
    yield "following changes, 30 days"
    yield f"  stream         {shards}, {_span(f.changes, _plain)} changes per second"
    if shared is None:
        yield f"  requests       {_span(e.month_requests, _count)}, idle ones included: {_span(e.month_stream, _money)}"
    else:
        yield f"  requests       those of the target {shared}: a run of both reads the stream once"
    if f.shards == 0:
        yield "                 (the stream is off, so its shards are not known)"
    if e.month_reads is not None:
        yield f"  look-ups       {_span(e.month_reads, _money)} (the stream has keys only)"
    if e.month_verify_units is not None:
        cost = "no charge beyond provisioned capacity" if e.month_verify is None else _span(e.month_verify, _money)
        yield f"  verify         {_span(e.month_verify_units, _count)} read units of the run's own passes: {cost}"
    if e.month_posts is not None:
        yield f"  posts          {_span(e.month_posts, _count)} requests to the receiver"
    if e.month_history is not None:
        each = f"{_span(e.history_thousand, _size)} per 1,000 changes"
        yield f"  history        {_span(e.month_history, _size)} more, {each}"
        kept = "kept for good; history: {keep: 90d} bounds it"
        if e.history_most is not None:
            kept = f"kept for {e.history_days} days, so {_span(e.history_most, _size)} at any time"
        yield f"                 {kept}"
    if e.gap_hour is not None:
        text = "for the exports that repair an hour's gap, and read units for what was changed just before it"
        yield f"  gap exports    {_span(e.gap_hour, _money)} {text}"
    if e.month_writes is not None:
        yield f"  write units    {_span(e.month_writes, _money)} if on demand, and more for indexes"


def _as_json(e: Estimate) -> dict[str, Any]:
    from replicator.aws.prices import AS_OF, SOURCE

    ranges = {
        "changes_per_second": e.facts.changes,
        "backfill_read_units": e.read_units,
        "backfill_scan_requests": e.scan_requests,
        "backfill_documents": e.documents,
        "backfill_write_units": e.write_units,
        "backfill_seconds": e.seconds,
        "backfill_reads_usd": e.backfill_reads,
        "backfill_export_usd": e.export,
        "backfill_writes_usd": e.backfill_writes,
        "month_stream_requests": e.month_requests,
        "month_stream_usd": e.month_stream,
        "month_lookups_usd": e.month_reads,
        "month_writes_usd": e.month_writes,
        "month_verify_read_units": e.month_verify_units,
        "month_verify_usd": e.month_verify,
        "gap_export_usd_per_hour": e.gap_hour,
        "backfill_posts": e.posts,
        "month_posts": e.month_posts,
        "backfill_history_bytes": e.history,
        "history_bytes_per_1000_changes": e.history_thousand,
        "month_history_bytes": e.month_history,
        "history_kept_bytes": e.history_most,
    }
    facts = {"items": e.facts.items, "bytes": e.facts.bytes, "open_shards": e.facts.shards, "region": e.facts.region}
    prices = {"prices_as_of": AS_OF, "prices_source": SOURCE, "limited_by": e.limited_by}
    return {**facts, **{name: None if r is None else [r.low, r.high] for name, r in ranges.items()}, **prices}


def _span(given: Range | None, shown: Any) -> str:
    """A range, or one value if both ends look the same."""
    if given is None:
        return "nothing"
    low, high = shown(given.low), shown(given.high)
    return low if low == high else f"{low} to {high}"


def _rounded(value: float, digits: int = 2) -> float:
    if value == 0:
        return 0.0
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return round(value, places)


def _count(value: float) -> str:
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{_rounded(value / size):g} {word}"
    return f"{_rounded(value):,.0f}"


def _plain(value: float) -> str:
    return f"{value:g}"


def _money(value: float) -> str:
    if 0 < value < 0.01:
        return "less than $0.01"
    return f"${_rounded(value):,.2f}" if value < 100 else f"${_rounded(value):,.0f}"


def _time(seconds: float) -> str:
    for size, word in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{_rounded(seconds / size):g} {word}"
    return f"{max(1.0, _rounded(seconds)):g} s"


def _size(count: float) -> str:
    for size, word in ((1 << 40, "TB"), (1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB")):
        if count >= size:
            return f"{_rounded(count / size):g} {word}"
    return f"{count:.0f} bytes"
