"""A Redis target, read with a plain client."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from replicator.batch import DocumentId
from replicator.target.contract import Table
from tests.servers.redis import RedisCluster, RedisServer

PAGE = Path(__file__).parents[3] / "docs" / "targets" / "redis.md"


def options(server: RedisServer | RedisCluster, **more: Any) -> dict[str, Any]:
    """The target's part of a config."""
    return {"type": "redis", "url": server.url, **more}


def granted() -> list[str]:
    """What docs/targets/redis.md grants to the user, for the tables of these tests."""
    (line,) = re.findall(r"^ACL SETUSER replicator on >PASSWORD (.*)$", PAGE.read_text(), re.MULTILINE)
    return str(line).replace("orders:", "contract:").split()


def granted_in_cluster() -> list[str]:
    (line,) = re.findall(r"^In a cluster also `(.*)`", PAGE.read_text(), re.MULTILINE)
    return [*granted(), *str(line).split()]


def documents(server: RedisServer | RedisCluster, table: Table) -> Mapping[DocumentId, Any]:
    """What readers see under the table's prefix: each key is a document's."""
    prefix, parts = f"{table.name}:", len(table.keys.attributes)
    found: dict[DocumentId, Any] = {}
    stored: dict[bytes, Any] = {}
    for node in server.primaries() if isinstance(server, RedisCluster) else [server]:
        with node.client() as client, client.pipeline(transaction=False) as pipeline:
            keys: list[bytes] = client.keys(f"{prefix}*")
            for key in keys:
                pipeline.get(key)
            stored |= dict(zip(keys, pipeline.execute(), strict=True))
    for key, value in stored.items():
        text = key.decode()[len(prefix) :]
        id = tuple(map(unquote, text.split(":", parts - 1)))
        found[id] = json.loads(value, parse_float=Decimal, parse_int=Decimal)
    return found


def kept(server: RedisServer) -> Mapping[bytes, bytes]:
    """Everything that is stored at present, as it would be in a snapshot."""
    with server.client() as client:
        return {key: client.dump(key) for key in client.keys("*")}


def go_back(server: RedisServer, to: Mapping[bytes, bytes]) -> None:
    """Let the server have what it had: as after a crash, or when a replica takes over. All connections are lost."""
    with server.client() as client:
        client.flushall()
        for key, value in to.items():
            client.restore(key, 0, value)
        client.execute_command("CLIENT", "KILL", "TYPE", "normal")


def keys(server: RedisServer) -> list[str]:
    with server.client() as client:
        found: list[bytes] = client.keys("*")
    return sorted(key.decode() for key in found)
