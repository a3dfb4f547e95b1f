"""AWS' own runtime client runs the function, into a DynamoDB table and a search index, with checkpoints in DynamoDB.

A container is frozen in the middle of a request, which arrives at the server after another container has deleted the
item.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from replicator.engine.function import IDLE
from replicator.engine.function_cleanup import PURGE_PAUSE
from replicator.pipeline.lanes import CLOCKS
from replicator.state import LONGEST_IN_DOUBT
from replicator.testing.proxy import Proxy
from tests.end_to_end.deliveries import SCHEDULED, Stream, deliver, next_batch
from tests.end_to_end.later import AHEAD
from tests.end_to_end.pipeline import _AWS, eventually
from tests.end_to_end.targets import Index, Mirror, OtherTable
from tests.end_to_end.world import Source
from tests.engine.event_source import EventSource
from tests.servers.dynamodb_local import DynamoDBLocal
from tests.servers.runtime_api import Container, InvocationError
from tests.servers.search_fixtures import Search

HANDLER = "tests.end_to_end.later.handler"
ROOT = Path(__file__).parents[2]
LATE = "held back on the way"


@dataclass
class ThroughProxy(Mirror):
    """``proxy``: between replicator and the target."""

    proxy: Proxy = field(kw_only=True)


@dataclass
class TableThroughProxy(ThroughProxy, OtherTable):
    def target(self) -> Mapping[str, Any]:
        return {**super().target(), "endpoint_url": f"http://127.0.0.1:{self.proxy.port}"}


@dataclass
class IndexThroughProxy(ThroughProxy, Index):
    def target(self) -> Mapping[str, Any]:
        return {**super().target(), "url": f"http://127.0.0.1:{self.proxy.port}"}


@pytest.fixture
def table(tmp_path: Path, source: Source, tables_local: DynamoDBLocal) -> Iterator[TableThroughProxy]:
    with Proxy("127.0.0.1", port_of(tables_local.endpoint)) as proxy:
        yield TableThroughProxy(tmp_path, source, tables_local, name=f"copy-of-{source.table}", proxy=proxy)


@pytest.fixture
def index(tmp_path: Path, source: Source, one_search: Search) -> Iterator[IndexThroughProxy]:
    with Proxy("127.0.0.1", port_of(one_search.url)) as proxy:
        yield IndexThroughProxy(tmp_path, source, one_search, proxy=proxy)


def port_of(url: str) -> int:
    return urlsplit(url).port or 80


@dataclass
class Containers:
    """Containers whose clocks are ahead of this process'."""

    mirror: Mirror
    running: ExitStack

    def new(self, ahead: float) -> Container:
        environment = {
            **_AWS,
            "LAMBDA_TASK_ROOT": str(self.mirror.folder),
            "REPLICATOR_CONFIG": self.mirror.path.name,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            AHEAD: str(ahead),
        }
        container = Container(HANDLER, environment, self.mirror.folder / "function.log", timeout=60.0 + ahead)
        return self.running.enter_context(container)


def test_what_a_frozen_container_has_sent_brings_no_deleted_item_of_a_table_back(
    table: TableThroughProxy, source: Source, tables_local: DynamoDBLocal, monkeypatch: pytest.MonkeyPatch
) -> None:
    late_writes_bring_nothing_back(table, source, tables_local, monkeypatch)


@pytest.mark.search
def test_what_a_frozen_container_has_sent_brings_no_deleted_item_of_an_index_back(
    index: IndexThroughProxy, source: Source, tables_local: DynamoDBLocal, monkeypatch: pytest.MonkeyPatch
) -> None:
    late_writes_bring_nothing_back(index, source, tables_local, monkeypatch)


def documented(kind: str) -> dict[str, Any]:
    """The config in docs/lambda.md that has a target of this type."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "lambda.md").read_text(), re.MULTILINE | re.DOTALL)
    (found,) = (c for c in map(yaml.safe_load, blocks) if c.get("target", {}).get("type") == kind)
    return dict(found)


def late_writes_bring_nothing_back(
    mirror: ThroughProxy, source: Source, checkpoints: DynamoDBLocal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request of a container arrives after another one has deleted the item."""
    given = documented(str(mirror.target()["type"]))
    kept = {**given["checkpoints"], "table": f"kept-{source.table}", "endpoint_url": checkpoints.endpoint}
    mirror.configured(None, engine=given["engine"], checkpoints=kept)
    source.fill(30)
    assert mirror.command("check", "--create").code == 0
    assert mirror.command("run", "--until", "backfilled").code == 0
    mapping: Any = EventSource(Stream(mirror, monkeypatch), source.table, batch=25)  # type: ignore[arg-type]
    with ExitStack() as running:
        containers = Containers(mirror, running)

        # while all requests are answered, deletes leave no tombstones
        settled = containers.new(PURGE_PAUSE)
        source.put("k1", v="behind the scan")
        deliver(mapping, settled)
        containers.new(2 * PURGE_PAUSE).invoke(SCHEDULED)
        # so that no schedule takes up the lane itself in the next minutes: then that alone would keep its tombstones
        containers.new(3 * PURGE_PAUSE - IDLE / 2).invoke(SCHEDULED)
        first, second = (containers.new(3 * PURGE_PAUSE) for _ in range(2))
        source.put("k2", v="another one")
        source.delete("k7")
        deliver(mapping, first, second)
        mirror.assert_equal()
        assert mirror.tombstones() == 0

        # a container is frozen in the middle of a request, and its batch comes again, to another one
        source.put("k3", v=LATE)
        shard, batch = next_batch(mapping)
        mirror.proxy.hold(LATE.encode())
        first.send(batch)
        eventually(lambda: mirror.proxy.holding, "the request is in flight")
        os.kill(first.process.pid, signal.SIGSTOP)
        mapping.done(shard, batch, second.invoke(batch))
        source.delete("k3")
        deliver(mapping, second)
        assert mirror.tombstones() == 1, "the delete leaves a tombstone"
        containers.new(3 * PURGE_PAUSE).invoke(SCHEDULED)  # which knows of nothing but what is stored
        assert mirror.tombstones() == 1, "it is not purged while the request may arrive"
        mirror.proxy.release()
        os.kill(first.process.pid, signal.SIGCONT)
        with contextlib.suppress(InvocationError):  # the lane is the other container's
            first.response()  # to the request, too
        assert not mirror.proxy.holding
        mirror.assert_equal()

        # the tombstone stays for as long as such a request may arrive
        containers.new(3 * PURGE_PAUSE + LONGEST_IN_DOUBT / 2).invoke(SCHEDULED)
        assert mirror.tombstones() == 1, "nor later"
        containers.new(3 * PURGE_PAUSE + LONGEST_IN_DOUBT + 2 * CLOCKS).invoke(SCHEDULED)
        assert mirror.tombstones() == 0
        mirror.assert_equal()
        mirror.counts()
