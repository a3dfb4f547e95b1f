"""Redis as a target: documents per second and CPU, compared with a pipelined loop of plain SETs.

The loop has its JSON ready and compares nothing; replicator encodes the items, compares versions and keeps guards.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson
from redis import Redis as Client

from benchmarks import data, destination
from benchmarks.counting import ratio
from benchmarks.product import Result
from connectors.redis.options import RedisOptions
from connectors.redis.target import Redis
from replicator.batch import Batch, Part, Upsert
from replicator.engine.run import tune_allocator
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.target.contract import Table
from replicator.version import FIRST_EPOCH, version
from tests.servers.redis import RedisCluster, RedisServer

ITEMS, PAGE = 10_000, 1000
LOOP = "pipelined SET"
CLUSTER = "replicator, json, a cluster"


def plain(url: str) -> Result:
    with Client.from_url(url) as client:
        client.flushall()
        texts = [(f"{i['pk']}:{i['sk']}", orjson.dumps(i, default=_plain)) for i in data.initial(ITEMS)]
        tune_allocator()
        started, cpu = time.perf_counter(), time.process_time()
        for start in range(0, len(texts), PAGE):
            with client.pipeline(transaction=False) as pipeline:
                for key, text in texts[start : start + PAGE]:
                    pipeline.set(key, text)
                pipeline.execute()
        return Result(len(texts), time.perf_counter() - started, time.process_time() - cpu)


def _plain(value: object) -> object:
    return sorted(value, key=str) if isinstance(value, set | frozenset) else float(str(value))


def product(url: str, store: str, nodes: Sequence[str] = ()) -> Result:
    """Whole items, as a scan delivers them; building the batches is not measured. ``nodes``: all, of a cluster."""
    for node in nodes or (url,):
        with Client.from_url(node) as client:
            client.flushall()
    writes = [_upsert(item, number) for number, item in enumerate(data.initial(ITEMS))]
    made = [Batch([Part("shard:1", writes[start : start + PAGE])]) for start in range(0, ITEMS, PAGE)]
    target = Redis(RedisOptions(url=url), "benchmark")
    target.open([Table(data.TABLE, destination.KEYS, {"store": store})], FIRST_EPOCH)
    tune_allocator()
    started, cpu = time.perf_counter(), time.process_time()
    for batch in made:
        assert not target.write(batch).rejections
    spent = Result(sum(b.size for b in made), time.perf_counter() - started, time.process_time() - cpu)
    target.close()
    return spent


def _upsert(item: dict[str, Any], number: int) -> Upsert:
    key = (str(item["pk"]), str(item["sk"]))
    return Upsert(data.TABLE, key, Item(image(item)), version(FIRST_EPOCH, number), key)


def lines(rounds: int, server: RedisServer, cluster: RedisCluster, alone: Callable[..., Result]) -> Iterator[str]:
    """The result table. ``alone`` calls a function in a separate process."""
    url, nodes = server.url, [node.url for node in cluster.nodes]
    found: dict[str, list[Result]] = {LOOP: [], "replicator, json": [], "replicator, hash": [], CLUSTER: []}
    for _ in range(rounds):
        found[LOOP].append(alone(plain, url))
        for store in ("json", "hash"):
            found[f"replicator, {store}"].append(alone(product, url, store))
        found[CLUSTER].append(alone(product, cluster.url, "json", nodes))
    yield f"| to Redis | documents/s | client CPU, us/document | x {LOOP} |"
    yield "|---|---|---|---|"
    loop = [r.rate for r in found[LOOP]]
    for name, results in found.items():
        rates = [r.rate for r in results]
        cpu = statistics.median(r.cpu / r.changes * 1e6 for r in results)
        yield f"| {name} | {statistics.median(rates):,.0f} | {cpu:.1f} | {ratio(rates, loop)} |"
