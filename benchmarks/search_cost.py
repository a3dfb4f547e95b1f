"""Search indices on a real server: CPU cost per document, compared with ``elasticsearch.helpers.bulk``.

Like is compared with like: both begin with the documents that a hook returned, or both with DynamoDB's typed JSON.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import orjson
from boto3.dynamodb.types import TypeDeserializer
from elasticsearch import helpers

from benchmarks import data, source
from benchmarks.counting import ratio
from benchmarks.search import BULK, DOCUMENTS, INDEX, action, made, reset, table
from connectors.elasticsearch import Elasticsearch, ElasticsearchOptions
from replicator.batch import Batch, Part, Upsert
from replicator.engine.run import tune_allocator
from replicator.hooks.hook import DocumentMapping
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.pipeline.compaction import BatchContext, compact_latest, latest
from replicator.pipeline.parked import ParkedItems
from replicator.source.decoding import RecordsDecoder
from replicator.version import FIRST_EPOCH, version

_deserialized = TypeDeserializer().deserialize


def bulk_cost(url: str) -> float:
    """CPU microseconds per document of helpers.bulk, from prepared actions."""
    actions = [action(item, n) for n, item in enumerate(data.initial(DOCUMENTS), 1)]
    return _bulk_cost(url, actions, lambda ready: ready)


def bulk_cost_of_documents(url: str) -> float:
    """The same from a hook's documents: building actions, converting sets to lists."""
    return _bulk_cost(url, list(enumerate(_documents(), 1)), lambda numbered: action(numbered[1], numbered[0]))


def bulk_cost_of_images(url: str) -> float:
    """The same from images, through boto3's TypeDeserializer."""
    return _bulk_cost(url, list(enumerate(_images(), 1)), lambda numbered: action(_by_boto3(numbered[1]), numbered[0]))


def bulk_cost_of_images_by_hand(url: str) -> float:
    """The same, with the fastest decoding for those who need no exact numbers."""
    return _bulk_cost(url, list(enumerate(_images(), 1)), lambda numbered: action(_by_hand(numbered[1]), numbered[0]))


def _bulk_cost(url: str, things: Sequence[Any], act: Callable[[Any], dict[str, Any]]) -> float:
    client = made(url)
    tune_allocator()
    started = time.process_time()
    stored, _ = helpers.bulk(client, map(act, things), chunk_size=BULK)
    assert stored == DOCUMENTS
    return (time.process_time() - started) / DOCUMENTS * 1e6


def _by_boto3(image: bytes) -> dict[str, Any]:
    return {name: _deserialized(v) for name, v in orjson.loads(image).items()}


def _by_hand(image: bytes) -> dict[str, Any]:
    return {name: _value(v) for name, v in orjson.loads(image).items()}


def _value(attribute: dict[str, Any]) -> Any:
    ((kind, inner),) = attribute.items()
    match kind:
        case "N":
            return int(inner) if inner.isdecimal() else float(inner)
        case "M":
            return {name: _value(v) for name, v in inner.items()}
        case "L":
            return [_value(v) for v in inner]
        case "SS":
            return sorted(inner)
    return inner


def product_cost_of_documents(url: str) -> float:
    """CPU microseconds per document for batches of a hook's documents."""
    return _storing_cost(url, _documents())


def product_cost_of_images(url: str) -> float:
    """The same for batches of items without a hook."""
    return _storing_cost(url, [Item(msgspec.json.decode(image, type=msgspec.Raw)) for image in _images()])


def _storing_cost(url: str, bodies: Sequence[Mapping[str, Any]]) -> float:
    keys = [(item["pk"], item["sk"]) for item in data.initial(DOCUMENTS)]
    writes = [
        Upsert(INDEX, key, body, version(FIRST_EPOCH, n), key)
        for n, (key, body) in enumerate(zip(keys, bodies, strict=True), 1)
    ]
    batches = [Batch([Part("shard:1", writes[n : n + BULK])]) for n in range(0, DOCUMENTS, BULK)]
    target = Elasticsearch(ElasticsearchOptions(url=url, bulk_documents=BULK), "benchmark")
    target.open([table()], FIRST_EPOCH)
    tune_allocator()
    started = time.process_time()
    for batch in batches:
        assert not target.write(batch).rejections
    cost = (time.process_time() - started) / DOCUMENTS * 1e6
    target.close()
    return cost


def _images() -> list[bytes]:
    return [image(item) for item in data.initial(DOCUMENTS)]


def _documents() -> list[dict[str, Any]]:
    """Dictionaries as hooks see them: Decimals and frozensets."""
    return [dict(Item(image)) for image in _images()]


def product_cost_of_bodies(url: str) -> float:
    """CPU microseconds per change for everything after GetRecords, in this process."""
    bodies = [body for _, body in source.bodies(source.filled(DOCUMENTS, 1))]
    target = Elasticsearch(ElasticsearchOptions(url=url, bulk_documents=BULK), "benchmark")
    target.open([table()], FIRST_EPOCH)
    tune_allocator()
    started, changes = time.process_time(), 0
    decoder, mapping = RecordsDecoder(table().keys), DocumentMapping(None, (INDEX,))
    for body in bodies:
        records = decoder(body).records
        at = BatchContext({}, ParkedItems(), FIRST_EPOCH, "shard:1", 0.0)
        found = compact_latest(latest(enumerate(records, changes + 1), FIRST_EPOCH), mapping, at)
        assert not target.write(Batch([found.part("shard:1")])).rejections
        changes += len(records)
    cost = (time.process_time() - started) / changes * 1e6
    target.close()
    return cost


COMPARED: Mapping[str, tuple[Callable[[str], float], Callable[[str], float]]] = {
    "both from documents that a hook returned": (bulk_cost_of_documents, product_cost_of_documents),
    "both from images (TypeDeserializer before helpers.bulk)": (bulk_cost_of_images, product_cost_of_images),
    "both from images (a loop by hand before it)": (bulk_cost_of_images_by_hand, product_cost_of_images),
    "unlike: helpers.bulk from ready actions, replicator from images": (bulk_cost, product_cost_of_images),
    "unlike: helpers.bulk from ready actions, replicator from GetRecords' body": (bulk_cost, product_cost_of_bodies),
}


def lines(rounds: int, url: str, alone: Callable[..., Any]) -> Iterator[str]:
    """The result table. ``alone`` calls a function in a separate process."""
    found: dict[Callable[[str], float], list[float]] = {cost: [] for costs in COMPARED.values() for cost in costs}
    for _ in range(rounds):
        for cost, costs in found.items():
            reset(url)
            costs.append(alone(cost, url))
    yield "| to Elasticsearch | helpers.bulk, us/document | replicator, us/document | times less |"
    yield "|---|---|---|---|"
    for name, (theirs, ours) in COMPARED.items():
        medians = [f"{statistics.median(found[cost]):.1f}" for cost in (theirs, ours)]
        yield f"| {name} | {' | '.join(medians)} | {ratio(found[theirs], found[ours])} |"
