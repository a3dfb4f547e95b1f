"""The permissions in docs/permissions.md are enough, and each is needed: without it, a command names it."""

from __future__ import annotations

import ast
import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from botocore import session
from click.testing import CliRunner

from replicator.cli import main
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from tests.cli.command_line import Shell
from tests.security.canary import SECRET, VALUE
from tests.security.iam import Account, arn
from tests.security.plugin import never_made, unlisted
from tests.security.policy import RESOURCES, Permission, documented, in_documents
from tests.security.process import aws_calls
from tests.servers.s3 import Bucket

ROOT = Path(__file__).parent.parent.parent
ENVIRON = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": SECRET}
PLACES = ("source", "target", "checkpoints")
TABLES = {p: sid for p, sid in documented().items() if p.action.startswith("dynamodb:")}
CONFIG = """\
pipeline: orders
source: {{table: orders, region: us-east-1, endpoint_url: "{source}"}}
target:
  type: dynamodb
  region: us-east-1
  endpoint_url: "{target}"
  create: true
  tags: true
  table: copies
checkpoints: {{type: dynamodb, table: kept, region: us-east-1, endpoint_url: "{checkpoints}"}}
"""


@dataclass(frozen=True)
class Accounts:
    """Three accounts with the documented policies, and a pipeline across them."""

    of: dict[str, Account]
    config: str

    @property
    def used(self) -> set[Permission]:
        return set().union(*(account.used for account in self.of.values()))

    def without(self, permission: Permission) -> None:
        for account in self.of.values():
            account.denied = {permission}

    def arn(self, permission: Permission) -> str:
        return arn(permission.resource, self.of["source"].db.stream_arn("orders"))

    def call(self, *arguments: str) -> tuple[int, str]:
        """Run a command in this process; return its exit code and output."""
        found = CliRunner().invoke(main, [*arguments], env=ENVIRON, catch_exceptions=False)
        return found.exit_code, found.output

    def run(self, command: str = "run") -> tuple[int, str]:
        """The same in a separate process, for a command that handles signals."""
        now = ("--now",) if command == "resync" else ()
        code, out, err = Shell(ENVIRON).run(command, self.config, *now, "--until", "caught-up", "--json")
        return code, out + err


EXPIRY = {"Enabled": True, "AttributeName": "until"}
SOURCE = RESOURCES["source", "table"]
ORDERS = arn(SOURCE)


@contextmanager
def serving(folder: Path) -> Iterator[Accounts]:
    with ExitStack() as running:
        of = {p: Account(p, DynamoDB(now=time.time, random=random.Random(1)), set(TABLES)) for p in PLACES}
        endpoints = {p: running.enter_context(served(account)) for p, account in of.items()}
        db = of["source"].db
        db.create_table("orders", view="KEYS_ONLY")
        db.call("UpdateTimeToLive", {"TableName": "orders", "TimeToLiveSpecification": EXPIRY})
        db.call("TagResource", {"ResourceArn": ORDERS, "Tags": [{"Key": "team", "Value": "orders"}]})
        for n in range(3):
            db.put("orders", {"id": str(n), "n": n, "canary": VALUE})
        (folder / "orders.yaml").write_text(CONFIG.format(**endpoints))
        yield Accounts(of, str(folder / "orders.yaml"))


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Accounts]:
    """Accounts without any tables of ours."""
    with serving(tmp_path) as accounts:
        yield accounts


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Accounts]:
    """Accounts in which a pipeline has run."""
    with serving(tmp_path_factory.mktemp("made")) as accounts:
        assert accounts.call("check", accounts.config, "--create")[0] == 0
        code, said = accounts.run()
        assert code == 0, said
        yield accounts
        for account in accounts.of.values():
            account.denied = set()


def test_the_documented_permissions_are_enough_and_all_used(made: Accounts) -> None:
    made.of["source"].db.delete("orders", {"id": "0"})
    for command in (["check"], ["preview", "--key", '{"id": "1"}'], ["parked", "list"]):
        assert made.call(*command, made.config)[0] == 0
    assert made.call("status", made.config)[0] == 7, "nothing runs"
    code, said = made.run("resync")
    assert code == 0, said
    for options in ([], ["--key", '{"id": "1"}']):
        assert made.call("verify", made.config, *options)[0] == 0
    assert made.call("cutover", made.config)[0] == 7, "nothing runs"
    copies = made.of["target"].db.items("copies")
    assert {item["id"] for item in copies if "_replicator_deleted" not in item} == {"1", "2"}
    assert made.used == set(TABLES) - set(listed("StripCopies", *CHAIN, *EXPORT))


def test_the_documents_repeat_the_table_of_permissions() -> None:
    assert sorted(in_documents()) == sorted(documented().items())


CHECKED = ("Items", "Changes", "LookUpsForKeysOnly", "Copies", "Epochs", "Checkpoints")
PATTERN = ("PatternForAnotherTable",)
SETTINGS = ("SettingsOfSource", "SettingsOfCopies")  # tests/cli/test_cutover.py denies them
CHAIN = ("EpochsOfSource",)  # tests/connectors/dynamodb/test_loops.py denies it
EXPORT = ("Export", "ExportProgress")
RUN = ("CreateEpochs", "CreateCopies", "ExpiryOfCopies")


def listed(*statements: str) -> list[Permission]:
    return sorted(p for p, sid in TABLES.items() if sid in statements)


@pytest.mark.parametrize("permission", listed(*CHECKED), ids=str)
def test_check_names_a_missing_permission(made: Accounts, permission: Permission) -> None:
    made.without(permission)
    code, said = made.call("check", made.config)
    assert (code, f"{permission.action} on {made.arn(permission)} is not permitted" in said) == (4, True), said


@pytest.mark.parametrize("permission", listed(*PATTERN), ids=str)
def test_check_names_a_missing_permission_to_create_a_table_like_the_source(
    bare: Accounts, permission: Permission
) -> None:
    bare.without(permission)
    code, said = bare.call("check", bare.config)
    assert (code, f"{permission.action} on {bare.arn(permission)} is not permitted" in said) == (4, True), said


@pytest.mark.parametrize("permission", listed(*RUN), ids=str)
def test_a_run_that_creates_tables_names_a_missing_permission(bare: Accounts, permission: Permission) -> None:
    assert bare.call("check", bare.config, "--create")[0] == 0
    bare.without(permission)
    code, said = bare.run()
    assert (code, f"{permission.action} on {bare.arn(permission)} is not permitted" in said) == (4, True), said


@pytest.mark.parametrize("lacking", [(), ("ExpiryOfCopies",)])
def test_later_runs_need_no_permission_to_create_tables_and_an_archive_reads_ttl(
    bare: Accounts, lacking: tuple[str, ...]
) -> None:
    config = Path(bare.config)
    config.write_text(f"ttl_deletes: ignore\n{config.read_text()}")
    assert bare.call("check", bare.config, "--create")[0] == 0
    assert bare.run()[0] == 0
    for account in bare.of.values():
        account.denied = set(listed("CreateEpochs", "CreateCopies", "CreateCheckpoints", *lacking))
    code, said = bare.run()
    assert code == (4 if lacking else 0), said
    for permission in listed(*lacking):
        assert f"{permission.action} on {bare.arn(permission)} is not permitted" in said


@pytest.mark.parametrize("permission", listed("CreateCheckpoints"), ids=str)
def test_check_create_names_a_missing_permission(bare: Accounts, permission: Permission) -> None:
    bare.without(permission)
    code, said = bare.call("check", bare.config, "--create")
    assert (code, f"{permission.action} on {bare.arn(permission)} is not permitted" in said) == (4, True), said


HOOK = """from replicator import Document, documents

@documents
def hook(item):
    yield Document(id="1", body={"n": item["n"]})
"""


@pytest.mark.parametrize("permission", listed("SingleItems"), ids=str)
def test_check_names_what_a_retry_of_documents_with_own_ids_lacks(bare: Accounts, permission: Permission) -> None:
    config = Path(bare.config)
    (config.parent / "hooks.py").write_text(HOOK)
    config.write_text(f"transform: hooks.py:hook\n{config.read_text()}")
    for denied in (True, False):
        bare.of["source"].denied = {permission} if denied else set()
        _, said = bare.call("check", bare.config)
        assert (f"{permission.action} on {bare.arn(permission)} is not permitted" in said) == denied, said


@pytest.mark.parametrize("permission", listed(*EXPORT), ids=str)
def test_check_names_what_an_export_lacks(bare: Accounts, permission: Permission, s3: Bucket) -> None:
    config = Path(bare.config)
    config.write_text(f"backfill: {{from: export, bucket: {s3.name}}}\n{config.read_text()}")
    bare.of["source"].db.exports.enable("orders")
    for denied in (True, False):
        bare.of["source"].denied = {permission} if denied else set()
        _, said = bare.call("check", bare.config)
        assert (f"{permission.action} on {bare.arn(permission)} is not permitted" in said) == denied, said


@pytest.mark.parametrize("permission", listed("SingleItems"), ids=str)
def test_preview_of_a_key_names_a_missing_permission(made: Accounts, permission: Permission) -> None:
    made.without(permission)
    code, said = made.call("preview", made.config, "--key", '{"id": "1"}')
    assert (code, f"{permission.action} on {made.arn(permission)} is not permitted" in said) == (4, True), said


@pytest.mark.parametrize("permission", listed("VerifyCopies"), ids=str)
def test_verify_names_a_missing_permission(made: Accounts, permission: Permission) -> None:
    made.without(permission)
    code, said = made.call("verify", made.config, "--key", '{"id": "1"}')
    assert (code, f"{permission.action} on {made.arn(permission)} is not permitted" in said) == (4, True), said


@pytest.mark.parametrize("permission", listed("StripCopies"), ids=str)
def test_strip_names_a_missing_permission(bare: Accounts, permission: Permission) -> None:
    assert bare.call("check", bare.config, "--create")[0] == 0
    assert bare.run()[0] == 0
    bare.without(permission)
    code, said = bare.call("strip", bare.config, "--yes")
    assert (code, f"{permission.action} on {bare.arn(permission)} is not permitted" in said) == (4, True), said
    for account in bare.of.values():
        account.denied = set()
    code, said = bare.call("strip", bare.config, "--yes")
    assert code == 0, said


def test_each_permission_has_its_test() -> None:
    single = ("CreateCheckpoints", "SingleItems", "VerifyCopies", "StripCopies")
    assert set(listed(*CHECKED, *PATTERN, *RUN, *single, *SETTINGS, *CHAIN, *EXPORT)) == set(TABLES)


# What the source says, whatever any test runs

EXPANDED = {"TransactWriteItems": {"PutItem", "DeleteItem", "ConditionCheckItem"}}


def spoken(*folders: str) -> Iterator[tuple[str, ast.AST]]:
    """Every syntax node of production code, with its file name."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "testing" not in path.parts and path.name != "boto.py":
                yield from ((path.name, node) for node in ast.walk(ast.parse(path.read_text())))


def test_production_code_names_no_other_operation_of_dynamodb() -> None:
    models = (session.Session().get_service_model(name) for name in ("dynamodb", "dynamodbstreams"))
    known = {name for model in models for name in model.operation_names}
    constants = {n.value for _, n in spoken("replicator", "connectors") if isinstance(n, ast.Constant)}
    named = {str(c) for c in constants if c in known}
    meant = set().union(*(EXPANDED.get(name, {name}) for name in named)) | {"TagResource"}  # by CreateTable's Tags
    assert {f"dynamodb:{name}" for name in meant} == {p.action for p in TABLES}


def test_search_engines_are_queried_by_no_other_method() -> None:
    calls = [n for _, n in spoken("connectors") if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    asked = [n.args[0] for n in calls if n.func.attr in ("request", "ask") and len(n.args) > 1]  # type: ignore[attr-defined]
    methods = {a.value for a in asked if isinstance(a, ast.Constant) and str(a.value).isupper()}
    listed = {p.action for p in documented() if p.action.startswith("es:")}
    assert {f"es:ESHttp{str(method).title()}" for method in methods} == listed


# What the whole suite is measured by (plugin.py)


def test_a_call_that_is_not_listed_fails_the_suite_and_names_its_test() -> None:
    assert list(unlisted({("source", "table", "dynamodb:DeleteItem"): "test_x"})) == [
        f"FAILED: dynamodb:DeleteItem on {SOURCE} is called (in test_x), and docs/permissions.md does not list it"
    ]
    assert len(list(unlisted({("somewhere", "table", "dynamodb:Scan"): "test_x"}))) == 1


def test_an_unused_permission_fails_the_suite() -> None:
    made = {("source", "table", action): "" for action in ("dynamodb:Scan", "dynamodb:DescribeTable")}
    lines = list(never_made(made))
    assert f"FAILED: docs/permissions.md lists dynamodb:BatchGetItem on {SOURCE}, and no test calls it" in lines
    assert f"FAILED: docs/permissions.md lists dynamodb:Scan on {SOURCE}, and no test calls it" not in lines


def test_subprocesses_record_their_calls_too(made: Accounts) -> None:
    """``made`` ran in a separate process, the only one that reads records."""
    noted = aws_calls.noted(Path(os.environ[aws_calls.FOLDER]))
    assert ("source", "stream", "dynamodb:GetRecords") in noted
