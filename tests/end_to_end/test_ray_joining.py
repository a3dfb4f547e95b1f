"""A Ray cluster that does not let this process in, and a port where none is, are named as what they are."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping

import pytest

from tests.end_to_end.ray_nodes import PORT, in_namespace, nodes

JOIN = """
import sys
from replicator.config.engine import Ray
from replicator.engine.ray.cluster import cluster
from replicator.errors import ReplicatorError
try:
    with cluster(Ray(address=sys.argv[1])):
        print("joined")
except ReplicatorError as e:
    print(type(e).__name__, e)
"""
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 40}
HEAD = f"127.0.0.1:{PORT}"
LONGEST = 60.0  # seconds; by default, Ray tries for some 14 minutes


def joined(address: str, **environment: str) -> str:
    """What joining the cluster there comes to."""
    plain = {name: value for name, value in os.environ.items() if name not in TOKEN}
    command = [sys.executable, "-c", JOIN, address]
    ended = subprocess.run(
        command, env={**plain, **environment}, stdout=subprocess.PIPE, text=True, check=True, timeout=LONGEST
    )
    return ended.stdout.strip()


@pytest.mark.timeout(400)
def test_a_cluster_that_refuses_the_token_is_named_as_that_and_joined_with_the_right_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in TOKEN.items():
        monkeypatch.setenv(name, value)
    in_namespace(_with_tokens)


def _with_tokens() -> None:
    with nodes(but=()) as cluster:
        cluster.start_head(cpus=1)
        assert joined(HEAD, **TOKEN) == "joined"
        others: list[Mapping[str, str]] = [{**TOKEN, "RAY_AUTH_TOKEN": "b" * 40}, {}, {"RAY_AUTH_MODE": "token"}]
        for other in others:
            said = f"ConfigError engine.address: cannot join the Ray cluster at {HEAD}: it refuses the token of this"
            assert joined(HEAD, **other).startswith(said)


@pytest.mark.timeout(400)
def test_a_port_that_is_no_head_of_ray_is_named_within_a_minute() -> None:
    in_namespace(_with_another_port)


def _with_another_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:  # it accepts, and says nothing
        address = f"127.0.0.1:{other.getsockname()[1]}"
        began = time.monotonic()
        said = joined(address)
        assert said.startswith(f"TransientError engine.address: no Ray cluster answers at {address}: "), said
        assert "If something listens there, it is no head of Ray 2.x" in said
        assert time.monotonic() - began < LONGEST
