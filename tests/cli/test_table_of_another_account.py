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

from connectors.dynamodb.catalog import describe
from connectors.dynamodb.epochs import Epochs, Note
from replicator.operations import strip
from replicator.testing.dynamodb.http import served
from tests.cli.command_line import World, configured
from tests.cli.test_parked import FAN_OUT
from tests.cli.test_run import await_that, phase
from tests.cli.test_targets import commands
from tests.security.canary import SECRET
from tests.servers.postgres_fixtures import Database
from tests.servers.two_accounts import OTHER, OWN, TwoAccounts, arn

ENVIRON = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": SECRET}
ANSWERS = {0, 6, 7}  # yes, differences, not yet: with any other exit code a command did not do what it is for
OWN_TABLES = {"copy", "replicator-epochs"}  # which a DynamoDB target has in the caller's account
PARKING = "def hook(item):\n    assert 'broken' not in item\n    return dict(item)\n"
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

    def without_images(self) -> None:
        """The stream has keys only, so that a run looks each changed item up."""
        self.world.db.disable_stream("orders")
        self.world.db.enable_stream("orders", view="KEYS_ONLY")

    def changed(self) -> None:
        self.world.db.put("orders", {"id": "1", "tags": ["new"]})

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

    def into_dynamodb(self, option: str) -> None:
        """Copy into a table of the caller's account instead, which replicator creates."""
        postgres = f"  type: postgres\n  url: {self.world.postgres.url}\n  table: orders\n"
        place = f"type: dynamodb, region: us-east-1, endpoint_url: '{self.endpoint}', table: copy, create: true"
        self.world.change(f"target:\n{postgres}", f"target: {{{place}, {option}}}\n")

    def like_the_source(self) -> None:
        """The copy in DynamoDB has the time to live, the tags and the items of the other account's table."""
        own, name = self.accounts.own, {"TableName": "copy"}
        assert b'"AttributeName":"expires"' in own.call("DescribeTimeToLive", name)
        assert b'"Value":"right"' in own.call("ListTagsOfResource", {"ResourceArn": "copy"})
        self.has_items()

    def has_items(self) -> None:
        assert sorted((item["id"], *item["tags"]) for item in self.accounts.own.items("copy")) == [
            ("1", "a"),
            ("2", "b"),
        ]

    def looked_beside_the_source(self) -> None:
        """Whether another pipeline fills the source is noted in its own account."""
        assert ("GetItem", arn("replicator-epochs")) in self.accounts.requested[OTHER]

    def with_history(self) -> None:
        self.world.change("  table: orders\n", "  tables: {orders: {history: true}}\n")

    def complete(self) -> None:
        """The copy has both items of the other account's table, and nothing else."""
        documents = [text for (text,) in self.world.rows("SELECT document::text FROM orders")]
        assert len(documents) == 2
        assert "wrong" not in "".join(documents)

    def wrong(self) -> list[tuple[str, str]]:
        """The requests of the caller's account that are not about a table of the target."""
        return [one for one in self.accounts.requested[OWN] if one[1].rpartition("/")[2] not in OWN_TABLES]


@pytest.fixture
def pipeline(tmp_path: Path, one_postgres: Database) -> Iterator[Pipeline]:
    accounts = TwoAccounts()
    accounts.other.create_table("orders", view=None)
    accounts.own.create_table("orders")
    accounts.own.put("orders", {"id": "1", "tags": ["wrong"]})
    accounts.other.put("orders", {"id": "1", "tags": ["a"], "broken": 1})
    accounts.other.put("orders", {"id": "2", "tags": ["b"]})
    accounts.other.enable_stream("orders")
    for db, tag in ((accounts.other, "right"), (accounts.own, "wrong")):
        db.call("TagResource", {"ResourceArn": "orders", "Tags": [{"Key": "of", "Value": tag}]})
    ttl = {"Enabled": True, "AttributeName": "expires"}
    accounts.other.call("UpdateTimeToLive", {"TableName": "orders", "TimeToLiveSpecification": ttl})
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
    "an abandoned rebuild": (
        RUN,
        Pipeline.rebuilt,
        ("rebuild", "start", "CONFIG"),
        ("rebuild", "cancel", "CONFIG"),
    ),
    "a copy in DynamoDB": (
        lambda pipeline: pipeline.into_dynamodb("tags: true"),
        ("check", "CONFIG"),
        ("check", "CONFIG", "--create"),
        RUN,
        Pipeline.like_the_source,
        ("verify", "CONFIG"),
        ("cutover", "CONFIG"),
        ("resync", "CONFIG"),
        RUN,
        ("strip", "CONFIG", "--yes"),
        Pipeline.like_the_source,
    ),
    "parked in a pristine copy": (
        lambda pipeline: pipeline.into_dynamodb("pristine: true"),
        lambda pipeline: pipeline.world.hook(PARKING),
        RUN,
        lambda pipeline: pipeline.world.hook(PARKING.replace("broken", "absent")),
        ("parked", "retry", "CONFIG", "--all"),
        Pipeline.has_items,
    ),
    "two opposite copies": (
        lambda pipeline: pipeline.into_dynamodb("loops: true"),
        ("check", "CONFIG"),
        Pipeline.looked_beside_the_source,
        RUN,
        ("check", "CONFIG"),
        ("cutover", "CONFIG"),
        Pipeline.looked_beside_the_source,
    ),
    "a stream without images": (
        Pipeline.without_images,
        ("check", "CONFIG"),
        RUN,
        Pipeline.changed,
        RUN,
        Pipeline.complete,
    ),
    "a history": (
        Pipeline.with_history,
        RUN,
        ("history", "CONFIG", *ONE),
    ),
}
"""What is done to a pipeline, one after the other: commands, and changes of its config."""


@pytest.mark.parametrize("name", STEPS)
def test_no_command_asks_the_table_of_that_name_in_the_own_account(
    pipeline: Pipeline, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strip, "in_doubt", lambda *_: 0.0)  # else it waits for minutes after a run
    for step in STEPS[name]:
        if callable(step):
            step(pipeline)
            continue
        pipeline.accounts.forget()
        code, out, err = pipeline.world.call(*(part.replace("CONFIG", pipeline.world.config) for part in step))
        assert code in ANSWERS, (step, out + err)
        assert pipeline.wrong() == [], step


def test_a_chain_is_noticed_by_the_note_in_the_account_of_the_source(pipeline: Pipeline) -> None:
    """The table of notes in the caller's account has a note on the source's namesake, which is no reason."""
    pipeline.into_dynamodb("loops: true")
    for db, by in ((pipeline.accounts.other, "theirs"), (pipeline.accounts.own, "ours")):
        notes = Epochs(db, "replicator-epochs")
        db.call("CreateTable", notes.request)
        table = describe(db, "orders")
        assert table is not None
        notes.write(table, Note(by, 1024, source="arn:aws:dynamodb:us-east-1:333333333333:table/first"))
    code, out, _ = pipeline.world.call("check", pipeline.world.config)
    assert (code, "the pipeline theirs makes of" in out) == (2, True), out


def test_a_new_config_is_inferred_from_the_other_account(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {**ENVIRON, "POSTGRES_URL": pipeline.world.postgres.url}.items():
        monkeypatch.setenv(name, value)
    Path(pipeline.world.config).unlink()
    where = ("--table", arn("orders"), "--endpoint-url", pipeline.endpoint, "--target", "postgres")
    code, out, err = pipeline.world.call("init", *where)
    assert (code, pipeline.wrong()) == (0, []), out + err
    assert ("Scan", arn("orders")) in pipeline.accounts.requested[OTHER]


@pytest.mark.parametrize("command", [("check",), ("run", "--until", "caught-up")])
def test_a_target_in_another_account_is_not_named_by_an_arn(pipeline: Pipeline, command: tuple[str, ...]) -> None:
    pipeline.into_dynamodb("tags: true")
    pipeline.world.change("table: copy", f"table: '{arn('copy')}'")
    code, out, err = pipeline.world.call(*command, pipeline.world.config)
    assert (code, "written with a role of that account (target.role_arn)" in out + err) == (2, True), out + err
    asked = pipeline.accounts.requested
    assert {operation for operations in asked.values() for operation, _ in operations} & {
        "PutItem",
        "CreateTable",
    } == set()


def test_a_global_table_is_asked_for_its_time_to_live_in_its_account(pipeline: Pipeline) -> None:
    pipeline.into_dynamodb("loops: true")
    pipeline.accounts.other._catalog.tables["orders"].definition["Replicas"] = [{"RegionName": "eu-west-1"}]
    code, out, _ = pipeline.world.call("check", pipeline.world.config)
    assert (code, pipeline.wrong(), "has a time to live (expires)" in out) == (2, [], True), out


OFFLINE = {("policy",), ("lambda", "package"), ("lambda", "template")}


def test_every_command_is_tried() -> None:
    """A new command is added to the steps, or to those that contact no server."""
    tried = [step for steps in STEPS.values() for step in steps if not callable(step)]
    expected = {path for path, _ in commands()} - OFFLINE
    assert {step[: step.index("CONFIG")] for step in tried} == expected
