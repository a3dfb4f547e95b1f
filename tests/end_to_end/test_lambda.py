"""AWS' own runtime client runs the function, on a DynamoDB stream and Postgres: the same copy as with one process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from tests.end_to_end.deliveries import SCHEDULED, Stream, deliver, next_batch
from tests.end_to_end.pipeline import _AWS, eventually
from tests.end_to_end.world import Copy
from tests.engine.event_source import EventSource
from tests.servers.runtime_api import Container, InvocationError

HANDLER = "replicator.engine.aws_lambda.handler"

NewContainer = Callable[[], Container]


@pytest.fixture
def container(copy: Copy) -> Iterator[NewContainer]:
    with ExitStack() as containers:
        environment = {**_AWS, "LAMBDA_TASK_ROOT": str(copy.folder), "REPLICATOR_CONFIG": copy.path.name}
        log = copy.folder / "function.log"
        yield lambda: containers.enter_context(Container(HANDLER, environment, log))


def test_every_change_is_applied_once_whatever_happens_to_invocations_and_engines(
    copy: Copy, container: NewContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = copy.configure(engine={"type": "lambda"}).source
    source.fill(60)
    refused = copy.command("run")
    assert refused.code == 2
    assert "add --until backfilled" in refused.err
    assert copy.command("run", "--until", "backfilled").code == 0
    assert copy.status()["phase"] == "stopped"
    mapping: Any = EventSource(Stream(copy, monkeypatch), source.table, batch=25)  # type: ignore[arg-type]
    first, second = container(), container()

    source.fill(30, w=1)
    source.delete("k7")
    assert deliver(mapping, first, second) > 1
    copy.assert_equal()
    assert copy.status()["phase"] == "live"

    # an invocation fails behind its rows, where the position would be stored, and its batch comes again
    source.put("k1", v="after an error")
    shard, batch = next_batch(mapping)
    with psycopg.connect(copy.database.url, autocommit=True) as connection:
        connection.execute("ALTER TABLE replicator.checkpoints RENAME TO away")
        with pytest.raises(InvocationError, match="checkpoints"):
            first.invoke(batch)
        connection.execute("ALTER TABLE replicator.away RENAME TO checkpoints")
    mapping.done(shard, batch, first.invoke(batch))

    # a container is killed in the middle of a batch, whose transaction may be carried out by the server all the same
    source.put("k2", v="during a kill")
    shard, batch = next_batch(mapping)
    with psycopg.connect(copy.database.url) as lock, psycopg.connect(copy.database.url, autocommit=True) as looking:
        lock.execute(f'LOCK TABLE "{copy.name}" IN ACCESS EXCLUSIVE MODE')
        first.send(batch)
        waiting = "SELECT 1 FROM pg_locks WHERE NOT granted"
        eventually(lambda: looking.execute(waiting).fetchone(), "the batch waits for the table")
        first.kill()
    third = container()
    mapping.done(shard, batch, third.invoke(batch))

    # the same batch at two containers at once
    source.put("k3", v="twice")
    shard, batch = next_batch(mapping)
    second.send(batch)
    third.send(batch)
    for each in (second, third):
        mapping.done(shard, batch, each.response())

    # the mapping is deleted and created anew: everything comes again
    source.put("k4", v="a new mapping")
    again: Any = EventSource(mapping.source, source.table, batch=100)
    deliver(again, second)
    assert third.invoke(SCHEDULED) == {"shards": 0}
    copy.assert_equal()
    status = copy.status()
    assert copy.counts()["read"] == status["backfill"]["items"] + source.records

    # another engine takes over, and hands over again
    source.put("k5", v="by the local engine")
    copy.caught_up("run", "--engine", "local")
    source.put("k6", v="to no one yet")
    shard, batch = next_batch(again)
    with pytest.raises(InvocationError, match="not handed over to AWS Lambda"):
        second.invoke(batch)
    assert copy.command("run", "--until", "backfilled").code == 0
    deliver(again, second, third)
    copy.assert_equal()
    assert copy.counts()["read"] == status["backfill"]["items"] + source.records


def test_each_of_several_targets_is_followed_by_its_own_function(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    source = copy.configure(engine={"type": "lambda"}).source
    source.fill(20)
    config = yaml.safe_load(copy.path.read_text())
    target = config.pop("target")
    config["targets"] = {"one": target, "other": {**target, "table": "other"}}
    copy.path.write_text(yaml.safe_dump(config))
    refused = copy.command("run", "--until", "backfilled")
    assert refused.code == 2
    assert "with several targets, add --target NAME" in refused.err
    environment = {**_AWS, "LAMBDA_TASK_ROOT": str(copy.folder), "REPLICATOR_CONFIG": copy.path.name}
    with ExitStack() as containers:
        for name in ("one", "other"):
            assert copy.command("run", "--until", "backfilled", "--target", name).code == 0
            function = Container(HANDLER, {**environment, "REPLICATOR_TARGET": name}, copy.folder / f"{name}.log")
            containers.enter_context(function)
            source.fill(30, **{name: "1"})
            source.delete("k7")
            mapping: Any = EventSource(Stream(copy, monkeypatch, name), source.table, batch=25)  # type: ignore[arg-type]
            assert deliver(mapping, function) > 1
    statuses = copy.command("status", "--json").lines
    assert [status["pipeline"] for status in statuses] == ["copy.one", "copy.other"]
    other = {row["pk"]: row["document"] for row in copy.query("SELECT pk, document FROM {}", "other")}
    assert other == source.items()
    assert set(copy.documents()) == {f"k{n}" for n in range(30)} - {"k7"}
    assert not any("other" in document for document in copy.documents().values()), "its function was not invoked again"


def cpu_seconds(process: int) -> float:
    """That a process has used, with those of its interpreter's start."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_cold_start_takes_less_than_a_second_of_cpu(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    """With AWS' runtime client, up to the response to the first batch; modules are compiled, as in the zip."""
    source = copy.configure(engine={"type": "lambda"}).source
    assert copy.command("run", "--until", "backfilled").code == 0
    mapping: Any = EventSource(Stream(copy, monkeypatch), source.table)  # type: ignore[arg-type]
    environment = {
        **_AWS,
        "LAMBDA_TASK_ROOT": str(copy.folder),
        "REPLICATOR_CONFIG": copy.path.name,
        "PYTHONPYCACHEPREFIX": str(copy.folder / "compiled"),
        "PYTHONDONTWRITEBYTECODE": "",
    }
    taken = []
    for n in range(4):  # the first one compiles; a busy machine slows some down
        source.put("k1", n=n)
        shard, batch = next_batch(mapping)
        with Container(HANDLER, environment, copy.folder / "function.log") as container:
            mapping.done(shard, batch, container.invoke(batch))
            taken.append(cpu_seconds(container.process.pid))
    copy.assert_equal()
    assert min(taken[1:]) < 1.0, taken
