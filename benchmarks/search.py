"""Search indices: what a document costs the client against ``elasticsearch.helpers.bulk``, and how many a second end
to end against the loop that people write with boto3 and it. On a real server."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import orjson
from boto3.dynamodb.types import TypeDeserializer
from elasticsearch import Elasticsearch as Client
from elasticsearch import helpers

from benchmarks import data, destination, source
from benchmarks.counting import copied, ratio
from benchmarks.product import Result
from benchmarks.references import pages
from connectors.elasticsearch import Elasticsearch, ElasticsearchOptions
from replicator.attributes import Item, image
from replicator.batch import Batch, Part, Upsert
from replicator.compaction import Circumstances, Filing, ParkedItems, compact_latest, latest
from replicator.position import FIRST_EPOCH, version
from replicator.run import calm_down
from replicator.stream import RecordsDecoder
from replicator.target import Table
from replicator.testing.search_server import SearchServer

DOCUMENTS, CHANGES, NAIVE = 24_000, 60_000, 12_000
BULK = 1000  # documents a request, for both
INDEX = "orders"
FIELDS: Mapping[str, str] = {
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
    """As if nobody had been there."""
    client = _client(url)
    for index in (f"{INDEX}-loop", f"{INDEX}-1"):
        client.indices.delete(index=index, ignore_unavailable=True)
    client.close()


def _client(url: str) -> Client:
    return Client(url, request_timeout=60)


def action(item: Mapping[str, Any], version: int) -> dict[str, Any]:
    """What helpers.bulk is given for an item; its serialiser knows no sets, and makes a float of each Decimal."""
    body = {name: sorted(v) if isinstance(v, (set, frozenset)) else v for name, v in item.items()}
    id = f"{item['pk']}|{item['sk']}"
    return {"_index": f"{INDEX}-loop", "_id": id, "version": version, "version_type": "external", "_source": body}


# What a document costs the client


def bulk_cost(url: str) -> float:
    """Microseconds of CPU a document of helpers.bulk, from actions that are there already."""
    actions = [action(item, n) for n, item in enumerate(data.initial(DOCUMENTS), 1)]
    return _bulk_cost(url, actions, lambda ready: ready)


def bulk_cost_of_documents(url: str) -> float:
    """The same from documents as a hook returns them: actions are made of them, and sets become lists."""
    return _bulk_cost(url, list(enumerate(_documents(), 1)), lambda numbered: action(numbered[1], numbered[0]))


def bulk_cost_of_images(url: str) -> float:
    """The same from images, through boto3's TypeDeserializer."""
    return _bulk_cost(url, list(enumerate(_images(), 1)), lambda numbered: action(_by_boto3(numbered[1]), numbered[0]))


def bulk_cost_of_images_by_hand(url: str) -> float:
    """The same, through the quickest that a person would write who needs no exact numbers."""
    return _bulk_cost(url, list(enumerate(_images(), 1)), lambda numbered: action(_by_hand(numbered[1]), numbered[0]))


def _bulk_cost(url: str, things: Sequence[Any], made: Callable[[Any], dict[str, Any]]) -> float:
    client = _made(url)
    calm_down()
    started = time.process_time()
    stored, _ = helpers.bulk(client, map(made, things), chunk_size=BULK)
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
    """Microseconds of CPU a document of storing batches of documents as a hook returns them."""
    return _storing_cost(url, _documents())


def product_cost_of_images(url: str) -> float:
    """The same of batches of items, as they are in the stream."""
    return _storing_cost(url, [Item(msgspec.json.decode(image, type=msgspec.Raw)) for image in _images()])


def _storing_cost(url: str, bodies: Sequence[Mapping[str, Any]]) -> float:
    keys = [(item["pk"], item["sk"]) for item in data.initial(DOCUMENTS)]
    writes = [
        Upsert(INDEX, key, body, version(FIRST_EPOCH, n), key)
        for n, (key, body) in enumerate(zip(keys, bodies, strict=True), 1)
    ]
    batches = [Batch([Part("shard:1", writes[n : n + BULK])]) for n in range(0, DOCUMENTS, BULK)]
    target = Elasticsearch(ElasticsearchOptions(url=url, bulk_documents=BULK), "benchmark")
    target.open([_table()], FIRST_EPOCH)
    calm_down()
    started = time.process_time()
    for batch in batches:
        assert not target.write(batch).rejections
    cost = (time.process_time() - started) / DOCUMENTS * 1e6
    target.close()
    return cost


def _images() -> list[bytes]:
    return [image(item) for item in data.initial(DOCUMENTS)]


def _documents() -> list[dict[str, Any]]:
    """Dictionaries with what hooks see: a Decimal for each number, frozensets."""
    return [dict(Item(image)) for image in _images()]


def product_cost(url: str) -> dict[str, float]:
    """The same of the product: of storing batches, and of everything from the bodies of GetRecords on."""
    bodies = [body for _, body in source.bodies(source.filled(DOCUMENTS, 1))]
    calm_down()
    target = Elasticsearch(ElasticsearchOptions(url=url, bulk_documents=BULK), "benchmark")
    target.open([_table()], FIRST_EPOCH)
    storing = everything = changes = documents = 0.0
    decoder, filing = RecordsDecoder(_table().keys), Filing(None, (INDEX,))
    for body in bodies:
        started = time.process_time()
        records = decoder(body).records
        at = Circumstances({}, ParkedItems(), FIRST_EPOCH, "shard:1", 0.0)
        found = compact_latest(latest(enumerate(records, int(changes) + 1), FIRST_EPOCH), filing, at)
        batch = Batch([found.part("shard:1")])
        made = time.process_time()
        assert not target.write(batch).rejections
        everything, storing = everything + time.process_time() - started, storing + time.process_time() - made
        changes, documents = changes + len(records), documents + batch.size
    target.close()
    return {"storing": storing / documents * 1e6, "everything": everything / changes * 1e6}


def _table() -> Table:
    return Table(INDEX, destination.KEYS, OPTIONS)


def _made(url: str) -> Client:
    client = _client(url)
    settings = {"number_of_shards": 1, "number_of_replicas": 0}
    client.indices.create(index=f"{INDEX}-loop", mappings=MAPPING, settings=settings)
    return client


# Documents a second, end to end


def naive(endpoint: str, url: str) -> Result:
    """The loop: boto3, TypeDeserializer, helpers.bulk for each page; the first changes of the stream."""
    client = _made(url)
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
    """How many documents of the index are not what the source's items are now."""
    client = _client(url)
    client.indices.refresh(index=INDEX)
    found = {hit["_id"]: hit["_source"] for hit in helpers.scan(client, index=INDEX, size=2000)}
    changed = {pk: item for pk, item in ((c["pk"], c) for _, c in data.changes(CHANGES))}
    wanted = {f"{item['pk']}|{item['sk']}": item for item in destination.items(endpoint) if item["pk"] in changed}
    same = sum(_same(found[id], item) for id, item in wanted.items() if id in found)
    return max(len(found), len(wanted)) - same


def _same(source: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    """Compared as doubles, because this client reads numbers so; that they are exact is the contract's business."""
    own = {name: v for name, v in source.items() if name != "replicator"}
    return own == orjson.loads(orjson.dumps(item, default=_float))


def _float(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else float(value)


COMPARED: Mapping[str, tuple[Callable[[str], float], Callable[[str], float]]] = {
    "both from documents that a hook returned": (bulk_cost_of_documents, product_cost_of_documents),
    "both from images (helpers.bulk after TypeDeserializer)": (bulk_cost_of_images, product_cost_of_images),
    "both from images (helpers.bulk after a loop by hand)": (bulk_cost_of_images_by_hand, product_cost_of_images),
    "unlike: ready actions with floats to come, and images": (bulk_cost, product_cost_of_images),
}


def lines(rounds: int, alone: Callable[..., Any]) -> Iterator[str]:
    """The tables. ``alone`` calls a function in a process of its own."""
    with SearchServer("elasticsearch-9", heap=1024) as server:
        yield from _cost_lines(rounds, server.url, alone)
        yield ""
        with source.endpoint("--changes", str(CHANGES)) as endpoint:
            yield from _rate_lines(rounds, endpoint, server.url, alone)


def _cost_lines(rounds: int, url: str, alone: Callable[..., Any]) -> Iterator[str]:
    found: dict[Callable[[str], float], list[float]] = {cost: [] for costs in COMPARED.values() for cost in costs}
    bodies: list[float] = []
    for _ in range(rounds):
        for cost, costs in found.items():
            reset(url)
            costs.append(alone(cost, url))
        reset(url)
        bodies.append(alone(product_cost, url)["everything"])
    yield "| to Elasticsearch | helpers.bulk, us/document | replicator, us/document | times less |"
    yield "|---|---|---|---|"
    for name, (theirs, ours) in COMPARED.items():
        medians = [f"{statistics.median(found[cost]):.1f}" for cost in (theirs, ours)]
        yield f"| {name} | {' | '.join(medians)} | {ratio(found[theirs], found[ours])} |"
    less = ratio(found[bulk_cost], bodies)
    yield f"| unlike: ready actions, and GetRecords' body | | {statistics.median(bodies):.1f} | {less} |"


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
