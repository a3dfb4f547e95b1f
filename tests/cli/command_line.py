"""Runs the command line as a user's shell does, with a table to point it at."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import orjson
import psycopg
import pytest
from boto3.dynamodb.types import TypeSerializer
from click.testing import CliRunner

from replicator.cli import main
from replicator.config.settings import load
from replicator.errors import ConfigError
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from replicator.testing.servers.ministack import MiniStack
from tests.forked import can_fork
from tests.security.canary import SECRET, VALUE, Watched, WatchedInterpreter
from tests.servers.postgres_fixtures import Database
from tests.servers.starting import started

PATIENCE = 90.0
_OWN_TARGET = Path(__file__).parents[2] / "docs" / "own_target" / "sqlite_target.py"


def words(err: str) -> str:
    """Standard error as text: each JSON error is replaced by its sentences."""
    return "".join(_words(line) for line in err.splitlines(keepends=True))


def _words(line: str) -> str:
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        return line
    parts = [*event["problems"], event.get("do", ""), event.get("traceback", "")]
    return "\n".join(part.rstrip() for part in parts if part) + "\n"


@dataclass(frozen=True)
class Shell:
    """Runs ``replicator`` in its own environment."""

    environ: Mapping[str, str] = field(default_factory=dict)

    def start(self, *arguments: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        environ = {**os.environ, **self.environ}
        return self._started(Watched if can_fork(environ) else WatchedInterpreter, arguments, cwd)

    def start_interpreter(self, *arguments: str) -> subprocess.Popen[str]:
        """The same in a new interpreter."""
        return self._started(WatchedInterpreter, arguments, None)

    def _started(
        self, process: type[subprocess.Popen[str]], arguments: Sequence[str], cwd: Path | None
    ) -> subprocess.Popen[str]:
        return process(
            [sys.executable, "-m", "replicator", *arguments],
            env={**os.environ, **self.environ},
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, cwd: Path | None = None) -> tuple[int, str, str]:
        """Exit code, standard output, the text of standard error."""
        with self.start(*arguments, cwd=cwd) as process:
            out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, words(err)


def ministack() -> Iterator[MiniStack]:
    return started("MiniStack", MiniStack, ConfigError)


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


@dataclass(frozen=True)
class World:
    """An in-memory DynamoDB over HTTP, a real Postgres, and a folder with a config and its hook.

    The config is of a table ``orders`` with key ``id``; ``change`` replaces text in it.
    """

    db: DynamoDB
    postgres: Database
    folder: Path
    environ: Mapping[str, str]

    @property
    def config(self) -> str:
        return str(self.folder / "orders.yaml")

    @property
    def shell(self) -> Shell:
        return Shell(self.environ)

    def change(self, old: str, new: str) -> None:
        path = self.folder / "orders.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def hook(self, source: str) -> None:
        """Use a hook: a function named ``hook``, in its own file."""
        if not (self.folder / "hooks.py").exists():
            self.change("target:", "transform: hooks.py:hook\ntarget:")
        (self.folder / "hooks.py").write_text(source)

    def call(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command in this process: exit code, output, the text of standard error. Bugs are raised."""
        result = CliRunner().invoke(main, arguments, env=self.environ)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, words(result.stderr)

    def lines(self, *arguments: str) -> list[Any]:
        """The JSON lines that a command prints with --json."""
        return [orjson.loads(line) for line in self.call(*arguments, "--json")[1].splitlines()]

    def catch_up(self, *more: str) -> None:
        code, _, err = self.shell.run("run", self.config, "--until", "caught-up", *more)
        assert code == (6 if "item(s) that are parked" in err else 0), err

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.postgres.connect() as connection:
            return connection.execute(query.encode()).fetchall()

    def has_table(self, name: str) -> bool:
        try:
            return bool(self.rows(f"SELECT 1 FROM information_schema.tables WHERE table_name = '{name}'"))  # noqa: S608
        except psycopg.errors.UndefinedTable:
            return False


class Marking(DynamoDB):
    """Adds an attribute to each item that a test puts, whose value must never be shown."""

    def put(self, table: str, item: Mapping[str, object]) -> None:
        super().put(table, {**item, "canary": VALUE})


_CONFIG = """\
pipeline: orders
source:
  table: {table}
  region: us-east-1
  endpoint_url: {endpoint}
target:
  type: postgres
  url: {url}
  table: orders
"""


def configured(endpoint: str, postgres: Database, table: str = "orders") -> str:
    """A config of ``table``, which may be an ARN."""
    return _CONFIG.format(endpoint=endpoint, url=postgres.url, table=table)


@contextmanager
def serving(folder: Path, postgres: Database) -> Iterator[World]:
    db = Marking(now=time.time, random=random.Random(1))
    with served(db) as endpoint:
        (folder / "orders.yaml").write_text(configured(endpoint, postgres))
        environ = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": SECRET}
        yield World(db, postgres, folder, environ)


@pytest.fixture
def world(tmp_path: Path, one_postgres: Database) -> Iterator[World]:
    with serving(tmp_path, one_postgres) as world:
        yield world


@pytest.fixture
def mirror(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A pipeline from the table ``orders`` into an SQLite file, with the example target of the docs."""
    site = tmp_path / "site"
    (site / "sqlite_target-1.0.dist-info").mkdir(parents=True)
    (site / "sqlite_target.py").write_text(_OWN_TARGET.read_text())
    (site / "sqlite_target-1.0.dist-info" / "METADATA").write_text("Name: sqlite-target\nVersion: 1.0\n")
    points = "[replicator.targets]\nsqlite = sqlite_target:SQLite\n"
    (site / "sqlite_target-1.0.dist-info" / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(site))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, SECRET if "SECRET" in name else "local")
    world.change(f"type: postgres\n  url: {world.postgres.url}", f"type: sqlite\n  path: {tmp_path / 'rows.db'}")
    world.db.create_table("orders")
    yield World(world.db, world.postgres, world.folder, {**world.environ, "PYTHONPATH": str(site)})
    sys.modules.pop("sqlite_target", None)


def keep(mirror: World, section: str) -> None:
    mirror.change("target:", f"checkpoints: {section}\ntarget:")


def pristine(world: World) -> None:
    """Copy into a pristine table of the same in-memory DynamoDB, and keep the checkpoints in a file."""
    target = f"type: dynamodb\n  region: us-east-1\n  endpoint_url: {endpoint(world)}\n  pristine: true"
    world.change(
        f"type: postgres\n  url: {world.postgres.url}\n  table: orders", f"{target}\n  create: true\n  table: copy"
    )


def endpoint(mirror: World) -> str:
    return str(load(mirror.config).source.endpoint_url)
