"""S3 for tests: moto's server, in a process of its own, on a free port of loopback. It checks no permissions."""

from __future__ import annotations

import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import boto3
import pytest

from replicator.testing.servers.programs import await_ready, free_port
from tests.servers.starting import not_tested


@dataclass(frozen=True)
class Bucket:
    """A bucket of its own, with a plain client."""

    name: str
    client: Any

    def put(self, bucket: str, key: str, body: bytes) -> None:
        self.client.put_object(Bucket=bucket, Key=key, Body=body)


def _connects(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    if find_spec("moto") is None:
        not_tested("moto is missing: pip install 'moto[s3,server]'")
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            await_ready("moto", process, lambda: _connects(port), lambda: "", within=60, pause=0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A new bucket, at the endpoint that clients find in the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_endpoint)
    keys = {"aws_access_key_id": "local", "aws_secret_access_key": "local", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=s3_endpoint, **keys)
    name = f"exports-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    yield Bucket(name, client)
    client.close()
