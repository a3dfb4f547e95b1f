"""Search indices on a real server: documents per second end to end, compared with boto3 and ``helpers.bulk``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson
from boto3.dynamodb.types import TypeDeserializer
from elasticsearch import Elasticsearch as Client
from elasticsearch import helpers

from benchmarks import data, destination, source
from benchmarks.counting import copied, ratio
from benchmarks.product import Result
from benchmarks.references import pages
from connectors.elasticsearch import Elasticsearch, ElasticsearchOptions
from replicator.target.contract import Table

DOCUMENTS, CHANGES, NAIVE = 24_000, 60_000, 12_000
BULK = 1000  # documents per request, for both
INDEX = "orders"
FIELDS = {
    "customer": "keyword", "status": "keyword", "note": "text", "created_at": "date", "total": "double",
    "tax": "double", "quantity": "long", "paid": "boolean", "tags": "keyword",
}  # fmt: skip
MAPPING = {
    "properties": {name: {"type": kind} for name, kind in (FIELDS | {"pk": "keyword", "sk": "keyword"}).items()}
    | {"shipping": {"type": "object", "enabled": False}}
}
OPTIONS = {"mapping": MAPPING, "shards": 1, "replicas": 0}
_deserialized = TypeDeserializer().deserialize


def reset(url: str) -> None:
    """Reset the index."""
    client = _client(url)
    for index in (f"{INDEX}-loop", f"{INDEX}-1"):
        client.indices.delete(index=index, ignore_unavailable=True)
    client.close()


def _client(url: str) -> Client:
    return Client(url, request_timeout=60)


def action(item: Mapping[str, Any], version: int) -> dict[str, Any]:
    """The action for helpers.bulk; its serializer rejects sets and turns Decimals into floats."""
    body = {name: sorted(v) if isinstance(v, (set, frozenset)) else v for name, v in item.items()}
    id = f"{item['pk']}|{item['sk']}"
    return {"_index": f"{INDEX}-loop", "_id": id, "version": version, "version_type": "external", "_source": body}


def table() -> Table:
    return Table(INDEX, destination.KEYS, OPTIONS)


def made(url: str) -> Client:
    client = _client(url)
    settings = {"number_of_shards": 1, "number_of_replicas": 0}
    client.indices.create(index=f"{INDEX}-loop", mappings=MAPPING, settings=settings)
    return client


def naive(endpoint: str, url: str) -> Result:
    """The loop: boto3, TypeDeserializer, helpers.bulk for each page; the first changes of the stream."""
    client = made(url)
    started, cpu, done = time.perf_counter(), time.process_time(), 0
    for _, records in pages(endpoint):
        changes = [(n, record["dynamodb"]) for n, record in enumerate(records, done + 1)]
        helpers.bulk(client, list(map(_of_change, changes)), chunk_size=BULK, raise_on_error=False)
        done += len(records)
        if done >= NAIVE:
            break
    return Result(done, time.perf_counter() - started, time.process_time() - cpu)


def _of_change(numbered: tuple[int, Mapping[str, Any]]) -> dict[str, Any]:
    version, change = numbered
    if "NewImage" in change:
        return action({name: _deserialized(v) for name, v in change["NewImage"].items()}, version)
    made = action({name: _deserialized(v) for name, v in change["Keys"].items()}, version)
    del made["_source"]
    return made | {"_op_type": "delete"}


def product(endpoint: str, url: str) -> Result:
    """R: replicator as it runs, its checkpoints in a file."""
    options = ElasticsearchOptions(url=url, bulk_documents=BULK)
    return copied(endpoint, Elasticsearch, options, INDEX, OPTIONS, CHANGES)


def differences(endpoint: str, url: str) -> int:
    """The number of documents in the index that differ from the source's items."""
    client = _client(url)
    client.indices.refresh(index=INDEX)
    found = {hit["_id"]: hit["_source"] for hit in helpers.scan(client, index=INDEX, size=2000)}
    changed = {pk: item for pk, item in ((c["pk"], c) for _, c in data.changes(CHANGES))}
    wanted = {f"{item['pk']}|{item['sk']}": item for item in destination.items(endpoint) if item["pk"] in changed}
    same = sum(_same(found[id], item) for id, item in wanted.items() if id in found)
    return max(len(found), len(wanted)) - same


def _same(source: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    """Compared as doubles, because this client reads them so; the contract suite verifies exact numbers."""
    own = {name: v for name, v in source.items() if name != "replicator"}
    same: bool = own == orjson.loads(orjson.dumps(item, default=_float))
    return same


def _float(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else float(value)


def lines(rounds: int, url: str, alone: Callable[..., Any]) -> Iterator[str]:
    """The result table. ``alone`` calls a function in a separate process."""
    with source.endpoint("--changes", str(CHANGES)) as endpoint:
        yield from _rate_lines(rounds, endpoint, url, alone)


def _rate_lines(rounds: int, endpoint: str, url: str, alone: Callable[..., Any]) -> Iterator[str]:
    found: dict[str, list[Result]] = {"boto3 + helpers.bulk": [], "replicator": []}
    for _ in range(rounds):
        reset(url)
        found["boto3 + helpers.bulk"].append(alone(naive, endpoint, url))
        reset(url)
        found["replicator"].append(alone(product, endpoint, url))
        if wrong := differences(endpoint, url):
            raise SystemExit(f"search: {wrong} documents differ from the source")
    loop = [r.rate for r in found["boto3 + helpers.bulk"]]
    yield "| stream to Elasticsearch | changes/s | client CPU, us/change | x boto3 + helpers.bulk |"
    yield "|---|---|---|---|"
    for name, results in found.items():
        cpu = statistics.median(r.cpu / r.changes * 1e6 for r in results)
        rates = [r.rate for r in results]
        yield f"| {name} | {statistics.median(rates):,.0f} | {cpu:.1f} | {ratio(rates, loop)} |"
