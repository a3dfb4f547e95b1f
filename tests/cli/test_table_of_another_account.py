"""A source named by its ARN is in another account. The caller's account may have a table of the same name: a request
that names the source by its bare name is about that one, so that a change is lost or a wrong copy is made.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from replicator.testing.dynamodb.http import served
from tests.cli.command_line import World, configured
from tests.cli.test_parked import FAN_OUT
from tests.cli.test_run import await_that, phase
from tests.security.canary import SECRET
from tests.servers.postgres_fixtures import Database
from tests.servers.two_accounts import OWN, TwoAccounts, arn

ENVIRON = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": SECRET}
ANSWERS = {0, 6, 7}  # yes, differences, not yet: with any other exit code a command did not do what it is for
OWN_TABLES = {"copy", "replicator-epochs"}  # which a DynamoDB target has in the caller's account
CORRECTED = FAN_OUT.replace('raise ValueError("broken")', "pass")


@dataclass(frozen=True)
class Pipeline:
    """A pipeline of the other account's table ``orders``, and a table of that name in the caller's account."""

    accounts: TwoAccounts
    world: World
    endpoint: str
    until_the_end: ExitStack = field(default_factory=ExitStack)

    def corrected(self) -> None:
        self.world.hook(CORRECTED)

    def rebuilt(self) -> None:
        """Another config, of a copy that replaces this one."""
        path = Path(self.world.config)
        path.with_name("old.yaml").write_text(path.read_text())
        path.write_text(path.read_text() + "replaces: old.yaml\n")

    def started(self) -> None:
        """A run is live until the end of the test."""
        process = self.until_the_end.enter_context(self.world.shell.start("run", self.world.config, "--json"))
        self.until_the_end.callback(process.communicate, timeout=60)
        self.until_the_end.callback(process.send_signal, signal.SIGTERM)
        await_that(lambda: phase(self.world) == "live", process)

    def with_history(self) -> None:
        self.world.change("  table: orders\n", "  tables: {orders: {history: true}}\n")

    def complete(self) -> None:
        """The copy has both items of the other account's table, and nothing else."""
        documents = [text for (text,) in self.world.rows("SELECT document::text FROM orders")]
        assert len(documents) == 2
        assert "wrong" not in "".join(documents)

    def wrong(self) -> list[tuple[str, str]]:
        """The requests of the caller's account that are not about a table of the target."""
        return [one for one in self.accounts.requested[OWN] if one[1] not in OWN_TABLES]


@pytest.fixture
def pipeline(tmp_path: Path, one_postgres: Database) -> Iterator[Pipeline]:
    accounts = TwoAccounts()
    accounts.other.create_table("orders", view=None)
    accounts.own.create_table("orders")
    accounts.own.put("orders", {"id": "1", "tags": ["wrong"]})
    accounts.other.put("orders", {"id": "1", "tags": ["a"], "broken": 1})
    accounts.other.put("orders", {"id": "2", "tags": ["b"]})
    accounts.other.enable_stream("orders")
    with served(accounts) as endpoint, ExitStack() as until_the_end:
        (tmp_path / "orders.yaml").write_text(configured(endpoint, one_postgres, arn("orders")))
        world = World(accounts.other, one_postgres, tmp_path, ENVIRON)
        yield Pipeline(accounts, world, endpoint, until_the_end)


RUN = ("run", "CONFIG", "--until", "caught-up")
ONE = ("--key", '{"id": "1"}')
Step = tuple[str, ...] | Callable[[Pipeline], None]
STEPS: Mapping[str, Sequence[Step]] = {
    "a copy": (
        ("check", "CONFIG"),
        ("estimate", "CONFIG"),
        ("infer", "CONFIG"),
        ("preview", "CONFIG"),
        ("preview", "CONFIG", *ONE),
        RUN,
        ("status", "CONFIG", "--no-exit-code"),
        ("verify", "CONFIG"),
        ("verify", "CONFIG", *ONE),
        ("cutover", "CONFIG"),
        ("resync", "CONFIG"),
        RUN,
        Pipeline.complete,
        ("resync", "CONFIG", *ONE),
        RUN,
        ("resync", "CONFIG", "--where", "broken = 1"),
        RUN,
        Pipeline.complete,
    ),
    "parked": (
        lambda pipeline: pipeline.world.hook(FAN_OUT),
        RUN,
        ("parked", "list", "CONFIG"),
        ("parked", "show", "CONFIG", "--all"),
        Pipeline.corrected,
        ("parked", "retry", "CONFIG", "--all"),
        ("parked", "drop", "CONFIG", "--all", "--yes"),
        Pipeline.complete,
    ),
    "a rebuild": (
        RUN,
        Pipeline.rebuilt,
        ("rebuild", "start", "CONFIG"),
        Pipeline.started,
        ("rebuild", "start", "CONFIG", "--wait"),
        ("rebuild", "switch", "CONFIG", "--unverified"),
        ("rebuild", "rollback", "CONFIG", "--unchecked"),
        ("rebuild", "switch", "CONFIG", "--unverified"),
        ("rebuild", "finish", "CONFIG"),
    ),
    "a history": (
        Pipeline.with_history,
        RUN,
        ("history", "CONFIG", *ONE),
    ),
}
"""What is done to a pipeline, one after the other: commands, and changes of its config."""


@pytest.mark.parametrize("name", STEPS)
def test_no_command_asks_the_table_of_that_name_in_the_own_account(pipeline: Pipeline, name: str) -> None:
    for step in STEPS[name]:
        if callable(step):
            step(pipeline)
            continue
        code, out, err = pipeline.world.call(*(part.replace("CONFIG", pipeline.world.config) for part in step))
        assert code in ANSWERS, (step, out + err)
        assert pipeline.wrong() == [], step
