"""Webhooks: CPU cost and time per event, compared with a plain loop that signs and posts the same number of items.

The receiver accepts everything. Both begin with images in typed JSON; the loop decodes them with boto3's
TypeDeserializer, and sends no versions.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import urllib3
from boto3.dynamodb.types import TypeDeserializer
from standardwebhooks import Webhook as Signer

from benchmarks import data, destination, dynamodb
from benchmarks import writes as receiver
from benchmarks.product import CREDENTIALS, Result
from connectors.webhook.options import WebhookOptions
from connectors.webhook.target import Webhook
from replicator.batch import Upsert
from replicator.engine.run import tune_allocator
from replicator.items.item import Item
from replicator.target.contract import Table
from replicator.version import FIRST_EPOCH

EVENTS = 500  # per request
LATENCIES = (0.0, 0.005)  # seconds
SECRET = "whsec_" + "c2VjcmV0" * 4


def loop(endpoint: str) -> Result:
    writes = (write for batch in dynamodb.page_batches() for part in batch.parts for write in part.writes)
    images = [write.body.typed for write in writes if isinstance(write, Upsert) and isinstance(write.body, Item)]
    pool, signer, decoded = urllib3.PoolManager(), Signer(SECRET), TypeDeserializer().deserialize
    tune_allocator()
    started, cpu = time.perf_counter(), time.process_time()
    for first in range(0, len(images), EVENTS):
        items = [{n: decoded(v) for n, v in image.items()} for image in images[first : first + EVENTS]]
        body = json.dumps({"events": items}, default=str)
        now, id = datetime.now(UTC), f"msg_{first}"
        headers = {"webhook-id": id, "webhook-timestamp": f"{now.timestamp():.0f}"}
        headers["webhook-signature"] = signer.sign(id, now, body)
        assert pool.request("POST", endpoint, body=body.encode(), headers=headers).status == 200
    return Result(len(images), time.perf_counter() - started, time.process_time() - cpu)


def product(endpoint: str) -> Result:
    """One batch per stream page; building them is not measured."""
    os.environ.update(CREDENTIALS)
    batches = list(dynamodb.page_batches())
    options = WebhookOptions.model_validate({"url": endpoint, "secret": SECRET, "max_events": EVENTS})
    target = Webhook(options, "benchmark")
    target.open([Table(data.TABLE, destination.KEYS)], FIRST_EPOCH)
    tune_allocator()
    started, cpu = time.perf_counter(), time.process_time()
    for batch in batches:
        assert not target.write(batch).rejections
    spent = Result(sum(b.size for b in batches), time.perf_counter() - started, time.process_time() - cpu)
    target.close()
    return spent


def lines(rounds: int, alone: Callable[..., Result]) -> Iterator[str]:
    """The result table. ``alone`` calls a function in a separate process."""
    yield "| to a webhook | latency, ms | events/s | client CPU, us/event | x the loop's rate | times less CPU |"
    yield "|---|---|---|---|---|---|"
    for latency in LATENCIES:
        with receiver.endpoint(latency) as endpoint:
            pairs = [(alone(loop, endpoint), alone(product, endpoint)) for _ in range(rounds)]
        yield from dynamodb.rows(latency, pairs, "a plain loop", "replicator")
