"""The AWS Lambda function on a real Postgres: what it applies exactly once."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import pytest
from psycopg import sql

from connectors.postgres import cleanup, history
from replicator.config.target import destination
from replicator.engine.assembly import assemble
from replicator.engine.context import RunContext
from replicator.engine.function import Deadline, Function
from replicator.engine.function_cleanup import PAUSE
from replicator.engine.startup import Allowed
from replicator.errors import TransientError
from replicator.hooks.hook import Document, Hook, documents
from replicator.source.table import describe_table
from tests.engine.cluster import TABLE, Wire
from tests.engine.function_stack import Stack
from tests.servers.postgres_fixtures import Database


class OnPostgres(Stack):
    """The same, with a target in Postgres."""

    def __init__(
        self,
        database: Database,
        resources: ExitStack,
        hook: Hook | None = None,
        shards: int = 2,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._server, self._resources, self._options = database, resources, options or {}
        super().__init__(hook=hook, shards=shards)

    def context(self) -> RunContext:
        found, problems = destination({"type": "postgres", "url": self._server.url, "tables": {"copy": self._options}})
        assert found is not None, problems
        target: Any = self._resources.enter_context(closing(found.build("memory")))
        client, config = Wire(self.source), super().context().config
        table = describe_table(client, TABLE)
        return assemble(replace(config, target=found), client, target, target.checkpoints, self.hook, table)

    def rows(self, query: str) -> Any:
        with self._server.connect() as connection:
            return connection.execute(query).fetchall()


@pytest.fixture
def stack(one_postgres: Database) -> Iterator[OnPostgres]:
    with ExitStack() as resources:
        yield OnPostgres(one_postgres, resources)


def test_each_change_is_applied_once_by_containers_that_take_turns_and_batches_that_come_again(
    stack: OnPostgres,
) -> None:
    for n in range(20):
        stack.write(f"k{n}", n)
    stack.backfill()
    chance, containers = random.Random(1), [stack.container() for _ in range(3)]
    for n in range(30):
        stack.write(f"k{chance.randrange(25)}", n)
        if n % 10 == 5:
            stack.source.split(TABLE, stack.source.open_shards(TABLE)[0])
        if n % 6 == 0:
            stack.deliver(*containers)
    stack.deliver(*containers)
    read = "SELECT sum(read), sum(stale) FROM replicator.counts WHERE source LIKE 'shard:%'"
    before = stack.rows(read)
    for shard in stack.mapping.shards.values():
        shard.after, shard.ended = -1, False
    stack.deliver(*containers)
    assert stack.rows(read) == before
    wanted = {id[0]: item["v"] for id, item in stack.wanted.items()}
    assert dict(stack.rows("SELECT pk, (document->>'v')::int FROM copy")) == wanted


def test_a_hook_that_is_too_slow_for_an_invocation_delays_the_copy_and_each_change_is_stored_once(
    one_postgres: Database,
) -> None:
    """The hook's time passes on the stack's clock: ten seconds for each item, and 27 for each invocation."""
    seconds, stacks = 0.0, list[OnPostgres]()

    def hook(item: Any) -> dict[str, Any]:
        stacks[0].clock.now += seconds
        return {**item, "v": int(item["v"])}

    with ExitStack() as resources:
        stack = OnPostgres(one_postgres, resources, Hook("slow", hook, "f", declared=False))
        stacks.append(stack)
        for n in range(12):
            stack.write(f"k{n}", n)
        stack.backfill()
        stack.deliver(stack.container())
        begun = stack.rows("SELECT sum(read) FROM replicator.counts WHERE source LIKE 'shard:%'")
        for n in range(12):
            stack.write(f"k{n}", 100 + n)
        seconds, failed = 10.0, 0
        for _ in range(30):
            for shard in stack.mapping.ready():
                if (batch := stack.mapping.event(shard)) is not None:
                    stack._until = stack.clock.now + 27.0
                    try:
                        stack.mapping.done(shard, batch, stack.container().invoke(batch))
                    except TransientError:
                        failed += 1
        read = stack.rows("SELECT sum(read) FROM replicator.counts WHERE source LIKE 'shard:%'")
        assert (read[0][0] - begun[0][0], failed) == (12, 0)
        wanted = {id[0]: item["v"] for id, item in stack.wanted.items()}
        assert dict(stack.rows("SELECT pk, (document->>'v')::int FROM copy")) == wanted


class SlowHook(OnPostgres):
    """Twelve items, copied, whose records are in the stream still, and a hook that takes ``seconds`` of the stack's
    clock for each.
    """

    def __init__(self, database: Database, resources: ExitStack) -> None:
        self.seconds = 0.0
        super().__init__(database, resources, Hook("slow", self._slowly, "f", declared=False))
        for n in range(12):
            self.write(f"k{n}", n)
        self.backfill()

    def _slowly(self, item: Any) -> dict[str, Any]:
        self.clock.now += self.seconds
        return {**item, "v": int(item["v"])}

    def write_many(self) -> None:
        for n in range(60):
            self.write(f"k{n % 12}", 100 + n)

    def invoked(self, container: Function, event: Mapping[str, Any], time: float) -> dict[str, Any]:
        self._until = self.clock.now + time
        return container.invoke(event)

    @property
    def is_equal(self) -> bool:
        wanted = {id[0]: item["v"] for id, item in self.wanted.items()}
        return dict(self.rows("SELECT pk, (document->>'v')::int FROM copy")) == wanted

    @property
    def read(self) -> int:
        return int(self.rows("SELECT sum(read) FROM replicator.counts WHERE source LIKE 'shard:%'")[0][0])


@pytest.fixture
def slow_hook(one_postgres: Database) -> Iterator[SlowHook]:
    with ExitStack() as resources:
        yield SlowHook(one_postgres, resources)


def test_a_container_whose_time_is_over_with_a_transaction_in_flight_stores_the_next_batches(
    slow_hook: SlowHook,
) -> None:
    """Its events do not continue what is stored, so that it reads the stream, and sends while it transforms."""
    stack, in_part = slow_hook, 0
    container = stack.container()
    stack.write_many()
    stack.seconds = 0.7
    for _ in range(20):
        for shard in stack.mapping.ready():
            if (batch := stack.mapping.event(shard)) is not None:
                response = stack.invoked(container, batch, 5.0)
                stack.mapping.done(shard, batch, response)
                in_part += response["batchItemFailures"] != []
    assert in_part > 2
    assert (stack.is_equal, stack.read) == (True, 12 + 60)


def test_a_schedule_whose_time_is_over_with_a_transaction_in_flight_succeeds_in_a_container_that_goes_on(
    slow_hook: SlowHook,
) -> None:
    stack = slow_hook
    container = stack.container()
    stack.write_many()
    stack.seconds, before, turns = 0.7, 0, 0
    while not stack.is_equal:
        stack.clock.now += 1200.0
        stack.invoked(container, {"source": "aws.events"}, 7.0)
        assert stack.read > before, "every invocation stores something"
        before, turns = stack.read, turns + 1
    assert turns > 2
    assert stack.read == 12 + 60


@documents
def numbered(item: Any) -> list[Document]:
    """One document for the item's number; it refuses 99."""
    number = int(item["v"])
    if number == 99:
        raise ValueError("refused")
    return [Document(f"d{number}", {"v": number})]


VALUES = "SELECT (document->>'v')::int FROM copy ORDER BY 1"


def with_a_spared_document(database: Database, resources: ExitStack, **more: Any) -> OnPostgres:
    """A sweep spared the document 1 of an item that was parked, and is no longer: its document is 3."""
    stack = OnPostgres(database, resources, Hook("numbered", numbered, "f", declared=True), shards=1, **more)
    stack.write("k1", 1)
    stack.write("k2", 50)
    stack.backfill()
    stack.lose("k1", 2)
    stack.lose("k1", 99)
    stack.write("k2", 51)
    stack.deliver(stack.container())
    stack.backfill(Allowed(resync=True))
    stack.write("k1", 3)
    stack.deliver(stack.container())
    return stack


def test_a_schedule_sweeps_what_a_sweep_spared_of_an_item_that_is_no_longer_parked(one_postgres: Database) -> None:
    with ExitStack() as resources:
        stack = with_a_spared_document(one_postgres, resources)
        assert stack.rows(VALUES) == [(1,), (3,), (51,)]
        stack.until_over()
        stack.container().invoke({"source": "aws.events"})
        assert stack.rows(VALUES) == [(3,), (51,)]
        assert stack.rows("SELECT count(*) FROM replicator.tombstones") == [(0,)]
        stack.write("k1", 4)
        stack.deliver(stack.container())
        assert stack.rows(VALUES) == [(4,), (51,)]


def test_a_sweep_ends_with_its_invocation_and_one_that_did_not_get_through_is_not_repeated_at_once(
    one_postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as resources:
        stack = with_a_spared_document(one_postgres, resources)
        deadline = Deadline()
        environment = replace(stack.environment(), stop=deadline)
        with monkeypatch.context() as patch:
            slow = sql.Composed([sql.SQL(" AND (SELECT pg_sleep(8)) IS NOT NULL")])
            patch.setattr(cleanup, "without", lambda *_: slow)  # as a scan of a large table is
            deadline.move(3.0)
            Function(stack.context(), stack.owner("slow"), environment).invoke({"source": "aws.events"})
            assert deadline.is_set()
            assert stack.rows(VALUES) == [(1,), (3,), (51,)]
        stack.until_over()
        stack.container().invoke({"source": "aws.events"})
        assert stack.rows(VALUES) == [(1,), (3,), (51,)], "the next scan would be in vain, too"
        stack.clock.now += PAUSE
        stack.until_over()
        stack.container().invoke({"source": "aws.events"})
        assert stack.rows(VALUES) == [(3,), (51,)]


def test_the_folding_of_a_history_ends_with_its_invocation_behind_the_sweep_and_is_not_repeated_at_once(
    one_postgres: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as resources:
        stack = with_a_spared_document(one_postgres, resources, options={"history": {"keep": "2d"}})
        old = "SELECT oid FROM pg_class WHERE relname ~ '^copy_history_2023[0-9]+$' AND relkind = 'r'"
        there = stack.rows(old)
        assert len(there) == 1, "the stack's clock is that of years ago"
        caplog.set_level("INFO", "replicator")
        deadline = Deadline()
        environment = replace(stack.environment(), stop=deadline)
        with monkeypatch.context() as patch:
            for statement in ("_STAYS", "_GONE"):  # each alone is short enough
                patch.setattr(history, statement, "SELECT pg_sleep(2.5)")
            patch.setattr(history, "allow_joins", lambda _: deadline.move(4.0))  # the folding begins
            deadline.move(60.0)
            Function(stack.context(), stack.owner("slow"), environment).invoke({"source": "aws.events"})
            assert deadline.is_set()
        assert (stack.rows(old), stack.rows(VALUES)) == (there, [(3,), (51,)])
        done = [m for m in caplog.messages if m in ("sweeping", "history not removed")]
        assert done == ["sweeping", "history not removed"], "what takes longest comes last"
        stack.until_over()
        stack.container().invoke({"source": "aws.events"})
        assert stack.rows(old) == there, "the next one would be in vain, too"
        stack.clock.now += PAUSE
        stack.until_over()
        stack.container().invoke({"source": "aws.events"})
        assert stack.rows(old) == []
