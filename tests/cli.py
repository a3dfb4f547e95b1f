"""The command line as a user's shell runs it, and a table to point it at."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from boto3.dynamodb.types import TypeSerializer

from replicator.errors import ConfigError
from replicator.testing.ministack import MiniStack

PATIENCE = 90.0


@dataclass(frozen=True)
class Shell:
    """Runs ``replicator`` with an environment of its own."""

    environ: Mapping[str, str] = field(default_factory=dict)

    def start(self, *arguments: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "replicator", *arguments],
            env={**os.environ, **self.environ},
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, cwd: Path | None = None) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        with self.start(*arguments, cwd=cwd) as process:
            out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err


def ministack() -> Iterator[MiniStack]:
    """A running MiniStack; without it a loud skip, and a failure where CI promises it."""
    try:
        server = MiniStack()
        server.__enter__()
    except ConfigError as e:
        if os.environ.get("CI"):
            pytest.fail(str(e))
        pytest.skip(f"NOT TESTED: {e}")
    try:
        yield server
    finally:
        server.__exit__(None, None, None)


def make_table(server: MiniStack, name: str, keys: Mapping[str, str], view: str | None = "NEW_AND_OLD_IMAGES") -> Any:
    """A table with a stream (unless ``view`` is None) and its client; ``keys``: attribute to S, N or B."""
    client = boto3.client("dynamodb", **server.options)
    kinds = zip(keys, ("HASH", "RANGE"), strict=False)
    stream = {"StreamEnabled": view is not None} | ({"StreamViewType": view} if view else {})
    client.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": key, "KeyType": kind} for key, kind in kinds],
        AttributeDefinitions=[{"AttributeName": key, "AttributeType": kind} for key, kind in keys.items()],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification=stream,
    )
    return client


def put(client: Any, table: str, *items: Mapping[str, object]) -> None:
    written = TypeSerializer().serialize
    for item in items:
        client.put_item(TableName=table, Item={name: written(value) for name, value in item.items()})
