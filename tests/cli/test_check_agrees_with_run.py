"""``check`` and ``run`` agree: what ends a run at its start, ``check`` reports before, with the same exit code."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pytest

from connectors.dynamodb.options import DynamoDBOptions
from connectors.dynamodb.target import DynamoDB as DynamoDBTarget
from replicator.batch import Batch, Part, Upsert
from replicator.config import settings
from replicator.engine.assembly import ends
from replicator.items.item import Item
from replicator.key import KeyAttribute, KeySchema
from replicator.state import GapRepair, Owner, PipelineState, Save, decode, encode
from replicator.target.contract import Table
from replicator.testing.dynamodb import DynamoDB, catalog
from replicator.testing.dynamodb.http import served
from replicator.version import FIRST_EPOCH, version
from tests.cli.command_line import World, endpoint

HOOK = "def hook(item):\n    return {'n': 1}\n"
OWN_IDS = """
from replicator import Document, documents

@documents
def hook(item):
    yield Document(id="1", body={})
"""


@dataclass(frozen=True)
class Wrong:
    """A situation in which no run starts: how it arises, and the exit code and message with which both commands end."""

    make: Callable[[World], Any]
    code: int
    words: str
    fresh: bool = False  # else it comes about after a run has copied the table


def sql(*statements: bytes) -> Callable[[World], None]:
    def act(world: World) -> None:
        with world.postgres.connect() as connection:
            for statement in statements:
                connection.execute(statement)

    return act


def changed(*pairs: tuple[str, str]) -> Callable[[World], None]:
    def act(world: World) -> None:
        for old, new in pairs:
            world.change(old, new)

    return act


def with_target(world: World, lines: str) -> None:
    """Replaces the last line of the config, which names the target's table."""
    path = world.folder / "orders.yaml"
    head, found, _ = path.read_text().rpartition("  table: orders\n")
    assert found
    path.write_text(head + lines)


def delete_source(world: World) -> None:
    world.db.call("DeleteTable", {"TableName": "orders"})


def stream_replaced(world: World) -> None:
    world.db.disable_stream("orders")
    world.db.enable_stream("orders")


def gap_stored(world: World) -> None:
    stream_replaced(world)
    assert world.shell.run("run", world.config, "--until", "caught-up")[0] == 3


def made_again(world: World) -> None:
    delete_source(world)
    world.db.create_table("orders")


def everything_parked(world: World) -> None:
    world.hook("def hook(item):\n    return {'total': item['total']}\n")
    assert world.shell.run("run", world.config, "--until", "caught-up", "--accept-hook-change")[0] in (0, 6)
    for n in range(3):
        world.db.put("orders", {"id": str(n)})
    assert world.shell.run("run", world.config, "--until", "caught-up")[0] == 6
    world.db.put("orders", {"id": "good", "total": 1})
    world.change("target:", "parked_limit: 1\ntarget:")


def forbidden(operation: str) -> Callable[[World], None]:
    return lambda world: world.db.fail(operation, "AccessDeniedException", times=None)


def view(view: str | None, hook: str = "") -> Callable[[World], None]:
    def act(world: World) -> None:
        delete_source(world)
        world.db.create_table("orders", view=view)
        if hook:
            world.hook(hook)

    return act


_serving = ExitStack()


@pytest.fixture(autouse=True)
def _no_server_stays() -> Iterator[None]:
    with _serving:
        yield


def another_region(world: World) -> None:
    world.change("us-east-1", "eu-west-1")
    elsewhere(world, region="eu-west-1")


def elsewhere(world: World, **how: Any) -> None:
    other = DynamoDB(now=time.time, random=random.Random(2), **how)
    other.create_table("orders")
    world.change(endpoint(world), _serving.enter_context(served(other)))


def another_account(world: World) -> None:
    _serving.enter_context(pytest.MonkeyPatch.context()).setattr(catalog, "ACCOUNT", "210987654321")
    elsewhere(world)


def another_endpoint(world: World) -> None:
    """A table on another server with the same ARN, which emulators give to every table of that name."""
    elsewhere(world)


def another_schema(world: World) -> None:
    sql(b"CREATE SCHEMA shop")(world)
    with_target(world, "  schema: shop\n  table: orders\n")


def gap_of_an_archive(world: World) -> None:
    world.change("target:", "ttl_deletes: ignore\ntarget:")
    stream_replaced(world)


def replica_of_an_archive(world: World) -> None:
    world.change("target:", "ttl_deletes: ignore\ntarget:")
    world.db._catalog.tables["orders"].definition["Replicas"] = [{"RegionName": "eu-west-1"}]


def another_column(world: World) -> None:
    delete_all = sql(b"DROP TABLE orders", b"DROP SCHEMA replicator CASCADE")
    delete_all(world)
    with_target(world, "  tables: {orders: {columns: {city: text}}}\n")
    world.catch_up()
    world.change("city: text", "city: {type: text, from: town}")


def no_rights(world: World) -> None:
    """A role other than the one that created the tables."""
    role, password = world.postgres.name, world.postgres.server.password
    with world.postgres.connect() as client:
        client.execute(
            f"CREATE USER {role} PASSWORD '{password}'; GRANT USAGE ON SCHEMA replicator TO {role}; "
            f"GRANT ALL ON ALL TABLES IN SCHEMA replicator TO {role}".encode()
        )
        user = client.info.user
    world.change(f"{user}:{password}@", f"{role}:{password}@")


def wrong_password(world: World) -> None:
    password = world.postgres.server.password
    assert password
    world.change(f":{password}@", ":wr0ng-pass@")


def missing_password_file(world: World) -> None:
    password = world.postgres.server.password
    world.change(f":{password}@", "@")
    with_target(world, "  table: orders\n  password_file: /not/there\n")


def several_workers_in_a_gaps_repair(world: World) -> None:
    """One process repairs a gap from exports, and goes on after that, unless another run claims the pipeline."""
    owner = Owner("run", "here", 1, time.time())
    with ends(settings.load(world.config)) as (_, checkpoints):
        claimed = checkpoints.claim(owner)
        (entry,) = [e for e in claimed.entries if e.kind == "pipeline"]
        state = decode("pipeline", "", entry.text)
        assert isinstance(state, PipelineState)
        repairing = replace(state, repair=GapRepair(1.0, 1))
        checkpoints.save([Save("pipeline", "", entry.revision, encode(repairing))])
    world.change("target:", "engine: {type: ray, workers: 1}\ntarget:")


WRONG = {
    "several tables and a plain hook": Wrong(
        lambda w: with_target(w, "  tables: {orders: {}, lines: {}}\n"),
        2,
        "several tables need a transform hook",
        fresh=True,
    ),
    "no source table": Wrong(delete_source, 2, "no table orders", fresh=True),
    "no stream": Wrong(view(None), 2, "has no enabled stream", fresh=True),
    "only old images": Wrong(view("OLD_IMAGE"), 2, "has view type OLD_IMAGE", fresh=True),
    "own ids without old images": Wrong(view("KEYS_ONLY", OWN_IDS), 2, "has view type KEYS_ONLY", fresh=True),
    "no such hook": Wrong(lambda w: w.hook("def other(item): ..."), 2, "hooks.py has no function hook", fresh=True),
    "a hook that cannot be imported": Wrong(lambda w: w.hook("import not_there"), 2, "hooks.py, line 1", fresh=True),
    "a table of others": Wrong(
        sql(b"CREATE TABLE orders (id bigint PRIMARY KEY, document text, _version bigint NOT NULL)"),
        2,
        "id",
        fresh=True,
    ),
    "a wrong password": Wrong(wrong_password, 4, "refuses the login", fresh=True),
    "a password file that is missing": Wrong(
        missing_password_file, 2, "target.password_file: /not/there cannot be read", fresh=True
    ),
    "a forbidden source": Wrong(forbidden("DescribeTable"), 4, "dynamodb:DescribeTable", fresh=True),
    "a variable that is not set": Wrong(
        changed(("region: us-east-1", "region: ${NOT_SET}")), 2, "NOT_SET is not set", fresh=True
    ),
    "an empty variable": Wrong(
        changed(("region: us-east-1", "region: ${EMPTY}")),
        2,
        "environment variable EMPTY is empty",
        fresh=True,
    ),
    "an unknown key": Wrong(changed(("target:", "traget:")), 2, "traget", fresh=True),
    "invalid YAML": Wrong(changed(("source:", "source: {")), 2, "YAML", fresh=True),
    "no config": Wrong(lambda w: (w.folder / "orders.yaml").unlink(), 2, "config file", fresh=True),
    "a replaced stream": Wrong(stream_replaced, 3, "the stream was replaced"),
    "a stored gap": Wrong(gap_stored, 3, "the stream was replaced"),
    "a disabled stream": Wrong(lambda w: w.db.disable_stream("orders"), 3, "the stream was disabled"),
    "a source table made again": Wrong(made_again, 3, "deleted and created again"),
    "a deleted source table": Wrong(delete_source, 2, "no table orders"),
    "lost checkpoints": Wrong(
        sql(b"DELETE FROM replicator.checkpoints"), 3, "repair the copy: replicator resync CONFIG --now"
    ),
    "a dropped target table": Wrong(sql(b"DROP TABLE orders"), 3, "is gone from the target since the last run"),
    "an emptied target table": Wrong(sql(b"TRUNCATE orders"), 3, "is empty"),
    "a hook that changed": Wrong(lambda w: w.hook(HOOK), 2, "the hook was added since the last run"),
    "another source": Wrong(
        lambda w: (w.db.create_table("others"), changed(("table: orders\n  region", "table: others\n  region"))(w)),
        2,
        "this pipeline copies",
    ),
    "another target": Wrong(lambda w: with_target(w, "  table: copies\n"), 2, "this pipeline"),
    "another pipeline": Wrong(changed(("pipeline: orders", "pipeline: second")), 2, "the pipeline orders"),
    "another region": Wrong(another_region, 2, "this pipeline copies"),
    "another account": Wrong(another_account, 2, "this pipeline copies"),
    "another endpoint": Wrong(another_endpoint, 2, "this pipeline copies"),
    "another schema of the target": Wrong(
        another_schema,
        2,
        "this pipeline writes to",
    ),
    "a schema that is absent": Wrong(
        lambda w: with_target(w, "  schema: shop\n  table: orders\n"), 2, '"shop" does not exist', fresh=True
    ),
    "wrong credentials of the source": Wrong(
        lambda w: w.db.fail("DescribeTable", "UnrecognizedClientException", times=None), 4, "credentials", fresh=True
    ),
    "another column": Wrong(another_column, 2, "replicator resync"),
    "expired items that are kept, and a gap": Wrong(gap_of_an_archive, 3, "was replaced"),
    "a rescan by itself of what keeps expired items": Wrong(
        changed(("target:", "on_gap: resync\nttl_deletes: ignore\ntarget:")), 2, "ttl_deletes: ignore keeps", fresh=True
    ),
    "expired items that are kept, of a table with replicas": Wrong(
        replica_of_an_archive, 2, "the stream does not tell the difference", fresh=True
    ),
    "the same, once a run has copied the table": Wrong(
        replica_of_an_archive, 2, "with others in eu-west-1. Items that expire there"
    ),
    "a new column": Wrong(
        lambda w: with_target(w, "  tables: {orders: {columns: {city: text}}}\n"), 2, "since the last run"
    ),
    "too much parked": Wrong(everything_parked, 2, "more than 1 items are parked"),
    "no rights on the target's table": Wrong(no_rights, 4, "GRANT SELECT, INSERT, UPDATE, DELETE"),
    "a forbidden scan": Wrong(forbidden("Scan"), 4, "dynamodb:Scan", fresh=True),
    "a forbidden stream": Wrong(forbidden("DescribeStream"), 4, "dynamodb:DescribeStream", fresh=True),
}


def assert_agreed(world: World, wrong: Wrong) -> None:
    """Both end with the code and the message."""
    code, out, err = world.call("check", world.config, "--human")
    assert (code, wrong.words in out + err) == (wrong.code, True), out + err
    assert "ok    pipeline" not in out  # nothing begins
    failures = [line.removeprefix("FAIL  ") for line in out.splitlines() if line.startswith("FAIL")]
    assert not any(one is not other and one.endswith(other) for one in failures for other in failures), "\n\n".join(
        failures
    )
    assert err or re.search(rf"^not ready: (1 error|[2-9]\d* errors) \(exit code {code}\)\n\Z", out, re.MULTILINE), out
    code, out, err = world.shell.run("run", world.config, "--until", "caught-up", "--human")
    assert (code, wrong.words in out + err) == (wrong.code, True), out + err


@pytest.mark.parametrize("name", WRONG)
def test_check_ends_as_run_would_and_reports_the_same(world: World, name: str) -> None:
    wrong = WRONG[name]
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1"})
    world = World(world.db, world.postgres, world.folder, {**world.environ, "EMPTY": ""})
    if not wrong.fresh:
        world.catch_up()
    wrong.make(world)
    assert_agreed(world, wrong)


def test_several_workers_leave_a_pipeline_to_the_run_that_repairs_a_gap(world: World) -> None:
    world.db.create_table("orders")
    world.catch_up()
    several_workers_in_a_gaps_repair(world)
    with ends(settings.load(world.config)) as (_, checkpoints):
        before = checkpoints.read().revision
        assert_agreed(world, Wrong(several_workers_in_a_gaps_repair, 2, "which only one process does"))
        assert checkpoints.read().revision == before, "no run has claimed it"


def test_check_accepts_a_pipeline_that_ran_and_a_gap_that_is_repaired_automatically(
    world: World,
) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1"})
    out = world.call("check", world.config, "--human")[1]
    assert "ok    pipeline: run will start with a backfill" in out
    assert out.endswith("\nready to run\n")
    world.catch_up()
    code, out, _ = world.call("check", world.config, "--human")
    assert (code, "ok    pipeline: run will resume where the last one stopped (epoch 1024)" in out) == (0, True), out
    world.change("target:", "on_gap: resync\ntarget:")
    stream_replaced(world)
    code, out, _ = world.call("check", world.config, "--human")
    assert (code, "pipeline: run will rescan the table (on_gap: resync): the stream was replaced" in out) == (0, True)
    world.catch_up()


def test_check_does_not_call_a_server_ready_that_accepts_no_writes(world: World) -> None:
    """A standby, named by mistake: run waits for it."""
    world.db.create_table("orders")
    sql(f'ALTER DATABASE "{world.postgres.name}" SET default_transaction_read_only = on'.encode())(world)
    code, out, _ = world.call("check", world.config, "--human")
    assert (code, "the server is read-only (a standby, or failing over)" in out) == (8, True), out


def test_a_server_that_cannot_be_reached_has_one_exit_code(world: World) -> None:
    world.db.create_table("orders")
    world.change(world.postgres.url, "postgresql://me@127.0.0.1:1/none")
    for command in ("check", "status", "parked list"):
        code, out, err = world.call(*command.split(), world.config, "--human")
        assert (code, "cannot be reached" in out + err) == (8, True), (command, out + err)
    source = next(line for line in (world.folder / "orders.yaml").read_text().splitlines() if "endpoint_url" in line)
    world.change(source, "  endpoint_url: http://127.0.0.1:1")
    for command in ("check", "preview"):
        assert world.call(command, world.config, "--human")[0] == 8, command


@pytest.mark.parametrize("on_gap", ["stop", "resync"])
def test_a_gap_that_only_a_person_may_repair_is_one_whatever_on_gap_says(
    world: World, on_gap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table with items of a pipeline, of which nothing tells whose it is."""
    for name, value in world.environ.items():
        monkeypatch.setenv(name, value)
    world.db.create_table("orders")
    options = DynamoDBOptions(region="us-east-1", endpoint_url=endpoint(world), create=True, epochs_table="elsewhere")
    copy, another = Table("copy", KeySchema((KeyAttribute("id", "S"),))), DynamoDBTarget(options, "another")
    another.open([copy], FIRST_EPOCH)
    item = Item(b'{"id":{"S":"theirs"}}')
    another.write(Batch([Part("segment:0", [Upsert("copy", ("theirs",), item, version(FIRST_EPOCH, 0), ("theirs",))])]))
    another.close()
    postgres = f"  type: postgres\n  url: {world.postgres.url}\n  table: orders\n"
    dynamodb = (
        f"  type: dynamodb\n  region: us-east-1\n  endpoint_url: {endpoint(world)}\n  create: true\n  table: copy\n"
    )
    world.change(postgres, dynamodb)
    world.change("target:", f"on_gap: {on_gap}\ncheckpoints: {{type: sqlite, path: o.db}}\ntarget:")
    assert_agreed(world, Wrong(lambda _: None, 3, "repair it only if all of it is this pipeline's, because"))
