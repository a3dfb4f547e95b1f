"""``replicator policy``: the printed policies are enough for the config, and nothing in them is unused."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from replicator.aws.permissions import STATEMENTS, Needed, Statement
from replicator.cli import main
from replicator.options import Access
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from tests.cli.command_line import Shell, words
from tests.security.canary import SECRET
from tests.security.iam import ACCOUNT, Account, arn
from tests.security.policy import RESOURCES, Permission
from tests.servers.postgres_fixtures import Database

ENVIRON = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": SECRET}
PRINCIPAL = "arn:aws:iam::333333333333:role/replicator"
OWN_IDS = """from replicator import Document, documents

@documents
def hook(item):
    yield Document(id="1", body={})
"""


def policy(config: str | Path, *arguments: str) -> tuple[int, Any, str]:
    """Exit code, the JSON that is printed, the words of standard error."""
    result = CliRunner().invoke(main, ["policy", str(config), *arguments], env=ENVIRON, catch_exceptions=False)
    return result.exit_code, json.loads(result.stdout) if result.stdout else None, words(result.stderr)


def permissions(document: Any) -> set[Permission]:
    """What a policy of the world below allows, as the table names it."""
    templates = {arn(t, "arn:aws:dynamodb:us-east-1:123456789012:table/orders/stream/*"): t for t in RESOURCES.values()}
    return {
        Permission(templates[resource], action)
        for statement in document["Statement"]
        for resource in statement["Resource"]
        for action in statement["Action"]
    }


@dataclass(frozen=True)
class Accounts:
    """An account for each place of a config, in which only ``allow``ed calls succeed."""

    of: dict[str, Account]
    config: Path

    def allow(self, *arguments: str) -> None:
        code, document, err = policy(self.config, "--account", ACCOUNT, *arguments)
        assert (code, err) == (0, "")
        for account in self.of.values():
            account.allowed, account.used = permissions(document), set()

    def call(self, *arguments: str) -> None:
        result = CliRunner().invoke(main, [arguments[0], str(self.config), *arguments[1:]], env=ENVIRON)
        assert result.exit_code == 0, result.output

    def run(self, command: str = "run") -> None:
        now = ("--now",) if command == "resync" else ()
        code, out, err = Shell(ENVIRON).run(command, str(self.config), *now, "--until", "caught-up")
        assert code == 0, out + err

    def assert_all_used(self) -> None:
        used = set().union(*(account.used for account in self.of.values()))
        assert used == self.of["source"].allowed


@contextmanager
def serving(folder: Path, target: str, *, view: str = "NEW_AND_OLD_IMAGES", more: str = "") -> Iterator[Accounts]:
    with ExitStack() as running:
        places = ("source", "target", "checkpoints")
        of = {p: Account(p, DynamoDB(now=time.time, random=random.Random(1)), set()) for p in places}
        endpoints = {p: running.enter_context(served(account)) for p, account in of.items()}
        db = of["source"].db
        db.create_table("orders", view=view)
        db.call("UpdateTimeToLive", {"TableName": "orders", "TimeToLiveSpecification": EXPIRY})
        db.call("TagResource", {"ResourceArn": arn(RESOURCES["source", "table"]), "Tags": [{"Key": "a", "Value": "b"}]})
        for n in range(3):
            db.put("orders", {"id": str(n)})
        (folder / "hooks.py").write_text(OWN_IDS)
        config = folder / "orders.yaml"
        checkpoints = "checkpoints: {{type: dynamodb, table: kept, region: us-east-1, endpoint_url: '{checkpoints}'}}\n"
        config.write_text(
            (
                "pipeline: orders\nsource: {{table: orders, region: us-east-1, endpoint_url: '{source}'}}\n"
                + f"target: {target}\n{more}{'' if 'postgres' in target else checkpoints}"
            ).format(**endpoints)
        )
        yield Accounts(of, config)


EXPIRY = {"Enabled": True, "AttributeName": "until"}


def dynamodb(options: str) -> str:
    return "{{type: dynamodb, table: copies, region: us-east-1, endpoint_url: '{target}'" + options + "}}"


@pytest.mark.parametrize(
    ("target", "view", "more"),
    [
        (dynamodb(", create: true"), "NEW_AND_OLD_IMAGES", ""),
        (dynamodb(", create: true, tags: true"), "KEYS_ONLY", ""),
        (dynamodb(", create: true, pristine: true"), "NEW_IMAGE", ""),
        (dynamodb(", create: true"), "NEW_AND_OLD_IMAGES", "transform: hooks.py:hook\n"),
    ],
)
def test_the_policy_is_enough_for_every_command_and_all_of_it_is_used(
    tmp_path: Path, target: str, view: str, more: str
) -> None:
    with serving(tmp_path, target, view=view, more=more) as accounts:
        accounts.allow(*(["--keys-only"] if view == "KEYS_ONLY" else []))
        accounts.call("check", "--create")
        accounts.run()
        accounts.of["source"].db.put("orders", {"id": "9"})
        accounts.run()
        for command in ("check", "preview"):
            accounts.call(command)
        accounts.run("resync") if "pristine" not in target else None
        accounts.assert_all_used()


@pytest.mark.parametrize(("create", "more"), [("", ""), (", create: true", ""), ("", "ttl_deletes: ignore\n")])
def test_later_runs_need_only_what_is_left_without_setup(tmp_path: Path, create: str, more: str) -> None:
    with serving(tmp_path, dynamodb(", create: true"), more=more) as accounts:
        accounts.allow()
        accounts.call("check", "--create")
        accounts.run()
        accounts.config.write_text(accounts.config.read_text().replace(", create: true", create))
        accounts.allow("--no-setup")
        accounts.of["source"].db.put("orders", {"id": "9"})
        accounts.run()
        accounts.run("resync") if not more else None
        accounts.call("check")
        accounts.assert_all_used()


def test_a_resync_of_keys_needs_look_ups_which_the_policy_includes_if_asked(tmp_path: Path) -> None:
    with serving(tmp_path, dynamodb(", create: true")) as accounts:
        accounts.allow()
        accounts.call("check", "--create")
        accounts.run()
        keys = ("resync", str(accounts.config), "--key", '{"id": "1"}')
        refused = CliRunner().invoke(main, keys, env=ENVIRON)
        assert (refused.exit_code, "dynamodb:BatchGetItem" in refused.output) == (4, True), refused.output
        accounts.allow("--resync-keys")
        accounts.call("resync", *keys[2:])
        accounts.run()
        assert Permission(RESOURCES["source", "table"], "dynamodb:BatchGetItem") in accounts.of["source"].used


def test_a_run_that_verifies_needs_look_ups_which_the_policy_includes(tmp_path: Path) -> None:
    with serving(tmp_path, dynamodb(", create: true"), more="verify: {{read_units: 1000}}\n") as accounts:
        accounts.allow()
        accounts.call("check", "--create")
        accounts.run()
        accounts.run("resync")
        accounts.call("check")
        accounts.assert_all_used()


def test_postgres_needs_the_source_alone(tmp_path: Path, one_postgres: Database) -> None:
    with serving(tmp_path, f"{{{{type: postgres, url: '{one_postgres.url}', table: orders}}}}") as accounts:
        accounts.allow()
        accounts.call("check")
        accounts.run()
        accounts.assert_all_used()
        assert {p.resource for p in accounts.of["source"].allowed} == {
            RESOURCES["source", "table"],
            RESOURCES["source", "stream"],
        }


# What is printed


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "REGION", "POSTGRES_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))

    def write(source: str, target: str = "{type: postgres, url: '${POSTGRES_URL}', table: t}", more: str = "") -> Path:
        path = tmp_path / "p.yaml"
        path.write_text(f"pipeline: p\nsource: {source}\ntarget: {target}\n{more}")
        return path

    return write


def resources(document: Any, sid: str) -> list[str]:
    (statement,) = [s for s in document["Statement"] if s["Sid"] == sid]
    return list(statement["Resource"])


def sids(printed: Any) -> dict[str, Any]:
    """The resource and the actions of each statement about exports."""
    of = {s["Sid"]: (s["Resource"], s["Action"]) for s in printed["Statement"]}
    return {sid.removeprefix("Export"): of[sid] for sid in of if sid.startswith("Export")}


FILES = ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"]
TABLE = "arn:aws:dynamodb:eu-west-1:111111111111:table/orders"


def test_a_backfill_from_a_new_export_needs_the_bucket_and_its_key(written: Callable[..., Path]) -> None:
    key = "arn:aws:kms:eu-west-1:222222222222:key/k1"
    exports = f"{{from: export, bucket: b12, prefix: p, bucket_owner: '222222222222', kms_key: '{key}'}}"
    config = written(f"{{table: '{TABLE}'}}", more=f"backfill: {exports}\n")
    _, printed, _ = policy(config)

    assert sids(printed) == {
        "": ([TABLE], ["dynamodb:ExportTableToPointInTime"]),
        "Progress": ([f"{TABLE}/export/*"], ["dynamodb:DescribeExport"]),
        "Files": (["arn:aws:s3:::b12/p/*"], FILES),
        "FilesOfAnotherAccount": (["arn:aws:s3:::b12/p/*"], ["s3:PutObjectAcl"]),
        "Bucket": (["arn:aws:s3:::b12"], ["s3:ListBucket"]),
        "Key": ([key], ["kms:GenerateDataKey", "kms:Decrypt"]),
    }


def test_a_backfill_from_an_existing_export_only_reads(written: Callable[..., Path]) -> None:
    exports = f"{{from: export, export: '{TABLE}/export/1-a'}}"
    config = written(f"{{table: '{TABLE}'}}", more=f"backfill: {exports}\n")
    _, printed, said = policy(config)

    assert list(sids(printed)) == ["Progress", "Files", "Bucket"]
    assert sids(printed)["Files"] == (["arn:aws:s3:::BUCKET/*"], ["s3:GetObject"])
    assert "BUCKET" in said


def test_repairs_of_gaps_from_exports_need_the_table_besides(written: Callable[..., Path]) -> None:
    config = written(f"{{table: '{TABLE}'}}", more="on_gap: export\nbackfill: {bucket: b12}\n")
    _, printed, _ = policy(config)

    assert list(sids(printed)) == ["", "Progress", "Files", "Bucket"]
    assert resources(printed, "SettingsOfSource") == [TABLE]
    assert resources(printed, "LookUpsForKeysOnly") == [TABLE]


def test_an_arn_names_account_region_and_table(written: Callable[..., Path]) -> None:
    table = "arn:aws:dynamodb:eu-west-1:111111111111:table/orders"
    code, document, err = policy(written(f"{{table: '{table}'}}"))

    assert (code, err) == (0, "")
    assert resources(document, "Items") == [table]
    assert resources(document, "Changes") == [f"{table}/stream/*"]


def test_what_the_config_does_not_say_stays_a_placeholder_and_is_named(written: Callable[..., Path]) -> None:
    code, document, err = policy(written("{table: orders, region: '${REGION}'}"))

    assert code == 0
    assert resources(document, "Items") == ["arn:aws:dynamodb:REGION:ACCOUNT:table/orders"]
    assert err == (
        "note: the config does not say what REGION is; set source.region or AWS_REGION, or replace it\n"
        "note: the config does not say what ACCOUNT is; give --account, or replace it\n"
    )


def test_accounts_may_differ_by_place_and_china_is_another_partition(written: Callable[..., Path]) -> None:
    target = "{type: dynamodb, region: cn-north-1, profile: china, tables: {one: , two: }}"
    path = written("{table: orders, region: eu-west-1}", target)
    code, documents, _ = policy(path, "--account", "111111111111", "--account", "target=222222222222")

    assert code == 0
    assert list(documents) == ["default", "profile china"]
    assert resources(documents["default"], "Items") == ["arn:aws:dynamodb:eu-west-1:111111111111:table/orders"]
    assert resources(documents["profile china"], "Copies") == [
        f"arn:aws-cn:dynamodb:cn-north-1:222222222222:table/{name}" for name in ("one", "two")
    ]
    assert policy(path, "--identity", "profile china", "--account", "111111111111")[1]["Statement"]


def test_check_reads_the_function_in_the_account_of_the_credentials_themselves(written: Callable[..., Path]) -> None:
    function = "engine: {type: lambda, function: orders-copy}\n"
    config = written("{table: orders, region: us-east-1}", more=function)
    _, own, _ = policy(config, "--account", ACCOUNT)
    statements = {s["Sid"]: (s["Action"], s["Resource"]) for s in own["Statement"]}
    arn_of_function = f"arn:aws:lambda:us-east-1:{ACCOUNT}:function:orders-copy"
    assert statements["Function"] == (
        ["lambda:GetFunctionConfiguration", "lambda:GetFunctionConcurrency", "lambda:GetPolicy"],
        [arn_of_function],
    )
    assert statements["Versions"] == (["lambda:GetPolicy"], [f"{arn_of_function}:*"]), "a rule may invoke an alias"
    assert statements["EventSourceMappings"] == (["lambda:ListEventSourceMappings"], ["*"])
    schedules = [
        "events:ListRuleNamesByTarget",
        "events:DescribeRule",
        "events:ListTargetsByRule",
        "scheduler:ListSchedules",
        "scheduler:GetSchedule",
    ]
    assert statements["Schedules"] == (schedules, ["*"])
    _, of_function, _ = policy(config, "--account", ACCOUNT, "--function")
    asked = {"Function", "Versions", "EventSourceMappings", "Schedules"}
    assert not asked & {s["Sid"] for s in of_function["Statement"]}

    role = "arn:aws:iam::222222222222:role/reader"
    config.write_text(config.read_text().replace("table: orders,", f"table: orders, role_arn: '{role}',", 1))
    _, both, _ = policy(config)
    assert asked | {"Role"} == {s["Sid"] for s in both["default"]["Statement"]}
    (function_arn,) = both["default"]["Statement"][0]["Resource"]
    assert function_arn == "arn:aws:lambda:us-east-1:ACCOUNT:function:orders-copy"


def test_a_role_has_a_policy_of_its_own_and_must_be_assumed(written: Callable[..., Path]) -> None:
    role = "arn:aws:iam::222222222222:role/reader"
    _, documents, _ = policy(written(f"{{table: orders, region: eu-west-1, role_arn: '{role}', profile: ops}}"))

    assert list(documents) == [role, "profile ops"]
    assert resources(documents[role], "Items") == ["arn:aws:dynamodb:eu-west-1:222222222222:table/orders"]
    assert documents["profile ops"]["Statement"] == [
        {"Sid": "Role", "Effect": "Allow", "Action": ["sts:AssumeRole"], "Resource": [role]}
    ]


@pytest.mark.parametrize(
    ("url", "aws", "sid", "resource"),
    [
        ("https://search-shop-abc123.eu-west-1.es.amazonaws.com", "{}", "Domain", "es:eu-west-1:ACCOUNT:domain/shop/*"),
        ("https://vpc-a-b-x1.us-east-1.es.amazonaws.com", "{}", "Domain", "es:us-east-1:ACCOUNT:domain/a-b/*"),
        ("https://search.example.com", "{region: eu-west-1}", "Domain", "es:eu-west-1:ACCOUNT:domain/DOMAIN/*"),
        (
            "https://k1.eu-west-1.aoss.amazonaws.com",
            "{service: aoss}",
            "Serverless",
            "aoss:eu-west-1:ACCOUNT:collection/k1",
        ),
    ],
)
def test_an_opensearch_domain_is_named_by_its_address(
    written: Callable[..., Path], url: str, aws: str, sid: str, resource: str
) -> None:
    path = written("{table: orders, region: eu-west-1}", f"{{type: opensearch, url: '{url}', aws: {aws}, table: t}}")
    _, document, err = policy(path)

    assert resources(document, sid) == [f"arn:aws:{resource}"]
    assert ("DOMAIN" in err) == ("example" in url)


def test_only_the_config_of_a_rebuild_may_remove_indices_and_no_others_than_the_two(
    written: Callable[..., Path],
) -> None:
    url = "https://search-shop-abc123.eu-west-1.es.amazonaws.com"
    target = f"{{type: opensearch, url: '{url}', aws: {{}}, table: t}}"
    path = written("{table: orders, region: eu-west-1}", target)
    assert "RemoveIndices" not in {s["Sid"] for s in policy(path)[1]["Statement"]}

    old = path.with_name("orders-old.yaml")
    unset = (
        path.read_text().replace("pipeline: ", "pipeline: old-").replace("region: eu-west-1}", "region: '${UNSET}'}")
    )
    old.write_text(unset)
    tables = "tables: {t: {index: t-2}}"
    path.write_text(f"replaces: orders-old.yaml\n{path.read_text().replace('table: t', tables)}")
    indices = [f"arn:aws:es:eu-west-1:ACCOUNT:domain/shop/{index}" for index in ("t-2", "t-1")]
    assert resources(policy(path)[1], "RemoveIndices") == indices
    old.unlink()
    code, _, err = policy(path)
    assert code == 2
    assert "orders-old.yaml not found" in err
    assert "orders-old.yaml names those of the old one: keep it beside this config, or leave out replaces:" in err


def test_other_search_engines_need_nothing_from_aws(written: Callable[..., Path]) -> None:
    target = "{type: elasticsearch, url: http://localhost:9200, table: t}"
    _, document, _ = policy(written("{table: orders, region: eu-west-1}", target))

    assert [s["Sid"] for s in document["Statement"]] == ["Items", "Changes"]


def test_a_principal_is_trusted_by_roles_and_allowed_by_tables_with_an_arn(written: Callable[..., Path]) -> None:
    table, role = "arn:aws:dynamodb:eu-west-1:111111111111:table/orders", "arn:aws:iam::222222222222:role/writer"
    target = f"{{type: dynamodb, region: eu-west-1, table: copies, role_arn: '{role}', external_id: x7}}"
    code, documents, _ = policy(written(f"{{table: '{table}'}}", target), "--principal", PRINCIPAL)

    assert code == 0
    assert documents[role]["Statement"] == [
        {
            "Effect": "Allow",
            "Principal": {"AWS": PRINCIPAL},
            "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"sts:ExternalId": "x7"}},
        }
    ]
    assert list(documents) == [role, table, f"{table}/stream/*"]
    assert {s["Principal"]["AWS"] for d in documents.values() for s in d["Statement"]} == {PRINCIPAL}
    assert "dynamodb:GetRecords" in documents[f"{table}/stream/*"]["Statement"][0]["Action"]


def test_a_principal_may_read_the_notes_beside_a_source_with_an_arn(written: Callable[..., Path]) -> None:
    account = "arn:aws:dynamodb:eu-west-1:111111111111:table"
    target = "{type: dynamodb, region: eu-west-1, table: copies, loops: true}"
    _, documents, _ = policy(written(f"{{table: '{account}/orders'}}", target), "--principal", PRINCIPAL)

    assert list(documents) == [f"{account}/orders", f"{account}/orders/stream/*", f"{account}/replicator-epochs"]
    (statement,) = documents[f"{account}/replicator-epochs"]["Statement"]
    assert (statement["Sid"], statement["Action"]) == ("EpochsOfSource", ["dynamodb:GetItem"])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ["--principal", PRINCIPAL],
            "--principal: nothing in this config can be in another account: source.table is a",
        ),
        (
            ["--principal", "me"],
            "--principal: me must be the ARN of a user or role, arn:aws:iam::123456789012:role/NAME",
        ),
        (["--account", "12"], "--account: 12 must be 12 digits, or e.g. target=123456789012"),
        (["--account", "elsewhere=123456789012"], "must be 12 digits, or e.g. target=123456789012"),
        (["--identity", "x\x1b[2J"], "--identity: no identity x\x1b[2J in this config; it has default"),
    ],
)
def test_foolish_arguments_are_plain_errors(written: Callable[..., Path], arguments: list[str], problem: str) -> None:
    code, printed, err = policy(written("{table: orders, region: eu-west-1}"), *arguments)

    assert (code, printed) == (2, None)
    assert problem in err


def test_statements_and_needs_without_actions_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="Nothing: a statement allows actions"):
        Statement("Nothing", (), "arn:aws:s3:::x")
    with pytest.raises(ValueError, match="Serverless: nothing is left of it without aoss:APIAccessAll"):
        Needed("target", "Serverless", Access(), without=frozenset(STATEMENTS["Serverless"].actions))
