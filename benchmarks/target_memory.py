"""Memory of a run that copies items of 400 KB from 64 shards into the targets without transactions."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import data, source
from benchmarks.counting import copied
from benchmarks.memory import RECORDS, SHARDS, SIZE
from benchmarks.product import CREDENTIALS
from connectors.dynamodb import DynamoDB
from connectors.dynamodb.options import DynamoDBOptions
from connectors.elasticsearch import Elasticsearch, ElasticsearchOptions
from tests.servers.dynamodb_local import DynamoDBLocal
from tests.servers.search import SearchServer


def search_peak(endpoint: str, url: str) -> float:
    """Maximum MB, with items copied whole."""
    copied(endpoint, Elasticsearch, ElasticsearchOptions(url=url), "wide", {}, RECORDS)
    return _peak()


def dynamodb_peak(endpoint: str, url: str) -> float:
    os.environ.update(CREDENTIALS)
    options = DynamoDBOptions(endpoint_url=url, region="us-east-1", create=True)
    copied(endpoint, DynamoDB, options, f"{data.TABLE}-copy", {}, RECORDS)
    return _peak()


def _peak() -> float:
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


def lines(alone: Callable[..., float]) -> Iterator[str]:
    """The result table. ``alone`` calls a function in a separate process."""
    arguments = ("--changes", RECORDS, "--shards", SHARDS, "--size", SIZE)
    with source.endpoint(*map(str, arguments)) as endpoint:
        with SearchServer("elasticsearch-9", heap=2048, fast_start=False) as server:
            search = alone(search_peak, endpoint, server.url)
        with DynamoDBLocal() as local:
            dynamodb = alone(dynamodb_peak, endpoint, local.endpoint)
    yield f"| {SHARDS} shards, items of {SIZE // 1000} KB | peak RSS, MB |"
    yield "|---|---|"
    yield f"| to Elasticsearch | {search:.0f} |"
    yield f"| to DynamoDB | {dynamodb:.0f} |"
